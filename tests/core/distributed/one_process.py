"""A process group of this process alone, for tests of what needs a mesh but no other process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


@contextmanager
def mesh_of_one() -> Iterator[DeviceMesh]:
    """A mesh of one rank, with gloo. Its process group is destroyed at the end."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        torch.distributed.destroy_process_group()
