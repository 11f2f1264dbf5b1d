"""Caches. There are three kinds:

- pure functions of hashable arguments use `functools.lru_cache`;
- what belongs to an object (a layout, a launch, a list of blocks) is in a BoundedCache; tensors are computed by
  `make_once`, which orders them with the streams that use them;
- layouts of patterns are in layout/cache.py, which also bounds their bytes and keeps what CUDA graphs read.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

import torch

from . import _torch_internals
from ._torch_internals import without_modes

Made = TypeVar("Made")


class ForkSafeLock:
    """A re-entrant lock that a forked child finds free, whichever thread held it in the parent.

    A thread that waits for another lends the lock to it.
    """

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.RLock()
        self._borrower = threading.local()

    def __enter__(self) -> None:
        if not self._is_borrowed():
            self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        if not self._is_borrowed():
            self._lock.release()

    def _is_borrowed(self) -> bool:
        return getattr(self._borrower, "has_lock", False)

    def is_held(self) -> bool:
        """Whether this thread holds it, or has borrowed it."""
        return self._is_borrowed() or self._lock._is_owned()  # type: ignore[attr-defined]

    def borrow(self) -> None:
        """Hold it in this thread until it ends, while the thread that holds it does nothing but wait for this one."""
        self._borrower.has_lock = True


LOCK = ForkSafeLock()  # of all caches: taken to add and to drop, not for lookups


class BoundedCache(dict[Any, Any]):
    """A dict of the last `bound` values kept; copies and pickles of it are empty.

    Threads may share it: `keep` takes LOCK. Looking up takes none, so a value is read once, with `get`.
    """

    def __init__(self, bound: int) -> None:
        super().__init__()
        self.bound = bound

    def keep(self, key: Hashable, value: Made) -> Made:
        """Add a value, which is returned; the oldest goes where there are too many."""
        with LOCK:
            while len(self) >= self.bound and key not in self:
                del self[next(iter(self))]
            self[key] = value
        return value

    def __reduce__(self) -> tuple[type[BoundedCache], tuple[int]]:
        return BoundedCache, (self.bound,)


class CacheEntry(NamedTuple):
    """A value; on a GPU also the raw stream that computes it, and an event recorded there when it is ready."""

    value: Any
    stream: int
    event: torch.cuda.Event | None


def make_once(
    cache: BoundedCache,
    key: Hashable,
    device: torch.device,
    make: Callable[[], Made],
    is_to_stay: bool = True,
) -> Made:
    """The value of the key, computed if it is missing; the current stream waits until it is ready.

    What is not `is_to_stay` may be in memory of a CUDA graph, which takes it back: it must not be used longer than that.
    """
    found: CacheEntry | None = cache.get(key)
    if found is None:
        return make_and_keep(cache, key, device, make, is_to_stay)
    value: Made
    value, stream, event = found
    # a stream capture starts after all earlier work, and must not wait for events recorded before it
    if (
        event is not None
        and _torch_internals.current_raw_stream(device.index) != stream
        and not torch.cuda.is_current_stream_capturing()
    ):
        torch.cuda.current_stream(device).wait_event(event)
    return value


def make_and_keep(
    cache: BoundedCache,
    key: Hashable,
    device: torch.device,
    make: Callable[[], Made],
    is_to_stay: bool = True,
) -> Made:
    """Compute and cache the value so that later calls can use it, whatever mode this call runs in."""
    with LOCK:
        if key in cache:  # another thread was faster
            return make_once(cache, key, device, make)
        on_gpu = device.type == "cuda" and torch.cuda.is_initialized()
        if on_gpu and torch.cuda.is_current_stream_capturing():
            with without_modes():
                return make()  # not cached: it has no values before the graph is replayed
        if is_to_stay:
            value = make_to_stay(device, make)
        else:
            with without_modes():
                value = make()
        stream, event = 0, None
        if on_gpu:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(device))
            stream = _torch_internals.current_raw_stream(device.index)
        cache.keep(key, CacheEntry(value, stream, event))
        return value


def make_in_graph(cache: BoundedCache, key: Hashable, device: torch.device, make: Callable[[], Made]) -> Made:
    """The value of the key, made from tensors that a CUDA graph fills anew at every replay.

    A value that is captured too is filled with them, so the capture makes it once for every stream; any other is computed for
    every call.
    """
    if not torch.cuda.is_current_stream_capturing():
        with without_modes():
            return make()
    key = (key, _torch_internals.current_raw_stream(device.index))
    found: CacheEntry | None = cache.get(key)
    if found is None:
        with without_modes():
            found = cache.keep(key, CacheEntry(make(), 0, None))
    value: Made = found.value
    return value


def make_to_stay(device: torch.device, make: Callable[[], Made]) -> Made:
    """Compute plain tensors that outlive the call, on a GPU in memory that belongs to no CUDA graph.

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
    """The result of the function, run in a thread without modes, transforms and memory pools; it holds LOCK if this one does."""
    results: list[Made] = []
    errors: list[BaseException] = []
    holds_lock, ended = LOCK.is_held(), threading.Event()

    def run() -> None:
        if holds_lock:
            LOCK.borrow()
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)
        finally:
            ended.set()

    interrupted: BaseException | None = None
    threading.Thread(target=run).start()
    # Ctrl-C must wait, too, as the thread may have the lock of this one; `join` would take an interrupted thread for ended
    while not ended.is_set():
        try:
            ended.wait()
        except BaseException as error:
            interrupted = error
    if interrupted is not None:
        raise interrupted
    if errors:
        raise errors[0]
    return results[0]
