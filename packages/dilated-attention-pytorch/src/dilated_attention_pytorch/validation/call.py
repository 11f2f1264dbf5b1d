"""The checks of an attention call as a whole: from the arguments of a user to a `Call`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..call import Call
from ..config import TokenDilation
from ..eager import autocast_dtype, is_plain_eager
from ..layout.cache import Pattern
from ..layout.layout import BlockLayout
from ..saved_inputs import savable, unchanged, will_be_saved
from ..sequence_plans import Given, plan_of_batch, plan_of_packed
from ..sequence_tables import serves, table_by_kernel
from ..sequences import Sequences, packed_sequences, sequences_of_batch, within_grid
from .layouts import Positions, check_layout, check_layout_heads, check_positions, check_read_positions
from .numbers import check_backend, check_is_causal, check_numbers, checked_deterministic
from .scores import check_alibi_slopes, check_attn_bias, check_block_bias, check_per_head
from .sequences import (
    check_cu_seqlens,
    check_key_padding_mask,
    check_kv_lengths,
    check_kv_starts,
    check_max_seqlen,
    check_q_offset,
    check_same_number,
    is_read_at_once,
)
from .tensors import PACKED_SHAPE, SHAPE, check_qkv, check_tensors, warn_of_order


def check_call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: BlockLayout | Pattern,
    *,
    is_causal: bool = False,
    softmax_scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    block_bias: Tensor | None = None,
    attn_bias: Tensor | None = None,
    q_offset: int | Tensor | None = None,
    kv_lengths: Tensor | None = None,
    kv_starts: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    segment_lengths: Sequence[int] | None = None,
    dilation_rates: Sequence[int] | None = None,
    dropout_p: float = 0.0,
    backend: str | None = None,
    deterministic: bool | None = None,
) -> Call:
    """The call that the arguments of `block_sparse_attention` ask for, with a dropout seed drawn.

    A pattern stands for its layout of the lengths of q and k.
    """
    check_qkv(q, k, v)
    q, k, v = as_autocast_has_them(q, k, v)
    check_tensors(q, k, v)
    check_numbers_of_call(is_causal, softmax_scale, softcap, dropout_p)
    batch, q_len, kv_len = q.shape[0], q.shape[1], k.shape[1]
    readable = is_plain_eager()
    if isinstance(layout, Pattern):
        check_layout_heads(q, k, layout.num_heads)
    else:
        check_layout(q, k, layout, is_causal, batch)
    if q_offset is not None:
        q_offset = check_q_offset(q_offset, q, batch, readable)
    given_lengths = kv_lengths
    if kv_lengths is not None:
        kv_lengths = check_kv_lengths(kv_lengths, q, k, readable)
    if kv_starts is not None:
        kv_starts = check_kv_starts(kv_starts, given_lengths, q, k, readable)
    given = Given(
        q_offset=q_offset if isinstance(q_offset, Tensor) else None,
        kv_lengths=kv_lengths,
        kv_starts=kv_starts,
    )
    sequences: Sequences | None
    if (
        readable
        and isinstance(layout, BlockLayout)
        and any(x is not None for x in given)
        and serves(given, q)
    ):
        plan = plan_of_batch(q, kv_len, is_causal, q_offset, kv_starts is not None, layout.grid)
        first, sequences = plan.first, table_by_kernel(plan, given, q.device)
        check_positions_of_batch(q_len, kv_len, layout, sequences, first, q_offset, is_causal, readable)
    else:
        first, sequences = sequences_of_batch(q, kv_len, is_causal, q_offset, kv_lengths, kv_starts)
        if isinstance(layout, BlockLayout):
            check_positions_of_batch(q_len, kv_len, layout, sequences, first, q_offset, is_causal, readable)
            sequences = None if sequences is None else within_grid(sequences, layout.grid)
    if key_padding_mask is not None:
        is_at_the_end = is_causal and q_len != kv_len and q_offset is None
        key_padding_mask = check_key_padding_mask(key_padding_mask, q, k, is_at_the_end, readable)
    if attn_bias is not None:
        attn_bias = check_attn_bias(attn_bias, q, k, backend)
    call = finished_call(
        q, k, v, layout, is_causal=is_causal, softmax_scale=softmax_scale, softcap=softcap, alibi_slopes=alibi_slopes,
        sinks=sinks, block_bias=block_bias, segment_lengths=segment_lengths, dilation_rates=dilation_rates,
        dropout_p=dropout_p, n_sequences=batch, axis="batch", q_offset=first, sequences=sequences,
        key_padding_mask=key_padding_mask, attn_bias=attn_bias, deterministic=checked_deterministic(deterministic),
    )  # fmt: skip
    warn_of_order(q, k, layout)
    check_backend(backend)
    return call


def check_positions_of_batch(
    q_len: int,
    kv_len: int,
    layout: BlockLayout,
    sequences: Sequences | None,
    first: int,
    q_offset: int | Tensor | None,
    is_causal: bool,
    readable: bool,
) -> None:
    """Raise if positions that are known without waiting for a GPU leave the layout."""
    given = None if isinstance(q_offset, Tensor) else q_offset
    end = first + q_len
    if sequences is None:
        check_positions(layout, Positions(first, end, kv_len, given), is_causal)
    elif readable and is_read_at_once(sequences.table):
        check_read_positions(layout, sequences, given, is_causal)
    elif sequences.only_lengths:
        check_positions(layout, Positions(first, end, None, given), is_causal)


def check_packed_call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: BlockLayout,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    is_causal: bool = False,
    softmax_scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    block_bias: Tensor | None = None,
    q_offset: int | Tensor | None = None,
    segment_lengths: Sequence[int] | None = None,
    dilation_rates: Sequence[int] | None = None,
    dropout_p: float = 0.0,
    backend: str | None = None,
    deterministic: bool | None = None,
) -> Call:
    """The call that the arguments of `block_sparse_attention_varlen` ask for, as a batch of one."""
    check_qkv(q, k, v, PACKED_SHAPE)
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.dim() != 3:
            raise ValueError(
                f"{name} must be {PACKED_SHAPE}, got shape {tuple(tensor.shape)}; a batch {SHAPE} is for "
                "block_sparse_attention"
            )
    q, k, v = as_autocast_has_them(q[None], k[None], v[None])
    check_tensors(q, k, v)
    check_numbers_of_call(is_causal, softmax_scale, softcap, dropout_p)
    readable = is_plain_eager()
    max_q, max_k = (
        check_max_seqlen("max_seqlen_q", max_seqlen_q),
        check_max_seqlen("max_seqlen_k", max_seqlen_k),
    )
    of_q = check_cu_seqlens("cu_seqlens_q", cu_seqlens_q, q, max_q, readable)
    of_k = check_cu_seqlens("cu_seqlens_k", cu_seqlens_k, k, max_k, readable)
    check_same_number(of_q, of_k)
    n_sequences = of_q.shape[0] - 1
    check_layout(q, k, layout, is_causal, n_sequences)
    if q_offset is not None:
        q_offset = check_q_offset(q_offset, q, n_sequences, readable)
    tokens = q.shape[1], k.shape[1]
    given = Given(of_q, of_k, q_offset if isinstance(q_offset, Tensor) else None)
    if readable and serves(given, q):
        plan = plan_of_packed(n_sequences, tokens, (max_q, max_k), is_causal, q_offset, layout.grid)
        sequences = table_by_kernel(plan, given, q.device)
        check_positions_of_packed(layout, sequences, q_offset, is_causal, readable)
    else:
        if not (readable and is_read_at_once(of_q) and is_read_at_once(of_k)):  # else they were checked
            # self-attention: one tensor is made into a table with fewer launches
            is_one = not torch.compiler.is_compiling() and of_k is of_q and tokens[0] == tokens[1]
            of_q = of_q.clamp(0, tokens[0])
            of_k = of_q if is_one else of_k.clamp(0, tokens[1])
        sequences = packed_sequences(of_q, of_k, max_q, max_k, is_causal, q_offset)
        check_positions_of_packed(layout, sequences, q_offset, is_causal, readable)
        sequences = within_grid(sequences, layout.grid)
    call = finished_call(
        q, k, v, layout, is_causal=is_causal, softmax_scale=softmax_scale, softcap=softcap, alibi_slopes=alibi_slopes,
        sinks=sinks, block_bias=block_bias, segment_lengths=segment_lengths, dilation_rates=dilation_rates,
        dropout_p=dropout_p, n_sequences=n_sequences, axis="sequences", sequences=sequences,
        deterministic=checked_deterministic(deterministic),
    )  # fmt: skip
    check_backend(backend)
    return call


def check_positions_of_packed(
    layout: BlockLayout,
    sequences: Sequences,
    q_offset: int | Tensor | None,
    is_causal: bool,
    readable: bool,
) -> None:
    """Raise if positions that are known without waiting for a GPU leave the layout."""
    given = None if isinstance(q_offset, Tensor) else q_offset
    if readable and is_read_at_once(sequences.table):
        check_read_positions(layout, sequences, given, is_causal)
        return
    kv_end = sequences.max_kv_len
    if isinstance(q_offset, Tensor):
        its = Positions(None, None, kv_end)
    elif q_offset is not None:
        its = Positions(q_offset, q_offset + sequences.max_q_len, kv_end, given)
    elif is_causal:  # the last query of each sequence sits at its last key
        its = Positions(None, kv_end, kv_end)
    else:
        its = Positions(0, sequences.max_q_len, kv_end)
    check_positions(layout, its, is_causal)


def as_autocast_has_them(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v in the type of autocast, where that is on."""
    dtype = autocast_dtype(q)
    if dtype is not None:
        q, k, v = (x if x.dtype == torch.float64 else x.to(dtype) for x in (q, k, v))
    return q, k, v


