"""The Triton kernels of the exchange on a GPU; device_exchange.py launches them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def copy_kernel(
    X, Tokens, Into, n_tokens, x_b, x_t, x_h, into_b, into_t, into_h, num_heads, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    TOKENS: tl.constexpr,
):  # fmt: skip
    """A program copies some tokens of one head of one batch element: those of Tokens, or of the first ones without it."""
    of_head = tl.program_id(1)
    batch, head = (of_head // num_heads).to(tl.int64), (of_head % num_heads).to(tl.int64)
    i = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    d = tl.arange(0, BLOCK_D)
    token = i
    if Tokens is not None:
        token = tl.load(Tokens + i, mask=i < n_tokens, other=0)
    here = (i < n_tokens)[:, None] & (d < DIM)[None, :]
    x = tl.load(X + batch * x_b + token[:, None] * x_t + head * x_h + d[None, :], mask=here)
    tl.store(Into + batch * into_b + i[:, None] * into_t + head * into_h + d[None, :], x, mask=here)


@triton.jit
def add_returned_kernel(
    Own, Returned, OwnStarts, Indptr, Starts, Into, own_b, own_t, own_h, ret_b, ret_t, ret_h, into_b, into_t, into_h, num_heads,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, TILES: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """A program adds up some tokens of one block, of one head of one batch element."""
    of_head = tl.program_id(1)
    batch, head = (of_head // num_heads).to(tl.int64), (of_head % num_heads).to(tl.int64)
    block = tl.program_id(0) // TILES
    within, d = tl.program_id(0) % TILES * TOKENS + tl.arange(0, TOKENS), tl.arange(0, BLOCK_D)
    token = tl.load(OwnStarts + block).to(tl.int64) + within
    here = (token < tl.load(OwnStarts + block + 1))[:, None] & (d < DIM)[None, :]
    place = token[:, None] * own_t + d[None, :]
    total = tl.load(Own + batch * own_b + head * own_h + place, mask=here, other=0.0).to(tl.float32)
    end = tl.load(Indptr + block + 1)
    for i in range(tl.load(Indptr + block), end):
        at = tl.load(Starts + i).to(tl.int64) + within
        place = at[:, None] * ret_t + d[None, :]
        total += tl.load(Returned + batch * ret_b + head * ret_h + place, mask=here, other=0.0).to(tl.float32)
    place = token[:, None] * into_t + d[None, :]
    tl.store(Into + batch * into_b + head * into_h + place, total.to(Into.dtype.element_ty), mask=here)
