"""What the tensor memory accelerator can read."""

from __future__ import annotations

import torch
from torch import Tensor


def badly_strided(name: str, x: Tensor) -> str | None:
    """Why the tensor memory accelerator cannot read a tensor, or None."""
    sizes, steps = x.shape, x.stride()
    if steps[3] != 1 or any(sizes[i] != 1 and (steps[i] % 8 or not steps[i]) for i in (0, 1, 2)):
        return f"{name} has strides {tuple(x.stride())}, needs multiples of 8 (not 0), and 1 for the last"
    # a trace cannot ask for the offset; a launch clones what is misaligned
    if not torch.compiler.is_compiling() and x.storage_offset() % 8:
        return f"{name} begins {x.storage_offset()} elements into its storage, needs a multiple of 8"
    return None
