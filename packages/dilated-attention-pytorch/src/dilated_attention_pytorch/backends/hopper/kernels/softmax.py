"""Online softmax of a tile of scores, in units of log2; every thread works on what it holds of its two rows.

A row is spread over four threads. m and l of the rows are tensors of (64, 4), of which every thread has its own element: m is
equal in all four, l still has to be summed. So most tiles need no exchange between threads.

m may stay up to RESCALE_THRESHOLD below the largest score: p then reaches 256, and in exchange sums are rarely rescaled (as in
the kernels of FlashAttention-4). The maxima are not needed either: the sums of p, which are computed anyway, show when some p
is large. Only then, in a branch, m grows and p is computed again (`softmax_unmasked`).
"""

from __future__ import annotations

import struct
from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

INFINITY = gl.constexpr(float("inf"))
LOG2E = gl.constexpr(1.4426950408889634)  # a score times it is in units of log2
RESCALE_THRESHOLD = gl.constexpr(8.0)  # in units of log2
# A thread holds two rows of a product's tile of 64, 8 apart, and every fourth pair of columns.
BY_THREAD = gl.constexpr(
    gl.DistributedLinearLayout(
        reg_bases=[[8, 0]],
        lane_bases=[[0, 1], [0, 2], [1, 0], [2, 0], [4, 0]],
        warp_bases=[[16, 0], [32, 0]],
        block_bases=[],
        shape=[64, 4],
    )
)


