"""Whether tensors are finite: 0 * NaN is NaN, so what a mask hides may not enter a product otherwise."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def are_finite(*tensors: Tensor) -> bool:
    """False if an element is NaN or infinite, or if the sum of the elements overflows."""
    return all(
        math.isfinite(x.sum(dtype=torch.promote_types(x.dtype, torch.float32)).item()) for x in tensors
    )
