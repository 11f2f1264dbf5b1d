"""Short rows: the active keys of several tiles are gathered and go to PyTorch's fused kernel as one batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import AttentionProblem, Gradients
from . import fused_kernel
from .padding import padded_keys
from .pair_masks import changes_pairs, pair_mask
from .scratch import Buffers, Scratch
from .tiles import Tiles, Tiling, batch_ranges, tiling_of
from .token_rows import TokenRows

# Elements of k gathered per thread and kernel call: 1 MiB of float32 with v, which stays in the cache until it is read.
ELEMENTS_PER_THREAD = 2**18
FEW_QUERIES = 16  # per kv head; up to here the kernel is faster if the keys of a head are contiguous


class Part(NamedTuple):
    """One kernel call: the tiles of some batch elements, T in total, with their keys and padding."""

    tiles: Tiles
    batches: range
    keys: Tensor  # (R, n_keys) token of k and v
    padded: Tensor | None  # bool (T, n_keys); None if no key is padding
    problem: AttentionProblem

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """What is added to the scores, broadcastable to (T, n_kv_heads, group * height, n_keys)."""
        mask = self.tiles.causal_mask(dtype, self.tiles.group)
        if changes_pairs(self.problem):
            of_pairs = pair_mask(self.problem, self.tiles, self.keys, self.batches, dtype)
            mask = of_pairs if mask is None else of_pairs + mask
        if self.padded is None:
            return mask
        padding = torch.zeros(self.padded.shape, dtype=dtype, device="cpu")
        padding = padding.masked_fill_(self.padded, -torch.inf)[:, None, None, :]
        return padding if mask is None else padding + mask


class BatchedRows:
    """Iterates over the parts of a problem and gathers their tensors; shared by forward and backward."""

    def __init__(self, problem: AttentionProblem, dtype: torch.dtype, buffers: Buffers) -> None:
        p = self.problem = problem
        self.max_elements = ELEMENTS_PER_THREAD * torch.get_num_threads()
        heads_per_tile = p.num_kv_heads if p.layout_heads == 1 else 1
        self.width = heads_per_tile * p.head_dim
        group = p.num_heads // (p.num_kv_heads if p.layout_heads in (1, p.num_kv_heads) else p.num_heads)
        height = min(p.q_len, p.block_size)
        if changes_pairs(p):  # the mask of a call may have more elements than its keys
            self.max_elements //= max(1, group * height // p.head_dim)
        self.tiling: Tiling = tiling_of(problem, self.max_elements // self.width)
        self.is_wide = p.layout_heads == 1 and group * height > FEW_QUERIES
        # with groups, q is gathered head by head: the queries of a group follow each other in a tile
        self.q_is_wide = self.is_wide and group == 1
        self.scratch = Scratch(dtype, buffers)
        self.k, self.v = (TokenRows(x, self.is_wide, self.scratch) for x in (p.k, p.v))
        self.padded = padded_keys(p)

    def queries(self, x: Tensor) -> TokenRows:
        return TokenRows(x, self.q_is_wide, self.scratch)

    def results(self, x: Tensor) -> TokenRows:
        """A contiguous tensor with the tokens of q or k, for writing."""
        return TokenRows(x, self.problem.layout_heads == 1, self.scratch)

    def parts(self) -> Iterator[Part]:
        """The tiles, for as many batch elements at a time as the limit on gathered elements allows."""
        for tiles in self.tiling.tiles:
            n_tiles = tiles.queries.shape[0]
            keys = tiles.keys()
            max_batches = max(1, self.max_elements // (n_tiles * tiles.n_keys * self.width))
            for batches in batch_ranges(self.problem.batch, max_batches):
                yield Part(tiles, batches, keys, self.padding_of(keys, batches), self.problem)

    def padding_of(self, keys: Tensor, batches: range) -> Tensor | None:
        if self.padded is None:
            return None
        padded = self.padded[batches.start : batches.stop, keys].flatten(0, 1)
        return padded if bool(padded.any()) else None

    def gather_queries(self, name: str, rows: TokenRows, part: Part) -> Tensor:
        """(T, n_kv_heads, group * height, dim); a view where the strides allow it."""
        tiles = part.tiles
        in_place = tiles.in_place(rows.x, part.batches)
        if in_place is not None and in_place.stride(4) == 1 and in_place.stride(3) >= in_place.shape[4]:
            return in_place.flatten(0, 1).to(self.scratch.dtype)
        x = rows.gather(name, tiles.queries, part.batches, tiles.heads)
        return x if tiles.group == 1 else x.unflatten(1, (-1, tiles.group)).flatten(2, 3)

    def put_queries(self, rows: TokenRows, part: Part, values: Tensor) -> None:
        """Write values (T, n_kv_heads, group * height, dim) to the tokens of the tiles."""
        tiles = part.tiles
        in_place = tiles.in_place(rows.x, part.batches)
        if in_place is not None:
            in_place.copy_(values.view_as(in_place))
            return
        by_head = values.unflatten(2, (tiles.group, tiles.height)).permute(0, 3, 1, 2, 4)
        rows.put(tiles.queries, part.batches, tiles.heads, by_head)

    def gather_keys(self, name: str, rows: TokenRows, part: Part) -> Tensor:
        """(T, n_kv_heads, n_keys, dim)"""
        x = rows.gather(name, part.keys, part.batches, part.tiles.kv_heads)
        if part.padded is not None:  # memory past the end of a cache may hold NaN, and 0 * NaN is NaN
            x.masked_fill_(part.padded[:, None, :, None], 0.0)
        return x


def forward(problem: AttentionProblem, buffers: Buffers) -> tuple[Tensor, Tensor]:
    p = problem
    wide = torch.promote_types(p.q.dtype, torch.float32)
    # The kernel is slow in float16, and in bfloat16 with a single query.
    is_single = p.q_len * p.num_heads == p.num_kv_heads
    is_exact = p.alibi_slopes is None and p.attn_bias is None  # 0 and -inf, which bfloat16 holds
    dtype = torch.bfloat16 if p.q.dtype == torch.bfloat16 and not is_single and is_exact else wide
    rows = BatchedRows(p, dtype, buffers)
    out = torch.empty(p.batch, p.q_len, p.num_heads, p.v_head_dim, dtype=p.q.dtype, device="cpu")
    lse = torch.empty(p.batch, p.q_len, p.num_heads, 1, dtype=wide, device="cpu")
    if not rows.tiling.is_complete:
        out.zero_()
        lse.fill_(-torch.inf)
    q_rows, out_rows, lse_rows = rows.queries(p.q), rows.results(out), rows.results(lse)
    for part in rows.parts():
        q, mask = rows.gather_queries("q", q_rows, part), part.mask(dtype)
        k, v = rows.gather_keys("k", rows.k, part), rows.gather_keys("v", rows.v, part)
        part_out, part_lse = fused_kernel.attention(q, k, v, mask, p.softmax_scale)
        if mask is not None and (part.padded is not None or changes_pairs(p)):
            part_lse = part_lse.masked_fill((mask == -torch.inf).all(-1), -torch.inf)  # sees no key
        rows.put_queries(out_rows, part, part_out.to(p.q.dtype))
        rows.put_queries(lse_rows, part, part_lse.unsqueeze(-1))
    return out, lse.squeeze(-1).transpose(1, 2).contiguous()


def backward(
    problem: AttentionProblem, out: Tensor, lse: Tensor, grad_out: Tensor, buffers: Buffers
) -> Gradients:
    p, dtype = problem, lse.dtype
    rows = BatchedRows(p, dtype, buffers)
    sees_none = (lse == -torch.inf).transpose(1, 2).unsqueeze(-1)  # (batch, q_len, heads, 1)
    lse_by_token = lse.transpose(1, 2).unsqueeze(-1).contiguous()
    if bool(sees_none.any()):  # such a query contributes nothing, whatever its gradient
        lse_by_token = lse_by_token.masked_fill(sees_none, 0.0)
        grad_out = grad_out.masked_fill(sees_none, 0.0)
    grad_q = torch.empty(p.q.shape, dtype=p.q.dtype, device="cpu")
    if not rows.tiling.is_complete:
        grad_q.zero_()
    grad_k, grad_v = (torch.zeros(x.shape, dtype=dtype, device="cpu") for x in (p.k, p.v))
    grad_q_rows, grad_k_rows, grad_v_rows = (rows.results(x) for x in (grad_q, grad_k, grad_v))
    sources = {"d out": grad_out, "q": p.q, "out": out, "lse": lse_by_token}
    rows_of = {name: rows.queries(x) for name, x in sources.items()}
    for part in rows.parts():
        d_out, q, part_out, part_lse = (rows.gather_queries(name, x, part) for name, x in rows_of.items())
        k, v = rows.gather_keys("k", rows.k, part), rows.gather_keys("v", rows.v, part)
        d_q, d_k, d_v = fused_kernel.attention_backward(
            d_out, q, k, v, part_out, part_lse.squeeze(-1), part.mask(dtype), p.softmax_scale
        )
        rows.put_queries(grad_q_rows, part, d_q.to(p.q.dtype))
        for grad_rows, values in ((grad_k_rows, d_k), (grad_v_rows, d_v)):
            grad_rows.add(part.keys, part.batches, part.tiles.kv_heads, values.transpose(1, 2))
    return Gradients(grad_q, grad_k.to(p.k.dtype), grad_v.to(p.v.dtype), None)
