"""What transformers calls once per forward and kind of layer, in place of building a mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function
from transformers.utils.import_utils import is_tracing

from ... import _torch_internals
from ...backends.decode_problem import MAX_QUERIES
from .key_ranges import KeyRanges, Kind

CAUSAL, BIDIRECTIONAL = "causal_mask_function", "bidirectional_mask_function"
AND, REMAPPED = "and_masks.<locals>.and_mask", "remap_positions_for_packed_sequence.<locals>.inner_mask"
WINDOWS = (
    "sliding_window_overlay.<locals>.inner_mask",
    "sliding_window_bidirectional_overlay.<locals>.inner_mask",
)
PACKED = "packed_sequence_mask_function.<locals>.inner_mask"


class Facts(NamedTuple):
    """What a mask function of transformers says."""

    causal: bool
    windowed: bool
    packed: Tensor | None
    """(batch, q_len), the number of the sequence of every token."""


def make_mask_function(name: str, look_for_padding: bool) -> Callable[..., Tensor | None]:
    """The function for `AttentionMaskInterface`; see `register_block_sparse_attention` for the arguments."""

    def key_ranges(
        batch_size: int,
        q_length: int,
        kv_length: int,
        q_offset: int | Tensor = 0,
        kv_offset: int = 0,
        *,
        mask_function: Callable[..., Any],
        attention_mask: Tensor | None = None,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> Tensor | None:
        facts = facts_of(name, mask_function, options)
        kind = Kind(facts.causal, facts.windowed)
        if facts.packed is not None:
            return packed_ranges(kind, facts.packed).tensor
        is_traced = is_tracing(attention_mask)
        may_be_packed = facts.causal and attention_mask is None and type(q_offset) is int and q_offset == 0
        if is_traced and may_be_packed and q_length == kv_length:  # transformers reads no position_ids here
            none = torch.zeros(batch_size, dtype=torch.int32, device=device)
            return KeyRanges.of_batch(kind._replace(unread=True), none, none).tensor
        if attention_mask is not None:
            if kv_offset or attention_mask.shape[1] > kv_length:
                attention_mask = attention_mask[:, kv_offset : kv_offset + kv_length]
            if look_for_padding and q_length > MAX_QUERIES and not is_traced and bool(attention_mask.all()):
                attention_mask = None
        if not facts.causal:
            if attention_mask is None:
                return None
            return KeyRanges.of_batch(kind, *ends_of_tokens(name, attention_mask)).tensor
        end = q_offset + q_length - kv_offset
        if attention_mask is None and isinstance(end, int):
            if end == kv_length and (q_length > MAX_QUERIES or q_length == kv_length):
                return None
            kind = kind._replace(is_prefix=end == q_length)
        ends = torch.empty(batch_size, dtype=torch.int32, device=device)
        ends = ends.fill_(end) if isinstance(end, int) else ends.copy_(end)
        if attention_mask is None:
            starts = torch.zeros_like(ends)
        elif q_length == 1:
            starts = start_before_step(name, attention_mask)
        else:
            starts = torch.minimum(ends_of_tokens(name, attention_mask)[0], ends)
        return KeyRanges.of_batch(kind, starts, ends).tensor

    return key_ranges


def ends_of_tokens(name: str, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Where the tokens of a padding mask begin and end, int32 (batch,) each; both 0 where there are none.

    Args:
        name: of the attention.
        attention_mask: bool (batch, length), True at tokens.
    """
    length = attention_mask.shape[1]
    place = torch.arange(length, dtype=torch.int32, device=attention_mask.device)
    start = torch.where(attention_mask, place, length).amin(1)
    end = torch.where(attention_mask, place + 1, 0).amax(1)
    start = torch.minimum(start, end)
    assert_no_gap(name, attention_mask, end - start == attention_mask.sum(1))
    return start, end


