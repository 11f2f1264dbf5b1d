"""LayerCall: what a layer asks for, read from what transformers passes to an attention function."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ... import _torch_internals
from ...backends.decode_problem import MAX_QUERIES
from .key_ranges import KeyRanges

# What transformers passes to its attention functions and this one does not serve, and why.
REFUSED = {
    "position_bias": "the model adds a position_bias to its scores, as T5 does",
    "output_attentions": "output_attentions=True asks for weights, which are not computed",
    "block_table": "continuous batching keeps caches of its own",
    "read_index": "continuous batching keeps caches of its own",
}


class Packed(NamedTuple):
    """Sequences one behind the other, over all batch elements."""

    cu_seqlens_q: Tensor
    """int32 (sequences + 1,), where the queries of each begin."""
    cu_seqlens_k: Tensor
    longest_q: int
    longest_k: int


class LayerCall(NamedTuple):
    """The arguments of a layer."""

    module: nn.Module
    query: Tensor
    """(batch, num_heads, q_len, head_dim), as in transformers."""
    key: Tensor
    """(batch, num_kv_heads, kv_len, head_dim)."""
    value: Tensor
    mask: Tensor | None
    """A mask of the user's, over q_len and kv_len: bool, True where seen, or added to the scores."""
    ranges: KeyRanges | None
    packed: Packed | None
    causal: bool
    is_cross: bool
    sliding_window: int | None
    dropout: float
    scaling: float | None
    softcap: float | None
    sinks: Tensor | None

    @property
    def q_len(self) -> int:
        return self.query.shape[2]

    @property
    def kv_len(self) -> int:
        return self.key.shape[2]

    @property
    def can_decode(self) -> bool:
        """Whether `block_sparse_decode` serves the queries."""
        inputs = (self.query, self.key, self.value, self.sinks)
        if (
            self.q_len > MAX_QUERIES
            or self.dropout
            or not self.query.dtype == self.key.dtype == self.value.dtype
        ):
            return False
        return not torch.is_grad_enabled() or not any(x is not None and x.requires_grad for x in inputs)


def layer_call(
    name: str,
    module: nn.Module,
    states: tuple[Tensor, Tensor, Tensor],
    attention_mask: Tensor | None,
    is_causal: bool | None,
    options: dict[str, Any],
    others: dict[str, Any],
) -> LayerCall:
    """The call of a layer.

    Args:
        name: of the attention, for messages.
        module: the layer's attention module.
        states: query, key and value.
        attention_mask: what the mask function returned, or a mask of the user's.
        is_causal: what the layer says; None: what its module says.
        options: the fields of a LayerCall that are passed on as they are.
        others: what else transformers passes.
    """
    why = why_refused(others)
    if why is not None:
        raise NotImplementedError(
            f"{name} does not serve {type(module).__name__}: {why}; use attn_implementation='eager'"
        )
    query, key, value = states
    ranges = KeyRanges.read(attention_mask)
    mask = attention_mask if ranges is None else None
    if ranges is None:
        causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    else:
        causal = ranges.kind.causal
        check_window(name, module, ranges, options["sliding_window"])
    packed = packed_sequences(ranges, query, key, others)
    if ranges is not None and ranges.kind.unread:
        if packed is None:
            check_positions(name, others.get("position_ids"))
        ranges = None
    if ranges is not None and ranges.kind.is_prefix:  # keys of a static cache that are not written yet
        key, value, ranges = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]], None
    crosses = packed is None and is_cross(module, causal, query.shape[2], key.shape[2])
    return LayerCall(
        module, query, key, value, mask, ranges, packed, causal and not crosses, crosses, **options
    )


def why_refused(others: dict[str, Any]) -> str | None:
    """Why what transformers passes besides is not served; None if it is."""
    asked = (
        why for name, why in REFUSED.items() if others.get(name) is not None and others[name] is not False
    )
    return next(asked, None)


def check_window(name: str, module: nn.Module, ranges: KeyRanges, sliding_window: int | None) -> None:
    """Raise where the mask of a layer and the layer disagree about a sliding window."""
    if ranges.kind.windowed != (sliding_window is not None):
        its = "a sliding window" if ranges.kind.windowed else "no sliding window"
        raise NotImplementedError(
            f"{name} does not serve {type(module).__name__}: its mask has {its}, but it passes sliding_window="
            f"{sliding_window}; use attn_implementation='sdpa'"
        )


def packed_sequences(
    ranges: KeyRanges | None, query: Tensor, key: Tensor, others: dict[str, Any]
) -> Packed | None:
    """The packed sequences of a call: what a collator passed to the model, else what its position_ids said."""
    of_q, of_k = others.get("cu_seq_lens_q"), others.get("cu_seq_lens_k")
    if of_q is not None:
        of_k = of_q if of_k is None else of_k
        longest_q, longest_k = others.get("max_length_q"), others.get("max_length_k")
        return Packed(of_q, of_k, longest_q or query.shape[2], longest_k or key.shape[2])
    if ranges is None or not ranges.kind.packed:
        return None
    return Packed(ranges.cu_seqlens, ranges.cu_seqlens, ranges.longest, ranges.longest)


def check_positions(name: str, position_ids: Tensor | None) -> None:
    """Fail on the device, without waiting for it, if the position_ids of a compiled model are those of packed sequences."""
    if position_ids is not None:
        is_one = (position_ids.diff(dim=-1) == 1).all()
        _torch_internals.assert_async(
            is_one,
            f"{name} cannot read packed position_ids in a compiled model: pass cu_seq_lens_q, cu_seq_lens_k, max_length_q and "
            "max_length_k too (DataCollatorWithFlattening(return_flash_attn_kwargs=True))",
        )


def is_cross(module: nn.Module, causal: bool, q_len: int, kv_len: int) -> bool:
    """Whether a module attends to the states of another sequence; models have no common name for it."""
    attributes = module.__dict__  # a module takes long to say that it has no such attribute
    if attributes.get("is_cross_attention", False) or "Cross" in type(module).__name__:
        return True
    return not causal and (q_len != kv_len or bool(attributes.get("is_decoder", False)))
