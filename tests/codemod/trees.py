"""Writes the files of a small project to disk."""

from __future__ import annotations

from pathlib import Path


def make(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
