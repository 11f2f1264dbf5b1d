"""launch.py of the Hopper backend as it is, over launches that are emulated: what it hands to kernels, and when."""

from __future__ import annotations

import contextlib
import gc
import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from dilated_attention_pytorch.call import PLAIN_TYPES

from .kernels import emulated
from .memory import Buffer
from .programs import launch
from .tensors import pointer

MULTIPROCESSORS = 132


def storages() -> list[Tensor]:
    """All tensors on the CPU that Python knows, one for every storage."""
    found: dict[int, Tensor] = {}
    for x in gc.get_objects():
        if type(x) in PLAIN_TYPES and x.device.type == "cpu" and x.layout == torch.strided and x.numel():
            found[x.untyped_storage().data_ptr()] = x
    return list(found.values())


def memory_at(address: int, tensors: list[Tensor]) -> Tensor:
    """The memory from an address to the end of its storage, as bytes; of a tensor without elements nothing."""
    if address == 0:
        return torch.empty(0, dtype=torch.uint8)
    for x in tensors:
        storage = x.untyped_storage()
        if 0 <= address - storage.data_ptr() < storage.nbytes():
            whole = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,))
            return whole[address - storage.data_ptr() :]
    raise AssertionError(f"no tensor holds the address {address} that a kernel is given")


def typed(memory: Tensor, dtype: torch.dtype) -> Tensor:
    size = torch.empty(0, dtype=dtype).element_size()
    return memory[: memory.numel() // size * size].view(dtype)


class EmulatedLaunch:
    """Stands for `launcher.Launch`."""

    settings: dict[str, Any]

    def __init__(self, function: Any, arguments: dict[str, Any], options: dict[str, Any], grid: int) -> None:
        self.function, self.arguments, self.grid = function, arguments, grid

    def run(self, index: int, described: Any, addresses: Any) -> None:
        arguments = dict(self.arguments)
        boxes = [name for name, x in arguments.items() if isinstance(x, tuple)]
        if len(described) != len(boxes):
            raise AssertionError(f"{len(described)} tensors for the descriptors {boxes}")
        for name, x in zip(boxes, described):
            arguments[name] = (x, *arguments[name][1:])
        places = list(itertools.islice(arguments, len(boxes), None))
        n_pointers = next((i for i, name in enumerate(places) if name[0].islower()), len(places))
        names = places[:n_pointers]
        if len(addresses) != len(names) and any(arguments[name] is None for name in names):
            names = [name for name in names if arguments[name] is not None]
        if len(addresses) != len(names):
            raise AssertionError(f"{len(addresses)} addresses for the pointers {names}")
        tensors = storages()
        for name, address in zip(names, addresses):
            one = arguments[name]
            if (one is None) != (address is None):
                raise AssertionError(f"{name} is {address} in a launch that was made with {one}")
            if address is None:
                continue
            memory = address if isinstance(address, Tensor) else typed(memory_at(address, tensors), one.dtype)
            arguments[name] = pointer(Buffer(memory, name))
        launch(
            self.function,
            arguments,
            min(self.grid, self.settings["programs"]),
            emulated(self.settings["release"]).launcher.box_layout,
            **self.settings["launch"],
        )


@contextlib.contextmanager
def emulated_launches(programs: int = 2, *, release: str | None = None, **options: Any) -> Iterator[Any]:
    """launch.py, to be called with problems whose tensors are on the CPU; new memory is full of NaN.

    Yields the module: `launch_forward`, `launch_backward`, ...; options as of `forward`.
    """
    module = emulated(release).launch
    counters = torch.zeros(4096, dtype=torch.int32)
    next_counter = itertools.count()
    settings = {"release": release, "programs": programs, "launch": options}
    stands = {
        "Launch": type("Launch", (EmulatedLaunch,), {"settings": settings}),
        "multiprocessors": lambda index: MULTIPROCESSORS,
        "tile_counter": lambda index: counters.data_ptr() + 4 * (next(next_counter) % counters.numel()),
        "_torch_internals": SimpleNamespace(current_device=lambda: -1),
    }
    kept = {name: module.__dict__[name] for name in stands if name in module.__dict__}
    was, warn = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    module.__dict__.update(stands)
    module.LAUNCHES.clear()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield module
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warn)
        module.__dict__.update(kept)
        module.LAUNCHES.clear()
    if counters.any():
        raise AssertionError("a tile counter is not 0 after the launches")
