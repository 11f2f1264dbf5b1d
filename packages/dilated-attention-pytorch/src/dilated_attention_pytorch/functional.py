"""block_sparse_attention: the entrance of every attention call of a batch."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from . import op_implementations as op_implementations  # registers them
from . import ops
from ._torch_internals import profiler_flags
from .backends.problem import AttentionProblem
from .backends.reference import attention_reference
from .backends.registry import BACKENDS, reasons
from .call import Call
from .eager import (
    CachedCall,
    EagerAttention,
    cache_call,
    can_bypass_dispatcher,
    is_plain_eager,
    key_of,
    run_attention,
)
from .eager_options import OptionsKey, keep_call, kept_call, options_of_batch
from .layout.cache import Pattern
from .layout.layout import BlockLayout
from .upstream.neighbours import refuse_unknown
from .validation.call import check_call
from .validation.numbers import check_flag


@overload
def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: BlockLayout,
    *,
    is_causal: bool = ...,
    softmax_scale: float | None = ...,
    softcap: float | None = ...,
    alibi_slopes: Tensor | None = ...,
    sinks: Tensor | None = ...,
    block_bias: Tensor | None = ...,
    attn_bias: Tensor | None = ...,
    q_offset: int | Tensor | None = ...,
    kv_lengths: Tensor | None = ...,
    kv_starts: Tensor | None = ...,
    key_padding_mask: Tensor | None = ...,
    segment_lengths: Sequence[int] | None = ...,
    dilation_rates: Sequence[int] | None = ...,
    dropout_p: float = ...,
    return_lse: Literal[False] = ...,
    backend: str | None = ...,
    deterministic: bool | None = ...,
) -> Tensor: ...


@overload
def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: BlockLayout,
    *,
    is_causal: bool = ...,
    softmax_scale: float | None = ...,
    softcap: float | None = ...,
    alibi_slopes: Tensor | None = ...,
    sinks: Tensor | None = ...,
    block_bias: Tensor | None = ...,
    attn_bias: Tensor | None = ...,
    q_offset: int | Tensor | None = ...,
    kv_lengths: Tensor | None = ...,
    kv_starts: Tensor | None = ...,
    key_padding_mask: Tensor | None = ...,
    segment_lengths: Sequence[int] | None = ...,
    dilation_rates: Sequence[int] | None = ...,
    dropout_p: float = ...,
    return_lse: Literal[True],
    backend: str | None = ...,
    deterministic: bool | None = ...,
) -> tuple[Tensor, Tensor]: ...


def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: BlockLayout,
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
    return_lse: bool = False,
    backend: str | None = None,
    deterministic: bool | None = None,
    **unknown: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention over the active blocks of a layout: one softmax over the union of all keys a query may see.

    Key j is at position j, query i at ``q_offset + i``. A query that may see no key gets output 0, lse -inf and zero
    gradients. Scores accumulate in float32 (float64 for float64 inputs). Differentiable once; a second derivative needs
    ``backend="reference"``.

    Args:
        q: (batch, q_len, num_heads, head_dim), float32, float16, bfloat16, or float64 on the CPU; any strides.
        k: (batch, kv_len, num_kv_heads, head_dim); num_kv_heads divides num_heads (GQA, MQA).
        v: (batch, kv_len, num_kv_heads, v_head_dim).
        layout: on any device, for these positions or more; batch 1 or that of q, heads 1, num_kv_heads or num_heads.
        is_causal: no query sees a key at a later position. A layout made with ``causal=True`` needs it.
        softmax_scale: default ``1 / sqrt(head_dim)``.
        softcap: a scaled score s becomes ``softcap * tanh(s / softcap)``. Default (None or 0): it stays.
        alibi_slopes: floating point (num_heads,); ``slope * abs(position of q - position of k)`` is taken from the score
            (ALiBi, arXiv:2108.12409). Read as float32. No gradient.
        sinks: floating point (num_heads,), one more logit per head that only joins the denominator, so that lse includes
            it; differentiable.
        block_bias: added to the scores of every active block, broadcastable to (batch, num_heads,
            ``layout.num_block_ids``), in the order of ``layout.row_lists``; differentiable.
        attn_bias: added to the scores, broadcastable to (batch, num_heads, q_len, kv_len), in q's dtype or float32; -inf
            hides. It takes as much memory as dense scores. No gradient, but with ``backend="reference"``.
        q_offset: the position of query 0, an int or int (batch,). Default: causal ``kv_len - q_len``, else 0, whatever
            `kv_lengths` says. A KV cache with room to spare is ``q_offset=written - q_len, kv_lengths=written``.
        kv_lengths: int (batch,), where the valid keys of each batch element end, 0 to kv_len. Default kv_len.
        kv_starts: int (batch,), where they begin. Position 0 is there, and the blocks of the layout count from there: a
            sequence padded on the left gives what it gives alone. Default 0. Without `q_offset` the queries move with
            the keys if `is_causal` or q_len == kv_len.
        key_padding_mask: bool (batch, kv_len), True where a key is padding (as in `torch.nn.MultiheadAttention`); the
            keys keep their positions.
        segment_lengths: token dilation by distance (LongNet, arXiv:2307.02486), with as many `dilation_rates`: in a
            block at distance d the rate of the first ``segment_lengths[k] > d`` rules, and only keys with
            ``j mod rate == head mod rate`` take part. Default: all keys of an active block.
        dilation_rates: the rate of each of `segment_lengths`, which divides the block size: a power of two.
        dropout_p: probability with which an attention weight is dropped, rounded to a multiple of ``2**-15``. Which ones
            depends on the state of torch's generator, on positions, batch element and head, not on backend or layout.
        return_lse: also return the log of the softmax denominators, (batch, num_heads, q_len), differentiable.
        backend: the name of one, see `explain_backends`; default (None or ``"auto"``): the first that serves the call.
            An explicit request is never replaced by another, forward or backward.
        deterministic: default (None or True): two backwards give the same bits. False: the backward may add dq, and dk and dv where
            rows are cut into ranges, in no fixed order. On compute capability 9.0 it then takes five products instead of seven in
            most calls with blocks of 64, 128 or 256 tokens and one head_dim of q, k and v, 64 or 128, that have nothing but
            `is_causal`, `softmax_scale` and `return_lse` beside the layout; they take float32 sums of dq, twice the size of q (1 GiB
            for 131,072 tokens, 16 heads of 128). Elsewhere it changes nothing, and `explain_backends` says why, nor after
            ``torch.use_deterministic_algorithms(True)``, whatever its `warn_only`. By default many large
            calls of this kind with blocks of 128 or 256 tokens take sums of 4 bytes for every number of q, where that is at most a
            sixteenth of the GPU's memory and ``DILATED_ATTENTION_BACKWARD_SUMS`` is not ``off``.

    Integers that are read on a GPU (`q_offset` as a tensor, `kv_lengths`, `kv_starts`), where checking would wait for it, and
    in compiled code are not checked: lengths count as 0 to kv_len, and beyond the layout a query sees nothing.

    Returns:
        out (batch, q_len, num_heads, v_head_dim) in q's dtype; with `return_lse` (out, lse).

    Raises:
        ValueError: an argument does not fit the others, or the backend cannot serve the call; the message says why.
        TypeError: an argument has the wrong type; the message names it and its value.
        RuntimeError: in the backward, when a second derivative is asked for.

    Examples:
        >>> from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
        >>> q = k = v = torch.randn(1, 256, 4, 32)
        >>> layout = BlockLayout.from_config(SparsePatternConfig(sparsity_ratio=1.0), q_len=256)
        >>> out = block_sparse_attention(q, k, v, layout)
        >>> dense = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))
        >>> torch.allclose(out, dense.transpose(1, 2), atol=1e-5)
        True
    """
    if unknown:
        refuse_unknown(unknown, "block_sparse_attention")
    key = None
    try:
        can_be_cached = (
            block_bias is None
            and kv_lengths is None
            and key_padding_mask is None
            and softcap is None
            and alibi_slopes is None
            and sinks is None
            and attn_bias is None
            and kv_starts is None
            and is_plain_eager()
            and type(layout) is BlockLayout
            and (dropout_p == 0.0) is True
        )
    except (RuntimeError, ValueError):
        # A tensor for dropout_p that compares with nothing, which validation refuses.
        can_be_cached = False
    if can_be_cached:
        key = key_of(
            q,
            k,
            v,
            is_causal,
            softmax_scale,
            q_offset,
            segment_lengths,
            dilation_rates,
            backend,
            None,
            deterministic,
        )
        cached: CachedCall | None = layout.calls.get(key)
        if cached is not None:
            out: Tensor
            lse: Tensor
            if profiler_flags._is_profiler_enabled:
                out, lse = cached.run(q, k, v)
            elif cached.needs_grad:
                out, lse = EagerAttention.apply(q, k, v, cached)  # type: ignore[no-untyped-call]
            else:
                out, lse = cached.forward(q, k, v)
            if return_lse is False:
                return out
            if return_lse is True:
                return out, lse
    if not torch.compiler.is_compiling():
        check_flag("return_lse", return_lse)
    out, lse = attend(
        q, k, v, layout, key, is_causal=is_causal, softmax_scale=softmax_scale, softcap=softcap, alibi_slopes=alibi_slopes,
        sinks=sinks, block_bias=block_bias, attn_bias=attn_bias, q_offset=q_offset, kv_lengths=kv_lengths,
        kv_starts=kv_starts, key_padding_mask=key_padding_mask, segment_lengths=segment_lengths,
        dilation_rates=dilation_rates, dropout_p=dropout_p, backend=backend, deterministic=deterministic,
    )  # fmt: skip
    return (out, lse) if return_lse else out


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: BlockLayout,
    key: Hashable,
    *,
    backend: str | None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """out and lse of a call that is not cached, or has options, which are as of `check_call`.

    `key` (of `key_of`) is where the call is cached for the next one like it; None for a call that is not, or is by its
    options (eager_options.py).
    """
    by_options = None
    if key is None and type(layout) is BlockLayout and is_plain_eager():
        by_options = options_of_batch(q, k, v, backend, options)
        kept = kept_call(layout, by_options)
        if kept is not None and by_options is not None:
            return kept.run(q, k, v, by_options.options)
    call = check_call(q, k, v, layout, backend=backend, **options)
    if key is None or backend == "reference" or not can_bypass_dispatcher(call):
        return run_call(call, layout, backend, by_options)
    problem, chosen = call.served(layout, backend)
    out, lse = run_attention(problem, chosen)
    cache_call(layout, key, q, k, v, problem, chosen, needs_grad=problem.needs_grad)
    return out, lse


