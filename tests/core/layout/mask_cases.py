"""Masks that people use, as functions of FlexAttention's signature, and what a layout of blocks of 64 holds of each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
BLOCK = 64


@dataclass(frozen=True)
class MaskCase:
    """A mask, and the number of distinct masks inside blocks that a layout needs for it.

    `num_heads` is None where all heads have the same.
    """

    name: str
    mask_mod: MaskMod
    num_masks: int
    q_len: int = 512
    kv_len: int = 512
    num_heads: int | None = None

    @functools.cache  # noqa: B019  # cases live as long as the tests
    def dense(self) -> Tensor:
        """Bool (heads, q_len, kv_len)."""
        head = torch.arange(self.num_heads or 1)[:, None, None]
        query, key = torch.arange(self.q_len)[:, None], torch.arange(self.kv_len)
        kept = self.mask_mod(torch.zeros((), dtype=torch.int64), head, query, key)
        return kept.expand(self.num_heads or 1, self.q_len, self.kv_len)


def of_table(table: Tensor) -> MaskMod:
    """A mask given for every pair, bool (q_len, kv_len)."""
    return lambda b, h, q, k: table[q, k]


def documents(*lengths: int) -> MaskMod:
    of = torch.repeat_interleave(torch.tensor(lengths))
    return lambda b, h, q, k: of[q] == of[k]


def both(*mask_mods: MaskMod) -> MaskMod:
    return lambda b, h, q, k: functools.reduce(torch.logical_and, (mod(b, h, q, k) for mod in mask_mods))


def causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return q >= k


def causal_from(offset: int) -> MaskMod:
    return lambda b, h, q, k: q + offset >= k


def everything(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (q >= 0) & (k >= 0)


def window(size: int) -> MaskMod:
    return lambda b, h, q, k: (q >= k) & (q - k <= size)


def dilated(size: int, step: int) -> MaskMod:
    return lambda b, h, q, k: ((q - k).abs() <= size) & ((q - k) % step == 0)


def prefix(size: int) -> MaskMod:
    return lambda b, h, q, k: (k < size) | (q >= k)


def global_and_blocks(tokens: int) -> MaskMod:
    return lambda b, h, q, k: (q < tokens) | (k < tokens) | ((q // BLOCK - k // BLOCK).abs() <= 1)


def near(q: Tensor, k: Tensor, size: int, kernel: int) -> Tensor:
    """Neighbourhood attention on one axis: the window is moved, not cut, at the edges."""
    first = (q - kernel // 2).clamp(0, size - kernel)
    return (k >= first) & (k < first + kernel)


def neighbourhood(height: int, width: int, kernel: int, order: Tensor | None = None) -> MaskMod:
    """On a grid of tokens; token i is at place order[i] of the rows of the grid."""
    place = torch.arange(height * width) if order is None else order
    row, col = place // width, place % width
    return lambda b, h, q, k: near(row[q], row[k], height, kernel) & near(col[q], col[k], width, kernel)


def tile_by_tile(sizes: tuple[int, ...], tiles: tuple[int, ...]) -> Tensor:
    """The places of a grid of 2 or 3 axes, tile after tile, (tokens, axes)."""
    axes = [torch.arange(size) for size in sizes]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(sizes))
    key = torch.zeros(places.shape[0], dtype=torch.int64)
    for divided in (True, False):
        for axis, (size, tile) in enumerate(zip(sizes, tiles, strict=True)):
            part = places[:, axis] // tile if divided else places[:, axis] % tile
            key = key * (size // tile if divided else tile) + part
    return places[key.argsort()]


def sliding_tiles(sizes: tuple[int, ...], tiles: tuple[int, ...], kernel: tuple[int, ...]) -> MaskMod:
    """Sliding tile attention: the neighbourhood of a tile of queries, in whole tiles."""
    tile = tile_by_tile(sizes, tiles) // torch.tensor(tiles)

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        axes = [
            near(tile[q, axis], tile[k, axis], sizes[axis] // tiles[axis], kernel[axis] // tiles[axis])
            for axis in range(len(sizes))
        ]
        return functools.reduce(torch.logical_and, axes)

    return mask_mod


def morton(size: int) -> Tensor:
    """The places of a square in Morton order."""
    place = torch.arange(size * size)
    row, col = (
        sum(((place >> (2 * bit + shift)) & 1) << bit for bit in range(size.bit_length())) for shift in (1, 0)
    )
    return row * size + col


def random_table(*shape: int, share: float, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


def random_blocks(heads: int = 1, transposed: bool = False) -> MaskMod:
    blocks = random_table(heads, 8, 8, share=0.4)
    if heads == 1:
        blocks[:, 2:4] = False
    blocks = blocks.transpose(1, 2) if transposed else blocks
    return lambda b, h, q, k: blocks[h if heads > 1 else 0, q // BLOCK, k // BLOCK]


def last_image(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """Four images of 64 tokens in a text; those before a text token are counted."""
    return (q >= 10).long() + (q >= 150) + (q >= 300) + (q >= 420) - 1 == k // 64


def frames_or_places(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """Head 0: the same frame of 64 tokens; head 1: the same place in the three frames near by."""
    same_frame = q // 64 == k // 64
    return torch.where(h == 0, same_frame, (q % 64 == k % 64) & ((q // 64 - k // 64).abs() <= 1))


def case(name: str, mask_mod: MaskMod, num_masks: int, *lengths: int, heads: int | None = None) -> MaskCase:
    q_len, kv_len = (lengths or (512,))[0], (lengths or (512,))[-1]
    return MaskCase(name, mask_mod, num_masks, q_len, kv_len, heads)


CASES = [
    case("causal", causal, 1),
    case("all", everything, 0),
    case("all_500", everything, 0, 500),
    case("causal_500", causal, 1, 500),
    case("window_100", window(100), 3),
    case("window_128", window(128), 2),
    case("documents", documents(100, 37, 200, 175), 15),
    case("documents_causal", both(documents(100, 37, 200, 175), causal), 10),
    case("documents_of_blocks", documents(128, 64, 192, 128), 0),
    case("documents_of_blocks_causal", both(documents(128, 64, 192, 128), causal), 1),
    case("chunks_causal", lambda b, h, q, k: (q // 64 == k // 64) & (q >= k), 1),
    case("prefix_128", prefix(128), 1),
    case("prefix_100", prefix(100), 3),
    case("dilated_4", dilated(512, 4), 1),
    case("dilated_128_2", dilated(128, 2), 3),
    case("global_64_and_blocks", global_and_blocks(64), 0),
    case("global_10_and_blocks", global_and_blocks(10), 2),
    case("longformer", lambda b, h, q, k: (q < 64) | (k < 64) | ((q - k).abs() <= 50), 3),
    case("sinks_and_window", lambda b, h, q, k: (q >= k) & ((k < 4) | (q - k < 128)), 4),
    case("neighbourhood", neighbourhood(32, 16, 7), 5),
    case(
        "neighbourhood_in_tiles", neighbourhood(32, 16, 9, (tile_by_tile((32, 16), (8, 8)) * torch.tensor([16, 1])).sum(1)), 28
    ),
    case("neighbourhood_morton", neighbourhood(16, 16, 7, morton(16)), 16, 256),
    case("sliding_tiles_2d", sliding_tiles((32, 32), (8, 8), (24, 24)), 0, 1024),
    case("sliding_tiles_3d", sliding_tiles((12, 16, 16), (4, 4, 4), (4, 12, 12)), 0, 3072),
    case("checkerboard_of_blocks", lambda b, h, q, k: (q // 64 + k // 64) % 2 == 0, 0),
    case("checkerboard_of_tokens", lambda b, h, q, k: (q + k) % 2 == 0, 1),
    case("random_blocks_empty_rows", random_blocks(), 0),
    case("random_blocks_empty_columns", random_blocks(transposed=True), 0),
    case("random_tokens", of_table(random_table(512, 512, share=0.3)), 64),
    case("inverse_causal", lambda b, h, q, k: q <= k, 1),
    case("random_blocks_per_head", random_blocks(2), 0, heads=2),
    case("causal_and_all", lambda b, h, q, k: (q >= k) | (h == 1), 1, heads=2),
    case("block_diagonal", lambda b, h, q, k: q // 64 == k // 64, 0),
    case("causal_by_residue", lambda b, h, q, k: q % 64 >= k % 64, 1),
    case("block_causal", lambda b, h, q, k: q // 64 >= k // 64, 0),
    case("strided", lambda b, h, q, k: (q >= k) & ((q - k < 64) | ((q - k) % 64 == 0)), 3),
    case("causal_chunk_128", causal_from(384), 1, 128, 512),
    case("causal_chunk_100", causal_from(412), 2, 100, 512),
    case("causal_top_left", causal, 1, 128, 512),
    case("last_image", last_image, 7, 512, 256),
    case("video", frames_or_places, 1, heads=2),
]  # fmt: skip
BY_NAME = {each.name: each for each in CASES}
