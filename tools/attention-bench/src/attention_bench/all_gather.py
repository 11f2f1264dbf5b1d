"""AllGather: every rank gathers all keys and values, and computes its rows with the kernel of one GPU.

The keys of a rank's own tokens stand behind all others, so that a plain causal call serves its rows: every block is then on
its own diagonal, whichever tokens the rank has.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from dilated_attention_pytorch import BlockLayout, SequenceSharding, block_sparse_attention
from dilated_attention_pytorch.grid import BlockGrid

from .peers.base import Attend


def gathered_layout(layout: BlockLayout, sharding: SequenceSharding, is_causal: bool) -> BlockLayout:
    """The rows of a rank over ``[tokens of all ranks, one after another | own tokens]``; on the last rank without the second."""
    n_blocks, n_own = sharding.n_blocks, sharding.n_blocks // sharding.world_size
    is_last = sharding.rank == sharding.world_size - 1
    slots = torch.empty(n_blocks, dtype=torch.int64)
    for rank in range(sharding.world_size):
        slots[sharding.blocks_of(rank)] = rank * n_own + torch.arange(n_own)
    own = sharding.blocks_of(sharding.rank)
    if not is_last:
        slots[own] = n_blocks + torch.arange(n_own)
    own_rows = torch.full((n_blocks,), -1, dtype=torch.int64)
    own_rows[own] = torch.arange(n_own)
    head, row, col = layout.coo()
    row, slot = own_rows.to(row.device)[row], slots.to(row.device)[col]
    is_mine = row >= 0
    head, row, slot = head[is_mine], row[is_mine], slot[is_mine]
    q_len = n_own * sharding.block_size
    grid = BlockGrid(q_len, sharding.seq_len + (0 if is_last else q_len), sharding.block_size, is_causal)
    order = ((head * grid.n_rows + row) * grid.n_cols + slot).argsort()
    return BlockLayout.from_blocks(grid, layout.num_heads, head[order], row[order], slot[order])


def all_gather(into: Tensor, own: Tensor, group: ProcessGroup) -> Any:
    """Start to gather; torch 2.13 has another name for it."""
    start = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    return start(into, own, group=group, async_op=True)


def reduce_scatter(into: Tensor, whole: Tensor, group: ProcessGroup) -> Any:
    """Start to sum over the ranks, each its part; torch 2.13 has another name for it."""
    start = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    return start(into, whole, group=group, async_op=True)


class GatheredTokens(torch.autograd.Function):
    """k and v of all ranks, (1, tokens, kv heads, head_dim) each; the gradients are summed on their owners."""

    @staticmethod
    def forward(ctx: Any, k: Tensor, v: Tensor, group: ProcessGroup) -> tuple[Tensor, Tensor]:
        ctx.group = group
        n_own, n_all = k.shape[1], k.shape[1] * dist.get_world_size(group)
        has_tail = dist.get_rank(group) < dist.get_world_size(group) - 1
        gathered, works = [], []
        for own in (k, v):
            whole = own.new_empty(1, n_all + (n_own if has_tail else 0), *own.shape[2:])
            works.append(all_gather(whole[0, :n_all], own[0].contiguous(), group))
            if has_tail:
                whole[:, n_all:] = own
            gathered.append(whole)
        for work in works:
            work.wait()
        return gathered[0], gathered[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        size, rank = dist.get_world_size(ctx.group), dist.get_rank(ctx.group)
        found, works = [], []
        for grad in grads:
            n_own = grad.shape[1] // (size + (rank < size - 1))
            whole = grad[0, : size * n_own]
            if rank < size - 1:
                whole[rank * n_own : (rank + 1) * n_own] = grad[0, size * n_own :]  # no block has that place
            own = torch.empty_like(whole[:n_own])
            works.append(reduce_scatter(own, whole.contiguous(), ctx.group))
            found.append(own[None])
        for work in works:
            work.wait()
        return found[0], found[1], None


def all_gather_attention(
    layout: BlockLayout, sharding: SequenceSharding, group: ProcessGroup, is_causal: bool
) -> Attend:
    """Attention of a rank's tokens, batch 1, with all keys and values gathered once and kept for the backward.

    Raises:
        ValueError: the ranks have different numbers of tokens, or a block is not whole.
    """
    lengths = sorted(set(sharding.local_lens))
    if len(lengths) > 1 or lengths[0] % sharding.block_size:
        raise ValueError(f"seqlen must give every rank as many whole blocks, got {lengths} tokens")
    local = gathered_layout(layout, sharding, is_causal)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = GatheredTokens.apply(k, v, group)  # type: ignore[no-untyped-call]
        return block_sparse_attention(q, keys, values, local, is_causal=is_causal)

    return attend
