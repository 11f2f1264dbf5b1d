"""Positions and lengths: q_offset, kv_lengths, kv_starts, key_padding_mask, cu_seqlens and their greatest lengths."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from .. import values
from ..values import shown
from .tensors import check_option, transposed_hint

INT_TYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
INT32 = torch.iinfo(torch.int32)


def is_read_at_once(x: Tensor) -> bool:
    """Whether reading the values waits for no GPU; in plain eager mode."""
    return type(x) is Tensor and x.device.type == "cpu"


def as_int32(x: Tensor, device: torch.device) -> Tensor:
    """The numbers as int32 on a device; those beyond int32 become its ends, instead of wrapping around."""
    if x.dtype == torch.int64:
        x = x.clamp(INT32.min, INT32.max)
    return x.to(device, torch.int32)


def check_per_element(name: str, value: Tensor, q: Tensor, batch: int) -> None:
    """Raise unless an option is an int tensor (batch,)."""
    check_option(name, value, q)
    if value.shape != (batch,) or value.dtype not in INT_TYPES:
        raise ValueError(
            f"{name} must be int with shape ({batch},), got {value.dtype} {tuple(value.shape)}; "
            + per_element_fix(name, value, batch)
        )


def per_element_fix(name: str, value: Tensor, batch: int) -> str:
    """What to pass instead of a tensor that is not int (batch,)."""
    if value.dtype == torch.bool and name != "q_offset":
        return "pass numbers of tokens, and a bool mask of keys as key_padding_mask"
    cast = "" if value.dtype in INT_TYPES else ".int()"
    if value.shape == (batch,):
        return f"use {name}{cast}"
    if value.numel() == batch:
        return f"use {name}.flatten(){cast}"
    if value.dim() == 0 or value.shape == (1,):
        return f"use {name}{cast}.expand({batch})"
    return "pass one number for every sequence"


def check_q_offset(q_offset: Any, q: Tensor, n_sequences: int, readable: bool) -> int | Tensor:
    """An int as it is, a tensor as int32 on q's device; its values are checked unless that would wait for a GPU."""
    if isinstance(q_offset, Tensor):
        check_per_element("q_offset", q_offset, q, n_sequences)
        if readable and is_read_at_once(q_offset) and n_sequences:
            for end in q_offset.aminmax():
                check_position(int(end))
        return as_int32(q_offset, q.device)
    if torch.compiler.is_compiling():  # a symbol, of any length
        number: int = q_offset
        return number
    offset = values.integer(q_offset)
    if offset is None:
        raise TypeError(
            f"q_offset must be an int, or an int tensor ({n_sequences},) with a position for every sequence, got "
            f"{shown(q_offset)}"
        )
    check_position(offset)
    return offset


def check_position(q_offset: int) -> None:
    if abs(q_offset) > values.MAX_TOKENS:
        raise ValueError(f"q_offset must be a position below 2**31, got {shown(q_offset)}")


def check_kv_lengths(kv_lengths: Tensor, q: Tensor, k: Tensor, readable: bool) -> Tensor:
    """The lengths as int32 on q's device; their values are checked unless that would wait for a GPU."""
    batch, kv_len = k.shape[:2]
    check_per_element("kv_lengths", kv_lengths, q, batch)
    if readable and is_read_at_once(kv_lengths) and batch:
        least, most = (int(x) for x in kv_lengths.aminmax())
        if least < 0 or most > kv_len:
            hint = transposed_hint(q, k, k, least >= 0 and most <= k.shape[2])
            raise ValueError(
                f"kv_lengths must be 0 to kv_len {kv_len}, got {least if least < 0 else most}"
                + (hint or f"; use kv_lengths.clamp(0, {kv_len}) if all keys beyond are meant")
            )
    return as_int32(kv_lengths, q.device)


def check_kv_starts(
    kv_starts: Tensor, kv_lengths: Tensor | None, q: Tensor, k: Tensor, readable: bool
) -> Tensor:
    """The starts as int32 on q's device; their values are checked unless that would wait for a GPU."""
    batch, kv_len = k.shape[:2]
    check_per_element("kv_starts", kv_starts, q, batch)
    if readable and is_read_at_once(kv_starts) and batch:
        least, most = (int(x) for x in kv_starts.aminmax())
        if least < 0 or most > kv_len:
            raise ValueError(
                f"kv_starts must be 0 to kv_len {kv_len}, got {least if least < 0 else most}; it is the number of keys "
                "before the first one, as of padding on the left"
            )
        if kv_lengths is not None and is_read_at_once(kv_lengths):
            for start, end in zip(kv_starts.tolist(), kv_lengths.tolist(), strict=True):
                if start > end:
                    raise ValueError(
                        f"kv_starts must be at most kv_lengths, got {start} and {end}: keys are valid from kv_starts to "
                        "kv_lengths - 1, both counted from the first key in memory"
                    )
    return as_int32(kv_starts, q.device)


