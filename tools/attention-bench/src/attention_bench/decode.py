"""Times steps of decoding, and the bandwidth with which keys and values are read: `attention-bench decode`.

A step is one query per sequence, at the end of a cache that is full. Peers take turns, step by step, and before every step
other memory is written, as the other layers of a model do: what a peer reads is in no cache of the GPU. While it is
written the host prepares the step, so `ms` is the time on the GPU; the time on the host is a figure of its own. The
bandwidth counts the keys and values of the active blocks (of dense peers all), and is compared with that of a large copy.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dilated_attention_pytorch import BlockLayout
from dilated_attention_pytorch.cli.arguments import positive_int

from . import files, measure, options, outcome
from .cases import DTYPES, Case
from .environment import environment
from .host import call_us
from .peers import PEERS
from .presets import PRESETS
from .report import milliseconds
from .tables import table
from .timing import call_ms
from .turns import times_in_turn

KIND = "decode"
DEFAULT_PEERS = ("ours-decode", "ours-decode-paged", "flex", "sdpa")
COPIED_BYTES = {"cuda": 2**31, "cpu": 2**26}


@dataclass
class DecodeRow:
    """The figures of a peer on a case; None if not measured."""

    peer: str
    case: Case
    dense: bool = False
    ms: float | None = None  # on the GPU, or on a CPU in all
    host_us: float | None = None
    read_bytes: int | None = None  # keys and values of the active blocks
    copy_gb_per_s: float | None = None  # of a large copy, which reads as much as it writes
    error: float | None = None  # relative to the output of the first sparse peer
    refused: str | None = None

    @property
    def has_figures(self) -> bool:
        return self.ms is not None

    @property
    def gb_per_s(self) -> float | None:
        """GB/s (10**9) of the keys and values that count."""
        if self.ms is None or self.read_bytes is None:
            return None
        return self.read_bytes / self.ms / 1e6

    @property
    def of_copy(self) -> float | None:
        """The bandwidth as a share of that of a copy."""
        if self.gb_per_s is None or not self.copy_gb_per_s:
            return None
        return self.gb_per_s / self.copy_gb_per_s


def read_bytes(case: Case, layout: BlockLayout, dense: bool) -> int:
    """Bytes of the keys and values that a step needs."""
    n_keys = case.dense_pairs() if dense else case.token_pairs(layout)
    return 2 * case.batch * n_keys * case.num_kv_heads * case.head_dim * DTYPES[case.dtype].itemsize


def copy_gb_per_s(device: str) -> float:
    """GB/s that a large copy reads and writes, the median of ten."""
    source = torch.empty(COPIED_BYTES[device] // 4, dtype=torch.float32, device=device).zero_()
    target = torch.empty_like(source)
    target.copy_(source)
    times = [call_ms(lambda: target.copy_(source), device)[1] for _ in range(10)]
    return 2 * COPIED_BYTES[device] / statistics.median(times) / 1e6


def measured(case: Case, names: Sequence[str], device: str, rounds: int, copied: float) -> list[DecodeRow]:
    """The rows of a case."""
    layout = case.layout(device)
    rows: list[DecodeRow] = []
    calls: list[tuple[DecodeRow, Callable[[], object]]] = []
    expected = None
    for name in names:
        peer = PEERS[name]
        made, call, expected = measure.prepared(peer, case, layout, 0.0, device, expected)
        row = DecodeRow(name, case, peer.dense, copy_gb_per_s=copied, error=made.error, refused=made.refused)
        rows.append(row)
        if call is not None:
            row.read_bytes = read_bytes(case, layout, peer.dense)
            calls.append((row, call.forward))
    with outcome.interruptible(rows):
        for (row, _), ms in zip(
            calls, times_in_turn([each for _, each in calls], device, rounds), strict=True
        ):
            row.ms = ms
        for row, step in calls:
            row.host_us = call_us(step, device, calls=100, repeats=3)
    return rows


# ---- what is shown


def read_json(path: str) -> tuple[list[DecodeRow], dict[str, Any]]:
    return files.read_rows(path, KIND, DecodeRow, Case)


def cells(row: DecodeRow) -> list[str]:
    if row.ms is None:
        return [row.case.label, row.peer, f"none: {row.refused}", "-", "-", "-"]
    of_copy = "-" if row.of_copy is None else f"{row.of_copy:.0%}"
    host = "-" if row.host_us is None else f"{row.host_us:,.1f} us"
    rate = "-" if row.gb_per_s is None else f"{row.gb_per_s:,.0f} GB/s"
    return [row.case.label, row.peer, f"{milliseconds(row.ms)} ms", rate, of_copy, host]


HEADINGS = ["case", "library", "step", "keys and values", "of a copy", "host"]


def markdown(rows: list[DecodeRow], where: dict[str, Any]) -> str:
    """The rows as a Markdown table."""
    return table(HEADINGS, map(cells, rows), where)


def line(row: DecodeRow) -> str:
    label, peer, *figures = cells(row)
    error = "" if row.error is None else f", error {row.error:.1e}"
    return f"{label}: {peer} {', '.join(figures)}{error}"


# ---- the command


def build_parser() -> argparse.ArgumentParser:
    parser = options.make_parser("attention-bench decode", __doc__)
    options.add_device(parser)
    options.add_threads(parser)
    options.add_case(
        parser, "this and the following options replace the preset with its first case, changed accordingly"
    )
    parser.add_argument(
        "--peers", nargs="+", choices=PEERS, metavar="PEER", default=list(DEFAULT_PEERS),
        help=f"default: {' '.join(DEFAULT_PEERS)}",
    )  # fmt: skip
    parser.add_argument(
        "--rounds",
        type=positive_int,
        default=50,
        help="steps of every peer, of which the median is taken (default 50)",
    )
    options.add_json(parser, "all figures with device, versions and date")
    return parser


def main(arguments: list[str]) -> int:
    """Exit status 0; 1 if a peer has no figures; 130 if interrupted, with the figures so far saved."""
    parser = build_parser()
    given = parser.parse_args(arguments)
    device = options.device_of(given)
    options.set_threads(given)
    cases = PRESETS["decode" if device == "cuda" else "cpu-decode"]
    cases = [options.case_of(given, cases[0])] if options.has_case(given) else cases
    command = options.command_line(parser.prog, arguments, given.json)
    rows: list[DecodeRow] = []

    def add(made: Sequence[DecodeRow]) -> None:
        for row in made:
            rows.append(row)
            print(line(row), flush=True)
        if given.json and rows:
            files.write(given.json, KIND, rows, environment(device, command))

    try:
        copied = copy_gb_per_s(device)
        for case in cases:
            measure.free(device)
            add(measured(case, list(dict.fromkeys(given.peers)), device, given.rounds, copied))
    except KeyboardInterrupt as stopped:
        add(getattr(stopped, "rows", []))
        return outcome.interrupted(parser.prog, rows, given.json)
    return outcome.finished(parser.prog, rows)
