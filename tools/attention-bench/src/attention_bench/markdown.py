"""Figures as a Markdown table, whichever command wrote them: `attention-bench markdown`."""

from __future__ import annotations

from typing import Any

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

KINDS: dict[str, Any] = {
    each.KIND: each
    for each in (
        calls, decode, generation, host, large, plan, report, scaling_rows, selection, short, training, video,
    )
}  # fmt: skip


def table(path: str) -> str:
    """The table of a file, with the environment in the last line."""
    kind, _, _ = files.read(path)
    if kind not in KINDS:
        raise ValueError(f"it has figures of kind {kind!r}, expected one of {tuple(KINDS)}")
    return str(KINDS[kind].markdown(*KINDS[kind].read_json(path)))
