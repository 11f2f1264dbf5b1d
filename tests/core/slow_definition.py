"""Patterns and attention as plain Python: loops, fractions, sets.

A second, independent definition that shares no code with the package; tests compare the package with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

# ---- blocks


@dataclass(frozen=True)
class Pattern:
    """What `SparsePatternConfig` describes, as plain values; `ratio` is the decimal as written."""

    kind: str
    ratio: str = "0.1"
    block: int = 16
    window: int | None = None
    global_tokens: int = 0
    rates: tuple[int, ...] | None = None
    least: int | None = None
    rotation: int = 0


def blocks_of(tokens: int, block: int) -> int:
    """The number of blocks that hold this many tokens."""
    n = 0
    while n * block < tokens:
        n += 1
    return n


def row_numbers(q_len: int, kv_len: int, block: int, causal: bool) -> list[int]:
    """The block number of every row, negative before the first key."""
    if not causal:
        return list(range(blocks_of(q_len, block)))
    first, last = kv_len - q_len, kv_len - 1
    return list(range(first // block, last // block + 1))


def running_total(ratio: str, available: Sequence[int], mandatory: Sequence[int]) -> list[int]:
    """C(i) = max(C(i-1) + mandatory(i), floor(ratio * A(i))), A(i) the sum of the available pairs so far."""
    totals, seen, last = [], 0, 0
    for pairs, least in zip(available, mandatory, strict=True):
        seen += pairs
        last = max(last + least, Fraction(ratio) * seen // 1)
        totals.append(last)
    return totals


def differences(totals: Sequence[int]) -> list[int]:
    return [b - a for a, b in zip([0, *totals], totals, strict=False)]


def nearest_first(centre: int, columns: Sequence[int]) -> list[int]:
    """Columns sorted by distance; at the same distance the lower one comes first."""
    return sorted(columns, key=lambda column: (abs(column - centre), column))


def looks_ahead(rates: Sequence[int], n: int) -> list[bool]:
    """Which of n blocks look ahead: runs of r - 1 blocks, in turn ahead and back, r by the ruler sequence."""
    longer = sorted({rate for rate in rates if rate > 1 and 2 * rate <= n}) or [2]
    flags: list[bool] = []
    step = 1
    while len(flags) < n:
        place = 0
        while step % 2 ** (place + 1) == 0:
            place += 1
        flags += [step % 2 == 1] * (longer[min(place, len(longer) - 1)] - 1)
        step += 1
    return flags[:n]


def linked_block(block: int, ahead: Sequence[bool]) -> int:
    """The nearest block ahead, or back, that looks as this one does; at an end, the last that looks the other way."""
    beyond = range(block + 1, len(ahead)) if ahead[block] else range(block - 1, -1, -1)
    for other in beyond:
        if ahead[other] == ahead[block]:
            return other
    others = [other for other in range(len(ahead)) if ahead[other] != ahead[block]]
    if not others:
        return block
    return others[-1] if ahead[block] else others[0]


def mirrored_fraction(number: int) -> Fraction:
    """The binary digits of a number mirrored at the point: 6 = 110 becomes 0.011 = 3/8."""
    result, weight = Fraction(0), Fraction(1, 2)
    while number:
        result, weight, number = result + number % 2 * weight, weight / 2, number // 2
    return result


def dilated_order(
    row: int,
    diagonal: int,
    columns: Sequence[int],
    rates: Sequence[int],
    n_cols: int,
    causal: bool,
    rotation: int,
) -> list[int]:
    """The order in which a row of dilated_sparse takes its columns."""
    allowed = set(columns)
    linked = diagonal - 1 if causal else linked_block(diagonal, looks_ahead(rates, n_cols))
    order = {column: None for column in (diagonal, linked) if column in allowed}  # keeps the first occurrence
    first = [c for rate in dict.fromkeys(rates) for c in (diagonal - rate, diagonal + rate)]
    first = [column for column in first if column in allowed and column != linked]
    begin = (int(mirrored_fraction(row) * len(first)) + rotation) % max(1, len(first))
    order |= dict.fromkeys(first[begin:] + first[:begin])
    for t in range(2, n_cols):
        for rate in rates:
            order |= {c: None for c in (diagonal - t * rate, diagonal + t * rate) if c in allowed}
    return [*order, *(column for column in nearest_first(diagonal, columns) if column not in order)]


def pattern_rows(pattern: Pattern, q_len: int, kv_len: int, causal: bool) -> list[list[int]]:
    """The sorted active columns of every row."""
    n_cols = blocks_of(kv_len, pattern.block)
    numbers = row_numbers(q_len, kv_len, pattern.block, causal)
    # Causal budgets count the rows of the square matrix, so that a row does not depend on the lengths.
    counted = list(range(n_cols)) if causal else numbers
    diagonal = {row: row if causal else row * n_cols // len(numbers) for row in counted}
    columns = {row: list(range(row + 1 if causal else n_cols)) for row in counted}
    n_global = min(max(1, blocks_of(pattern.global_tokens, pattern.block)), n_cols)
    keep = budget(pattern, counted, columns, diagonal, n_global, n_cols, causal)

    rows = []
    for row in numbers:
        if row not in columns:  # before the first key
            rows.append([])
            continue
        centre, allowed = diagonal[row], columns[row]
        reach = None
        if pattern.window is not None and causal:
            reach = blocks_of(pattern.window, pattern.block)
        elif pattern.window is not None:
            reach = blocks_of(pattern.window, 2 * pattern.block)
        if pattern.kind == "dilated_sparse":
            rates = pattern.rates
            if rates is None:
                rates = tuple(2**power for power in range(20) if 2**power < max(2, n_cols))
            taken = dilated_order(row, centre, allowed, rates, n_cols, causal, pattern.rotation)[: keep[row]]
        elif pattern.kind == "local_window" and reach is not None:
            taken = [column for column in allowed if abs(column - centre) <= reach]
        elif pattern.kind == "local_window":
            taken = nearest_first(centre, allowed)[: keep[row]]
        elif row < n_global:
            taken = allowed
        else:
            taken = [column for column in allowed if column < n_global]
            others = nearest_first(centre, [column for column in allowed if column >= n_global])
            if reach is not None:
                taken += [column for column in others if abs(column - centre) <= reach]
            else:
                taken += others[: keep[row] - len(taken)]
        rows.append(sorted(taken))
    return rows


def budget(
    pattern: Pattern,
    counted: Sequence[int],
    columns: dict[int, list[int]],
    diagonal: dict[int, int],
    n_global: int,
    n_cols: int,
    causal: bool,
) -> dict[int, int]:
    """How many blocks every budget row keeps when the ratio decides."""
    available = [len(columns[row]) for row in counted]
    floor = pattern.least or (3 if causal and pattern.kind == "dilated_sparse" else 2)
    floors = [min(floor, blocks) for blocks in available]
    if pattern.kind != "global_local":
        totals = running_total(pattern.ratio, available, floors)
        return dict(zip(counted, differences(totals), strict=True))
    least = []
    for row, own_floor in zip(counted, floors, strict=True):
        if row < n_global:
            least.append(len(columns[row]))
        else:
            least.append(max(own_floor, n_global + (1 if diagonal[row] >= n_global else 0)))
    if causal:
        return dict(zip(counted, differences(running_total(pattern.ratio, available, least)), strict=True))
    # The rows after the global ones share evenly what those leave of the total.
    total = running_total(pattern.ratio, available, floors)[-1]
    rest = [row for row in counted if row >= n_global]
    left = max(total - n_global * n_cols, 0)
    keep = {row: n_cols for row in counted if row < n_global}
    last = 0
    for j, row in enumerate(rest, start=1):
        now = max(last + least[row], Fraction(left * j, len(rest)) // 1)
        keep[row], last = now - last, now
    return keep


def reachable(rows: Sequence[Sequence[int]], layers: int) -> set[tuple[int, int]]:
    """(row, column) pairs of a square matrix that are connected by a path of 1 to `layers` steps."""
    matrix = [[column in row for column in range(len(rows))] for row in rows]
    power = matrix
    pairs = {(i, j) for i, line in enumerate(matrix) for j, linked in enumerate(line) if linked}
    for _ in range(layers - 1):
        power = [
            [any(power[i][m] and matrix[m][j] for m in range(len(rows))) for j in range(len(rows))]
            for i in range(len(rows))
        ]
        pairs |= {(i, j) for i, line in enumerate(power) for j, linked in enumerate(line) if linked}
    return pairs


# ---- tokens


def philox_4x32(counter: Sequence[int], key: Sequence[int], rounds: int) -> list[int]:
    """Four random words of a counter (Salmon et al., SC 2011)."""
    c, k = list(counter), list(key)
    for _ in range(rounds):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [
            (second >> 32) ^ c[1] ^ k[0],
            second & 0xFFFFFFFF,
            (first >> 32) ^ c[3] ^ k[1],
            first & 0xFFFFFFFF,
        ]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def dropout_number(seed: int, key: int, query: int, sequence_head: int) -> int:
    """The number of 16 bits by which a weight is dropped: one of the eight of a call of 7 rounds, see backends/dropout.py."""
    counter = (key - (key & 1) - (key & 8), query - (query & 8), sequence_head, 0)
    words = philox_4x32(counter, (seed & 0xFFFFFFFF, seed >> 32), 7)
    word = words[(2 if query & 8 else 0) + (1 if key & 8 else 0)]
    return word >> 16 if key & 1 else word & 0xFFFF


def token_rate(distance: int, segment_lengths: Sequence[int], dilation_rates: Sequence[int]) -> int:
    """The rate of the first segment longer than the distance, the last one for everything farther."""
    for segment, rate in zip(segment_lengths, dilation_rates, strict=True):
        if segment > distance:
            return rate
    return dilation_rates[-1]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows_of_heads: Sequence[Sequence[Sequence[int]]],
    block_size: int,
    *,
    causal_alignment: bool = False,
    is_causal: bool = False,
    softmax_scale: float | None = None,
    block_bias: Tensor | None = None,
    kv_lengths: Sequence[int] | None = None,
    key_padding_mask: Tensor | None = None,
    segment_lengths: Sequence[int] | None = None,
    dilation_rates: Sequence[int] | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """out and lse, one query at a time; differentiable.

    `rows_of_heads` holds the active columns of every row of every layout head. `causal_alignment` says that the
    rows are those of queries that end at the last key.
    """
    (batch, q_len, heads, head_dim), (kv_len, kv_heads) = q.shape, k.shape[1:3]
    scale = head_dim**-0.5 if softmax_scale is None else softmax_scale
    offset = kv_len - q_len if causal_alignment else 0
    first_row = offset // block_size
    entry_of = {}  # (layout head, row, column) -> place in the block bias
    for layout_head, rows in enumerate(rows_of_heads):
        for row, columns in enumerate(rows):
            for column in columns:
                entry_of[layout_head, row, column] = len(entry_of)
    if block_bias is not None:
        block_bias = block_bias.expand(batch, heads, len(entry_of))
    hidden = None if key_padding_mask is None else key_padding_mask.tolist()

    outs, lses = [], []
    for b in range(batch):
        for h in range(heads):
            layout_head, kv_head = h * len(rows_of_heads) // heads, h * kv_heads // heads
            # unbound and cut out once: the gradient of every index is a tensor as large as what it indexes
            queries, keys_of_head, values_of_head = q[b, :, h].unbind(), k[b, :, kv_head], v[b, :, kv_head]
            for i, query in enumerate(queries):
                position = i + offset
                row = position // block_size - first_row
                keys = []
                for column in rows_of_heads[layout_head][row]:
                    rate = 1
                    if segment_lengths is not None and dilation_rates is not None:
                        distance = abs(position // block_size - column) * block_size
                        rate = token_rate(distance, segment_lengths, dilation_rates)
                    for j in range(column * block_size, min((column + 1) * block_size, kv_len)):
                        seen = j % rate == h % rate and (j <= position or not is_causal)
                        if kv_lengths is not None:
                            seen = seen and j < kv_lengths[b]
                        if hidden is not None:
                            seen = seen and not hidden[b][j]
                        if seen:
                            keys.append(j)
                if not keys:
                    outs.append(torch.zeros(v.shape[3], dtype=v.dtype))
                    lses.append(torch.tensor(-torch.inf, dtype=q.dtype))
                    continue
                index = torch.tensor(keys)
                scores = scale * (keys_of_head.index_select(0, index) @ query)
                if block_bias is not None:
                    entries = [entry_of[layout_head, row, j // block_size] for j in keys]
                    scores = scores + block_bias[b, h, entries]
                lse = scores.logsumexp(0)
                weights = (scores - lse).exp()
                if dropout_p:
                    dropped = round(dropout_p * 2**15) / 2**15
                    numbers = [dropout_number(seed, j, position, b * heads + h) for j in keys]
                    keep = [number / 2**16 >= dropped for number in numbers]
                    weights = weights * torch.tensor(keep) / (1 - dropped)
                outs.append(weights @ values_of_head.index_select(0, index))
                lses.append(lse)
    out = torch.stack(outs).view(batch, heads, q_len, v.shape[3]).transpose(1, 2)
    return out, torch.stack(lses).view(batch, heads, q_len)
