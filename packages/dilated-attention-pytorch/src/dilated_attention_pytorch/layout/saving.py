"""Layouts in files, in the format of safetensors."""

from __future__ import annotations

import json
import os
import re
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import SparsePatternConfig
from ..grid import BlockGrid
from .configs import configs_as_text, configs_of_text
from .lists import BlockLists, BlockMasks

FORMAT = "dilated-attention-pytorch BlockLayout"
VERSION = 1


class Saved(NamedTuple):
    """What a file holds of a layout."""

    grid: BlockGrid
    num_heads: int
    batch: int
    rows: BlockLists
    cols: BlockLists
    configs: tuple[SparsePatternConfig, ...] | None
    block_masks: BlockMasks | None
    is_exact: bool
    """Whether the lists fill their tensors."""


def import_safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("save and load need safetensors: pip install safetensors") from error
    module: ModuleType = safetensors
    return module


def tensors_of(layout: Saved) -> dict[str, Tensor]:
    """The tensors of a layout by name."""
    named = {
        f"{name}.{field}": tensor
        for name, lists in (("rows", layout.rows), ("cols", layout.cols))
        for field, tensor in zip(("indptr", "indices", "block_ids"), lists.tensors(), strict=True)
    }
    if layout.block_masks is not None:
        named |= {"masks.ids": layout.block_masks.ids, "masks.table": layout.block_masks.table}
    return named


def save_layout(layout: Saved, path: str | os.PathLike[str]) -> None:
    """See `BlockLayout.save`."""
    safetensors = import_safetensors()
    grid = layout.grid
    fields = {
        "q_len": grid.q_len,
        "kv_len": grid.kv_len,
        "block_size": grid.block_size,
        "causal": grid.causal,
        "q_offset": grid.q_offset,
        "num_heads": layout.num_heads,
        "batch": layout.batch,
        "is_exact": layout.is_exact,
        "configs": None if layout.configs is None else configs_as_text(layout.configs),
    }
    metadata = {"format": FORMAT, "version": str(VERSION), "layout": json.dumps(fields)}
    # one tensor may be that of several names
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors_of(layout).items()}
    name = os.fspath(path)
    try:
        safetensors.torch.save_file(tensors, name, metadata)
    except safetensors.SafetensorError as error:
        raise as_os_error(error, name) from error


def as_os_error(error: Exception, name: str) -> OSError:
    """The error of a file that cannot be written, with its own name: safetensors writes to a temporary one beside it."""
    found = re.search(r"(?:I/O error: )?([^:]*) \(os error (\d+)\)", str(error))
    if found is None:
        return OSError(f"{name!r} cannot be written: {error}")
    code = int(found[2])  # an errno, or a code of Windows, which is the fourth argument there
    return OSError(code, found[1], name, code)


def load_layout(path: str | os.PathLike[str]) -> Saved:
    """See `BlockLayout.load`."""
    safetensors = import_safetensors()
    name = os.fspath(path)
    with open(name, "rb"):  # an OSError of its own, which says what is wrong with the path
        pass
    try:
        with safetensors.safe_open(name, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"path must be a file that BlockLayout.save wrote, got {name!r}: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"path must be a file that BlockLayout.save wrote, got {name!r}: a safetensors file of something else"
        )
    if metadata.get("version") != str(VERSION):
        raise ValueError(
            f"path must be a file of version {VERSION}, got {name!r} of version {metadata.get('version')}; "
            "save it again with this version of dilated-attention-pytorch, or install the one that wrote it"
        )
    try:
        return made_of(json.loads(metadata["layout"]), tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"path {name!r} is damaged: {error}") from error


def made_of(fields: dict[str, Any], tensors: dict[str, Tensor]) -> Saved:
    """The layout of what a file holds; ValueError where a kernel would read outside the lists."""
    grid = BlockGrid(*(fields[name] for name in ("q_len", "kv_len", "block_size", "causal", "q_offset")))
    batch, num_heads = fields["batch"], fields["num_heads"]
    rows, cols = (
        BlockLists(*(tensors[f"{name}.{field}"] for field in ("indptr", "indices", "block_ids")))
        for name in ("rows", "cols")
    )
    masks = None
    n_ids = rows.indices.numel()
    if "masks.ids" in tensors:
        masks = BlockMasks(tensors["masks.ids"], tensors["masks.table"])
        n_ids = masks.ids.numel()
        words = max(1, grid.block_size // 32)
        check("masks.table", masks.table, (masks.table.shape[0], grid.block_size, words), None)
        check("masks.ids", masks.ids, (n_ids,), (-1, masks.table.shape[0]))
    for name, lists, n_lists, n_inner in (
        ("rows", rows, grid.n_rows, grid.n_cols),
        ("cols", cols, grid.n_cols, grid.n_rows),
    ):
        capacity = lists.indices.numel()
        check(f"{name}.indptr", lists.indptr, (batch * num_heads * n_lists + 1,), (0, capacity + 1))
        listed = int(lists.indptr[-1])
        check(f"{name}.indices", lists.indices, (capacity,), (0, n_inner), listed)
        check(f"{name}.block_ids", lists.block_ids, (capacity,), (0, n_ids), listed)
        if fields["is_exact"] and listed != capacity:
            raise ValueError(f"{name}.indptr must end at {capacity}, got {listed}")
        if int(lists.indptr[0]) != 0 or bool((lists.indptr.diff() < 0).any()):
            raise ValueError(f"{name}.indptr must ascend from 0")
    configs = None if fields["configs"] is None else tuple(configs_of_text(fields["configs"]))
    return Saved(grid, num_heads, batch, rows, cols, configs, masks, fields["is_exact"])


def check(
    name: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    bounds: tuple[int, int] | None,
    number: int | None = None,
) -> None:
    """Raise ValueError unless a tensor is int32 of this shape, and the first `number` of its values in these bounds."""
    if tensor.dtype != torch.int32 or tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must be int32 {shape}, got {tensor.dtype} {tuple(tensor.shape)}")
    values = tensor[:number]
    if (
        bounds is not None
        and values.numel()
        and not bounds[0] <= int(values.min()) <= int(values.max()) < bounds[1]
    ):
        raise ValueError(f"{name} must be {bounds[0]} to {bounds[1] - 1}")
