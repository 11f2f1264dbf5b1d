"""unshard_sequence: a tensor whose tokens are distributed over ranks, put together on each."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .agreement import check_agreement
from .checks import check_config, check_sharding
from .chunks import Chunked
from .config import DistributedSparseConfig
from .sharding import checked_dim, shard_sequence


def unshard_sequence(x: Tensor, sharding: Chunked, config: DistributedSparseConfig, dim: int = 1) -> Tensor:
    """The whole tensor, on every rank, from each rank's tokens; the inverse of `shard_sequence`.

    All ranks call it together; their tensors differ in dimension `dim` alone. Differentiable: the gradient is the rank's own
    part of the gradient of the whole. Nothing is added over ranks, so every rank computes the same loss from the result.

    Args:
        x: any tensor with `local_len` tokens of this rank in dimension `dim`.
        sharding: a `SequenceSharding` or `PackedSharding`.
        config: the processes.
        dim: the dimension of the tokens.

    Raises:
        ValueError: x has another number of tokens there, the sharding is not of this rank and number of ranks, or the ranks
            make different calls.
        TypeError: an argument is something else; the message names it.
    """
    check_sharding(sharding)
    check_config(config)
    if (sharding.rank, sharding.world_size) != (config.rank, config.world_size):
        raise ValueError(
            f"sharding must be of rank {config.rank} of {config.world_size} as config is, got rank {sharding.rank} of "
            f"{sharding.world_size}"
        )
    dim = checked_dim(x, dim, sharding.local_len, f"the local_len of rank {sharding.rank},")
    if sharding.world_size == 1:
        return x
    facts = {
        "call": "unshard_sequence", "seq_len": sharding.seq_len, "chunks": sharding.chunks, "dtype": str(x.dtype),
        "device": x.device.type, "dim": dim, "other dimensions": (*x.shape[:dim], *x.shape[dim + 1 :]),
    }  # fmt: skip
    check_agreement(config, facts, config.agreement_timeout)
    whole: Tensor = Gathered.apply(x, sharding, config.group, dim)  # type: ignore[no-untyped-call]
    return whole


class Gathered(torch.autograd.Function):
    """Every rank's tokens, put in order; the gradient of its own goes back to each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sharding: Chunked, group: Any, dim: int) -> Tensor:
        ctx.sharding, ctx.dim = sharding, dim
        most = max(sharding.local_lens)
        tokens_first = x.movedim(dim, 0)
        mine = x.new_zeros(most, tokens_first[0].numel())
        mine[: x.shape[dim]] = tokens_first.flatten(1) if x.dim() > 1 else tokens_first[:, None]
        of_all = mine.new_empty(sharding.world_size, *mine.shape)
        # as bytes: gloo does not know all types
        dist.all_gather(list(of_all.view(torch.uint8)), mine.view(torch.uint8), group=group)
        parts = []
        for rank in range(sharding.world_size):
            place = 0
            for first, stop in sharding.token_ranges(rank):
                parts.append((first, of_all[rank, place : place + stop - first]))
                place += stop - first
        whole = torch.cat([part for _, part in sorted(parts, key=lambda each: each[0])])
        return whole.unflatten(1, tokens_first.shape[1:]).movedim(0, dim) if x.dim() > 1 else whole[:, 0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return shard_sequence(grad, ctx.sharding, ctx.dim), None, None, None
