"""Packed sequences over ranks on a GPU: what one call gives, the same bits again, and no waiting for new sequences.

One GPU computes all ranks in turn, see replay.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import (
    BlockLayout,
    PackedSharding,
    SparsePatternConfig,
    block_sparse_attention_varlen,
    distributed_block_sparse_attention_varlen,
    shard_sequence,
)
from tests.core.attention_cases import LIMITS
from tests.core.distributed.gloo_processes import needs_gloo
from tests.core.distributed.replay import Replay

pytestmark = [pytest.mark.gpu, needs_gloo]

LENGTHS = [700, 1, 0, 1500, 64, 130, 333, 2, 900]
CALLS = {
    "causal": {},
    "full": {"is_causal": False},
    "heads": {"heads": 4, "stages": 2},
    "dilation": {"options": {"segment_lengths": [64, 256], "dilation_rates": [1, 2]}},
    "scores": {"sinks": True, "options": {"softcap": 20.0}, "dtype": torch.float32},
}


def tensors(dtype: torch.dtype) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    total = sum(LENGTHS)
    return tuple(
        torch.randn(total, heads, 64, generator=generator).to("cuda", dtype) for heads in (4, 2, 2, 4)
    )


def layout_of(is_causal: bool, heads: int) -> BlockLayout:
    configs = [SparsePatternConfig(block_size=64, sparsity_ratio=0.2 + 0.1 * i) for i in range(heads)]
    return BlockLayout.from_config(
        configs if heads > 1 else configs[0], max(LENGTHS), causal=is_causal, device="cuda"
    )


@pytest.mark.parametrize("world_size", [2, 5])
@pytest.mark.parametrize("name", CALLS)
def test_ranks_give_what_one_call_gives(name: str, world_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {
        "is_causal": True,
        "heads": 1,
        "stages": 1,
        "options": {},
        "dtype": torch.bfloat16,
    }
    given |= CALLS[name]
    offsets = [0, *torch.tensor(LENGTHS).cumsum(0).tolist()]
    layout = layout_of(given["is_causal"], given["heads"])
    *qkv, grad = tensors(given["dtype"])
    sinks = torch.randn(4, device="cuda") if given.get("sinks") else None
    options = {"is_causal": given["is_causal"], "sinks": sinks, **given["options"]}
    ranks = Replay(world_size, monkeypatch)

    def call() -> list[Tensor]:
        config = ranks.config(stages=given["stages"])
        sharding = PackedSharding.from_sequences(offsets, layout, config, is_causal=given["is_causal"])
        mine = [shard_sequence(x, sharding, 0).clone().requires_grad_() for x in qkv]
        out = distributed_block_sparse_attention_varlen(*mine, layout, sharding, config, **options)
        grads = torch.autograd.grad(out, mine, shard_sequence(grad, sharding, 0))
        return [out.detach(), *grads, sharding.indices("cuda")]

    def whole() -> list[Tensor]:
        of_ranks = ranks.run(call)
        order = torch.cat([each[-1] for each in of_ranks]).argsort()
        return [torch.cat(x)[order] for x in list(zip(*of_ranks, strict=True))[:-1]]

    made = whole()
    again = whole()
    assert all(x.equal(y) for x, y in zip(made, again, strict=True))
    cu = torch.tensor(offsets, dtype=torch.int32, device="cuda")
    leaves = [x.clone().requires_grad_() for x in qkv]
    longest = max(LENGTHS)
    out = block_sparse_attention_varlen(*leaves, layout, cu, cu, longest, longest, **options)
    expected = [out.detach(), *torch.autograd.grad(out, leaves, grad)]
    for x, y in zip(made, expected, strict=True):
        # each of both is this far from the exact result
        torch.testing.assert_close(
            x.float(), y.float(), rtol=0, atol=2 * LIMITS[given["dtype"]] * float(y.abs().max())
        )


def test_new_sequences_do_not_wait_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = layout_of(True, 4)
    *qkv, grad = tensors(torch.bfloat16)
    ranks = Replay(2, monkeypatch)

    def step(lengths: list[int]) -> None:
        config = ranks.config(stages=2)
        offsets = [0, *torch.tensor(lengths).cumsum(0).tolist()]
        sharding = PackedSharding.from_sequences(offsets, layout, config, is_causal=True)
        mine = [x[: sharding.local_len].detach().requires_grad_() for x in qkv]
        out = distributed_block_sparse_attention_varlen(*mine, layout, sharding, config, is_causal=True)
        out.backward(grad[: sharding.local_len])
        sharding.positions("cuda")

    ranks.run(lambda: step(LENGTHS), passes=1)  # kernels are compiled, the layout is read once
    ranks.run(lambda: step([300, *LENGTHS[1:], 400]), passes=1)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ranks.run(lambda: step([400, *LENGTHS[1:], 300]), passes=1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
