"""A launch: programs that run side by side, each with its partitions."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from torch import Tensor

from .dtypes import constexpr, int32
from .memory import Buffer
from .schedule import Actor, Scheduler, current, scheduler
from .tensors import pointer, tensor, to_tensor
from .tma import tensor_descriptor


class Program:
    """A program (CTA) of a launch."""

    def __init__(self, index: int, grid: int) -> None:
        self.index, self.grid = index, grid
        self.shared_bytes = 0
        self.n_partitions = 0


def program_id(axis: Any = 0) -> tensor:
    return tensor(np.int32(current().program.index if int(axis) == 0 else 0), int32)


def num_programs(axis: Any = 0) -> tensor:
    return tensor(np.int32(current().program.grid if int(axis) == 0 else 1), int32)


def warp_specialize(functions_and_args: Any, worker_num_warps: Any, worker_num_regs: Any = None) -> Any:
    """Run the partitions of a program; the first is the default one."""
    functions_and_args = list(functions_and_args)
    if len(functions_and_args) != len(worker_num_warps) + 1:
        raise ValueError(
            f"{len(functions_and_args)} partitions, but {len(worker_num_warps)} numbers of warps"
        )
    actor = current()
    workers, start = [], actor.release()
    for i, ((function, args), warps) in enumerate(zip(functions_and_args[1:], worker_num_warps)):
        worker = Actor(f"partition {i + 1} ({function.__name__})", actor.program, int(warps))
        worker.acquire(start)
        workers.append(worker)
        scheduler().start(worker, lambda function=function, args=args: function(*args))  # type: ignore[misc]
    name = actor.name
    function, args = functions_and_args[0]
    actor.name = f"partition 0 ({function.__name__})"
    made = function(*args)
    actor.name = name
    scheduler().wait(lambda: all(worker.done for worker in workers), lambda: "its partitions")
    for worker in workers:
        actor.acquire(worker.before)
    return made


def value_of(name: str, x: Any, box_layout: Any) -> Any:
    """An argument as the kernel gets it."""
    if isinstance(x, tuple) and isinstance(x[0], Tensor):
        described, rows, rate = x
        sizes, steps, box = box_layout(described, rows, rate)
        return tensor_descriptor(Buffer(described, name), sizes, steps, box)
    if isinstance(x, Tensor):
        return pointer(Buffer(x, name))
    if isinstance(x, (bool, int, float)):
        return to_tensor(x)
    return x


def launch(
    function: Any, arguments: dict[str, Any], grid: int, box_layout: Any, *, num_warps: int = 4, seed: int = 0,
    delay: float = 0.5, preempt: float = 0.1, seconds: float = 300.0,
) -> None:  # fmt: skip
    """Run a kernel; its arguments are those of passes.py."""
    plan = Scheduler(seed, delay, preempt, seconds)
    parameters = inspect.signature(function.fn).parameters
    made = {}
    for name, parameter in parameters.items():
        if name not in arguments:
            if parameter.default is inspect.Parameter.empty:
                raise TypeError(f"{function} needs an argument {name}")
            continue
        is_constant = "constexpr" in str(parameter.annotation)
        made[name] = (
            constexpr(arguments[name]) if is_constant else value_of(name, arguments[name], box_layout)
        )
    unknown = [name for name in arguments if name not in parameters]
    if unknown:
        raise TypeError(f"{function} has no arguments {unknown}")
    for i in range(grid):
        actor = Actor("before its partitions", Program(i, grid), num_warps)
        plan.start(actor, lambda: function(**made))
    plan.run()
