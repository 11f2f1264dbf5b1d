"""Layouts to and from FlexAttention's BlockMask: the same pairs of tokens, eager and compiled, both ways."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import (
    BlockMask,
    create_block_mask,
    create_mask,
    flex_attention,
    noop_mask,
)

from dilated_attention_pytorch import (
    BlockLayout,
    SparsePatternConfig,
    _torch_internals,
    block_sparse_attention,
)
from tests.core.layout.mask_cases import window
from tests.core.layout.pairs import equal_layouts, pairs_of

CONFIGS = [SparsePatternConfig(sparsity_ratio=0.3), SparsePatternConfig("local_window", sparsity_ratio=0.2)]
# (q_len, kv_len, causal), in blocks of 64
LENGTHS = [
    (640, 640, False), (320, 640, False), (640, 320, False), (333, 301, False), (64, 500, False),
    (640, 640, True), (500, 500, True), (128, 640, True), (100, 484, True), (1, 65, True), (512, 128, True),
    # the first query sits in the middle of a block
    (100, 640, True), (7, 500, True), (130, 201, True), (300, 200, True),
]  # fmt: skip


def layout_of(heads: int, q_len: int, kv_len: int, causal: bool) -> BlockLayout:
    return BlockLayout.from_config(CONFIGS[:heads], q_len, kv_len, causal)


def tokens(layout: BlockLayout) -> Tensor:
    """Bool (layout heads, q_len, kv_len): the pairs of tokens that attention with the layout computes."""
    position = torch.arange(layout.q_len) + (layout.kv_len - layout.q_len if layout.causal else 0)
    row = position // 64 - int(position[0]) // 64
    key = torch.arange(layout.kv_len)
    blocks = layout.to_dense().view(layout.num_heads, -1, -(-layout.kv_len // 64))
    mask = blocks[:, row][:, :, key // 64]
    return mask & (key <= position[:, None]) if layout.causal else mask


def attend(layout: BlockLayout, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """In FlexAttention's shapes."""
    tensors = (x.transpose(1, 2) for x in (q, k, v))
    return block_sparse_attention(*tensors, layout, is_causal=layout.causal).transpose(1, 2)


def rows(layout: BlockLayout) -> list[list[list[int]]]:
    return [layout.rows(head) for head in range(layout.num_heads)]


