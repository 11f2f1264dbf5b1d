"""Calls of packed sequences by name: what each rank computes, and what one process gives."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dilated_attention_pytorch import (
    BlockLayout,
    DistributedSparseConfig,
    PackedSharding,
    SparsePatternConfig,
    block_sparse_attention_varlen,
    distributed_block_sparse_attention_varlen,
    shard_sequence,
)

# float32 rounds to 6e-8; sums over a few hundred keys and the exponential of the scores lose two more digits.
FLOAT32 = 2e-5


@dataclass(frozen=True)
class Case:
    """One call. `lengths` are those of the sequences; `chunks` are given where `balance` does not choose them."""

    name: str
    lengths: Sequence[int]
    is_causal: bool = True
    causal_layout: bool = True
    heads: int = 2
    kv_heads: int = 2
    layout_heads: int = 1
    kind: str = "dilated_sparse"
    ratio: float = 0.5
    more: int = 0  # positions of the layout behind the longest sequence
    block_size: int = 16
    balance: str = "zigzag"
    stages: int | None = None
    save_fetched: bool = False
    window: int | None = None  # with masks inside blocks
    segment_lengths: Sequence[int] | None = None
    dilation_rates: Sequence[int] | None = None
    softcap: float | None = None
    sinks: bool = False
    lse_gradient: bool = False
    dropout_p: float = 0.0

    def offsets(self) -> list[int]:
        return [0, *itertools.accumulate(self.lengths)]

    def layout(self) -> BlockLayout:
        length = max(self.lengths) + self.more
        causal = self.is_causal and self.causal_layout
        if self.window is not None:
            config = SparsePatternConfig(
                pattern_type="local_window", window_size=self.window, exact=True, block_size=self.block_size
            )
            return BlockLayout.from_config(config, length, causal=causal)
        configs = [
            SparsePatternConfig(
                pattern_type=self.kind,
                sparsity_ratio=min(1.0, self.ratio * (1 + i)),
                block_size=self.block_size,
            )
            for i in range(self.layout_heads)
        ]
        return BlockLayout.from_config(configs if len(configs) > 1 else configs[0], length, causal=causal)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """q, k, v, the gradient of out, and sinks."""
        generator = torch.Generator("cpu").manual_seed(len(self.name))
        total = sum(self.lengths)
        q, k, v, grad = (
            torch.randn(total, heads, dim, generator=generator, device="cpu")
            for heads, dim in ((self.heads, 16), (self.kv_heads, 16), (self.kv_heads, 32), (self.heads, 32))
        )
        sinks = torch.randn(self.heads, generator=generator, device="cpu") if self.sinks else None
        return q, k, v, grad, sinks

    def options(self) -> dict[str, Any]:
        return {
            "is_causal": self.is_causal, "softcap": self.softcap, "segment_lengths": self.segment_lengths,
            "dilation_rates": self.dilation_rates, "dropout_p": self.dropout_p,
        }  # fmt: skip


CASES = [
    Case("one long sequence", [331]),
    Case("one long sequence, not causal", [331], is_causal=False),
    Case("several, cut in the middle", [100, 211, 67, 5]),
    Case("several, not causal", [100, 211, 67, 5], is_causal=False, more=50),
    Case("many short ones", [7, 1, 16, 17, 3, 30, 1, 1, 33, 15, 9, 2, 40, 8, 16, 16, 5]),
    Case("empty ones", [0, 120, 0, 0, 90, 0]),
    Case("contiguous", [100, 211, 67, 5], balance="contiguous"),
    Case("contiguous, not causal", [40, 190, 67, 130], is_causal=False, balance="contiguous"),
    Case("fewer kv heads, stages", [150, 211, 67], heads=8, kv_heads=4, stages=3, save_fetched=True),
    Case("a pattern per head", [150, 211, 67], heads=4, kv_heads=2, layout_heads=4, ratio=0.1, stages=2),
    Case("a pattern per kv head, not causal", [150, 211], False, heads=4, layout_heads=2, ratio=0.1, stages=2),
    Case("token dilation", [150, 211, 67], heads=4, segment_lengths=[16, 64], dilation_rates=[1, 2]),
    Case("token dilation, not causal", [150, 211], False, segment_lengths=[16, 64], dilation_rates=[1, 4]),
    Case("masks inside blocks", [150, 211, 67], window=40),
    Case("masks inside blocks, not causal", [150, 211, 67], False, window=40, stages=2),
    Case("layout that is not causal", [150, 211, 67], causal_layout=False, kind="local_window"),
    Case("softcap, sinks and lse", [150, 211, 67], softcap=5.0, sinks=True, lse_gradient=True, heads=4, stages=2),
]  # fmt: skip
BY_NAME = {case.name: case for case in CASES}


def local_call(case: Case, make_config: Callable[..., DistributedSparseConfig]) -> dict[str, Tensor]:
    """What a rank computes: out, lse and gradients of its tokens, and their indices."""
    config = make_config(balance=case.balance, stages=case.stages, save_fetched=case.save_fetched)
    layout = case.layout()
    sharding = PackedSharding.from_sequences(case.offsets(), layout, config, is_causal=case.is_causal)
    *whole, sinks = case.tensors()
    q, k, v, grad = (shard_sequence(x, sharding, 0).clone() for x in whole)
    leaves = [x.requires_grad_() for x in (q, k, v, sinks) if x is not None]
    out, lse = distributed_block_sparse_attention_varlen(
        q, k, v, layout, sharding, config, sinks=sinks, return_lse=True, **case.options()
    )
    loss = (out * grad).sum() + (lse.nan_to_num(neginf=0).sin().sum() if case.lse_gradient else 0)
    grads = torch.autograd.grad(loss, leaves)
    names = ("dq", "dk", "dv", "dsinks")
    made = {"out": out.detach(), "lse": lse.detach().T, **dict(zip(names, grads, strict=False))}
    return {**made, "indices": sharding.indices(), "positions": sharding.positions()}


def single_process(case: Case) -> dict[str, Tensor]:
    q, k, v, grad, sinks = case.tensors()
    leaves = [x.requires_grad_() for x in (q, k, v, sinks) if x is not None]
    cu, longest = torch.tensor(case.offsets(), dtype=torch.int32), max(case.lengths)
    out, lse = block_sparse_attention_varlen(
        q, k, v, case.layout(), cu, cu, longest, longest, sinks=sinks, return_lse=True, **case.options()
    )
    loss = (out * grad).sum() + (lse.nan_to_num(neginf=0).sin().sum() if case.lse_gradient else 0)
    grads = torch.autograd.grad(loss, leaves)
    names = ("dq", "dk", "dv", "dsinks")
    return {"out": out.detach(), "lse": lse.detach().T, **dict(zip(names, grads, strict=False))}


def gathered(of_ranks: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tokens of all ranks in the order of the stream."""
    order = torch.cat([each["indices"] for each in of_ranks]).argsort()
    made = {
        name: torch.cat([each[name] for each in of_ranks])[order] for name in of_ranks[0] if name != "dsinks"
    }
    if "dsinks" in of_ranks[0]:
        made["dsinks"] = sum(each["dsinks"] for each in of_ranks)  # type: ignore[assignment]
    return made


def check(case: Case, of_ranks: Sequence[dict[str, Tensor]]) -> None:
    made = gathered(of_ranks)
    assert made.pop("indices").equal(torch.arange(sum(case.lengths)))
    assert made.pop("positions").equal(torch.cat([torch.arange(n) for n in case.lengths]))
    for name, x in single_process(case).items():
        assert made[name].shape == x.shape
        limit = FLOAT32 * float(x[x.isfinite()].abs().max())
        torch.testing.assert_close(
            made[name], x, rtol=FLOAT32, atol=limit, msg=partial("{}, {}: {}".format, case.name, name)
        )
