"""Speed and peak memory of training, ours and dense SDPA measured in the same way.

On a GPU: CUDA's own peak of allocated memory. On the CPU each measurement has a fresh process, and the figure is
how far its resident memory (VmHWM of /proc/self/status on Linux, else ru_maxrss) rises above what it was just
before the model was made, after a tiny training step that has loaded every library. Either figure holds the
weights, their gradients, the optimizer's state and the activations.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from .model import VOCABULARY, AttentionKind, ModelSettings, make_model
from .training import make_optimizer, training_step

STEPS = 5
# A measurement that has taken so long ends with the step it is in; a process that takes longer still is given up.
ENOUGH_SECONDS = 15.0
MOST_SECONDS = 120.0


@dataclass(frozen=True)
class Measurement:
    """Training speed and peak memory; None and a reason where they could not be had."""

    tokens_per_second: float | None = None
    peak_bytes: int | None = None
    steps: int = 0
    problem: str | None = None


@dataclass(frozen=True)
class Run:
    """What is measured."""

    settings: ModelSettings
    kind: AttentionKind
    context: int
    batch_size: int
    seed: int
    device: str
    threads: int


def measure(run: Run) -> Measurement:
    """Measure here on a GPU, in a fresh process on the CPU."""
    if torch.device(run.device).type == "cuda":
        try:
            return measure_here(run)
        except torch.OutOfMemoryError:
            return Measurement(problem="out of memory")
    command = [sys.executable, "-m", "dilated_attention_pytorch.cli.measure"]
    # The new process finds the same packages as this one.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    try:
        process = subprocess.run(
            command,
            input=json.dumps(asdict(run)),
            env=environment,
            capture_output=True,
            text=True,
            timeout=MOST_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return Measurement(problem=f"more than {MOST_SECONDS:.0f} s for {STEPS} steps")
    except OSError as error:
        return Measurement(problem=f"no process: {error}")
    if process.returncode:
        reason = process.stderr.strip().splitlines()[-1:] or ["out of memory?"]
        return Measurement(problem=f"exit status {process.returncode}: {reason[0]}")
    return Measurement(**json.loads(process.stdout.splitlines()[-1]))


def measure_here(run: Run) -> Measurement:
    """Measure in this process."""
    device = torch.device(run.device)
    if run.threads:
        torch.set_num_threads(run.threads)
    # A tiny model first: it loads what every training step loads.
    few_tokens = 2 * run.settings.block_size
    time_steps(
        replace(run, settings=replace(run.settings, layers=1), context=few_tokens, batch_size=1), device, 1
    )
    peak = peak_counter(device)
    seconds = time_steps(run, device, STEPS)
    tokens = run.batch_size * run.context * len(seconds)
    return Measurement(tokens / sum(seconds), peak(), len(seconds))


def time_steps(run: Run, device: torch.device, n_steps: int) -> list[float]:
    """Seconds of every training step after a first one that does not count."""
    model = make_model(run.settings, run.kind, run.seed, device)
    optimizer = make_optimizer(model, run.settings.dim)
    windows = torch.randint(VOCABULARY, (run.batch_size, run.context + 1), dtype=torch.uint8)
    started, seconds = time.perf_counter(), []
    for i_step in range(n_steps + 1):
        before = time.perf_counter()
        float(training_step(model, optimizer, windows))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        after = time.perf_counter()
        if i_step > 0:
            seconds.append(after - before)
        if seconds and after - started > ENOUGH_SECONDS:
            break
    return seconds


def peak_counter(device: torch.device) -> Callable[[], int | None]:
    """Start to count; the result says the highest number of bytes above what is in use now."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        in_use = torch.cuda.memory_allocated(device)
        return lambda: torch.cuda.max_memory_allocated(device) - in_use
    resident, peak = resident_bytes("VmRSS"), resident_bytes("VmHWM")
    if resident is None or peak is None:
        return lambda: None
    return lambda: (resident_bytes("VmHWM") or peak) - resident


def resident_bytes(name: str) -> int | None:
    """Resident memory of this process, now (VmRSS) or at most (VmHWM); where there is no /proc, always the most."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text("utf-8").splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def main() -> None:
    """Read a run from the standard input, write its measurement to the standard output."""
    fields = json.load(sys.stdin)
    run = Run(**{**fields, "settings": ModelSettings(**fields["settings"])})
    print(json.dumps(asdict(measure_here(run))))


if __name__ == "__main__":
    main()
