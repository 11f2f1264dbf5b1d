"""The Triton kernel that chooses the blocks of every row on a GPU; device_selection.py launches it.

A program for each row holds it in registers, as integers in the order of its scores:
    the least score that is chosen is found bit by bit: how many (or how much of the softmax) is at or above it
    of equal scores at that place the first columns are taken
    one running sum over the columns says where each chosen one goes
Nothing is sorted, and integers add up to the same in any order, so it gives what `best_of` gives.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def in_order(x):
    """Float32 as int32 in the same order; -0.0 as 0.0."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def diagonal_of_row(row, n_rows, n_cols, IS_CAUSAL: tl.constexpr):
    """Column of the diagonal block of a row."""
    if IS_CAUSAL:
        diagonal = row + n_cols - n_rows
    else:
        diagonal = (row.to(tl.int64) * n_cols // n_rows).to(tl.int32)
    return diagonal


@triton.jit
def kept_columns(
    before, col, is_visible, window, sinks, KEEP_DIAGONAL: tl.constexpr, IS_CAUSAL: tl.constexpr
):
    """Which columns a row always keeps; `before`: how many columns before the diagonal each is."""
    distance = before
    if not IS_CAUSAL:
        distance = tl.abs(before)
    is_kept = (col < sinks) | ((distance > 0) & (distance <= window))
    if KEEP_DIAGONAL:
        is_kept = is_kept | (distance == 0)
    return is_kept & is_visible


@triton.jit
def least_of_most(key, is_candidate, left):
    """The largest integer with at least `left` keys at or above it, or one with exactly so many; the least if there are fewer."""
    n = tl.sum(is_candidate.to(tl.int32), 0)
    found = tl.full([], -2147483648, tl.int32)
    bit = tl.full([], 0, tl.int32)
    if n <= left:
        bit += 31  # all of them
    else:
        n_positive = tl.sum((key >= 0).to(tl.int32), 0)
        if n_positive >= left:
            found = tl.full([], 0, tl.int32)
            n = n_positive
    while (bit < 31) & (n != left):
        larger = found | (1073741824 >> bit)
        n_larger = tl.sum((key >= larger).to(tl.int32), 0)
        found = tl.where(n_larger >= left, larger, found)
        n = tl.where(n_larger >= left, n_larger, n)
        bit += 1
    return found


@triton.jit
def least_of_mass(key, weight, missing):
    """The largest integer such that the weights of the keys at or above it are at least `missing`; the least if there is none."""
    found = tl.full([], -2147483648, tl.int32)
    zero = tl.full(key.shape, 0, tl.int64)
    if tl.sum(tl.where(key >= 0, weight, zero), 0) >= missing:
        found = tl.full([], 0, tl.int32)
    for bit in range(31):
        larger = found | (1073741824 >> bit)
        found = tl.where(tl.sum(tl.where(key >= larger, weight, zero), 0) >= missing, larger, found)
    return found


@triton.jit(do_not_specialize=["n_rows", "n_cols", "n_slots", "window", "sinks", "top_p"])
def select_kernel(
    Scores, Budgets, Diagonal, Indices, Counts, stride_head, stride_row, n_rows, n_cols, n_slots, window, sinks, top_p,
    HAS_BUDGETS: tl.constexpr, HAS_DIAGONAL: tl.constexpr, HAS_TOP_P: tl.constexpr, KEEP_DIAGONAL: tl.constexpr,
    IS_CAUSAL: tl.constexpr, WEIGHT_BITS: tl.constexpr, BLOCK: tl.constexpr, FILL: tl.constexpr,
):  # fmt: skip
    """A program for every row of every head. top_p: in units of 2 ** -WEIGHT_BITS."""
    owner = tl.program_id(0)
    row = owner % n_rows
    head = (owner // n_rows).to(tl.int64)
    col = tl.arange(0, BLOCK)
    if HAS_DIAGONAL:
        diagonal = tl.load(Diagonal + row)
    else:
        diagonal = diagonal_of_row(row, n_rows, n_cols, IS_CAUSAL)
    before = diagonal - col
    is_visible = col < n_cols
    if IS_CAUSAL:
        is_visible = is_visible & (before >= 0)
    is_kept = kept_columns(before, col, is_visible, window, sinks, KEEP_DIAGONAL, IS_CAUSAL)

    score = tl.load(
        Scores + head * stride_head + row.to(tl.int64) * stride_row + col,
        mask=is_visible,
        other=float("-inf"),
    ).to(tl.float32)
    has_score = score > float("-inf")  # nor nan
    is_candidate = has_score & (is_kept == 0)
    key = tl.where(is_candidate, in_order(score), -2147483648)
    left = n_slots
    if HAS_BUDGETS:
        left = tl.minimum(left, tl.load(Budgets + owner))
    left = tl.maximum(left - tl.sum(is_kept.to(tl.int32), 0), 0)

    least = tl.where(left > 0, least_of_most(key, is_candidate, left), 2147483647)
    if HAS_TOP_P:
        best = tl.max(tl.where(has_score, score, float("-inf")), 0)
        is_best = score == best  # also of infinities, whose difference is nan
        share = tl.exp(tl.where(is_best, 0.0, score) - tl.where(is_best, 0.0, best))
        weight = tl.where(has_score, share * (1 << WEIGHT_BITS), 0.0).to(tl.int64)
        total, of_kept = tl.sum(weight, 0), tl.sum(tl.where(is_kept, weight, 0), 0)
        missing = ((total * top_p + ((1 << WEIGHT_BITS) - 1)) >> WEIGHT_BITS) - of_kept
        weight = tl.where(is_candidate, weight, 0)
        enough = tl.where(missing > 0, least_of_mass(key, weight, missing), 2147483647)
        least = tl.maximum(least, enough)

    is_above = key > least
    is_equal = is_candidate & (key == least)
    n_equal = left - tl.sum(is_above.to(tl.int32), 0)
    if HAS_TOP_P:
        missing -= tl.sum(tl.where(is_above, weight, 0), 0)
        of_equal = tl.max(tl.where(is_equal, weight, 0), 0)
        n_missing = (missing + of_equal - 1) // tl.maximum(of_equal, 1)
        n_missing = tl.where(of_equal == 0, n_cols, n_missing)  # they add nothing
        n_missing = tl.where(missing > 0, n_missing, 0)
        n_equal = tl.minimum(n_equal, tl.minimum(n_missing, n_cols).to(tl.int32))

    is_taken = (is_kept | is_above).to(tl.int32)
    upto = tl.cumsum(is_taken + (is_equal.to(tl.int32) << 16), 0)
    equal_before = (upto >> 16) - is_equal.to(tl.int32)
    is_chosen = (is_taken != 0) | (is_equal & (equal_before < n_equal))
    place = (upto & 0xFFFF) - is_taken + tl.minimum(equal_before, n_equal)
    first = Indices + owner.to(tl.int64) * n_slots
    tl.store(first + place, col, mask=is_chosen)
    count = tl.sum(is_chosen.to(tl.int32), 0)
    tl.store(Counts + owner, count)
    for start in range(0, n_slots, FILL):
        slot = start + tl.arange(0, FILL)
        tl.store(first + slot, -1, mask=(slot >= count) & (slot < n_slots))
