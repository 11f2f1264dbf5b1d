"""Tile sizes, warps and pipeline stages of every kernel, per architecture; found with `attention-bench tune`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# KiB of shared memory that one program may use, by compute capability.
SHARED_MEMORY = {(8, 0): 163, (8, 6): 99, (8, 7): 163, (8, 9): 99, (9, 0): 227, (10, 0): 227, (12, 0): 99}


@dataclass(frozen=True)
class Tiles:
    """block_m queries by block_n keys per step, num_warps per program, num_stages of loads in flight."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


# (kernel, head_dim, block_size) -> measured on an H200, bf16. Other cases follow `default_tiles`.
SM90: dict[tuple[str, int, int], Tiles] = {
    ("forward", 64, 64): Tiles(64, 64, 4, 3),
    ("forward", 64, 128): Tiles(128, 64, 8, 3),
    ("forward", 128, 64): Tiles(64, 32, 4, 2),
    ("forward", 128, 128): Tiles(128, 128, 8, 2),
    ("dq", 64, 64): Tiles(64, 64, 4, 3),
    ("dq", 64, 128): Tiles(64, 64, 4, 2),
    ("dq", 128, 64): Tiles(64, 64, 4, 3),
    ("dq", 128, 128): Tiles(128, 128, 8, 2),
    ("dkdv", 64, 64): Tiles(64, 64, 4, 2),
    ("dkdv", 64, 128): Tiles(32, 128, 4, 2),
    ("dkdv", 128, 64): Tiles(32, 64, 4, 2),
    ("dkdv", 128, 128): Tiles(64, 128, 8, 3),
}


def shared_kib(capability: tuple[int, int]) -> int:
    """KiB of shared memory a program may use; the smallest known for an unknown capability."""
    return SHARED_MEMORY.get(capability, 227 if capability[0] in (9, 10) else 99)


def default_tiles(
    kernel: str, head_dim: int, block_size: int, itemsize: int, capability: tuple[int, int]
) -> Tiles:
    """Tiles that fit the shared memory of the architecture."""
    largest = 128 if itemsize == 2 and head_dim <= 128 and capability[0] in (9, 10) else 64
    if itemsize == 4:
        largest = 32 if head_dim > 64 else 64
    if itemsize == 2 and head_dim > 128 and kernel != "forward":
        largest = 32 if shared_kib(capability) < 160 else 64
    # One side is a row (or column) of the layout: it divides the block. The other may gather small blocks.
    kept, streamed = min(block_size, largest), largest
    if kernel == "forward":
        block_m, block_n = kept, min(streamed, max(block_size, 64), 64 if head_dim > 128 else 128)
    elif kernel == "dq":
        block_m, block_n = kept, min(streamed, 64)
    else:
        block_m, block_n = min(streamed, 64), kept
    # Without warpgroup products the accumulators of head_dim 128 need the registers of 8 warps.
    wide = max(block_m, block_n) >= 128 or head_dim > (128 if capability[0] in (9, 10) else 64)
    num_warps = 8 if wide else 4
    tiles_held = {"forward": 1, "dq": 2, "dkdv": 2}[kernel]
    held = tiles_held * (block_n if kernel == "dkdv" else block_m) * head_dim * itemsize
    staged = 2 * (block_m if kernel == "dkdv" else block_n) * head_dim * itemsize
    num_stages = max(1, min(3, (shared_kib(capability) * 1024 - held - 8192) // staged))
    return Tiles(block_m, block_n, num_warps, num_stages)


# With token dilation, which leaves few keys of a block: two programs share a multiprocessor and hide each other's loads.
SM90_DILATED: dict[tuple[str, int, int], Tiles] = {
    ("dq", 64, 128): Tiles(64, 64, 4, 2),
    ("dq", 128, 128): Tiles(64, 64, 4, 2),
    ("dkdv", 64, 128): Tiles(64, 128, 4, 3),
    ("dkdv", 128, 128): Tiles(64, 128, 4, 3),
}

# With positions, masks or what changes scores, for which the plain tiles have no registers left: they would spill.
SM90_WIDE: dict[tuple[str, int, int], Tiles] = {
    ("forward", 128, 128): Tiles(64, 64, 4, 3),
    ("dq", 128, 128): Tiles(64, 64, 4, 2),
    ("dkdv", 128, 128): Tiles(32, 128, 8, 2),
}


def tiles(
    kernel: str,
    head_dim: int,
    block_size: int,
    dtype: torch.dtype,
    capability: tuple[int, int],
    rate: int = 1,
    is_wide: bool = False,
) -> Tiles:
    """What `kernel` ("forward", "dq" or "dkdv") is launched with; `head_dim` is the padded one, `rate` the largest.

    `is_wide`: the kernel keeps more of every pair than a plain call does.
    """
    if (
        capability[0] == 9
        and dtype.itemsize == 2
        and rate > 1
        and (kernel, head_dim, block_size) in SM90_DILATED
    ):
        return SM90_DILATED[kernel, head_dim, block_size]
    if is_wide and capability[0] == 9 and dtype.itemsize == 2 and (kernel, head_dim, block_size) in SM90_WIDE:
        return SM90_WIDE[kernel, head_dim, block_size]
    if capability[0] == 9 and dtype.itemsize == 2 and (kernel, head_dim, block_size) in SM90:
        return SM90[kernel, head_dim, block_size]
    return default_tiles(kernel, head_dim, block_size, dtype.itemsize, capability)
