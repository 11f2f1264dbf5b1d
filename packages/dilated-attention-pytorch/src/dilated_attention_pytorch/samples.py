"""The samples of torch.vmap one by one, where an operator has no way to take them together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def take(x: Any, dim: int | None, i: int) -> Any:
    """Sample i of an argument."""
    return x.select(dim, i) if isinstance(x, Tensor) and dim is not None else x


def one_by_one(op: Any, in_dims: tuple[Any, ...], args: tuple[Any, ...], size: int) -> tuple[Any, Any]:
    """A call per sample: the results, and that their first axis counts samples."""
    samples = [op(*(take(x, dim, i) for x, dim in zip(args, in_dims, strict=True))) for i in range(size)]
    outs = [torch.stack(parts) for parts in zip(*samples, strict=True)]
    return tuple(outs), (0,) * len(outs)
