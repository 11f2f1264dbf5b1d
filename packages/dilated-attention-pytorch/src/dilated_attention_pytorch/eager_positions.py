"""Repeated calls with positions: packed sequences, lengths, starts, offsets on the device and padding.

As in eager.py, what validation and backend selection found out is kept with the layout, under a key of everything that it
depends on. What is left for every call is the table of its sequences, one kernel, and its launch. On a GPU only: on the CPU
the values of the tensors are checked every time.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._torch_internals import labelled, profiler_flags, without_function_modes
from .backends.problem import AttentionProblem, Backend
from .eager import LABEL, CachedCall, EagerAttention, forward_of, key_of
from .layout.layout import BlockLayout
from .sequence_plans import Given, TablePlan, plan_of_batch, plan_of_packed
from .sequence_tables import HAS_TRITON, table_by_kernel

OTHERS = ("alibi_slopes", "sinks", "block_bias", "attn_bias", "segment_lengths", "dilation_rates")


class PositionsKey(NamedTuple):
    """Where a call is kept, its tensors, and what else its table is made of."""

    key: Hashable
    given: Given
    padding: Tensor | None
    q_offset: int | Tensor | None
    longest: tuple[int, int] | None
    dtype: torch.dtype  # before autocast


class PositionsCall(NamedTuple):
    """A resolved call without its inputs: it serves every call that differs in nothing but the values of its tensors."""

    static_problem: AttentionProblem  # without its inputs, its table and its padding
    backend: Backend
    needs_grad: bool
    plan: TablePlan | None  # None: all sequences are alike, but for padding

    def run(self, q: Tensor, k: Tensor, v: Tensor, positions: PositionsKey) -> tuple[Tensor, Tensor]:
        """out and lse of (batch, seq_len, heads, head_dim)."""
        if profiler_flags._is_profiler_enabled:
            made: tuple[Tensor, Tensor] = labelled(LABEL, self._run, q, k, v, positions)
            return made
        return self._run(q, k, v, positions)

    def _run(self, q: Tensor, k: Tensor, v: Tensor, positions: PositionsKey) -> tuple[Tensor, Tensor]:
        fields, padding = self.static_problem.__dict__.copy(), positions.padding
        if self.plan is not None:
            fields["sequences"] = table_by_kernel(self.plan, positions.given, q.device)
        if padding is not None:
            # a buffer that is refilled before the backward must not change the gradient
            fields["key_padding_mask"] = padding.clone() if self.needs_grad else padding
        if self.needs_grad:
            problem = AttentionProblem.made_of(**fields)
            call = CachedCall(problem, self.backend, True, forward_of(problem, self.backend))
            out, lse = EagerAttention.apply(q, k, v, call)  # type: ignore[no-untyped-call]
            return out, lse
        fields["q"], fields["k"], fields["v"] = q, k, v
        out, lse = without_function_modes(self.backend.forward, AttentionProblem.made_of(**fields))
        return out, lse


def kind_of(x: Tensor | None, device: torch.device) -> Hashable:
    """What a call depends on of a tensor beside its values; raises for one that is no plain tensor on the device of q."""
    if x is None:
        return None
    if type(x) is not Tensor or x.device != device:
        raise TypeError
    return x.dtype, x.shape, x.stride()


def positions_key(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    given: Given,
    padding: Tensor | None,
    q_offset: int | Tensor | None,
    is_causal: bool,
    softmax_scale: float | None,
    softcap: float | None,
    backend: str | None,
    longest: tuple[int, int] | None = None,
) -> PositionsKey | None:
    """Everything but the layout and values that a call depends on; None for one that is not kept.

    In plain eager mode, of a call without other options. `longest`: max_seqlen_q and max_seqlen_k of packed sequences.
    """
    if (softcap is not None and type(softcap) is not float) or not HAS_TRITON:
        return None
    if longest is not None and not (type(longest[0]) is int and type(longest[1]) is int):
        return None
    fixed = q_offset if given.q_offset is None else None
    key = key_of(q, k, v, is_causal, softmax_scale, fixed, None, None, backend)
    if key is None or not q.is_cuda:
        return None
    device = q.device
    try:
        of_tensors = [kind_of(x, device) for x in given]
        whole = ("positions", key, softcap, longest, *of_tensors, kind_of(padding, device))
        return PositionsKey(whole, given, padding, q_offset, longest, q.dtype)
    except (AttributeError, RuntimeError, TypeError):  # which validation names
        return None


def positions_of_batch(
    q: Tensor, k: Tensor, v: Tensor, backend: str | None, options: dict[str, Any]
) -> PositionsKey | None:
    """`positions_key` of a call with options as of `check_call`; None for one with others than positions and softcap."""
    get = options.get
    for name in OTHERS:
        if get(name) is not None:
            return None
    dropout_p, q_offset, padding = get("dropout_p", 0.0), get("q_offset"), get("key_padding_mask")
    if type(dropout_p) not in (int, float) or dropout_p != 0.0:
        return None
    given = Given(
        None, None, q_offset if isinstance(q_offset, Tensor) else None, get("kv_lengths"), get("kv_starts")
    )
    return positions_key(
        q, k, v, given, padding, q_offset, options["is_causal"], get("softmax_scale"), get("softcap"), backend
    )


def kept_call(layout: BlockLayout, positions: PositionsKey | None) -> PositionsCall | None:
    """The resolved call of a key, if there is one."""
    found: PositionsCall | None = None if positions is None else layout._cached_calls.get(positions.key)
    return found


def keep_call(
    layout: BlockLayout, positions: PositionsKey, problem: AttentionProblem, backend: Backend
) -> None:
    """Keep a call that was served, if the next one like it needs nothing but its table and its launch."""
    p = problem
    if p.q.dtype is not positions.dtype or p.rows.device != layout.device:
        return  # autocast changed q, or the layout is on another device: work for every call
    if layout._in_graph or (p.q.is_cuda and torch.cuda.is_current_stream_capturing()):
        return  # what is prepared may belong to the graph, and its stream has not waited for it
    static_problem, plan = p.without_inputs(), plan_of(p, positions, layout)
    fields = static_problem.__dict__
    fields["sequences"] = fields["key_padding_mask"] = None  # tensors of this call
    layout._cached_calls.keep(positions.key, PositionsCall(static_problem, backend, p.needs_grad, plan))


def plan_of(problem: AttentionProblem, positions: PositionsKey, layout: BlockLayout) -> TablePlan | None:
    """How the table of a problem is made; None where it has none."""
    p, q_offset, longest = problem, positions.q_offset, positions.longest
    if p.sequences is None:
        return None
    if longest is None:
        return plan_of_batch(
            p.q, p.kv_len, p.is_causal, q_offset, positions.given.kv_starts is not None, layout.grid
        )
    n_sequences = p.sequences.table.shape[0]
    return plan_of_packed(n_sequences, (p.q_len, p.kv_len), longest, p.is_causal, q_offset, layout.grid)
