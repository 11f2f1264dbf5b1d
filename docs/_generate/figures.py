"""Pictures as SVG that stay readable on a light and on a dark page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.colors import ListedColormap

INK = "#7a7f8a"  # text and axes: contrast enough on white and on slate
OURS, PEER, DENSE = "#4051b5", "#e8710a", "#9aa0a6"
COLOURS = (OURS, PEER, DENSE)

plt.rcParams.update(
    {
        "svg.hashsalt": "dilated-attention",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)


def save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def bars(path: Path, labels: Sequence[str], values: Sequence[float], title: str) -> None:
    """Horizontal bars, one per label."""
    figure, axes = plt.subplots(figsize=(7, 0.5 * len(labels) + 0.8))
    colours = [PEER] * (len(labels) - 1) + [OURS]
    drawn = axes.barh(range(len(labels)), values, color=colours)
    axes.bar_label(drawn, fmt="%.1f", padding=3, color=INK)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlabel(title)
    save(figure, path)


def grouped(path: Path, groups: Sequence[str], series: dict[str, Sequence[float | None]], title: str) -> None:
    """Horizontal bars, one group per case and one bar per peer; a missing value is no bar."""
    figure, axes = plt.subplots(figsize=(8, 0.62 * len(groups) + 1))
    height = 0.8 / len(series)
    for i, (name, values) in enumerate(series.items()):
        places = [g + (i - (len(series) - 1) / 2) * height for g in range(len(groups))]
        drawn = axes.barh(places, [value or 0 for value in values], height, label=name, color=COLOURS[i])
        axes.bar_label(
            drawn, [f"{value:.0f}" if value else "none" for value in values], padding=3, color=INK, fontsize=8
        )
    axes.set_yticks(range(len(groups)), groups)
    axes.invert_yaxis()
    axes.set_xlabel(title)
    axes.legend(frameon=False, ncols=len(series), loc="lower center", bbox_to_anchor=(0.4, 1.0))
    save(figure, path)


def layouts(path: Path, pictures: dict[str, object]) -> None:
    """Dense pictures of layouts beside each other."""
    figure, every = plt.subplots(1, len(pictures), figsize=(3 * len(pictures), 3.3))
    for axes, (title, mask) in zip(every, pictures.items()):
        axes.imshow(mask, cmap=ListedColormap(["#d8dbe8", OURS]), interpolation="nearest")
        axes.set_title(title, fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
    save(figure, path)
