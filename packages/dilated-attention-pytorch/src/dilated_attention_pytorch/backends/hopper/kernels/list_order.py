"""Triton kernels that make a work order on the GPU; device_order.py launches them.

order_kernel  the order of the groups: by their lengths, on a scale of quarter octaves
merge_kernel  block size 64: the blocks that the two lists of a group have together, and their places, from those that both
              have, which a binary search finds, as the lists are sorted
"""

from __future__ import annotations

import triton
import triton.language as tl

# Of float64: the bits below the leading 1, and those of 2 ** (1 / 4), 2 ** (2 / 4) and 2 ** (3 / 4).
FRACTION = tl.constexpr(2**52 - 1)
QUARTER = tl.constexpr(0x306FE0A31B715)
HALF = tl.constexpr(0x6A09E667F3BCD)
THREE_QUARTERS = tl.constexpr(0xAE89F995AD3AD)


@triton.jit
def level_of(length):
    """floor(4 * log2(length)) of float64 numbers, from their bits."""
    bits = length.to(tl.int64, bitcast=True)
    fraction = bits & FRACTION
    exponent = (bits >> 52) - 1023
    steps = (fraction >= QUARTER).to(tl.int32) + (fraction >= HALF).to(tl.int32)
    return 4 * exponent.to(tl.int32) + steps + (fraction >= THREE_QUARTERS).to(tl.int32)


@triton.jit
def levels_of(first, group, n_lists, n_groups, n_classes, PER_GROUP: tl.constexpr):
    """The levels of groups of a head, whose lists have their offsets at `first`; -1 for groups that it does not have."""
    inside = group < n_groups
    begin = tl.load(first + group * PER_GROUP * n_classes, mask=inside, other=0)
    end = tl.load(first + tl.minimum((group + 1) * PER_GROUP, n_lists) * n_classes, mask=inside, other=0)
    return tl.where(inside, level_of(tl.maximum(end - begin, 1).to(tl.float64)), -1)


