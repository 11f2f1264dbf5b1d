"""Where the lists of columns are cut, so that a pass goes through one range of rows after the other."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n_lists", "n_ranges", "rows_per_range", "n_steps"])
def cuts_kernel(Offsets, Indices, Cuts, n_lists, n_ranges, rows_per_range, n_steps, LISTS: tl.constexpr):
    """Cuts: int32 (n_lists, n_ranges + 1), the first entry of a list in every range, and its end. A program takes LISTS lists.

    n_steps: of a binary search, 2**n_steps at least the longest list.
    """
    i = tl.program_id(0) * LISTS + tl.arange(0, LISTS)
    inside = i < n_lists
    begin = tl.load(Offsets + i, mask=inside, other=0)
    end = tl.load(Offsets + i + 1, mask=inside, other=0)
    for r in range(n_ranges + 1):
        low, high = begin, end
        for _ in range(n_steps):
            middle = low + (high - low) // 2
            is_open = low < high
            is_before = tl.load(Indices + middle, mask=is_open, other=0) < r * rows_per_range
            low = tl.where(is_open & is_before, middle + 1, low)
            high = tl.where(is_open & ~is_before, middle, high)
        tl.store(Cuts + i.to(tl.int64) * (n_ranges + 1) + r, low, mask=inside)
