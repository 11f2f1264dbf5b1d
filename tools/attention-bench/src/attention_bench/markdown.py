"""Figures as a Markdown table, whichever command wrote them: `attention-bench markdown`."""

from __future__ import annotations

from . import (
    calls,
    decode,
    files,
    generation,
    host,
    large,
    plan,
    report,
    scaling_rows,
    selection,
    short,
    training,
    video,
)

KINDS = {
    files.RUN: lambda path: report.markdown(*report.read_json(path)),
    large.KIND: lambda path: large.markdown(*large.read_json(path)),
    calls.KIND: lambda path: calls.markdown(*calls.read_json(path)),
    short.KIND: lambda path: short.markdown(*short.read_json(path)),
    decode.KIND: lambda path: decode.markdown(*decode.read_json(path)),
    selection.KIND: lambda path: selection.markdown(*selection.read_json(path)),
    video.KIND: lambda path: video.markdown(*video.read_json(path)),
    training.KIND: lambda path: training.markdown(*training.read_json(path)),
    generation.KIND: lambda path: generation.markdown(*generation.read_json(path)),
    scaling_rows.KIND: lambda path: scaling_rows.markdown(*scaling_rows.read_json(path)),
    host.KIND: lambda path: host.markdown(*host.read_json(path)),
    plan.KIND: lambda path: plan.markdown(*plan.read_json(path)),
}


def table(path: str) -> str:
    """The table of a file, with the environment in the last line."""
    kind, _, _ = files.read(path)
    if kind not in KINDS:
        raise ValueError(f"it has figures of kind {kind!r}, expected one of {tuple(KINDS)}")
    return KINDS[kind](path)
