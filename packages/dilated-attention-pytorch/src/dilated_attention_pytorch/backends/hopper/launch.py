"""Launches of the Hopper kernels; no maths."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import _torch_internals
from ...launching.kept_kernel import KeptKernel
from ..dropout import keep_scale
from ..gap_kernel import clear_gaps_kernel
from ..gaps import clearing
from ..problem import AttentionProblem, Forward, Gradients
from .adding import Adding
from .expected import compile_backward_beside
from .kernels.merge_shares import merge_shares_kernel
from .launcher import LAUNCHES, Launch, multiprocessors, tile_counter
from .passes import (
    FORWARD,
    NO_TENSORS,
    BackwardCall,
    BackwardPass,
    backward_of,
    extra_pointers,
    kernel_dim,
    slot_parts,
)
from .prepared import has_kernel_blocks, of_kernel_blocks, work_order_of
from .quarters import LARGE
from .share_arguments import ShareResults, empty_results, merge_arguments, share_arguments, share_tensors
from .shares import can_be_split, num_shares, num_shares_of, problem_of_shares
from .single_pass import SINGLE_PASS
from .sinks import sink_gradient
from .strides import is_readable
from .wide import (
    Addresses,
    addresses,
    bias_slots,
    call_tensors,
    chunks,
    has_positions,
    has_positions_in_forward,
    has_query_gaps,
    is_wide,
    row_groups,
)

CLEAR_GAPS, MERGE_SHARES = KeptKernel(clear_gaps_kernel), KeptKernel(merge_shares_kernel)


def aligned(x: Tensor) -> Tensor:
    """The tensor, or a copy if its address is no multiple of 16 bytes, which a trace cannot see."""
    return x if x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.preserve_format)


def readable(x: Tensor) -> Tensor:
    """The tensor, or a contiguous copy if the tensor memory accelerator cannot read it."""
    return x if is_readable(x) else x.clone(memory_format=torch.contiguous_format)


def with_readable_inputs(problem: AttentionProblem) -> AttentionProblem:
    """The problem with copies of those of q, k and v that the tensor memory accelerator cannot read."""
    p = problem
    q, k, v = readable(p.q), readable(p.k), readable(p.v)
    return p if q is p.q and k is p.k and v is p.v else replace(p, q=q, k=k, v=v)


def empty_out(q: Tensor, v: Tensor) -> Tensor:
    """Memory for out; `empty_like` takes half the time of `new_empty`."""
    if q.shape[3] == v.shape[3]:
        return torch.empty_like(q, memory_format=torch.contiguous_format)
    return q.new_empty(*q.shape[:3], v.shape[3])


class ForwardLaunch(NamedTuple):
    """The forward of a problem and of all others of its shapes and strides, ready to run."""

    launch: Launch | None  # None without queries, keys or sequences
    pointers: tuple[str, ...]  # behind the tile counter
    absent: Addresses | None  # what a plain call gives for them; None for a wide call


def make_forward(
    problem: AttentionProblem, out: Tensor, lse: Tensor, tensors: dict[str, Tensor], index: int
) -> ForwardLaunch:
    """The launch; `tensors` are the pointers of a wide call."""
    p, n_tiles = problem, FORWARD.n_tiles(problem)
    names = extra_pointers(FORWARD.kernel)
    made = None
    if n_tiles and p.kv_len:
        grid = min(n_tiles, FORWARD.programs(p) * multiprocessors(index))
        compile_backward_beside(p, out, lse, tensors)
        made = Launch(FORWARD.kernel, FORWARD.arguments(p, out, lse, tensors), FORWARD.options(p), grid)
    return ForwardLaunch(made, names, None if is_wide(p) else (None,) * len(names))


def launch_forward(problem: AttentionProblem, into: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """out, which is `into` where that is given, and lse of a problem."""
    p, q, k, v, index = problem, problem.q, problem.k, problem.v, problem.q.get_device()
    if index != _torch_internals.current_device():
        with torch.cuda.device(index):
            return launch_forward(problem, into)
    if (q.data_ptr() | k.data_ptr() | v.data_ptr()) % 16:
        return launch_forward(with_readable_inputs(p), into)
    if not has_kernel_blocks(p):
        p = of_kernel_blocks(p)
    key: Hashable = ("forward", p.signature)
    if p.shares:
        key = shares_key(p)
    elif into is not None:
        key = ("forward", p.signature, into.stride())
    made: Any = LAUNCHES.get(key)
    if made is None:  # strides that cannot be read have no launch, so nobody else looks at them
        copied = with_readable_inputs(problem)
        if copied is not problem:
            return launch_forward(copied, into)
    batch, q_len, num_heads, _ = q.shape
    # the fastest ways to make a tensor
    out = empty_out(q, v) if into is None else into
    lse = torch.empty_strided(
        (batch, num_heads, q_len), (num_heads * q_len, q_len, 1), dtype=torch.float32, device=q.device
    )
    if p.shares:
        launch_shares(p, out, lse, index, made)
        return out, lse
    tensors = NO_TENSORS
    if made is None or made.absent is None:
        tensors = FORWARD.extra_tensors(p, out, call_tensors(p)) if is_wide(p) else NO_TENSORS
    if made is None:
        made = LAUNCHES.keep(key, make_forward(p, out, lse, tensors, index))
    launch, pointers, extras = made
    if launch is not None:
        extras = addresses(pointers, tensors) if extras is None else extras
        launch.run(
            index, (q, k, v, k, v, out), (lse.data_ptr(), *FORWARD.lists(p), tile_counter(index), *extras)
        )
    else:  # no descriptor for no tokens
        out.zero_()
        lse.fill_(-torch.inf)
    if p.sequences is not None and has_query_gaps(problem):
        clear(p, "q_start", out, lse=lse)
    return out, lse


def wanted_shares(problem: AttentionProblem) -> int:
    """Into how many shares the rows of a problem are split on its device."""
    if not can_be_split(problem):
        return 1
    slots = FORWARD.programs(problem) * multiprocessors(problem.q.get_device())
    return num_shares(problem, kernel_dim(problem), slots)


def shares_key(problem: AttentionProblem) -> Hashable:
    """What the launch of a problem whose rows are split is kept under."""
    return "shares", problem.signature, num_shares_of(problem)


def launch_shares(
    problem: AttentionProblem, out: Tensor, lse: Tensor, index: int, launch: Launch | None
) -> None:
    """Fill out and lse of a problem whose rows are split, by its launch if there is one; device `index` is the current one."""
    p, n_shares = problem_of_shares(problem), num_shares_of(problem)
    results = empty_results(p, n_shares)
    tensors = share_tensors(p, results)
    if launch is None:
        n_tiles = n_shares * row_groups(p) * p.num_heads
        grid = min(n_tiles, FORWARD.programs(p) * multiprocessors(index))
        arguments = share_arguments(p, results, tensors)
        compile_backward_beside(problem, out, lse, NO_TENSORS)
        made = Launch(FORWARD.kernel, arguments, FORWARD.options(p), grid)
        launch = LAUNCHES.keep(shares_key(problem), made)
    extras = addresses(extra_pointers(FORWARD.kernel), tensors)
    described = (p.q, p.k, p.v, p.k, p.v, p.q)
    launch.run(index, described, (results.lse.data_ptr(), *FORWARD.lists(p), tile_counter(index), *extras))
    grid, merging = merge_arguments(results, n_shares, out, lse, problem.sinks)
    MERGE_SHARES.run(out.device, grid, merging)


def clear(
    problem: AttentionProblem, column: str, x: Tensor, y: Tensor | None = None, lse: Tensor | None = None
) -> None:
    """Clear what tokens in no sequence have; the kernels write no such token."""
    assert problem.sequences is not None
    grid, arguments = clearing(problem.sequences, column, x, y, lse)
    CLEAR_GAPS.run(x.device, grid[0], tuple(arguments.values()))


def bind_forward(problem: AttentionProblem) -> Forward | None:
    """`launch_forward` for problems that differ from this one in q, k and v only, with everything else looked up once.

    None if no such problem was launched, for example without queries or because q, k or v had to be copied, or if a call gives more tensors.
    """
    p, index, device = problem, problem.q.get_device(), problem.q.device
    if p.shares:
        return bind_shares(p)
    made: ForwardLaunch | None = LAUNCHES.get(("forward", p.signature))
    if made is None or made.launch is None or p.sequences is not None or p.key_padding_mask is not None:
        return None
    static_problem = p.without_inputs()  # keeps the tensors of these addresses alive
    if not has_kernel_blocks(p):
        p = of_kernel_blocks(p)
    launch = made.launch
    before: Addresses = made.absent or ()
    after: Addresses = ()
    has_rows = has_positions_in_forward(p) and "OutRows" in made.pointers
    if made.absent is None:
        before = addresses(made.pointers, FORWARD.extra_tensors(p, p.q, NO_TENSORS))
    if has_rows:
        place = made.pointers.index("OutRows")
        before, after = before[:place], before[place + 1 :]
    batch, q_len, num_heads, _ = p.q.shape
    shape, steps = (batch, num_heads, q_len), (num_heads * q_len, q_len, 1)
    lists = FORWARD.lists(p)

    def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if (q.data_ptr() | k.data_ptr() | v.data_ptr()) % 16 or index != _torch_internals.current_device():
            return launch_forward(static_problem.with_inputs(q, k, v, None))
        out = empty_out(q, v)
        lse = torch.empty_strided(shape, steps, dtype=torch.float32, device=device)
        rows = (out.data_ptr(),) if has_rows else ()
        given = (lse.data_ptr(), *lists, tile_counter(index), *before, *rows, *after)
        launch.run(index, (q, k, v, k, v, out), given)
        return out, lse

    return forward


def bind_shares(problem: AttentionProblem) -> Forward | None:
    """`bind_forward` of a problem whose rows are split."""
    p, n_shares, index = problem, num_shares_of(problem), problem.q.get_device()
    launch: Launch | None = LAUNCHES.get(shares_key(p))
    if launch is None or is_wide(p):
        return None
    static_problem, lists, names = p.without_inputs(), problem_of_shares(p), extra_pointers(FORWARD.kernel)
    batch, q_len, num_heads, dim = p.q.shape
    n, device = n_shares * batch, p.q.device
    part_shape, part_lse_shape = (n, q_len, num_heads, dim), (n, num_heads, q_len)
    shape, steps = (batch, num_heads, q_len), (num_heads * q_len, q_len, 1)
    its_lists = FORWARD.lists(lists)

    def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if (q.data_ptr() | k.data_ptr() | v.data_ptr()) % 16 or index != _torch_internals.current_device():
            return launch_forward(static_problem.with_inputs(q, k, v, None))
        out = empty_out(q, v)
        lse = torch.empty_strided(shape, steps, dtype=torch.float32, device=device)
        results = ShareResults(
            torch.empty(part_shape, dtype=torch.float32, device=device),
            torch.empty(part_lse_shape, dtype=torch.float32, device=device),
        )
        extras = addresses(names, {"OutRows": results.out})
        given = (results.lse.data_ptr(), *its_lists, tile_counter(index), *extras)
        launch.run(index, (q, k, v, k, v, q), given)
        grid, merging = merge_arguments(results, n_shares, out, lse, None)
        MERGE_SHARES.run(device, grid, merging)
        return out, lse

    return forward


def backward_call(
    problem: AttentionProblem,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    into: Tensor | None = None,
) -> BackwardCall:
    """The call, with copies of tensors that the kernels cannot read; dq is `into` where that is given."""
    p = problem
    grad_out = readable(grad_out)
    # all unchanged since the forward, unless a hook on saved tensors changed them
    out, lse = out if out.stride(3) == 1 else out.contiguous(), lse.contiguous()
    if not has_kernel_blocks(p):
        p = of_kernel_blocks(p)
    p = with_readable_inputs(p)
    q, k, v = p.q, p.k, p.v
    out, lse = aligned(out), aligned(lse)
    has_grad_lse = grad_lse is not None
    grad_lse = lse if grad_lse is None else aligned(grad_lse)
    grad_q = torch.empty_like(q, memory_format=torch.contiguous_format) if into is None else into
    grad_k = torch.empty_like(k, memory_format=torch.contiguous_format)
    grad_v = torch.empty_like(v, memory_format=torch.contiguous_format)
    key = (
        p.signature, q.stride(), k.stride(), v.stride(), out.stride(), grad_out.stride(), grad_lse.stride(),
        has_grad_lse, None if into is None else into.stride(),
    )  # fmt: skip
    grads = Gradients(grad_q, grad_k, grad_v, None)
    return BackwardCall(p, out, lse, grad_out, grad_lse, has_grad_lse, grads, key)


def nothing_to_do(call: BackwardCall) -> bool:
    """Whether there are no queries or no keys; all gradients are then 0."""
    if call.grads.q.numel() and call.grads.k.numel():
        return False
    for grad in call.grads[:3]:
        grad.zero_()
    return True


class PassLaunch(NamedTuple):
    """A pass, ready to run."""

    of: BackwardPass
    launch: Launch
    work_order_at: int  # bytes from the start of the work order
    pointers: tuple[str, ...]  # behind the tile counter
    absent: Addresses | None  # as of a ForwardLaunch


class BackwardLaunches(NamedTuple):
    """The passes of a backward, and the memory that they share."""

    passes: list[PassLaunch]
    n_floats: int
    is_wide: bool


def make_backward(call: BackwardCall, index: int) -> BackwardLaunches:
    """The launches of a call and of all others of its shapes and strides."""
    p = call.problem
    backward, wide = backward_of(p), is_wide(p)
    # only its type counts: every call makes its own
    floats = torch.empty(1, dtype=torch.float32, device=p.q.device)
    made = []
    for each in backward.passes:
        grid = max(1, min(each.n_tiles(p), multiprocessors(index)))
        launch = Launch(each.kernel, each.arguments(call, floats), each.options(p), grid)
        names = extra_pointers(each.kernel)
        absent = None if wide else (None,) * len(names)
        made.append(PassLaunch(each, launch, 4 * each.work_order_at(p), names, absent))
    return BackwardLaunches(made, backward.n_floats(p), wide)


def with_wide_tensors(call: BackwardCall) -> BackwardCall:
    """The call with the tensors that its kernels read beside the usual ones."""
    p = call.problem
    tensors = call_tensors(p)
    if p.block_bias is not None:
        tensors["Slots"] = bias_slots(p, slot_parts(p))
    return call._replace(tensors=tensors)


def launch_backward(
    problem: AttentionProblem,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    into: Tensor | None = None,
) -> Gradients:
    """Gradients of a problem; dq is `into` where that is given."""
    index = problem.q.get_device()
    if index != _torch_internals.current_device():
        with torch.cuda.device(index):
            return launch_backward(problem, out, lse, grad_out, grad_lse, into)
    call = backward_call(problem, out, lse, grad_out, grad_lse, into)
    if nothing_to_do(call):
        return without_pairs(problem, call.grads)
    adding = SINGLE_PASS.choice(call.problem)
    if isinstance(adding, Adding):
        return launch_single_pass(call, adding, index)
    key = ("backward", call.key)
    launches: BackwardLaunches | None = LAUNCHES.get(key)
    if launches is None or launches.is_wide:
        call = with_wide_tensors(call)
    if launches is None:
        launches = LAUNCHES.keep(key, make_backward(call, index))
    stats = torch.empty(launches.n_floats, dtype=torch.float32, device=out.device)
    saved = stats.data_ptr(), call.out.data_ptr(), call.lse.data_ptr(), call.grad_lse.data_ptr()
    work_order = work_order_of(call.problem).data_ptr()
    for each, launch, start, names, absent in launches.passes:
        described, places = each.tensors(call, saved, work_order + start)
        extras = addresses(names, each.extra_tensors(call)) if absent is None else absent
        launch.run(index, described, (*places, tile_counter(index), *extras))
    return completed(problem, call, stats) if launches.is_wide else call.grads


def why_deterministic(problem: AttentionProblem) -> str | None:
    """Why the backward of a problem with ``deterministic=False`` gives the same bits every time; None if it may not."""
    if SINGLE_PASS.wants_same_bits():
        return "torch.use_deterministic_algorithms(True) asks for the same bits"
    adding = SINGLE_PASS.choice(problem if has_kernel_blocks(problem) else of_kernel_blocks(problem))
    return adding if isinstance(adding, str) else None


def launch_single_pass(call: BackwardCall, adding: Adding, index: int) -> Gradients:
    """Gradients of a call that the single pass serves."""
    memory = SINGLE_PASS.memory(call.problem, adding)
    key = ("single pass", adding, memory.n_ranges, call.key)
    launch: Launch | None = LAUNCHES.get(key)
    if launch is None:
        grid = min(SINGLE_PASS.n_tiles(call.problem, memory), multiprocessors(index))
        arguments = SINGLE_PASS.arguments(call, memory)
        made = Launch(SINGLE_PASS.kernel, arguments, SINGLE_PASS.options(), grid)
        launch = LAUNCHES.keep(key, made)
    SINGLE_PASS.begin(call, memory)
    addresses_of_call = (*SINGLE_PASS.addresses(call, memory), tile_counter(index))
    launch.run(index, SINGLE_PASS.described(call, memory), addresses_of_call)
    SINGLE_PASS.finish(call, memory)
    return call.grads


def completed(problem: AttentionProblem, call: BackwardCall, stats: Tensor) -> Gradients:
    """The gradients of a wide call, with what the passes leave to others: tokens in no sequence, block_bias and sinks."""
    p, grads, tensors = call.problem, call.grads, call.tensors
    if p.sequences is not None:
        if has_query_gaps(problem):
            clear(p, "q_start", grads.q)
        clear(p, "kv_start", grads.k, grads.v)
    if "Slots" in tensors:
        of_blocks = tensors["Slots"].sum(-1)
        if problem.grid.block_size == LARGE:
            of_blocks = of_blocks.unflatten(2, (-1, 4)).sum(-1)
        grads = grads._replace(block_bias=of_blocks)
    if "Sinks" in tensors:
        n_heads = p.num_heads if has_positions(p) else p.batch * p.num_heads
        of_sinks = sink_gradient(
            stats, tensors["Sinks"], tensors.get("Starts"), n_heads, chunks(p) // n_heads
        )
        grads = grads._replace(sinks=of_sinks if p.seed is None else of_sinks * keep_scale(p.dropout_p))
    return grads


def without_pairs(problem: AttentionProblem, grads: Gradients) -> Gradients:
    """Gradients of a call without queries or without keys, where those of q, k and v are 0 already."""
    bias, sinks = (
        None if x is None else torch.zeros_like(x, dtype=torch.float32)
        for x in (problem.block_bias, problem.sinks)
    )
    return grads._replace(block_bias=bias, sinks=sinks)
