"""distributed_block_sparse_attention: attention of a sequence whose tokens are distributed over the ranks of a group."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._torch_internals import labelled, not_traced, without_function_modes
from ..backends.problem import AttentionProblem, Backend, Gradients
from ..caching import BoundedCache
from ..call import is_captured
from ..config import TokenDilation
from ..eager import key_of, of_shape
from ..functional import block_sparse_attention
from ..layout.layout import BlockLayout
from ..upstream.neighbours import refuse_unknown
from ..validation.call import as_autocast_has_them, check_call, check_numbers_of_call, check_packed_call
from ..validation.numbers import check_flag, checked_deterministic
from ..validation.tensors import check_qkv, check_tensors
from ..values import shown
from .agreement import agreed_by, breaks_if_left, check_agreement
from .checks import check_block_size_of, check_local_tokens, check_place, check_served
from .config import DistributedSparseConfig
from .exchange import KeysAndValues, Started, add_returned, kept, start_fetch, start_return, unarranged
from .fingerprints import facts_of_layout
from .local_layout import Pieces
from .sharding import SequenceSharding
from .stages import Shape, Stage, stages_of

LABEL = "dilated_attention_pytorch::distributed_attention"
# Of each layout, the digests of the facts of calls, by what takes no time to compare.
KNOWN: weakref.WeakKeyDictionary[BlockLayout, BoundedCache] = weakref.WeakKeyDictionary()


@overload
def distributed_block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: BlockLayout,
    sharding: SequenceSharding,
    config: DistributedSparseConfig,
    *,
    is_causal: bool = ...,
    softmax_scale: float | None = ...,
    softcap: float | None = ...,
    sinks: Tensor | None = ...,
    block_bias: Tensor | None = ...,
    segment_lengths: Sequence[int] | None = ...,
    dilation_rates: Sequence[int] | None = ...,
    dropout_p: float = ...,
    return_lse: Literal[False] = ...,
    backend: str | None = ...,
    deterministic: bool | None = ...,
) -> Tensor: ...


@overload
def distributed_block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: BlockLayout,
    sharding: SequenceSharding,
    config: DistributedSparseConfig,
    *,
    is_causal: bool = ...,
    softmax_scale: float | None = ...,
    softcap: float | None = ...,
    sinks: Tensor | None = ...,
    block_bias: Tensor | None = ...,
    segment_lengths: Sequence[int] | None = ...,
    dilation_rates: Sequence[int] | None = ...,
    dropout_p: float = ...,
    return_lse: Literal[True],
    backend: str | None = ...,
    deterministic: bool | None = ...,
) -> tuple[Tensor, Tensor]: ...


@not_traced
def distributed_block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: BlockLayout,
    sharding: SequenceSharding,
    config: DistributedSparseConfig,
    *,
    is_causal: bool = False,
    softmax_scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    block_bias: Tensor | None = None,
    segment_lengths: Sequence[int] | None = None,
    dilation_rates: Sequence[int] | None = None,
    dropout_p: float = 0.0,
    return_lse: bool = False,
    backend: str | None = None,
    deterministic: bool | None = None,
    **unknown: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """`block_sparse_attention` of a sequence whose tokens are distributed over ranks; every rank calls it with its own.

    Each rank fetches the blocks of k and v that its rows need, and no others: the layout says which. The gradients of these
    blocks go back to their owners, which add them in float32 by ascending rank, so that results are the same from run to run, but with ``deterministic=False``.
    The gradients of `sinks` and `block_bias` are those of the rank's own rows, to be summed over the ranks like those of any
    other parameter.

    Args:
        q: (batch, local_len, num_heads, head_dim), the tokens of this rank, in the order of ``sharding.positions()``.
        k: (batch, local_len, num_kv_heads, head_dim).
        v: (batch, local_len, num_kv_heads, v_head_dim).
        layout: of the whole sequence, alike on every rank: square, for `seq_len` of the sharding or more tokens.
        sharding: which tokens each rank holds.
        config: the processes, and how they exchange blocks.
        is_causal: no query sees a key at a later position of the whole sequence.
        softmax_scale: default ``1 / sqrt(head_dim)``.
        softcap: as in `block_sparse_attention`.
        sinks: (num_heads,), alike on every rank.
        block_bias: broadcastable to (batch, num_heads, ``layout.num_block_ids``), alike on every rank; the layout must then be
            for exactly the tokens of the sequence.
        segment_lengths: token dilation by distance in the whole sequence, with `dilation_rates`.
        dilation_rates: the rate of each of `segment_lengths`.
        dropout_p: probability with which an attention weight is dropped; which ones differs from a single process.
        return_lse: also return the log of the softmax denominators, (batch, num_heads, local_len).
        backend: as in `block_sparse_attention`, but for ``"reference"``.
        deterministic: as in `block_sparse_attention`, alike on every rank.

    Returns:
        out (batch, local_len, num_heads, v_head_dim) in q's dtype; with `return_lse` (out, lse).

    Raises:
        ValueError: an argument does not fit the others, or the ranks make different calls; the message says why.
        TypeError: an argument has the wrong type; the message names it and its value.
        RuntimeError: in the backward, when a second derivative is asked for.
    """
    if unknown:
        refuse_unknown(unknown, "distributed_block_sparse_attention")
    check_flag("return_lse", return_lse)
    check_arguments(q, k, v, layout, sharding, config, backend)
    q, k, v = as_autocast_has_them(q, k, v)
    check_tensors(q, k, v)
    check_numbers_of_call(is_causal, softmax_scale, softcap, dropout_p)
    options = {
        "is_causal": is_causal, "softmax_scale": softmax_scale, "softcap": softcap, "segment_lengths": segment_lengths,
        "dilation_rates": dilation_rates, "dropout_p": dropout_p, "backend": backend,
        "deterministic": checked_deterministic(deterministic),
    }  # fmt: skip
    layout = cut_to_length(layout, sharding, block_bias)
    if sharding.world_size == 1:
        made = block_sparse_attention(
            q, k, v, layout, sinks=sinks, block_bias=block_bias, return_lse=return_lse, **options
        )  # type: ignore[call-overload]
        return made  # type: ignore[no-any-return]
    dilation = TokenDilation.from_user(segment_lengths, dilation_rates, layout.block_size)
    shape = Shape(
        sharding, is_causal, q.shape[2], k.shape[2], dilation, q.device, config.stages,
        k.shape[0] * k.shape[2] * (k.shape[3] + v.shape[3]) * k.element_size(),
    )  # fmt: skip
    stages = stages_of(layout, sharding, shape)
    others = [others_of(stage, layout.num_block_ids, block_bias, sinks) for stage in stages]
    of_sharding = {"seq_len": sharding.seq_len, "chunks": sharding.chunks}
    agree(q, k, v, layout, shape, of_sharding, config, block_bias, sinks, options)
    if len(stages) == 1 and stages[0].plan.is_local:
        bias, its_sinks = others[0]
        made = block_sparse_attention(
            q,
            k,
            v,
            stages[0].local.layout,
            sinks=its_sinks,
            block_bias=bias,
            return_lse=return_lse,
            **options,
        )  # type: ignore[call-overload]
        return made  # type: ignore[no-any-return]
    run = Run(stages, config, options)
    flat = [x for pair in others for x in pair]
    out, lse = labelled(LABEL, DistributedAttention.apply, q, k, v, run, *flat)
    return (out, lse) if return_lse else out


# ---- checks


def check_arguments(q: Any, k: Any, v: Any, layout: Any, sharding: Any, config: Any, backend: Any) -> None:
    """Raise unless the arguments have their types, and fit this process."""
    if not isinstance(layout, BlockLayout):
        raise TypeError(f"layout must be a BlockLayout, got {shown(layout)}")
    check_place(sharding, config, SequenceSharding)
    check_qkv(q, k, v)
    check_served(backend)
    check_local_tokens(sharding, q=q, k=k, v=v)
    check_block_size_of(layout, sharding)


def cut_to_length(layout: BlockLayout, sharding: SequenceSharding, block_bias: Tensor | None) -> BlockLayout:
    """The layout of the whole sequence, the prefix of a longer one."""
    grid, length = layout.grid, sharding.seq_len
    if not grid.is_square or grid.q_len < length:
        raise ValueError(
            f"layout must be square, for the {length} tokens of the sequence or more, got q_len {grid.q_len} and kv_len "
            f"{grid.kv_len}"
        )
    if grid.q_len == length:
        return layout
    if block_bias is not None:
        raise ValueError(
            f"a block_bias needs a layout for exactly the {length} tokens of the sequence, got one for {grid.q_len}"
        )
    return layout.prefix(length)


def agree(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: BlockLayout,
    key: Hashable,
    of_sharding: Mapping[str, object],
    config: DistributedSparseConfig,
    block_bias: Tensor | None,
    sinks: Tensor | None,
    options: dict[str, Any],
) -> None:
    """Raise on every rank unless all make this call; asked once for calls that are alike.

    Calls that are alike have the same `key`; `of_sharding` are the facts of their sharding.
    """
    if not config.agreement_timeout:
        return
    needs_grad = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (q, k, v, block_bias, sinks)
    )
    settings = {name: tuple(x) if isinstance(x, (list, tuple)) else x for name, x in options.items()}
    shape_of_bias = None if block_bias is None else tuple(block_bias.shape)
    signature: Hashable = (  # not the length, which packed sequences change from call to call
        key, q.dtype, q.device, q.shape[0], q.shape[2], q.shape[3], k.shape[2], v.shape[3], shape_of_bias, sinks is None,
        needs_grad, config.stages, config.save_fetched, *settings.values(),
    )  # fmt: skip
    alike = KNOWN.get(layout)
    if alike is None:
        alike = KNOWN.setdefault(layout, BoundedCache(64))
    if alike.get(signature) in agreed_by(config.group):
        return
    facts: dict[str, Any] = {
        "dtype": str(q.dtype), "device": q.device.type, "batch": q.shape[0], "num_heads": q.shape[2],
        "num_kv_heads": k.shape[2], "head_dim": q.shape[3], "v_head_dim": v.shape[3], **settings,
        "block_bias": shape_of_bias, "sinks": sinks is not None, "requires_grad": needs_grad, "stages": config.stages,
        "save_fetched": config.save_fetched, **of_sharding, **facts_of_layout(layout),
    }  # fmt: skip
    alike.keep(signature, check_agreement(config, facts, config.agreement_timeout))


# ---- the call


class Run(NamedTuple):
    """A checked call without its tensors."""

    stages: tuple[Stage, ...]
    config: DistributedSparseConfig
    options: dict[str, Any]

    def fetch(self, i: int, k: Tensor, v: Tensor) -> Started:
        """Start the exchange of a stage."""
        stage = self.stages[i]
        of_k, of_v = (x[:, :, stage.kv_heads.start : stage.kv_heads.stop] for x in (k, v))
        return start_fetch(of_k, of_v, stage.plan, stage.local, self.config.group)


class Arriving:
    """The buffers of the stages, one after the other; those of the next ones are on their way.

    Two ahead: a transfer that is started just before a kernel that fills the GPU runs only after it.
    """

    AHEAD = 2

    def __init__(self, n_stages: int, fetch: Callable[[int], Started]) -> None:
        self.fetch, self.left = fetch, deque(range(n_stages))
        self.started: deque[Started] = deque()

    def take(self) -> KeysAndValues:
        """The buffer of the next stage, which the current stream may read."""
        self.start()
        return self.started.popleft().wait()

    def start(self) -> None:
        """Start the transfers of the next stages."""
        while self.left and len(self.started) <= self.AHEAD:
            self.started.append(self.fetch(self.left.popleft()))


class Served(NamedTuple):
    """What a stage was computed with."""

    static_problem: AttentionProblem
    backend: Backend


def others_of(
    stage: Stage, num_block_ids: int, block_bias: Tensor | None, sinks: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The block bias and the sinks of a stage."""
    if block_bias is not None:
        if block_bias.dim() != 3:
            block_bias = block_bias.expand(*[1] * (3 - block_bias.dim()), *block_bias.shape)
        if block_bias.shape[2] != num_block_ids:
            raise ValueError(
                f"block_bias must be broadcastable to (batch, num_heads, {num_block_ids}), got {tuple(block_bias.shape)}"
            )
        of_heads = (
            block_bias if block_bias.shape[1] == 1 else block_bias[:, stage.heads.start : stage.heads.stop]
        )
        block_bias = of_heads.index_select(2, stage.local.block_ids)
    return block_bias, None if sinks is None else sinks[stage.heads.start : stage.heads.stop]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: BlockLayout,
    pieces: Pieces | None,
    run: Run,
    bias: Tensor | None,
    sinks: Tensor | None,
    out: Tensor,
) -> tuple[Tensor, Served]:
    """Fill `out` for some heads; lse, and what they were computed with."""
    options, key = run.options, None
    is_plain = bias is None and sinks is None and not options["softcap"] and not options["dropout_p"]
    if pieces is None and is_plain:
        key = key_of(
            q, k, v, options["is_causal"], options["softmax_scale"], None, options["segment_lengths"],
            options["dilation_rates"], options["backend"], needs_grad=False,
            deterministic=options["deterministic"],
        )  # fmt: skip
        key = None if key is None else (LABEL, key)  # a call of another kind would not find it, nor serve it
        served: Served | None = layout.calls.get(key)
        if served is not None:
            problem = served.static_problem.with_inputs(q, k, v)
            return without_function_modes(served.backend.forward_into, problem, out), served
    if pieces is None:
        call = check_call(q, k, v, layout, sinks=sinks, block_bias=bias, **options)
    else:
        call = check_packed_call(q[0], k[0], v[0], layout, *pieces.offsets, sinks=sinks, **options)
    if call.seed is not None:  # ranks that draw the same seed drop other weights all the same
        call = call._replace(seed=call.seed + run.config.rank)
    problem, backend = call.served(layout, options["backend"])
    lse: Tensor = without_function_modes(backend.forward_into, problem, out)
    served = Served(problem.without_inputs(), backend)
    if key is not None and problem.q is q and not is_captured(q):
        layout.calls.keep(key, served)
    return lse, served


