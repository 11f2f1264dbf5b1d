"""The environment of a measurement: device, versions, date and command."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .counts import counted

PACKAGES = (
    "torch", "triton", "flash-attn-4", "nvidia-cudnn-cu13", "nvidia-cudnn-frontend", "nvidia-cutlass-dsl",
    "fastvideo-kernel", "flashinfer-python", "natten", "numpy",
)  # fmt: skip


def installed(package: str) -> str | None:
    """The version of a distribution, None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def driver() -> str | None:
    """Version of the NVIDIA driver, None if there is none."""
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


def environment(device: str, command: str, packages: tuple[str, ...] = ()) -> dict[str, Any]:
    """Device, versions (of `packages` too), date and the command."""
    import dilated_attention_pytorch

    cuda = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else processor(),
        "threads": None if cuda else torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "driver": driver() if cuda else None,
        "versions": {
            "dilated-attention-pytorch": dilated_attention_pytorch.__version__,
            **{package: installed(package) for package in (*PACKAGES, *packages)},
        },
        "python": platform.python_version(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "command": command,
    }


def footnote(where: dict[str, Any]) -> str:
    """The environment as a line of Markdown below a table."""
    versions = ", ".join(f"{name} {value}" for name, value in where["versions"].items() if value)
    threads = f", {counted(where['threads'], 'thread')}" if where.get("threads") else ""
    line = f"*{where['device']}{threads}, {where['date']}; {versions}; `{where['command']}`.*\n"
    missing = where.get("left_out")
    return line + (f"\nLeft out for lack of time: {'; '.join(missing)}.\n" if missing else "")
