"""The exchange on a GPU: what of it is done by kernels."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from .exchange_kernels import add_returned_kernel, copy_kernel
from .local_layout import Returned

TOKENS, COPIED_TOKENS = 16, 64  # of a program


def check_last_is_dense(*tensors: Tensor) -> None:
    assert all(x.stride(3) == 1 or x.shape[3] == 1 for x in tensors)


def launch_copy(x: Tensor, into: Tensor, tokens: Tensor | None) -> None:
    """See `exchange.copy`."""
    batch, n_tokens, num_heads, dim = into.shape
    if not into.numel():
        return
    x = x if x.stride(3) == 1 else x.contiguous()
    check_last_is_dense(x, into)
    grid = (triton.cdiv(n_tokens, COPIED_TOKENS), batch * num_heads)
    with torch.cuda.device_of(x):
        copy_kernel[grid](
            x, tokens, into, n_tokens, *x.stride()[:3], *into.stride()[:3], num_heads, DIM=dim,
            BLOCK_D=triton.next_power_of_2(dim), TOKENS=COPIED_TOKENS,
        )  # fmt: skip


def launch_add_returned(own: Tensor, returned: Tensor, where: Returned, into: Tensor) -> None:
    """See `exchange.add_returned`."""
    batch, _, num_heads, dim = own.shape
    if not own.numel():
        return
    check_last_is_dense(own, returned, into)
    tiles = where.block_size // TOKENS
    grid = ((where.own_starts.numel() - 1) * tiles, batch * num_heads)
    with torch.cuda.device_of(own):
        add_returned_kernel[grid](
            own, returned, where.own_starts, where.indptr, where.starts, into, *own.stride()[:3], *returned.stride()[:3],
            *into.stride()[:3], num_heads, DIM=dim, BLOCK_D=triton.next_power_of_2(dim), TILES=tiles, TOKENS=TOKENS,
        )  # fmt: skip
