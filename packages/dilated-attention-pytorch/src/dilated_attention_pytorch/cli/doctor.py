"""`doctor`: versions, settings, devices, the backends that serve a typical call, and the coverage of the presets."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from .. import __version__
from ..config import SparsePatternConfig
from ..environment_settings import PREFIX, SETTINGS
from ..factory import PRESETS
from ..functional import explain_backends
from ..layout import BlockLayout
from .plot import layers_to_cover

# A typical call, causal, with 5 % of the blocks kept.
SHAPE = (1, 4096, 8, 64)  # (batch, seq_len, num_heads, head_dim)
SPARSITY_RATIO = 0.05
ON_REQUEST = "reference"
PATTERN_TOKENS = 16_384  # sequence length for which the presets are described

OPTIONAL = {
    "triton": "the backends for GPUs (a hard dependency on Linux)",
    "rich": "the demo",
    "matplotlib": "pictures: demo, plot and BlockLayout.plot",
    "safetensors": "files of layouts: BlockLayout.save and load",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `doctor`."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(args: argparse.Namespace) -> int:
    """Print the findings; the exit status is always 0."""
    findings = examine()
    print(json.dumps(findings, indent=2) if args.json else as_text(findings))
    return 0


def examine() -> dict[str, Any]:
    """Versions, settings, devices, backends and presets, as JSON values."""
    return {
        "versions": {
            "dilated-attention-pytorch": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
        },
        "optional": {name: examine_package(name) for name in OPTIONAL},
        "settings": examine_settings(),
        "devices": [examine_cpu(), *examine_cuda_devices()],
        "calls": [examine_call(*call) for call in typical_calls()],
        "patterns": {
            "seq_len": PATTERN_TOKENS,
            "causal": True,
            "presets": {name: examine_pattern(config) for name, config in PRESETS.items()},
        },
    }


def examine_pattern(config: SparsePatternConfig) -> dict[str, Any]:
    """Density, reach and layers to full coverage of a causal pattern."""
    layout = BlockLayout.from_config(config, PATTERN_TOKENS, causal=True)
    return {
        "density": layout.density,
        "reach": layout.stats().reach,
        "layers_to_full_coverage": layout.hops_to_full_coverage(),
    }


def examine_package(name: str) -> dict[str, str | None]:
    """The version of a package, or the error of importing it."""
    try:
        importlib.import_module(name)
    except Exception as error:  # a broken installation may raise anything
        return {"version": None, "problem": f"{type(error).__name__}: {error}"}
    try:
        return {"version": version(name), "problem": None}
    except PackageNotFoundError:
        return {"version": "unknown", "problem": None}


def examine_settings() -> dict[str, dict[str, str | None]]:
    """The environment variables of the library that are set, and what is wrong with their values."""
    settings = {setting.name: setting for setting in SETTINGS}
    found: dict[str, dict[str, str | None]] = {}
    for name in sorted(name for name in os.environ if name.startswith(PREFIX)):
        problem = None
        if name not in settings:
            problem = f"no setting has this name, but {', '.join(settings)} are settings"
        else:
            try:
                settings[name].read()
            except ValueError as error:
                problem = str(error)
        found[name] = {"value": os.environ[name], "problem": problem}
    return found


def examine_cpu() -> dict[str, Any]:
    """Architecture, instruction set and threads of the CPU, as torch reports them."""
    capability = torch.backends.cpu.get_cpu_capability()
    return {
        "device": "cpu",
        "name": f"{platform.machine()}, {capability}",
        "threads": torch.get_num_threads(),
    }


def examine_cuda_devices() -> list[dict[str, Any]]:
    """Every CUDA device, with its problem if it is not usable."""
    if not torch.cuda.is_available():
        return []
    return [examine_cuda_device(index) for index in range(torch.cuda.device_count())]


def examine_cuda_device(index: int) -> dict[str, Any]:
    """Name, compute capability and memory of one device."""
    found: dict[str, Any] = {"device": f"cuda:{index}"}
    try:
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
    except RuntimeError as error:
        return {**found, "problem": first_line(error)}
    found["name"] = properties.name
    found["capability"] = f"{properties.major}.{properties.minor}"
    return {**found, "memory_bytes": total, "free_memory_bytes": free}


def typical_calls() -> list[tuple[str, torch.dtype]]:
    """float32 on the CPU and, if there is a GPU, bfloat16 on it."""
    calls = [("cpu", torch.float32)]
    return [*calls, ("cuda", torch.bfloat16)] if torch.cuda.is_available() else calls


def examine_call(device: str, dtype: torch.dtype) -> dict[str, Any]:
    """For every backend None or why it cannot serve a typical call, and the first that can."""
    found: dict[str, Any] = {
        "device": device,
        "dtype": str(dtype).removeprefix("torch."),
        "shape": list(SHAPE),
        "is_causal": True,
        "sparsity_ratio": SPARSITY_RATIO,
    }
    try:
        q = torch.zeros(SHAPE, device=device, dtype=dtype)
        config = SparsePatternConfig(sparsity_ratio=SPARSITY_RATIO)
        layout = BlockLayout.from_config(config, q_len=SHAPE[1], causal=True, device=device)
        backends = explain_backends(q, q, q, layout, is_causal=True)
    except RuntimeError as error:
        return {**found, "chosen": None, "backends": {}, "problem": first_line(error)}
    chosen = next(
        (name for name, why_not in backends.items() if why_not is None and name != ON_REQUEST), None
    )
    return {**found, "chosen": chosen, "backends": backends}


def first_line(error: Exception) -> str:
    """The first line of the message, or the type of the error if there is no message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def as_text(findings: dict[str, Any]) -> str:
    """The findings as readable text."""
    lines = ["Versions"]
    lines += [f"  {name:<26}{value or 'none'}" for name, value in findings["versions"].items()]
    for name, package in findings["optional"].items():
        why_not = f"not available, {package['problem']}; needed for {OPTIONAL[name]}"
        if name == "triton" and sys.platform != "linux":
            why_not = "not available: it is installed on Linux only"
        lines.append(f"  {name:<26}{package['version'] or why_not}")

    lines += ["", "Environment"]
    lines += [f"  {name:<36}{describe_setting(**of)}" for name, of in findings["settings"].items()]
    if not findings["settings"]:
        lines.append(f"  no {PREFIX}... is set")

    lines += ["", "Devices"]
    lines += [f"  {device['device']:<26}{describe_device(device)}" for device in findings["devices"]]
    if len(findings["devices"]) == 1:
        lines.append(f"  {'cuda':<26}torch {torch.__version__} finds no usable device")

    for call in findings["calls"]:
        lines += ["", f"Backends on {call['device']} for {describe_call(call)}"]
        for name, why_not in call["backends"].items():
            lines.append(f"  {name:<26}{describe_backend(call, name, why_not)}")
        if "problem" in call:
            lines.append(f"  the call cannot be made: {call['problem']}")
    patterns = findings["patterns"]
    lines += ["", f"Presets at {patterns['seq_len']:,} tokens, causal"]
    lines += [f"  {name:<26}{describe_pattern(pattern)}" for name, pattern in patterns["presets"].items()]
    return "\n".join(lines)


