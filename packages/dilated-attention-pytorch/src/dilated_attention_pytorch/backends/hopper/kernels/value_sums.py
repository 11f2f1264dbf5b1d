"""Sums of p v of the queries of a warpgroup: a tensor, and another one for the tail of v (tma.py)."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    warpgroup_mma,
    warpgroup_mma_accumulator,
    warpgroup_mma_wait,
)

from ..gluon_names import aggregate
from .softmax import over_tile


@aggregate
class ValueSums:
    """The sums, which products in flight may still add to; tail: None where v has none."""

    main: gl.tensor | warpgroup_mma_accumulator
    tail: gl.tensor | warpgroup_mma_accumulator | gl.constexpr


@gluon.jit
def no_values(ring, config):
    """The sums before the first tile of a ring."""
    DV: gl.constexpr = ring.tiles.shape[2]
    main = gl.zeros([64, DV], gl.float32, layout=config.acc_layout)
    if ring.tails is None:
        return ValueSums(main, None)
    else:
        return ValueSums(main, gl.zeros([64, 64], gl.float32, layout=config.tail_layout))


@gluon.jit
def add_values(acc, p, ring, place, config):
    """Start adding the product of p and the v tile at `place`, a product more with a tail."""
    main = warpgroup_mma(p, ring.consumer_wait(place), acc.main, is_async=True)
    if ring.tails is None:
        return ValueSums(main, None)
    else:
        layout: gl.constexpr = gl.DotOperandLayout(0, config.tail_layout, 2)
        p_of_tail = gl.convert_layout(p, layout, assert_trivial=True)
        return ValueSums(main, warpgroup_mma(p_of_tail, ring.tail(place), acc.tail, is_async=True))


@gluon.jit
def wait_acc(acc, N: gl.constexpr):
    """Wait until at most N products are in flight, none of them of the sums."""
    if acc.tail is None:
        return ValueSums(warpgroup_mma_wait(N, deps=[acc.main]), None)
    else:
        main, tail = warpgroup_mma_wait(N, deps=[acc.main, acc.tail])
        return ValueSums(main, tail)


def rescale_code(n: int) -> tuple[str, str]:
    """PTX, and its operands, that multiplies n numbers of a thread by their factors unless all factors of the warp are 1.

    The numbers belong to two rows, two by two in turn, as a product leaves them.
    """
    one, factor = "0f3F800000", 2 * n
    lines = [
        f"{{ .reg .pred p, q; setp.neu.f32 p, ${factor}, {one}; setp.neu.or.f32 q, ${factor + 2}, {one}, p;",
        "vote.sync.any.pred p, q, 0xffffffff; @!p bra.uni DONE;",
        *(f"mul.f32 ${i}, ${i}, ${factor + i};" for i in range(n)),
        "DONE: }",
    ]
    return " ".join(lines), ",".join(["=f"] * n + [str(i) for i in range(n)] + ["f"] * n)


NUMBERS = gl.constexpr(32)  # that one vote covers
RESCALE, RESCALE_OPERANDS = (gl.constexpr(text) for text in rescale_code(NUMBERS.value))


@gluon.jit
def rescale(x, alpha, layout: gl.constexpr):
    """Multiply a tile by factors of its rows, unless all are 1."""
    return gl.inline_asm_elementwise(
        RESCALE, RESCALE_OPERANDS, [x, over_tile(alpha, x.shape[1], layout)], dtype=gl.float32, is_pure=True, pack=NUMBERS
    )  # fmt: skip


@gluon.jit
def rescale_acc(acc, alpha, config):
    """Rescale earlier sums to the new m; most often alpha is 1 everywhere, and nothing is multiplied."""
    main = rescale(acc.main, alpha, config.acc_layout)
    if acc.tail is None:
        return ValueSums(main, None)
    else:
        return ValueSums(main, rescale(acc.tail, alpha, config.tail_layout))
