"""Host time of a call, with a problem so small that the GPU hardly matters: `attention-bench host`.

A thousand calls are timed with the host clock, without waiting for the GPU in between. For ours on the Hopper backend,
the time in Python is also given: the host time minus two allocations, the launch and, with gradients, an autograd node.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from dilated_attention_pytorch.cli.arguments import positive_int

from . import files, host_overhead, options, outcome
from .cases import Case
from .environment import environment, footnote
from .measure import build, free, one_line, synchronize
from .peers import PEERS, Peer

KIND = "host"
BASE = Case(1024, 4, 64, 64, 0.1)


@dataclass
class HostRow:
    """Times per call in microseconds, medians of several repeats; None if not measured.

    A floor is the time of the same call without the Python code of the library (host_overhead.py). It is measured for
    `ours` on the backend `hopper`.
    """

    peer: str
    case: Case
    calls: int
    repeats: int
    forward_us: float | None = None  # without gradients
    forward_grad_us: float | None = None  # with inputs that require gradients
    backward_us: float | None = None
    forward_floor_us: float | None = None
    forward_grad_floor_us: float | None = None
    refused: str | None = None

    @property
    def has_figures(self) -> bool:
        return self.forward_us is not None

    @property
    def forward_python_us(self) -> float | None:
        return above(self.forward_us, self.forward_floor_us)

    @property
    def forward_grad_python_us(self) -> float | None:
        return above(self.forward_grad_us, self.forward_grad_floor_us)


def above(total: float | None, least: float | None) -> float | None:
    """The part of the total above the floor; None if either is unknown."""
    return None if total is None or least is None else total - least


def call_us(call: Callable[[], object], device: str, calls: int, repeats: int) -> float:
    """Microseconds per call, the median over the repeats."""
    for _ in range(min(calls, 10)):
        call()
    synchronize(device)
    taken = []
    for _ in range(repeats):
        start = time.perf_counter_ns()
        for _ in range(calls):
            call()
        taken.append((time.perf_counter_ns() - start) / calls / 1000)
        synchronize(device)
    return statistics.median(taken)


def measure(peer: Peer, case: Case, device: str, calls: int, repeats: int) -> HostRow:
    """The row of one peer."""
    row = HostRow(peer.name, case, calls, repeats)
    row.refused = peer.rejects(case, device)
    if row.refused is not None:
        return row
    with outcome.interruptible([row]):
        fill_in(row, peer, device)
    return row


def fill_in(row: HostRow, peer: Peer, device: str) -> None:
    """Measure the times of a row."""
    case, calls, repeats = row.case, row.calls, row.repeats
    try:
        layout, _ = build(case, device)
        (q, k, v), grad = case.inputs(device), case.grad_out(device)
        if peer.heads_first:
            q, k, v, grad = (x.transpose(1, 2).contiguous() for x in (q, k, v, grad))
        attend = peer.prepare(case, layout)
        with torch.no_grad():
            row.forward_us = call_us(lambda: attend(q, k, v), device, calls, repeats)
            bare = host_overhead.prepare(case, layout, q, k, v) if peer.name == "ours" else None
            if bare is not None:
                row.forward_floor_us = call_us(bare, device, calls, repeats)
        for tensor in (q, k, v):
            tensor.requires_grad_()
        row.forward_grad_us = call_us(lambda: attend(q, k, v), device, calls, repeats)
        if bare is not None:
            row.forward_grad_floor_us = call_us(
                host_overhead.with_gradients(bare, q, k, v), device, calls, repeats
            )
        out = attend(q, k, v)
        row.backward_us = call_us(
            lambda: torch.autograd.grad(out, (q, k, v), grad, retain_graph=True), device, calls, repeats
        )
    except Exception as error:  # a peer that fails is a row of the table
        row.refused = one_line(error)


def read_json(path: str) -> tuple[list[HostRow], dict[str, Any]]:
    return files.read_rows(path, KIND, HostRow, Case)


def microseconds(value: float | None) -> str:
    return "none" if value is None else f"{value:,.1f} us"


def times(row: HostRow) -> tuple[str, str, str]:
    """Forward, forward with gradients and backward, with the time in Python if it is known."""

    def shown(total: float | None, python: float | None) -> str:
        return microseconds(total) + ("" if python is None else f" ({microseconds(python)} of Python)")

    return (
        shown(row.forward_us, row.forward_python_us),
        shown(row.forward_grad_us, row.forward_grad_python_us),
        microseconds(row.backward_us),
    )


def markdown(rows: list[HostRow], where: dict[str, Any]) -> str:
    """The rows as a Markdown table."""
    lines = ["| case | library | forward | forward with gradients | backward |", "|---|---|---|---|---|"]
    lines += [f"| {row.case.label} | {row.peer} | " + " | ".join(times(row)) + " |" for row in rows]
    return "\n".join(lines) + "\n\n" + footnote(where)


def line(row: HostRow) -> str:
    forward, with_gradients, backward = times(row)
    return (
        f"{row.case.label}: {row.peer} forward {forward}, with gradients {with_gradients}, backward {backward} a call"
        + (f", refused: {row.refused}" if row.refused else "")
    )


def build_parser() -> argparse.ArgumentParser:
    parser = options.make_parser("attention-bench host", __doc__)
    options.add_device(parser)
    options.add_case(parser, f"default: {BASE.label}, bfloat16 or, on a CPU, float32")
    parser.add_argument(
        "--peers", nargs="+", choices=PEERS, metavar="PEER", default=["ours"], help="default: ours"
    )
    parser.add_argument("--calls", type=positive_int, default=1000, help="calls per repeat (default 1000)")
    parser.add_argument(
        "--repeats", type=positive_int, default=5, help="repeats, of which the median is taken (default 5)"
    )
    options.add_json(parser, "the figures with device, versions and date")
    return parser


def main(arguments: list[str]) -> int:
    parser = build_parser()
    given = parser.parse_args(arguments)
    device = options.device_of(given)
    case = options.case_of(given, options.for_device(BASE, device))
    command = options.command_line(parser.prog, arguments, given.json)
    rows: list[HostRow] = []

    def add(row: HostRow) -> None:
        rows.append(row)
        print(line(row), flush=True)
        if given.json:
            files.write(given.json, KIND, rows, environment(device, command))

    try:
        for name in dict.fromkeys(given.peers):
            add(measure(PEERS[name], case, device, given.calls, given.repeats))
            free(device)
    except KeyboardInterrupt as stopped:
        for row in getattr(stopped, "rows", []):
            add(row)
        return outcome.interrupted(parser.prog, rows, given.json)
    return outcome.finished(parser.prog, rows)
