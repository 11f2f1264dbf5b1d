"""Which pairs of a tile of scores count, as bits: a thread of a warpgroup holds the words of its two rows.

The lane of a word is a column, 32 to a word. What hides pairs (the end of the keys, causality, padding, a mask inside a
block) clears bits of whole words, and only the result is spread over the tile.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .layouts import word_layout
from .softmax import INFINITY


@gluon.jit
def below(end, first, WORDS: gl.constexpr):
    """Words of which the bits below `end` are set; lane 0 of the first word stands at `first`.

    end: a number, or (64,) of the rows of a tile, in any layout.
    """
    LAYOUT: gl.constexpr = word_layout(WORDS)
    n = gl.full([64], 0, gl.int32, layout=gl.SliceLayout(1, LAYOUT)) + (end - first)
    n = n[:, None] - 32 * gl.arange(0, WORDS, layout=gl.SliceLayout(0, LAYOUT))[None, :]
    n = gl.minimum(gl.maximum(n, 0), 32)
    # shifting by 32 leaves a 32-bit number as it is
    return gl.where(n == 32, -1, (1 << (n & 31)) - 1)


@gluon.jit
def all_words(WORDS: gl.constexpr):
    """Words of which all bits are set."""
    LAYOUT: gl.constexpr = word_layout(WORDS)
    return gl.full([64, WORDS], -1, gl.int32, layout=LAYOUT)


@gluon.jit
def rows_of_tile(WORDS: gl.constexpr):
    """0 to 63, as `below` takes them."""
    LAYOUT: gl.constexpr = word_layout(WORDS)
    return gl.arange(0, 64, layout=gl.SliceLayout(1, LAYOUT))


@gluon.jit
def words_to_edge(kv_len, query0, key0, IS_CAUSAL: gl.constexpr, WORDS: gl.constexpr):
    """Words of the keys that there are, causal also not behind the query, of rows from position query0 and columns from key0."""
    words = below(kv_len, key0, WORDS)
    if IS_CAUSAL:
        words = words & below(query0 + 1 + rows_of_tile(WORDS), key0, WORDS)
    return words


@gluon.jit
def words_of_mask(Table, mask_id, row0, first_word, BLOCK_SIZE: gl.constexpr, WORDS: gl.constexpr):
    """Words of rows row0 to row0 + 63 of a mask, from word `first_word` on; of mask -1 all bits.

    Without a table a mask is 16 bits, of 4 by 4 parts of a block of 64 (joined_tiles.py).
    """
    LAYOUT: gl.constexpr = word_layout(WORDS)
    OF_ROW: gl.constexpr = BLOCK_SIZE // 32
    row = row0 + gl.arange(0, 64, layout=gl.SliceLayout(1, LAYOUT))
    word = first_word + gl.arange(0, WORDS, layout=gl.SliceLayout(0, LAYOUT))
    if Table is None:
        gl.static_assert(BLOCK_SIZE == 64)
        parts = mask_id >> (4 * (row // 16)[:, None] + 2 * word[None, :])  # of -1 all are active
        return (-(parts & 1) & 0xFFFF) | (-(parts & 2) << 15)
    else:
        words = Table + gl.maximum(mask_id, 0).to(gl.int64) * (BLOCK_SIZE * OF_ROW)
        return gl.load(words + row[:, None] * OF_ROW + word[None, :], mask=mask_id >= 0, other=-1)


@gluon.jit
def words_of_columns(Words, WORDS: gl.constexpr):
    """Words that are the same for all rows, (WORDS,)."""
    LAYOUT: gl.constexpr = word_layout(WORDS)
    return gl.load(Words + gl.arange(0, WORDS, layout=gl.SliceLayout(0, LAYOUT)))


@gluon.jit
def bits_of(words, N: gl.constexpr, layout: gl.constexpr):
    """Bool (64, N): the bits of words (64, N / 32)."""
    # a thread holds every fourth pair of columns of its rows
    tile = gl.reshape(gl.full([64, N], 0, gl.int32, layout=layout), [64, N // 32, 4, 4, 2])
    parent: gl.constexpr = tile.type.layout
    threads: gl.constexpr = gl.SliceLayout(2, gl.SliceLayout(4, parent))
    lane = gl.arange(0, 4, layout=gl.SliceLayout(0, gl.SliceLayout(1, threads)))
    words = gl.convert_layout(words, gl.SliceLayout(2, threads), assert_trivial=True)[:, :, None]
    words = words >> (2 * lane)[None, None, :]
    of_octet: gl.constexpr = gl.SliceLayout(
        0, gl.SliceLayout(1, gl.SliceLayout(3, gl.SliceLayout(4, parent)))
    )
    of_pair: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(2, gl.SliceLayout(3, parent))))
    octet, pair = gl.arange(0, 4, layout=of_octet), gl.arange(0, 2, layout=of_pair)
    bit = 1 << (8 * octet[None, None, :, None, None] + pair[None, None, None, None, :])
    bits = (gl.expand_dims(gl.expand_dims(words, 2), 4) & bit) != 0
    return gl.convert_layout(gl.reshape(bits, [64, N]), layout, assert_trivial=True)


@gluon.jit
def hide(s, words, layout: gl.constexpr):
    """A tile of scores with -infinity where the bits of `words` are 0."""
    return gl.where(bits_of(words, s.shape[1], layout), s, -INFINITY)
