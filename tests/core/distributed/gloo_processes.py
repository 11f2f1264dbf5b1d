"""Processes that form one gloo group, for tests: `run_processes` for one call, `GlooProcesses` for several.

    def sums(rank, size):                       # at the top of a module: a process finds it by its name
        x = torch.full((size,), rank)
        torch.distributed.all_reduce(x)
        return x

    assert run_processes(2, sums, 3, limit=60)[0].tolist() == [1, 1, 1]

A start costs seconds, so tests share `GlooProcesses` (the fixture `two`), or run a whole grid in one call. A call
that takes longer than `limit` fails with what each process said, and no process outlives its `with` or its parent. Modules with such tests have `pytestmark = needs_gloo`.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest
import torch

needs_gloo = pytest.mark.skipif(
    sys.platform == "win32"
    or not torch.distributed.is_available()
    or not torch.distributed.is_gloo_available(),
    reason="needs gloo",
)

STARTUP = 120.0  # seconds until all processes have imported torch and met, on a busy machine
GRACE = 10.0  # seconds that the others get to finish once a process has failed
NOT_ARRIVED = "no answer"


@dataclass(frozen=True)
class Outcome:
    """What became of a call in the process of one rank: a value, an exception, a death or no answer in time."""

    rank: int
    seconds: float  # from the start of the call until it was known
    value: Any = None
    error: str | None = None  # name of the exception's type; "died" or NOT_ARRIVED if there was none
    message: str = ""
    traceback: str = ""
    output: str = ""  # the end of stdout and stderr, of failed calls

    def __str__(self) -> str:
        if self.error is None:
            return f"rank {self.rank}: returned after {self.seconds:.1f} s"
        said = f"\n{self.output}" if self.output else ""
        return f"rank {self.rank}: {self.error} after {self.seconds:.1f} s: {self.message}\n{self.traceback}{said}"


class GlooProcesses:
    """`world_size` processes of one gloo group, started by the first call; after a failed call the next starts new ones.

    Args:
        world_size: number of processes.
        group_timeout: seconds after which a collective of the group gives up; default: torch's.
    """

    def __init__(self, world_size: int, group_timeout: float | None = None) -> None:
        self.world_size = world_size
        self.group_timeout = group_timeout
        self.processes: list[Any] = []
        self.pipes: list[Connection] = []
        self.folder: tempfile.TemporaryDirectory[str] | None = None
        self.store: torch.distributed.TCPStore | None = None

    def __enter__(self) -> GlooProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(self, function: Callable[..., Any], *args: Any, limit: float = 180.0) -> list[Any]:
        """`function(rank, *args)` in every process; the values in order of rank. Fails if any of them did."""
        outcomes = self.outcomes(function, *args, limit=limit, grace=GRACE)
        if any(outcome.error is not None for outcome in outcomes):
            raise AssertionError("\n\n".join(str(outcome) for outcome in outcomes))
        return [outcome.value for outcome in outcomes]

    def outcomes(
        self, function: Callable[..., Any], *args: Any, limit: float = 180.0, grace: float | None = None
    ) -> list[Outcome]:
        """What becomes of `function(rank, *args)` in each process, for tests of failures: raises nothing.

        After `limit` seconds, or `grace` seconds after the first failure, those that have not answered are killed.
        """
        self.start()
        begin = time.monotonic()
        job = pickle.dumps((function, args))
        for pipe in self.pipes:
            pipe.send_bytes(job)
        return self.collect(begin, limit, grace)

    def start(self) -> None:
        if self.processes:
            return
        context = multiprocessing.get_context("spawn")
        self.folder = tempfile.TemporaryDirectory()
        # The parent keeps the store, as torchrun does: it outlives every rank, and no port is chosen twice.
        self.store = torch.distributed.TCPStore(
            "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=STARTUP)
        )
        for rank in range(self.world_size):
            pipe, end = context.Pipe()
            settings = (rank, self.world_size, self.store.port, self.group_timeout, str(self.said_by(rank)))
            process = context.Process(target=serve, args=(end, *settings), daemon=True)
            process.start()
            end.close()
            self.processes.append(process)
            self.pipes.append(pipe)
        outcomes = self.collect(time.monotonic(), STARTUP, GRACE)
        if any(outcome.error is not None for outcome in outcomes):
            raise AssertionError("\n\n".join(str(outcome) for outcome in outcomes))

    def collect(self, begin: float, limit: float, grace: float | None) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        deadline = begin + limit
        while len(outcomes) < self.world_size:
            waiting = {self.pipes[rank]: rank for rank in range(self.world_size) if rank not in outcomes}
            ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
            if not ready and time.monotonic() >= deadline:
                break
            for pipe in ready:
                assert isinstance(pipe, Connection)
                rank = waiting[pipe]
                outcomes[rank] = self.answer(rank, pipe, begin)
                if outcomes[rank].error is not None and grace is not None:
                    deadline = min(deadline, time.monotonic() + grace)
        seconds = time.monotonic() - begin
        for rank in set(range(self.world_size)) - set(outcomes):
            os.kill(self.processes[rank].pid, signal.SIGUSR1)  # write the stacks to the output
            self.processes[rank].join(0.5)
        late = {
            rank: Outcome(rank, seconds, error=NOT_ARRIVED, message="killed")
            for rank in range(self.world_size)
            if rank not in outcomes
        }
        outcomes |= late
        if any(outcome.error is not None for outcome in outcomes.values()):
            self.kill()
            outcomes = {rank: replace(o, output=self.end_of_output(rank)) for rank, o in outcomes.items()}
            self.stop()
        return [outcomes[rank] for rank in range(self.world_size)]

    def answer(self, rank: int, pipe: Connection, begin: float) -> Outcome:
        try:
            fields = pickle.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            self.processes[rank].join(GRACE)
            fields = {"error": "died", "message": f"exit code {self.processes[rank].exitcode}"}
        return Outcome(rank, time.monotonic() - begin, **fields)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()

    def stop(self) -> None:
        self.kill()
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.close()
        if self.folder is not None:
            self.folder.cleanup()
        self.processes, self.pipes, self.folder, self.store = [], [], None, None

    def said_by(self, rank: int) -> Path:
        assert self.folder is not None
        return Path(self.folder.name) / f"rank{rank}.txt"

    def end_of_output(self, rank: int) -> str:
        path = self.said_by(rank)
        return path.read_text(errors="replace")[-4000:] if path.exists() else ""


def run_processes(
    world_size: int,
    function: Callable[..., Any],
    *args: Any,
    limit: float = 180.0,
    group_timeout: float | None = None,
) -> list[Any]:
    """`function(rank, *args)` in new processes of one gloo group; the values in order of rank.

    `function`, its arguments and its values are pickled. Raises AssertionError with the rank, the traceback and the
    output of each process if one raises, dies, or takes longer than `limit` seconds; none is left behind.
    """
    with GlooProcesses(world_size, group_timeout) as processes:
        return processes.run(function, *args, limit=limit)


def die() -> None:
    """End this process at once, as a crash or the kernel's out-of-memory killer would."""
    os.kill(os.getpid(), signal.SIGKILL)


def serve(
    pipe: Connection, rank: int, world_size: int, port: int, group_timeout: float | None, output: str
) -> None:
    """What a process does: join the group, then run what comes through the pipe until it closes."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.register(signal.SIGUSR1)
    torch.set_num_threads(1)

    def join() -> None:
        store = torch.distributed.TCPStore(
            "127.0.0.1", port, world_size, is_master=False, timeout=timedelta(seconds=STARTUP)
        )
        timeout = None if group_timeout is None else timedelta(seconds=group_timeout)
        torch.distributed.init_process_group(
            "gloo", store=store, rank=rank, world_size=world_size, timeout=timeout
        )

    pipe.send_bytes(attempt(join))
    while True:
        try:
            function, args = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        torch.manual_seed(0)  # whatever ran before
        pipe.send_bytes(attempt(function, rank, *args))


def attempt(function: Callable[..., Any], *args: Any) -> bytes:
    try:
        return pickle.dumps({"value": function(*args)})
    except BaseException as error:
        said = {"error": type(error).__name__, "message": str(error), "traceback": traceback.format_exc()}
        return pickle.dumps(said)


def end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
