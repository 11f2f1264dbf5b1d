"""Steps of fine-tuning a language model, with one attention after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from . import files, outcome
from .measure import one_line
from .model import DENSE, ModelCase, attention_name, make_model
from .report import milliseconds
from .tables import table
from .timing import timed
from .turns import times_in_turn, work

KIND = "models-train"


@dataclass
class TrainingRow:
    """The figures of an attention; None if not measured. Memory in bytes.

    loss: before the first step; the steps leave the weights as they are.
    peak_bytes: the peak of a step in all, with weights, gradients and the optimizer; None on a CPU.
    dense_ms, dense_peak_bytes: of sdpa in the same run.
    """

    peer: str
    case: ModelCase
    dense: bool = False
    ms: float | None = None
    loss: float | None = None
    peak_bytes: int | None = None
    dense_ms: float | None = None
    dense_peak_bytes: int | None = None
    refused: str | None = None

    @property
    def has_figures(self) -> bool:
        return self.ms is not None

    @property
    def tokens_per_s(self) -> float | None:
        return None if self.ms is None else self.case.tokens / self.ms * 1000


def enable_checkpointing(model: Any) -> None:
    """Compute activations again in the backward; the method has another name since transformers 5.24."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


class Training:
    """A model with gradient checkpointing and its optimizer, AdamW with a learning rate of 0: every step does the same."""

    def __init__(self, case: ModelCase, device: str) -> None:
        self.model = make_model(case, DENSE, device).train()
        enable_checkpointing(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0, fused=device == "cuda")
        inputs = case.inputs(device)
        self.inputs = {**inputs, "labels": inputs["input_ids"], "use_cache": False}

    def step(self, attention: str) -> torch.Tensor:
        """One step with the attention of this name in transformers; the loss."""
        self.model.set_attn_implementation(attention)
        loss: torch.Tensor = self.model(**self.inputs).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


def measured(case: ModelCase, peers: Sequence[str], device: str, rounds: int) -> list[TrainingRow]:
    """The row of every attention. They share a model, so that the memory is that of one."""
    rows = [TrainingRow(peer, case, peer == DENSE) for peer in peers]
    try:
        training = Training(case, device)
    except Exception as error:  # e.g. out of memory
        for row in rows:
            row.refused = one_line(error)
        return rows
    steps: list[tuple[TrainingRow, Callable[[], object]]] = []

    def first_steps(row: TrainingRow, attention: str) -> None:
        loss, figures = timed(lambda: training.step(attention), device, 1)
        row.loss, row.peak_bytes = float(loss), figures.total_bytes

    for row in rows:
        attention = attention_name(row.peer, case.density)
        if work(row, lambda row=row, attention=attention: first_steps(row, attention)):  # type: ignore[misc]
            steps.append((row, lambda attention=attention: training.step(attention)))  # type: ignore[misc]
    with outcome.interruptible(rows):
        for (row, _), ms in zip(
            steps, times_in_turn([step for _, step in steps], device, rounds), strict=True
        ):
            row.ms = ms
        dense = next((row for row in rows if row.dense), None)
        if dense is not None:
            for row in rows:
                row.dense_ms, row.dense_peak_bytes = dense.ms, dense.peak_bytes
    return rows


def read_json(path: str) -> tuple[list[TrainingRow], dict[str, Any]]:
    return files.read_rows(path, KIND, TrainingRow, ModelCase)


HEADINGS = ["model", "attention", "step", "tokens/s", "of sdpa", "peak memory", "above sdpa"]


def cells(row: TrainingRow) -> list[str]:
    if row.ms is None:
        return [row.case.label, row.peer, f"none: {row.refused}", "-", "-", "-", "-"]
    speed = "-" if row.dense_ms is None else f"{row.dense_ms / row.ms:.2f} x"
    memory = above = "-"
    if row.peak_bytes is not None:
        memory = f"{row.peak_bytes / 2**30:,.2f} GiB"
        if row.dense_peak_bytes is not None:
            above = f"{(row.peak_bytes - row.dense_peak_bytes) / 2**20:+,.0f} MiB"
    rate = f"{row.tokens_per_s:,.0f}"
    return [row.case.label, row.peer, f"{milliseconds(row.ms)} ms", rate, speed, memory, above]


def markdown(rows: list[TrainingRow], where: dict[str, Any]) -> str:
    """The rows as a Markdown table."""
    return table(HEADINGS, map(cells, rows), where)


def line(row: TrainingRow) -> str:
    label, peer, step, *others = cells(row)
    shown = [f"{heading} {cell}" for heading, cell in zip(HEADINGS[3:], others, strict=True) if cell != "-"]
    loss = [] if row.loss is None else [f"loss {row.loss:.4f}"]
    return f"{label}: {peer} {', '.join([step, *shown, *loss])}"