class Made(NamedTuple):
    """The results of all stages, and what their backward needs."""

    out: Tensor
    lse: Tensor
    served: list[Served]
    buffers: list[Tensor]


def attend_in_stages(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    run: Run,
    others: Sequence[Tensor | None],
    meanwhile: Callable[[], None] | None = None,
) -> Made:
    """The attention of all heads; `meanwhile` is called while the blocks of the first stage travel."""
    out = q.new_empty(*q.shape[:3], v.shape[3])
    lses, served, buffers = [], [], []
    arriving = Arriving(len(run.stages), lambda i: run.fetch(i, k, v))
    arriving.start()
    if meanwhile is not None:
        meanwhile()
    for i, stage in enumerate(run.stages):
        buffer, heads = arriving.take(), slice(stage.heads.start, stage.heads.stop)
        bias, sinks = others[2 * i : 2 * i + 2]
        local = stage.local
        lse, its = attend(
            q[:, :, heads], buffer.k, buffer.v, local.layout, local.pieces, run, bias, sinks, out[:, :, heads]
        )
        lses.append(lse)
        served.append(its)
        if run.config.save_fetched:
            buffers.append(buffer.both)
    return Made(out, lses[0] if len(lses) == 1 else torch.cat(lses, 1), served, buffers)


class DistributedAttention(torch.autograd.Function):
    """The gradient of a call with exchanges. `others` are the block bias and the sinks of each stage, or None."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, run: Run, *others: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        with breaks_if_left(run.config.group):
            made = attend_in_stages(q, k, v, run, others)
        ctx.save_for_backward(q, k, v, made.out, made.lse, *others, *made.buffers)
        ctx.run, ctx.served = run, made.served
        ctx.set_materialize_grads(False)
        return made.out, made.lse

    @staticmethod
    @once_differentiable
    @not_traced
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, *rest = ctx.saved_tensors
        results = Results.given(out, lse, grad_out, grad_lse)
        inputs = Inputs.of(q, k, v, ctx.run, rest)
        with breaks_if_left(ctx.run.config.group):
            dq, dk, dv, of_others = gradients_in_stages(inputs, ctx.served, ctx.run, results)
        return dq, dk, dv, None, *of_others


class Inputs(NamedTuple):
    """What a forward was given, with the buffers that it kept."""

    q: Tensor
    k: Tensor
    v: Tensor
    others: Sequence[Tensor | None]
    buffers: Sequence[Tensor]

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor, run: Run, rest: Sequence[Any]) -> Inputs:
        """`rest`: the others of each stage, then the buffers."""
        n = 2 * len(run.stages)
        return cls(q, k, v, rest[:n], rest[n:])


class Results(NamedTuple):
    """What a forward gave, and the gradients of that."""

    out: Tensor
    lse: Tensor
    grad_out: Tensor
    grad_lse: Tensor | None

    @classmethod
    def given(cls, out: Tensor, lse: Tensor, grad_out: Tensor | None, grad_lse: Tensor | None) -> Results:
        # every rank takes part in the exchanges, also one whose results nobody used
        grad_out = torch.zeros_like(out) if grad_out is None else grad_out.resolve_neg()
        return cls(out, lse, grad_out, None if grad_lse is None else grad_lse.resolve_neg())


def gradients_in_stages(
    inputs: Inputs,
    served: Sequence[Served],
    run: Run,
    results: Results,
    meanwhile: Callable[[], None] | None = None,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor | None]]:
    """The gradients of q, k, v and the others of each stage; `meanwhile` as in `attend_in_stages`."""
    q, k, v, others, saved = inputs

    def fetch(i: int) -> Started:
        return kept(KeysAndValues(saved[i], k.shape[3])) if saved else run.fetch(i, k, v)

    of_others: list[Tensor | None] = []
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    arriving, returning = Arriving(len(run.stages), fetch), None
    arriving.start()
    if meanwhile is not None:
        meanwhile()
    for i, stage in enumerate(run.stages):
        bias, sinks = others[2 * i : 2 * i + 2]
        buffer = arriving.take()
        grads = gradients_of_heads(served[i], stage.heads, q, buffer.k, buffer.v, bias, sinks, results, dq)
        grads = grads._replace(k=unarranged(grads.k, stage.local), v=unarranged(grads.v, stage.local))
        returned = start_return(grads.k, grads.v, stage.plan, stage.local, run.config.group)
        if returning is not None:
            returning.add_to(dk, dv)
        returning = Returning(stage, returned, grads)
        of_others += [of_shape(grads.block_bias, bias), of_shape(grads.sinks, sinks)]
    assert returning is not None
    returning.add_to(dk, dv)
    return dq, dk, dv, of_others


class Returning(NamedTuple):
    """A stage whose gradients are on their way back."""

    stage: Stage
    returned: Started
    grads: Gradients

    def add_to(self, dk: Tensor, dv: Tensor) -> None:
        """Wait for them, and write the sum of all to the heads of the stage."""
        local, returned = self.stage.local, self.returned.wait()
        heads, own = self.stage.kv_heads, slice(local.own_at, local.own_at + dk.shape[1])
        for own_grad, theirs, into in ((self.grads.k, returned.k, dk), (self.grads.v, returned.v, dv)):
            add_returned(own_grad[:, own], theirs, local.returned, into[:, :, heads.start : heads.stop])


def gradients_of_heads(
    served: Served,
    heads: range,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    sinks: Tensor | None,
    results: Results,
    dq: Tensor,
) -> Gradients:
    """Fill some heads of `dq`; their gradients, with those of all tokens of k and v."""
    part = slice(heads.start, heads.stop)
    problem = served.static_problem.with_inputs(q[:, :, part], k, v, bias, sinks)
    out, lse, grad_out, grad_lse = results
    made: Gradients = without_function_modes(
        served.backend.backward_into, problem, out[:, :, part], lse[:, part].contiguous(), grad_out[:, :, part],
        None if grad_lse is None else grad_lse[:, part].contiguous(), dq[:, :, part],
    )  # fmt: skip
    return made
