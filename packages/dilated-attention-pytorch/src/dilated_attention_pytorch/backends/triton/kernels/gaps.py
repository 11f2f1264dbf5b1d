"""Results of tokens that are in none of the packed sequences."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n_tokens", "n_sequences"])
def clear_gaps_kernel(
    X, Y, Lse, Table, n_tokens, n_sequences,
    START: tl.constexpr, X_WIDTH: tl.constexpr, Y_WIDTH: tl.constexpr, NUM_HEADS: tl.constexpr, PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Write zeros into X and Y, and -inf into Lse (NUM_HEADS, n_tokens), where no sequence is.

    X and Y (None: there is none) are contiguous, a token has X_WIDTH and Y_WIDTH numbers. The columns START and START + 1 of
    Table are the first token and the number of tokens of a sequence. A gap is before each sequence, and behind the last; PARTS
    programs share it.
    """
    gap, part = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS
    before, behind = Table + (gap - 1) * 5 + START, Table + gap * 5 + START
    begin = tl.load(before, mask=gap > 0, other=0) + tl.load(before + 1, mask=gap > 0, other=0)
    end = tl.minimum(tl.load(behind, mask=gap < n_sequences, other=n_tokens), n_tokens)
    begin, end = begin.to(tl.int64), end.to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    zeros = tl.zeros([BLOCK], tl.float32)
    for i in tl.range(begin * X_WIDTH + part * BLOCK, end * X_WIDTH, PARTS * BLOCK):
        tl.store(X + i + lanes, zeros.to(X.dtype.element_ty), mask=i + lanes < end * X_WIDTH)
    if Y is not None:
        for i in tl.range(begin * Y_WIDTH + part * BLOCK, end * Y_WIDTH, PARTS * BLOCK):
            tl.store(Y + i + lanes, zeros.to(Y.dtype.element_ty), mask=i + lanes < end * Y_WIDTH)
    if Lse is not None:
        for i in tl.range(begin + part * BLOCK, end, PARTS * BLOCK):
            for head in range(NUM_HEADS):
                of_head = Lse + head * n_tokens.to(tl.int64) + i
                tl.store(of_head + lanes, zeros - float("inf"), mask=i + lanes < end)
