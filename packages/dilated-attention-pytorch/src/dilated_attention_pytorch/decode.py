"""block_sparse_decode: a few queries at the end of a cache of keys and values."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from . import decode_ops
from ._torch_internals import labelled, profiler_flags
from .backends.decode_problem import DecodeInputs
from .decode_eager import are_plain, cached_call, key_of, run_decode
from .eager import is_plain_eager
from .layout.layout import BlockLayout
from .op_library import NAMESPACE
from .upstream.neighbours import refuse_unknown
from .validation.decode import check_decode
from .validation.numbers import check_backend, check_flag

LABEL = f"{NAMESPACE}::decode"  # in a profile, as the operator


@overload
def block_sparse_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    layout: BlockLayout,
    cache_lengths: Tensor,
    block_table: Tensor | None = ...,
    *,
    softmax_scale: float | None = ...,
    softcap: float | None = ...,
    alibi_slopes: Tensor | None = ...,
    sinks: Tensor | None = ...,
    kv_starts: Tensor | None = ...,
    return_lse: Literal[False] = ...,
    backend: str | None = ...,
) -> Tensor: ...


@overload
def block_sparse_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    layout: BlockLayout,
    cache_lengths: Tensor,
    block_table: Tensor | None = ...,
    *,
    softmax_scale: float | None = ...,
    softcap: float | None = ...,
    alibi_slopes: Tensor | None = ...,
    sinks: Tensor | None = ...,
    kv_starts: Tensor | None = ...,
    return_lse: Literal[True],
    backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...


def block_sparse_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    layout: BlockLayout,
    cache_lengths: Tensor,
    block_table: Tensor | None = None,
    *,
    softmax_scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    kv_starts: Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
    **unknown: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """The rows of the causal attention for the last queries of every sequence, whose keys are in a cache.

    The keys and values of the queries are in the cache already, and counted by `cache_lengths`. One layout for the longest
    length serves every step, and its rows are found from `cache_lengths` on the device: the host never waits for a GPU, and
    one CUDA graph serves all steps if `cache_lengths` (and `block_table`) are updated in place. Nothing depends on the
    values but the results, not even the memory that a call takes. There are no gradients, and autocast changes no type: it
    would copy the caches at every step.

    Query i of element b is at position ``cache_lengths[b] - q_len + i``, less ``kv_starts[b]``. A query at a negative
    position, as where ``cache_lengths[b]`` is 0, sees no key: it gets output 0 and lse -inf. So does one that is not in
    the layout. Memory behind the lengths may hold anything, NaN too.

    Args:
        q: (batch, q_len, num_heads, head_dim), float32, float16, bfloat16, or float64 on the CPU; any strides. 1 to 16
            queries.
        k_cache: (batch, max_len, num_kv_heads, head_dim) in q's dtype, any strides; num_kv_heads divides num_heads (GQA,
            MQA). With a `block_table` (num_pages, page_size, num_kv_heads, head_dim), any page_size; 64 or a multiple is
            fastest.
        v_cache: as k_cache, with v_head_dim.
        layout: over the positions of the longest sequence (``causal=True``), on q's device; heads 1, num_kv_heads or
            num_heads, batch 1 or q's. With lists for every query head the heads of a group no longer share what they read.
            Whole blocks are best: where lengths are not checked, masks inside a last block that is not whole say nothing of
            the positions behind the layout.
        cache_lengths: int32 (batch,), how many tokens of each cache are valid, 0 to max_len. On a GPU, where checking
            would wait for it, and in compiled code lengths out of range do not read outside the cache.
        block_table: int32 (batch, max_pages): token t of element b is token ``t % page_size`` of page
            ``block_table[b, t // page_size]``, as in vLLM and flash-attn. Pages behind the lengths are not read.
        softmax_scale: default ``1 / sqrt(head_dim)``.
        softcap: scores become ``softcap * tanh(score / softcap)``. Default None, as 0: no cap.
        alibi_slopes: floating (num_heads,): ``slope * (position of the query - position of the key)`` is subtracted.
        sinks: floating (num_heads,): one more logit in the denominator, which lse includes.
        kv_starts: int32 (batch,), the token of each cache at position 0, where prompts are padded on the left. Default 0.
        return_lse: also return the log of the softmax denominators, (batch, num_heads, q_len).
        backend: ``"cpu"``, ``"triton"`` or ``"reference"``; default (None or ``"auto"``): the first that serves the call.

    Returns:
        out (batch, q_len, num_heads, v_head_dim) in q's dtype; with `return_lse` (out, lse).

    Raises:
        ValueError: an argument does not fit the others, requires grad while gradients are on, or the backend cannot serve
            the call; the message says why.
        TypeError: an argument has the wrong type; the message names it and its value.

    Examples:
        >>> from dilated_attention_pytorch import BlockLayout, SparsePatternConfig, block_sparse_attention
        >>> q, k, v = (torch.randn(1, 300, 4, 32) for _ in range(3))
        >>> layout = BlockLayout.from_config(SparsePatternConfig(sparsity_ratio=0.3), q_len=300, causal=True)
        >>> full = block_sparse_attention(q, k, v, layout, is_causal=True)
        >>> lengths = torch.tensor([200], dtype=torch.int32)  # k[:, 200:] is yet to come
        >>> step = block_sparse_decode(q[:, 199:200], k, v, layout, lengths)
        >>> torch.allclose(step, full[:, 199:200], atol=1e-5)
        True
    """
    if unknown:
        refuse_unknown(unknown, "block_sparse_decode")
    inputs = DecodeInputs(q, k_cache, v_cache, cache_lengths, block_table, kv_starts, alibi_slopes, sinks)
    key = None
    if is_plain_eager() and type(layout) is BlockLayout:
        key = key_of(inputs, softmax_scale, softcap, backend)
        cached = cached_call(layout, key)
        if cached is not None and type(return_lse) is bool:
            results: Any
            if profiler_flags._is_profiler_enabled:
                results = labelled(LABEL, cached, inputs, return_lse)
            else:
                results = cached(inputs, return_lse)
            out_or_both: Tensor | tuple[Tensor, Tensor] = results if return_lse else results[0]
            return out_or_both
    if not torch.compiler.is_compiling():
        check_flag("return_lse", return_lse)
    problem = check_decode(inputs, layout, softmax_scale=softmax_scale, softcap=softcap)
    check_backend(backend)
    if is_plain_eager() and not q.is_meta and are_plain(inputs):
        out, lse = labelled(LABEL, run_decode, problem, backend, layout, key)
    else:
        out, lse = decode_ops.decode(*decode_ops.op_args(problem, backend))
    return (out, lse) if return_lse else out
