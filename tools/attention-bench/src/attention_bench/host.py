"""Python time of a call, on a problem so small that the GPU has nothing to do: `attention-bench host`.

A thousand calls are timed by the clock of the host, without waiting for the GPU in between. Of ours on the Hopper
backend also the Python alone: less two allocations, the launch and, with gradients, a node of autograd.
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
    """Time per call in microseconds, each the median of several repeats; None where it was not measured.

    A floor is what the same call takes without the Python of the library (host_overhead.py): of `ours` where the backend
    `hopper` serves it.
    """

    peer: str
    case: Case
    calls: int
    repeats: int
    forward_us: float | None = None  # without gradients
    forward_grad_us: float | None = None  # of inputs that will need a backward
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
    """What a total has above its floor."""
    return None if total is None or least is None else total - least


def call_us(call: Callable[[], object], device: str, calls: int, repeats: int) -> float:
    """Median over the repeats of the time per call."""
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
    """Time the calls of a row."""
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
    rows, where = files.read_kind(path, KIND)
    return [HostRow(**{**row, "case": Case(**row["case"])}) for row in rows], where


def microseconds(value: float | None) -> str:
    return "none" if value is None else f"{value:,.1f} us"


def times(row: HostRow) -> tuple[str, str, str]:
    """Forward, forward with gradients and backward, with how much of it is Python where that is known."""

    def shown(total: float | None, python: float | None) -> str:
        return microseconds(total) + ("" if python is None else f" ({microseconds(python)} of Python)")

    return (
        shown(row.forward_us, row.forward_python_us),
        shown(row.forward_grad_us, row.forward_grad_python_us),
        microseconds(row.backward_us),
    )


def markdown(rows: list[HostRow], where: dict[str, Any]) -> str:
    """A table for a document."""
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
    parser.add_argument("--calls", type=positive_int, default=1000, help="in a repeat (default 1000)")
    parser.add_argument(
        "--repeats", type=positive_int, default=5, help="of which the median counts (default 5)"
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