def run_call(
    call: Call, layout: BlockLayout, backend: str | None, key: OptionsKey | None = None
) -> tuple[Tensor, Tensor]:
    """out and lse of a checked call, which is kept under `key` for the next one like it."""
    if backend == "reference":
        return attention_reference(call.dense_problem(layout))
    if not can_bypass_dispatcher(call):
        return run_operator(call, layout, backend)
    problem, chosen = call.served(layout, backend)
    out, lse = run_attention(problem, chosen)
    if key is not None:
        keep_call(layout, key, problem, chosen)
    return out, lse


def explain_backends(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: BlockLayout,
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
    deterministic: bool | None = None,
    **unknown: Any,
) -> dict[str, str | None]:
    """For every backend, in order of choice, None if it would serve the call, else why not.

    Arguments as for `block_sparse_attention`, without `return_lse` and `backend`. ``"reference"`` always serves, but only
    when asked for by name. Given ``deterministic=False``, an entry of this name says whether the backend that is chosen makes
    use of it: None if its backward adds dq in no fixed order, else why it gives the same bits all the same.
    """
    if unknown:
        refuse_unknown(unknown, "explain_backends")
    call = check_call(
        q, k, v, layout, is_causal=is_causal, softmax_scale=softmax_scale, softcap=softcap, alibi_slopes=alibi_slopes,
        sinks=sinks, block_bias=block_bias, attn_bias=attn_bias, q_offset=q_offset, kv_lengths=kv_lengths,
        kv_starts=kv_starts, key_padding_mask=key_padding_mask, segment_lengths=segment_lengths,
        dilation_rates=dilation_rates, dropout_p=dropout_p, deterministic=deterministic,
    )  # fmt: skip
    return explained(call, layout)


def explained(call: Call, layout: BlockLayout) -> dict[str, str | None]:
    """What `explain_backends` says of a checked call."""
    found = {**reasons(call.problem(layout)), "reference": None}
    if not call.deterministic:
        found["deterministic=False"] = "no fast backend serves the call"
        if any(found[backend.name] is None for backend in BACKENDS):
            problem, backend = call.served(layout, None)
            found["deterministic=False"] = backend.why_deterministic(problem)
    return found


def run_operator(call: Call, layout: BlockLayout | Pattern, backend: str | None) -> tuple[Tensor, Tensor]:
    """out and lse through the operator, which chooses its backend when it runs."""
    out, lse = ops.attention(*ops.op_args_of_call(call, layout, backend))
    return out, lse


def make_problem(q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, **options: Any) -> AttentionProblem:
    """The problem of checked arguments, with options as of `check_call`; draws the dropout seed."""
    return check_call(q, k, v, layout, **options).problem(layout)
