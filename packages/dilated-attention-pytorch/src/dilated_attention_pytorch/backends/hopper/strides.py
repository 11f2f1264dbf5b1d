"""What the tensor memory accelerator can read."""

from __future__ import annotations

from torch import Tensor


def is_readable(x: Tensor) -> bool:
    """Whether the tensor memory accelerator can read x, (batch, tokens, heads, dim) with a dim that is a multiple of 8.

    Everything begins at a multiple of 16 bytes, the elements of a head lie side by side, and no other stride is 0.
    """
    if x.data_ptr() % 16:
        return False
    if x.is_contiguous():
        return True
    sizes, steps = x.shape, x.stride()
    return steps[3] == 1 and all(sizes[i] == 1 or (steps[i] and steps[i] % 8 == 0) for i in (0, 1, 2))
