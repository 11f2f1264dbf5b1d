"""The processor for diffusers: dense at ratio 1, the masked definition below it, and all that a model does with processors."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers import transformer_hunyuan_video, transformer_wan
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dilated_attention_pytorch import BlockLayout
from dilated_attention_pytorch.integrations import tile_attention
from dilated_attention_pytorch.integrations.diffusers import (
    BlockSparseAttnProcessor,
    TileAttention,
    restore_attention,
    set_block_sparse_attention,
)
from tests.core.backward_spy import backwards
from tests.core.slow_tiles import seen_by_windows, tokens_in_tiles
from tests.integrations.diffusers.models import MODELS, TILE, Case, wan

WAYS: dict[str, dict[str, Any]] = {
    "window": {"window": (1, 2, 1)},
    "window_of_each_head": {"window": [(1, 2, 1), (3, 1, 1)]},
    "ratio": {"sparsity_ratio": 0.3},
    "top_p": {"top_p": 0.3},
}


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)  # float32 sums in another order


# ---- what it computes


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("way", [{"window": (99, 99, 99)}, {"sparsity_ratio": 1.0}], ids=["window", "ratio"])
@torch.no_grad()
def test_ratio_of_one_is_the_model_itself(name: str, way: dict[str, Any]) -> None:
    case = MODELS[name]()
    dense = case()
    assert set_block_sparse_attention(case.model, tile=TILE, **way, **case.setting) == case.layers
    close(case(), dense)


class Masked:
    """A dispatcher of diffusers that attends densely, where a second, slow definition says so."""

    def __init__(self, video: tuple[int, int, int], n_text: int, way: dict[str, Any]) -> None:
        self.video, self.n_text, self.way = video, n_text, way
        self.order = tokens_in_tiles(video, TILE)
        self.share = 0.0

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **others: Any
    ) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        n_video = len(self.order)
        if q.shape[2] == k.shape[2] == n_video + self.n_text:
            mask = torch.ones(*q.shape[:2], q.shape[2], k.shape[2], dtype=torch.bool)  # text sees all
            place = torch.empty(n_video, dtype=torch.int64)
            place[self.order] = torch.arange(n_video)
            block = torch.cat([place, torch.arange(n_video, n_video + self.n_text)]) // 16
            mask[:, :, :n_video] = self.blocks(q, k)[:, :, block[:n_video]][:, :, :, block]
            self.share = float(mask[:, :, :n_video, :n_video].float().mean())
            attn_mask = mask if attn_mask is None else mask & attn_mask
        return scaled_dot_product_attention(q, k, v, attn_mask).transpose(1, 2)

    def blocks(self, q: Tensor, k: Tensor) -> Tensor:
        """Bool (batch, heads, n_rows, n_cols)."""
        window = self.way.get("window")
        if window is not None:
            each = window if isinstance(window, list) else [window] * q.shape[1]
            heads = [seen_by_windows(self.video, TILE, one, 16, self.n_text) for one in each]
            return torch.stack(heads).expand(q.shape[0], -1, -1, -1)
        pooled = [torch.stack([part.mean(2) for part in x[:, :, self.order].split(16, 2)], 2) for x in (q, k)]
        scores = pooled[0] @ pooled[1].mT / q.shape[3] ** 0.5
        n = scores.shape[2]
        scores.diagonal(0, 2, 3).fill_(float("inf"))
        ranked = scores.sort(3, descending=True).indices.sort(3).indices
        if "sparsity_ratio" in self.way:
            chosen = ranked < max(1, int(self.way["sparsity_ratio"] * n))
        else:
            raw = pooled[0] @ pooled[1].mT / q.shape[3] ** 0.5
            share = raw.softmax(3)
            by_rank = share.gather(3, scores.sort(3, descending=True).indices)
            before = by_rank.cumsum(3) - by_rank
            chosen = (before < self.way["top_p"]).gather(3, ranked) | (ranked == 0)
        n_cols = -(-(len(self.order) + self.n_text) // 16)
        seen = torch.nn.functional.pad(chosen, (0, n_cols - n))
        if self.n_text:
            seen[..., len(self.order) // 16 :] = True
        return seen


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("name", "module", "video", "n_text"),
    [("wan", transformer_wan, (5, 6, 5), 0), ("hunyuan", transformer_hunyuan_video, (5, 6, 7), 12)],
)
def test_below_a_ratio_of_one_it_is_the_masked_definition_and_its_gradient(
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    name: str,
    module: Any,
    video: tuple[int, int, int],
    n_text: int,
) -> None:
    case = MODELS[name]()
    set_block_sparse_attention(case.model, tile=TILE, **WAYS[way])
    found, grads = with_gradients(case)
    restore_attention(case.model)
    masked = Masked(video, n_text, WAYS[way])
    monkeypatch.setattr(module, "dispatch_attention_fn", masked)
    expected, expected_grads = with_gradients(case)
    assert 0.0 < masked.share < 0.7
    close(found, expected)
    assert len(grads) == len(expected_grads) > 0
    for ours, theirs in zip(grads, expected_grads):
        close(ours, theirs)


def with_gradients(case: Case) -> tuple[Tensor, list[Tensor]]:
    case.model.zero_grad()
    out = case()
    out.square().mean().backward()
    return out.detach(), [x.grad.clone() for x in case.model.parameters() if x.grad is not None]


def test_deterministic_reaches_the_backward_and_stays_in_copies() -> None:
    grads = []
    for value in (None, False):
        torch.manual_seed(0)
        case = wan()
        set_block_sparse_attention(case.model, tile=TILE, window=(1, 2, 1), deterministic=value)
        case = case._replace(model=pickle.loads(pickle.dumps(case.model)))
        with backwards() as seen:
            grads.append(with_gradients(case)[1])
        assert set(seen) == {value is None}
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))
    assert "deterministic=False" in repr(case.model.blocks[0].attn1.processor)


def test_selection_differs_between_batch_elements_and_layers() -> None:
    case = wan()
    set_block_sparse_attention(case.model, tile=TILE, sparsity_ratio=0.2)
    both = case()
    for i in range(2):
        alone = case.model(**{name: x[i : i + 1] for name, x in case.call.items()}, return_dict=False)[0]
        close(both[i : i + 1], alone)


# ---- what models do


@pytest.mark.parametrize("way", ["window", "ratio"])
def test_gradient_checkpointing_changes_nothing(way: str) -> None:
    case = wan()
    case.model.train()
    set_block_sparse_attention(case.model, tile=TILE, **WAYS[way])
    plain, grads = with_gradients(case)
    case.model.enable_gradient_checkpointing()
    again, recomputed = with_gradients(case)
    assert torch.equal(plain, again)
    assert all(map(torch.equal, grads, recomputed))


@pytest.mark.parametrize("way", ["window", "ratio"])
@torch.no_grad()
def test_compiled_blocks_are_one_graph_and_serve_other_videos(way: str) -> None:
    torch.compiler.reset()
    case = wan()
    set_block_sparse_attention(case.model, tile=TILE, **WAYS[way])
    compiled = copy.deepcopy(case.model)
    compiled.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    for shape in ((2, 4, 5, 12, 10), (2, 4, 3, 8, 16)):
        call = {**case.call, "hidden_states": torch.randn(shape)}
        close(compiled(**call, return_dict=False)[0], case.model(**call, return_dict=False)[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "dynamic"), [("window", None), ("ratio", None), ("ratio", True), ("top_p", True)]
)
@torch.no_grad()
def test_compiled_model_is_one_graph(way: str, dynamic: bool | None) -> None:
    torch.compiler.reset()
    case = wan()
    set_block_sparse_attention(case.model, tile=TILE, **WAYS[way])
    eager = case()
    compiled = torch.compile(case.model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    close(compiled(**case.call, return_dict=False)[0], eager)
    assert restore_attention(compiled) == case.layers


@torch.no_grad()
def test_fused_projections_are_used() -> None:
    case = wan()
    set_block_sparse_attention(case.model, tile=TILE, window=(1, 2, 1))
    before = case()
    case.model.fuse_qkv_projections()
    assert case.model.blocks[0].attn1.fused_projections
    close(case(), before)


@torch.no_grad()
def test_setting_again_replaces_and_restoring_leaves_nothing() -> None:
    case = wan()
    dense, own = case(), {name: type(x) for name, x in case.model.attn_processors.items()}
    set_block_sparse_attention(case.model, tile=TILE, window=(1, 1, 1))
    first = case()
    set_block_sparse_attention(case.model, tile=TILE, window=(1, 2, 1), layers=["blocks.1.attn1"])
    names = [
        name for name, x in case.model.attn_processors.items() if isinstance(x, BlockSparseAttnProcessor)
    ]
    assert names == ["blocks.1.attn1.processor"]
    assert len(case.model._forward_pre_hooks) == 1
    assert not torch.allclose(case(), first)
    assert restore_attention(case.model) == ["blocks.1.attn1"]
    assert {name: type(x) for name, x in case.model.attn_processors.items()} == own
    assert not case.model._forward_pre_hooks
    assert torch.equal(case(), dense)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@torch.no_grad()
def test_copies_have_their_own_grid(again: Callable[[Any], Any]) -> None:
    case = wan()
    set_block_sparse_attention(case.model, tile=TILE, window=(1, 2, 1))
    expected = case()
    other = again(case.model)
    attention = other.blocks[0].attn1.processor.attention
    assert attention is other.blocks[1].attn1.processor.attention
    assert attention is not case.model.blocks[0].attn1.processor.attention
    small = {**case.call, "hidden_states": torch.randn(2, 4, 2, 8, 8)}
    other(**small)
    assert attention.grid == (2, 4, 4)
    assert torch.equal(case(), expected)


@torch.no_grad()
def test_layers_of_a_call_share_their_layout() -> None:
    case = wan()
    set_block_sparse_attention(case.model, tile=TILE, window=(1, 2, 1))
    case()
    attention = case.model.blocks[0].attn1.processor.attention
    (ready,) = attention._kept.__dict__.values()
    assert ready.layout is not None
    for frames in range(1, 20):  # what is kept has a bound
        case.model(**{**case.call, "hidden_states": torch.randn(2, 4, frames, 4, 4)})
    assert len(attention._kept.__dict__) == 8


# ---- TileAttention by itself


def test_text_before_and_behind_give_the_same() -> None:
    q, k, v = (torch.randn(2, 64 + 9, heads, 8) for heads in (4, 2, 2))
    behind = TileAttention((4, 4, 4), tile=(2, 2, 4), window=(1, 1, 1), text_first=False)(q, k, v)
    before = TileAttention((4, 4, 4), tile=(2, 2, 4), window=(1, 1, 1), text_first=True)
    turned = before(*(x.roll(9, 1) for x in (q, k, v)))
    close(turned.roll(-9, 1), behind)


@pytest.mark.parametrize("kind", ["keys", "keys_float", "pairs", "pairs_of_heads", "plain_matrix"])
def test_masks_move_with_their_tokens(kind: str) -> None:
    video, n_text = (2, 5, 6), 7
    n = 60 + n_text
    q, k, v = (torch.randn(2, n, heads, 8) for heads in (4, 2, 2))
    shapes = {"pairs": (2, 1, n, n), "pairs_of_heads": (1, 4, n, n), "plain_matrix": (n, n)}
    mask = torch.rand(shapes.get(kind, (2, 1, 1, n))) < 0.7
    mask[..., 0] = True
    given = torch.zeros(mask.shape).masked_fill(~mask, -2.0) if kind == "keys_float" else mask
    attention = TileAttention(video, tile=TILE, window=(9, 9, 9), text_first=False)
    expected = scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), given, enable_gqa=True
    ).transpose(1, 2)
    close(attention(q, k, v, attn_mask=given), expected)


def test_scale_reaches_the_scores_and_the_selection() -> None:
    q, k, v = (torch.randn(1, 64, 2, 8) for _ in range(3))
    attention = TileAttention((4, 4, 4), tile=(2, 2, 4), top_p=0.5)
    scaled = attention(q, k, v, softmax_scale=2.0)
    close(scaled, attention(q * 2.0 * 8**0.5, k, v))


# ---- errors


def test_without_diffusers_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec("dilated_attention_pytorch.integrations.diffusers")
    assert spec is not None
    assert spec.loader is not None
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"needs diffusers 0\.36 or newer: pip install 'diffusers>=0\.36'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def small_wan() -> WanTransformer3DModel:
    return wan().model


ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "neither": (
        lambda: set_block_sparse_attention(small_wan()),
        ValueError,
        "window, or sparsity_ratio and top_p, say which tiles a tile sees, got window=None",
    ),
    "both": (
        lambda: TileAttention((4, 4, 4), window=(1, 1, 1), sparsity_ratio=0.1),
        ValueError,
        "got window=.1, 1, 1., sparsity_ratio=0.1",
    ),
    "top_p": (lambda: TileAttention(top_p=1.5), ValueError, "top_p must be over 0 and at most 1, got 1.5"),
    "ratio": (lambda: TileAttention(sparsity_ratio=0), ValueError, "sparsity_ratio must be the fraction"),
    "tile": (
        lambda: TileAttention(tile=(3, 3, 3), window=(1, 1, 1)),
        ValueError,
        "tile must hold a multiple of 16 tokens",
    ),
    "grid": (
        lambda: TileAttention(window=(1, 1, 1))(*[torch.zeros(1, 64, 1, 8)] * 3),
        ValueError,
        "grid must be known before the attention runs, got None; pass grid",
    ),
    "cross_attention": (
        lambda: TileAttention((4, 4, 4), window=(1, 1, 1))(
            torch.zeros(1, 64, 1, 8), *[torch.zeros(1, 7, 1, 8)] * 2
        ),
        ValueError,
        "q and k must hold the 4 x 4 x 4 tokens of grid, got 64 queries and 7 keys; leave this layer out",
    ),
    "text": (
        lambda: TileAttention((4, 4, 4), window=(1, 1, 1))(*[torch.zeros(1, 70, 1, 8)] * 3),
        ValueError,
        "text_first must say where the 6 tokens beside the 4 x 4 x 4 of the video are",
    ),
    "text_first": (
        lambda: TileAttention(window=(1, 1, 1), text_first="yes"),  # type: ignore[arg-type]
        TypeError,
        "text_first must be True, False or None, got 'yes'",
    ),
    "deterministic": (
        lambda: set_block_sparse_attention(small_wan(), window=(1, 1, 1), deterministic=2),  # type: ignore[arg-type]
        TypeError,
        "deterministic must be True, False or None, got 2; None is True",
    ),
    "layers": (
        lambda: set_block_sparse_attention(small_wan(), window=(1, 1, 1), layers=["blocks.7.attn1"]),
        ValueError,
        r"layers must name attention layers of the model, got \['blocks.7.attn1'\]; it has \['blocks.0.attn1'",
    ),
    "pipeline": (
        lambda: set_block_sparse_attention(torch.nn.Linear(2, 2), window=(1, 1, 1)),
        TypeError,
        "model must be a transformer of diffusers with attention processors, got Linear; of a pipeline pass",
    ),
    "unknown_model": (
        lambda: set_block_sparse_attention(MODELS["flux"]().model, window=(1, 1, 1)),
        ValueError,
        "grid must be given for FluxTransformer2DModel, got None; pass grid",
    ),
    "processor": (
        lambda: BlockSparseAttnProcessor(torch.nn.Identity, TileAttention(window=(1, 1, 1))),
        TypeError,
        "processor must be the attention processor of a layer of diffusers",
    ),
    "parameters": (
        lambda: BlockSparseAttnProcessor(torch.nn.Linear(2, 2), TileAttention(window=(1, 1, 1))),
        ValueError,
        "processor must hold no parameters, got Linear; unload its adapter first",
    ),
    "another_attention": (
        lambda: BlockSparseAttnProcessor(Masked((1, 1, 1), 0, {}).blocks, TileAttention(window=(1, 1, 1))),
        ValueError,
        "processor must call dispatch_attention_fn or scaled_dot_product_attention itself, method does not",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_argument_and_the_fix(name: str) -> None:
    call, kind, message = ERRORS[name]
    with pytest.raises(kind, match=message):
        call()


def test_context_parallelism_is_refused() -> None:
    layer = small_wan().blocks[0].attn1
    layer.processor._parallel_config = object()
    with pytest.raises(ValueError, match="processor must not be set up for context parallelism"):
        BlockSparseAttnProcessor(layer.processor, TileAttention(window=(1, 1, 1)))


@torch.no_grad()
def test_cross_attention_that_was_asked_for_is_refused_by_name() -> None:
    case = wan()
    set_block_sparse_attention(case.model, tile=TILE, window=(1, 1, 1), layers=["blocks.0.attn2"])
    with pytest.raises(ValueError, match="150 queries and 7 keys; leave this layer out"):
        case()


def test_choices_of_a_batch_take_what_serves_one_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elements of a batch are heads of one call, grouped queries too, so no backend sees a layout of several elements."""
    batches = []
    real = tile_attention.block_sparse_attention

    def record(q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, **options: Any) -> Any:
        batches.append((q.shape[0], layout.batch))
        return real(q, k, v, layout, **options)

    monkeypatch.setattr(tile_attention, "block_sparse_attention", record)
    q, k, v = (torch.randn(3, 60 + 9, heads, 8, requires_grad=True) for heads in (4, 2, 2))
    for text_first in (False, True):
        attention = TileAttention((3, 4, 5), tile=TILE, sparsity_ratio=0.5, text_first=text_first)
        together = attention(q, k, v)
        alone = torch.cat([attention(*(x[i : i + 1] for x in (q, k, v))) for i in range(3)])
        close(together, alone)
        weight = torch.randn_like(alone)
        grads, expected = (torch.autograd.grad(out, (q, k, v), weight) for out in (together, alone))
        for ours, theirs in zip(grads, expected):
            close(ours, theirs)
    assert set(batches) == {(1, 1)}
