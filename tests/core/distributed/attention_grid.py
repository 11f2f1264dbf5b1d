"""Distributed calls of a known layout, as one rank makes them and as a single process would."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dilated_attention_pytorch import (
    BlockLayout,
    DistributedSparseConfig,
    SequenceSharding,
    SparsePatternConfig,
    block_sparse_attention,
    distributed_block_sparse_attention,
    shard_sequence,
)

BLOCK = 16
TOLERANCE = 2e-5  # relative, of float32
DILATED = SparsePatternConfig(block_size=BLOCK, sparsity_ratio=0.2)


@dataclass(frozen=True)
class Case:
    """A call of two batch elements; `pattern` is a name of `layout_of`."""

    pattern: str = "dilated"
    causal: bool = True
    length: int = 20 * BLOCK + 5
    heads: tuple[int, int] = (4, 2)
    dims: tuple[int, int] = (16, 16)
    balance: str = "cost"
    stages: int | None = None
    save_fetched: bool = False
    dilation: tuple[list[int], list[int]] | None = None
    with_others: bool = False  # sinks, a block bias and a softcap
    longer: int = 0  # tokens that the layout has more than the sequence
    backend: str | None = None

    def layout(self) -> BlockLayout:
        return layout_of(self.pattern, self.length + self.longer, self.causal, self.heads)

    def config(self) -> DistributedSparseConfig:
        return DistributedSparseConfig(
            dist.group.WORLD, balance=self.balance, stages=self.stages, save_fetched=self.save_fetched
        )

    def options(self) -> dict[str, Any]:
        made: dict[str, Any] = {"is_causal": self.causal, "return_lse": True, "backend": self.backend}
        if self.dilation is not None:
            made |= {"segment_lengths": self.dilation[0], "dilation_rates": self.dilation[1]}
        return made | ({"softcap": 3.0} if self.with_others else {})


def layout_of(pattern: str, length: int, causal: bool, heads: tuple[int, int]) -> BlockLayout:
    """A layout by its name; random ones are alike in every process."""
    generator = torch.Generator().manual_seed(7)
    n_blocks = -(-length // BLOCK)
    if pattern == "dilated":
        return BlockLayout.from_config(DILATED, length, causal=causal)
    if pattern == "dense":  # every block travels, in order
        mask = torch.ones(n_blocks, n_blocks, dtype=torch.bool)
        return BlockLayout.from_dense(mask, BLOCK, length, length, causal=causal)
    if pattern == "local":
        return BlockLayout.from_config(
            SparsePatternConfig("local_window", block_size=BLOCK, window_size=48), length, causal=causal
        )
    if pattern == "global":
        config = SparsePatternConfig(
            "global_local", block_size=BLOCK, window_size=32, global_tokens=BLOCK, sparsity_ratio=0.3
        )
        return BlockLayout.from_config(config, length, causal=causal)
    if pattern in ("by_kv_head", "by_head"):
        number = heads[1] if pattern == "by_kv_head" else heads[0]
        configs = [
            SparsePatternConfig(block_size=BLOCK, sparsity_ratio=0.1 + 0.05 * head) for head in range(number)
        ]
        return BlockLayout.from_config(configs, length, causal=causal)
    if pattern in ("local_heads_first", "local_heads_last"):  # some heads need nothing of other ranks
        mask = torch.rand(heads[0], n_blocks, n_blocks, generator=generator) < 0.2
        local = slice(0, heads[0] // 2) if pattern == "local_heads_first" else slice(heads[0] // 2, None)
        mask[local] = torch.eye(n_blocks, dtype=torch.bool)
        return BlockLayout.from_dense(mask, BLOCK, length, length, causal=causal)
    if pattern == "by_element":
        mask = torch.rand(2, heads[1], n_blocks, n_blocks, generator=generator) < 0.2
        return BlockLayout.from_dense(mask, BLOCK, length, length, causal=causal)
    if pattern == "random":  # rows without blocks too, and blocks above the diagonal
        mask = torch.rand(n_blocks, n_blocks, generator=generator) < 0.15
        mask[1::5] = False
        return BlockLayout.from_dense(mask, BLOCK, length, length)
    if pattern == "documents":
        document = torch.arange(length) // 37
        return BlockLayout.from_mask_mod(
            lambda b, h, q, k: document[q] == document[k], length, block_size=BLOCK, causal=causal
        )
    if pattern == "window":  # exact to the token: masks inside blocks
        config = SparsePatternConfig("local_window", block_size=BLOCK, window_size=41, exact=True)
        return BlockLayout.from_config(config, length, causal=causal)
    assert pattern == "diagonal"
    return BlockLayout.from_dense(torch.eye(n_blocks, dtype=torch.bool), BLOCK, length, length)


CASES = {
    "causal": Case(),
    "causal_zigzag": Case(balance="zigzag", stages=2),
    "causal_contiguous": Case(balance="contiguous", stages=1, heads=(4, 4)),
    "causal_whole_blocks": Case(length=24 * BLOCK, heads=(4, 1)),
    "kept": Case(save_fetched=True, stages=2),
    "not_causal": Case(causal=False),
    "not_causal_zigzag": Case(causal=False, balance="zigzag", stages=2, heads=(4, 4)),
    "not_causal_contiguous": Case(causal=False, balance="contiguous"),
    "not_causal_whole_blocks": Case(causal=False, length=24 * BLOCK, stages=2, save_fetched=True),
    "one_token_in_the_last_block": Case(causal=False, length=20 * BLOCK + 1, balance="zigzag"),
    "other_v_dim": Case(dims=(16, 24), stages=2),
    "dense": Case("dense", stages=2),
    "dense_not_causal": Case("dense", causal=False),
    "local": Case("local", heads=(4, 4)),
    "local_not_causal": Case("local", causal=False),
    "global": Case("global"),
    "global_not_causal": Case("global", causal=False, stages=2),
    "by_kv_head": Case("by_kv_head", heads=(6, 3)),
    "by_kv_head_not_causal": Case("by_kv_head", causal=False, stages=1),
    "by_head": Case("by_head"),
    "by_head_one_stage": Case("by_head", stages=1, causal=False),
    "local_heads_first": Case("local_heads_first"),
    "local_heads_first_not_causal": Case("local_heads_first", causal=False, stages=2, with_others=True),
    "local_heads_last": Case("local_heads_last", heads=(4, 4), save_fetched=True),
    "by_element": Case("by_element"),
    "by_element_not_causal": Case("by_element", causal=False, stages=2),
    "random": Case("random", causal=False),
    "random_made_causal": Case("random", stages=2),
    "documents": Case("documents"),
    "documents_not_causal": Case("documents", causal=False, balance="zigzag"),
    "window": Case("window", stages=2),
    "window_not_causal": Case("window", causal=False),
    "no_exchange": Case("diagonal", causal=False),
    "dilation": Case(dilation=([32, 64], [1, 2])),
    "dilation_not_causal": Case(causal=False, dilation=([64, 128], [2, 4]), heads=(4, 4), stages=4),
    "dilation_by_head": Case("by_head", dilation=([32, 64], [1, 4]), stages=2),
    "dilation_documents": Case("documents", dilation=([32, 64], [1, 2])),
    "others": Case(with_others=True, stages=2),
    "others_by_head": Case("by_head", with_others=True),
    "others_not_causal": Case(causal=False, with_others=True, balance="contiguous"),
    "longer_layout": Case(longer=3 * BLOCK + 2),
}


@dataclass
class Inputs:
    """The tensors of the whole sequence, and the gradients of out and lse."""

    q: Tensor
    k: Tensor
    v: Tensor
    grad_out: Tensor
    grad_lse: Tensor
    sinks: Tensor | None = None
    block_bias: Tensor | None = None

    @classmethod
    def of(cls, case: Case, layout: BlockLayout, dtype: torch.dtype = torch.float32) -> Inputs:
        generator = torch.Generator().manual_seed(3)
        (heads, kv_heads), (dim, v_dim), n = case.heads, case.dims, case.length

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(dtype)

        made = cls(
            draw(2, n, heads, dim), draw(2, n, kv_heads, dim), draw(2, n, kv_heads, v_dim), draw(2, n, heads, v_dim),
            draw(2, heads, n),
        )  # fmt: skip
        if case.with_others:
            made.sinks, made.block_bias = draw(heads), draw(1, heads, layout.num_block_ids)
        return made


def leaf(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.clone().requires_grad_()


def gradients(out: Tensor, lse: Tensor, grads: tuple[Tensor, Tensor], inputs: list[Any]) -> list[Tensor]:
    """Of the inputs that are there; queries that see no key have lse -inf, and no gradient of it."""
    loss = (out * grads[0]).sum() + (lse.masked_fill(lse.isinf(), 0.0) * grads[1]).sum()
    return list(torch.autograd.grad(loss, [x for x in inputs if x is not None]))


def of_one_process(case: Case, layout: BlockLayout, whole: Inputs) -> list[Tensor]:
    """out, lse and all gradients."""
    leaves = [leaf(x) for x in (whole.q, whole.k, whole.v, whole.sinks, whole.block_bias)]
    q, k, v, sinks, bias = leaves
    out, lse = block_sparse_attention(q, k, v, layout, sinks=sinks, block_bias=bias, **case.options())
    return [out, lse, *gradients(out, lse, (whole.grad_out, whole.grad_lse), leaves)]


def of_this_rank(case: Case, layout: BlockLayout, whole: Inputs) -> tuple[SequenceSharding, list[Tensor]]:
    """What this rank gives, with gradients of parameters summed over the ranks."""
    config = case.config()
    sharding = SequenceSharding.from_layout(
        case.layout() if case.longer == 0 else layout.prefix(case.length), config
    )
    q, k, v = (leaf(shard_sequence(x, sharding)) for x in (whole.q, whole.k, whole.v))
    sinks, bias = leaf(whole.sinks), leaf(whole.block_bias)
    out, lse = distributed_block_sparse_attention(
        q, k, v, layout, sharding, config, sinks=sinks, block_bias=bias, **case.options()
    )
    of_outputs = shard_sequence(whole.grad_out, sharding), shard_sequence(whole.grad_lse, sharding, 2)
    made = gradients(out, lse, of_outputs, [q, k, v, sinks, bias])
    for grad in made[3:]:
        dist.all_reduce(grad)
    return sharding, [out, lse, *made]


def part_of(whole: list[Tensor], sharding: SequenceSharding) -> list[Tensor]:
    """What a rank should give, of out, lse and the gradients of a single process."""
    out, lse, dq, dk, dv, *of_parameters = whole
    dims = ((out, 1), (lse, 2), (dq, 1), (dk, 1), (dv, 1))
    return [*(shard_sequence(x, sharding, dim) for x, dim in dims), *of_parameters]


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """In the norm; infinite where only one is."""
    if not torch.equal(found.isinf(), wanted.isinf()):
        return float("inf")
    found, wanted = (x.masked_fill(x.isinf(), 0.0).double() for x in (found, wanted))
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-30))
