"""distributed_block_sparse_attention_varlen: packed sequences whose tokens are distributed over the ranks of a group.

A rank's tokens are of two kinds. Sequences that it holds as a whole are an ordinary call of packed sequences, with the layout
as it is. Its parts of sequences that are split over ranks are a call with exchanges, of which every rank takes part in all.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._torch_internals import labelled, not_traced, without_any_modes
from ..backends.problem import Gradients
from ..caching import BoundedCache
from ..config import TokenDilation
from ..eager import of_shape
from ..functional import run_call
from ..layout.layout import BlockLayout
from ..upstream.neighbours import refuse_unknown
from ..validation.call import as_autocast_has_them, check_numbers_of_call, check_packed_call
from ..validation.layouts import check_layout
from ..validation.numbers import check_flag, check_is_causal, checked_deterministic
from ..validation.tensors import PACKED_SHAPE, SHAPE, check_qkv, check_tensors
from .agreement import agreed_by, breaks_if_left, check_agreement
from .attention import (
    LABEL,
    Inputs,
    Results,
    Run,
    agree,
    attend,
    attend_in_stages,
    gradients_in_stages,
    gradients_of_heads,
    others_of,
)
from .checks import check_block_size_of, check_place, check_served
from .config import DistributedSparseConfig
from .local_layout import Pieces
from .packed_layout import PackedSequences, offsets_of
from .packed_sharding import PackedSharding, check_one_for_all, check_within
from .stages import Shape, Stage, make_stages

MOST_CALLS = 4  # of a layout whose stages are kept: new sequences come with every step
KNOWN_SEQUENCES = BoundedCache(64)  # the digests of the facts of shardings


@overload
def distributed_block_sparse_attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: BlockLayout,
    sharding: PackedSharding,
    config: DistributedSparseConfig,
    *,
    is_causal: bool = ...,
    softmax_scale: float | None = ...,
    softcap: float | None = ...,
    sinks: Tensor | None = ...,
    segment_lengths: Sequence[int] | None = ...,
    dilation_rates: Sequence[int] | None = ...,
    dropout_p: float = ...,
    return_lse: Literal[False] = ...,
    backend: str | None = ...,
    deterministic: bool | None = ...,
) -> Tensor: ...


@overload
def distributed_block_sparse_attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: BlockLayout,
    sharding: PackedSharding,
    config: DistributedSparseConfig,
    *,
    is_causal: bool = ...,
    softmax_scale: float | None = ...,
    softcap: float | None = ...,
    sinks: Tensor | None = ...,
    segment_lengths: Sequence[int] | None = ...,
    dilation_rates: Sequence[int] | None = ...,
    dropout_p: float = ...,
    return_lse: Literal[True],
    backend: str | None = ...,
    deterministic: bool | None = ...,
) -> tuple[Tensor, Tensor]: ...


@not_traced
def distributed_block_sparse_attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: BlockLayout,
    sharding: PackedSharding,
    config: DistributedSparseConfig,
    *,
    is_causal: bool = False,
    softmax_scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    segment_lengths: Sequence[int] | None = None,
    dilation_rates: Sequence[int] | None = None,
    dropout_p: float = 0.0,
    return_lse: bool = False,
    backend: str | None = None,
    deterministic: bool | None = None,
    **unknown: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """`block_sparse_attention_varlen` of packed sequences that are distributed over ranks; every rank calls it with its tokens.

    No sequence sees another, and each begins at position 0 of the layout. Sequences that a rank holds as a whole need nothing
    of others; of split ones it fetches the blocks that its rows need, as `distributed_block_sparse_attention` does. Results
    are the same from run to run. The gradient of `sinks` is that of the rank's own rows, to be summed over the ranks like those
    of any other parameter.

    Args:
        q: (local_len, num_heads, head_dim), the tokens of this rank, in the order of ``sharding.indices()``.
        k: (local_len, num_kv_heads, head_dim).
        v: (local_len, num_kv_heads, v_head_dim).
        layout: alike on every rank: square, for the positions of the longest sequence or more; batch 1. It is best on q's
            device, and the same object from step to step: what is derived from it alone is kept.
        sharding: of the sequences, see `PackedSharding.from_sequences`.
        config: the processes, and how they exchange blocks.
        is_causal: no query sees a key at a later position.
        softmax_scale: default ``1 / sqrt(head_dim)``.
        softcap: as in `block_sparse_attention`.
        sinks: (num_heads,), alike on every rank.
        segment_lengths: token dilation by distance within a sequence, with `dilation_rates`.
        dilation_rates: the rate of each of `segment_lengths`.
        dropout_p: probability with which an attention weight is dropped; which ones differs from a single process.
        return_lse: also return the log of the softmax denominators.
        backend: as in `block_sparse_attention`, but for ``"reference"``.
        deterministic: as in `block_sparse_attention`, alike on every rank.

    Returns:
        out (local_len, num_heads, v_head_dim) in q's dtype; with `return_lse` (out, lse), lse (num_heads, local_len).

    Raises:
        ValueError: an argument does not fit the others, or the ranks make different calls; the message says why.
        TypeError: an argument has the wrong type; the message names it and its value.
        RuntimeError: in the backward, when a second derivative is asked for.
    """
    if unknown:
        refuse_unknown(unknown, "distributed_block_sparse_attention_varlen")
    check_flag("return_lse", return_lse)
    check_arguments(q, k, v, layout, sharding, config, backend, is_causal)
    q, k, v = as_autocast_has_them(q, k, v)
    check_tensors(q[None], k[None], v[None])
    check_numbers_of_call(is_causal, softmax_scale, softcap, dropout_p)
    options = {
        "is_causal": is_causal, "softmax_scale": softmax_scale, "softcap": softcap, "segment_lengths": segment_lengths,
        "dilation_rates": dilation_rates, "dropout_p": dropout_p, "backend": backend,
        "deterministic": checked_deterministic(deterministic),
    }  # fmt: skip
    dilation = TokenDilation.from_user(segment_lengths, dilation_rates, layout.block_size)
    shape = Shape(
        sharding, bool(is_causal), q.shape[1], k.shape[1], dilation, q.device, config.stages,
        k.shape[1] * (k.shape[2] + v.shape[2]) * k.element_size(),
    )  # fmt: skip
    plan = plan_of(layout, sharding, shape)
    agree_on_call(q, k, v, layout, sharding, config, sinks, options)
    if not plan.stages:
        out, lse = attend_alone(q, k, v, layout, plan, config, sinks, options)
    else:
        others = [x for stage in plan.stages for x in others_of(stage, layout.num_block_ids, None, sinks)]
        run = PackedRun(Run(plan.stages, config, options), layout, plan)
        out, lse = labelled(LABEL, PackedAttention.apply, q[None], k[None], v[None], run, sinks, *others)
    return (out[0], lse[0]) if return_lse else out[0]


# ---- checks


def check_arguments(
    q: Any, k: Any, v: Any, layout: Any, sharding: Any, config: Any, backend: Any, is_causal: Any
) -> None:
    """Raise unless the arguments have their types, and fit one another and this process."""
    check_place(sharding, config, PackedSharding)
    check_qkv(q, k, v, PACKED_SHAPE)
    check_is_causal(is_causal)
    check_served(backend, "block_sparse_attention_varlen on all sequences")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 3:
            raise ValueError(
                f"{name} must be {PACKED_SHAPE}, got shape {tuple(x.shape)}; a batch {SHAPE} is for "
                "distributed_block_sparse_attention"
            )
        if x.shape[0] != sharding.local_len:
            raise ValueError(
                f"{name} must have the {sharding.local_len} tokens that rank {sharding.rank} of {sharding.world_size} holds "
                f"of {sharding.seq_len}, got shape {tuple(x.shape)}; use shard_sequence({name}, sharding, dim=0)"
            )
    check_layout(q[None], k[None], layout, is_causal, sharding.n_sequences)
    check_one_for_all([layout])
    check_block_size_of(layout, sharding)
    if not layout.grid.is_square:
        grid = layout.grid
        raise ValueError(
            f"layout must be square, for the {sharding.max_seqlen} tokens of the longest sequence or more, got q_len "
            f"{grid.q_len} and kv_len {grid.kv_len}"
        )
    check_within(sharding.max_seqlen, layout)


def agree_on_call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: BlockLayout,
    sharding: PackedSharding,
    config: DistributedSparseConfig,
    sinks: Tensor | None,
    options: dict[str, Any],
) -> None:
    """Raise on every rank unless all make this call: the layout is compared once, the sequences whenever they are new."""
    if config.world_size == 1 or not config.agreement_timeout:
        return
    of_sharding = {"sequences": "packed"}
    agree(q[None], k[None], v[None], layout, "packed", of_sharding, config, None, sinks, options)
    agreed = agreed_by(config.group)
    if KNOWN_SEQUENCES.get(sharding) not in agreed:
        facts = {name: getattr(sharding, name) for name in ("cu_seqlens", "chunks", "block_size")}
        KNOWN_SEQUENCES.keep(sharding, check_agreement(config, facts, config.agreement_timeout))


# ---- the plan


@dataclass(frozen=True, eq=False)
class PackedPlan:
    """How a rank computes its tokens.

    Attributes:
        stages: of the split sequences; none if no rank has any.
        whole: where the rank's whole sequences are among their tokens.
        runs: of the rank's tokens in their order, whether they are of split sequences, and how many.
    """

    stages: tuple[Stage, ...]
    whole: Pieces
    runs: tuple[tuple[bool, int], ...]

    @property
    def has_whole(self) -> bool:
        return any(not is_split for is_split, _ in self.runs)

    def tokens(self, x: Tensor, split: bool, dim: int = 1) -> Tensor:
        """The tokens of split sequences, or those of whole ones; a view where they are one run."""
        parts: tuple[Tensor, ...] = x.split([n for _, n in self.runs], dim)
        mine = [part for part, (is_split, _) in zip(parts, self.runs, strict=True) if is_split == split]
        if len(mine) == 1:
            return mine[0]
        return torch.cat(mine, dim) if mine else x.narrow(dim, 0, 0)

    def joined(self, of_split: Tensor, of_whole: Tensor | None, dim: int = 1) -> Tensor:
        """The inverse of `tokens`."""
        if of_whole is None or not of_whole.shape[dim]:
            return of_split
        left = {True: of_split, False: of_whole}
        parts = []
        for is_split, n in self.runs:
            parts.append(left[is_split].narrow(dim, 0, n))
            left[is_split] = left[is_split].narrow(dim, n, left[is_split].shape[dim] - n)
        return torch.cat(parts, dim)


# Of each layout, the plans of its last calls; layouts live as long as their users.
PLANS: weakref.WeakKeyDictionary[BlockLayout, BoundedCache] = weakref.WeakKeyDictionary()


def plan_of(layout: BlockLayout, sharding: PackedSharding, shape: Shape) -> PackedPlan:
    """The plan of a call: made once for new sequences, then kept with the layout."""
    kept = PLANS.get(layout)
    if kept is None:
        kept = PLANS.setdefault(layout, BoundedCache(MOST_CALLS))
    found: PackedPlan | None = kept.get(shape)
    return found if found is not None else kept.keep(shape, make_plan(layout, sharding, shape))


def make_plan(layout: BlockLayout, sharding: PackedSharding, shape: Shape) -> PackedPlan:
    """The plan of a call."""
    with without_any_modes():  # made in inference mode, it may be used in training later
        blocks, mine = sharding.blocks, sharding.blocks_of(sharding.rank)
        is_split = sharding.is_split[blocks.sequence[mine]]
        tokens = blocks.tokens[mine]
        kinds, number = is_split.unique_consecutive(return_inverse=True)
        lengths = torch.zeros(kinds.numel(), dtype=torch.int64).index_add_(0, number, tokens)
        of_whole = blocks.sequence[mine][~is_split].unique_consecutive(return_inverse=True)
        whole = torch.zeros(max(1, of_whole[0].numel()), dtype=torch.int64)
        whole.index_add_(0, of_whole[1], tokens[~is_split])
        its = offsets_of(whole, whole, shape.device)
        stages: tuple[Stage, ...] = ()
        if bool(sharding.is_split.any()):
            stages = make_stages(layout, shape, PackedSequences(layout, sharding, shape))
        return PackedPlan(
            stages,
            Pieces(its._replace(cu_seqlens_k=its.cu_seqlens_q)),
            tuple(zip(kinds.tolist(), lengths.tolist(), strict=True)),
        )


# ---- the call


def attend_alone(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: BlockLayout,
    plan: PackedPlan,
    config: DistributedSparseConfig,
    sinks: Tensor | None,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """out and lse where no rank has a part of a sequence."""
    call = check_packed_call(q, k, v, layout, *plan.whole.offsets, sinks=sinks, **options)
    if call.seed is not None:
        call = call._replace(seed=call.seed + config.rank)
    return run_call(call, layout, options["backend"])


class PackedRun(NamedTuple):
    """A checked call without its tensors."""

    run: Run
    layout: BlockLayout
    plan: PackedPlan


class PackedAttention(torch.autograd.Function):
    """The gradient of a call with split sequences; whole ones are computed while the first blocks travel."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        packed: PackedRun,
        sinks: Tensor | None,
        *others: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        run, plan = packed.run, packed.plan
        out_of_whole: Tensor | None = None
        lse_of_whole: Tensor | None = None

        def attend_to_whole() -> None:
            nonlocal out_of_whole, lse_of_whole
            of_q, of_k, of_v = (plan.tokens(x, False) for x in (q, k, v))
            out_of_whole = of_q.new_empty(*of_q.shape[:3], of_v.shape[3])
            lse_of_whole, ctx.served_whole = attend(
                of_q, of_k, of_v, packed.layout, plan.whole, run, None, sinks, out_of_whole
            )

        # dropout: every rank draws as many seeds
        meanwhile = attend_to_whole if plan.has_whole or run.options["dropout_p"] else None
        of_q, of_k, of_v = (plan.tokens(x, True) for x in (q, k, v))
        with breaks_if_left(run.config.group):
            made = attend_in_stages(of_q, of_k, of_v, run, others, meanwhile)
        out, lse = plan.joined(made.out, out_of_whole), plan.joined(made.lse, lse_of_whole, 2)
        ctx.save_for_backward(q, k, v, out, lse, sinks, *others, *made.buffers)
        ctx.packed, ctx.served = packed, made.served
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @once_differentiable
    @not_traced
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, sinks, *rest = ctx.saved_tensors
        packed: PackedRun = ctx.packed
        run, plan = packed.run, packed.plan
        of_whole: Gradients | None = None

        def taken(split: bool) -> tuple[list[Tensor], Results]:
            its = Results.given(
                plan.tokens(out, split),
                plan.tokens(lse, split, 2),
                None if grad_out is None else plan.tokens(grad_out, split),
                None if grad_lse is None else plan.tokens(grad_lse, split, 2),
            )
            return [plan.tokens(x, split) for x in (q, k, v)], its

        def gradients_of_whole() -> None:
            nonlocal of_whole
            (of_q, of_k, of_v), its = taken(False)
            dq = torch.empty_like(of_q, memory_format=torch.contiguous_format)
            of_whole = gradients_of_heads(
                ctx.served_whole, range(q.shape[2]), of_q, of_k, of_v, None, sinks, its, dq
            )

        (of_q, of_k, of_v), its = taken(True)
        meanwhile = gradients_of_whole if plan.has_whole else None
        inputs = Inputs.of(of_q, of_k, of_v, run, rest)
        with breaks_if_left(run.config.group):
            *made, of_others = gradients_in_stages(inputs, ctx.served, run, its, meanwhile)
        dq, dk, dv = (plan.joined(x, whole) for x, whole in zip(made, of_whole or (None,) * 3, strict=False))
        of_sinks = None if of_whole is None else of_shape(of_whole.sinks, sinks)
        return dq, dk, dv, None, of_sinks, *of_others
