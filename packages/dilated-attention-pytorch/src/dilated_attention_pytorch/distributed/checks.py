"""The checks that distributed calls have in common."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..layout.layout import BlockLayout
from ..validation.numbers import check_backend
from ..values import shown
from .chunks import Chunked
from .config import DistributedSparseConfig


def check_config(config: Any) -> None:
    """Raise TypeError unless this is a DistributedSparseConfig, as for a DeviceMesh."""
    if not isinstance(config, DistributedSparseConfig):
        raise TypeError(
            f"config must be a DistributedSparseConfig, got {shown(config)}; use DistributedSparseConfig(mesh)"
        )


def check_sharding(sharding: Any) -> None:
    """Raise TypeError unless this is a sharding."""
    if not isinstance(sharding, Chunked):
        raise TypeError(
            f"sharding must be a SequenceSharding or PackedSharding, got {shown(sharding)}; use "
            "SequenceSharding.from_layout(layout, config), or the sharding(seq_len) of a module"
        )


def check_place(sharding: Any, config: Any, kind: type[Chunked]) -> None:
    """Raise unless the sharding is one of this kind, and that of this process in the group of the config."""
    if not isinstance(sharding, kind):
        raise TypeError(f"sharding must be a {kind.__name__}, got {shown(sharding)}")
    check_config(config)
    check_rank(sharding, config)


def check_rank(sharding: Chunked, config: DistributedSparseConfig) -> None:
    """Raise unless the sharding is that of this process."""
    if (sharding.rank, sharding.world_size) != (config.rank, config.world_size):
        raise ValueError(
            f"sharding is that of rank {sharding.rank} of {sharding.world_size}, but this process is rank {config.rank} of "
            f"{config.world_size} in the group of the config"
        )


def check_local_tokens(sharding: Chunked, **tensors: Tensor) -> None:
    """Raise unless tensors (batch, tokens, ...) have the tokens of this rank."""
    for name, x in tensors.items():
        if x.shape[1] != sharding.local_len:
            raise ValueError(
                f"{name} must have the {sharding.local_len} tokens that rank {sharding.rank} of {sharding.world_size} holds "
                f"of {sharding.seq_len}, got shape {tuple(x.shape)}; use shard_sequence({name}, sharding)"
            )


def check_block_size_of(layout: BlockLayout, sharding: Chunked) -> None:
    """Raise unless layout and sharding have the same blocks."""
    if layout.block_size != sharding.block_size:
        raise ValueError(
            f"layout has block_size {layout.block_size}, but the sharding has {sharding.block_size}; make one for the other"
        )


def check_served(backend: Any, alone: str = "block_sparse_attention on the whole sequence") -> None:
    """Raise unless the backend is one for distributed calls; `alone`: what a single process calls."""
    check_backend(backend)
    if backend == "reference":
        raise ValueError(f"backend='reference' is the dense definition in one process; compare with {alone}")
