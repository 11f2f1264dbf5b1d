"""The command lines, from their parsers."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ["COLUMNS"] = "96"  # argparse wraps its help to this


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Every command with its parser, subcommands included."""
    from attention_bench import cli as bench
    from dilated_attention_pytorch.__main__ import build_parser as core
    from migrate_hierarchical.cli import build_parser as codemod

    found = {
        "python -m dilated_attention_pytorch": core(),
        "migrate-hierarchical": codemod(),
        **bench.parsers(),
    }
    for name, parser in list(found.items()):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                found.update({f"{name} {sub}": child for sub, child in action.choices.items()})
    return found


def program(name: str) -> int:
    """The place of a command on the page: the library's, the codemod's, the benchmark's."""
    return next(i for i, start in enumerate(("python", "migrate", "attention")) if name.startswith(start))


def write(markdown: Path, assets: Path) -> None:
    parts = [
        f"## {name}\n\n```text\n{parser.format_help().rstrip()}\n```\n"
        for name, parser in sorted(parsers().items(), key=lambda item: (program(item[0]), item[0]))
    ]
    (markdown / "commands.md").write_text("\n".join(parts), "utf-8")
