"""Tokens that are in no sequence: a kernel of its own clears their results, where others write none of them."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ..sequences import COLUMNS, Sequences

# Programs of a gap between packed sequences: most are empty, and the one behind the last may be long.
PARTS = 32
PARTS_OF_BATCH = 128  # of the two gaps of a batch element,
PARTS_OF_HEADS = 4  # of which so many share tokens
ELEMENTS = 4096  # that a program clears at once


class Clearing(NamedTuple):
    """A launch of `clear_gaps_kernel`; its arguments in their order."""

    grid: tuple[int]
    arguments: dict[str, Any]


def clearing(
    sequences: Sequences, column: str, x: Tensor, y: Tensor | None = None, lse: Tensor | None = None
) -> Clearing:
    """What clears the tokens that are in no sequence.

    Args:
        sequences: of the call.
        column: "q_start" or "kv_start", what the tokens are.
        x: (batch, tokens, heads, dim), the last stride 1.
        y: likewise, with as many tokens.
        lse: float32 (batch, heads, tokens), contiguous.
    """
    n_sequences, n_tokens = sequences.table.shape[0], x.shape[1]
    n_gaps = n_sequences + 1 if sequences.is_packed else 2 * n_sequences
    second = x if y is None else y
    n_parts, of_heads = (PARTS, 1) if sequences.is_packed else (PARTS_OF_BATCH, PARTS_OF_HEADS)
    padded = 1 << (max(x.shape[3], second.shape[3]) - 1).bit_length()
    arguments = {
        "X": x, "Y": y, "Lse": lse, "Table": sequences.table, "n_tokens": n_tokens, "n_sequences": n_sequences,
        "x_heads": x.shape[2], "y_heads": second.shape[2], "num_heads": 0 if lse is None else lse.shape[1],
        **{f"stride_x{axis}": x.stride(i) for i, axis in enumerate("bsh")},
        **{f"stride_y{axis}": second.stride(i) for i, axis in enumerate("bsh")},
        "START": COLUMNS.index(column), "X_DIM": x.shape[3], "Y_DIM": second.shape[3], "PADDED": padded,
        "PACKED": sequences.is_packed, "TOKENS": max(1, ELEMENTS // padded), "PARTS": n_parts,
        "PARTS_OF_HEADS": of_heads,
    }  # fmt: skip
    return Clearing((n_gaps * n_parts if n_tokens > 0 else 0,), arguments)
