"""Peak memory of a training step of each attention, as the median of interleaved rounds.

On a GPU: CUDA's own peak of allocated memory. On the CPU every measurement has a fresh process, and the figure is
how far its resident memory (VmHWM of /proc/self/status on Linux, else ru_maxrss) rises above what it was just
before the model was made, after a tiny training step that has loaded every library. Either figure holds the
weights, their gradients, the optimizer's state and the activations.
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

from .model import AttentionKind, ModelSettings, make_model, own_blocks_on_purpose
from .task import make_batch
from .training import make_optimizer, training_step

ROUNDS = 3
STEPS = 2  # the second has the optimizer's state from the start


@dataclass(frozen=True)
class Run:
    """What is measured."""

    settings: ModelSettings
    kind: AttentionKind
    context: int
    batch_size: int
    device: str
    threads: int


def median_peaks(runs: Sequence[Run], rounds: int = ROUNDS) -> list[int | None]:
    """Bytes of each run, the runs in turn, `rounds` times; None where the system does not tell."""
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
        raise MemoryError(f"the process that measured {run.kind} was ended") from None


def process_context() -> BaseContext:
    """Where fresh processes come from: a server that has imported torch, if the system has one."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    # Started while Ctrl-C is ignored, the server and its processes leave it to this one.
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
    with own_blocks_on_purpose():
        # A tiny model first: it loads what every training step loads.
        take_steps(replace(run, settings=replace(run.settings, layers=1), batch_size=1, context=64), device)
        peak = peak_counter(device)
        take_steps(run, device)
    return peak()


def take_steps(run: Run, device: torch.device) -> None:
    model = make_model(run.settings, run.kind, 0, device)
    optimizer = make_optimizer(model)
    text = torch.zeros(run.context + 1, dtype=torch.uint8)
    batch = make_batch(text, run.context, run.batch_size, torch.Generator().manual_seed(0)).to(device)
    for _ in range(STEPS):
        training_step(model, optimizer, batch)


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