def describe_setting(value: str, problem: str | None) -> str:
    """An environment variable in one line."""
    shown = value or "empty, so the default"
    return shown if problem is None else f"{shown}, wrong: {problem}"


def describe_pattern(pattern: dict[str, Any]) -> str:
    """Density, reach and coverage of a pattern in one line."""
    when = layers_to_cover(pattern["layers_to_full_coverage"])
    return f"{pattern['density']:.1%} of the blocks, reach {pattern['reach']:,} tokens, full coverage {when}"


def describe_device(device: dict[str, Any]) -> str:
    """A device in one line."""
    if "problem" in device:
        return f"not usable: {device['problem']}"
    if device["device"] == "cpu":
        return f"{device['name']}, {device['threads']} threads"
    memory, free = (device[name] / 2**30 for name in ("memory_bytes", "free_memory_bytes"))
    return (
        f"{device['name']}, compute capability {device['capability']}, {memory:.1f} GiB, {free:.1f} GiB free"
    )


def describe_call(call: dict[str, Any]) -> str:
    """The inputs of a call in one line."""
    batch, seq_len, num_heads, head_dim = call["shape"]
    return (
        f"{call['dtype']} q, k, v of shape ({batch}, {seq_len}, {num_heads}, {head_dim}), causal, "
        f"{call['sparsity_ratio']:.0%} of the blocks"
    )


def describe_backend(call: dict[str, Any], name: str, why_not: str | None) -> str:
    """Whether a backend serves a call, in one line."""
    if why_not is not None:
        return f"no: {why_not}"
    if name == ON_REQUEST:
        return "yes, only on request: dense and slow"
    return "yes, chosen by default" if name == call["chosen"] else "yes"
