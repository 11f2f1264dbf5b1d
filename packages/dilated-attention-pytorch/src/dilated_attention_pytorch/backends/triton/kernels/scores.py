"""Scores: what is made of a product of a query and a key, in units of log2."""

from __future__ import annotations

import triton
import triton.language as tl

from .masking import LOG2E

LEAST = tl.constexpr(-1.7e38)  # times LOG2E it is a float32, and so is that less a score
TWO_LOG2E = tl.constexpr(2.8853900817779268)


@triton.jit
def tanh(x, EXACT: tl.constexpr):
    """The hyperbolic tangent: to a few units of the last place, or to 2**-11 in one instruction."""
    if EXACT:
        magnitude, square = tl.abs(x), x * x
        e = tl.exp2(-(magnitude * TWO_LOG2E))
        large = (1.0 - e) / (1.0 + e)
        # the quotient of small ones has no digits left: their Taylor series, whose next term is below 2**-26
        small = 1.0 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835))))
        return tl.where(magnitude < 0.25, x * small, tl.where(x < 0.0, -large, large))
    else:
        return tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def in_log2(bias):
    """A bias in units of log2. One that is finite stays finite, such as the least float32, which masks of padding hold."""
    return tl.where(bias == float("-inf"), bias, tl.maximum(bias, LEAST) * LOG2E)


@triton.jit
def added(s, pairs, scores, HAS_BIAS: tl.constexpr):
    """Scores with all that is added to them."""
    if HAS_BIAS:
        s += in_log2(pairs.bias)
    if scores.slope_log2 is not None:
        s -= scores.slope_log2 * tl.abs(pairs.position - pairs.key).to(tl.float32)
    if scores.attn_bias is not None:
        attn_bias = scores.attn_bias.base + pairs.query.to(tl.int64) * scores.attn_bias.stride_q
        attn_bias += pairs.key.to(tl.int64) * scores.attn_bias.stride_k
        s += in_log2(tl.load(attn_bias, mask=pairs.inside, other=0.0).to(tl.float32))
    return s


@triton.jit
def block_bias(bias_of, Entries, entry):
    """The bias of one entry."""
    return tl.load(bias_of.base + tl.load(Entries + entry).to(tl.int64) * bias_of.stride_be).to(tl.float32)


@triton.jit
def block_biases(bias_of, Entries, entry, inside):
    """The biases of the entry of every lane, (1, lanes)."""
    place = tl.load(Entries + entry, mask=inside, other=0).to(tl.int64)
    return tl.load(bias_of.base + place * bias_of.stride_be, mask=inside, other=0.0).to(tl.float32)[None, :]