def check_numbers_of_call(
    is_causal: object, softmax_scale: object, softcap: object, dropout_p: object
) -> None:
    if not torch.compiler.is_compiling():  # a tracer has symbols for numbers
        check_numbers(is_causal, softmax_scale, softcap, dropout_p)


def finished_call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: BlockLayout | Pattern,
    *,
    is_causal: bool,
    softmax_scale: float | None,
    softcap: float | None,
    alibi_slopes: Tensor | None,
    sinks: Tensor | None,
    block_bias: Tensor | None,
    segment_lengths: Sequence[int] | None,
    dilation_rates: Sequence[int] | None,
    dropout_p: float,
    n_sequences: int,
    axis: str,
    sequences: Sequences | None,
    q_offset: int = 0,
    key_padding_mask: Tensor | None = None,
    attn_bias: Tensor | None = None,
    deterministic: bool = True,
) -> Call:
    """The call of checked q, k and v with what batches and packed sequences have in common; `axis` names the sequences."""
    if block_bias is not None:
        assert isinstance(layout, BlockLayout)  # no caller has a bias for a pattern
        block_bias = check_block_bias(block_bias, q, layout, n_sequences, axis)
    if sinks is not None:
        sinks = check_per_head("sinks", sinks, q)
    if alibi_slopes is not None:
        alibi_slopes = check_alibi_slopes(alibi_slopes, q)
    is_saved = will_be_saved(q, k, v, block_bias, sinks)
    return Call(
        q=q,
        k=k,
        v=v,
        block_bias=savable(block_bias, is_saved),
        sinks=savable(sinks, is_saved),
        alibi_slopes=unchanged(alibi_slopes, is_saved),
        seed=torch.randint(2**62, (1,), device=q.device, dtype=torch.int64) if dropout_p > 0.0 else None,
        # numbers too: torch.compile of torch 2.7 knows no bool() of a symbol
        is_causal=is_causal if isinstance(is_causal, bool) else is_causal != 0,
        softmax_scale=float(1.0 / math.sqrt(q.shape[3]) if softmax_scale is None else softmax_scale),
        softcap=0.0 if softcap is None else float(softcap),
        dropout_p=float(dropout_p),
        dilation=TokenDilation.from_user(segment_lengths, dilation_rates, layout.block_size),
        q_offset=q_offset,
        sequences=sequences,
        key_padding_mask=unchanged(key_padding_mask, is_saved),
        attn_bias=savable(attn_bias, is_saved),
        deterministic=deterministic,
    )


def refusal(error: Exception, q: Any, k: Any, v: Any, is_causal: Any) -> Exception:
    """The exception for a call whose layout could not be built: what is wrong with its arguments, else the error itself."""
    try:
        check_qkv(q, k, v)
        check_tensors(q, k, v)
        check_is_causal(is_causal)
    except (TypeError, ValueError) as found:
        return found
    return error
