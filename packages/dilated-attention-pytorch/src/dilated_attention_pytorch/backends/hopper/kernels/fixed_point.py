"""Fixed-point sums of dq, which are the same bits in whatever order TMA adds (backward_single_pass.py): their scales.

With ds = p (dp - delta) of a query, and p that add up to 1, no sum of ds k over any of its keys exceeds

    B = (|grad_out|_2 max |v|_2 + |delta|) max |k|

with the maxima over the keys of a kv head that some block of it shows, and delta with the gradient of lse. The scale is 2^29
over the next power of two of B, so that there is another factor of two for what is rounded.

    maxima  float32 as int32 (batch * num_kv_heads, 2): max |k| and max |v|_2; 0 before the launch of key_maxima_kernel
    scales  float32 (batch * num_heads, n_rows * BLOCK_SIZE / CHUNK, CHUNK)

A query whose numbers are not finite has such an lse or delta: its scale is NaN, and so is its dq. A key or value that is not
finite, in a block that some query sees, makes dq of its whole kv head NaN, also where a mask hides it: a product with it has
no place in a sum of whole numbers.
"""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK = tl.constexpr(128)  # keys
SAFETY = tl.constexpr(1.02)  # p and ds are rounded
LEAST = tl.constexpr(2.0**-100)  # squares below are rounded to less than their number of bits
ROOT_OF_DIM = tl.constexpr(12.0)  # at least that of 128


@triton.jit
def bits(x):
    """Of numbers that are not negative, the greater ones have the greater bits, and NaN the greatest."""
    return x.to(tl.int32, bitcast=True)


@triton.jit
def largest(x):
    """The largest number in every row, NaN where there is one."""
    return tl.max(bits(x), 1).to(tl.float32, bitcast=True)


@triton.jit
def norm(squares, largest):
    """At least the Euclidean norm of numbers with this sum of squares, which may have left float32, and this largest one."""
    in_range = (squares > LEAST) & (squares < float("inf"))
    return tl.where(in_range, tl.sqrt(squares), ROOT_OF_DIM * largest)


@triton.jit
def scales_of(grad_out, delta, lse, k_max, v_max):
    """The scales of queries, by rows of grad_out (queries, D) in float32; 1 of those that see no key."""
    grads = tl.abs(grad_out)
    of_dp = norm(tl.sum(grads * grads, 1), largest(grads)) * v_max + tl.abs(delta)
    bound = tl.where(of_dp < LEAST, LEAST, of_dp) * (SAFETY * k_max)  # tl.maximum would drop NaN
    exponent = bits(bound) >> 23  # bound < 2 ** (exponent - 126)
    scale = (tl.minimum(282 - exponent, 253) << 23).to(tl.float32, bitcast=True)
    is_finite = (exponent < 255) & (tl.abs(lse) < float("inf"))
    scale = tl.where(is_finite, scale, float("nan"))
    return tl.where(lse == -float("inf"), 1.0, scale)


NUMBERS = ["num_kv_heads", "heads_per_kv", "heads_per_list", "n_blocks", "kv_len"]


@triton.jit(do_not_specialize=NUMBERS)
def key_maxima_kernel(
    K, V, Offsets, Maxima, stride_kb, stride_ks, stride_kh, stride_vb, stride_vs, stride_vh, num_kv_heads, heads_per_kv,
    heads_per_list, n_blocks, kv_len, D: tl.constexpr,
):  # fmt: skip
    """A program for every block of keys of every kv head; Offsets: of the lists of the columns."""
    place = tl.program_id(0)
    kv_head, block, i_batch = (
        place % num_kv_heads,
        place // num_kv_heads % n_blocks,
        place // num_kv_heads // n_blocks,
    )
    first_head = kv_head * heads_per_kv
    entries = 0
    for layout_head in range(
        first_head // heads_per_list, (first_head + heads_per_kv - 1) // heads_per_list + 1
    ):
        offsets = Offsets + layout_head * n_blocks + block
        entries += tl.load(offsets + 1) - tl.load(offsets)
    if entries > 0:
        keys = block * BLOCK + tl.arange(0, BLOCK)
        d = tl.arange(0, D)[None, :]
        inside = (keys < kv_len)[:, None]
        rows = keys.to(tl.int64)[:, None]
        of_k = K + i_batch.to(tl.int64) * stride_kb + kv_head * stride_kh + rows * stride_ks + d
        of_v = V + i_batch.to(tl.int64) * stride_vb + kv_head * stride_vh + rows * stride_vs + d
        k = tl.abs(tl.load(of_k, mask=inside, other=0.0).to(tl.float32))
        v = tl.abs(tl.load(of_v, mask=inside, other=0.0).to(tl.float32))
        norms = norm(tl.sum(v * v, 1), largest(v))
        maxima = Maxima + (i_batch * num_kv_heads + kv_head) * 2
        tl.atomic_max(maxima, tl.max(bits(largest(k)), 0), sem="relaxed")
        tl.atomic_max(maxima + 1, tl.max(bits(norms), 0), sem="relaxed")
