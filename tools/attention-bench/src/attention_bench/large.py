"""A problem as large as the device memory allows, without peers: `attention-bench long`.

At 16.8 million tokens q, k, v, out and each gradient take 16 GiB, so nothing is copied: results are freed before the next
call, outputs are checked at a few queries, and gradients in pieces.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout
from dilated_attention_pytorch.cli.arguments import positive_int

from . import files, options, outcome
from .cases import Case
from .counts import counted
from .environment import environment
from .measure import build, free, one_line
from .peers.ours import Ours
from .report import milliseconds, rate
from .spot_check import QueryError, all_finite, query_errors
from .tables import table
from .timing import timed

KIND = "long"
BASE = {
    "cuda": Case(16777216, 8, 64, 128, 0.0005, pattern_rates=None),
    "cpu": Case(65536, 2, 64, 128, 0.01, pattern_rates=None, dtype="float32"),
}
# Relative error of the output of a query: several times the rounding of the weights and the output to the dtype.
TOLERANCE = {"float32": 1e-4, "float16": 3e-3, "bfloat16": 2e-2}


@dataclass
class LargeRow:
    """Figures and checks; None if not measured. Times in ms, memory in bytes.

    peak_bytes: peak memory above the inputs (q, k, v, the layout and, with a backward, the gradient of out).
    total_bytes: peak memory in total.
    """

    case: Case
    active_blocks: int
    layout_ms: float
    layout_bytes: int
    forward_ms: float | None = None
    forward_tflops: float | None = None
    forward_peak_bytes: int | None = None
    forward_total_bytes: int | None = None
    both_ms: float | None = None  # forward and backward
    both_tflops: float | None = None
    both_peak_bytes: int | None = None
    both_total_bytes: int | None = None
    queries: list[QueryError] = field(default_factory=list)
    gradients_finite: bool | None = None
    refused: str | None = None

    @property
    def largest_error(self) -> float | None:
        return max((query.error for query in self.queries), default=None)

    def failure(self) -> str | None:
        """Why the measurement or a check failed; None if all is well."""
        if self.refused is not None:
            return self.refused
        limit = TOLERANCE[self.case.dtype]
        wrong = [query for query in self.queries if not query.error <= limit]
        if wrong:
            first = wrong[0]
            return f"out is off by {first.error:.1e} at query {first.position}, head {first.head}; limit {limit:.0e}"
        return "a gradient is not finite" if self.gradients_finite is False else None


def measure_forward(
    row: LargeRow, attend: Callable[[], Tensor], flops: int, device: str, repeats: int
) -> Tensor:
    """Measure the forward and return its output."""
    with torch.no_grad():
        out, figures = timed(attend, device, repeats)
    row.forward_ms, row.forward_tflops = figures.ms, flops / figures.ms / 1e9
    row.forward_peak_bytes, row.forward_total_bytes = figures.peak_bytes, figures.total_bytes
    return out


def measure_both(
    row: LargeRow,
    attend: Callable[[], Tensor],
    inputs: tuple[Tensor, ...],
    flops: int,
    device: str,
    repeats: int,
) -> None:
    """Measure forward and backward."""
    grad = row.case.grad_out(device)
    for x in inputs:
        x.requires_grad_()

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(attend(), inputs, grad)

    grads, figures = timed(both, device, repeats)
    row.both_ms, row.both_tflops = figures.ms, 3.5 * flops / figures.ms / 1e9
    row.both_peak_bytes, row.both_total_bytes = figures.peak_bytes, figures.total_bytes
    row.gradients_finite = all(all_finite(x) for x in grads)


def prepare(case: Case, device: str) -> tuple[BlockLayout, LargeRow]:
    """The layout of a case, and a row with its figures."""
    layout, layout_ms = build(case, device)
    return layout, LargeRow(case, layout.num_active_blocks, layout_ms, layout.stats().num_bytes)


def measure(
    layout: BlockLayout, row: LargeRow, device: str, repeats: int, with_backward: bool, backend: str | None,
    save: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Measure a row; `save` is called after the forward."""
    case = row.case
    flops = case.flops(case.token_pairs(layout))
    try:
        q, k, v = case.inputs(device)
        call = Ours(backend).prepare(case, layout)
        out = measure_forward(row, lambda: call(q, k, v), flops, device, repeats)
        row.queries = query_errors(case, layout, q, k, v, out)
        del out
    except Exception as error:
        row.refused = one_line(error)
        return
    save()
    if not with_backward:
        return
    free(device)
    try:
        measure_both(row, lambda: call(q, k, v), (q, k, v), flops, device, repeats)
    except Exception as error:  # the figures of the forward remain valid
        row.refused = f"backward: {one_line(error)}"


