"""JSON files of figures: an environment and rows, and which command measured them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

RUN = "run"  # what a file that names no kind holds


def write(path: str, kind: str, rows: Sequence[Any], where: dict[str, Any]) -> None:
    """Write rows, which are dataclasses; the file is whole or not there."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_suffix(".partial")
    content = {"environment": where, "kind": kind, "rows": [asdict(row) for row in rows]}
    scratch.write_text(json.dumps(content, indent=1) + "\n")
    scratch.replace(target)


def read(path: str) -> tuple[str, list[dict[str, Any]], dict[str, Any]]:
    """Kind, rows and environment."""
    content = json.loads(Path(path).read_text())
    return content.get("kind", RUN), content["rows"], content["environment"]


def read_kind(path: str, wanted: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and environment of a file of one kind."""
    kind, rows, where = read(path)
    if kind != wanted:
        raise ValueError(f"it holds figures of kind {kind!r}, needs {wanted!r}")
    return rows, where
