"""What is computed from a layout at its first use, and kept for the next ones."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import _disable_current_modes

Made = TypeVar("Made")
# What was made, and on a GPU the raw stream and the event after which it is there.
Kept = dict[Hashable, tuple[Made, int, torch.cuda.Event | None]]
MOST = 8


class TransientDict(dict[Any, Any]):
    """A cache of which no copy and no pickle knows anything."""

    def __reduce__(self) -> tuple[type[TransientDict], tuple[()]]:
        return TransientDict, ()


class ForkSafeLock:
    """A re-entrant lock that a forked child finds free, whichever thread held it in the parent."""

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()


LOCK = ForkSafeLock()  # of everything that layouts keep: taken to add and to drop, not to look up


def keep(kept: Kept[Made], key: Hashable, device: torch.device, make: Callable[[], Made]) -> Made:
    """What is kept under the key, made first if it is not."""
    found = kept.get(key)
    if found is None:
        return make_and_keep(kept, key, device, make)
    made, stream, event = found
    # a capture begins with everything there, and may not wait for events from before it
    if (
        event is not None
        and torch._C._cuda_getCurrentRawStream(device.index) != stream
        and not torch.cuda.is_current_stream_capturing()
    ):
        torch.cuda.current_stream(device).wait_event(event)
    return made


def make_and_keep(kept: Kept[Made], key: Hashable, device: torch.device, make: Callable[[], Made]) -> Made:
    """Make it so that every later call can use it, whatever surrounds this one."""
    with LOCK:
        if key in kept:  # another thread was faster
            return keep(kept, key, device, make)
        on_gpu = device.type == "cuda" and torch.cuda.is_initialized()
        if on_gpu and torch.cuda.is_current_stream_capturing():
            with without_modes():
                return make()  # it is empty until the graph is replayed
        made = make_to_stay(device, make)
        stream, event = 0, None
        if on_gpu:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(device))
            stream = torch._C._cuda_getCurrentRawStream(device.index)
        while len(kept) >= MOST:
            del kept[next(iter(kept))]  # the oldest
        kept[key] = (made, stream, event)
        return made


def make_to_stay(device: torch.device, make: Callable[[], Made]) -> Made:
    """Make plain tensors that outlive the call, on a GPU in memory that belongs to no CUDA graph.

    torch.compile with `mode="reduce-overhead"` lets a thread allocate from the pool of a graph, which takes its memory
    back: another thread does not.
    """
    if device.type != "cuda" or not torch.cuda.is_initialized() or torch.cuda.is_current_stream_capturing():
        with without_modes():
            return make()
    index = torch.cuda.current_device() if device.index is None else device.index
    before = torch.cuda.current_stream(index).record_event()

    def on_the_default_stream() -> tuple[Made, torch.cuda.Event]:
        with torch.cuda.device(index):
            stream = torch.cuda.current_stream()
            stream.wait_event(before)
            return make(), stream.record_event()

    made, after = in_another_thread(on_the_default_stream)
    torch.cuda.current_stream(index).wait_event(after)
    return made


def in_another_thread(function: Callable[[], Made]) -> Made:
    """The result of the function, called by a thread without modes, transforms and memory pools."""
    results: list[Made] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


@contextlib.contextmanager
def without_modes() -> Iterator[None]:
    """Make plain tensors under inference mode, function transforms and dispatch modes too."""
    with torch.inference_mode(False), torch._C._DisableFuncTorch(), _disable_current_modes():
        yield
