"""distributed_block_scores: scores of a rank's blocks of queries against the blocks of keys of a whole distributed sequence."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import values
from .._torch_internals import not_traced
from ..caching import BoundedCache, make_once
from ..layout.pooled import block_means, without_autocast
from ..layout.selection import check_pooled
from ..validation.numbers import check_flag
from ..values import shown
from .agreement import breaks_if_left
from .checks import check_local_tokens, check_place
from .config import DistributedSparseConfig
from .selection_plan import agree_once
from .sharding import SequenceSharding

ORDERS = BoundedCache(16)  # by sharding and device


@not_traced
def distributed_block_scores(
    q: Tensor,
    k: Tensor,
    sharding: SequenceSharding,
    config: DistributedSparseConfig,
    *,
    causal: bool = False,
    softmax_scale: float | None = None,
) -> Tensor:
    """`block_scores` of a distributed sequence: this rank's rows, against the columns of the whole sequence; differentiable.

    Every rank calls it, and takes part in the backward if one does. Only the mean keys of blocks travel, ``block_size`` times
    less than the keys; their gradients are added by ascending rank.

    Args:
        q: (batch, local_len, num_heads, head_dim), floating point: the tokens of this rank.
        k: (batch, local_len, num_kv_heads, head_dim); num_kv_heads divides num_heads.
        sharding: which tokens each rank holds.
        config: the processes.
        causal: blocks after a row's own in the whole sequence get -inf.
        softmax_scale: default ``1 / sqrt(head_dim)``.

    Returns:
        (batch, num_heads, blocks of this rank, blocks of the sequence), float32, or float64 for float64 inputs. `select_blocks`
        takes it with ``diagonal=sharding.block_rows(device)``.

    Raises:
        ValueError: an argument does not fit the others, or is out of its range, or the ranks make different calls.
        TypeError: an argument is something else; the message names it.
    """
    check_place(sharding, config, SequenceSharding)
    check_flag("causal", causal)
    check_pooled(q, k)
    check_local_tokens(sharding, q=q, k=k)
    scale = 1.0 / math.sqrt(q.shape[3]) if softmax_scale is None else values.number(softmax_scale)
    if scale is None or not math.isfinite(scale):
        raise values.wrong(scale, f"softmax_scale must be a finite number, got {shown(softmax_scale)}")
    size, (batch, _, num_kv_heads, head_dim) = sharding.block_size, k.shape
    facts = {
        "call": "distributed_block_scores", "dtype": str(k.dtype), "device": k.device.type, "batch": batch,
        "num_kv_heads": num_kv_heads, "head_dim": head_dim, "requires_grad": torch.is_grad_enabled() and k.requires_grad,
    }  # fmt: skip
    agree_once(config, sharding, facts)
    rows = block_means(q, size, 0) * scale
    cols = block_means(k, size, 0)
    if sharding.world_size > 1:
        cols = gathered(cols.movedim(1, 0), sharding, config).movedim(0, 1)
    # (batch, num_kv_heads, heads of the group * n_rows, head_dim) by (batch, num_kv_heads, head_dim, n_cols)
    of_groups = rows.transpose(1, 2).reshape(batch, num_kv_heads, -1, head_dim)
    with without_autocast(q):
        scores = torch.matmul(of_groups, cols.permute(0, 2, 3, 1))
    scores = scores.view(batch, q.shape[2], rows.shape[1], cols.shape[1])
    if not causal:
        return scores
    col = torch.arange(cols.shape[1], device=q.device)
    return scores.masked_fill_(col > sharding.block_rows(q.device)[:, None], -torch.inf)


def gathered(own: Tensor, sharding: SequenceSharding, config: DistributedSparseConfig) -> Tensor:
    """What all ranks have for their blocks, (n_blocks, ...) in the order of the sequence; own: (own blocks, ...)."""
    made: Tensor = GatherBlocks.apply(own, sharding, config.group)  # type: ignore[no-untyped-call]
    return made


def by_rank(sharding: SequenceSharding, device: torch.device) -> Tensor:
    """The blocks of all ranks, one after the other: int64 (n_blocks,)."""

    def make() -> Tensor:
        return sharding.rank_of_block().argsort(stable=True).to(device)

    return make_once(ORDERS, (sharding, device), device, make)


class GatherBlocks(torch.autograd.Function):
    """Every rank's blocks on every rank; a block's gradient is the sum of those of all ranks."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, sharding: SequenceSharding, group: Any) -> Tensor:
        ctx.sharding, ctx.group = sharding, group
        numbers = blocks_of_ranks(sharding)
        own = own.contiguous()
        all_blocks = own.new_empty(sharding.n_blocks, *own.shape[1:])
        sent = own.unsqueeze(0).expand(sharding.world_size, *own.shape).flatten(0, 1)
        exchange(all_blocks, sent, numbers, [own.shape[0]] * sharding.world_size, group)
        order = by_rank(sharding, own.device)
        return torch.empty_like(all_blocks).index_copy_(0, order, all_blocks)

    @staticmethod
    @once_differentiable
    @not_traced
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        sharding: SequenceSharding = ctx.sharding
        numbers = blocks_of_ranks(sharding)
        own = numbers[sharding.rank]
        sent = grad.index_select(0, by_rank(sharding, grad.device))
        received = grad.new_empty(own * sharding.world_size, *grad.shape[1:])
        exchange(received, sent, [own] * sharding.world_size, numbers, ctx.group)
        return received.unflatten(0, (sharding.world_size, own)).sum(0), None, None


def blocks_of_ranks(sharding: SequenceSharding) -> list[int]:
    """How many blocks each rank holds."""
    return [sum(stop - first for first, stop in mine) for mine in sharding.chunks]


def exchange(received: Tensor, sent: Tensor, numbers: list[int], sent_numbers: list[int], group: Any) -> None:
    """One all-to-all of so many blocks from and to every rank."""
    with breaks_if_left(group):
        dist.all_to_all_single(
            received.flatten(1), sent.contiguous().flatten(1), numbers, sent_numbers, group=group
        )
