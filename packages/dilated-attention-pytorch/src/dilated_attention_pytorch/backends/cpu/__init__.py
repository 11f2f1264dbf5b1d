"""The CPU backend, in plain PyTorch.

Five ways compute the same; `backend.py` chooses:

    decode.py   one row of the layout, as in decoding: its keys are gathered once, head by head
    small.py    little work in all: one call of the kernel, with a mask that is kept with the layout
    window.py   rows with enough work to be computed one after the other: gathered blocks stay for the next rows
    batches.py  rows with little work, and layouts per head: rows with as many keys are computed as one batch
    unfused.py  block_bias, dropout, token dilation, a v of another head_dim, gradients of lse

All but the last call the kernel behind `scaled_dot_product_attention` (flash.py) on gathered keys. None copies
more of k and v than the blocks that are active, at most all.
"""

from __future__ import annotations

from .backend import CPU, CpuBackend

__all__ = ["CPU", "CpuBackend"]