@gluon.jit
def in_pairs(x):
    """(64, N) as (64, N / 8, 4, 2), where the third axis is the thread."""
    return gl.reshape(x, [64, x.shape[1] // 8, 4, 2])


@gluon.jit
def max_by_thread(x):
    """(64, 4): the maximum of what each thread holds of a row of a tile."""
    return gl.convert_layout(gl.max(gl.max(in_pairs(x), 3), 1), BY_THREAD, assert_trivial=True)


@gluon.jit
def sum_by_thread(x):
    """(64, 4): the sum of what each thread holds of a row of a tile."""
    return gl.convert_layout(gl.sum(gl.sum(in_pairs(x), 3), 1), BY_THREAD, assert_trivial=True)


@gluon.jit
def over_tile(x, N: gl.constexpr, layout: gl.constexpr):
    """Broadcast a tensor of (64, 4) to a tile of (64, N)."""
    tile = in_pairs(gl.full([64, N], 0, x.dtype, layout=layout))
    parent: gl.constexpr = tile.type.layout
    x = gl.convert_layout(x, gl.SliceLayout(1, gl.SliceLayout(3, parent)), assert_trivial=True)
    x, _ = gl.broadcast(gl.expand_dims(gl.expand_dims(x, 1), 3), tile)
    return gl.convert_layout(gl.reshape(x, [64, N]), layout, assert_trivial=True)


@gluon.jit
def nothing_seen():
    """m and l before the first tile."""
    m = gl.full([64, 4], -INFINITY, gl.float32, layout=BY_THREAD)
    return m, gl.full([64, 4], 0.0, gl.float32, layout=BY_THREAD)


@gluon.jit
def by_row(m, l, layout: gl.constexpr):
    """m and l of every row, (64,)."""
    rows: gl.constexpr = gl.SliceLayout(1, layout)
    return gl.convert_layout(gl.max(m, 1), rows, assert_trivial=True), gl.convert_layout(
        gl.sum(l, 1), rows, assert_trivial=True
    )


@gluon.jit
def softmax(s, m, l, scale_log2, dtype: gl.constexpr, MASKED: gl.constexpr, layout: gl.constexpr):
    """p of a tile of scores, the factor for earlier sums, the new m and l."""
    largest = gl.max(max_by_thread(s), 1)[:, None] * scale_log2
    m_new = gl.maximum(m, largest)
    m_new = gl.where(m_new - m > RESCALE_THRESHOLD, m_new, m)
    m_safe = m_new
    if MASKED:
        m_safe = gl.where(m_new == -INFINITY, 0.0, m_new)  # a query that has seen no key yet
    p = gl.exp2(s * scale_log2 - over_tile(m_safe, s.shape[1], layout))
    alpha = gl.exp2(m - m_safe)
    return p.to(dtype), alpha, m_new, l * alpha + sum_by_thread(p)


# Of a tile of 64 x 64 a thread holds 32 elements: two of its upper row, two of its lower row, and so on.


@gluon.jit
def exponentials(t, upper, lower, N: gl.constexpr, PACK: gl.constexpr):
    """exp2 of N scores less the number of their row, packed in pairs with a 0 after each pair; and the sums of both rows."""
    p = ()
    sum_upper, sum_lower = 0.0, 0.0
    for i in gl.static_range(0, N, 4):
        p0, p1 = gl.exp2(t[i] - upper), gl.exp2(t[i + 1] - upper)
        p2, p3 = gl.exp2(t[i + 2] - lower), gl.exp2(t[i + 3] - lower)
        p = p + (packed(p0, p1, PACK), 0, packed(p2, p3, PACK), 0)  # type: ignore[assignment]
        sum_upper += p0 + p1
        sum_lower += p2 + p3
    return p, sum_upper, sum_lower


@gluon.jit
def packed(first, second, PACK: gl.constexpr):
    """Two numbers, rounded into one register."""
    return gl.inline_asm_elementwise(PACK, "=r,f,f", [first, second], dtype=gl.int32, is_pure=True, pack=1)


@gluon.jit
def largest_of_row(t, first: gl.constexpr, N: gl.constexpr):
    """The maximum of a row over its four threads; `first` is the index of its first element."""
    largest = t[first]
    for i in gl.static_range(first, N, 4):
        largest = gl.maximum(largest, gl.maximum(t[i], t[i + 1]))
    return gl.inline_asm_elementwise(
        "{ .reg .f32 x, y; shfl.sync.bfly.b32 x, $1, 1, 31, 0xffffffff; max.f32 y, $1, x;"
        " shfl.sync.bfly.b32 x, y, 2, 31, 0xffffffff; max.f32 $0, y, x; }",
        "=f,f", [largest], dtype=gl.float32, is_pure=True, pack=1,
    )  # fmt: skip


def large_code() -> str:
    """PTX that tells whether any sum in the warp is above 2 ** RESCALE_THRESHOLD, or NaN."""
    most = "0f" + struct.pack(">f", 2.0**RESCALE_THRESHOLD.value).hex()
    return (
        f"{{ .reg .pred p, q; setp.gtu.f32 p, $1, {most}; setp.gtu.or.f32 q, $2, {most}, p;"
        " vote.sync.any.pred p, q, 0xffffffff; selp.b32 $0, 1, 0, p; }"
    )


LARGE = gl.constexpr(large_code())


@gluon.jit
def any_is_large(upper, lower):
    """1 where any sum of the warp is above 2 ** RESCALE_THRESHOLD, or NaN."""
    return gl.inline_asm_elementwise(
        LARGE, "=r,f,f", [upper, lower], dtype=gl.int32, is_pure=True, pack=1,
    )  # fmt: skip


@gluon.jit
def of_thread(t, N: gl.constexpr, PACK: gl.constexpr):
    """From N scores of a thread, less m: p in pairs, by how much m must grow, and the sums of the rows."""
    p, sum_upper, sum_lower = exponentials(t, 0.0, 0.0, N, PACK)
    upper, lower = 0.0, 0.0
    if any_is_large(sum_upper, sum_lower) != 0:
        upper, lower = gl.maximum(largest_of_row(t, 0, N), 0.0), gl.maximum(largest_of_row(t, 2, N), 0.0)
        p, sum_upper, sum_lower = exponentials(t, upper, lower, N, PACK)
    grown, sums = (), ()
    for _ in gl.static_range(0, N, 4):
        grown = grown + (upper, upper, lower, lower)  # type: ignore[assignment]
        sums = sums + (sum_upper, sum_upper, sum_lower, sum_lower)  # type: ignore[assignment]
    return p + grown + sums


def of_threads(pack: str) -> tuple[Any, Any]:
    """`of_thread` with a packing instruction, as functions of 32 and of 64 numbers.

    `map_elementwise` passes every number as a parameter of its own; Triton 3.6 compiles no `*args`.
    """
    PACK = gl.constexpr(pack)

    @gluon.jit
    def of_32(
        t0, t1, t2, t3, t4, t5, t6, t7, t8, t9, t10, t11, t12, t13, t14, t15, t16, t17, t18, t19, t20, t21, t22, t23,
        t24, t25, t26, t27, t28, t29, t30, t31,
    ):  # fmt: skip
        t = (
            t0, t1, t2, t3, t4, t5, t6, t7, t8, t9, t10, t11, t12, t13, t14, t15, t16, t17, t18, t19, t20, t21, t22,
            t23, t24, t25, t26, t27, t28, t29, t30, t31,
        )  # fmt: skip
        return of_thread(t, 32, PACK)

    @gluon.jit
    def of_64(
        t0, t1, t2, t3, t4, t5, t6, t7, t8, t9, t10, t11, t12, t13, t14, t15, t16, t17, t18, t19, t20, t21, t22, t23,
        t24, t25, t26, t27, t28, t29, t30, t31, t32, t33, t34, t35, t36, t37, t38, t39, t40, t41, t42, t43, t44, t45,
        t46, t47, t48, t49, t50, t51, t52, t53, t54, t55, t56, t57, t58, t59, t60, t61, t62, t63,
    ):  # fmt: skip
        t = (
            t0, t1, t2, t3, t4, t5, t6, t7, t8, t9, t10, t11, t12, t13, t14, t15, t16, t17, t18, t19, t20, t21, t22,
            t23, t24, t25, t26, t27, t28, t29, t30, t31, t32, t33, t34, t35, t36, t37, t38, t39, t40, t41, t42, t43,
            t44, t45, t46, t47, t48, t49, t50, t51, t52, t53, t54, t55, t56, t57, t58, t59, t60, t61, t62, t63,
        )  # fmt: skip
        return of_thread(t, 64, PACK)

    return of_32, of_64


BFLOAT16_32, BFLOAT16_64 = of_threads("cvt.rn.bf16x2.f32 $0, $2, $1;")
FLOAT16_32, FLOAT16_64 = of_threads("cvt.rn.f16x2.f32 $0, $2, $1;")
UNPACK = gl.constexpr("mov.b32 $0, $1;")  # a pair already is a register


@gluon.jit
def unpacked(pairs, dtype: gl.constexpr):
    """Numbers in 16 bits, from pairs of them in int32 with any number behind each."""
    if dtype == gl.bfloat16:
        return gl.inline_asm_elementwise(UNPACK, "=r,r,r", [pairs], dtype=gl.bfloat16, is_pure=True, pack=2)
    else:
        return gl.inline_asm_elementwise(UNPACK, "=r,r,r", [pairs], dtype=gl.float16, is_pure=True, pack=2)


@gluon.jit
def softmax_unmasked(s, m, l, scale_log2, dtype: gl.constexpr, layout: gl.constexpr):
    """`softmax` of a tile of 64 or 128 keys without a mask, for queries that have all seen a key."""
    KEYS: gl.constexpr = s.shape[1]
    t = s * scale_log2 - over_tile(m, KEYS, layout)
    gl.static_assert(KEYS == 64 or KEYS == 128)
    if dtype == gl.bfloat16:
        pairs, grown, sums = gl.map_elementwise(BFLOAT16_32 if KEYS == 64 else BFLOAT16_64, t, pack=KEYS // 2)
    else:
        pairs, grown, sums = gl.map_elementwise(FLOAT16_32 if KEYS == 64 else FLOAT16_64, t, pack=KEYS // 2)
    p = unpacked(pairs, dtype)
    grown = max_by_thread(grown)
    alpha = gl.exp2(-grown)
    return p, alpha, m + grown, l * alpha + max_by_thread(sums)


# A row whose m is below this many of log2 has seen no key yet, or only keys of a very low bias: less m its scores would
# lose their digits.
LEAST_M = gl.constexpr(-1024.0)
UPPER, LOWER = gl.constexpr(0), gl.constexpr(2)  # the first element of either row of a thread


@gluon.jit
def of_thread_hidden(t, m, N: gl.constexpr, PACK: gl.constexpr):
    """`of_thread` of scores of which some are -infinity, less m of rows whose m is not low: p in pairs, the new m, the sums."""
    m_upper, m_lower = m[UPPER], m[LOWER]
    is_low, is_low_below = m_upper < LEAST_M, m_lower < LEAST_M
    p, sum_upper, sum_lower = exponentials(t, 0.0, 0.0, N, PACK)
    if any_is_large(gl.where(is_low, INFINITY, sum_upper), gl.where(is_low_below, INFINITY, sum_lower)) != 0:
        upper = gl.maximum(largest_of_row(t, 0, N), gl.where(is_low, m_upper, 0.0))
        lower = gl.maximum(largest_of_row(t, 2, N), gl.where(is_low_below, m_lower, 0.0))
        m_upper = gl.where(is_low, upper, m_upper + upper)
        m_lower = gl.where(is_low_below, lower, m_lower + lower)
        # a row that still has seen no key
        upper = gl.where(upper == -INFINITY, 0.0, upper)
        lower = gl.where(lower == -INFINITY, 0.0, lower)
        p, sum_upper, sum_lower = exponentials(t, upper, lower, N, PACK)
    m_new, sums = (), ()
    for _ in gl.static_range(0, N, 4):
        m_new = m_new + (m_upper, m_upper, m_lower, m_lower)  # type: ignore[assignment]
        sums = sums + (sum_upper, sum_upper, sum_lower, sum_lower)  # type: ignore[assignment]
    return p + m_new + sums


def of_threads_hidden(pack: str) -> tuple[Any, Any]:
    """`of_thread_hidden`, as `of_threads`: functions of the scores and of m, as often."""
    PACK = gl.constexpr(pack)

    @gluon.jit
    def of_32(
        t0, t1, t2, t3, t4, t5, t6, t7, t8, t9, t10, t11, t12, t13, t14, t15, t16, t17, t18, t19, t20, t21,
        t22, t23, t24, t25, t26, t27, t28, t29, t30, t31,
        m0, m1, m2, m3, m4, m5, m6, m7, m8, m9, m10, m11, m12, m13, m14, m15, m16, m17, m18, m19, m20, m21,
        m22, m23, m24, m25, m26, m27, m28, m29, m30, m31,
    ):  # fmt: skip
        t = (
            t0, t1, t2, t3, t4, t5, t6, t7, t8, t9, t10, t11, t12, t13, t14, t15, t16, t17, t18, t19, t20, t21,
            t22, t23, t24, t25, t26, t27, t28, t29, t30, t31,
        )  # fmt: skip
        m = (
            m0, m1, m2, m3, m4, m5, m6, m7, m8, m9, m10, m11, m12, m13, m14, m15, m16, m17, m18, m19, m20, m21,
            m22, m23, m24, m25, m26, m27, m28, m29, m30, m31,
        )  # fmt: skip
        return of_thread_hidden(t, m, 32, PACK)

    @gluon.jit
    def of_64(
        t0, t1, t2, t3, t4, t5, t6, t7, t8, t9, t10, t11, t12, t13, t14, t15, t16, t17, t18, t19, t20, t21,
        t22, t23, t24, t25, t26, t27, t28, t29, t30, t31, t32, t33, t34, t35, t36, t37, t38, t39, t40, t41,
        t42, t43, t44, t45, t46, t47, t48, t49, t50, t51, t52, t53, t54, t55, t56, t57, t58, t59, t60, t61,
        t62, t63,
        m0, m1, m2, m3, m4, m5, m6, m7, m8, m9, m10, m11, m12, m13, m14, m15, m16, m17, m18, m19, m20, m21,
        m22, m23, m24, m25, m26, m27, m28, m29, m30, m31, m32, m33, m34, m35, m36, m37, m38, m39, m40, m41,
        m42, m43, m44, m45, m46, m47, m48, m49, m50, m51, m52, m53, m54, m55, m56, m57, m58, m59, m60, m61,
        m62, m63,
    ):  # fmt: skip
        t = (
            t0, t1, t2, t3, t4, t5, t6, t7, t8, t9, t10, t11, t12, t13, t14, t15, t16, t17, t18, t19, t20, t21,
            t22, t23, t24, t25, t26, t27, t28, t29, t30, t31, t32, t33, t34, t35, t36, t37, t38, t39, t40, t41,
            t42, t43, t44, t45, t46, t47, t48, t49, t50, t51, t52, t53, t54, t55, t56, t57, t58, t59, t60, t61,
            t62, t63,
        )  # fmt: skip
        m = (
            m0, m1, m2, m3, m4, m5, m6, m7, m8, m9, m10, m11, m12, m13, m14, m15, m16, m17, m18, m19, m20, m21,
            m22, m23, m24, m25, m26, m27, m28, m29, m30, m31, m32, m33, m34, m35, m36, m37, m38, m39, m40, m41,
            m42, m43, m44, m45, m46, m47, m48, m49, m50, m51, m52, m53, m54, m55, m56, m57, m58, m59, m60, m61,
            m62, m63,
        )  # fmt: skip
        return of_thread_hidden(t, m, 64, PACK)

    return of_32, of_64


HIDDEN_BFLOAT16_32, HIDDEN_BFLOAT16_64 = of_threads_hidden("cvt.rn.bf16x2.f32 $0, $2, $1;")
HIDDEN_FLOAT16_32, HIDDEN_FLOAT16_64 = of_threads_hidden("cvt.rn.f16x2.f32 $0, $2, $1;")


@gluon.jit
def softmax_hidden(t, m, l, bias, dropout, query0, key0, dtype: gl.constexpr, layout: gl.constexpr):
    """`softmax` of a tile of 64 or 128 keys, of which any may be hidden, with `t` from `less_m`.

    p is 0 where `dropout`, if that is not None, drops a weight; query0, key0: the positions of the first query and key.
    """
    KEYS: gl.constexpr = t.shape[1]
    of_m = over_tile(m - bias, KEYS, layout)
    gl.static_assert(KEYS == 64 or KEYS == 128)
    if dtype == gl.bfloat16:
        pairs, m_new, sums = gl.map_elementwise(
            HIDDEN_BFLOAT16_32 if KEYS == 64 else HIDDEN_BFLOAT16_64, t, of_m, pack=KEYS // 2
        )
    else:
        pairs, m_new, sums = gl.map_elementwise(
            HIDDEN_FLOAT16_32 if KEYS == 64 else HIDDEN_FLOAT16_64, t, of_m, pack=KEYS // 2
        )
    if dropout is None:
        p = unpacked(pairs, dtype)
    else:
        p = dropout.kept(pairs, query0, key0, dtype, layout)
    m_new = max_by_thread(m_new)
    is_same = m_new == m - bias
    alpha = gl.where(is_same, 1.0, gl.exp2(m - bias - m_new))
    # m_new + bias would round m off where a bias is very low
    return p, alpha, gl.where(is_same, m, m_new + bias), l * alpha + max_by_thread(sums)


@gluon.jit
def less_m(m, bias, KEYS: gl.constexpr, layout: gl.constexpr):
    """What `softmax_hidden` wants to be subtracted from the scores of a tile with a bias."""
    of_tile = m - bias
    return over_tile(gl.where(of_tile < LEAST_M, 0.0, of_tile), KEYS, layout)


@gluon.jit
def first_max(s, m, scale_log2, layout: gl.constexpr):
    """m of queries that have seen no key yet, from the scores of their first tile."""
    return gl.where(m == -INFINITY, gl.max(max_by_thread(s), 1)[:, None] * scale_log2, m)
