"""What transformers calls in place of scaled_dot_product_attention, in every layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...decode import block_sparse_decode
from ...functional import block_sparse_attention
from ...layout.cache import LAYOUTS, Pattern
from ...modules.pattern_attention import attend_to_pattern
from ...varlen import block_sparse_attention_varlen
from .dense import attend_densely
from .layer_call import LayerCall, Packed, layer_call
from .patterns import full_pattern, longest_layout, window_pattern
from .steps import find_step


@dataclass(frozen=True)
class Settings:
    """What a name was registered with; `register_block_sparse_attention` says what they mean."""

    name: str
    pattern: Pattern
    layers: frozenset[int] | Callable[[nn.Module], bool] | None
    cross_attention: bool
    deterministic: bool | None


def make_attention(settings: Settings) -> Callable[..., tuple[Tensor, None]]:
    """The function for `AttentionInterface`."""
    # dense layers with what scaled_dot_product_attention does not compute
    full = full_pattern(settings.pattern.block_size)

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        sinks = kwargs.get("sinks") if s_aux is None else s_aux
        options = {
            "sliding_window": sliding_window, "dropout": dropout, "scaling": scaling, "softcap": softcap, "sinks": sinks
        }  # fmt: skip
        states = query, key, value
        step = find_step(module, states, attention_mask, options, kwargs)
        if step is not None:
            step = step.of_layer(settings.name, settings.layers is None or is_chosen(settings, module))
            out = step.again(states, sinks)
            if out is not None:
                return out, None
        call = layer_call(settings.name, module, states, attention_mask, is_causal, options, kwargs)
        is_sparse = settings.cross_attention if call.is_cross else is_chosen(settings, module)
        if not is_sparse and softcap is None and sinks is None:
            return attend_densely(call), None
        if sliding_window is not None:
            pattern = window_pattern(full.block_size, sliding_window, call.causal)
        else:
            pattern = settings.pattern if is_sparse else full
        out = attend_blocks(settings, call, pattern)
        if step is not None and call.ranges is not None:
            step.keep(call, longest_layout(pattern, call.kv_len, query.device))
        return out, None

    return attend


def is_chosen(settings: Settings, module: nn.Module) -> bool:
    """Whether a layer of self-attention is one of `layers`."""
    layers = settings.layers
    if layers is None:
        return True
    if not isinstance(layers, frozenset):
        return bool(layers(module))
    index = getattr(module, "layer_idx", None)
    if index is None:
        raise ValueError(
            f"layers of {settings.name} are numbers, but {type(module).__name__} has no layer_idx; pass a function of the "
            "attention module as layers, or None for all"
        )
    if index not in layers and layers:
        check_numbers(settings.name, layers, getattr(module, "config", None))
    return index in layers


def check_numbers(name: str, layers: frozenset[int], config: object) -> None:
    """Raise where a model does not have the layers that are to be sparse."""
    counts = [getattr(config, f"{part}_layers", None) for part in ("num_hidden", "encoder", "decoder")]
    most = max((count for count in counts if isinstance(count, int)), default=None)
    if most is not None and max(layers) >= most:
        raise ValueError(
            f"layers of {name} must be below the {most} layers of the model, got {max(layers)}; register it with others"
        )


def attend_blocks(settings: Settings, call: LayerCall, pattern: Pattern) -> Tensor:
    """out (batch, q_len, num_heads, v_head_dim), over the blocks of a pattern."""
    q, k, v = (x.transpose(1, 2) for x in (call.query, call.key, call.value))
    scores: dict[str, Any] = {"softmax_scale": call.scaling, "softcap": call.softcap, "sinks": call.sinks}
    options = {**scores, "dropout_p": call.dropout, "deterministic": settings.deterministic}
    if call.packed is not None:
        return attend_packed(q, k, v, call.packed, pattern, is_causal=call.causal, **options)
    if call.mask is not None:
        check_mask(settings.name, call)
        options["attn_bias"] = added(call.mask, q.dtype)
    if call.ranges is None:
        return attend_pattern(q, k, v, pattern, is_causal=call.causal, **options)
    start, end = call.ranges.start, call.ranges.end
    if not call.causal:
        return attend_pattern(q, k, v, pattern, is_causal=False, kv_starts=start, kv_lengths=end, **options)
    layout = longest_layout(pattern, call.kv_len, q.device)
    if call.can_decode:
        out: Tensor = block_sparse_decode(q, k, v, layout, end, kv_starts=start, **scores)
    else:
        place = end - start - call.q_len
        out = block_sparse_attention(
            q, k, v, layout, is_causal=True, q_offset=place, kv_lengths=end, kv_starts=start, **options
        )
    return out


def attend_pattern(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, *, is_causal: bool, **options: Any
) -> Tensor:
    """out, over the layout of a pattern for these lengths, found when a compiled graph runs."""
    return attend_to_pattern(
        q, k, v, pattern, is_causal=is_causal, need_weights=False, backend=None, **options
    ).out


def attend_packed(
    q: Tensor, k: Tensor, v: Tensor, packed: Packed, pattern: Pattern, *, is_causal: bool, **options: Any
) -> Tensor:
    """`block_sparse_attention_varlen` of all tokens of a batch."""
    lengths = packed.longest_q, packed.longest_k
    if is_causal:
        layout = longest_layout(pattern, packed.longest_k, q.device)
    else:
        layout = LAYOUTS.find(pattern, *lengths, False, q.device)
    tokens = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    offsets = packed.cu_seqlens_q.int(), packed.cu_seqlens_k.int()
    out: Tensor = block_sparse_attention_varlen(
        *tokens, layout, *offsets, *lengths, is_causal=is_causal, **options
    )
    return out.view(*q.shape[:2], *out.shape[1:])


def check_mask(name: str, call: LayerCall) -> None:
    """Raise unless a mask of the user's is one over q_len and kv_len, of a layer without causality."""
    mask = call.mask
    if mask is None:
        return
    is_dense = mask.dim() == 4 and (mask.dtype == torch.bool or mask.is_floating_point())
    if call.causal or not is_dense:
        kind = "causal layers" if call.causal else "layers"
        also = "" if call.causal else ", or bool or floating point (batch, 1, q_len, kv_len)"
        raise NotImplementedError(
            f"{name} serves {kind} of a model that is given an attention_mask (batch, length){also}; "
            f"{type(call.module).__name__} got {mask.dtype} {tuple(mask.shape)}; use attn_implementation='sdpa'"
        )


def added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as what is added to the scores."""
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, float("-inf"))
    return mask.to(dtype)
