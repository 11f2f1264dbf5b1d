"""Time and memory of a peer on a case."""

from __future__ import annotations

import gc
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout

from .cases import Case
from .outcome import interruptible
from .peers import Peer


@dataclass
class Row:
    """The figures of a peer on a case; None if not measured. Times in ms, memory in bytes."""

    peer: str
    case: Case
    dense: bool = False
    forward_ms: float | None = None
    backward_ms: float | None = None
    forward_tflops: float | None = None
    backward_tflops: float | None = None
    peak_bytes: int | None = None  # of forward and backward, above the inputs and the gradient of out
    mask_ms: float | None = None  # to build the layout or the mask of the peer
    error: float | None = None  # relative to the output of the first sparse peer in a round
    refused: str | None = None
    grad_error: float | None = None  # likewise, the greatest of dq, dk and dv

    @property
    def has_figures(self) -> bool:
        return self.forward_ms is not None


@dataclass
class Expected:
    """The results of the first sparse peer of a case, with which those of the others must agree."""

    peer: str
    out: Tensor
    grads: tuple[Tensor, ...] | None = None


# The greatest relative difference of results that count as the same: bfloat16 and float16 leave about 3e-3.
TOLERANCE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 2e-2}


class Disagreement(ArithmeticError):
    """Results of a peer that are not those of the others: its times count for nothing."""


def relative(x: Tensor, expected: Tensor) -> float:
    """The norm of the difference over that of what is expected."""
    return float((x.float() - expected).norm() / expected.float().norm())


def check(what: str, error: float, expected: Expected, case: Case) -> float:
    """The error, if it is one of rounding; else `Disagreement`."""
    if not error <= TOLERANCE[case.dtype]:
        raise Disagreement(f"{what} differs from that of {expected.peer} by {error:.1e}")
    return error


def tokens_first(x: Tensor, peer: Peer) -> Tensor:
    return x.transpose(1, 2) if peer.heads_first else x


def compare_gradients(row: Row, peer: Peer, grads: Sequence[Tensor], expected: Expected | None) -> None:
    """Fill in `grad_error`; the gradients of the first sparse peer become those that are expected."""
    if peer.dense or expected is None:
        return
    found = [tokens_first(x, peer) for x in grads]
    if expected.grads is None:
        expected.grads = tuple(x.clone() for x in found)
    row.grad_error = max(relative(x, other) for x, other in zip(found, expected.grads, strict=True))
    check("its gradient", row.grad_error, expected, row.case)


def median_row(rows: list[Row]) -> Row:
    """Merge the rows of a peer and case from several rounds: medians, peak memory, the first refusal."""

    def figures(name: str) -> list[float]:
        return [value for row in rows if (value := getattr(row, name)) is not None]

    merged: dict[str, Any] = {
        name: statistics.median(figures(name)) if figures(name) else None
        for name in ("forward_ms", "backward_ms", "forward_tflops", "backward_tflops", "mask_ms")
    }
    merged |= {name: max(figures(name), default=None) for name in ("peak_bytes", "error", "grad_error")}
    refused = next((row.refused for row in rows if row.refused is not None), None)
    return replace(rows[0], **merged, refused=refused)


def median_ms(call: Callable[[], object], device: str, repeat_ms: float) -> float:
    """Median milliseconds of a call: CUDA events on a GPU, the wall clock on a CPU."""
    if device == "cuda":
        from triton.testing import do_bench

        return float(do_bench(call, warmup=repeat_ms / 4, rep=repeat_ms, return_mode="median"))
    call()
    times: list[float] = []
    while len(times) < 3 or (sum(times) * 1000 < repeat_ms and len(times) < 100):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def one_line(error: Exception) -> str:
    """The type and the first line of an error, without folder names."""
    text = str(error).strip().splitlines()
    first = re.sub(r"(?<![\w.])(?:/[\w.+-]+)+/", "", text[0]) if text else ""
    return f"{type(error).__name__}: {first[:160]}"


def build(case: Case, device: str) -> tuple[BlockLayout, float]:
    """Our layout of a case, and the milliseconds of building it a second time."""
    case.layout(device)
    synchronize(device)
    start = time.perf_counter()
    layout = case.layout(device)
    synchronize(device)
    return layout, (time.perf_counter() - start) * 1000


def measure(
    peer: Peer,
    case: Case,
    layout: BlockLayout,
    layout_ms: float,
    device: str,
    expected: Expected | None,
    repeat_ms: float,
    with_backward: bool,
) -> tuple[Row, Expected | None]:
    """The row of a peer; and `expected`, or the results of this peer if it is the first sparse one."""
    row, call, expected = prepared(peer, case, layout, layout_ms, device, expected)
    if call is not None:
        with interruptible([row]):
            time_both(row, call, device, repeat_ms, with_backward, partial(compare_gradients, row, peer))
    return row, expected


def time_both(
    row: Row,
    call: Call,
    device: str,
    repeat_ms: float,
    with_backward: bool,
    compare: Callable[[Sequence[Tensor], Expected | None], None],
) -> None:
    """Measure the times of the forward and then of the backward."""
    try:
        row.forward_ms = median_ms(call.forward, device, repeat_ms)
        row.forward_tflops = call.flops / row.forward_ms / 1e9
    except Exception as error:
        row.refused = one_line(error)
        return
    if with_backward:
        try:
            for tensor in call.inputs:
                tensor.requires_grad_()  # not earlier: some peers refuse inputs that require gradients
            time_backward(row, call, device, repeat_ms, compare)
        except Exception as error:  # the figures of the forward remain valid
            row.refused = f"backward: {one_line(error)}"


