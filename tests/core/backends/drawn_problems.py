"""Problems drawn at random from all that a call may ask for, small, with odd lengths and empty parts."""

from __future__ import annotations

import itertools
import random
from typing import Any

import torch
from torch import Tensor

from dilated_attention_pytorch.backends.problem import AttentionProblem, Backend
from dilated_attention_pytorch.backends.reference import attention_reference, visible_and_bias
from dilated_attention_pytorch.config import TokenDilation
from dilated_attention_pytorch.grid import BlockGrid
from dilated_attention_pytorch.layout.lists import BlockLists, BlockMasks, build_csr, packed_masks
from dilated_attention_pytorch.sequences import Sequences, packed_sequences, sequences_of_batch

INPUTS = ("q", "k", "v", "block_bias", "sinks")


class Draw(random.Random):
    """Random numbers and tensors."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def chance(self, probability: float) -> bool:
        return self.random() < probability

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def flags(self, probability: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator) < probability

    def int32(self, low: int, high: int, n: int) -> Tensor:
        """n numbers from low to high."""
        return torch.tensor([self.randint(low, high) for _ in range(n)], dtype=torch.int32)


def drawn_lists(
    draw: Draw, grid: BlockGrid, n_heads: int, dilation: TokenDilation | None, has_capacity: bool
) -> tuple[BlockLists, int]:
    """Row lists of `n_heads` heads, with or without numbers that mean nothing behind them, and the number of block ids."""
    active = draw.flags(draw.choice([0.0, 0.4, 0.7, 1.0]), n_heads, grid.n_rows, grid.n_cols)
    active[:, 0] &= draw.chance(0.7)  # rows without blocks
    head, row, col = active.nonzero(as_tuple=True)
    n_ids = head.numel() + 5 * has_capacity
    block_ids = torch.randperm(n_ids, generator=draw.generator)[: head.numel()]
    if not has_capacity:
        block_ids = block_ids.sort().values
    lists, n_classes = head * grid.n_rows + row, 1
    if dilation is not None:
        n_classes = len(dilation.dilation_rates)
        distance = (row + grid.first_row - col).abs() * grid.block_size
        bounds = torch.tensor(dilation.segment_lengths[:-1], dtype=torch.int64)
        lists = lists * n_classes + torch.bucketize(distance, bounds, right=True)
    n_lists = n_heads * grid.n_rows * n_classes
    made = build_csr(lists * grid.n_cols + col, n_lists, grid.n_cols, col, block_ids)
    if has_capacity:
        behind = torch.tensor([2**30, -7, 0], dtype=torch.int32)
        made = BlockLists(made.indptr, torch.cat([made.indices, behind]), torch.cat([made.block_ids, behind]))
    return made, n_ids


def drawn_sequences(
    draw: Draw, batch: int, q_len: int, kv_len: int, is_causal: bool
) -> tuple[int, Sequences | None]:
    """The position of query 0, and a table or None."""
    queries = torch.empty(batch, q_len, 1, 1)
    kind = draw.choice(["plain", "moved", "lengths", "padded", "positions", "everything", "packed", "packed"])
    offset = draw.randint(-20, 90) if kind == "moved" or draw.chance(0.3) else None
    if kind == "packed":
        n = draw.randint(0, 4)
        bounds = [sorted(draw.randint(0, length) for _ in range(n + 1)) for length in (q_len, kv_len)]
        cu_q, cu_k = (torch.tensor(each, dtype=torch.int32) for each in bounds)
        longest = [max([0, *(b - a for a, b in itertools.pairwise(each))]) for each in bounds]
        position = draw.choice([None, offset, draw.int32(-20, 90, n)])
        return 0, packed_sequences(cu_q, cu_k, longest[0], longest[1], is_causal, position)
    lengths = draw.int32(0, kv_len, batch) if kind in ("lengths", "padded", "everything") else None
    starts = draw.int32(0, kv_len, batch) if kind in ("padded", "everything") else None
    moved = draw.int32(-20, 90, batch) if kind in ("positions", "everything") else offset
    return sequences_of_batch(queries, kv_len, is_causal, moved, lengths, starts)


def drawn_problem(seed: int, plain_scores: bool = False, q_len: int | None = None) -> AttentionProblem:
    """One problem in float64. `plain_scores`: with nothing that changes scores, for kernels that know of no more."""
    draw = Draw(seed)
    block = draw.choice([16, 16, 32])
    is_causal = draw.chance(0.6)
    kv_len = draw.choice([0, 1, 17, 40, 63, 64])
    q_len = draw.choice([0, 1, 1, 5, 21, 33, 64]) if q_len is None else q_len
    batch = draw.choice([0, 1, 2, 3, 3])
    q_offset, sequences = drawn_sequences(draw, batch, q_len, kv_len, is_causal)
    if sequences is not None and sequences.is_packed:
        batch = 1
    n_sequences = max(1, batch if sequences is None else sequences.table.shape[0])
    kv_heads = draw.choice([1, 2])
    heads = kv_heads * draw.choice([1, 2])
    grid = BlockGrid(draw.randint(1, 100), draw.randint(1, 100), block, False, draw.choice([0, 0, 35]))
    layout_batch = n_sequences if draw.chance(0.3) else 1
    layout_heads = draw.choice([1, 1, kv_heads, heads])
    dilation = TokenDilation((block, 2 * block), draw.choice([(1, 2), (4, 1)])) if draw.chance(0.15) else None
    has_capacity = draw.chance(0.4)
    rows, n_ids = drawn_lists(draw, grid, layout_batch * layout_heads, dilation, has_capacity)
    head_dim = 8
    fields: dict[str, Any] = {}
    if not plain_scores:
        if draw.chance(0.3):
            table = packed_masks(draw.flags(0.5, draw.randint(0, 3), block, block))
            ids = draw.int32(-1, table.shape[0] - 1, n_ids)
            fields["block_masks"] = BlockMasks(ids, table)
        if draw.chance(0.25):
            fields["softcap"] = draw.choice([0.5, 3.0])
        if draw.chance(0.25):
            fields["alibi_slopes"] = torch.randn(heads, generator=draw.generator)
        if draw.chance(0.25) and not (sequences is not None and sequences.is_packed):
            shape = draw.choice([1, batch]), draw.choice([1, heads]), q_len, kv_len
            fields["attn_bias"] = draw.normal(*shape).masked_fill(draw.flags(0.2, *shape), -torch.inf)
        if draw.chance(0.25):
            fields["dropout_p"], fields["seed"] = 0.3, torch.tensor([draw.getrandbits(60)])
        if draw.chance(0.3):
            fields["block_bias"] = draw.normal(draw.choice([1, n_sequences]), draw.choice([1, heads]), n_ids)
    if draw.chance(0.3):
        fields["sinks"] = draw.normal(heads)
    if draw.chance(0.25):
        fields["key_padding_mask"] = draw.flags(0.3, batch, kv_len)
    v_head_dim = draw.choice([head_dim, head_dim, 12]) if not plain_scores else head_dim
    return AttentionProblem.made_of(**{
        "q": draw.normal(batch, q_len, heads, head_dim), "k": draw.normal(batch, kv_len, kv_heads, head_dim),
        "v": draw.normal(batch, kv_len, kv_heads, v_head_dim), "grid": grid, "layout_batch": layout_batch,
        "layout_heads": layout_heads, "rows": rows, "cols": rows, "undilated": (rows, rows), "block_masks": None,
        "prepared": (), "entries": None, "q_offset": q_offset, "is_causal": is_causal, "softmax_scale": 0.4,
        "dropout_p": 0.0, "dilation": dilation, "block_bias": None, "key_padding_mask": None, "seed": None,
        "sequences": sequences, "softcap": 0.0, "attn_bias": None, "alibi_slopes": None, "sinks": None, **fields,
    })  # fmt: skip


def with_masks_of_pairs(problem: AttentionProblem, seed: int) -> AttentionProblem:
    """The problem with masks inside blocks, alibi_slopes or an attn_bias, or several of them."""
    p, draw, fields = problem, Draw(seed), dict[str, Any]()
    kinds = draw.sample(["masks", "alibi", "bias"], draw.randint(1, 3))
    if "masks" in kinds:
        table = packed_masks(draw.flags(0.5, draw.randint(0, 3), p.block_size, p.block_size))
        n_ids = max([-1, *p.rows.block_ids[: int(p.rows.indptr[-1])].tolist()]) + 1
        fields["block_masks"] = BlockMasks(draw.int32(-1, table.shape[0] - 1, n_ids), table)
    if "alibi" in kinds:
        fields["alibi_slopes"] = torch.randn(p.num_heads, generator=draw.generator)
    if "bias" in kinds and not (p.sequences is not None and p.sequences.is_packed):
        shape = draw.choice([1, p.batch]), draw.choice([1, p.num_heads]), p.q_len, p.kv_len
        fields["attn_bias"] = draw.normal(*shape).masked_fill(draw.flags(0.2, *shape), -torch.inf)
    return with_fields(p, **fields)


def with_fields(problem: AttentionProblem, **fields: Any) -> AttentionProblem:
    """The problem with other fields."""
    return AttentionProblem.made_of(**{**problem.__dict__, **fields})


def reference_results(
    problem: AttentionProblem, grad_out: Tensor, grad_lse: Tensor | None
) -> dict[str, Tensor]:
    """out, lse and all gradients of the definition."""
    leaves = {
        name: getattr(problem, name).clone().requires_grad_()
        for name in INPUTS
        if getattr(problem, name) is not None
    }
    out, lse = attention_reference(with_fields(problem, **leaves))
    outputs, grads = [out], [grad_out]
    if grad_lse is not None:
        outputs.append(lse.masked_fill(lse == -torch.inf, 0.0))
        grads.append(grad_lse)
    found = torch.autograd.grad(outputs, list(leaves.values()), grads)
    return {"out": out.detach(), "lse": lse.detach(), **dict(zip(leaves, found, strict=True))}


def unseen_keys(problem: AttentionProblem) -> Tensor:
    """Bool (batch, kv_len, num_kv_heads), True for the keys that no query sees."""
    p = problem
    visible = visible_and_bias(p)[0].expand(p.batch, p.num_heads, -1, -1)
    return ~visible.any(2).unflatten(1, (p.num_kv_heads, -1)).any(2).transpose(1, 2)


def results_of(
    backend: Backend, problem: AttentionProblem, grad_out: Tensor, grad_lse: Tensor | None
) -> dict[str, Tensor]:
    """out, lse and all gradients of a backend."""
    assert backend.rejects(problem) is None
    out, lse = backend.forward(problem)
    grads = backend.backward(problem, out, lse, grad_out, grad_lse)
    found = {"out": out, "lse": lse}
    for name in INPUTS:
        leaf, grad = getattr(problem, name), getattr(grads, name)
        if leaf is not None:
            assert grad is not None
            found[name] = grad.sum_to_size(leaf.shape)
    return found
