"""Rows as a table on the terminal and as JSON."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from .cases import Case
from .measure import Row

PACKAGES = ("torch", "triton", "flash-attn-4", "nvidia-cudnn-cu13", "numpy")


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def driver() -> str | None:
    """Version of the NVIDIA driver."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[0].strip() if done.stdout else None


def processor() -> str:
    """Name of the CPU."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def environment(device: str, command: str) -> dict[str, Any]:
    """Where and when figures were measured."""
    import dilated_attention_pytorch

    cuda = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else processor(),
        "threads": None if cuda else torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "driver": driver() if cuda else None,
        "versions": {
            "dilated-attention-pytorch": dilated_attention_pytorch.__version__,
            **{package: installed(package) for package in PACKAGES},
        },
        "python": platform.python_version(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "command": command,
    }


def write_json(path: str, rows: list[Row], where: dict[str, Any]) -> None:
    """Write all figures; the file is whole or not there."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_suffix(".partial")
    scratch.write_text(
        json.dumps({"environment": where, "rows": [asdict(row) for row in rows]}, indent=1) + "\n"
    )
    scratch.replace(target)


def read_json(path: str) -> tuple[list[Row], dict[str, Any]]:
    """The inverse of `write_json`."""
    content = json.loads(Path(path).read_text())
    rows = [Row(**{**row, "case": Case(**row["case"])}) for row in content["rows"]]
    return rows, content["environment"]


def number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def rate(value: float | None) -> str:
    """TFLOP/s: whole ones on a GPU, enough digits on a CPU."""
    return "-" if value is None else format(value, ".0f" if value >= 10 else ".2g")


def milliseconds(value: float) -> str:
    return format(value, ",.0f" if value >= 100 else ".3g")


def markdown(rows: list[Row], where: dict[str, Any]) -> str:
    """A table for a document: one line per case, the peers beside each other."""
    peers = list(dict.fromkeys(row.peer for row in rows))
    names = {row.peer: row.peer + (", dense" if row.dense else "") for row in rows}
    versions = ", ".join(f"{name} {value}" for name, value in where["versions"].items() if value)
    lines = [
        "| case | " + " | ".join(names[peer] for peer in peers) + " |",
        "|---|" + "---|" * len(peers),
    ]
    for case in dict.fromkeys(row.case for row in rows):
        found = {row.peer: row for row in rows if row.case == case}
        cells = []
        for peer in peers:
            row = found.get(peer)
            both = (
                []
                if row is None
                else [(row.forward_ms, row.forward_tflops), (row.backward_ms, row.backward_tflops)]
            )
            cells.append(
                " / ".join(
                    "none" if ms is None else f"{milliseconds(ms)} ms ({rate(speed)})" for ms, speed in both
                )
            )
        lines.append(f"| {case.label} | " + " | ".join(cells) + " |")
    threads = f", {where['threads']} threads" if where.get("threads") else ""
    lines.append("")
    lines.append(f"*{where['device']}{threads}, {where['date']}; {versions}; `{where['command']}`.*")
    return "\n".join(lines) + "\n"


def table(rows: list[Row]) -> Table:
    """One line per peer and case."""
    made = Table(title="TFLOP/s count active blocks only, backward 2.5 forward; dense peers count every pair")
    for name in (
        "case",
        "peer",
        "fwd ms",
        "fwd TFLOP/s",
        "bwd ms",
        "bwd TFLOP/s",
        "peak MB",
        "mask ms",
        "err",
        "note",
    ):
        made.add_column(
            name, justify="left" if name in ("case", "peer", "note") else "right", overflow="fold"
        )
    last: Case | None = None
    for row in rows:
        made.add_row(
            "" if row.case == last else row.case.label,
            row.peer + (" (dense)" if row.dense else ""),
            number(row.forward_ms, ".3f"),
            rate(row.forward_tflops),
            number(row.backward_ms, ".3f"),
            rate(row.backward_tflops),
            number(None if row.peak_bytes is None else row.peak_bytes / 2**20, ",.0f"),
            number(row.mask_ms, ".1f"),
            number(row.error, ".0e"),
            row.refused or "",
        )
        last = row.case
    return made


def line(row: Row) -> str:
    """One row as plain text, printed as soon as it is known."""
    return (
        f"{row.case.label}: {row.peer} fwd {number(row.forward_ms, '.3f')} ms {rate(row.forward_tflops)} "
        f"TFLOP/s, bwd {number(row.backward_ms, '.3f')} ms {rate(row.backward_tflops)} TFLOP/s, "
        f"err {number(row.error, '.0e')}" + (f", refused: {row.refused}" if row.refused else "")
    )
