"""RowSchedule: in which order rows are computed, and which blocks are copied to which slots for each of them."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from ..problem import AttentionProblem
from .list_cache import cached

MAX_CACHED_BLOCKS = 2**16  # the schedule of longer lists is neither cached nor ordered
ORDER_GROUP = 64  # rows among which the next one is chosen


class Step(NamedTuple):
    """A row, and what has to be copied for it."""

    row: int
    blocks: list[int]  # n of them, in the order of the slots that hold them (the first n)
    copies: list[tuple[int, int]]  # (slot, block) of the blocks that are not in a slot yet
    is_in_place: bool  # the blocks are adjacent in memory and are read without a copy
    diagonal: int  # index of the diagonal block in `blocks`; n if it is not there


class RowSchedule:
    """Heights of the rows and the steps in which they are computed.

    Blocks below `n_readable` can be read in place where they are adjacent. `ordered`: sort the other rows so that
    consecutive ones share blocks.
    """

    def __init__(self, problem: AttentionProblem, n_readable: int, ordered: bool) -> None:
        p = problem
        n_classes = len(p.rates)
        offsets, columns = p.rows.indptr[::n_classes].tolist(), p.rows.indices.tolist()
        rows = [columns[start:end] for start, end in itertools.pairwise(offsets)]
        if n_classes > 1:  # the distance classes of a row are separate lists
            rows = [sorted(blocks) for blocks in rows]
        if p.is_causal:
            rows = [
                [block for block in blocks if block <= p.first_row + row] for row, blocks in enumerate(rows)
            ]
        first = min(p.block_size - (p.q_offset - p.first_row * p.block_size), p.q_len)
        inner, last = divmod(p.q_len - first, p.block_size)
        self.heights = [first, *[p.block_size] * inner, *[last] * (last > 0)]
        self.leads = [(p.q_offset - p.first_row * p.block_size), *[0] * (len(self.heights) - 1)]
        self.n_slots = max(1, *(len(blocks) for blocks in rows))
        self.every_row_has_blocks = all(rows)
        in_place, copied = [], []
        for row, blocks in enumerate(rows):
            if not blocks:
                continue
            if blocks[-1] < n_readable and blocks[-1] - blocks[0] == len(blocks) - 1:
                diagonal = min(p.first_row + row - blocks[0], len(blocks))
                in_place.append(Step(row, blocks, [], True, diagonal))
            else:
                copied.append(row)
        if ordered:
            copied = order_by_sharing(rows, copied)
        self.steps = in_place + steps_of(rows, copied, p.first_row)


def order_by_sharing(rows: list[list[int]], numbers: list[int]) -> list[int]:
    """Reorder row numbers, in groups of ORDER_GROUP, so that each row shares many blocks with the previous one."""
    ordered: list[int] = []
    previous: set[int] = set()
    for start in range(0, len(numbers), ORDER_GROUP):
        left = {number: set(rows[number]) for number in numbers[start : start + ORDER_GROUP]}
        while left:
            number = max(left, key=lambda number: len(previous & left[number]))
            previous = left.pop(number)
            ordered.append(number)
    return ordered


def steps_of(rows: list[list[int]], numbers: list[int], first_row: int) -> list[Step]:
    """The steps of the rows with these numbers: missing blocks replace blocks that the row does not need."""
    steps = []
    slots: dict[int, int] = {}  # slot -> its block
    slot_of: dict[int, int] = {}  # block -> its slot
    for number in numbers:
        blocks = rows[number]
        n = len(blocks)
        wanted = set(blocks)
        missing = [block for block in blocks if slot_of.get(block, n) >= n]
        copies = []
        for slot in range(n):
            old = slots.get(slot, -1)
            if slot_of.get(old) == slot:
                if old in wanted:
                    continue
                del slot_of[old]
            block = missing.pop()
            slots[slot], slot_of[block] = block, slot
            copies.append((slot, block))
        in_slots = [slots[slot] for slot in range(n)]
        steps.append(Step(number, in_slots, copies, False, slot_of.get(first_row + number, n)))
    return steps


def schedule_of(problem: AttentionProblem, n_readable: int) -> RowSchedule:
    """The schedule of a problem, cached with its lists if they are short."""
    p = problem
    if p.rows.indices.numel() > MAX_CACHED_BLOCKS:
        return RowSchedule(p, n_readable, ordered=False)
    key = (
        "row by row", p.first_row, p.q_offset, p.q_len, p.block_size, len(p.rates), p.is_causal, n_readable,
    )  # fmt: skip
    return cached(p.rows.indices, key, lambda: RowSchedule(p, n_readable, ordered=True))
