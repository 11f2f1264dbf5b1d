"""Steps of decoding: layers that ask for the same go straight to the launch that was resolved for the first of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...backends.decode_problem import MAX_QUERIES, DecodeInputs
from ...decode_eager import resolved_call
from ...eager import is_plain_eager
from ...layout.layout import BlockLayout
from .key_ranges import NOTE, Note
from .layer_call import LayerCall, why_refused


class Step(NamedTuple):
    """A step of decoding in plain eager mode."""

    note: Note
    """Of its mask, which all layers of a step share."""
    key: tuple[Any, ...]
    """All else that decides about the call of a layer."""

    def of_layer(self, name: str, is_sparse: bool) -> Step:
        """The step as a layer takes it, under the name of an attention."""
        return Step(self.note, (name, is_sparse, *self.key))

    def again(self, states: tuple[Tensor, Tensor, Tensor], sinks: Tensor | None) -> Tensor | None:
        """out of a step that was resolved; None if it was not."""
        call = self.note.steps.get(self.key)
        return None if call is None else call(inputs_of(self.note, states, sinks), False)[0]

    def keep(self, call: LayerCall, layout: BlockLayout) -> None:
        """Keep what the step was resolved to, for the layers behind this one."""
        inputs = inputs_of(self.note, (call.query, call.key, call.value), call.sinks)
        resolved = resolved_call(inputs, layout, call.scaling, call.softcap)
        if resolved is not None:
            self.note.steps[self.key] = resolved


def find_step(
    module: nn.Module,
    states: tuple[Tensor, Tensor, Tensor],
    mask: Tensor | None,
    options: dict[str, Any],
    others: dict[str, Any],
) -> Step | None:
    """The step that a layer is in; None where it is in none.

    Args:
        module: the layer's attention module.
        states: query, key and value.
        mask: what the mask function returned.
        options, others: as for `layer_call`.
    """
    note: Note | None = None if mask is None else getattr(mask, NOTE, None)
    attributes: dict[str, Any] = module.__dict__
    query, key, value = states
    if (
        note is None
        or not note.kind.causal
        or query.shape[2] > MAX_QUERIES
        or options["dropout"]
        or torch.is_grad_enabled()
        or not is_plain_eager()
        or others.get("cu_seq_lens_q") is not None
        or why_refused(others) is not None
    ):
        return None
    sinks = options["sinks"]
    key_of_layer = (
        type(module), attributes.get("is_cross_attention"), options["sliding_window"], options["scaling"], options["softcap"],
        None if sinks is None else (sinks.shape, sinks.stride(), sinks.dtype),
        query.shape, query.stride(), query.dtype, key.shape, key.stride(), key.dtype, value.shape, value.stride(), value.dtype,
    )  # fmt: skip
    return Step(note, key_of_layer)


def inputs_of(note: Note, states: tuple[Tensor, Tensor, Tensor], sinks: Tensor | None) -> DecodeInputs:
    """The tensors of a step, (batch, length, heads, head_dim)."""
    q, k, v = (x.transpose(1, 2) for x in states)
    return DecodeInputs(q, k, v, note.end, None, note.start, None, sinks)
