"""NestedTensors as packed sequences, and back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _torch_internals
from ..config_warnings import warn_caller


class Packed(NamedTuple):
    """The sequences of a NestedTensor one behind the other."""

    values: Tensor
    """(total, features)."""
    offsets: Tensor
    """int32 (sequences + 1,), where each begins and the last ends; on the device of the values."""
    max_len: int

    @classmethod
    def of(cls, nested: Tensor) -> Packed:
        """Without waiting for the device, except for a jagged tensor that does not know its greatest length."""
        if nested.layout == torch.jagged:
            offsets = _torch_internals.jagged_offsets(nested).to(torch.int32)
            return cls(nested.values(), offsets, _torch_internals.jagged_max_len(nested))
        sizes = _torch_internals.nested_sizes(nested)  # on the host
        lengths = sizes[:, 0]
        offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
        values = nested.contiguous().values().view(-1, int(sizes[0, 1]))
        return cls(values, offsets.to(nested.device, non_blocking=True), int(lengths.max()))

    def element_and_position(self) -> tuple[Tensor, Tensor]:
        """The sequence of every token, and its place there, int64 (total,)."""
        lengths = self.offsets.diff()
        element = torch.arange(lengths.shape[0], device=lengths.device)
        element = element.repeat_interleave(lengths, output_size=self.values.shape[0])
        position = torch.arange(self.values.shape[0], device=lengths.device) - self.offsets[element]
        return element, position

    def padded(self) -> Tensor:
        """(sequences, max_len, features), with zeros behind each sequence."""
        batch = self.offsets.shape[0] - 1
        out = self.values.new_zeros(batch, self.max_len, self.values.shape[1])
        return out.index_put(self.element_and_position(), self.values)

    def is_padding(self) -> Tensor:
        """bool (sequences, max_len), True behind each sequence."""
        position = torch.arange(self.max_len, device=self.offsets.device)
        return position >= self.offsets.diff()[:, None]


def nested_like(nested: Tensor, values: Tensor) -> Tensor:
    """A NestedTensor with the lengths of another, of values (total, features)."""
    if nested.layout == torch.jagged:
        return _torch_internals.jagged_like(nested, values)
    lengths = _torch_internals.nested_sizes(nested)[:, 0].tolist()  # on the host
    return torch.nested.as_nested_tensor(list(values.split(lengths)))


def check_nested(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    has_masks: bool,
    is_causal: bool,
    batch_first: bool,
    training: bool,
    needs_grad: bool,
) -> None:
    """Raise AssertionError, in the words of PyTorch, for a call with a NestedTensor that is not served.

    The jagged layout may have gradients and be cross attention; the older, strided one may be what TransformerEncoder makes
    of padding.
    """
    why_not = why_not_nested(query, key, value, has_masks, batch_first)
    if not why_not and is_causal and query is not key:
        why_not = "is_causal is only for self-attention"
    if not why_not and query.layout != torch.jagged:
        why_not = why_not_strided(query, key, value, training, needs_grad)
    if why_not:
        raise AssertionError(
            "MultiheadAttention does not support NestedTensor outside of its fast path. "
            f"The fast path was not hit because {why_not}"
        )


def why_not_nested(query: Tensor, key: Tensor, value: Tensor, has_masks: bool, batch_first: bool) -> str:
    """Why NestedTensors of either layout are refused; empty if they are not."""
    if query.dim() != 3:
        return (
            f"input not batched; expected query.dim() of 3 but got {query.dim()}: query should be unbatched 2D or "
            f"batched 3D tensor but received {query.dim()}-D query tensor"
        )
    are_nested = query.is_nested and key.is_nested and value.is_nested
    if not are_nested or not query.layout == key.layout == value.layout:
        return "query, key and value are not NestedTensors of one layout"
    if has_masks:
        return "supplying key_padding_mask or attn_mask is not supported with NestedTensor input"
    if not batch_first:
        return "batch_first was not True"
    is_jagged = query.layout == torch.jagged
    if is_jagged and not all(map(_torch_internals.is_packed_jagged, (query, key, value))):
        return "a jagged NestedTensor is transposed or has gaps; use its contiguous()"
    return ""


def why_not_strided(query: Tensor, key: Tensor, value: Tensor, training: bool, needs_grad: bool) -> str:
    """Why NestedTensors of the strided layout are refused; empty if they are not."""
    if query is not key or key is not value:
        return "non-self attention was used (query, key, and value are not the same Tensor); use layout=torch.jagged"
    if training:
        return "training is enabled; use layout=torch.jagged"
    if needs_grad:
        return (
            "grad is enabled and at least one of query or the input/output projection weights or biases "
            "requires_grad; use layout=torch.jagged"
        )
    return ""


def warn_of_length(max_len: int) -> None:
    """Warn that padding behind the longest sequence was forgotten, where it decides the pattern."""
    warn_caller(
        f"packed sequences have the pattern of the longest one, of {max_len} tokens; if they are padded further in "
        "training, that is another pattern: pass enable_nested_tensor=False to nn.TransformerEncoder, or set its "
        "use_nested_tensor",
        UserWarning,
    )