def neighbours(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return (query // 64 - key // 64).abs() <= head


def everything(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= 0


def causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return key <= query


# ---- to a BlockMask


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_mask_mod_keeps_what_the_layout_does(lengths: tuple[int, int, bool], heads: int) -> None:
    layout = layout_of(heads, *lengths)
    block_mask = layout.to_block_mask()
    found = create_mask(block_mask.mask_mod, 1, 2, layout.q_len, layout.kv_len, device="cpu")[0]
    assert torch.equal(found, tokens(layout).expand(2, -1, -1))
    listed = block_mask.to_dense()[0].bool().repeat_interleave(64, 1).repeat_interleave(64, 2)
    assert torch.equal(
        listed[:, : layout.q_len, : layout.kv_len] & found[: layout.num_heads], found[: layout.num_heads]
    )
    if (layout.kv_len - layout.q_len) % 64 == 0 or not layout.causal:
        blocks = block_mask.to_dense()[0].bool()
        assert torch.equal(blocks, layout.to_dense().view_as(blocks))


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_eager_flex_attention_gives_the_same(lengths: tuple[int, int, bool], heads: int) -> None:
    layout = layout_of(heads, *lengths)
    q, k, v = (torch.randn(2, 2, n, 16, dtype=torch.float64) for n in (lengths[0], lengths[1], lengths[1]))
    found = flex_attention(q, k, v, block_mask=layout.to_block_mask())
    torch.testing.assert_close(found, attend(layout, q, k, v), rtol=1e-12, atol=1e-12)


def of_head(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return (query >= key) & ((query - key) % (head + 2) != 1)


@pytest.mark.parametrize("masked", [False, True], ids=["blocks", "masks"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_patterns_per_kv_head_serve_grouped_queries(masked: bool) -> None:
    layout = (
        BlockLayout.from_mask_mod(of_head, 200, num_heads=2, causal=True)
        if masked
        else layout_of(2, 500, 500, True)
    )
    length = layout.q_len
    q, k, v = (torch.randn(2, heads, length, 16, dtype=torch.float64) for heads in (6, 2, 2))
    block_mask = layout.to_block_mask(num_heads=6)
    found = flex_attention(q, k, v, block_mask=block_mask, enable_gqa=True)
    torch.testing.assert_close(found, attend(layout, q, k, v), rtol=1e-12, atol=1e-12)
    # compiled, the lists of blocks count, which eager flex_attention does not read
    again = BlockLayout.from_block_mask(block_mask, causal=True)
    assert rows(again) == [layout.rows(head // 3) for head in range(6)]
    assert torch.equal(pairs_of(again), pairs_of(layout).repeat_interleave(3, 1))


@pytest.mark.parametrize("num_heads", [0, 1, 3, 2.5, "2"])
def test_heads_of_a_block_mask_that_the_layout_does_not_serve_are_refused(num_heads: Any) -> None:
    with pytest.raises(
        (TypeError, ValueError),
        match=f"num_heads must be a multiple of layout.num_heads 2, got {num_heads!r}",
    ):
        layout_of(2, 128, 128, False).to_block_mask(num_heads)


def test_one_compiled_flex_attention_serves_layouts_of_many_sizes() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(flex_attention)
    for length, heads, causal in ((256, 1, False), (320, 1, True), (384, 2, False), (448, 2, True)):
        layout = layout_of(heads, length, length, causal)
        q, k, v = (torch.randn(1, 2, length, 16) for _ in range(3))
        found = compiled(q, k, v, block_mask=layout.to_block_mask())
        torch.testing.assert_close(found, attend(layout, q, k, v), rtol=1e-4, atol=1e-5)


# ---- from a BlockMask


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_round_trip(lengths: tuple[int, int, bool], heads: int) -> None:
    layout = layout_of(heads, *lengths)
    again = BlockLayout.from_block_mask(layout.to_block_mask(), causal=layout.causal)
    assert (again.q_len, again.kv_len, again.causal, again.block_size) == (*lengths, 64)
    assert again.block_masks is None
    assert torch.equal(pairs_of(again), pairs_of(layout))
    if lengths[0] <= lengths[1]:  # else rows have no keys, and a BlockMask no blocks for them
        assert rows(again) == rows(layout)


def test_partial_blocks_are_masks_or_whole_where_allowed() -> None:
    layout = BlockLayout.from_config(SparsePatternConfig(sparsity_ratio=0.3), 640, causal=True)
    block_mask = layout.to_block_mask()
    exact = BlockLayout.from_block_mask(block_mask)
    assert exact.rows() == layout.rows()
    assert exact.stats().num_masks == 1
    assert torch.equal(pairs_of(exact), pairs_of(layout))
    whole = BlockLayout.from_block_mask(block_mask, allow_partial=True)
    assert whole.rows() == layout.rows()
    assert whole.block_masks is None


@pytest.mark.parametrize("lengths", [(512, 512), (500, 500), (1, 130), (130, 1), (450, 512)])
def test_block_mask_of_create_block_mask_is_read_at_ragged_ends_too(lengths: tuple[int, int]) -> None:
    # the mask_mod keeps all of the last blocks, though they are listed as partial
    block_mask = create_block_mask(neighbours, 1, 3, *lengths, device="cpu", BLOCK_SIZE=64)
    layout = BlockLayout.from_block_mask(block_mask)
    assert (layout.q_len, layout.kv_len) == lengths
    n_rows, n_cols = (-(-length // 64) for length in lengths)
    for head in range(3):
        expected = [[j for j in range(n_cols) if abs(i - j) <= head] for i in range(n_rows)]
        assert layout.rows(head) == expected


@pytest.mark.parametrize(
    ("sides", "size"),
    [
        (128, 128),
        ((64, 128), 64),
        ((128, 64), 64),
        (512, 256),
        ((192, 64), 64),
        ((48, 80), 16),
    ],
)
def test_blocks_of_other_sizes_are_split(sides: int | tuple[int, int], size: int) -> None:
    q_side, kv_side = (sides, sides) if isinstance(sides, int) else sides

    def steps(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query // q_side + key // kv_side) % 2 == 0

    block_mask = create_block_mask(steps, 1, 1, 1000, 1100, device="cpu", BLOCK_SIZE=sides)
    layout = BlockLayout.from_block_mask(block_mask)
    assert layout.block_size == size
    found = layout.to_dense().repeat_interleave(size, 0).repeat_interleave(size, 1)[:1000, :1100]
    assert torch.equal(found, create_mask(steps, 1, 1, 1000, 1100, device="cpu")[0, 0])


COUNTS = torch.tensor([[[1, 2, 0, 1]]], dtype=torch.int32)
COLUMNS = torch.tensor([[[[2, 0, 0, 0], [3, 1, 0, 0], [0, 0, 0, 0], [3, 0, 0, 0]]]], dtype=torch.int32)
ROWS = [[2], [1, 3], [], [3]]


def test_lists_without_a_mask_mod_are_whole_blocks() -> None:
    block_mask = BlockMask.from_kv_blocks(COUNTS, COLUMNS, BLOCK_SIZE=64)
    layout = BlockLayout.from_block_mask(block_mask)
    assert (layout.q_len, layout.kv_len, layout.rows()) == (256, 256, ROWS)
    both = BlockMask.from_kv_blocks(COUNTS, COLUMNS, COUNTS, COLUMNS, BLOCK_SIZE=64, seq_lengths=(250, 193))
    layout = BlockLayout.from_block_mask(both)
    assert (layout.q_len, layout.kv_len, layout.rows()) == (250, 193, ROWS)


def test_partial_blocks_are_those_of_which_the_mask_mod_hides_something() -> None:
    def without_the_second(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key < 64) | (key >= 128)

    block_mask = BlockMask.from_kv_blocks(COUNTS, COLUMNS, BLOCK_SIZE=64, mask_mod=without_the_second)
    assert BlockLayout.from_block_mask(block_mask).rows() == [[2], [3], [], [3]]
    # a block that is listed as full is not asked about
    block_mask = BlockMask.from_kv_blocks(
        COUNTS, COLUMNS, COUNTS, COLUMNS, BLOCK_SIZE=64, mask_mod=without_the_second
    )
    assert BlockLayout.from_block_mask(block_mask).rows() == ROWS


@pytest.mark.parametrize(("q_len", "kv_len"), [(300, 300), (256, 300), (300, 256), (100, 33)])
def test_mask_mod_that_reads_a_table_is_asked_within_it(q_len: int, kv_len: int) -> None:
    of_q, of_kv = torch.arange(q_len) // 64, torch.arange(kv_len) // 64

    def same_document(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return of_q[query] == of_kv[key]

    block_mask = create_block_mask(same_document, None, None, q_len, kv_len, device="cpu", BLOCK_SIZE=64)
    layout = BlockLayout.from_block_mask(block_mask)
    n_cols = -(-kv_len // 64)
    assert layout.rows() == [[row] if row < n_cols else [] for row in range(-(-q_len // 64))]


@pytest.mark.parametrize("axes", [1, 2])
def test_lists_without_batch_or_heads_have_one(axes: int) -> None:
    counts, columns = COUNTS.view(COUNTS.shape[2 - axes + 1 :]), COLUMNS.view(COLUMNS.shape[2 - axes + 1 :])
    block_mask = BlockMask.from_kv_blocks(
        counts, columns, BLOCK_SIZE=64, seq_lengths=(256, 256), compute_q_blocks=False
    )
    assert BlockLayout.from_block_mask(block_mask).rows() == ROWS


def test_slices_of_heads_and_rows() -> None:
    layout = layout_of(2, 640, 640, False)
    block_mask = layout.to_block_mask()
    head = BlockLayout.from_block_mask(block_mask[:, 1:2])
    assert rows(head) == [layout.rows(1)]
    part = BlockLayout.from_block_mask(block_mask[:, :, 3:5])
    assert (part.q_len, part.kv_len) == (128, 640)
    assert rows(part) == [layout.rows(head)[3:5] for head in range(2)]
    q, k, v = (torch.randn(1, 2, 640, 16) for _ in range(3))
    torch.testing.assert_close(attend(part, q[:, :, 192:320], k, v), attend(layout, q, k, v)[:, :, 192:320])


def test_slice_of_rows_with_a_ragged_end_needs_q_len() -> None:
    layout = layout_of(1, 600, 640, False)
    last = layout.to_block_mask()[:, :, 8:10]
    with pytest.raises(ValueError, match=r"2 rows of 64 queries, a slice of the rows of 600: pass q_len"):
        BlockLayout.from_block_mask(last)
    part = BlockLayout.from_block_mask(last, q_len=600 - 512)
    assert part.rows() == layout.rows()[8:10]
    with pytest.raises(ValueError, match=r"q_len must be 1 to the 128 tokens of block_mask, got 129"):
        BlockLayout.from_block_mask(last, q_len=129)


def test_fewer_tokens_are_the_first_ones() -> None:
    layout = layout_of(1, 640, 640, False)
    part = BlockLayout.from_block_mask(layout.to_block_mask(), q_len=100, kv_len=200)
    assert (part.q_len, part.kv_len) == (100, 200)
    assert part.rows() == [[column for column in row if column < 4] for row in layout.rows()[:2]]


def test_adjusted_block_mask_keeps_its_blocks_within_the_keys() -> None:
    block_mask = create_block_mask(everything, 1, 1, 512, 512, device="cpu", BLOCK_SIZE=64)
    layout = BlockLayout.from_block_mask(block_mask._adjust(256, 320))
    assert (layout.q_len, layout.kv_len) == (256, 320)
    assert layout.rows() == [list(range(5))] * 4


def test_batch_elements_that_agree_make_one_layout() -> None:
    block_mask = create_block_mask(neighbours, 2, 3, 512, 512, device="cpu", BLOCK_SIZE=64)
    alone = create_block_mask(neighbours, 1, 3, 512, 512, device="cpu", BLOCK_SIZE=64)
    assert equal_layouts(BlockLayout.from_block_mask(block_mask), BlockLayout.from_block_mask(alone))
    no_block = create_block_mask(lambda b, h, q, k: q < 0, 2, 1, 512, 512, device="cpu", BLOCK_SIZE=64)
    assert BlockLayout.from_block_mask(no_block).batch == 1


REFUSED: dict[str, tuple[Any, str]] = {
    "sides": (
        lambda: create_block_mask(everything, 1, 1, 512, 512, device="cpu", BLOCK_SIZE=(64, 40)),
        r"whole square blocks of one of .*got BLOCK_SIZE \(64, 40\)",
    ),
    "slice": (
        lambda: create_block_mask(causal, 1, 2, 512, 512, device="cpu", BLOCK_SIZE=64)[:, 1:2],
        r"8 partial blocks.*slice(?!.*q_offset).*create_block_mask.*mask_mod that counts batch, heads and queries from the "
        r"slice.*mask_mod\(b, h \+ 2, q, k\).*allow_partial=True",
    ),
    "rows": (
        lambda: create_block_mask(causal, 1, 1, 512, 512, device="cpu", BLOCK_SIZE=64)[:, :, 3:5],
        r"2 partial blocks.*slice.*whole BlockMask and pass q_offset.*mask_mod that counts batch, heads and queries from the "
        r"slice.*mask_mod\(b, h, q \+ 128, k\).*allow_partial=True",
    ),
    "axes": (
        lambda: BlockMask.from_kv_blocks(
            COUNTS[0].expand(2, -1), COLUMNS[0].expand(2, -1, -1), BLOCK_SIZE=64, compute_q_blocks=False
        ),
        r"axes \(batch, heads, rows\), got \(2, 4\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_block_masks_that_a_layout_cannot_hold_are_refused(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        BlockLayout.from_block_mask(make())


def test_one_block_larger_than_the_sequence() -> None:
    # what flex_attention makes where no block_mask is given
    one = torch.ones(1, 1, 1, dtype=torch.int32)
    block_mask = BlockMask.from_kv_blocks(
        one, one[..., None] - 1, BLOCK_SIZE=1 << 30, seq_lengths=(600, 1100)
    )
    layout = BlockLayout.from_block_mask(block_mask)
    assert (layout.q_len, layout.kv_len, layout.block_size, layout.density) == (600, 1100, 256, 1.0)


# ---- masks inside blocks


def in_batch(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return (query >= key) & ((query - key) % (batch + 2) <= head)


# (q_len, kv_len, causal): causal, the mask_mod is asked about queries by their number, not by their position
MASKED = [(256, 256, False), (200, 170, False), (70, 200, True), (256, 256, True), (133, 250, True)]


@pytest.mark.parametrize("lengths", MASKED)
def test_round_trip_of_masks_and_batch_elements(lengths: tuple[int, int, bool]) -> None:
    q_len, kv_len, is_causal = lengths
    layout = BlockLayout.from_mask_mod(in_batch, q_len, kv_len, batch=2, num_heads=2, causal=is_causal)
    assert (layout.batch, layout.num_heads) == (2, 2)
    block_mask = layout.to_block_mask()
    kept = create_mask(block_mask.mask_mod, 2, 2, q_len, kv_len, device="cpu")
    assert torch.equal(kept, pairs_of(layout))
    assert equal_layouts(BlockLayout.from_block_mask(block_mask, causal=is_causal), layout)


@pytest.mark.parametrize("lengths", MASKED)
def test_eager_flex_attention_with_masks_gives_the_same(lengths: tuple[int, int, bool]) -> None:
    q_len, kv_len, is_causal = lengths
    layout = BlockLayout.from_mask_mod(in_batch, q_len, kv_len, batch=2, num_heads=2, causal=is_causal)
    q, k, v = (torch.randn(2, 2, n, 16, dtype=torch.float64) for n in (q_len, kv_len, kv_len))
    found = flex_attention(q, k, v, block_mask=layout.to_block_mask())
    mask = pairs_of(layout)
    scores = (q @ k.transpose(2, 3) / 4).masked_fill(~mask, -torch.inf)
    expected = scores.softmax(-1).masked_fill(~mask, 0.0) @ v
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_compiled_flex_attention_with_masks_gives_the_same() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(flex_attention)
    for q_len, kv_len, is_causal in ((256, 256, False), (70, 200, True)):
        layout = BlockLayout.from_mask_mod(in_batch, q_len, kv_len, batch=2, num_heads=2, causal=is_causal)
        q, k, v = (torch.randn(2, 2, n, 16) for n in (q_len, kv_len, kv_len))
        found = compiled(q, k, v, block_mask=layout.to_block_mask())
        mask = pairs_of(layout)
        scores = (q @ k.transpose(2, 3) / 4).masked_fill(~mask, -torch.inf)
        expected = scores.softmax(-1).masked_fill(~mask, 0.0) @ v
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_adjusted_block_mask_is_exact() -> None:
    def hides_a_stripe(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query + key) % 100 < 60

    block_mask = create_block_mask(hides_a_stripe, 1, 1, 512, 512, device="cpu", BLOCK_SIZE=64)
    for lengths in ((448, 448), (400, 300), (512, 65)):
        adjusted = block_mask._adjust(*lengths)
        if adjusted.seq_lengths != lengths:
            pytest.skip("this torch adjusts to whole blocks")
        layout = BlockLayout.from_block_mask(adjusted)
        assert torch.equal(
            pairs_of(layout)[0, 0], create_mask(hides_a_stripe, 1, 1, *lengths, device="cpu")[0, 0]
        )


@pytest.mark.parametrize(("sides", "size"), [((128, 64), 64), (512, 256), (512, 16), ((64, 128), 32)])
def test_partial_blocks_are_refined(sides: int | tuple[int, int], size: int) -> None:
    block_mask = create_block_mask(window(77), 1, 1, 600, 700, device="cpu", BLOCK_SIZE=sides)
    layout = BlockLayout.from_block_mask(block_mask, block_size=size)
    assert equal_layouts(layout, BlockLayout.from_mask_mod(window(77), 600, 700, block_size=size))


def test_block_size_that_does_not_divide_is_refused() -> None:
    block_mask = create_block_mask(causal, 1, 1, 512, 512, device="cpu", BLOCK_SIZE=(128, 64))
    with pytest.raises(
        ValueError, match=r"block_size must divide the BLOCK_SIZE \(128, 64\).*\[16, 32, 64\], got 128"
    ):
        BlockLayout.from_block_mask(block_mask, block_size=128)
    with pytest.raises(ValueError, match=r"block_size must be one of .*got 48"):
        BlockLayout.from_block_mask(block_mask, block_size=48)


def test_slice_that_lost_its_mask_mod_without_a_word_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As slices of torch 2.7 are; lists of whole blocks alone are what they say."""
    block_mask = create_block_mask(causal, 1, 2, 256, 256, device="cpu", BLOCK_SIZE=64)
    block_mask.mask_mod = noop_mask
    monkeypatch.setattr(_torch_internals, "slices_forget_mask_mod", lambda: True)
    with pytest.raises(ValueError, match=r"8 partial blocks.*a slice has none"):
        BlockLayout.from_block_mask(block_mask)
    assert BlockLayout.from_block_mask(block_mask, allow_partial=True).num_active_blocks == 20
    whole = BlockMask.from_kv_blocks(COUNTS, COLUMNS, BLOCK_SIZE=64)
    assert BlockLayout.from_block_mask(whole).rows() == ROWS


def test_slice_with_a_mask_mod_of_its_own_is_exact() -> None:
    block_mask = create_block_mask(causal, 1, 2, 512, 512, device="cpu", BLOCK_SIZE=64)
    part = block_mask[:, 1:2, 3:5]
    part.mask_mod = lambda batch, head, query, key: causal(batch, head + 1, query + 192, key)
    layout = BlockLayout.from_block_mask(part)
    expected = torch.ones(512, 512, dtype=torch.bool).tril()[192:320]
    assert torch.equal(pairs_of(layout)[0, 0], expected)


def test_unsorted_lists_are_read() -> None:
    columns = torch.tensor([[[[3, 0, 0, 3], [2, 3, 1, 0], [1, 0, 0, 0], [0, 1, 2, 3]]]], dtype=torch.int32)
    counts = torch.tensor([[[2, 4, 1, 0]]], dtype=torch.int32)
    block_mask = BlockMask.from_kv_blocks(
        counts, columns, BLOCK_SIZE=64, mask_mod=causal, seq_lengths=(256, 256)
    )
    listed = torch.zeros(4, 4, dtype=torch.bool)
    for row, active in enumerate(([0, 3], [0, 1, 2, 3], [1], [])):
        listed[row, active] = True
    expected = listed.repeat_interleave(64, 0).repeat_interleave(64, 1).tril()
    assert torch.equal(pairs_of(BlockLayout.from_block_mask(block_mask))[0, 0], expected)


def test_full_and_partial_blocks_of_rows_that_begin_in_the_middle_of_a_block() -> None:
    """A block of the layout lies in a full and in a partial one of the BlockMask."""
    full = torch.tensor([[[[0, 1, 2]], [[1, 0, 2]]]], dtype=torch.int32).view(1, 1, 2, 3)
    partial = torch.tensor([[[[1, 0, 2]], [[0, 2, 1]]]], dtype=torch.int32).view(1, 1, 2, 3)
    one, two = torch.ones(1, 1, 2, dtype=torch.int32), torch.tensor([[[1, 2]]], dtype=torch.int32)

    def odd(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query + key) % 2 == 1

    block_mask = BlockMask.from_kv_blocks(
        two, partial, one, full, BLOCK_SIZE=64, mask_mod=odd, seq_lengths=(90, 170)
    )
    query, key = torch.arange(90)[:, None], torch.arange(170)
    status = torch.tensor([[2, 1, 0], [1, 2, 1]])[query // 64, key // 64]
    expected = (status == 2) | ((status == 1) & ((query + key) % 2 == 1))
    layout = BlockLayout.from_block_mask(block_mask, causal=True)
    assert torch.equal(pairs_of(layout)[0, 0], expected & (key <= query + 80))
    assert torch.equal(pairs_of(BlockLayout.from_block_mask(block_mask))[0, 0], expected)
