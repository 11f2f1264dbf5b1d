"""Figures as a Markdown table, whichever command wrote them: `attention-bench markdown`."""

from __future__ import annotations

from . import decode, files, host, large, report

KINDS = {
    files.RUN: lambda path: report.markdown(*report.read_json(path)),
    large.KIND: lambda path: large.markdown(*large.read_json(path)),
    decode.KIND: lambda path: decode.markdown(*decode.read_json(path)),
    host.KIND: lambda path: host.markdown(*host.read_json(path)),
}


def table(path: str) -> str:
    """The table of a file, with the environment in the last line."""
    kind, _, _ = files.read(path)
    if kind not in KINDS:
        raise ValueError(f"it has figures of kind {kind!r}, expected one of {tuple(KINDS)}")
    return KINDS[kind](path)