@triton.jit(do_not_specialize=["n_long_at", "order_at", "n_lists", "n_groups", "n_classes"])
def order_kernel(
    Offsets, Made, n_long_at, order_at, n_lists, n_groups, n_classes, PER_GROUP: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """A program for every head: its groups, the longest first, and how many are long, the most of any head. Made: zeros."""
    head = tl.program_id(0)
    first = Offsets + head * n_lists * n_classes
    n_entries = tl.load(first + n_lists * n_classes) - tl.load(first)
    mean = n_entries.to(tl.float64) / n_groups
    bound = level_of(2.0 * tl.maximum(mean, 1.0))
    n_long, highest, lowest = 0, 0, 4 * 32
    for start in range(0, n_groups, BLOCK):
        group = start + tl.arange(0, BLOCK)
        level = levels_of(first, group, n_lists, n_groups, n_classes, PER_GROUP)
        n_long += tl.sum((level > bound).to(tl.int32), 0)
        highest = tl.maximum(highest, tl.max(level, 0))
        lowest = tl.minimum(lowest, tl.min(tl.where(level < 0, lowest, level), 0))
    tl.atomic_max(Made + n_long_at, n_long, sem="relaxed")
    # of equals the first comes first: neighbours stay together
    order = Made + order_at + head * n_groups
    while highest >= lowest:
        for start in range(0, n_groups, BLOCK):
            group = start + tl.arange(0, BLOCK)
            level = levels_of(first, group, n_lists, n_groups, n_classes, PER_GROUP)
            is_next = (level == highest).to(tl.int32)
            tl.store(order + tl.cumsum(is_next, 0) - is_next, group, mask=is_next > 0)
            order += tl.sum(is_next, 0)
        highest -= 1


@triton.jit
def find(Indices, begin, n, block, inside):
    """How many entries of a sorted list are smaller than each block, and whether the list has it."""
    low = tl.zeros_like(block)
    high = low + n
    width = n
    while width > 0:
        middle = (low + high) >> 1
        is_open = inside & (low < high)
        is_smaller = tl.load(Indices + begin + middle, mask=is_open, other=0) < block
        low = tl.where(is_open & is_smaller, middle + 1, low)
        high = tl.where(is_open & (is_smaller == 0), middle, high)
        width = width >> 1
    found = tl.load(Indices + begin + low, mask=inside & (low < n), other=-1)
    return low, inside & (found == block)


@triton.jit
def list_shared(Indices, Places, Shared, begin, n, other, n_other, BLOCK: tl.constexpr):
    """Write where the blocks that both lists have are in the one at `begin` and in the other; returns how many.

    Places, zeros before, of an entry of either list is 1 where both have its block, until `merge_list` has read it.
    """
    n_shared = 0
    for start in range(0, n, BLOCK):
        entry = start + tl.arange(0, BLOCK)
        inside = entry < n
        block = tl.load(Indices + begin + entry, mask=inside, other=0)
        n_smaller, is_shared = find(Indices, other, n_other, block, inside)
        shared = is_shared.to(tl.int32)
        rank = n_shared + tl.cumsum(shared, 0) - shared
        tl.store(Places + begin + entry, 1, mask=is_shared)
        tl.store(Places + other + n_smaller, 1, mask=is_shared)
        tl.store(Shared + 2 * rank, entry, mask=is_shared)
        tl.store(Shared + 2 * rank + 1, n_smaller, mask=is_shared)
        n_shared += tl.sum(shared, 0)
    return n_shared


@triton.jit
def merge_list(
    Indices, Places, Blocks, Shared, first, begin, n, n_other, n_shared, SECOND: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Write the blocks of one list of a group, which begins at `first`, among those of the other list (`shared_blocks` in work_order.py)."""
    n_before = 0
    for start in range(0, n, BLOCK):
        entry = start + tl.arange(0, BLOCK)
        inside = entry < n
        block = tl.load(Indices + begin + entry, mask=inside, other=0)
        shared = tl.load(Places + begin + entry, mask=inside, other=0)
        is_shared = shared != 0
        rank = n_before + tl.cumsum(shared, 0) - shared
        n_before += tl.sum(shared, 0)
        # the segment: between the shared block before, if there is one, and the next
        before, next_shared = Shared + 2 * rank - 2, Shared + 2 * rank
        has_before, has_next = inside & (rank > 0), inside & (rank < n_shared)
        mine = tl.load(before + SECOND, mask=has_before, other=-1) + 1
        others = tl.load(before + 1 - SECOND, mask=has_before, other=-1) + 1
        n_mine = tl.load(next_shared + SECOND, mask=has_next, other=n) - mine
        n_others = tl.load(next_shared + 1 - SECOND, mask=has_next, other=n_other) - others
        i = entry - mine
        # float64 holds such products, and the quotient of two whole numbers below 2**53 is never rounded up to the next
        way = (2 * i + 1).to(tl.float64) * n_others + n_mine
        if SECOND == 0:
            way -= 1.0
        among = (way / (2.0 * tl.maximum(n_mine, 1))).to(tl.int32)
        place = mine + others - rank + i + tl.where(is_shared, n_others, among)
        tl.store(Places + begin + entry, place, mask=inside)
        if SECOND == 1:
            tl.store(Blocks + first + place, 2 * block, mask=inside & (is_shared == 0))
            # what both have leaves room behind the blocks of the group
            tl.store(Blocks + begin + n - 1 - rank, -1, mask=is_shared)
        else:
            tl.store(Blocks + first + place, 2 * block + shared, mask=inside)


@triton.jit(do_not_specialize=["sizes_at", "places_at", "blocks_at", "n_lists", "n_groups"])
def merge_kernel(
    Offsets, Indices, Shared, Made, sizes_at, places_at, blocks_at, n_lists, n_groups, BLOCK: tl.constexpr
):  # fmt: skip
    """A program for the two lists of every group; the last group of a head may have only one. Shared: room for n_entries."""
    group = tl.program_id(0)
    i_list = group % n_groups * 2
    offsets = Offsets + group // n_groups * n_lists + i_list
    first = tl.load(offsets)
    second = tl.load(offsets + 1)
    end = second
    if i_list + 1 < n_lists:
        end = tl.load(offsets + 2)
    n_first, n_second = second - first, end - second
    Places, Blocks, Shared = Made + places_at, Made + blocks_at, Shared + first
    n_shared = list_shared(Indices, Places, Shared, first, n_first, second, n_second, BLOCK)
    tl.debug_barrier()  # the writes of other threads
    merge_list(Indices, Places, Blocks, Shared, first, first, n_first, n_second, n_shared, 0, BLOCK)
    merge_list(Indices, Places, Blocks, Shared, first, second, n_second, n_first, n_shared, 1, BLOCK)
    tl.store(Made + sizes_at + group, n_first + n_second - n_shared)
