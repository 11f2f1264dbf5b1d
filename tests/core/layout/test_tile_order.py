"""TileOrder: tokens of a tile are consecutive, whatever the sizes, and its windows are those of a slow definition."""

from __future__ import annotations

import itertools

import pytest
import torch

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig, TileOrder, block_sparse_attention
from tests.core.slow_tiles import Triple, seen_by_windows, tokens_in_tiles

# (video, tile): divided, with smaller tiles along one, two and all axes, one tile, and one that is larger than the video
VIDEOS: list[tuple[Triple, Triple]] = [
    ((4, 8, 8), (2, 4, 4)),
    ((5, 8, 8), (2, 4, 4)),
    ((4, 6, 9), (2, 4, 4)),
    ((5, 7, 9), (2, 4, 4)),
    ((1, 6, 9), (1, 4, 4)),
    ((3, 5, 6), (4, 4, 4)),
    ((2, 3, 2), (4, 4, 4)),
]


@pytest.mark.parametrize(("video", "tile"), VIDEOS)
def test_order_is_that_of_the_slow_definition(video: Triple, tile: Triple) -> None:
    order = TileOrder(*video, tile=tile)
    tokens = torch.arange(order.num_tokens)
    assert order.to_tiles(tokens, 0).tolist() == tokens_in_tiles(video, tile)


@pytest.mark.parametrize(("video", "tile"), VIDEOS)
@pytest.mark.parametrize("dim", [1, -2, 2])
def test_to_raster_undoes_to_tiles_along_any_axis_and_in_the_backward(
    video: Triple, tile: Triple, dim: int
) -> None:
    order = TileOrder(*video, tile=tile)
    shape = [2, 3, 5]
    shape[dim] = order.num_tokens
    x = torch.randn(shape, requires_grad=True)
    tiles = order.to_tiles(x, dim)
    assert torch.equal(order.to_raster(tiles, dim), x)
    weight = torch.randn(shape)
    (grad,) = torch.autograd.grad(tiles, x, weight)
    assert torch.equal(grad, order.to_raster(weight, dim))


@pytest.mark.parametrize(("video", "tile"), VIDEOS)
@pytest.mark.parametrize("window", [(1, 1, 1), (3, 1, 3), (2, 3, 2), (9, 9, 9)])
def test_window_is_that_of_the_slow_definition(video: Triple, tile: Triple, window: Triple) -> None:
    order = TileOrder(*video, tile=tile)
    for n_text in (0, 5):
        layout = order.window_layout(window, 16, text_tokens=n_text)
        assert (layout.q_len, layout.kv_len) == (order.num_tokens, order.num_tokens + n_text)
        assert torch.equal(layout.to_dense(), seen_by_windows(video, tile, window, 16, n_text))


def test_blocks_see_exactly_the_window_where_they_divide_the_tiles() -> None:
    order = TileOrder(8, 12, 12)
    layout = order.window_layout((1, 3, 3))
    assert layout.block_size == 64
    assert {len(row) for row in layout.rows()} == {9}  # also at the edges, where the window moves inside


def test_every_head_may_have_its_window() -> None:
    order, windows = TileOrder(4, 8, 8, tile=(2, 4, 4)), [(1, 1, 1), (2, 1, 1), (1, 2, 2), (1, 1, 1)]
    layout = order.window_layout(windows, 16)
    assert layout.num_heads == 4
    for head, window in enumerate(windows):
        assert torch.equal(layout.to_dense()[head], order.window_layout(window, 16).to_dense())
    q = torch.randn(1, order.num_tokens, 4, 8)
    out = block_sparse_attention(q, q, q, layout)
    alone = block_sparse_attention(*[q[:, :, 2:3]] * 3, order.window_layout(windows[2], 16))
    torch.testing.assert_close(out[:, :, 2:3], alone)


def test_memory_of_a_window_is_that_of_its_blocks() -> None:
    order = TileOrder(32, 48, 80)
    layout = order.window_layout((3, 3, 3))
    assert layout.num_active_blocks == 8 * 12 * 20 * 27


@pytest.mark.parametrize(
    ("tile", "size"), [((4, 4, 4), 64), ((6, 8, 8), 128), ((1, 4, 4), 16), ((4, 8, 8), 128)]
)
def test_default_block_divides_the_tile(tile: Triple, size: int) -> None:
    assert TileOrder(8, 16, 16, tile=tile).block_size() == size
    assert TileOrder(8, 16, 16, tile=tile).window_layout((1, 1, 1)).block_size == size


BAD = {
    "frames": (lambda: TileOrder(0, 8, 8), "frames must be a positive number of tokens, got 0"),
    "tile": (lambda: TileOrder(8, 8, 8, tile=(4, 4)), r"tile must be three positive numbers .* got \(4, 4\)"),
    "volume": (
        lambda: TileOrder(8, 8, 8, tile=(3, 3, 3)).window_layout((1, 1, 1)),
        r"tile must hold a multiple of 16 tokens, got \(3, 3, 3\) with 27; use e.g. \(4, 4, 4\), or pass",
    ),
    "window": (
        lambda: TileOrder(8, 8, 8).window_layout((3, 0, 3)),
        r"window must be three positive numbers of tiles .* got \(3, 0, 3\)",
    ),
    "window_of_a_head": (
        lambda: TileOrder(8, 8, 8).window_layout([(1, 1, 1), (1, 1)]),
        r"window\[1\] must be three positive numbers of tiles",
    ),
    "text_tokens": (
        lambda: TileOrder(8, 8, 8).window_layout((1, 1, 1), text_tokens=-1),
        "text_tokens must be 0 or more, got -1",
    ),
    "length": (
        lambda: TileOrder(8, 8, 8).to_tiles(torch.zeros(1, 500, 2)),
        r"x must have 512 tokens \(8 x 8 x 8\) along dim 1, got shape \(1, 500, 2\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_name_the_argument(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_layout_made_in_inference_mode_serves_training() -> None:
    with torch.inference_mode():
        layout = TileOrder(4, 4, 4).window_layout((1, 1, 1))
    q = torch.randn(1, 64, 1, 8, requires_grad=True)
    block_sparse_attention(q, q, q, layout).sum().backward()
    assert q.grad is not None


def test_window_of_all_tiles_is_dense() -> None:
    for (video, tile), n_text in itertools.product(VIDEOS[:4], (0, 3)):
        order = TileOrder(*video, tile=tile)
        found = order.window_layout((99, 99, 99), 16, text_tokens=n_text)
        dense = BlockLayout.from_config(
            SparsePatternConfig(block_size=16, sparsity_ratio=1.0),
            order.num_tokens,
            order.num_tokens + n_text,
        )
        assert torch.equal(found.to_dense(), dense.to_dense())
