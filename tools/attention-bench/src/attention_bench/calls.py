"""Times calls with every feature beside the plain call: `attention-bench calls`.

"Of plain" is the time per pair of tokens in the active blocks over that of the plain call, which takes turns with it; blocks
on the diagonal of a causal call, and blocks that a mask hides in part, count in full. Results are compared with those of the
backend `triton`, or on a CPU with `reference`.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from dilated_attention_pytorch.cli.arguments import positive_int

from . import files, options, outcome, tables
from .budget import Budget
from .cases import Case
from .collection import Collection
from .environment import environment
from .features import FEATURES, Feature, FeatureCall
from .measure import TOLERANCE, Disagreement, free, one_line, relative
from .processes import in_processes
from .report import milliseconds, number
from .turns import times_in_turn

KIND = "calls"
BASE = {"cuda": Case(16384, 16, 128, 128, 0.05), "cpu": Case(2048, 2, 32, 64, 0.1, dtype="float32")}
OTHER_BACKEND = {"cuda": "triton", "cpu": "reference"}
DENSE_BACKENDS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]
MORE = {"gradient of sinks": 5}  # of the tolerance: terms of a whole head, which mostly cancel
MOST = 1.1  # of plain, or of the loss of dense attention
SLOW = f"Slow: more than {MOST - 1:.0%} slower per active block, beyond what dense attention loses"


@dataclass
class CallRow:
    """The figures of a feature; None if not measured. Times in ms.

    backend: the one that serves the call. base: the feature that it is compared with. blocks: active blocks, over all heads.
    of_plain: time per pair in the active blocks over that of the base. of_dense: the same ratio of dense attention.
    error: relative to the results of the other backend, if that is another.
    """

    peer: str  # the feature
    case: Case
    base: str
    backend: str | None = None
    blocks: int | None = None
    forward_ms: float | None = None
    backward_ms: float | None = None
    forward_of_plain: float | None = None
    backward_of_plain: float | None = None
    forward_of_dense: float | None = None
    backward_of_dense: float | None = None
    error: float | None = None
    grad_error: float | None = None
    refused: str | None = None

    @property
    def has_figures(self) -> bool:
        return self.forward_ms is not None

    def is_slow(self, direction: str) -> bool:
        """Whether it loses more time than it should."""
        of_plain, of_dense = (getattr(self, f"{direction}_of_{base}") for base in ("plain", "dense"))
        return of_plain is not None and of_plain > MOST * max(1.0, of_dense or 1.0)


def compare(row: CallRow, call: FeatureCall, backend: str | None, other: str) -> None:
    """Fill in the errors; `Disagreement` where they are none of rounding."""

    def results(of: str | None) -> tuple[Tensor, ...]:
        torch.manual_seed(0)  # for dropout
        out = call.forward(of)
        torch.manual_seed(0)
        return out, *call.backward(of)()

    names = ("output", *(f"gradient of {name}" for name in call.inputs))
    pairs = zip(results(backend), results(other), strict=True)
    errors = {name: relative(x, y.float()) for name, (x, y) in zip(names, pairs, strict=True)}
    row.error, *of_gradients = errors.values()
    row.grad_error = max(of_gradients)
    for name, error in errors.items():
        if not error <= TOLERANCE[row.case.dtype] * MORE.get(name, 1):
            raise Disagreement(f"its {name} differs from that of backend={other!r} by {error:.1e}")


def dense_times(case: Case, device: str, rounds: int) -> tuple[float, float]:
    """Forward and backward of dense attention, not causal."""
    q, k, v = (x.transpose(1, 2).contiguous().requires_grad_() for x in case.inputs(device))
    grad = case.grad_out(device).transpose(1, 2).contiguous()
    chosen = sdpa_kernel(DENSE_BACKENDS, set_priority=True) if device == "cuda" else contextlib.nullcontext()
    with chosen:
        out = scaled_dot_product_attention(q, k, v)

        def backward() -> object:
            return torch.autograd.grad(out, (q, k, v), grad, retain_graph=True)

        def forward() -> object:
            with torch.no_grad():
                return scaled_dot_product_attention(q, k, v)

        found = times_in_turn([forward, backward], device, rounds)
    return found[0], found[1]


def fill_in_dense(row: CallRow, case: Case, device: str, rounds: int) -> None:
    """The loss of dense attention at the head_dim of a feature; it stays None where dense attention refuses."""
    _, head_dim, *v_head_dim = row.peer.split("-")
    other = replace(
        case, head_dim=int(head_dim), v_head_dim=int(v_head_dim[0]) if v_head_dim else case.v_head_dim
    )
    with contextlib.suppress(RuntimeError):
        plain, found = (dense_times(each, device, rounds) for each in (case, other))
        row.forward_of_dense, row.backward_of_dense = found[0] / plain[0], found[1] / plain[1]


def measured(feature: Feature, case: Case, device: str, rounds: int, backend: str | None) -> list[CallRow]:
    """The row of a feature."""
    row = CallRow(feature.name, case, feature.base)
    with outcome.interruptible([row]):
        try:
            call, base = (each.make(case, device) for each in (feature, FEATURES[feature.base]))
            row.backend, row.blocks = backend or call.serving(), call.blocks
            other = OTHER_BACKEND[device]
            if row.backend != other:
                compare(row, call, backend, other)
            fill_in_times(row, call, base, device, rounds, backend)
            if feature.has_dense:
                fill_in_dense(row, case, device, rounds)
        except Exception as error:  # a feature that fails is a row of the table, not the end of the run
            row.refused = one_line(error)
    return [row]


def fill_in_times(
    row: CallRow, call: FeatureCall, base: FeatureCall, device: str, rounds: int, backend: str | None
) -> None:
    both: list[Callable[[], object]] = [lambda: base.forward(backend), lambda: call.forward(backend)]
    base_forward, row.forward_ms = times_in_turn(both, device, rounds)
    base_backward, row.backward_ms = times_in_turn(
        [base.backward(backend), call.backward(backend)], device, rounds
    )
    share = base.pairs / call.pairs
    row.forward_of_plain = row.forward_ms / base_forward * share
    row.backward_of_plain = row.backward_ms / base_backward * share


def compile_kernels(name: str, case: Case, device: str, backend: str | None) -> None:
    """Run a feature once, forward and backward, so that its kernels are in the cache on disk; what fails will be told later."""
    with contextlib.suppress(Exception):
        call = FEATURES[name].make(case, device)
        for each in (backend, OTHER_BACKEND[device]):
            call.backward(each)()
    free(device)


# ---- what is shown


def read_json(path: str) -> tuple[list[CallRow], dict[str, Any]]:
    return files.read_rows(path, KIND, CallRow, Case)


def cell(row: CallRow, direction: str) -> str:
    ms, of_plain, of_dense = (getattr(row, f"{direction}_{name}") for name in ("ms", "of_plain", "of_dense"))
    text = f"{milliseconds(ms)} ms, {of_plain:.2f}"
    more = [] if of_dense is None else [f"dense {of_dense:.2f}"]
    more += ["slow"] if row.is_slow(direction) else []
    return f"{text} ({', '.join(more)})" if more else text


def cells(row: CallRow) -> list[str]:
    if row.backward_ms is None:
        return [row.peer, row.base, row.backend or "-", f"none: {row.refused}", "-", "-"]
    errors = f"{number(row.error, '.0e')} / {number(row.grad_error, '.0e')}"
    return [
        row.peer,
        row.base,
        row.backend or "-",
        cell(row, "forward"),
        cell(row, "backward"),
        errors if row.refused is None else f"{errors}; {row.refused}",
    ]


HEADINGS = [
    "call",
    "compared with",
    "backend",
    "forward, ratio",
    "backward, ratio",
    "errors of output / gradients",
]


def markdown(rows: list[CallRow], where: dict[str, Any]) -> str:
    """The rows as a Markdown table."""
    notes = [f"The plain call: {rows[0].case.label}.", *([f"{SLOW}."] if any(map(is_slow, rows)) else [])]
    return tables.table(HEADINGS, map(cells, rows), where, notes)


def is_slow(row: CallRow) -> bool:
    return row.is_slow("forward") or row.is_slow("backward")


def table(rows: list[CallRow]) -> Table:
    """A terminal table with one line per feature."""
    title = "ratio: time per pair in the active blocks, of that of the call compared with"
    made = Table(title=title, caption=SLOW if any(map(is_slow, rows)) else None)
    for name in HEADINGS:
        made.add_column(name, overflow="fold")
    for row in rows:
        made.add_row(*cells(row))
    return made


def in_words(row: CallRow, direction: str) -> str:
    """The figures of a direction with their names."""
    ms, of_plain, of_dense = (getattr(row, f"{direction}_{name}") for name in ("ms", "of_plain", "of_dense"))
    if ms is None:
        return f"{direction} none"
    text = f"{direction} {milliseconds(ms)} ms, {number(of_plain, '.2f')} of {row.base}"
    text += "" if of_dense is None else f", dense {of_dense:.2f}"
    return text + (", slow" if row.is_slow(direction) else "")


def line(row: CallRow) -> str:
    """A row as plain text, printed as soon as it is measured."""
    text = f"{row.peer} ({row.backend or 'no backend'}): "
    if row.has_figures:
        errors = f"errors: output {number(row.error, '.0e')}, gradients {number(row.grad_error, '.0e')}"
        text += "; ".join([in_words(row, "forward"), in_words(row, "backward"), errors])
    if row.refused is not None:
        text += f"; refused: {row.refused}" if row.has_figures else f"refused: {row.refused}"
    return text


# ---- the command


def build_parser() -> argparse.ArgumentParser:
    parser = options.make_parser("attention-bench calls", __doc__)
    options.add_device(parser)
    options.add_threads(parser)
    options.add_sizes(parser, f"default: {BASE['cuda'].label}; on a CPU {BASE['cpu'].label}")
    parser.add_argument(
        "--features", nargs="+", choices=FEATURES, metavar="FEATURE", default=list(FEATURES),
        help=f"one or more of {', '.join(FEATURES)} (default: all, in this order)",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", type=positive_int, default=20,
        help="calls of every kind, of which the median is taken (default 20)",
    )  # fmt: skip
    options.add_processes(
        parser,
        "before anything is timed, compile the kernels of so many features at the same time; with 1 each when its turn comes",
    )
    options.add_backend(parser)
    options.add_budget(parser)
    options.add_json(parser, "all figures with device, versions and date")
    return parser


def main(arguments: list[str]) -> int:
    """Exit status 0; 1 if a feature has no figures; 130 if interrupted, with the figures so far saved."""
    parser = build_parser()
    given = parser.parse_args(arguments)
    device = options.device_of(given)
    options.set_threads(given)
    case = options.case_of(given, BASE[device])
    command = options.command_line(parser.prog, arguments, given.json)
    where = environment(device, command)
    found = Collection(parser.prog, KIND, line, given.json, device, where, table=table)
    budget, names = Budget(given.budget), list(dict.fromkeys(given.features))

    if given.processes > 1:
        make_once = partial(compile_kernels, case=case, device=device, backend=given.backend)
        for _ in in_processes(make_once, names, given.processes):
            pass

    def rows(name: str) -> list[CallRow]:
        free(device)
        return measured(FEATURES[name], case, device, given.rounds, given.backend)

    return found.collect(names, rows, budget)
