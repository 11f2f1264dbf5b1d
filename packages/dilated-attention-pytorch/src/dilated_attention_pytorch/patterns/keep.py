"""What is computed from a layout at its first use, and kept for the next ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import _disable_current_modes

from ..config import TokenDilation

Made = TypeVar("Made")
# What was made, and on a GPU the raw stream and the event after which it is there.
Kept = dict[TokenDilation | None, tuple[Made, int, torch.cuda.Event | None]]
MOST = 8


class Forgotten(dict[Any, Any]):
    """A cache of which no copy and no pickle knows anything."""

    def __reduce__(self) -> tuple[type[Forgotten], tuple[()]]:
        return Forgotten, ()


def keep(kept: Kept[Made], key: TokenDilation | None, device: torch.device, make: Callable[[], Made]) -> Made:
    """What is kept under the key, made first if it is not."""
    found = kept.get(key)
    if torch.compiler.is_compiling():  # the trace cannot keep it; modules have it made before
        return make() if found is None else found[0]
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


def make_and_keep(
    kept: Kept[Made], key: TokenDilation | None, device: torch.device, make: Callable[[], Made]
) -> Made:
    """Make it so that every later call can use it, whatever surrounds this one."""
    with plain_tensors():
        made = make()
    if device.type != "cuda" or not torch.cuda.is_initialized():
        stream, event = 0, None
    elif torch.cuda.is_current_stream_capturing():
        return made  # it is empty until the graph is replayed
    else:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(device))
        stream = torch._C._cuda_getCurrentRawStream(device.index)
    if len(kept) >= MOST:
        kept.clear()
    kept[key] = (made, stream, event)
    return made


@contextlib.contextmanager
def plain_tensors() -> Iterator[None]:
    """Make plain tensors under inference mode, function transforms and dispatch modes too."""
    with torch.inference_mode(False), torch._C._DisableFuncTorch(), _disable_current_modes():
        yield