def start_before_step(name: str, attention_mask: Tensor) -> Tensor:
    """Where the tokens begin, int32 (batch,), of a step of one token, the last of the mask: with half the launches.

    What a query sees that is padding itself does not matter.
    """
    start = attention_mask.view(torch.uint8).argmax(1)
    is_one_run = (attention_mask.sum(1) + start == attention_mask.shape[1]) | ~attention_mask[:, -1]
    assert_no_gap(name, attention_mask, is_one_run)
    return start.int()


def assert_no_gap(name: str, attention_mask: Tensor, is_one_run: Tensor) -> None:
    """Fail unless the tokens of each sequence are one run; on a GPU it fails there, and the host does not wait."""
    message = (
        f"attention_mask has padding between tokens, and {name} serves it before and behind them alone: pad on one side, or "
        "use attn_implementation='sdpa'"
    )
    if attention_mask.is_cpu and not is_tracing(attention_mask):
        if not is_one_run.all():
            raise ValueError(message)
    else:
        _torch_internals.assert_async(is_one_run.all(), message)


def packed_ranges(kind: Kind, packed: Tensor) -> KeyRanges:
    """The ranges of packed sequences, of the number of the sequence of every token, (batch, q_len)."""
    is_first = torch.ones_like(packed, dtype=torch.bool)
    is_first[:, 1:] = packed[:, 1:] != packed[:, :-1]
    firsts = is_first.flatten().nonzero()[:, 0]  # waits for a GPU, as transformers did to find them
    cu_seqlens = torch.cat([firsts, firsts.new_tensor([packed.numel()])])
    return KeyRanges.of_packed(kind._replace(packed=True), cu_seqlens, int(cu_seqlens.diff().max()))


# ---- reading the mask functions of transformers


def facts_of(name: str, mask_function: Callable[..., Any], options: dict[str, Any]) -> Facts:
    """What a mask function says, which is a composition of closures."""
    if options.get("use_vmap"):
        raise NotImplementedError(refusal(name, "a mask of its own (or_mask_function or and_mask_function)"))
    if mask_function is causal_mask_function:
        return Facts(True, False, None)
    if torch.compiler.is_compiling():  # Dynamo opens no closures
        return traced_facts(name, mask_function, options)
    parts: dict[str, Any] = {}
    collect(name, mask_function, parts)
    return Facts(BIDIRECTIONAL not in parts, any(window in parts for window in WINDOWS), parts.get(PACKED))


def collect(name: str, mask_function: Callable[..., Any], parts: dict[str, Any]) -> None:
    """The parts of a mask function by their names, with what a closure has besides functions."""
    part = mask_function.__qualname__
    inside = [cell.cell_contents for cell in mask_function.__closure__ or ()]
    if part == AND:
        for each in inside[0]:
            collect(name, each, parts)
    elif part == REMAPPED:  # positions within the sequences
        for each in inside:
            if not isinstance(each, Tensor):
                collect(name, each, parts)
    elif part in (CAUSAL, BIDIRECTIONAL, PACKED, *WINDOWS):
        parts[part] = inside[0] if inside else None
    else:
        raise NotImplementedError(refusal(name, f"the mask {part.split('.')[0]}"))


def traced_facts(name: str, mask_function: Callable[..., Any], options: dict[str, Any]) -> Facts:
    """`facts_of` in compiled code, from the name of the outermost function and what comes with it."""
    width, config = options.get("local_size"), options.get("config")
    causal = mask_function is not bidirectional_mask_function and "allow_is_bidirectional_skip" not in options
    is_plain = mask_function is causal_mask_function or mask_function is bidirectional_mask_function
    if not is_plain and mask_function.__name__ != "and_mask":
        raise NotImplementedError(refusal(name, "a mask that is not read in a compiled model"))
    if width is not None and width != getattr(config, "sliding_window", None):
        raise NotImplementedError(refusal(name, "the mask chunked_overlay"))
    return Facts(causal, width is not None, None)


def refusal(name: str, what: str) -> str:
    """The message for a model whose mask is not served."""
    return (
        f"{name} serves causal and bidirectional masks, sliding windows, padding and packed sequences, but the model asks for "
        f"{what}; use attn_implementation='sdpa'"
    )
