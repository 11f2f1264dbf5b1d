"""The output of the demo: progress bar, table and images. Needs rich and matplotlib."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from ..layout import BlockLayout
from .model import OURS, AttentionKind
from .task import PASSKEYS

WIDTH = 80
TITLES: dict[AttentionKind, str] = {
    "dense": "dense",
    "dilated_sparse": "dilated_sparse",
    "own_block": "own block only",
    "local_window": "local window",
}
COLUMNS = ("attention", "kept", "answers' loss", "right", "text loss", "tokens/s", "memory")


@dataclass
class Result:
    """The results of one kind of attention; `held_out` has the means text, answer and right of every seed."""

    density: float
    hops: int | None
    held_out: list[dict[str, float]] = field(default_factory=list)
    answer_losses: list[list[float]] = field(default_factory=list)  # per seed, of every step
    step_seconds: list[float] = field(default_factory=list)  # of steps with the full context
    tokens_per_step: int = 0
    peak_bytes: int | None = None

    def values(self, name: str) -> list[float]:
        return [losses[name] for losses in self.held_out]

    def mean(self, name: str) -> float:
        return statistics.fmean(self.values(name))

    def spread(self, name: str) -> float:
        """The difference between the highest and the lowest seed."""
        return max(self.values(name)) - min(self.values(name))

    @property
    def tokens_per_second(self) -> float | None:
        """From the median step; None before the first one."""
        if not self.step_seconds:
            return None
        return self.tokens_per_step / statistics.median(self.step_seconds)


def make_console() -> Console:
    """A console of at most 80 columns; exactly 80 for a log file or a pipe."""
    console = Console(highlight=False)
    known = console.is_terminal or "COLUMNS" in os.environ
    return Console(highlight=False, width=min(console.width, WIDTH) if known else WIDTH)


def make_progress(console: Console) -> Progress:
    """The progress bar of the training."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("step {task.completed:.0f} of {task.total:.0f}, {task.fields[left]}"),
        console=console,
    )


def duration(seconds: float) -> str:
    """Minutes and seconds, m:ss."""
    return f"{int(seconds + 0.5) // 60}:{int(seconds + 0.5) % 60:02d}"


def cells(kind: AttentionKind, result: Result) -> list[str]:
    """A row of the table: means over the seeds, and half the range of the losses."""

    def loss(name: str) -> str:
        return f"{result.mean(name):.2f} ± {result.spread(name) / 2:.2f}"

    speed, peak = result.tokens_per_second, result.peak_bytes
    return [
        TITLES[kind],
        f"{result.density:.1%}",
        loss("answer"),
        f"{result.mean('right'):.0%}",
        loss("text"),
        "unknown" if speed is None else f"{speed:,.0f}",
        "unknown" if peak is None else f"{peak / 2**20:,.0f} MiB",
    ]


def result_table(results: Mapping[AttentionKind, Result]) -> Table:
    """The table for the terminal, one row per kind of attention."""
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "attention" else "right", no_wrap=True)
    for kind, result in results.items():
        table.add_row(*cells(kind, result))
    return table


def markdown_table(results: Mapping[AttentionKind, Result]) -> str:
    """The same table in Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    lines += ["| " + " | ".join(cells(kind, result)) + " |" for kind, result in results.items()]
    return "\n".join(lines) + "\n"


def explanation(n_seeds: int) -> str:
    """Explain the columns of the table."""
    means = f"Mean of {n_seeds} seeds ± half their range; " if n_seeds > 1 else "One seed; "
    return (
        f"{means}held-out losses in nats; guessing the answers gives {math.log(len(PASSKEYS)):.2f}. "
        "Speed: median of the training steps with the full context, the kinds of attention in turn. "
        "Memory: peak of a training process, median of 3 rounds in turn."
    )


def verdicts(results: Mapping[AttentionKind, Result]) -> list[str]:
    """Compare the answer loss of dilated_sparse with every other kind."""
    ours, lines = results[OURS], []
    for kind, other in results.items():
        if kind == OURS:
            continue
        gap = other.mean("answer") - ours.mean("answer")
        line = f"{TITLES[OURS]} is {abs(gap):.2f} nats {'ahead of' if gap > 0 else 'behind'} {TITLES[kind]}"
        spread = max(ours.spread("answer"), other.spread("answer"))
        if len(ours.held_out) > 1:
            line += f", {'more' if abs(gap) > spread else 'no more'} than the spread over the seeds ({spread:.2f})"
        lines.append(line)
    return lines


def save_patterns(layouts: Mapping[AttentionKind, BlockLayout], file: Path) -> None:
    """Draw the layouts side by side."""
    figure = Figure(figsize=(4 * len(layouts), 4.4), layout="constrained")
    for ax, (kind, layout) in zip(figure.subplots(1, len(layouts), squeeze=False)[0], layouts.items()):
        layout.plot(ax=ax)
        ax.set_title(TITLES[kind])
    figure.savefig(file, dpi=150)


def save_loss_curves(curves: Mapping[AttentionKind, Sequence[float]], file: Path) -> None:
    """Draw running means of the answer loss during training, one curve per kind of attention."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    ax = figure.subplots()
    for kind, losses in curves.items():
        ax.plot(range(1, len(losses) + 1), running_mean(losses), label=TITLES[kind])
    ax.axhline(math.log(len(PASSKEYS)), color="gray", linestyle=":", label="guessing")
    ax.set_xlabel("step")
    ax.set_ylabel("answer loss during training, nats")
    ax.set_ylim(bottom=0)
    ax.grid(alpha=0.3)
    ax.legend()
    figure.savefig(file, dpi=150)


def running_mean(values: Sequence[float], keep: float = 0.9) -> list[float]:
    """Exponential running mean, corrected for the bias of its start."""
    means, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        means.append(total / weight)
    return means