# How to decode instead, where queries would sit behind the end of their sequence.
WAYS_TO_DECODE = (
    "Pass what is valid as kv_lengths, and the position of the first query of each sequence as q_offset (kv_lengths - "
    "q_len); or call once per sequence with k[:, :length]; or fill the sequences up on the left, and pass kv_starts"
)


def is_padded_at_the_end(mask: Tensor) -> bool:
    """Whether a sequence is padded on the right: keys, then nothing but padding."""
    never_ends = (mask[:, 1:] >= mask[:, :-1]).all(1)
    return bool((never_ends & mask[:, -1:].any(1) & ~mask[:, :1].all(1)).any())


def check_key_padding_mask(mask: Tensor, q: Tensor, k: Tensor, is_at_the_end: bool, readable: bool) -> Tensor:
    """The mask on q's device; its values are checked where that waits for no GPU.

    Args:
        mask: bool (batch, kv_len).
        q: (batch, q_len, num_heads, head_dim).
        k: (batch, kv_len, num_kv_heads, head_dim).
        is_at_the_end: whether the last query sits at key kv_len - 1 though the lengths differ.
        readable: whether this is plain eager mode.
    """
    check_option("key_padding_mask", mask, q)
    if mask.shape != k.shape[:2] or mask.dtype != torch.bool:
        hint = transposed_hint(q, k, k, mask.shape == (k.shape[0], k.shape[2]) and k.shape[1] != k.shape[2])
        raise ValueError(
            f"key_padding_mask must be bool with shape {tuple(k.shape[:2])}, True where padded, "
            f"got {mask.dtype} {tuple(mask.shape)}{hint}"
        )
    if is_at_the_end and readable and is_read_at_once(mask) and is_padded_at_the_end(mask):
        raise ValueError(
            f"key_padding_mask with is_causal=True and q_len {q.shape[1]} != kv_len {k.shape[1]} must not be padding at the end "
            "alone, as in a sequence here: the last query sits at key kv_len - 1. " + WAYS_TO_DECODE
        )
    return mask.to(q.device)


# ---- packed sequences


def check_max_seqlen(name: str, value: Any) -> int:
    """The greatest length as an int; a symbol of a tracer as it is."""
    if torch.compiler.is_compiling() and not isinstance(value, Tensor):
        number: int = value
        return number
    on_gpu = isinstance(value, Tensor) and value.device.type != "cpu"
    found = None if on_gpu else values.integer(value)
    if found is None:
        fix = "; keep it as a Python number, reading it would wait for the GPU" if on_gpu else ""
        raise TypeError(f"{name} must be an int, got {shown(value) if not on_gpu else 'a tensor'}{fix}")
    if not 0 <= found <= values.MAX_TOKENS:
        raise ValueError(f"{name} must be 0 to 2**31 - 1, got {shown(value)}")
    return found


def check_cu_seqlens(name: str, value: Tensor, x: Tensor, max_seqlen: int, readable: bool) -> Tensor:
    """The offsets; their values are checked unless that would wait for a GPU, and then may be anything.

    Args:
        name: cu_seqlens_q or cu_seqlens_k.
        value: int32 (sequences + 1,).
        x: (1, total, num_heads, head_dim), q or k.
        max_seqlen: no sequence is longer.
        readable: whether this is plain eager mode.
    """
    check_option(name, value, x)
    total, letter = x.shape[1], name[-1]
    if value.dtype != torch.int32 or value.dim() != 1 or value.shape[0] == 0 or value.device != x.device:
        fix = ""
        if value.dtype in INT_TYPES and value.dtype != torch.int32:
            fix = f"; use {name}.int()"
        elif value.device != x.device:
            fix = f"; use {name}.to({letter}.device)"
        raise ValueError(
            f"{name} must be int32 with shape (sequences + 1,) on {x.device}, got {value.dtype} {tuple(value.shape)} on "
            f"{value.device}{fix}"
        )
    if not (readable and is_read_at_once(value)):
        return value
    offsets = value.tolist()
    lengths = [end - start for start, end in itertools.pairwise(offsets)]
    if offsets[0] != 0 or offsets[-1] != total or min(lengths, default=0) < 0:
        raise ValueError(
            f"{name} must begin with 0, never decrease and end with the {total} tokens of {letter}, got {shown(offsets)}"
        )
    if max(lengths, default=0) > max_seqlen:
        raise ValueError(
            f"max_seqlen_{letter} must be at least the greatest length {max(lengths)} in {name}, got {max_seqlen}"
        )
    return value


def check_same_number(cu_seqlens_q: Tensor, cu_seqlens_k: Tensor) -> None:
    if cu_seqlens_q.shape != cu_seqlens_k.shape:
        raise ValueError(
            "cu_seqlens_q and cu_seqlens_k must have one shape (sequences + 1,), got "
            f"{tuple(cu_seqlens_q.shape)} and {tuple(cu_seqlens_k.shape)}; a sequence without queries or keys has length 0"
        )
