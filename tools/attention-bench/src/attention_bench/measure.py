"""Time and memory of a peer on a case."""

from __future__ import annotations

import gc
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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

    @property
    def has_figures(self) -> bool:
        return self.forward_ms is not None


def median_row(rows: list[Row]) -> Row:
    """Merge the rows of a peer and case from several rounds: medians, peak memory, the first refusal."""

    def figures(name: str) -> list[float]:
        return [value for row in rows if (value := getattr(row, name)) is not None]

    merged: dict[str, Any] = {
        name: statistics.median(figures(name)) if figures(name) else None
        for name in ("forward_ms", "backward_ms", "forward_tflops", "backward_tflops", "mask_ms")
    }
    merged |= {name: max(figures(name), default=None) for name in ("peak_bytes", "error")}
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
    expected: Tensor | None,
    repeat_ms: float,
    with_backward: bool,
) -> tuple[Row, Tensor | None]:
    """The row of a peer; and `expected`, or the output of this peer if it is the first sparse one."""
    row, call, expected = prepared(peer, case, layout, layout_ms, device, expected)
    if call is not None:
        with interruptible([row]):
            time_both(row, call, device, repeat_ms, with_backward)
    return row, expected


def time_both(row: Row, call: Call, device: str, repeat_ms: float, with_backward: bool) -> None:
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
            time_backward(
                row, lambda: call.attend(*call.inputs), call.inputs, call.grad, call.flops, device, repeat_ms
            )
        except Exception as error:  # the figures of the forward remain valid
            row.refused = f"backward: {one_line(error)}"


@dataclass
class Call:
    """A call of a peer to be timed."""

    attend: Callable[[Tensor, Tensor, Tensor], Tensor]
    inputs: tuple[Tensor, Tensor, Tensor]
    grad: Tensor
    flops: int

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.attend(*self.inputs)

    def backward(self) -> Callable[[], None]:
        """A function that runs the backward, for one forward with copies of the inputs."""
        q, k, v = (x.clone().requires_grad_() for x in self.inputs)
        out = self.attend(q, k, v)

        def call() -> None:
            torch.autograd.grad(out, (q, k, v), self.grad, retain_graph=True)

        call()
        return call


def prepared(
    peer: Peer, case: Case, layout: BlockLayout, layout_ms: float, device: str, expected: Tensor | None
) -> tuple[Row, Call | None, Tensor | None]:
    """A row without times and the call to be timed, None if the peer refuses; `expected` as in `measure`."""
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
        call = Call(
            attend,
            (q, k, v),
            grad,
            case.flops(case.dense_pairs() if peer.dense else case.token_pairs(layout)),
        )
        out = call.forward()
        if not peer.dense:
            mine = (out.transpose(1, 2) if peer.heads_first else out).clone()
            if expected is None:
                expected = mine
            row.error = float((mine.float() - expected).norm() / expected.float().norm())
            del mine
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
    calls: list[tuple[Row, Call]] = []
    expected: Tensor | None = None
    for peer in peers:
        row, call, expected = prepared(peer, case, layout, layout_ms, "cpu", expected)
        rows.append(row)
        if call is not None:
            calls.append((row, call))
    with interruptible(rows):
        time_in_turn(calls, repeat_ms, with_backward)
    return rows


def time_in_turn(calls: list[tuple[Row, Call]], repeat_ms: float, with_backward: bool) -> None:
    """Measure the times of all forwards and then of all backwards."""
    for (row, call), ms in zip(calls, turns([call.forward for _, call in calls], repeat_ms), strict=True):
        row.forward_ms, row.forward_tflops = ms, call.flops / ms / 1e9
    if with_backward:
        backward: list[tuple[Row, int, Callable[[], None]]] = []
        for row, call in calls:
            try:
                backward.append((row, call.flops, call.backward()))
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
    forward: Callable[[], Tensor],
    inputs: tuple[Tensor, Tensor, Tensor],
    grad: Tensor,
    flops: int,
    device: str,
    repeat_ms: float,
) -> None:
    def clear() -> None:
        for tensor in inputs:
            tensor.grad = None

    forward().backward(grad)  # warm-up: peers may compile
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
    row.backward_tflops = 2.5 * flops / row.backward_ms / 1e9


def free(device: str) -> None:
    """Free cached memory before the next peer."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
