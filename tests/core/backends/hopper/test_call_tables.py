"""What is made of the tensors of a call: where the tiles of sequences begin, and padding as bits."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch.sequences import Sequences, sequences_of_batch

pytestmark = pytest.mark.interpreter


def slow_starts(table: list[list[int]], first_position: int) -> list[list[int]]:
    rows, cols = [0], [0]
    for _, q_len, _, kv_len, position in table:
        rows.append(rows[-1] + len({(i + position - first_position) // 128 for i in range(q_len)}))
        cols.append(cols[-1] + len({j // 128 for j in range(kv_len)}))
    return [rows, cols]


def starts_of(table: list[list[int]], first_position: int) -> list[list[int]]:
    from dilated_attention_pytorch.backends.hopper.call_tables import tile_starts

    numbers = torch.tensor(table, dtype=torch.int32).view(-1, 5)
    return tile_starts(Sequences(numbers, 0, 0, True), first_position).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("first_position", [0, 128, 192, -64])
def test_tiles_of_positions_before_within_and_behind_the_layout(first_position: int) -> None:
    table = [
        [0, n, 0, n, position]
        for n in (0, 1, 127, 128, 129, 300)
        for position in (-300, -128, -1, 0, 63, 500)
    ]
    assert starts_of(table, first_position) == slow_starts(table, first_position)


def test_tiles_of_more_sequences_than_are_taken_at_once() -> None:
    table = [[0, i % 7 * 40, 0, i % 5 * 60, i % 3] for i in range(2500)]
    assert starts_of(table, 0) == slow_starts(table, 0)
    assert starts_of([], 0) == [[0], [0]]


def test_positions_beyond_int32_give_no_more_tiles_than_there_is_memory_for() -> None:
    """Positions that a user gave on the GPU are not checked."""
    (rows, _) = starts_of([[0, 200, 0, 200, 2**31 - 1], [0, 200, 0, 200, -(2**31)]], 64)
    assert all(2 <= after - before <= 3 for before, after in itertools.pairwise(rows))


def bits_of(mask: Tensor, sequences: Sequences | None) -> list[list[bool]]:
    from dilated_attention_pytorch.backends.hopper.call_tables import padding_bits

    words = padding_bits(mask, sequences)
    assert words.dtype == torch.int32
    assert words.shape == (mask.shape[0], -(-mask.shape[1] // 128) * 4 + 4)
    bits = (words[:, :, None] >> torch.arange(32, dtype=torch.int32)) & 1
    return bits.flatten(1).bool().tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("kv_len", [1, 32, 100, 1100])
def test_keys_that_count_have_bits(kv_len: int) -> None:
    mask = torch.rand(2, kv_len) < 0.4
    wanted = torch.nn.functional.pad(~mask, (0, -kv_len % 128 + 128))
    assert bits_of(mask, None) == wanted.tolist()
    transposed = mask.t().contiguous().t()
    assert bits_of(transposed, None) == wanted.tolist()
    assert bits_of(mask[:1].expand(2, -1), None) == wanted[:1].expand(2, -1).tolist()


def test_bits_are_by_position_and_end_with_the_keys_of_an_element() -> None:
    mask = torch.rand(3, 100) < 0.4
    starts, ends = [0, 17, 64], [100, 90, 64]
    q = torch.empty(3, 100, 1, 16)
    _, sequences = sequences_of_batch(
        q,
        100,
        True,
        kv_lengths=torch.tensor(ends, dtype=torch.int32),
        kv_starts=torch.tensor(starts, dtype=torch.int32),
    )
    wanted = [
        [j < end - start and not bool(mask[i, start + j]) for j in range(256)]
        for i, (start, end) in enumerate(zip(starts, ends))
    ]
    assert bits_of(mask, sequences) == wanted


def test_no_keys_have_no_bits() -> None:
    assert bits_of(torch.zeros(2, 0, dtype=torch.bool), None) == [[False] * 128] * 2