def read_json(path: str) -> tuple[list[LargeRow], dict[str, Any]]:
    rows, where = files.read_kind(path, KIND)
    made = []
    for row in rows:
        queries = [QueryError(**query) for query in row["queries"]]
        made.append(LargeRow(**{**row, "case": Case(**row["case"]), "queries": queries}))
    return made, where


def gibibytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 2**30:,.1f} GiB"


def time_and_rate(ms: float | None, tflops: float | None) -> str:
    return "none" if ms is None else f"{milliseconds(ms)} ms ({rate(tflops)})"


def cells(row: LargeRow) -> list[str]:
    both = row.both_ms is not None
    return [
        row.case.label,
        f"{milliseconds(row.layout_ms)} ms",
        time_and_rate(row.forward_ms, row.forward_tflops),
        time_and_rate(row.both_ms, row.both_tflops),
        gibibytes(row.both_peak_bytes if both else row.forward_peak_bytes),
        gibibytes(row.both_total_bytes if both else row.forward_total_bytes),
    ]


HEADINGS = ["case", "layout", "forward", "forward and backward", "memory above the inputs", "memory in all"]


def markdown(rows: list[LargeRow], where: dict[str, Any]) -> str:
    """The rows as a Markdown table."""
    return table(HEADINGS, map(cells, rows), where)


def text(row: LargeRow) -> str:
    """A row for the terminal, one figure per line."""
    shown = [f"{heading}: {cell}" for heading, cell in zip(HEADINGS, cells(row), strict=True)]
    if row.queries:
        shown.append(
            f"largest error at {counted(len(row.queries), 'query', 'queries')}: {row.largest_error:.1e}"
        )
    if row.gradients_finite is not None:
        shown.append("gradients: " + ("finite" if row.gradients_finite else "not finite"))
    return "\n".join(shown)


def build_parser() -> argparse.ArgumentParser:
    parser = options.make_parser("attention-bench long", __doc__)
    options.add_device(parser)
    options.add_case(parser, f"default: {BASE['cuda'].label}; on a CPU {BASE['cpu'].label}")
    parser.add_argument("--forward-only", action="store_true")
    parser.add_argument(
        "--repeats", type=positive_int, default=2, help="timed calls after a warm-up call (default 2)"
    )
    options.add_backend(parser)
    options.add_json(parser, "the figures with device, versions and date")
    return parser


def main(arguments: list[str]) -> int:
    """Exit status 0; 1 if a call or a check fails; 130 if interrupted, with the figures of the forward saved."""
    parser = build_parser()
    given = parser.parse_args(arguments)
    device = options.device_of(given)
    case = options.case_of(given, BASE[device])
    command = options.command_line(parser.prog, arguments, given.json)
    try:
        layout, row = prepare(case, device)
    except (RuntimeError, MemoryError) as error:
        raise options.Unusable(f"the layout cannot be made: {one_line(error)}") from error

    def save() -> None:
        if given.json:
            files.write(given.json, KIND, [row], environment(device, command))

    try:
        measure(layout, row, device, given.repeats, not given.forward_only, given.backend, save)
    except KeyboardInterrupt:
        if row.forward_ms is None:
            raise
        save()
        print(text(row))
        print(f"{parser.prog}: interrupted; the figures of the forward are kept", file=sys.stderr)
        return outcome.INTERRUPTED
    save()
    print(text(row))
    failure = row.failure()
    if failure is not None:
        print(f"failed: {failure}")
    return 0 if failure is None else 1
