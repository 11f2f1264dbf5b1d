"""Finds the lines that two versions of a file share, in time linear in their number.

difflib compares every line with all equal ones, which takes minutes for a table of equal lines.
"""

from __future__ import annotations

import difflib
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

Tag = Literal["replace", "delete", "insert", "equal"]
Opcode = tuple[Tag, int, int, int, int]
Region = tuple[int, int, int, int]  # begin and end of lines in the old version, then in the new one

MOST_CHANGES = 64  # lines deleted and inserted between two anchors; beyond it, the whole region is replaced
MOST_STEPS = 2_000_000  # comparisons between two anchors
DEEPEST = 32  # nested regions


def opcodes(old: Sequence[bytes], new: Sequence[bytes]) -> list[Opcode]:
    """The edits from the old lines to the new ones, as difflib.SequenceMatcher.get_opcodes returns them."""
    numbers: dict[bytes, int] = {}
    a, b = ([numbers.setdefault(line, len(numbers)) for line in lines] for lines in (old, new))
    result: list[Opcode] = []
    i = j = 0
    for begin, new_begin, size in [*merged(sorted(equal_runs(a, b))), (len(a), len(b), 0)]:
        if i < begin or j < new_begin:
            tag: Tag = "insert" if i == begin else "delete" if j == new_begin else "replace"
            result.append((tag, i, begin, j, new_begin))
        i, j = begin + size, new_begin + size
        if size:
            result.append(("equal", begin, i, new_begin, j))
    return result


def merged(runs: list[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """Runs of equal lines, adjacent ones merged."""
    last = (0, 0, 0)
    for begin, new_begin, size in runs:
        if (begin, new_begin) == (last[0] + last[2], last[1] + last[2]):
            last = (last[0], last[1], last[2] + size)
            continue
        if last[2]:
            yield last
        last = (begin, new_begin, size)
    if last[2]:
        yield last


def equal_runs(a: list[int], b: list[int]) -> Iterator[tuple[int, int, int]]:
    """The runs of lines that both versions share, as (begin in the old one, begin in the new one, size)."""
    regions: list[tuple[Region, int]] = [((0, len(a), 0, len(b)), 0)]
    while regions:
        (a0, a1, b0, b1), depth = regions.pop()
        head = 0
        while a0 + head < a1 and b0 + head < b1 and a[a0 + head] == b[b0 + head]:
            head += 1
        a0, b0 = a0 + head, b0 + head
        if head:
            yield a0 - head, b0 - head, head
        tail = 0
        while a1 - tail > a0 and b1 - tail > b0 and a[a1 - tail - 1] == b[b1 - tail - 1]:
            tail += 1
        a1, b1 = a1 - tail, b1 - tail
        if tail:
            yield a1, b1, tail
        if a0 == a1 or b0 == b1:
            continue
        anchors = common_anchors(a, b, (a0, a1, b0, b1)) if depth < DEEPEST else []
        if not anchors:
            yield from shortest_edit(a, b, (a0, a1, b0, b1))
            continue
        for i, j in [*anchors, (a1, b1)]:
            if a0 < i and b0 < j:
                regions.append(((a0, i, b0, j), depth + 1))
            if i < a1:
                yield i, j, 1
            a0, b0 = i + 1, j + 1


def common_anchors(a: list[int], b: list[int], region: Region) -> list[tuple[int, int]]:
    """The longest series, in the same order in both versions, of lines that occur once in each version of a region."""
    a0, a1, b0, b1 = region
    in_a, in_b = Counter(a[a0:a1]), Counter(b[b0:b1])
    where = {b[j]: j for j in range(b0, b1) if in_b[b[j]] == 1}
    pairs = [(i, where[a[i]]) for i in range(a0, a1) if in_a[a[i]] == 1 and a[i] in where]
    ends: list[int] = []  # per length, the last line in the new version of the best series
    best: list[int] = []  # per length, the last pair of that series
    before: list[int] = []
    for number, (_, j) in enumerate(pairs):
        length = bisect_left(ends, j)
        before.append(best[length - 1] if length else -1)
        if length < len(best):
            ends[length], best[length] = j, number
        else:
            ends.append(j)
            best.append(number)
    series: list[tuple[int, int]] = []
    number = best[-1] if best else -1
    while number >= 0:
        series.append(pairs[number])
        number = before[number]
    return series[::-1]


def shortest_edit(a: list[int], b: list[int], region: Region) -> list[tuple[int, int, int]]:
    """Equal runs of a region by Myers' greedy search; none if that takes too many steps."""
    a0, a1, b0, b1 = region
    n, m, steps = a1 - a0, b1 - b0, 0
    reach = {1: 0}  # diagonal -> the farthest line of the old version on it
    trace: list[dict[int, int]] = []
    for changes in range(min(MOST_CHANGES, n + m) + 1):
        trace.append(dict(reach))
        for k in range(-changes, changes + 1, 2):
            down = k == -changes or (k != changes and reach[k - 1] < reach[k + 1])
            begin = x = reach[k + 1] if down else reach[k - 1] + 1
            while x < n and x - k < m and a[a0 + x] == b[b0 + x - k]:
                x += 1
            reach[k] = x
            steps += x - begin
            if x >= n and x - k >= m:
                return [(a0 + i, b0 + j, size) for i, j, size in followed_back(trace, n, m)]
        if steps > MOST_STEPS:
            break
    return []


def followed_back(trace: list[dict[int, int]], n: int, m: int) -> Iterator[tuple[int, int, int]]:
    x, y = n, m
    for changes in range(len(trace) - 1, -1, -1):
        reach, k = trace[changes], x - y
        down = k == -changes or (k != changes and reach[k - 1] < reach[k + 1])
        begin = (reach[k + 1] if down else reach[k - 1] + 1) if changes else 0
        if x > begin:
            yield begin, begin - k, x - begin
        previous = k + 1 if down else k - 1
        x = reach[previous] if changes else 0
        y = x - previous if changes else 0


class Matcher(difflib.SequenceMatcher[bytes]):
    """difflib's matcher with the opcodes of this file."""

    def __init__(self, old: Sequence[bytes], new: Sequence[bytes]) -> None:
        super().__init__(None, (), ())
        self.found = opcodes(old, new)

    def get_opcodes(self) -> list[Opcode]:
        return list(self.found)


def unified_diff(old: bytes, new: bytes, name: bytes, context: int = 3) -> bytes:
    """A unified diff for `patch -p1`, in the bytes of the file."""
    a, b = (data.splitlines(keepends=True) for data in (old, new))
    out = [b"--- a/" + name + b"\n", b"+++ b/" + name + b"\n"]
    for group in Matcher(a, b).get_grouped_opcodes(context):
        first, last = group[0], group[-1]
        out.append(b"@@ -%s +%s @@\n" % (span(first[1], last[2]), span(first[3], last[4])))
        for tag, i0, i1, j0, j1 in group:
            if tag == "equal":
                out += [b" " + line for line in a[i0:i1]]
                continue
            out += [b"-" + line for line in a[i0:i1]]
            out += [b"+" + line for line in b[j0:j1]]
    return b"".join(
        line if line.endswith(b"\n") else line + b"\n\\ No newline at end of file\n" for line in out
    )


def span(begin: int, end: int) -> bytes:
    """The lines begin..end (excluded) in the notation of a unified diff."""
    size = end - begin
    first = begin + (size > 0)
    return b"%d" % first if size == 1 else b"%d,%d" % (first, size)
