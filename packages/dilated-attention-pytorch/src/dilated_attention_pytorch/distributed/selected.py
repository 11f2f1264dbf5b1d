"""distributed_attention_from_indices: attention of a distributed sequence to blocks that were chosen from the content."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from .._torch_internals import labelled, not_traced
from ..functional import block_sparse_attention
from ..validation.call import as_autocast_has_them, check_numbers_of_call
from ..validation.numbers import check_flag, checked_deterministic
from ..validation.tensors import check_qkv, check_tensors
from ..values import shown
from .attention import LABEL, DistributedAttention, Run, others_of
from .checks import check_local_tokens, check_served
from .config import DistributedSparseConfig
from .selection_plan import SelectionPlan, agree_once, plan_of_indices
from .sharding import SequenceSharding


@overload
def distributed_attention_from_indices(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    sharding: SequenceSharding,
    config: DistributedSparseConfig,
    *,
    counts: Tensor | None = ...,
    is_causal: bool = ...,
    softmax_scale: float | None = ...,
    softcap: float | None = ...,
    sinks: Tensor | None = ...,
    block_bias: Tensor | None = ...,
    dropout_p: float = ...,
    return_lse: Literal[False] = ...,
    backend: str | None = ...,
    deterministic: bool | None = ...,
) -> Tensor: ...


@overload
def distributed_attention_from_indices(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    sharding: SequenceSharding,
    config: DistributedSparseConfig,
    *,
    counts: Tensor | None = ...,
    is_causal: bool = ...,
    softmax_scale: float | None = ...,
    softcap: float | None = ...,
    sinks: Tensor | None = ...,
    block_bias: Tensor | None = ...,
    dropout_p: float = ...,
    return_lse: Literal[True],
    backend: str | None = ...,
    deterministic: bool | None = ...,
) -> tuple[Tensor, Tensor]: ...


@not_traced
def distributed_attention_from_indices(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    sharding: SequenceSharding,
    config: DistributedSparseConfig,
    *,
    counts: Tensor | None = None,
    is_causal: bool = False,
    softmax_scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    block_bias: Tensor | None = None,
    dropout_p: float = 0.0,
    return_lse: bool = False,
    backend: str | None = None,
    deterministic: bool | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """`distributed_block_sparse_attention` to blocks that each rank has chosen for its own rows, from the content.

    No rank knows what the others chose, so the ranks ask one another: on the device, without a host synchronisation, and in
    messages whose sizes `config.capacity` gives (see `plan_of_indices`). A step can be captured in a CUDA graph after one
    without.

    Args:
        q: (batch, local_len, num_heads, head_dim), the tokens of this rank, in the order of ``sharding.positions()``.
        k: (batch, local_len, num_kv_heads, head_dim).
        v: (batch, local_len, num_kv_heads, v_head_dim).
        indices: int32 or int64 (batch or 1, num_heads or num_kv_heads or 1, n_rows, k), or with fewer leading axes: the blocks of
            the whole sequence that each block row of this rank attends to, see `plan_of_indices`.
        sharding: which tokens each rank holds.
        config: the processes, and how they exchange blocks.
        counts: int32 or int64 (batch or 1, heads or 1, n_rows), or with fewer leading axes: only so many of the k count.
        is_causal: no query sees a key at a later position of the whole sequence.
        softmax_scale: default ``1 / sqrt(head_dim)``.
        softcap: as in `block_sparse_attention`.
        sinks: (num_heads,), alike on every rank.
        block_bias: broadcastable to (batch, num_heads, ``indices.numel()``), of the rank's own rows: see
            `BlockLayout.from_indices`.
        dropout_p: probability with which an attention weight is dropped.
        return_lse: also return the log of the softmax denominators, (batch, num_heads, local_len).
        backend: as in `block_sparse_attention`, but for ``"reference"``.
        deterministic: as in `block_sparse_attention`, alike on every rank.

    Returns:
        out (batch, local_len, num_heads, v_head_dim) in q's dtype; with `return_lse` (out, lse).

    Raises:
        ValueError: an argument does not fit the others, or the ranks make different calls; the message says why.
        TypeError: an argument has the wrong type; the message names it and its value.
    """
    plan = plan_of_indices(q, k, indices, sharding, config, counts=counts, is_causal=is_causal)
    return attend(
        q, k, v, plan, softmax_scale=softmax_scale, softcap=softcap, sinks=sinks, block_bias=block_bias,
        dropout_p=dropout_p, return_lse=return_lse, backend=backend, deterministic=deterministic,
    )  # fmt: skip


@overload
def distributed_attention_from_plan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: SelectionPlan,
    *,
    softmax_scale: float | None = ...,
    softcap: float | None = ...,
    sinks: Tensor | None = ...,
    block_bias: Tensor | None = ...,
    dropout_p: float = ...,
    return_lse: Literal[False] = ...,
    backend: str | None = ...,
    deterministic: bool | None = ...,
) -> Tensor: ...


@overload
def distributed_attention_from_plan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: SelectionPlan,
    *,
    softmax_scale: float | None = ...,
    softcap: float | None = ...,
    sinks: Tensor | None = ...,
    block_bias: Tensor | None = ...,
    dropout_p: float = ...,
    return_lse: Literal[True],
    backend: str | None = ...,
    deterministic: bool | None = ...,
) -> tuple[Tensor, Tensor]: ...


@not_traced
def distributed_attention_from_plan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: SelectionPlan,
    *,
    softmax_scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    block_bias: Tensor | None = None,
    dropout_p: float = 0.0,
    return_lse: bool = False,
    backend: str | None = None,
    deterministic: bool | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """`distributed_attention_from_indices` with a plan that `plan_of_indices` has made, for one layer or several.

    The arguments besides `plan` are those of `distributed_attention_from_indices`; q and k have the batch and the heads of
    those that the plan was made with.

    Raises:
        ValueError: an argument does not fit the others, or the ranks make different calls; the message says why.
        TypeError: an argument has the wrong type; the message names it and its value.
        RuntimeError: in the backward, when a second derivative is asked for.
    """
    return attend(
        q, k, v, plan, softmax_scale=softmax_scale, softcap=softcap, sinks=sinks, block_bias=block_bias,
        dropout_p=dropout_p, return_lse=return_lse, backend=backend, deterministic=deterministic,
    )  # fmt: skip


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: SelectionPlan,
    *,
    softmax_scale: float | None,
    softcap: float | None,
    sinks: Tensor | None,
    block_bias: Tensor | None,
    dropout_p: float,
    return_lse: bool,
    backend: str | None,
    deterministic: bool | None,
) -> Tensor | tuple[Tensor, Tensor]:
    """`distributed_attention_from_plan`, for any `return_lse`."""
    if not isinstance(plan, SelectionPlan):
        raise TypeError(f"plan must be a SelectionPlan, made by plan_of_indices, got {shown(plan)}")
    check_flag("return_lse", return_lse)
    check_qkv(q, k, v)
    check_served(backend)
    check_local_tokens(plan.sharding, q=q, k=k, v=v)
    shape = q.shape[0], q.shape[2], k.shape[2]
    if shape != plan.shape or q.device != plan.needed.device:
        raise ValueError(
            f"plan is for (batch, num_heads, num_kv_heads) {plan.shape} on {plan.needed.device}, got {shape} on {q.device}; "
            "make one with plan_of_indices for these q and k"
        )
    q, k, v = as_autocast_has_them(q, k, v)
    check_tensors(q, k, v)
    check_numbers_of_call(plan.is_causal, softmax_scale, softcap, dropout_p)
    options: dict[str, Any] = {
        "is_causal": plan.is_causal, "softmax_scale": softmax_scale, "softcap": softcap, "segment_lengths": None,
        "dilation_rates": None, "dropout_p": dropout_p, "backend": backend,
        "deterministic": checked_deterministic(deterministic),
    }  # fmt: skip
    if plan.layout is not None:
        made = block_sparse_attention(
            q, k, v, plan.layout, sinks=sinks, block_bias=block_bias, return_lse=return_lse, **options
        )  # type: ignore[call-overload]
        return made  # type: ignore[no-any-return]
    others = [x for stage in plan.stages for x in others_of(stage, plan.num_block_ids, block_bias, sinks)]
    config = plan.config
    needs_grad = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (q, k, v, block_bias, sinks)
    )
    facts = {
        "call": "distributed_attention_from_plan", "dtype": str(q.dtype), "device": q.device.type, "batch": shape[0],
        "num_heads": shape[1], "num_kv_heads": shape[2], "head_dim": q.shape[3], "v_head_dim": v.shape[3], **options,
        "block_bias": block_bias is not None, "sinks": sinks is not None, "requires_grad": needs_grad,
        "stages": len(plan.stages), "capacity": config.capacity, "save_fetched": config.save_fetched,
    }  # fmt: skip
    agree_once(config, plan.sharding, facts)
    run = Run(plan.stages, config, options)
    out, lse = labelled(LABEL, DistributedAttention.apply, q, k, v, run, *others)
    return (out, lse) if return_lse else out
