"""Calls with blocks chosen from the content, as one rank makes them and as a single process would."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout, block_sparse_attention
from dilated_attention_pytorch.distributed.balance import chunks_of
from dilated_attention_pytorch.distributed.config import DistributedSparseConfig
from dilated_attention_pytorch.distributed.selected import distributed_attention_from_plan
from dilated_attention_pytorch.distributed.selection_plan import SelectionPlan, plan_of_indices
from dilated_attention_pytorch.distributed.sharding import SequenceSharding, shard_sequence
from dilated_attention_pytorch.distributed.stages import Shape, split_heads

BLOCK = 16
TOLERANCE = 2e-5  # of the largest element: float32, sums of some hundred products in another order


@dataclass(frozen=True)
class SelectedCase:
    """A call. `index_heads` are those of the indices, `batch_of_indices` likewise."""

    causal: bool
    length: int = 9 * BLOCK + 5
    batch: int = 2
    heads: tuple[int, int] = (4, 2)
    batch_of_indices: int = 2
    index_heads: int = 4
    k: int = 3
    with_counts: bool = False
    balance: str = "zigzag"
    capacity: int | None = None
    stages: int | None = None
    save_fetched: bool = False
    with_others: bool = False  # sinks, a block bias and a softcap
    seed: int = 0

    @property
    def n_blocks(self) -> int:
        return -(-self.length // BLOCK)

    def sharding(self, rank: int, world_size: int) -> SequenceSharding:
        costs = torch.ones(self.n_blocks, dtype=torch.int64)
        return SequenceSharding.make(chunks_of(self.balance, costs, world_size), self.length, BLOCK, rank)

    def config(self, group: Any) -> DistributedSparseConfig:
        return DistributedSparseConfig(
            group, stages=self.stages, save_fetched=self.save_fetched, capacity=self.capacity
        )


@dataclass
class Whole:
    """The tensors of the whole sequence."""

    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor
    indices: Tensor
    """int64 (batch, heads, n_blocks, k), some of them of no block, some double."""
    counts: Tensor | None
    sinks: Tensor | None
    bias: Tensor | None
    """(batch, heads of q, *indices.shape): the bias of each index."""

    @classmethod
    def of(cls, case: SelectedCase) -> Whole:
        generator = torch.Generator().manual_seed(case.seed)

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        b, n, (heads, kv_heads), dim, v_dim = case.batch, case.length, case.heads, 16, 24
        shape = (case.batch_of_indices, case.index_heads, case.n_blocks, case.k)
        indices = torch.randint(-2, case.n_blocks + 2, shape, generator=generator)
        counts = torch.randint(0, case.k + 1, shape[:3], generator=generator) if case.with_counts else None
        return cls(
            randn(b, n, heads, dim),
            randn(b, n, kv_heads, dim),
            randn(b, n, kv_heads, v_dim),
            randn(b, n, heads, v_dim),
            indices,
            counts,
            randn(heads) if case.with_others else None,
            randn(b, heads, *shape) if case.with_others else None,
        )


Results = dict[str, Tensor]


def without_columns(whole: Whole, is_dropped: Tensor) -> Tensor:
    """The indices without some of them."""
    return whole.indices.masked_fill(is_dropped, -1)


def of_one_process(case: SelectedCase, whole: Whole, indices: Tensor) -> Results:
    """What a single process gives, with all gradients."""
    inputs = {name: getattr(whole, name).clone().requires_grad_() for name in ("q", "k", "v")}
    others = {}
    if case.with_others:
        assert whole.sinks is not None
        assert whole.bias is not None
        others = {
            "sinks": whole.sinks.clone().requires_grad_(),
            "block_bias": whole.bias.clone().requires_grad_(),
        }
    layout = BlockLayout.from_indices(
        indices, whole.counts, q_len=case.length, kv_len=case.length, block_size=BLOCK, causal=case.causal
    )
    given = others | ({"block_bias": others["block_bias"].flatten(2), "softcap": 3.0} if others else {})
    out, lse = block_sparse_attention(
        *inputs.values(), layout, is_causal=case.causal, return_lse=True, **given
    )
    finite = lse.masked_fill(lse.isinf(), 0)
    grads = torch.autograd.grad(
        (out, finite), [*inputs.values(), *others.values()], (whole.grad, finite.detach())
    )
    return {"out": out.detach(), "lse": lse.detach(), **dict(zip([*inputs, *others], grads, strict=True))}


def of_this_rank(
    case: SelectedCase, whole: Whole, config: DistributedSparseConfig
) -> tuple[Results, SelectionPlan]:
    """What this rank gives, with the gradients of its tokens, and its plan."""
    sharding = case.sharding(config.rank, config.world_size)
    rows = sharding.blocks_of(config.rank)
    inputs = {
        name: shard_sequence(getattr(whole, name), sharding).clone().requires_grad_()
        for name in ("q", "k", "v")
    }
    others = {}
    if case.with_others:
        assert whole.sinks is not None
        assert whole.bias is not None
        others = {
            "sinks": whole.sinks.clone().requires_grad_(),
            "block_bias": whole.bias[..., rows, :].clone().requires_grad_(),
        }
    counts = None if whole.counts is None else whole.counts[..., rows]
    plan = plan_of_indices(
        inputs["q"],
        inputs["k"],
        whole.indices[..., rows, :],
        sharding,
        config,
        counts=counts,
        is_causal=case.causal,
    )
    given = others | ({"block_bias": others["block_bias"].flatten(2), "softcap": 3.0} if others else {})
    out, lse = distributed_attention_from_plan(*inputs.values(), plan, return_lse=True, **given)
    finite = lse.masked_fill(lse.isinf(), 0)
    grad = shard_sequence(whole.grad, sharding)
    grads = torch.autograd.grad((out, finite), [*inputs.values(), *others.values()], (grad, finite.detach()))
    return {
        "out": out.detach(),
        "lse": lse.detach(),
        **dict(zip([*inputs, *others], grads, strict=True)),
    }, plan


def part_of_rank(results: Results, sharding: SequenceSharding) -> Results:
    """A rank's part of the results of a single process, without the gradient of the sinks."""
    rows = sharding.blocks_of(sharding.rank)
    dims = {"out": 1, "lse": 2, "q": 1, "k": 1, "v": 1}
    parts = {name: shard_sequence(results[name], sharding, dim) for name, dim in dims.items()}
    if "block_bias" in results:
        parts["block_bias"] = results["block_bias"][..., rows, :]
    return parts


