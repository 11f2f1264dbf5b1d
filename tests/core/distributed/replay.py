"""Several ranks in one process, one after the other: what a rank is sent is what the others sent the last time.

What a call sends first depends on nothing that it received, and so on: after as many passes as there are exchanges that depend on
one another (blocks, their gradients) every message is the right one. Nothing else about a call is replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from dilated_attention_pytorch import DistributedSparseConfig

PASSES = 3  # forward, gradients of it, and what follows from these


class Done:
    def wait(self) -> None: ...


class Mesh:
    """Stands for a DeviceMesh."""

    mesh_dim_names, ndim = None, 1

    def get_group(self, dim: Any = None) -> None: ...


class Replay:
    """Ranks of a group that is not there."""

    def __init__(self, world_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world_size = world_size
        self.rank, self.number = 0, 0
        self.sent: dict[tuple[int, int], tuple[Tensor, ...]] = {}
        self.sent_before: dict[tuple[int, int], tuple[Tensor, ...]] = {}
        monkeypatch.setattr(dist, "all_to_all_single", self.all_to_all_single)

    def config(self, **settings: Any) -> DistributedSparseConfig:
        """That of the current rank."""
        made = DistributedSparseConfig(Mesh(), agreement_timeout=0, **settings)  # type: ignore[arg-type]
        made.__dict__.update(rank=self.rank, world_size=self.world_size, group=None)
        return made

    def run(self, function: Callable[[], Any], passes: int = PASSES) -> list[Any]:
        """The values of the last pass, by rank."""
        self.sent, values = {}, []
        for _ in range(passes):
            self.sent_before, self.sent, values = self.sent, {}, []
            for rank in range(self.world_size):
                self.rank, self.number = rank, 0
                values.append(function())
        return values

    def all_to_all_single(
        self, received: Tensor, sent: Tensor, received_sizes: list[int], sent_sizes: list[int], **_: Any
    ) -> Done:
        assert sent.shape[0] == sum(sent_sizes)
        self.sent[self.rank, self.number] = sent.clone().split(sent_sizes)
        parts = [self.sent_before.get((other, self.number)) for other in range(self.world_size)]
        if None in parts:
            received.zero_()
        else:
            mine = [part[self.rank] for part in parts if part is not None]
            assert [part.shape[0] for part in mine] == received_sizes
            torch.cat(mine, out=received)
        self.number += 1
        return Done()
