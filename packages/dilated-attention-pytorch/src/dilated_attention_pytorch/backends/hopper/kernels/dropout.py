"""Which weights of a tile dropout keeps (backends/dropout.py): a call of Philox has the numbers of eight pairs.

Of every 16 columns of a tile (64, N) a thread holds eight weights, in this order:

    row r       columns c and c + 1              row r + 8   the same
    row r       columns c + 8 and c + 9          row r + 8   the same

With queries as rows they are the pairs of one call. With keys as rows they are in two calls, one for each of two neighbouring
queries, of which a thread makes one: the other is made by the thread with the neighbouring key, and they exchange bits.

What is done for the weights of a call is one piece of PTX: written as operations on tiles, the words of all calls of a tile would
be in registers at once.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ...dropout import KEY_A, KEY_B, ROUND_A, ROUND_B, ROUNDS
from ..gluon_names import aggregate
from .softmax import BY_THREAD, over_tile

STEP = gl.constexpr(1.0 / 2**16)


def philox_code(key: str, query: str, of: dict[str, str]) -> str:
    """PTX that leaves the words of a call in w0 to w3; `of` are the registers of the other arguments."""
    lines = [
        f"mov.b32 w0, {key}; mov.b32 w1, {query}; mov.b32 w2, {of['sequence_head']}; mov.b32 w3, 0;",
        f"mov.b32 ka, {of['seed_a']}; mov.b32 kb, {of['seed_b']};",
    ]
    for i in range(ROUNDS):
        if i > 0:
            lines.append(f"add.u32 ka, ka, {KEY_A}; add.u32 kb, kb, {KEY_B};")
        lines += [
            f"mul.wide.u32 p, w0, {ROUND_A}; mul.wide.u32 q, w2, {ROUND_B}; xor.b32 a, w1, ka; xor.b32 b, w3, kb;",
            "mov.b64 {w1, w0}, q; mov.b64 {w3, w2}, p; xor.b32 w0, w0, a; xor.b32 w2, w2, b;",
        ]
    return " ".join(lines)


REGISTERS = ".reg .b32 w0, w1, w2, w3, ka, kb, a, b; .reg .b64 p, q;"
ARGUMENTS = ("row", "column", "seed_a", "seed_b", "sequence_head", "threshold")


def operands(first: int, n: int) -> dict[str, str]:
    """The first of n registers of every argument, behind the first registers."""
    return {name: f"${first + n * i}" for i, name in enumerate(ARGUMENTS)}


def threshold_code(threshold: str) -> str:
    """PTX that puts half of the threshold into both halves of t."""
    return f".reg .b32 t; shr.u32 t, {threshold}, 1; mul.lo.u32 t, t, 0x10001;"


def halves_code(word: int) -> str:
    """PTX that makes the highest bit of each half of a word 1 where a weight is kept.

    Of both the upper 15 bits less half of the threshold, below a bit that is left if the difference is not negative.
    """
    w = f"w{word}"
    return f"shr.u32 {w}, {w}, 1; and.b32 {w}, {w}, 0x7FFF7FFF; or.b32 {w}, {w}, 0x80008000; sub.u32 {w}, {w}, t;"


def kept_code() -> tuple[str, str]:
    """PTX, and its operands, that clears those of eight weights in 16 bits that are dropped; rows are queries.

    The weights come in pairs, each followed by a number that is not used.
    """
    of = operands(12, 8)
    lines = [f"{{ {REGISTERS}", threshold_code(of["threshold"]), philox_code(of["column"], of["row"], of)]
    for pair, word in enumerate((0, 2, 1, 3)):
        # the highest bit of a half, 16 times
        mask = f"prmt.b32 w{word}, w{word}, 0, 0xBB99; and.b32 ${pair}, ${4 + 2 * pair}, w{word};"
        lines += [halves_code(word), mask]
    return " ".join([*lines, "}"]), ",".join(["=r"] * 4 + ["r"] * 56)


def dropped_code(columns: int, keys_first: bool) -> str:
    """PTX of `Dropout.dropped`, for two rows: their bits, gathered from above."""
    of = operands(2, 2)
    key, query = (of["row"], of["column"]) if keys_first else (of["column"], of["row"])
    lines = [
        f"{{ {REGISTERS}",
        threshold_code(of["threshold"]),
        ".reg .b32 x, y, k, c; mov.b32 x, 0; mov.b32 y, 0;",
    ]
    if keys_first:
        lines.append(f".reg .pred odd; and.b32 k, {key}, 1; setp.ne.u32 odd, k, 0; add.u32 c, {query}, k;")
        lines.append(f"and.b32 k, {key}, 0xFFFFFFFE;")
    else:
        lines.append(f"mov.b32 k, {key}; mov.b32 c, {query};")
    for i in range(columns // 16):
        if i > 0:
            lines.append("add.u32 c, c, 16;" if keys_first else "add.u32 k, k, 16;")
        lines.append(philox_code("k", "c", of))
        for row, word in zip("xxyy", (0, 2, 1, 3) if keys_first else (0, 1, 2, 3), strict=True):
            lines.append(
                f"{halves_code(word)} and.b32 w{word}, w{word}, 0x80008000; shr.u32 {row}, {row}, 1;"
            )
            lines.append(f"or.b32 {row}, {row}, w{word};")
    if keys_first:
        # the lower halves are of even keys
        lines.append(
            "shfl.sync.bfly.b32 a, x, 4, 31, 0xffffffff; shfl.sync.bfly.b32 b, y, 4, 31, 0xffffffff;"
        )
        lines.append("selp.b32 k, 0x3276, 0x5410, odd; prmt.b32 x, x, a, k; prmt.b32 y, y, b, k;")
    return " ".join([*lines, "not.b32 $0, x; not.b32 $1, y; }"])


KEPT, KEPT_OPERANDS = (gl.constexpr(text) for text in kept_code())
DROPPED_32, DROPPED_64, DROPPED_128 = (gl.constexpr(dropped_code(n, False)) for n in (32, 64, 128))
DROPPED_BY_KEYS_32, DROPPED_BY_KEYS_64 = (gl.constexpr(dropped_code(n, True)) for n in (32, 64))
DROPPED_OPERANDS = gl.constexpr(",".join(["=r"] * 2 + ["r"] * 12))


@aggregate
class Dropout:
    """What decides which weights of a head are dropped: the halves of the seed, sequence and head, the smallest number kept."""

    seed_a: gl.tensor
    seed_b: gl.tensor
    sequence_head: gl.tensor
    threshold: gl.tensor

    @gluon.jit
    def kept(self, pairs, query0, key0, dtype: gl.constexpr, layout: gl.constexpr):
        """Weights (64, KEYS) in 16 bits, 0 where they are dropped, given the positions of the first query and key.

        pairs: those of neighbouring keys in int32, with any number behind each.
        """
        query = query0 + (gl.arange(0, 64, layout=gl.SliceLayout(1, layout)) & ~8)
        key = key0 + (gl.arange(0, pairs.shape[1], layout=gl.SliceLayout(0, layout)) & ~9)
        query, key = gl.broadcast(query[:, None], key[None, :])
        given = [pairs, query, key, self.seed_a, self.seed_b, self.sequence_head, self.threshold]
        if dtype == gl.bfloat16:
            return gl.inline_asm_elementwise(
                KEPT, KEPT_OPERANDS, given, dtype=gl.bfloat16, is_pure=True, pack=8
            )
        else:
            return gl.inline_asm_elementwise(
                KEPT, KEPT_OPERANDS, given, dtype=gl.float16, is_pure=True, pack=8
            )

    @gluon.jit
    def dropped(self, first_row, first_column, COLUMNS: gl.constexpr, KEYS_FIRST: gl.constexpr):
        """int32 (64, 4), as of softmax.py: bits of the weights of a thread in a row, 1 where they are dropped.

        Rows are queries and columns keys, with KEYS_FIRST keys and queries; their positions begin at first_row and first_column.
        Of the n pairs of columns of a thread the first columns are bits 16 - n to 15, the second ones 32 - n to 31.
        """
        row = first_row + (gl.arange(0, 64, layout=gl.SliceLayout(1, BY_THREAD)) & ~8)
        column = first_column + 2 * gl.arange(0, 4, layout=gl.SliceLayout(0, BY_THREAD))
        row, column = gl.broadcast(row[:, None], column[None, :])
        given = [row, column, self.seed_a, self.seed_b, self.sequence_head, self.threshold]
        gl.static_assert(COLUMNS == 32 or COLUMNS == 64 or (COLUMNS == 128 and not KEYS_FIRST))
        BY_QUERIES: gl.constexpr = (
            DROPPED_32 if COLUMNS == 32 else DROPPED_64 if COLUMNS == 64 else DROPPED_128
        )
        BY_KEYS: gl.constexpr = DROPPED_BY_KEYS_32 if COLUMNS == 32 else DROPPED_BY_KEYS_64
        CODE: gl.constexpr = BY_KEYS if KEYS_FIRST else BY_QUERIES
        return gl.inline_asm_elementwise(CODE, DROPPED_OPERANDS, given, dtype=gl.int32, is_pure=True, pack=2)


@gluon.jit
def marked(p, dropped, layout: gl.constexpr):
    """Weights (64, N) that are not negative, with the opposite sign where the bits of `dropped` are 1."""
    N: gl.constexpr = p.shape[1]
    bits = gl.reshape(over_tile(dropped, N, layout), [64, N // 8, 4, 2])
    parent: gl.constexpr = bits.type.layout
    of_octet: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, gl.SliceLayout(3, parent)))
    of_pair: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(2, parent)))
    octet, pair = gl.arange(0, N // 8, layout=of_octet), gl.arange(0, 2, layout=of_pair)
    # how far a bit is from the highest
    above = (15 + N // 8 - octet)[None, :, None, None] - 16 * pair[None, None, None, :]
    sign = gl.convert_layout(gl.reshape(bits << above, [64, N]), layout, assert_trivial=True) & -0x80000000
    return (p.to(gl.int32, bitcast=True) ^ sign).to(gl.float32, bitcast=True)


@gluon.jit
def kept_part(p, dtype: gl.constexpr):
    """Of `marked` weights those that are kept, and 0 for the others, in 16 bits."""
    if dtype == gl.bfloat16:
        return gl.inline_asm_elementwise(
            "cvt.rn.relu.bf16x2.f32 $0, $2, $1;", "=r,f,f", [p], dtype=gl.bfloat16, is_pure=True, pack=2
        )
    else:
        return gl.inline_asm_elementwise(
            "cvt.rn.relu.f16x2.f32 $0, $2, $1;", "=r,f,f", [p], dtype=gl.float16, is_pure=True, pack=2
        )


@gluon.jit
def load_dropout(Seed, threshold, sequence_head):
    """The dropout of a query head of a sequence."""
    seed = gl.load(Seed)
    return Dropout(seed.to(gl.int32), (seed >> 32).to(gl.int32), sequence_head, threshold)


@gluon.jit
def kept_share(threshold):
    """The share of the weights that is kept."""
    return 1.0 - threshold.to(gl.float32) * STEP
