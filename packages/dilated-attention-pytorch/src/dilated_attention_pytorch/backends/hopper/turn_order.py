"""The order in which the programs of the single pass add to a block of queries, for the same bits every time (kernels/turns.py).

Columns are started in the order of work_order.py, and of those that share a block the one that is started earlier adds first: no
program waits for a column that is not started yet. Every column goes through its rows from the last to the first. In a pattern
whose rows are each the one before, moved by one block, programs that run at the same time then come to a row one after the other,
in their order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...config import SparsePatternConfig, TokenDilation
from ...environment_settings import BACKWARD_SUMS
from ...layout.lists import BlockLists

if TYPE_CHECKING:
    from ...layout.layout import BlockLayout

# Of dilated_sparse. On an H200 all powers of two take 1.07 to 1.28 of the time of two passes, rates up to 8 take 0.93.
LARGEST_RATE = 8
MOST_ENTRIES = 2**22  # sorting them takes about 80 bytes for each, and their lists 8
# Where columns are few, or short, programs at their ends wait for each other: an event model of the kernel loses 15 % and more.
LEAST_COLUMNS = 512


def has_turns(layout: BlockLayout, dilation: TokenDilation | None) -> bool:
    """Whether a layout has lists of turns, by what the host knows."""
    if BACKWARD_SUMS.read() == "off":
        return False
    if layout.configs is None or dilation is not None or layout.block_masks is not None or layout.batch > 1:
        return False
    if layout.block_size not in (128, 256) or layout.causal or layout.is_captured or not layout.is_exact:
        return False
    parts = layout.block_size // 128  # of a side, for the kernels
    if (
        layout.grid.n_cols * parts < LEAST_COLUMNS
        or layout.col_lists.indices.numel() * parts**2 > MOST_ENTRIES
    ):
        return False
    return all(is_served(config) for config in layout.configs)


def is_served(config: SparsePatternConfig) -> bool:
    """Whether programs hardly wait for each other in a pattern."""
    if config.pattern_type == "dilated_sparse":
        return config.dilation_rates is not None and max(config.dilation_rates) <= LARGEST_RATE
    return config.pattern_type == "local_window"


def turn_lists(
    n_heads: int, n_rows: int, n_cols: int, rows: BlockLists, cols: BlockLists, order: Tensor
) -> Tensor:
    """int32 (2, n_entries or up to 3 more).

    First the rows of every column, the last first; then how many columns come before it at each of these.

    Args:
        n_heads: of the layout.
        n_rows: of the layout.
        n_cols: of the layout.
        rows: its row lists.
        cols: its column lists, which fill their tensors.
        order: (n_heads * n_cols,), for every head its columns in the order in which they are started.
    """
    started = torch.empty(n_heads, n_cols, dtype=torch.long, device=order.device)
    ranks = torch.arange(n_cols, device=order.device).expand(n_heads, n_cols)
    started.scatter_(1, order.view(n_heads, n_cols).long(), ranks)
    owner, entry = cols.owners(), torch.arange(cols.indices.numel(), device=order.device)
    row = owner // n_cols * n_rows + cols.indices
    # row by row, the columns of each as they are started
    by_turn = (row * n_cols + started.view(-1)[owner]).argsort()
    turns = torch.empty_like(entry)
    turns[by_turn] = entry - rows.indptr[row[by_turn]]
    # the entries of every list from its end to its start
    last_first = (cols.indptr[owner] + cols.indptr[owner + 1] - 1) - entry
    made = torch.stack([cols.indices.long(), turns])[:, last_first].to(torch.int32)
    return torch.nn.functional.pad(made, (0, -made.shape[1] % 4))  # both begin at a multiple of 16 bytes
