"""A process group of this process alone, for tests of what needs a mesh but no other process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from dilated_attention_pytorch import DistributedSparseConfig


@contextmanager
def mesh_of_one() -> Iterator[DeviceMesh]:
    """A mesh of one rank, with gloo. Its process group is destroyed at the end."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        torch.distributed.destroy_process_group()


def config_of_rank(rank: int, world_size: int, balance: str = "cost") -> DistributedSparseConfig:
    """The config of a rank without a process group: all that shardings read of one."""
    config = object.__new__(DistributedSparseConfig)
    vars(config).update(mesh=None, group=None, rank=rank, world_size=world_size, balance=balance)
    return config
