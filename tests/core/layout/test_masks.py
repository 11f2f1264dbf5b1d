"""Masks of pairs of tokens: every one exact through every way in, with few masks and little memory."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from dilated_attention_pytorch import BlockLayout, block_sparse_attention
from tests.core.attention_cases import FLOAT32
from tests.core.layout.mask_cases import BLOCK, BY_NAME, CASES, MaskCase
from tests.core.layout.pairs import equal_layouts, pairs_of


def of_mask_mod(case: MaskCase) -> BlockLayout:
    return BlockLayout.from_mask_mod(case.mask_mod, case.q_len, case.kv_len, num_heads=case.num_heads)


def of_mask(case: MaskCase) -> BlockLayout:
    return BlockLayout.from_mask(case.dense())


def of_block_mask(case: MaskCase) -> BlockLayout:
    block_mask = create_block_mask(
        case.mask_mod, None, case.num_heads, case.q_len, case.kv_len, device="cpu", BLOCK_SIZE=(128, 64)
    )
    return BlockLayout.from_block_mask(block_mask)


WAYS: dict[str, Callable[[MaskCase], BlockLayout]] = {
    "mask_mod": of_mask_mod, "mask": of_mask, "block_mask": of_block_mask,
}  # fmt: skip


@functools.cache
def made(name: str, way: str) -> BlockLayout:
    return WAYS[way](BY_NAME[name])


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """The definition, dense; q, k and v (batch, tokens, heads, head_dim), the mask broadcasts to (batch, heads, q_len, kv_len)."""
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(q.shape[3])
    # NaN of rows without keys.
    weights = scores.masked_fill(~mask, -math.inf).softmax(-1).masked_fill(~mask, 0.0)
    return torch.einsum("bhij,bjhd->bihd", weights, v)


def tokens_in_a_tile(case: MaskCase) -> Tensor:
    """The mask as whole blocks, (heads, n_rows, n_cols, BLOCK, BLOCK); False beyond the ends."""
    padded = torch.nn.functional.pad(case.dense(), (0, -case.kv_len % BLOCK, 0, -case.q_len % BLOCK))
    return padded.unflatten(1, (-1, BLOCK)).unflatten(3, (-1, BLOCK)).transpose(2, 3)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BY_NAME)
def test_layout_has_the_pairs_of_the_mask(name: str, way: str) -> None:
    case = BY_NAME[name]
    layout = made(name, way)
    assert torch.equal(pairs_of(layout)[0], case.dense())
    assert layout.block_size == BLOCK
    active = tokens_in_a_tile(case).flatten(3).any(3)
    assert layout.num_active_blocks == int(active.sum())
    stats = layout.stats()
    assert stats.num_pairs == int(case.dense().sum())
    assert stats.element_density == stats.num_pairs / case.dense().numel()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BY_NAME)
def test_masks_are_shared_and_memory_follows_the_blocks(name: str, way: str) -> None:
    case = BY_NAME[name]
    stats = made(name, way).stats()
    assert stats.num_masks == case.num_masks
    blocks = tokens_in_a_tile(case)
    n_heads, n_rows, n_cols = blocks.shape[:3]
    n_active = int(blocks.flatten(3).any(3).sum())
    lists = 4 * (n_heads * (n_rows + n_cols) + 2 + 4 * n_active)  # indptr, indices and block ids, twice
    masks = 4 * n_active + case.num_masks * BLOCK * BLOCK // 8
    assert stats.num_bytes == lists + (masks if case.num_masks else 0)


def test_number_of_masks_of_the_cases_is_that_of_distinct_tiles() -> None:
    """Where no block is ragged: `num_masks` is not what the code happens to give."""
    checked = 0
    for case in CASES:
        if case.q_len % BLOCK == 0 and case.kv_len % BLOCK == 0:
            tiles = tokens_in_a_tile(case).flatten(0, 2).flatten(1)
            partial = tiles[tiles.any(1) & ~tiles.all(1)]
            assert case.num_masks == partial.unique(dim=0).shape[0], case.name
            checked += 1
    assert checked == len(CASES) - 3


def check_attention(name: str, backend: str, dtype: torch.dtype, limit: float, device: str = "cpu") -> None:
    """The output and the gradients of attention with the mask, beside the dense definition in float64."""
    case = BY_NAME[name]
    heads = case.num_heads or 1
    generator = torch.Generator().manual_seed(3)
    shapes = [(1, length, heads, 16) for length in (case.q_len, case.kv_len, case.kv_len)]
    given = [
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes
    ]
    grad = torch.randn(shapes[0], generator=generator, dtype=torch.float64)
    expected = attention(*given, case.dense())
    wanted = [expected, *torch.autograd.grad(expected, given, grad)]
    tensors = [x.detach().to(device, dtype).requires_grad_() for x in given]
    out = block_sparse_attention(*tensors, made(name, "mask_mod"), backend=backend)
    found = [out, *torch.autograd.grad(out, tensors, grad.to(device, dtype))]
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine.double().cpu(), theirs, rtol=limit, atol=limit)


ON_THE_CPU = [(each.name, "cpu") for each in CASES] + [(each.name, "reference") for each in CASES[::5]]


@pytest.mark.parametrize(("name", "backend"), ON_THE_CPU)
def test_attention_is_the_dense_definition(name: str, backend: str) -> None:
    # sums over at most 3,072 keys of rounding errors of 1e-16
    check_attention(name, backend, torch.float64, 1e-12)


@pytest.mark.interpreter
@pytest.mark.parametrize("name", ["causal_500", "window_100", "last_image", "causal_chunk_100", "video"])
def test_triton_in_the_interpreter(name: str) -> None:
    check_attention(name, "triton", torch.float32, FLOAT32)


@pytest.mark.gpu
@pytest.mark.parametrize("name", BY_NAME)
def test_triton_on_the_gpu(name: str) -> None:
    check_attention(name, "triton", torch.float32, FLOAT32, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("name", BY_NAME)
def test_layout_made_on_the_gpu_is_that_of_the_cpu(name: str) -> None:
    case = BY_NAME[name]
    on_gpu = BlockLayout.from_mask(case.dense().cuda())
    assert on_gpu.device.type == "cuda"
    assert equal_layouts(on_gpu.to("cpu"), made(name, "mask_mod"))


def test_ways_in_give_the_same_layout() -> None:
    for name in BY_NAME:
        layouts = [made(name, way) for way in WAYS]
        assert all(equal_layouts(layouts[0], layout) for layout in layouts[1:]), name
