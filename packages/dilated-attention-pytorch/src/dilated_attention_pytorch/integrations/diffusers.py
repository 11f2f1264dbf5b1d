"""Block-sparse attention for the transformers of diffusers: a processor around a model's own, with the same projections,
normalisation and rotary embeddings."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from .. import values
from .tile_attention import TileAttention

try:
    import diffusers.models.attention_dispatch as attention_dispatch  # noqa: F401
except ImportError as error:
    raise ImportError(
        "dilated_attention_pytorch.integrations.diffusers needs diffusers 0.36 or newer: "
        "pip install 'diffusers>=0.36'"
    ) from error

__all__ = ["BlockSparseAttnProcessor", "TileAttention", "restore_attention", "set_block_sparse_attention"]

Shape = tuple[int, int, int]


class Known(NamedTuple):
    """What is known of a model's class."""

    grid: Callable[[Any, dict[str, Any]], Shape]
    """Tokens of the video, from the arguments of the model's forward."""
    text_first: bool | None
    """Where its joint attention has the text; None where the self-attention has no text."""


# What a processor calls for its attention: the dispatcher of diffusers, or PyTorch's function by its usual module name.
DISPATCHER, SDPA = "dispatch_attention_fn", "scaled_dot_product_attention"


def with_attention(processor: Any, dispatch: Callable[..., Tensor], sdpa: Callable[..., Tensor]) -> Any:
    """The function of a processor's call, with these two for its attention; ValueError where it calls neither."""
    call = type(processor).__call__
    names = getattr(getattr(call, "__code__", None), "co_names", ())
    if DISPATCHER not in names and SDPA not in names:
        raise ValueError(
            f"processor must call {DISPATCHER} or {SDPA} itself, {type(processor).__name__} does not; leave this layer out "
            "(layers=...)"
        )
    functional = types.ModuleType("functional")
    functional.__dict__.update({**vars(nn.functional), SDPA: sdpa})
    names_of_module = {
        name: functional if value is nn.functional else value for name, value in call.__globals__.items()
    }
    names_of_module.update({name: f for name, f in ((DISPATCHER, dispatch), (SDPA, sdpa)) if name in names})
    del names_of_module["__name__"]  # by it torch.compile would find the names of the module itself
    made = types.FunctionType(
        call.__code__, names_of_module, call.__name__, call.__defaults__, call.__closure__
    )
    made.__kwdefaults__ = call.__kwdefaults__
    return made


class BlockSparseAttnProcessor:
    """An attention processor of diffusers: that of the model, with `TileAttention` where it computes dense attention.

    Projections, normalisation and rotary embeddings are those of `processor`, on the tokens in their own order.

    Args:
        processor: the processor of the layer, ``layer.get_processor()``. The attention backend that is set for it has no effect.
        attention: which tokens see one another; several layers may share it.

    Raises:
        ValueError: the processor holds parameters, is set up for context parallelism, or computes its attention another way.
        TypeError: an argument is something else.

    Examples:
        >>> from diffusers import WanTransformer3DModel
        >>> model = WanTransformer3DModel(
        ...     num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=32,
        ...     ffn_dim=32, num_layers=1,
        ... )
        >>> layer = model.blocks[0].attn1
        >>> attention = TileAttention(grid=(4, 8, 8), window=(1, 1, 1))
        >>> layer.set_processor(BlockSparseAttnProcessor(layer.get_processor(), attention))
    """

    processor: Any
    attention: TileAttention

    def __new__(cls, processor: Any, attention: TileAttention) -> BlockSparseAttnProcessor:
        # modules of diffusers pass on what the signature of their processor names
        return object.__new__(class_like(type(processor).__call__))

    def __init__(self, processor: Any, attention: TileAttention) -> None:
        if not callable(processor) or isinstance(processor, (type, BlockSparseAttnProcessor)):
            raise TypeError(
                f"processor must be the attention processor of a layer of diffusers, got {values.shown(processor)}; use "
                "layer.get_processor()"
            )
        if not isinstance(attention, TileAttention):
            raise TypeError(f"attention must be a TileAttention, got {values.shown(attention)}")
        if isinstance(processor, nn.Module):
            raise ValueError(
                f"processor must hold no parameters, got {type(processor).__name__}; unload its adapter first"
            )
        if getattr(processor, "_parallel_config", None) is not None:
            raise ValueError(
                f"processor must not be set up for context parallelism, got {type(processor).__name__}; every rank has "
                "only part of the video there"
            )
        self.processor, self.attention = processor, attention
        self._call_of_processor = with_attention(processor, self._dispatch, self._attend)

    def __repr__(self) -> str:
        return f"BlockSparseAttnProcessor({type(self.processor).__name__}, {self.attention!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return BlockSparseAttnProcessor, (self.processor, self.attention)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the processor returns, with block-sparse attention."""
        return self._call_of_processor(self.processor, *args, **kwargs)

    def _dispatch(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        attention_kwargs: dict[str, Any] | None = None,
        **backend: Any,
    ) -> Tensor:
        """In place of the dispatcher of diffusers: tensors (batch, seq_len, heads, head_dim)."""
        if is_causal:
            raise ValueError(
                "is_causal=True does not fit tiles, which have no order in time; leave this layer out (layers=...)"
            )
        if attn_mask is not None and attn_mask.dim() == 2 and attn_mask.shape == (key.shape[0], key.shape[1]):
            attn_mask = attn_mask[:, None, None]  # of keys, as the dispatcher reads it
        return self.attention(
            query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, softmax_scale=scale
        )

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """In place of scaled_dot_product_attention: tensors (batch, heads, seq_len, head_dim)."""
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        return self._dispatch(q, k, v, *args, **kwargs).transpose(1, 2)


