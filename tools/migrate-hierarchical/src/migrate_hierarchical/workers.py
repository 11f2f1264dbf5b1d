"""Worker processes that migrate one file at a time, have a time limit, and never outlive the process that started them.

The parser is native code: neither exceptions nor signal handlers interrupt it, only the end of its process does.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from .documents.result import Result
from .engine import migrate_bytes
from .settings import Settings

Task = tuple[str, bytes, Settings]

METHOD = "fork" if sys.platform == "linux" else "spawn"
WORTH_MORE = 8  # files; below it, starting a second process takes longer than the work
PATIENCE = 10  # times the limit, in wall-clock time, for a process that gets no CPU time
TOO_LONG = (
    "took more than {limit:g} s and was left alone: split it, exclude it, or raise --time-limit (0: no limit)"
)


def migrate_all(tasks: Sequence[Task], jobs: int, limit: float) -> Iterator[Result]:
    """The results in the order of the tasks. limit: seconds of CPU time for one file, 0 for no limit."""
    if not tasks:
        return
    if METHOD == "fork":
        from .documents import docstrings, notebook, plain  # noqa: F401  # before the fork: all share them
    jobs = 1 if len(tasks) <= WORTH_MORE else min(jobs, len(tasks))
    waiting = list(enumerate(tasks))[::-1]
    done: dict[int, Result] = {}
    workers: list[Worker] = []
    try:
        for number in range(len(tasks)):
            while number not in done:
                while waiting and len(workers) < jobs:
                    workers.append(Worker(workers, limit))
                for worker in workers:
                    if waiting and worker.number is None:
                        worker.give(*waiting.pop())
                for worker in finished(workers, limit):
                    place, result = worker.take()
                    done[place] = result
                    if not worker.alive:
                        workers.remove(worker)
            yield done.pop(number)
    finally:
        for worker in workers:
            worker.end()


class Worker:
    """A process and its current task."""

    def __init__(self, others: list[Worker], limit: float) -> None:
        context: Any = multiprocessing.get_context(METHOD)
        self.limit = limit
        self.connection, theirs = context.Pipe()
        # with a copy of these connections in the new process, other workers would not notice that this one ended
        ours = [each.connection for each in (*others, self)] if METHOD == "fork" else []
        self.process = context.Process(target=work, args=(theirs, ours, os.getpid(), limit), daemon=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # about threads, which this tool does not use
            self.process.start()
        theirs.close()
        self.number: int | None = None
        self.path = ""
        self.started = 0.0
        self.alive = True

    def give(self, number: int, task: Task) -> None:
        self.number, self.path, self.started = number, task[0], time.monotonic()
        with contextlib.suppress(OSError):  # it has ended: `take` says so
            self.connection.send(task)

    @property
    def overdue(self) -> bool:
        patience = PATIENCE if hasattr(signal, "setitimer") else 1
        return bool(self.limit) and time.monotonic() - self.started > patience * self.limit

    def take(self) -> tuple[int, Result]:
        """The number of the task and its result; a result with an error if the process failed."""
        assert self.number is not None
        number, self.number = self.number, None
        try:
            if self.connection.poll():
                return number, self.connection.recv()
        except (EOFError, OSError):
            self.process.join(1)
        code = self.process.exitcode
        self.end()
        if code is None or code == -getattr(signal, "SIGPROF", 0):
            return number, Result(self.path, error=TOO_LONG.format(limit=self.limit))
        cause = f"signal {-code}" if code < 0 else f"status {code}"
        return number, Result(self.path, error=f"left alone: the process that read it ended with {cause}")

    def end(self) -> None:
        self.alive = False
        self.process.kill()
        self.process.join()
        self.connection.close()


def finished(workers: list[Worker], limit: float) -> list[Worker]:
    """The busy workers that have a result, have ended, or are overdue; waits for one."""
    busy = {worker.connection: worker for worker in workers if worker.number is not None}
    while True:
        ready = wait(list(busy), timeout=1 if limit else None)
        found = [busy[each] for each in busy if each in ready] or [
            each for each in busy.values() if each.overdue
        ]
        if found:
            return found


# ---- in the new process


def work(
    connection: Connection[Any, Any], others: list[Connection[Any, Any]], parent: int, limit: float
) -> None:
    """Migrate tasks until the connection closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    for name in ("SIGTERM", "SIGHUP", "SIGPROF"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    end_with(parent)
    for other in others:
        other.close()
    be_silent()
    with contextlib.suppress(EOFError, OSError):
        while True:
            path, data, settings = connection.recv()
            set_timer(limit)
            try:
                result = migrate_bytes(path, data, settings)
            except BaseException as error:  # panics of the native parser are not Exceptions
                result = Result(path, error=f"left alone after an error of this tool: {type(error).__name__}")
            set_timer(0)
            connection.send(result)


def set_timer(limit: float) -> None:
    """End this process after this many seconds of CPU time."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, limit)


def end_with(parent: int) -> None:
    """End this process when its parent ends, even if the parent is killed or this one is in native code."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)
        return
    import threading

    process = multiprocessing.parent_process()
    if process is not None:
        threading.Thread(target=lambda: (process.join(), os._exit(1)), daemon=True).start()


def be_silent() -> None:
    """Redirect stdout and stderr to the null device: a worker prints nothing and must not keep a pipe open."""
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_RDWR)
        for number in (1, 2):
            os.dup2(null, number)
        os.close(null)
