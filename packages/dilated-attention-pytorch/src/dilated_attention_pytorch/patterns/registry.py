"""The patterns by name. A pattern's file registers it with `@register`; nothing else lists the patterns."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import PatternType, SparsePatternConfig, takes
from ..config_warnings import warn_caller
from ..grid import BlockGrid
from .budget import Budget, available_per_row, ratio_budget

Pairs = Callable[[SparsePatternConfig, BlockGrid, torch.device], tuple[Tensor, Tensor]]


class PairMasks(NamedTuple):
    """Which token pairs of some block pairs count."""

    ids: Tensor
    """int64 (n,): for each block pair its mask in `masks`, -1: all of its token pairs count."""
    masks: Tensor
    """Bool (n_masks, block_size, block_size), distinct."""


Masking = Callable[[SparsePatternConfig, BlockGrid, Tensor, Tensor], PairMasks | None]
Budgeting = Callable[[SparsePatternConfig, BlockGrid], Budget]


class Pattern(NamedTuple):
    """The functions of a pattern."""

    pairs: Pairs  # active (rows, columns), int64 (n_active,) each on the device, in no particular order
    budget: Budgeting  # blocks per row if the ratio decides
    # of rows and columns of blocks, as `pairs` returns them; None where the config wants no masks
    masks: Masking | None


PATTERNS: dict[str, Pattern] = {}


def register(
    name: PatternType, budget: Budgeting = ratio_budget, masks: Masking | None = None
) -> Callable[[Pairs], Pairs]:
    """Add the decorated function to PATTERNS."""

    def add(pairs: Pairs) -> Pairs:
        PATTERNS[name] = Pattern(pairs, budget, masks)
        return pairs

    return add


def active_pairs(config: SparsePatternConfig, grid: BlockGrid, device: torch.device) -> tuple[Tensor, Tensor]:
    """Active (rows, columns) of a config, int64 (n_active,) each on `device`, in no particular order."""
    return PATTERNS[config.pattern_type].pairs(config, grid, device)


def masks_of(config: SparsePatternConfig, grid: BlockGrid, rows: Tensor, cols: Tensor) -> PairMasks | None:
    """The masks of active (rows, columns) of a config; None where all of their token pairs count."""
    masks = PATTERNS[config.pattern_type].masks
    return None if masks is None else masks(config, grid, rows, cols)


def budget_of(config: SparsePatternConfig, grid: BlockGrid) -> Budget | None:
    """How many blocks each row keeps; None if `window_size` decides instead of the ratio."""
    if config.window_size is not None:
        return None
    return PATTERNS[config.pattern_type].budget(config, grid)


@functools.lru_cache(maxsize=1024)
def warn_about_isolated_rows(config: SparsePatternConfig) -> None:
    """Warn that some rows keep only their diagonal block; the cache limits this to once per config."""
    warn_caller(
        f"with sparsity_ratio {config.sparsity_ratio} and min_blocks {config.min_blocks} some rows keep only their "
        "diagonal block, so no information from other blocks reaches them, however many layers there are; leave "
        "min_blocks out, or raise min_blocks or sparsity_ratio",
        UserWarning,
    )


def check_connected(config: SparsePatternConfig, grid: BlockGrid) -> None:
    """Warn if a row that could see several blocks keeps only its diagonal block."""
    if config.min_blocks != 1 or takes(config.pattern_type, "global_tokens"):
        return  # every row keeps a second block
    budget = budget_of(config, grid)
    if budget is not None and bool(((budget.blocks() == 1) & (available_per_row(grid) > 1)).any()):
        warn_about_isolated_rows(config)
