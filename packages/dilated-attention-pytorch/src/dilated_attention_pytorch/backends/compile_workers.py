"""Kernels that will be wanted soon are compiled by other processes meanwhile: Triton compiles under the lock of the interpreter.

`compile_beside` has a kernel compiled; the launch that wants it waits for it and finds it on the disk. What goes wrong in a
worker costs time only: the kernel is then compiled where it is wanted. Workers start when there is something to compile, in
half a second (they do not import torch), and end when they have had nothing to do for a while.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import triton
from triton.runtime import _async_compile
from triton.runtime.cache import get_cache_manager

from ..environment_settings import COMPILE_WORKERS
from . import compile_worker
from .compile_worker import Job

MOST_WORKERS = 2
CORES_WITHOUT = 2  # of a process that has fewer than these and one more, no worker takes any
MOST_SECONDS = 120.0


def n_workers() -> int:
    """How many may work for this process: by the setting, or ("auto", the default) by the cores that each rank has."""
    setting = COMPILE_WORKERS.read()
    if triton.knobs.compilation.always_compile:  # nothing would be found on the disk
        return 0
    if setting.isdecimal():
        return int(setting)
    if not hasattr(os, "sched_getaffinity") or not sys.executable or getattr(sys, "frozen", False):
        return 0  # of a frozen application, sys.executable is the application
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")
    cores = len(os.sched_getaffinity(0)) // max(1, int(ranks) if ranks.isdecimal() else 1)
    return max(0, min(MOST_WORKERS, cores - CORES_WITHOUT))


class Compiling:
    """A job, and what Triton would call to compile it here. Has the `result` of a future."""

    def __init__(self, job: Job, compile_here: Callable[[], Any]) -> None:
        self.fields = pickle.dumps(tuple(job))
        self.compile_here = compile_here
        self.is_done = threading.Event()

    def result(self) -> Any:
        """The compiled kernel."""
        self.is_done.wait(MOST_SECONDS)
        return self.compile_here()  # from the disk, if all went well


class Workers:
    """Threads, each with a process that it gives jobs to."""

    def __init__(self) -> None:
        self.jobs: queue.SimpleQueue[Compiling] = queue.SimpleQueue()
        self.threads: list[threading.Thread] = []
        self.lock = threading.Lock()
        self.owner = os.getpid()

    def give(self, compiling: Compiling) -> None:
        """Have a job done by whichever worker is free."""
        with self.lock:
            if len(self.threads) < n_workers():
                thread = threading.Thread(target=self.work, name="compile worker", daemon=True)
                thread.start()  # RuntimeError where there may be no more threads
                self.threads.append(thread)
        self.jobs.put(compiling)

    def work(self) -> None:
        """What a thread does."""
        process = None
        while True:
            compiling = self.jobs.get()
            try:
                if process is None or process.poll() is not None:
                    process = started()
                done_by(process, compiling)
            except OSError:
                process = None
            finally:
                compiling.is_done.set()


def started() -> subprocess.Popen[bytes]:
    """A worker."""
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, "TRITON_CACHE_DIR": str(triton.knobs.cache.dir)}
    return subprocess.Popen(
        [sys.executable, compile_worker.__file__],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def done_by(process: subprocess.Popen[bytes], compiling: Compiling) -> None:
    """Give a worker a job and wait for its answer; OSError if it has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(compiling.fields)
    process.stdin.flush()
    if not process.stdout.readline():
        raise BrokenPipeError


WORKERS: list[Workers] = []


def workers() -> Workers:
    """Those of this process; a fork has none of its parent's."""
    if not WORKERS or WORKERS[0].owner != os.getpid():
        WORKERS[:] = [Workers()]
    return WORKERS[0]


def is_on_disk(key: str, source: Any) -> bool:
    """Whether Triton has kept a compiled kernel."""
    name = f"{source.name[:150]}.json"
    manager = get_cache_manager(hashlib.sha256(key.encode()).hexdigest())
    return name in (manager.get_group(name) or {})


class Beside(triton.AsyncCompileMode):  # type: ignore[misc]
    """Triton's mode for compiling several kernels at the same time, here in other processes, and without waiting for them."""

    def __init__(self) -> None:
        super().__init__(None)

    def submit(
        self, key: str, compile_fn: Callable[[], Any], finalize_fn: Callable[[Any], None], *cleanup: Any
    ) -> Any:
        """What Triton keeps in place of a kernel until that is wanted; `cleanup` is new in 3.9."""
        known = inspect.getclosurevars(compile_fn).nonlocals
        source, target, options = known["src"], known["target"], known["options"]
        if is_on_disk(key, source):
            kernel = compile_fn()
            finalize_fn(kernel)
            return kernel
        kernel = source.fn
        job = Job(
            kernel.module, kernel.__name__, source.signature, source.constants, source.attrs, dict(options.__dict__),
            (target.backend, target.arch, target.warp_size),
        )  # fmt: skip
        compiling = Compiling(job, compile_fn)
        workers().give(compiling)
        future = _async_compile.FutureKernel(finalize_fn, *cleanup, compiling)
        kept = inspect.getclosurevars(finalize_fn).nonlocals
        kept["kernel_cache"][kept["key"]] = future  # 3.6 does so only once it is compiled
        return future

    def __exit__(self, *_: object) -> None:
        _async_compile.active_mode.set(None)


def compile_beside(kernel: Any, arguments: dict[str, Any], options: dict[str, Any]) -> None:
    """Have a kernel compiled by another process, if there may be one and it is not on the disk already.

    The next `warmup` of the kernel with such arguments returns a future, whose result waits for it.
    """
    if n_workers() == 0 or _async_compile.active_mode.get() is not None:
        return
    # Triton's names for what it would do differ from release to release; nothing depends on it but time
    with (
        contextlib.suppress(AttributeError, KeyError, RuntimeError, TypeError, pickle.PicklingError),
        Beside(),
    ):
        kernel.warmup(grid=(1,), **arguments, **options)
