"""block_sparse_attention_varlen: the entrance of the calls of packed sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from .eager import is_plain_eager
from .eager_options import Options, kept_call, options_key
from .functional import explained, run_call
from .layout.layout import BlockLayout
from .sequence_plans import Given
from .upstream.neighbours import refuse_unknown
from .validation.call import check_packed_call
from .validation.numbers import check_flag


@overload
def block_sparse_attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: BlockLayout,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    is_causal: bool = ...,
    softmax_scale: float | None = ...,
    softcap: float | None = ...,
    alibi_slopes: Tensor | None = ...,
    sinks: Tensor | None = ...,
    block_bias: Tensor | None = ...,
    q_offset: int | Tensor | None = ...,
    segment_lengths: Sequence[int] | None = ...,
    dilation_rates: Sequence[int] | None = ...,
    dropout_p: float = ...,
    return_lse: Literal[False] = ...,
    backend: str | None = ...,
    deterministic: bool | None = ...,
) -> Tensor: ...


@overload
def block_sparse_attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: BlockLayout,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    is_causal: bool = ...,
    softmax_scale: float | None = ...,
    softcap: float | None = ...,
    alibi_slopes: Tensor | None = ...,
    sinks: Tensor | None = ...,
    block_bias: Tensor | None = ...,
    q_offset: int | Tensor | None = ...,
    segment_lengths: Sequence[int] | None = ...,
    dilation_rates: Sequence[int] | None = ...,
    dropout_p: float = ...,
    return_lse: Literal[True],
    backend: str | None = ...,
    deterministic: bool | None = ...,
) -> tuple[Tensor, Tensor]: ...


def block_sparse_attention_varlen(
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
    return_lse: bool = False,
    backend: str | None = None,
    deterministic: bool | None = None,
    **unknown: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """`block_sparse_attention` of sequences of different lengths, one behind the other in memory.

    No sequence sees another. Each begins at position 0 of the layout, so it gives what it gives alone. Arguments and
    layouts of other calls are as in `block_sparse_attention`, the first ones as in flash-attn's ``flash_attn_varlen_func``.

    Args:
        q: (total_q, num_heads, head_dim).
        k: (total_k, num_kv_heads, head_dim).
        v: (total_k, num_kv_heads, v_head_dim).
        layout: for the longest sequence or more positions; batch 1, or as many as there are sequences.
        cu_seqlens_q: int32 (sequences + 1,) on q's device, where the queries of each sequence begin; first 0, last total_q.
        cu_seqlens_k: int32 (sequences + 1,), likewise for the keys.
        max_seqlen_q: no sequence has more queries, an int; more than the greatest length costs time, nothing else.
        max_seqlen_k: likewise for the keys.
        is_causal: no query sees a key at a later position; the last query of each sequence sits at its last key.
        softmax_scale: default ``1 / sqrt(head_dim)``.
        softcap: as in `block_sparse_attention`.
        alibi_slopes: (num_heads,).
        sinks: (num_heads,).
        block_bias: broadcastable to (sequences, num_heads, ``layout.num_block_ids``); differentiable.
        q_offset: the position of the first query of each sequence, an int or int (sequences,).
        segment_lengths: token dilation by distance, with `dilation_rates`.
        dilation_rates: the rate of each of `segment_lengths`.
        dropout_p: probability with which an attention weight is dropped, as in `block_sparse_attention`.
        return_lse: also return the log of the softmax denominators.
        backend: as in `block_sparse_attention`.
        deterministic: as in `block_sparse_attention`.

    On a GPU, where checking would wait for it, and in compiled code the values of `cu_seqlens_q` and `cu_seqlens_k` are not
    checked: offsets count as 0 to the number of tokens, and tokens of no sequence, or behind the greatest length, see
    nothing.

    Returns:
        out (total_q, num_heads, v_head_dim) in q's dtype; with `return_lse` (out, lse), lse (num_heads, total_q).

    Raises:
        ValueError: an argument does not fit the others, or the backend cannot serve the call; the message says why.
        TypeError: an argument has the wrong type; the message names it and its value.
        RuntimeError: in the backward, when a second derivative is asked for.

    Examples:
        >>> from dilated_attention_pytorch import BlockLayout, SparsePatternConfig, block_sparse_attention
        >>> q = k = v = torch.randn(300, 4, 32)  # sequences of 100 and 200 tokens
        >>> offsets = torch.tensor([0, 100, 300], dtype=torch.int32)
        >>> layout = BlockLayout.from_config(SparsePatternConfig(sparsity_ratio=0.5), 200, causal=True)
        >>> out = block_sparse_attention_varlen(q, k, v, layout, offsets, offsets, 200, 200, is_causal=True)
        >>> alone = block_sparse_attention(q[None, 100:], k[None, 100:], v[None, 100:], layout, is_causal=True)
        >>> torch.allclose(out[100:], alone[0], atol=1e-5)
        True
    """
    if unknown:
        refuse_unknown(unknown, "block_sparse_attention_varlen")
    key = None
    if type(layout) is BlockLayout and is_plain_eager():
        has_others = segment_lengths is not None or dilation_rates is not None
        if not has_others and type(dropout_p) is float and dropout_p == 0.0:
            given = Given(cu_seqlens_q, cu_seqlens_k, q_offset if isinstance(q_offset, Tensor) else None)
            options = Options(given, None, block_bias, sinks, alibi_slopes)
            key = options_key(
                q,
                k,
                v,
                options,
                q_offset,
                is_causal,
                softmax_scale,
                softcap,
                backend,
                (max_seqlen_q, max_seqlen_k),
                deterministic,
            )
        kept = kept_call(layout, key)
        if kept is not None and key is not None and type(return_lse) is bool:
            out, lse = kept.run(q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), key.options)
            return (out.squeeze(0), lse.squeeze(0)) if return_lse else out.squeeze(0)
    if not torch.compiler.is_compiling():
        check_flag("return_lse", return_lse)
    call = check_packed_call(
        q, k, v, layout, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, is_causal=is_causal,
        softmax_scale=softmax_scale, softcap=softcap, alibi_slopes=alibi_slopes, sinks=sinks, block_bias=block_bias,
        q_offset=q_offset, segment_lengths=segment_lengths, dilation_rates=dilation_rates, dropout_p=dropout_p,
        backend=backend, deterministic=deterministic,
    )  # fmt: skip
    out, lse = run_call(call, layout, backend, key)
    return (out.squeeze(0), lse.squeeze(0)) if return_lse else out.squeeze(0)


def explain_backends_varlen(
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
    deterministic: bool | None = None,
    **unknown: Any,
) -> dict[str, str | None]:
    """`explain_backends` of the arguments of `block_sparse_attention_varlen`."""
    if unknown:
        refuse_unknown(unknown, "explain_backends_varlen")
    call = check_packed_call(
        q, k, v, layout, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, is_causal=is_causal,
        softmax_scale=softmax_scale, softcap=softcap, alibi_slopes=alibi_slopes, sinks=sinks, block_bias=block_bias,
        q_offset=q_offset, segment_lengths=segment_lengths, dilation_rates=dilation_rates, dropout_p=dropout_p,
        deterministic=deterministic,
    )  # fmt: skip
    return explained(call, layout)
