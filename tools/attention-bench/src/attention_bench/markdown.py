"""A file of figures as Markdown, whichever command wrote it: `attention-bench markdown`."""

from __future__ import annotations

from . import files, host, large, report

KINDS = {
    files.RUN: lambda path: report.markdown(*report.read_json(path)),
    large.KIND: lambda path: large.markdown(*large.read_json(path)),
    host.KIND: lambda path: host.markdown(*host.read_json(path)),
}


def table(path: str) -> str:
    """The table of a file, with its source in a last line."""
    kind, _, _ = files.read(path)
    if kind not in KINDS:
        raise ValueError(f"it holds figures of kind {kind!r}, needs one of {tuple(KINDS)}")
    return KINDS[kind](path)
