"""Ranks: the processes of a command, one per GPU, and what they decide and measure together."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from .timing import call_ms
from .turns import WRITTEN_BYTES

TIMEOUT = timedelta(seconds=180)  # of a collective that a rank never joins
# Passes over what is written before a call: on a GPU they take longer than the host needs to launch all of the call.
WRITES = {"cuda": 4, "cpu": 1}
Work = Callable[["Ranks", list[str]], int]


class Ranks:
    """The processes of the default group; `device` is "cuda" or "cpu"."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.host = dist.new_group(backend="gloo", timeout=TIMEOUT) if device == "cuda" else dist.group.WORLD
        self._groups: dict[int, Any] = {}
        self._written = torch.empty(WRITTEN_BYTES[device] // 4, dtype=torch.int32, device=device)
        self._token = torch.zeros(1, device=device)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def group(self, size: int) -> ProcessGroup | None:
        """The group of the first `size` ranks, None on the others. Every rank asks for the same groups in the same order."""
        if size not in self._groups:
            self._groups[size] = dist.new_group(range(size), timeout=TIMEOUT)
        made: ProcessGroup | None = self._groups[size] if self.rank < size else None
        return made

    def shared(self, value: Any) -> Any:
        """The value of the first rank."""
        held = [value]
        dist.broadcast_object_list(held, src=0, group=self.host)
        return held[0]

    def failures(self, error: str | None) -> str | None:
        """What failed on the first rank on which something did; None if nothing did anywhere."""
        errors: list[str | None] = [None] * self.size
        dist.all_gather_object(errors, error, group=self.host)
        return next((each for each in errors if each is not None), None)

    def most(self, values: list[float]) -> list[float]:
        """The largest of each number over the ranks."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def total(self, values: list[float]) -> list[float]:
        """The sum of each number over the ranks."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def _reduced(self, values: list[float], how: Any) -> list[float]:
        reduced = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(reduced, how, group=self.host)
        found: list[float] = reduced.tolist()
        return found

    def call_ms(self, call: Callable[[], object] | None) -> float:
        """Milliseconds of a call that all ranks begin together; 0 on a rank that takes no part and gives None.

        Other memory is written before, so that what the call reads is in no cache.
        """
        dist.barrier(group=self.host)
        for _ in range(WRITES[self.device]):
            self._written.zero_()
        if self.device == "cuda":
            dist.all_reduce(self._token)  # the GPUs wait for each other too, before the first event
        return 0.0 if call is None else call_ms(call, self.device)[1]


def number_of(processes: int) -> int:
    """Ranks of a command: those of torchrun, or else `processes`."""
    return int(os.environ["WORLD_SIZE"]) if is_under_torchrun() else processes


def is_under_torchrun() -> bool:
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def start(work: Work, arguments: list[str], device: str, n_processes: int) -> int:
    """Run `work` on every rank and return the status of the first.

    The ranks are the processes of torchrun, or else `n_processes` new ones, or this process where that is 1.
    """
    if is_under_torchrun():
        return joined(
            work, arguments, device, int(os.environ.get("LOCAL_RANK", "0")), {"init_method": "env://"}
        )
    with tempfile.TemporaryDirectory() as folder:
        meeting = (Path(folder) / "meeting").as_uri()
        if n_processes == 1:
            return process(0, work, arguments, device, 1, meeting)
        from torch.multiprocessing.spawn import ProcessExitedException, start_processes

        try:
            start_processes(
                run_process,
                (work, arguments, device, n_processes, meeting),
                n_processes,
                start_method="spawn",
            )
        except ProcessExitedException as ended:
            return ended.exit_code or 1
    return 0


def run_process(rank: int, *others: Any) -> None:
    """`process` as the whole life of a new process."""
    if "OMP_NUM_THREADS" not in os.environ:  # as torchrun sets it
        torch.set_num_threads(1)
    status = process(rank, *others)
    if status:
        raise SystemExit(status)


def process(rank: int, work: Work, arguments: list[str], device: str, n_processes: int, meeting: str) -> int:
    where = {"init_method": meeting, "rank": rank, "world_size": n_processes}
    return joined(work, arguments, device, rank, where)


def joined(work: Work, arguments: list[str], device: str, local_rank: int, where: dict[str, Any]) -> int:
    """Run `work` in the group of all ranks."""
    if device == "cuda":
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=TIMEOUT, **where)
    try:
        status = work(Ranks(device), arguments)
    finally:
        dist.destroy_process_group()
    return status if local_rank == 0 else 0
