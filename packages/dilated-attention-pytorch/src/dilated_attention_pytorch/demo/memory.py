"""Peak memory of a training step with each attention, as the median of interleaved rounds.

GPU: the peak of the memory allocated through torch. CPU: every measurement runs in a fresh process and reports how far
its peak resident memory (VmHWM of /proc/self/status on Linux, otherwise ru_maxrss) rises above the resident memory just
before the model is made, after a tiny training step that loads all libraries. Both include the weights, gradients,
optimizer state and activations.
"""

from __future__ import annotations

import multiprocessing
import signal
import statistics
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing.context import BaseContext
from pathlib import Path

import torch

from .model import AttentionKind, ModelSettings, isolated_rows_allowed, make_model
from .task import make_batch
from .training import make_optimizer, training_step

ROUNDS = 3
STEPS = 2  # only the second step starts with the optimizer state


@dataclass(frozen=True)
class Run:
    """The training step to measure."""

    settings: ModelSettings
    kind: AttentionKind
    context: int
    batch_size: int
    device: str
    threads: int


def median_peaks(runs: Sequence[Run], rounds: int = ROUNDS) -> list[int | None]:
    """Peak bytes of each run, the median of `rounds` rounds over all runs; None if the system does not report it."""
    peaks: list[list[int]] = [[] for _ in runs]
    for _ in range(rounds):
        for found, run in zip(peaks, runs):
            peak = measure(run)
            if peak is not None:
                found.append(peak)
    return [int(statistics.median(found)) if found else None for found in peaks]


def measure(run: Run) -> int | None:
    """Measure here on a GPU, in a fresh process on the CPU."""
    if torch.device(run.device).type == "cuda":
        return measure_here(run)
    try:
        with ProcessPoolExecutor(1, process_context()) as executor:
            return executor.submit(measure_here, run).result()
    except BrokenProcessPool:
        raise MemoryError(f"the process that measured {run.kind} was killed") from None


def process_context() -> BaseContext:
    """The start method of the processes: a fork server that has imported torch, if the system supports it."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    # The server and its processes inherit that Ctrl-C is ignored, so only this process handles it.
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if is_main else None
    try:
        forkserver.ensure_running()
    finally:
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
    return context


def measure_here(run: Run) -> int | None:
    """Measure in this process."""
    device = torch.device(run.device)
    if run.threads:
        torch.set_num_threads(run.threads)
    with isolated_rows_allowed():
        # A tiny step first, which loads all libraries.
        take_steps(replace(run, settings=replace(run.settings, layers=1), batch_size=1, context=64), device)
        peak = peak_counter(device)
        take_steps(run, device)
    return peak()


def take_steps(run: Run, device: torch.device) -> None:
    """Make the model of a run and train it for STEPS steps."""
    model = make_model(run.settings, run.kind, 0, device)
    optimizer = make_optimizer(model)
    text = torch.zeros(run.context + 1, dtype=torch.uint8)
    batch = make_batch(text, run.context, run.batch_size, torch.Generator().manual_seed(0)).to(device)
    for _ in range(STEPS):
        training_step(model, optimizer, batch)


def peak_counter(device: torch.device) -> Callable[[], int | None]:
    """Start counting; the returned function gives the peak number of bytes above those in use now."""
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
    """Current (VmRSS) or peak (VmHWM) resident memory of this process; always the peak if there is no /proc."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text("utf-8").splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB elsewhere
