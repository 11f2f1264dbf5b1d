"""JSON files of figures: the rows, the environment, and the kind of command that measured them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from dilated_attention_pytorch.cli.files import write_whole

RowType = TypeVar("RowType")
RUN = "run"  # also the kind of files that name none


def write(path: str, kind: str, rows: Sequence[Any], where: dict[str, Any]) -> None:
    """Write rows (dataclasses) atomically. The folder of the file must exist."""
    write_json(path, {"environment": where, "kind": kind, "rows": [asdict(row) for row in rows]})


def write_json(path: str, content: object) -> None:
    write_whole(Path(path), (json.dumps(content, indent=1) + "\n").encode())


def read(path: str) -> tuple[str, list[dict[str, Any]], dict[str, Any]]:
    """Kind, rows and environment; ValueError if the file is of another format."""
    content = json.loads(Path(path).read_text())
    if not isinstance(content, dict) or not {"rows", "environment"} <= content.keys():
        raise ValueError("it is not a file of figures: it has no rows or no environment")
    return content.get("kind", RUN), content["rows"], content["environment"]


def read_kind(path: str, wanted: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and environment of a file of one kind."""
    kind, rows, where = read(path)
    if kind != wanted:
        raise ValueError(f"it has figures of kind {kind!r}, expected {wanted!r}")
    if not rows:
        raise ValueError("it has no figures")
    return rows, where


def read_rows(
    path: str, wanted: str, row_type: Callable[..., RowType], case_type: Callable[..., object]
) -> tuple[list[RowType], dict[str, Any]]:
    """`read_kind` with the rows as dataclasses, and their cases."""
    rows, where = read_kind(path, wanted)
    return [row_type(**{**row, "case": case_type(**row["case"])}) for row in rows], where
