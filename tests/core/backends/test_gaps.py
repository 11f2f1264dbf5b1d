"""Clearing the tokens that are in no sequence, beside plain Python loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch.sequences import Sequences

pytestmark = pytest.mark.interpreter


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for a gap that several share."""
    from dilated_attention_pytorch.backends import gaps

    monkeypatch.setattr(gaps, "PARTS", 2)
    monkeypatch.setattr(gaps, "ELEMENTS", 512)


def cleared(sequences: Sequences, column: str, x: Tensor, y: Tensor | None, lse: Tensor | None) -> None:
    from dilated_attention_pytorch.backends.gap_kernel import clear_gaps_kernel
    from dilated_attention_pytorch.backends.gaps import clearing

    grid, arguments = clearing(sequences, column, x, y, lse)
    clear_gaps_kernel[grid](**arguments)


def sequences_of(table: list[list[int]], is_packed: bool) -> Sequences:
    return Sequences(torch.tensor(table, dtype=torch.int32), 0, 0, is_packed)


def in_a_sequence(sequences: Sequences, column: str, batch: int, n_tokens: int) -> Tensor:
    """Bool (batch, n_tokens)."""
    inside = torch.zeros(batch, n_tokens, dtype=torch.bool)
    first = {"q_start": 0, "kv_start": 2}[column]
    for i, row in enumerate(sequences.table.tolist()):
        start, length = row[first], row[first + 1]
        inside[0 if sequences.is_packed else i, start : start + length] = True
    return inside


BATCH = sequences_of(
    [[0, 5, 0, 70, 0], [0, 9, 0, 0, 0], [2, 3, 30, 37, 0], [0, 0, 70, 0, 0]], is_packed=False
)
PACKED = sequences_of([[1, 2, 0, 10, 0], [3, 4, 12, 0, 0], [8, 0, 20, 50, 0]], is_packed=True)
NONE = sequences_of([], is_packed=True)._replace(table=torch.zeros(0, 5, dtype=torch.int32))


@pytest.mark.parametrize("dim", [16, 24])
@pytest.mark.parametrize("sequences", [BATCH, PACKED, NONE], ids=["batch", "packed", "no_sequences"])
def test_results_of_tokens_in_no_sequence_are_cleared_and_no_others(sequences: Sequences, dim: int) -> None:
    batch = 1 if sequences.is_packed else sequences.table.shape[0]
    for column, n_tokens in (("q_start", 9), ("kv_start", 70)):
        x = torch.randn(batch, n_tokens, 3, dim)
        # heads before tokens, and part of a wider tensor
        y = torch.randn(batch, 2, n_tokens, dim + 8).transpose(1, 2)[..., :dim]
        lse = torch.randn(batch, 3, n_tokens)
        inside = in_a_sequence(sequences, column, batch, n_tokens)
        wanted = [
            x.masked_fill(~inside[:, :, None, None], 0.0),
            y.masked_fill(~inside[:, :, None, None], 0.0),
            lse.masked_fill(~inside[:, None], -torch.inf),
        ]
        cleared(sequences, column, x, y, lse)
        for found, expected in zip((x, y, lse), wanted, strict=True):
            assert torch.equal(found, expected)


def test_memory_beside_a_view_stays() -> None:
    wide = torch.ones(1, 9, 4, 24)
    cleared(PACKED, "q_start", wide[:, :, 1:3, :16], None, None)
    inside = in_a_sequence(PACKED, "q_start", 1, 9)
    assert torch.equal(wide[:, :, 1:3, :16].amax((2, 3)), inside.float())
    assert wide[:, :, 0].min() == wide[:, :, 3].min() == wide[..., 16:].min() == 1
