"""Kernels that are compiled but not run, also for a GPU that is not there; and a record of what Triton compiles.

Triton keeps what it compiles on disk, under a key of source, types and architecture: a process with the GPU finds it there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


class Compilation(NamedTuple):
    """A kernel that Triton was asked for, its key on the disk, and the module that it is in."""

    kernel: str
    key: str
    module: str
    from_disk: bool
    seconds: float


class Target:
    """Stands for a driver of Triton where there is no GPU: kernels are compiled for a compute capability."""

    def __init__(self, capability: tuple[int, int]) -> None:
        self.arch = 10 * capability[0] + capability[1]

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return -self.arch  # of no GPU: Triton caches kernels by device

    def get_current_stream(self, device: int) -> int:
        return 0


@contextlib.contextmanager
def replaced(where: Any, **values: Any) -> Iterator[None]:
    """Attributes of a module, class or object with other values meanwhile."""
    before = {name: getattr(where, name) for name in values}
    try:
        for name, value in values.items():
            setattr(where, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(where, name, value)


@contextlib.contextmanager
def compile_only(capability: tuple[int, int]) -> Iterator[None]:
    """Launches of Triton's JIT meanwhile compile for a compute capability and run nothing; tensors may be on the CPU."""
    launch = JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> Any:
        return launch(self, *args, grid=grid, warmup=True, **named)

    target: Any = Target(capability)
    with replaced(JITFunction, run=run), replaced(triton.runtime.driver, _active=target):
        yield


@contextlib.contextmanager
def recorded() -> Iterator[list[Compilation]]:
    """What Triton compiles meanwhile, or takes from the disk."""
    found: list[Compilation] = []

    def note(*, src: Any, metadata: dict[str, Any], times: Any, cache_hit: bool, **_: Any) -> None:
        key = metadata["hash"]
        found.append(Compilation(src.fn.__name__, key, src.fn.module, cache_hit, times.total / 1e6))

    with replaced(triton.knobs.compilation, listener=note):
        yield found


@contextlib.contextmanager
def in_turns() -> Iterator[None]:
    """Of several processes with the same cache one compiles a kernel; others that want it wait, and find it on the disk.

    A kernel has a byte of a file, which is locked from one hook of Triton to the other; not where there are no such locks.
    """
    os.makedirs(cache_folder(), exist_ok=True)
    with open(os.path.join(cache_folder(), "warm.lock"), "a") as file:

        def lock(how: str, first: int, n_bytes: int) -> None:
            with contextlib.suppress(AttributeError, OSError):
                fcntl.lockf(file, getattr(fcntl, how), n_bytes, first)

        def begin(*, key: Any, fn: Any, **_: Any) -> None:
            end()  # of a kernel that did not compile
            digest = hashlib.sha256(f"{fn.module}.{fn.name} {key}".encode()).digest()
            lock("LOCK_EX", int.from_bytes(digest[:3], "big"), 1)

        def end(**_: Any) -> None:
            lock("LOCK_UN", 0, 0)  # all of the file

        with replaced(triton.knobs.runtime, jit_cache_hook=begin, jit_post_compile_hook=end):
            yield


def cache_folder() -> str:
    """Where Triton keeps what it compiles."""
    return str(triton.knobs.cache.dir)
