"""Packed sequences over processes: results and gradients against one process, errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
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
from tests.core.distributed.gloo_processes import needs_gloo, run_processes
from tests.core.distributed.one_process import mesh_of_one

pytestmark = needs_gloo

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
        return [0, *torch.tensor(self.lengths).cumsum(0).tolist()]

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
        torch.manual_seed(len(self.name))
        total = sum(self.lengths)
        q, k, v, grad = (
            torch.randn(total, heads, dim)
            for heads, dim in ((self.heads, 16), (self.kv_heads, 16), (self.kv_heads, 32), (self.heads, 32))
        )
        return q, k, v, grad, torch.randn(self.heads) if self.sinks else None

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


def local_call(rank: int, case: Case) -> dict[str, Tensor]:
    """What a rank computes: out, lse and gradients of its tokens, and their indices."""
    config = DistributedSparseConfig(
        torch.distributed.group.WORLD,
        balance=case.balance,
        stages=case.stages,
        save_fetched=case.save_fetched,
    )  # type: ignore[arg-type]
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


def all_calls(rank: int, names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    made = {}
    for name in names:
        made[name] = local_call(rank, BY_NAME[name])
        again = local_call(rank, BY_NAME[name])
        assert all(x.equal(again[key]) for key, x in made[name].items()), name
    check_dropout(rank)
    return made


def check_dropout(rank: int) -> None:
    """Every rank draws as many random numbers, whatever it holds, and weights are dropped."""
    case = BY_NAME["empty ones"]
    torch.manual_seed(0)
    kept = local_call(rank, case)["out"]
    dropped = local_call(rank, replace(case, dropout_p=0.5))["out"]
    assert not dropped.isclose(kept).all()
    state = torch.get_rng_state()
    states = [torch.empty_like(state) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(states, state)
    assert all(state.equal(other) for other in states)


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


def test_two_processes_give_the_results_of_one() -> None:
    of_ranks = run_processes(2, all_calls, list(BY_NAME), limit=300)
    for case in CASES:
        check(case, [each[case.name] for each in of_ranks])


@pytest.mark.processes
@pytest.mark.parametrize("world_size", [3, 4])
def test_more_processes_give_the_results_of_one(world_size: int) -> None:
    of_ranks = run_processes(world_size, all_calls, list(BY_NAME), limit=600)
    for case in CASES:
        check(case, [each[case.name] for each in of_ranks])


# ---- one process


@pytest.fixture(scope="module")
def config() -> Iterator[DistributedSparseConfig]:
    with mesh_of_one() as mesh:
        yield DistributedSparseConfig(mesh)


@pytest.mark.parametrize("name", ["several, not causal", "softcap, sinks and lse"])
def test_one_process_is_the_plain_call(config: DistributedSparseConfig, name: str) -> None:
    case = BY_NAME[name]
    q, k, v, _, sinks = case.tensors()
    layout, cu, longest = case.layout(), torch.tensor(case.offsets(), dtype=torch.int32), max(case.lengths)
    sharding = PackedSharding.from_sequences(cu, layout, config)
    made = distributed_block_sparse_attention_varlen(
        q, k, v, layout, sharding, config, sinks=sinks, **case.options()
    )
    expected = block_sparse_attention_varlen(
        q, k, v, layout, cu, cu, longest, longest, sinks=sinks, **case.options()
    )
    assert made.equal(expected)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"q": torch.zeros(1, 50, 2, 16)}, ValueError, "a batch .* is for distributed_block_sparse_attention"),
        ({"k": torch.zeros(49, 2, 16)}, ValueError, r"k must have the 50 tokens .* shard_sequence\(k, sharding, dim=0\)"),
        ({"sharding": None}, TypeError, "sharding must be a PackedSharding"),
        ({"config": None}, TypeError, "config must be a DistributedSparseConfig"),
        ({"layout": None}, ValueError, "layout must be a BlockLayout"),
        ({"is_causal": False}, ValueError, "is_causal=False needs a layout made with causal=False"),
        ({"is_causal": 2}, TypeError, "is_causal"),
        ({"backend": "reference"}, ValueError, "compare with block_sparse_attention_varlen"),
        ({"backend": "none"}, ValueError, "backend"),
        ({"return_lse": "yes"}, TypeError, "return_lse"),
        ({"dilation_rates": [2]}, ValueError, "segment_lengths"),
        ({"layout": "short"}, ValueError, "covers 32 positions, but the longest sequence in cu_seqlens has 40"),
        ({"layout": "large blocks"}, ValueError, "block_size 32, but the sharding has 16"),
        ({"layout": "not square"}, ValueError, "layout must be square"),
        ({"sharding": "of two"}, ValueError, "sharding is that of rank 0 of 2, but this process is rank 0 of 1"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_refused(
    config: DistributedSparseConfig, change: dict[str, Any], error: type[Exception], said: str
) -> None:
    def layout(length: int, size: int = 16, kv_len: int | None = None) -> BlockLayout:
        return BlockLayout.from_config(SparsePatternConfig(block_size=size), length, kv_len, causal=True)

    q = k = v = torch.zeros(50, 2, 16)
    sharding = PackedSharding.from_sequences([0, 10, 50], layout(40), config)
    call = {"q": q, "k": k, "v": v, "layout": layout(40), "sharding": sharding, "config": config}
    named = {
        "short": layout(32), "large blocks": layout(64, 32), "not square": layout(40, 16, 48),
        "of two": PackedSharding((((0, 2),), ((2, 4),)), (0, 10, 50), 16, 0),
    }  # fmt: skip
    call |= {"is_causal": True}
    call |= {
        name: named.get(value, value) if isinstance(value, str) else value for name, value in change.items()
    }
    with pytest.raises(error, match=said):
        distributed_block_sparse_attention_varlen(**call)