def largest_error(found: Results, wanted: Results) -> dict[str, float]:
    """Of each result, relative to its largest element; infinite where one has an infinity or nan and the other has not."""
    errors = {}
    for name, right in wanted.items():
        mine, is_finite = found[name], right.isfinite()
        same = torch.equal(mine[~is_finite], right[~is_finite])
        error = (mine.detach() - right.detach())[is_finite].abs().max() / right.detach()[
            is_finite
        ].abs().max()
        errors[name] = float(error) if same else float("inf")
    return errors


# ---- the slow definition of what a capacity drops


def dropped_by(case: SelectedCase, whole: Whole, world_size: int) -> Tensor:
    """Which of the indices are dropped, bool as they are: one block of one group of heads after the other."""
    is_dropped = torch.zeros_like(whole.indices, dtype=torch.bool)
    if case.capacity is None:
        return is_dropped
    owner = case.sharding(0, world_size).rank_of_block()
    short = case.n_blocks - 1 if case.length % BLOCK else None
    for heads in head_groups(case):
        for rank in range(world_size):
            rows = (owner == rank).nonzero().flatten().tolist()
            places: dict[int, list[tuple[int, ...]]] = {}
            for place in valid_places(case, whole, heads, rows):
                places.setdefault(int(whole.indices[place]), []).append(place)
            for other in range(world_size):
                theirs = [block for block in places if owner[block] == other and block != short]
                theirs.sort(key=lambda block: (-len(places[block]), block))
                for block in theirs[case.capacity :] if other != rank else []:
                    for place in places[block]:
                        is_dropped[place] = True
    return is_dropped


def head_groups(case: SelectedCase) -> list[range]:
    """The heads of the indices that exchange together."""
    if case.index_heads == 1:
        return [range(1)]
    heads, kv_heads = case.heads
    shape = Shape(
        case.sharding(0, 1), case.causal, heads, kv_heads, None, torch.device("cpu"), case.stages, 1
    )
    scale = case.index_heads // kv_heads
    return [range(part.start * scale, part.stop * scale) for part in split_heads(shape, True, 0.0)]


def valid_places(case: SelectedCase, whole: Whole, heads: range, rows: list[int]) -> list[tuple[int, ...]]:
    """The places of the indices of some heads and rows that name a block."""
    places = []
    for element in range(case.batch_of_indices):
        for head in heads:
            for row in rows:
                number = case.k if whole.counts is None else int(whole.counts[element, head, row])
                for i in range(number):
                    block = int(whole.indices[element, head, row, i])
                    if 0 <= block <= (row if case.causal else case.n_blocks - 1):
                        places.append((element, head, row, i))
    return places
