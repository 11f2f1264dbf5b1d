"""DistributedSparseConfig: over which processes a sequence is distributed, and how."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import torch.distributed as dist

from .. import values
from ..config import closest
from ..upstream.keywords import explains_old_keywords, refuse_old_keywords
from ..values import shown
from .balance import BALANCES

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

MESH = "mesh=torch.distributed.init_device_mesh('cuda', (number_of_gpus,))"  # what messages suggest
Balance = Literal["cost", "zigzag", "contiguous"]


@explains_old_keywords
@dataclass(frozen=True)
class DistributedSparseConfig:
    """Over which processes a sequence is distributed, and how.

    Attributes:
        mesh: a DeviceMesh, or a ProcessGroup. The other dimensions of a mesh are free for DDP, FSDP2 or tensor parallelism.
        mesh_dim: the dimension of the mesh that shares a sequence, its name or number. Default: the only one.
        balance: which tokens a rank holds. ``"cost"``: about two pieces a rank with equal numbers of tokens and of active
            blocks; ``"zigzag"``: two pieces, one from each end (as ring attention does for causal masks);
            ``"contiguous"``: one piece, with the least traffic.
        stages: groups of kv heads: while one computes, the blocks of the next travel. 1: no overlap. Default: chosen by the
            size of the call. Layouts that differ by head fetch for each group what its heads need.
        save_fetched: keep the blocks of others from the forward to the backward, instead of fetching them again.
        capacity: for blocks chosen from the content: the most that a rank fetches from each other rank, for each group of heads,
            see `plan_of_indices`. Default: all that it has.
        agreement_timeout: seconds. Before the first call of its kind the ranks compare their layouts, lengths, types and
            options, and raise if these differ, or if one does not come. 0: they do not.

    Raises:
        ValueError: an argument is out of its range; the message names it.
        TypeError: an argument has the wrong type; the message names it.
        RuntimeError: this build of torch has no torch.distributed.
    """

    mesh: DeviceMesh | ProcessGroup
    mesh_dim: str | int | None = None
    balance: Balance = "cost"
    stages: int | None = None
    save_fetched: bool = False
    capacity: int | None = None
    agreement_timeout: float = 30.0

    def __post_init__(self) -> None:
        if not dist.is_available():
            raise RuntimeError(
                "DistributedSparseConfig needs torch.distributed, which this build of torch does not have; one process needs "
                "no mesh: use BlockSparseAttention"
            )
        self._check_mesh()
        if self.balance not in BALANCES:
            raise values.wrong(
                values.text(self.balance), f"balance must be one of {BALANCES}, got {shown(self.balance)}"
            )
        for name in ("stages", "capacity"):
            given = getattr(self, name)
            number = values.tokens(given)
            if given is not None and number is None:
                raise values.wrong(
                    values.integer(given), f"{name} must be a positive int or None, got {shown(given)}"
                )
            object.__setattr__(self, name, number)
        if values.flag(self.save_fetched) is None:
            raise TypeError(f"save_fetched must be True or False, got {shown(self.save_fetched)}")
        seconds = self.agreement_timeout
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < 1e9:
            raise values.wrong(
                values.number(seconds),
                f"agreement_timeout must be a number of seconds, or 0, got {shown(seconds)}",
            )

    def _check_mesh(self) -> None:
        mesh: Any = self.mesh
        if isinstance(mesh, dist.ProcessGroup):
            if self.mesh_dim is not None:
                raise ValueError(
                    f"mesh_dim is for a DeviceMesh, got {shown(self.mesh_dim)} with a ProcessGroup"
                )
            return
        if not hasattr(mesh, "get_group") or not hasattr(mesh, "mesh_dim_names"):
            raise TypeError(f"mesh must be a DeviceMesh or a ProcessGroup, got {shown(mesh)}; use {MESH}")
        names = mesh.mesh_dim_names
        if self.mesh_dim is None:
            if mesh.ndim != 1:
                raise ValueError(
                    f"mesh has {mesh.ndim} dimensions {names}; name the one of the sequence: mesh_dim=..."
                )
        elif isinstance(self.mesh_dim, str):
            if self.mesh_dim not in (names or ()):
                raise ValueError(f"mesh_dim must be one of {names}, got {shown(self.mesh_dim)}")
        elif values.integer(self.mesh_dim) is None or not -mesh.ndim <= self.mesh_dim < mesh.ndim:
            raise values.wrong(
                values.integer(self.mesh_dim),
                f"mesh_dim must be a name or {-mesh.ndim} to {mesh.ndim - 1}, got {shown(self.mesh_dim)}",
            )
        else:
            object.__setattr__(self, "mesh_dim", self.mesh_dim % mesh.ndim)

    @functools.cached_property
    def group(self) -> ProcessGroup:
        """The processes of the sequence."""
        if isinstance(self.mesh, dist.ProcessGroup):
            return self.mesh
        made: ProcessGroup = self.mesh.get_group(self.mesh_dim)
        return made

    @functools.cached_property
    def rank(self) -> int:
        """Of this process in the group."""
        return dist.get_rank(self.group)

    @functools.cached_property
    def world_size(self) -> int:
        """The number of processes of the group."""
        return dist.get_world_size(self.group)

    def __deepcopy__(self, memo: dict[int, Any]) -> DistributedSparseConfig:
        """Itself: it does not change, and processes cannot be copied."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def checked_distributed(given: Any) -> DistributedSparseConfig:
    """The config of an argument `distributed_config`."""
    if isinstance(given, Mapping):
        refuse_old_keywords(given, "distributed_config")
        names = [field.name for field in fields(DistributedSparseConfig)]
        for name in given:
            if name not in names:
                raise ValueError(
                    f"distributed_config has no field {shown(name)}{closest(str(name), names, 'fields')}"
                )
        if "mesh" not in given:
            raise TypeError(
                f"distributed_config needs the field 'mesh', got {shown(dict(given))}; use {MESH}"
            )
        return DistributedSparseConfig(**given)
    if not isinstance(given, DistributedSparseConfig):
        raise TypeError(
            f"distributed_config must be a DistributedSparseConfig or a dict, got {shown(given)}; use "
            f"DistributedSparseConfig(mesh), {MESH}"
        )
    return given