@dataclass
class Call:
    """A call of a peer to be timed."""

    attend: Callable[[Tensor, Tensor, Tensor], Tensor]
    inputs: tuple[Tensor, Tensor, Tensor]
    grad: Tensor
    flops: int
    expected: Expected | None

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.attend(*self.inputs)

    def backward(self) -> Callable[[], tuple[Tensor, ...]]:
        """A function that runs the backward, for one forward with copies of the inputs."""
        q, k, v = (x.clone().requires_grad_() for x in self.inputs)
        out = self.attend(q, k, v)
        return lambda: torch.autograd.grad(out, (q, k, v), self.grad, retain_graph=True)


def prepared(
    peer: Peer, case: Case, layout: BlockLayout, layout_ms: float, device: str, expected: Expected | None
) -> tuple[Row, Call | None, Expected | None]:
    """A row without times and the call to be timed, None if the peer refuses or is wrong; `expected` as in `measure`."""
    row = Row(peer.name, case, dense=peer.dense)
    row.refused = peer.rejects(case, device)
    if row.refused is not None:
        return row, None, expected
    try:
        (q, k, v), grad = case.inputs(device), case.grad_out(device)
        if peer.heads_first:
            q, k, v, grad = (x.transpose(1, 2).contiguous() for x in (q, k, v, grad))
        start = time.perf_counter()
        attend = peer.prepare(case, layout)
        synchronize(device)
        row.mask_ms = layout_ms if peer.name.startswith("ours") else (time.perf_counter() - start) * 1000
        flops = case.flops(case.dense_pairs() if peer.dense else case.token_pairs(layout))
        call = Call(attend, (q, k, v), grad, flops, expected)
        out = call.forward()
        if not peer.dense:
            if expected is None:
                call.expected = expected = Expected(peer.name, tokens_first(out, peer).clone())
            row.error = relative(tokens_first(out, peer), expected.out)
            check("its output", row.error, expected, case)
        del out
    except Exception as error:  # a peer that fails is a row of the table, not the end of the run
        row.refused = one_line(error)
        return row, None, expected
    return row, call, expected


def measure_in_turn(
    peers: list[Peer],
    case: Case,
    layout: BlockLayout,
    layout_ms: float,
    repeat_ms: float,
    with_backward: bool,
) -> list[Row]:
    """The rows of all peers on a CPU, which take turns call by call, because the load of a CPU varies."""
    rows: list[Row] = []
    calls: list[tuple[Row, Peer, Call]] = []
    expected: Expected | None = None
    for peer in peers:
        row, call, expected = prepared(peer, case, layout, layout_ms, "cpu", expected)
        rows.append(row)
        if call is not None:
            calls.append((row, peer, call))
    with interruptible(rows):
        time_in_turn(calls, repeat_ms, with_backward)
    return rows


def time_in_turn(calls: list[tuple[Row, Peer, Call]], repeat_ms: float, with_backward: bool) -> None:
    """Measure the times of all forwards and then of all backwards."""
    for (row, _, call), ms in zip(calls, turns([call.forward for *_, call in calls], repeat_ms), strict=True):
        row.forward_ms, row.forward_tflops = ms, call.flops / ms / 1e9
    if with_backward:
        backward: list[tuple[Row, int, Callable[[], object]]] = []
        for row, peer, call in calls:
            try:
                backward_of_call = call.backward()
                compare_gradients(row, peer, backward_of_call(), call.expected)
                backward.append((row, call.flops, backward_of_call))
            except Exception as error:  # the figures of the forward remain valid
                row.refused = f"backward: {one_line(error)}"
        for (row, flops, _), ms in zip(
            backward, turns([each[2] for each in backward], repeat_ms), strict=True
        ):
            row.backward_ms, row.backward_tflops = ms, 2.5 * flops / ms / 1e9


def turns(calls: Sequence[Callable[[], object]], repeat_ms: float) -> list[float]:
    """Median milliseconds of calls made in turn, at least 7 times each."""
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + len(calls) * repeat_ms / 1000
    n_turns = 0
    while n_turns < 7 or (time.perf_counter() < end and n_turns < 1000):
        n_turns += 1
        for found, call in zip(times, calls, strict=True):
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
    return [statistics.median(found) * 1000 for found in times]


def time_backward(
    row: Row,
    call: Call,
    device: str,
    repeat_ms: float,
    compare: Callable[[Sequence[Tensor], Expected | None], None],
) -> None:
    inputs, grad = call.inputs, call.grad

    def clear() -> None:
        for tensor in inputs:
            tensor.grad = None

    def forward() -> Tensor:
        return call.attend(*inputs)

    forward().backward(grad)  # warm-up: peers may compile
    compare([x.grad for x in inputs if x.grad is not None], call.expected)
    clear()
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        forward().backward(grad)
        torch.cuda.synchronize()
        row.peak_bytes = torch.cuda.max_memory_allocated() - before
        clear()
    out = forward()

    def backward() -> None:
        clear()
        out.backward(grad, retain_graph=True)

    row.backward_ms = median_ms(backward, device, repeat_ms)
    row.backward_tflops = 2.5 * call.flops / row.backward_ms / 1e9


def free(device: str) -> None:
    """Free cached memory before the next peer."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
