"""Repeated calls with options: positions (packed sequences, lengths, starts, offsets on the device), padding, and what changes scores.

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
from .call import PLAIN_TYPES
from .eager import LABEL, CachedCall, EagerAttention, forward_of, key_of
from .launching.installed import HAS_TRITON
from .layout.layout import BlockLayout
from .saved_inputs import savable, unchanged
from .sequence_plans import Given, TablePlan, plan_of_batch, plan_of_packed
from .sequence_tables import table_by_kernel
from .validation.scores import as_three_axes

OTHERS = ("attn_bias", "segment_lengths", "dilation_rates")  # calls with them are not kept


class Options(NamedTuple):
    """The tensors of a call beside q, k and v; None: not given."""

    given: Given
    padding: Tensor | None = None
    block_bias: Tensor | None = None
    sinks: Tensor | None = None
    alibi_slopes: Tensor | None = None


class OptionsKey(NamedTuple):
    """Where a call is kept, its tensors, and what else its table is made of."""

    key: Hashable
    options: Options
    q_offset: int | Tensor | None
    longest: tuple[int, int] | None
    dtype: torch.dtype  # before autocast


class OptionsCall(NamedTuple):
    """A resolved call without its inputs: it serves every call that differs in nothing but the values of its tensors."""

    static_problem: AttentionProblem  # without its inputs and the tensors of its options
    backend: Backend
    needs_grad: bool
    plan: TablePlan | None  # None: the call has no table

    def run(self, q: Tensor, k: Tensor, v: Tensor, options: Options) -> tuple[Tensor, Tensor]:
        """out and lse of (batch, seq_len, heads, head_dim)."""
        if profiler_flags._is_profiler_enabled:
            made: tuple[Tensor, Tensor] = labelled(LABEL, self._run, q, k, v, options)
            return made
        return self._run(q, k, v, options)

    def _run(self, q: Tensor, k: Tensor, v: Tensor, options: Options) -> tuple[Tensor, Tensor]:
        fields, o, is_saved = self.static_problem.__dict__.copy(), options, self.needs_grad
        if self.plan is not None:
            fields["sequences"] = table_by_kernel(self.plan, o.given, q.device)
        fields["key_padding_mask"] = unchanged(o.padding, is_saved)
        if o.alibi_slopes is not None:
            fields["alibi_slopes"] = unchanged(o.alibi_slopes.float(), is_saved)
        bias = None if o.block_bias is None else savable(as_three_axes(o.block_bias), is_saved)
        sinks = savable(o.sinks, is_saved)
        if is_saved:
            problem = AttentionProblem.made_of(**fields)
            call = CachedCall(problem, self.backend, True, forward_of(problem, self.backend))
            others = () if bias is None and sinks is None else (bias, sinks, None)
            out, lse = EagerAttention.apply(q, k, v, call, *others)  # type: ignore[no-untyped-call]
            return out, lse
        fields |= {"q": q, "k": k, "v": v, "block_bias": bias, "sinks": sinks}
        out, lse = without_function_modes(self.backend.forward, AttentionProblem.made_of(**fields))
        return out, lse


def kind_of(x: Tensor | None, device: torch.device) -> Hashable:
    """What a call depends on of a tensor beside its values; raises for one that is no plain tensor on the device of q."""
    if x is None:
        return None
    if type(x) not in PLAIN_TYPES or x.device != device or x.is_neg():
        raise TypeError
    return x.dtype, x.shape, x.stride()


def options_key(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    options: Options,
    q_offset: int | Tensor | None,
    is_causal: bool,
    softmax_scale: float | None,
    softcap: float | None,
    backend: str | None,
    longest: tuple[int, int] | None = None,
    deterministic: bool | None = None,
) -> OptionsKey | None:
    """Everything but the layout and values that a call depends on; None for one that is not kept.

    In plain eager mode, of a call without others of the options. `longest`: max_seqlen_q and max_seqlen_k of packed sequences.
    """
    if (softcap is not None and type(softcap) is not float) or not HAS_TRITON:
        return None
    if longest is not None and not (type(longest[0]) is int and type(longest[1]) is int):
        return None
    given, padding, bias, sinks, slopes = options
    try:
        needs_grad = torch.is_grad_enabled() and (
            q.requires_grad
            or k.requires_grad
            or v.requires_grad
            or (bias is not None and bias.requires_grad)
            or (sinks is not None and sinks.requires_grad)
        )
        fixed = q_offset if given.q_offset is None else None
        key = key_of(q, k, v, is_causal, softmax_scale, fixed, None, None, backend, needs_grad, deterministic)
        if key is None or not q.is_cuda or (slopes is not None and slopes.requires_grad):
            return None
        device = q.device
        kinds = [kind_of(x, device) for x in (*given, padding, bias, sinks, slopes)]
        return OptionsKey(("options", key, softcap, longest, *kinds), options, q_offset, longest, q.dtype)
    except (AttributeError, RuntimeError, TypeError):  # which validation names
        return None


def options_of_batch(
    q: Tensor, k: Tensor, v: Tensor, backend: str | None, options: dict[str, Any]
) -> OptionsKey | None:
    """`options_key` of a call with options as of `check_call`."""
    get = options.get
    for name in OTHERS:
        if get(name) is not None:
            return None
    dropout_p, q_offset = get("dropout_p", 0.0), get("q_offset")
    if type(dropout_p) not in (int, float) or dropout_p != 0.0:
        return None
    on_device = q_offset if isinstance(q_offset, Tensor) else None
    tensors = Options(
        Given(None, None, on_device, get("kv_lengths"), get("kv_starts")), get("key_padding_mask"), get("block_bias"),
        get("sinks"), get("alibi_slopes"),
    )  # fmt: skip
    return options_key(
        q, k, v, tensors, q_offset, options["is_causal"], get("softmax_scale"), get("softcap"), backend,
        deterministic=get("deterministic"),
    )  # fmt: skip


def kept_call(layout: BlockLayout, key: OptionsKey | None) -> OptionsCall | None:
    """The resolved call of a key, if there is one."""
    found: OptionsCall | None = None if key is None else layout.calls.get(key.key)
    return found


def keep_call(layout: BlockLayout, key: OptionsKey, problem: AttentionProblem, backend: Backend) -> None:
    """Keep a call that was served, if the next one like it needs nothing but its table and its launch."""
    p = problem
    if p.q.dtype is not key.dtype or p.rows.device != layout.device:
        return  # autocast changed q, or the layout is on another device: work for every call
    if layout.is_captured or (p.q.is_cuda and torch.cuda.is_current_stream_capturing()):
        return  # what is prepared may belong to the graph, and its stream has not waited for it
    static_problem, plan = p.without_inputs(), plan_of(p, key, layout)
    fields = static_problem.__dict__
    fields["sequences"] = fields["key_padding_mask"] = fields["alibi_slopes"] = None  # tensors of this call
    layout.calls.keep(key.key, OptionsCall(static_problem, backend, p.needs_grad, plan))


def plan_of(problem: AttentionProblem, key: OptionsKey, layout: BlockLayout) -> TablePlan | None:
    """How the table of a problem is made; None where it has none."""
    p, q_offset, longest = problem, key.q_offset, key.longest
    if p.sequences is None:
        return None
    if longest is None:
        has_starts = key.options.given.kv_starts is not None
        return plan_of_batch(p.q, p.kv_len, p.is_causal, q_offset, has_starts, layout.grid)
    n_sequences = p.sequences.table.shape[0]
    return plan_of_packed(n_sequences, (p.q_len, p.kv_len), longest, p.is_causal, q_offset, layout.grid)
