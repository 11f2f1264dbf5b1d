"""Split rows: where there are fewer work tiles than multiprocessors, the keys of every row are shared out among several tiles.

Each share is a tile of its own, with its own softmax; kernels/merge_shares.py adds them. The shares are rows of a layout that
has lists for every share, in place of one for each batch element. Only on request: their results take memory, and how many
shares there are, and so the last bits of out, depends on the other sequences of a call and on the GPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...environment_settings import SPLIT_ROWS
from ...layout.lists import BlockLists
from ..problem import AttentionProblem
from .work_order import lists_per_group, order_lists

CHOICES = (2, 3, 4, 6, 8)
DIMS = (64, 128, 256)
GROUP_TOKENS = 128
MOST_BYTES = 32 * 2**20  # of the shares' results
# Microseconds on an H100, estimated from tools/attention-bench/NOTES.md: a block of 128 keys for a tile of 128 queries by head_dim,
# what a tile takes besides, a launch with little to do, and bytes that the merging kernel moves.
PER_BLOCK = {64: 2.0, 128: 1.75, 256: 3.5}
PER_TILE = 2.0
PER_LAUNCH = 3.0
BYTES_PER_MICROSECOND = 2e6
# The host takes longer for two launches than for one: a split saves this much of a call that takes longer than the host.
LEAST_GAIN = 6.0
LEAST_TIME = 35.0


def splits_rows() -> bool:
    """Whether rows may be split."""
    return SPLIT_ROWS.read() == "1"


def estimate(n_tiles: int, blocks: float, n_shares: int, slots: int, head_dim: int) -> float:
    """Microseconds of a forward whose rows are split.

    Args:
        n_tiles: of 128 queries, of all heads and batch elements.
        blocks: of 128 keys that a tile has, on the mean.
        n_shares: of every row; 1 is not split.
        slots: tiles that run at the same time.
        head_dim: of the kernel.
    """
    tile = blocks / n_shares * PER_BLOCK[head_dim] + PER_TILE
    n = n_tiles * n_shares
    kernel = math.ceil(n / slots) * tile
    if n_shares == 1:
        return kernel
    moved = n * GROUP_TOKENS * head_dim * 4
    return kernel + PER_LAUNCH + moved / BYTES_PER_MICROSECOND


def num_shares(problem: AttentionProblem, head_dim: int, slots: int) -> int:
    """How many shares a row is split into; 1: none. Decided by sizes, nothing is read.

    Args:
        problem: without a split.
        head_dim: of the kernel.
        slots: work tiles that run at the same time.
    """
    p = problem
    if not can_be_split(p) or p.is_causal:  # on an H200 causal rows of 64 tiles took as long in shares
        return 1
    tiles_of_head = -(-p.q_len // GROUP_TOKENS)
    n_tiles = tiles_of_head * p.batch * p.num_heads
    blocks = p.rows.indices.numel() / (p.layout_heads * p.grid.n_rows) * (p.block_size / GROUP_TOKENS)
    bytes_of_share = 4 * p.batch * p.num_heads * p.q_len * (head_dim + 1)
    best, unsplit = 1, estimate(n_tiles, blocks, 1, slots, head_dim)
    if unsplit < LEAST_TIME:
        return 1
    fastest = unsplit - LEAST_GAIN
    for n in CHOICES:
        if n * bytes_of_share > MOST_BYTES or blocks < 2 * n:
            break
        time = estimate(n_tiles, blocks, n, slots, head_dim)
        if time < fastest:
            best, fastest = n, time
    return best


def can_be_split(problem: AttentionProblem) -> bool:
    """Whether split rows serve a call: batch elements that are alike, with one layout and no masks inside blocks."""
    p = problem
    return (
        p.sequences is None
        and p.layout_batch == 1
        and p.dilation is None
        and p.block_masks is None
        and p.block_size in (64, 128)
        and p.head_dim == p.v_head_dim
        and p.head_dim in DIMS
        and p.q_len > 0
        and p.kv_len > 0
    )


def split_lists(lists: BlockLists, n_shares: int) -> BlockLists:
    """Lists of the shares: (share, list) in place of (list). Of n entries share i has those from n * i // n_shares on."""
    n_lists = lists.indptr.numel() - 1
    owner = lists.owners().clamp(max=n_lists - 1)
    lengths = lists.indptr.diff().long()
    rank = torch.arange(owner.numel(), device=owner.device) - lists.indptr[:-1].long()[owner]
    # the last share that begins at or before the entry
    share = ((rank + 1) * n_shares - 1) // lengths[owner].clamp(min=1)
    key = share * n_lists + owner
    order = key.sort(stable=True).indices
    sizes = torch.zeros(n_shares * n_lists + 1, dtype=torch.long, device=owner.device)
    sizes[1:].scatter_add_(0, key, torch.ones_like(key))
    return BlockLists(
        sizes.cumsum(0).to(torch.int32),
        lists.indices[order].contiguous(),
        lists.block_ids[order].contiguous(),
    )


def order_of_shares(lists: BlockLists, n_heads: int, n_rows: int, block_size: int) -> Tensor:
    """The part of the rows in the work order of `n_heads` times the shares; nothing is read of it where a row is a group."""
    if lists_per_group(block_size) == 1:
        return lists.indptr
    return order_lists(lists, n_heads, n_rows, 1, block_size)


def shares_of(problem: AttentionProblem, n_shares: int) -> tuple[Tensor, ...]:
    """The lists of the shares and their work order: `AttentionProblem.shares`."""
    p = problem
    lists = split_lists(p.rows, n_shares)
    order = order_of_shares(lists, n_shares * p.layout_heads, p.grid.n_rows, p.block_size)
    return (*lists.tensors(), order)


def num_shares_of(problem: AttentionProblem) -> int:
    """Into how many shares the rows of a prepared problem are split."""
    p = problem
    return (p.shares[0].numel() - 1) // (p.layout_heads * p.grid.n_rows) if p.shares else 1


def problem_of_shares(problem: AttentionProblem) -> AttentionProblem:
    """The problem whose rows are the shares; without sinks, which the merging kernel adds."""
    p = problem
    indptr, indices, block_ids, order = p.shares
    n_shares = num_shares_of(p)
    fields = {
        **p.__dict__, "rows": BlockLists(indptr, indices, block_ids), "layout_batch": n_shares, "prepared": (order,),
        "sinks": None, "signature": p.signature,
    }  # fmt: skip
    return AttentionProblem.made_of(**fields)
