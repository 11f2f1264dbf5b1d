"""Times attention whose blocks are chosen from the content, and each part of it: `attention-bench selection`.

The parts are those that a call runs one after the other: `block_scores`, `select_blocks`, `BlockLayout.from_indices`, and
attention with a layout that is ready. `together` is all of them, a new layout in every call. They take turns, call by
call, and before each call other memory is written.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout, block_scores, block_sparse_attention, select_blocks
from dilated_attention_pytorch.cli.arguments import positive_int

from . import files, options, outcome
from .cases import Case
from .collection import Collection
from .environment import environment
from .host import call_us, microseconds
from .measure import one_line
from .report import milliseconds
from .tables import table
from .timing import timed
from .turns import times_in_turn

KIND = "selection"
BASE = {"cuda": Case(131072, 16, 128, 64, 0.1), "cpu": Case(8192, 4, 64, 64, 0.1, dtype="float32")}
PARTS = ("block_scores", "select_blocks", "from_indices", "attention", "together")


@dataclass
class SelectionRow:
    """The figures of a part; None if not measured.

    peak_bytes: peak memory above the tensors of the other parts, with the result of the part; None on a CPU.
    of_attention: the time as a share of that of attention.
    """

    peer: str  # the part
    case: Case
    ms: float | None = None  # on the GPU, or on a CPU in all
    host_us: float | None = None
    peak_bytes: int | None = None
    of_attention: float | None = None
    refused: str | None = None

    @property
    def has_figures(self) -> bool:
        return self.ms is not None


class Parts:
    """The parts of a call, each a function without arguments; all but `together` read what the part before it made."""

    def __init__(self, case: Case, device: str) -> None:
        self.case = case
        self.q, self.k, self.v = case.inputs(device)
        self.scores = self.block_scores()
        self.chosen = self.select_blocks(self.scores)
        self.layout = self.from_indices(*self.chosen)

    def block_scores(self) -> Tensor:
        return block_scores(self.q, self.k, self.case.block, causal=self.case.causal)

    def select_blocks(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        return select_blocks(scores, self.case.blocks_per_row, causal=self.case.causal)

    def from_indices(self, indices: Tensor, counts: Tensor) -> BlockLayout:
        n_tokens, causal = self.case.seqlen, self.case.causal
        return BlockLayout.from_indices(
            indices, counts, q_len=n_tokens, kv_len=n_tokens, block_size=self.case.block, causal=causal
        )

    def attention(self, layout: BlockLayout) -> Tensor:
        return block_sparse_attention(self.q, self.k, self.v, layout, is_causal=self.case.causal)

    def together(self) -> Tensor:
        return self.attention(self.from_indices(*self.select_blocks(self.block_scores())))

    def calls(self) -> dict[str, Callable[[], object]]:
        return {
            "block_scores": self.block_scores,
            "select_blocks": partial(self.select_blocks, self.scores),
            "from_indices": partial(self.from_indices, *self.chosen),
            "attention": partial(self.attention, self.layout),
            "together": self.together,
        }


def measured(case: Case, device: str, rounds: int) -> list[SelectionRow]:
    """The row of every part."""
    rows = [SelectionRow(name, case) for name in PARTS]
    with outcome.interruptible(rows), torch.no_grad():
        try:
            fill_in(rows, Parts(case, device).calls(), device, rounds)
        except Exception as error:  # e.g. out of memory
            for row in rows:
                row.refused = one_line(error)
    return rows


def fill_in(
    rows: list[SelectionRow], calls: dict[str, Callable[[], object]], device: str, rounds: int
) -> None:
    for row in rows:
        row.peak_bytes = timed(calls[row.peer], device, 1)[1].peak_bytes
    times = dict(zip(calls, times_in_turn(list(calls.values()), device, rounds), strict=True))
    for row in rows:
        row.ms = times[row.peer]
        row.of_attention = row.ms / times["attention"]
    for row in rows:
        row.host_us = call_us(calls[row.peer], device, calls=3, repeats=3)


def read_json(path: str) -> tuple[list[SelectionRow], dict[str, Any]]:
    return files.read_rows(path, KIND, SelectionRow, Case)


HEADINGS = ["case", "part", "time", "of attention", "host", "memory"]


def cells(row: SelectionRow) -> list[str]:
    if row.ms is None:
        return [row.case.label, row.peer, f"none: {row.refused}", "-", "-", "-"]
    share = "-" if row.of_attention is None else f"{row.of_attention:.1%}"
    memory = "-" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:,.0f} MiB"
    host = "-" if row.host_us is None else microseconds(row.host_us)
    return [row.case.label, row.peer, f"{milliseconds(row.ms)} ms", share, host, memory]


def markdown(rows: list[SelectionRow], where: dict[str, Any]) -> str:
    """The rows as a Markdown table."""
    return table(HEADINGS, map(cells, rows), where)


def line(row: SelectionRow) -> str:
    label, part, time, *others = cells(row)
    shown = [f"{heading} {cell}" for heading, cell in zip(HEADINGS[3:], others, strict=True) if cell != "-"]
    return f"{label}: {part} {', '.join([time, *shown])}"


def build_parser() -> argparse.ArgumentParser:
    parser = options.make_parser("attention-bench selection", __doc__)
    options.add_device(parser)
    options.add_threads(parser)
    options.add_sizes(parser, f"default: {BASE['cuda'].label}; on a CPU {BASE['cpu'].label}")
    parser.add_argument(
        "--rounds", type=positive_int, default=15,
        help="calls of every part, of which the median is taken (default 15)",
    )  # fmt: skip
    options.add_json(parser, "all figures with device, versions and date")
    return parser


def main(arguments: list[str]) -> int:
    """Exit status 0; 1 if there are no figures; 130 if interrupted."""
    parser = build_parser()
    given = parser.parse_args(arguments)
    device = options.device_of(given)
    options.set_threads(given)
    case = options.case_of(given, BASE[device])
    command = options.command_line(parser.prog, arguments, given.json)
    where = environment(device, command)
    found = Collection(parser.prog, KIND, line, given.json, device, where)
    return found.collect([case], lambda each: measured(each, device, given.rounds))
