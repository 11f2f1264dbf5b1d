"""Time and memory of one peer on one case."""

from __future__ import annotations

import gc
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout

from .cases import Case
from .peers import Peer


@dataclass
class Row:
    """What was measured of one peer on one case; None where it was not. Times in ms, memory in bytes."""

    peer: str
    case: Case
    dense: bool = False
    forward_ms: float | None = None
    backward_ms: float | None = None
    forward_tflops: float | None = None
    backward_tflops: float | None = None
    peak_bytes: int | None = None  # forward and backward, above inputs and the gradient of out
    mask_ms: float | None = None  # layout or mask build
    error: float | None = None  # relative to the first peer of a round that computes the same
    refused: str | None = None


def median_row(rows: list[Row]) -> Row:
    """One row for those of one peer and case from several rounds: medians, the most memory, any refusal."""

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
    """Median time of a call: CUDA events on a GPU, the wall clock on a CPU."""
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
    """The beginning of a message, without the folders of this machine."""
    text = str(error).strip().splitlines()
    first = re.sub(r"(?<![\w.])(?:/[\w.+-]+)+/", "", text[0]) if text else ""
    return f"{type(error).__name__}: {first[:160]}"


def build(case: Case, device: str) -> tuple[BlockLayout, float]:
    """Our layout of a case, and the time that a second build of it takes."""
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
    """The row of one peer, and its output when it is the first that follows the pattern."""
    row = Row(peer.name, case, dense=peer.dense)
    row.refused = peer.rejects(case, device)
    if row.refused is not None:
        return row, expected
    try:
        (q, k, v), grad = case.inputs(device), case.grad_out(device)
        if peer.heads_first:
            q, k, v, grad = (x.transpose(1, 2).contiguous() for x in (q, k, v, grad))
        start = time.perf_counter()
        attend = peer.prepare(case, layout)
        synchronize(device)
        row.mask_ms = layout_ms if peer.name.startswith("ours") else (time.perf_counter() - start) * 1000
        flops = case.flops(case.dense_pairs() if peer.dense else case.token_pairs(layout))

        def forward() -> Tensor:
            with torch.no_grad():
                return attend(q, k, v)

        if not peer.dense:
            out = forward()
            mine = (out.transpose(1, 2) if peer.heads_first else out).clone()
            if expected is None:
                expected = mine
            row.error = float((mine.float() - expected).norm() / expected.float().norm())
            del out, mine
        row.forward_ms = median_ms(forward, device, repeat_ms)
        row.forward_tflops = flops / row.forward_ms / 1e9
    except Exception as error:  # a peer that fails is a row of the table, not the end of the run
        row.refused = one_line(error)
        return row, expected
    if with_backward:
        try:
            for tensor in (q, k, v):
                tensor.requires_grad_()  # only now: some peers refuse inputs that will need a backward
            time_backward(row, lambda: attend(q, k, v), (q, k, v), grad, flops, device, repeat_ms)
        except Exception as error:  # the figures of the forward stay
            row.refused = f"backward: {one_line(error)}"
    return row, expected


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

    forward().backward(grad)  # compiles
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
    """Give everything back before the next peer."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
