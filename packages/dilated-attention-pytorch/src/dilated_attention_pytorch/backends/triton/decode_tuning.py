"""Tiles of the decoding kernel, and among how many programs the keys of a query are shared out."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..decode_problem import DecodeProblem
from .tuning import shared_kib

MULTIPROCESSORS = 132  # where there is no GPU to ask
PROGRAMS_PER_MULTIPROCESSOR = 4  # enough that all of them load while some finish
MIN_KEYS = 128  # per program: with fewer its start and the sum of the parts take longer than the keys
MAX_SPLITS = 64
MAX_BLOCK_M = 64
MAX_BLOCK_N = 64


class DecodeTiles(NamedTuple):
    """block_m rows (heads times queries) by block_n keys per step, num_stages of loads in flight."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def decode_tiles(
    n_rows: int, head_dim: int, block_size: int, dtype: torch.dtype, capability: tuple[int, int]
) -> DecodeTiles:
    """Tiles for n_rows heads times queries that share their keys; `head_dim` is the padded, larger one."""
    is_float32 = dtype.itemsize == 4  # whose products hold their operands in registers
    block_m = min(16 if is_float32 else MAX_BLOCK_M, max(16, 1 << (n_rows - 1).bit_length()))
    block_n = min(block_size, MAX_BLOCK_N)
    if dtype.itemsize * head_dim > 256:
        block_n = min(block_n, 32)
    staged = 2 * block_n * head_dim * dtype.itemsize
    held = block_m * head_dim * dtype.itemsize
    most = shared_kib(capability) * 1024
    # two programs share a multiprocessor where that leaves each two stages; small tiles need more stages in flight
    num_stages = max(min(most, (most // 2 - held - 4096)) // staged + 1, 2)
    return DecodeTiles(block_m, block_n, 8 if is_float32 else 4, min(num_stages, 3 if block_n >= 64 else 6))


def num_splits(problem: DecodeProblem, n_programs: int, multiprocessors: int) -> int:
    """Programs among which the keys of a query are shared out; `n_programs` run for each share.

    From sizes alone: a step must not read how many blocks its row has, and a graph serves steps of every length. The
    longest row is taken to have twice the blocks of the mean one, as that of a causal pattern does.
    """
    p = problem
    n_lists = max(1, p.rows.indptr.numel() - 1)
    longest = min(2 * -(-p.rows.indices.numel() // n_lists), p.grid.n_cols)
    n_useful = -(-longest * p.block_size // MIN_KEYS)
    n_wanted = -(-multiprocessors * PROGRAMS_PER_MULTIPROCESSOR // max(1, n_programs))
    return max(1, min(n_useful, n_wanted, MAX_SPLITS))
