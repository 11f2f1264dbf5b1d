"""The files of a run of the demo: model, sample, figures and images."""

from __future__ import annotations

import json
import math
import platform
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .. import __version__
from ..cli.errors import CommandError
from ..layout import BlockLayout
from .model import MODEL_FILE, OURS, AttentionKind, LanguageModel
from .plan import Plan, device_name
from .text import Text

if TYPE_CHECKING:
    from .report import Result


def check_writable(folder: Path) -> None:
    """Create the folder; raise CommandError if files cannot be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CommandError(f"cannot write to {folder}: {error.strerror or error}") from None


def write_files(
    plan: Plan,
    text: Text,
    layouts: dict[AttentionKind, BlockLayout],
    results: dict[AttentionKind, Result],
    model: LanguageModel,
    sample: str,
    seconds: float,
) -> list[str]:
    """Write the model, the sample, the figures and the images; returns the file names."""
    from . import report

    summary = {
        "version": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device_name(plan.device),
        "text": {"name": text.name, "train_bytes": len(text.train), "held_out_bytes": len(text.held_out)},
        "model": {**asdict(plan.settings), "weights": count_weights(model)},
        "training": {
            "context": plan.context,
            "batch_size": plan.batch_size,
            "steps": plan.steps,
            "seeds": plan.seeds,
        },
        "seconds": round(seconds, 1),
        "results": {
            kind: {
                "density": result.density,
                "hops": result.hops,
                "held_out": result.held_out,
                "tokens_per_second": result.tokens_per_second,
                "peak_bytes": result.peak_bytes,
            }
            for kind, result in results.items()
        },
    }
    complete = all(result.held_out for result in results.values())
    folder, files = plan.output, [MODEL_FILE, "sample.txt", "pattern.png"]
    try:
        model.save(OURS, folder / MODEL_FILE)
        (folder / "sample.txt").write_text(sample, encoding="utf-8")
        report.save_patterns(layouts, folder / "pattern.png")
        if complete:
            curves = {kind: mean_curve(result.answer_losses) for kind, result in results.items()}
            report.save_loss_curves(curves, folder / "loss.png")
            (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
            (folder / "table.md").write_text(report.markdown_table(results), encoding="utf-8")
            losses = {kind: result.answer_losses for kind, result in results.items()}
            (folder / "losses.json").write_text(json.dumps(losses) + "\n", encoding="utf-8")
            files += ["loss.png", "losses.json", "summary.json", "table.md"]
    except OSError as error:
        raise CommandError(f"cannot write to {folder}: {error.strerror or error}") from None
    return files


def mean_curve(curves: list[list[float]]) -> list[float]:
    """The mean over the seeds at every step."""
    return [math.fsum(losses) / len(losses) for losses in zip(*curves)]


def count_weights(model: LanguageModel) -> int:
    return sum(weight.numel() for weight in model.parameters())
