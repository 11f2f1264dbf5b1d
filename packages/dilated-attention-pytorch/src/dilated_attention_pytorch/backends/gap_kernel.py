"""The kernel that clears the results of tokens in no sequence; gaps.py says with which arguments."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def clear_tokens(
    X, begin, end, part, heads, stride_s, stride_h, DIM: tl.constexpr, PADDED: tl.constexpr, TOKENS: tl.constexpr,
    PARTS: tl.constexpr, PARTS_OF_HEADS: tl.constexpr,
):  # fmt: skip
    """Write zeros for the tokens from begin to end, of which every part takes some and some heads; PADDED is DIM or more."""
    d = tl.arange(0, PADDED)
    zeros = tl.zeros([TOKENS, PADDED], X.dtype.element_ty)
    STEP: tl.constexpr = PARTS // PARTS_OF_HEADS * TOKENS
    for first in tl.range(begin + part // PARTS_OF_HEADS * TOKENS, end, STEP):
        token = first + tl.arange(0, TOKENS)
        inside = (token < end)[:, None] & (d < DIM)[None, :]
        places = X + token.to(tl.int64)[:, None] * stride_s + d[None, :]
        for head in range(part % PARTS_OF_HEADS, heads, PARTS_OF_HEADS):
            tl.store(places + head * stride_h, zeros, mask=inside)


@triton.jit(do_not_specialize=["n_tokens", "n_sequences", "x_heads", "y_heads", "num_heads"])
def clear_gaps_kernel(
    X, Y, Lse, Table, n_tokens, n_sequences, x_heads, y_heads, num_heads, stride_xb, stride_xs, stride_xh, stride_yb,
    stride_ys, stride_yh, START: tl.constexpr, X_DIM: tl.constexpr, Y_DIM: tl.constexpr, PADDED: tl.constexpr,
    PACKED: tl.constexpr, TOKENS: tl.constexpr, PARTS: tl.constexpr, PARTS_OF_HEADS: tl.constexpr,
):  # fmt: skip
    """Write zeros into X and Y (batch, n_tokens, heads, dim) and -inf into Lse (batch, num_heads, n_tokens) where no sequence is.

    Y and Lse may be None. The columns START and START + 1 of Table are the first token and the number of tokens of a sequence.
    Packed, a gap is before each sequence, and behind the last; else before and behind the sequence of each batch element.
    """
    gap, part = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS
    if PACKED:
        i_batch = gap * 0
        before, behind = Table + (gap - 1) * 5 + START, Table + gap * 5 + START
        begin = tl.load(before, mask=gap > 0, other=0) + tl.load(before + 1, mask=gap > 0, other=0)
        end = tl.minimum(tl.load(behind, mask=gap < n_sequences, other=n_tokens), n_tokens)
    else:
        i_batch = gap // 2
        row = Table + i_batch * 5 + START
        first = tl.load(row)
        is_behind = gap % 2 == 1
        begin = tl.where(is_behind, first + tl.load(row + 1), 0)
        end = tl.where(is_behind, n_tokens, tl.minimum(first, n_tokens))
    i_batch = i_batch.to(tl.int64)
    clear_tokens(
        X + i_batch * stride_xb, begin, end, part, x_heads, stride_xs, stride_xh, X_DIM, PADDED, TOKENS, PARTS,
        PARTS_OF_HEADS,
    )  # fmt: skip
    if Y is not None:
        clear_tokens(
            Y + i_batch * stride_yb, begin, end, part, y_heads, stride_ys, stride_yh, Y_DIM, PADDED, TOKENS, PARTS,
            PARTS_OF_HEADS,
        )  # fmt: skip
    if Lse is not None:
        BLOCK: tl.constexpr = TOKENS * 16
        none = tl.full([BLOCK], float("-inf"), tl.float32)
        for first in tl.range(begin + part * BLOCK, end, PARTS * BLOCK):
            token = first + tl.arange(0, BLOCK)
            for head in range(num_heads):
                of_head = Lse + (i_batch * num_heads + head) * n_tokens
                tl.store(of_head + token, none, mask=token < end)
