"""`generate()` of language models, one attention and kind of cache beside the other."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import files, outcome
from .measure import synchronize
from .model import DENSE, ModelCase, make_model
from .report import milliseconds
from .tables import table
from .turns import work

KIND = "models-generate"
CACHES = ("dynamic", "static")
WARM_UP = 4  # steps after the first token that do not count, where there are enough


@dataclass
class GenerationRow:
    """The figures of an attention; None if not measured.

    first_ms: until the first new token. ms: per token after that. first_call_s: a first call, with what it compiles.
    dense_ms: `ms` of sdpa in the same run.
    """

    peer: str
    case: ModelCase
    dense: bool = False
    ms: float | None = None
    first_ms: float | None = None
    first_call_s: float | None = None
    dense_ms: float | None = None
    refused: str | None = None

    @property
    def has_figures(self) -> bool:
        return self.ms is not None


class Clock:
    """A streamer of `generate()`: when each token was there."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        """Called for the prompt and for every new token."""
        synchronize(self.device)
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


@dataclass
class Call:
    """Seconds of one call of `generate()`."""

    first: float
    steps: list[float]
    total: float


class Generation:
    """A model that generates greedily; transformers compiles the steps of a static cache on a GPU."""

    def __init__(self, case: ModelCase, peer: str, device: str) -> None:
        self.device = device
        self.model = make_model(case, peer, device).eval()
        self.options: dict[str, Any] = {
            **case.inputs(device), "do_sample": False, "max_new_tokens": case.new_tokens,
            "min_new_tokens": case.new_tokens,
        }  # fmt: skip
        if case.cache == "static":
            self.options["cache_implementation"] = "static"

    def call(self) -> Call:
        clock = Clock(self.device)
        synchronize(self.device)
        begin = time.perf_counter()
        self.model.generate(streamer=clock, **self.options)
        end = time.perf_counter()
        new = clock.times[1:]
        steps = [after - before for before, after in itertools.pairwise(new)]
        return Call(new[0] - begin, steps[min(WARM_UP, len(steps) // 2) :], end - begin)


def measured(case: ModelCase, peers: Sequence[str], device: str, rounds: int) -> list[GenerationRow]:
    """The row of every attention; each has a model of its own, which keeps what it compiled."""
    torch.compiler.reset()  # the first call of every case compiles
    rows = [GenerationRow(peer, case, peer == DENSE) for peer in peers]
    ready: list[tuple[GenerationRow, Generation]] = []

    def first_call(row: GenerationRow) -> None:
        generation = Generation(case, row.peer, device)
        row.first_call_s = generation.call().total
        ready.append((row, generation))

    for row in rows:
        work(row, lambda row=row: first_call(row))  # type: ignore[misc]
    with outcome.interruptible(rows):
        calls: list[list[Call]] = [[] for _ in ready]
        for _ in range(rounds):
            for (_, generation), found in zip(ready, calls, strict=True):
                found.append(generation.call())
        for (row, _), found in zip(ready, calls, strict=True):
            row.first_ms = statistics.median(call.first for call in found) * 1000
            row.ms = statistics.median(step for call in found for step in call.steps) * 1000
        dense_ms = next((row.ms for row in rows if row.dense), None)
        for row in rows:
            row.dense_ms = dense_ms
    return rows


def read_json(path: str) -> tuple[list[GenerationRow], dict[str, Any]]:
    return files.read_rows(path, KIND, GenerationRow, ModelCase)


HEADINGS = ["model", "attention", "time per token", "of sdpa", "first token", "first call"]


def cells(row: GenerationRow) -> list[str]:
    if row.ms is None or row.first_ms is None:
        return [row.case.label, row.peer, f"none: {row.refused}", "-", "-", "-"]
    speed = "-" if row.dense_ms is None else f"{row.dense_ms / row.ms:.2f} x"
    first_call = "-" if row.first_call_s is None else f"{row.first_call_s:,.1f} s"
    first = f"{milliseconds(row.first_ms)} ms"
    return [row.case.label, row.peer, f"{milliseconds(row.ms)} ms", speed, first, first_call]


def markdown(rows: list[GenerationRow], where: dict[str, Any]) -> str:
    """The rows as a Markdown table."""
    return table(HEADINGS, map(cells, rows), where)


def line(row: GenerationRow) -> str:
    label, peer, per_token, *others = cells(row)
    shown = [f"{heading} {cell}" for heading, cell in zip(HEADINGS[3:], others, strict=True) if cell != "-"]
    return f"{label}: {peer} {per_token} per token{''.join(f', {each}' for each in shown)}"