@functools.lru_cache(maxsize=64)
def class_like(call: Hashable) -> type[BlockSparseAttnProcessor]:
    """The subclass whose call has the signature of this function."""
    stock: Any = call

    @functools.wraps(stock)
    def __call__(self: BlockSparseAttnProcessor, *args: Any, **kwargs: Any) -> Any:
        return BlockSparseAttnProcessor.__call__(self, *args, **kwargs)

    return type("BlockSparseAttnProcessor", (BlockSparseAttnProcessor,), {"__call__": __call__})


# ---- models


def of_latents(model: Any, given: dict[str, Any], axes: Sequence[int] = (2, 3, 4)) -> Shape:
    """Tokens of latents (batch, channels, frames, height, width), or with other `axes`, cut into patches."""
    config, shape = model.config, given["hidden_states"].shape
    patch = config.patch_size
    if isinstance(patch, int):
        patch = (getattr(config, "patch_size_t", None) or 1, patch, patch)
    frames, height, width = (shape[axis] // size for axis, size in zip(axes, patch))
    return frames, height, width


def of_frames_first(model: Any, given: dict[str, Any]) -> Shape:
    """Tokens of latents (batch, frames, channels, height, width)."""
    return of_latents(model, given, (1, 3, 4))


def of_numbers(model: Any, given: dict[str, Any]) -> Shape:
    """Tokens as the model is told them."""
    return given["num_frames"], given["height"], given["width"]


KNOWN = {
    "WanTransformer3DModel": Known(of_latents, None),
    "SkyReelsV2Transformer3DModel": Known(of_latents, None),
    "HunyuanVideoTransformer3DModel": Known(of_latents, False),
    "CogVideoXTransformer3DModel": Known(of_frames_first, True),
    "LTXVideoTransformer3DModel": Known(of_numbers, None),
}


class ReadGrid:
    """A forward hook of a model: the grid of the attention is that of the latents."""

    def __init__(self, attention: TileAttention, known: Known, names: tuple[str, ...]) -> None:
        self.attention, self.known, self.names = attention, known, names

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.attention.grid = self.known.grid(model, {**dict(zip(self.names, args)), **kwargs})


def set_block_sparse_attention(
    model: nn.Module,
    *,
    tile: Sequence[int] = (4, 4, 4),
    window: Sequence[int] | Sequence[Sequence[int]] | None = None,
    sparsity_ratio: float | None = None,
    top_p: float | None = None,
    block_size: int | None = None,
    grid: Sequence[int] | None = None,
    text_first: bool | None = None,
    layers: Iterable[str] | None = None,
    backend: str | None = None,
    deterministic: bool | None = None,
) -> list[str]:
    """Make the self-attentions of a video transformer of diffusers block-sparse; cross attention stays dense.

    The model is changed in place; its weights stay. `restore_attention` undoes it. Gradient checkpointing,
    ``model.compile_repeated_blocks(fullgraph=True)`` and ``torch.compile(model)`` work; a graph is for one grid.

    Args:
        model: a transformer of diffusers, e.g. ``pipe.transformer``. Of `WanTransformer3DModel`, `SkyReelsV2Transformer3DModel`,
            `HunyuanVideoTransformer3DModel`, `CogVideoXTransformer3DModel` and `LTXVideoTransformer3DModel` the grid and the place
            of the text are known; others need `grid`, and `text_first` if their attention is joint.
        tile: see `TileAttention`, as the other arguments that are not here.
        grid: tokens of the video along (frames, height, width), after the model has cut it into patches. Default: read from
            the latents of every call.
        layers: names of attention layers, as in ``model.attn_processors`` without ``.processor``. Default: the
            self-attentions in the lists of blocks of the model.

    Returns:
        The names of the layers that are block-sparse now.

    Raises:
        ValueError: an argument is out of its range, `layers` has an unknown name, or no layer is found.
        TypeError: the model has no attention processors.
    """
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    found = attentions(model)
    names = default_layers(found) if layers is None else list(layers)
    missing = [name for name in names if name not in found]
    if missing or not names:
        raise ValueError(
            f"layers must name attention layers of the model, got {missing or names}; it has {sorted(found)}"
        )
    known = KNOWN.get(type(model).__name__)
    if known is not None and text_first is None:
        text_first = known.text_first
    attention = TileAttention(
        grid, tile=tile, window=window, sparsity_ratio=sparsity_ratio, top_p=top_p, block_size=block_size,
        text_first=text_first, backend=backend, deterministic=deterministic,
    )  # fmt: skip
    if grid is None and known is None:
        raise ValueError(
            f"grid must be given for {type(model).__name__}, got None; pass grid=(frames, height, width), the tokens of the "
            f"video after the model has cut it into patches. Known by themselves are {sorted(KNOWN)}"
        )
    made = {name: BlockSparseAttnProcessor(stock_of(found[name]), attention) for name in names}
    restore_attention(model)
    for name, processor in made.items():
        found[name].set_processor(processor)
    if grid is None and known is not None:
        hook = ReadGrid(attention, known, tuple(inspect.signature(type(model).forward).parameters)[1:])
        model.register_forward_pre_hook(hook, with_kwargs=True, prepend=True)
    return names


def restore_attention(model: nn.Module) -> list[str]:
    """Give the attention layers their own processors again.

    Returns:
        The names of the layers that were block-sparse.
    """
    model = getattr(model, "_orig_mod", model)
    found = attentions(model)
    names = [
        name for name, layer in found.items() if isinstance(layer.get_processor(), BlockSparseAttnProcessor)
    ]
    for name in names:
        found[name].set_processor(stock_of(found[name]))
    for key, hook in list(model._forward_pre_hooks.items()):
        if isinstance(hook, ReadGrid):
            del model._forward_pre_hooks[key]
            model._forward_pre_hooks_with_kwargs.pop(key, None)
    return names


def attentions(model: Any) -> dict[str, Any]:
    """The layers of a model that have a processor, by name."""
    found = {
        name: layer
        for name, layer in model.named_modules()
        if hasattr(layer, "get_processor") and hasattr(layer, "set_processor")
    }
    if not found:
        raise TypeError(
            f"model must be a transformer of diffusers with attention processors, got {type(model).__name__}; of a pipeline "
            "pass pipe.transformer"
        )
    return found


def default_layers(found: dict[str, Any]) -> list[str]:
    """The self-attentions of the blocks in the lists of the model itself, ``blocks.0.attn1``."""
    return [
        name
        for name, layer in found.items()
        if name.split(".")[1:2] != [] and name.split(".")[1].isdigit()
        if not getattr(layer, "is_cross_attention", False) and not name.endswith(".attn2")
    ]


def stock_of(layer: Any) -> Any:
    """The processor of the layer that is not ours."""
    processor = layer.get_processor()
    return processor.processor if isinstance(processor, BlockSparseAttnProcessor) else processor
