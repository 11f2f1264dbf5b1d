"""What the demo shows and writes: the progress bar, the table, the pictures. Needs rich and matplotlib."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..patterns import BlockLayout
from .measure import Measurement

# Terminals that are no terminals (a log file, a pipe) get this width.
PLAIN_WIDTH = 100


def make_console() -> Console:
    """A console that does not fold the table when its output goes to a file."""
    console = Console(highlight=False)
    return (
        console
        if console.is_terminal or "COLUMNS" in os.environ
        else Console(highlight=False, width=PLAIN_WIDTH)
    )


def make_progress(console: Console) -> Progress:
    """The bar of the training steps."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps, {task.fields[figures]}"),
        TimeRemainingColumn(),
        console=console,
    )


def readable(text: bytes) -> str:
    """Bytes as text that is safe to print: no control characters but line ends and tabs."""
    decoded = text.decode("utf-8", errors="replace").replace("\r\n", "\n")
    return "".join(
        char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in decoded
    )


def print_sample(console: Console, prompt: bytes, written: bytes) -> None:
    """The prompt dimmed, then what the model wrote."""
    whole = readable(prompt + written)
    n_prompt = len(readable(prompt))
    safe = whole.encode(console.encoding, errors="replace").decode(console.encoding)
    console.rule("a sample: the prompt, dimmed, then what the model writes")
    text = Text(safe)
    text.stylize("dim", 0, n_prompt)
    console.print(text)
    console.rule()


def in_bits(nats: float) -> float:
    """Nats per byte -> bits per byte."""
    return nats / math.log(2)


def loss_cell(nats: float) -> str:
    return f"{nats:.3f} nats, {in_bits(nats):.3f} bits per byte"


def measured_cell(measured: Measurement | None, name: str) -> str:
    """One figure of a measurement, or why it is missing."""
    if measured is None:
        return "not measured"
    if name == "speed" and measured.tokens_per_second is not None:
        return f"{measured.tokens_per_second:,.0f}"
    if name == "memory" and measured.peak_bytes is not None:
        return f"{measured.peak_bytes / 2**20:,.0f} MiB"
    return measured.problem or "not known on this system"


def result_table(
    layout: BlockLayout, before: float, after: float, sparse: Measurement, dense: Measurement | None
) -> Table:
    """Ours beside dense attention."""
    stats = layout.stats()
    table = Table(title="The same model with either attention", title_justify="left")
    table.add_column("")
    table.add_column("block-sparse (ours)", justify="right")
    table.add_column("dense SDPA", justify="right")
    table.add_row(
        "block pairs computed",
        f"{stats.num_active_blocks:,} ({stats.density:.1%})",
        f"{stats.num_available_blocks:,} (100.0%)",
    )
    table.add_row("training, tokens/s", measured_cell(sparse, "speed"), measured_cell(dense, "speed"))
    table.add_row("training, peak memory", measured_cell(sparse, "memory"), measured_cell(dense, "memory"))
    table.add_row("held-out loss before", loss_cell(before), "")
    table.add_row("held-out loss after", loss_cell(after), "")
    return table


def save_pattern(layout: BlockLayout, file: Path) -> None:
    """The picture of a layout."""
    figure = Figure(figsize=(6, 6.3), layout="constrained")
    layout.plot(ax=figure.subplots())
    figure.savefig(file, dpi=150)


def save_loss_curve(losses: Sequence[float], held_out: Sequence[tuple[int, float]], file: Path) -> None:
    """Loss of every step, its running mean, and the held-out loss: (step, nats) pairs."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    ax = figure.subplots()
    steps = range(1, len(losses) + 1)
    ax.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=0.8, label="training, each step")
    ax.plot(steps, running_mean(losses), color="tab:blue", label="training, running mean")
    ax.plot(*zip(*held_out), color="tab:orange", marker="o", markersize=4, label="held out")
    ax.set_xlabel("step")
    ax.set_ylabel("loss, nats per byte")
    ax.set_ylim(bottom=0)
    ax.grid(alpha=0.3)
    bits = ax.secondary_yaxis(
        "right", functions=(lambda nats: nats / math.log(2), lambda bits: bits * math.log(2))
    )
    bits.set_ylabel("bits per byte")
    ax.legend()
    figure.savefig(file, dpi=150)


def running_mean(values: Sequence[float], keep: float = 0.95) -> list[float]:
    """Exponential running mean without the bias of its start."""
    means, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        means.append(total / weight)
    return means
