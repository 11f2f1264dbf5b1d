"""Attention dropout, the same mask in every backend: Philox 4x32-10 with the counters (key, query, batch_head, 0).

The counters are those of `triton.language.philox`, so any backend can recompute a mask from the seed alone.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import torch
from torch import Tensor

KEY_A, KEY_B = 0x9E3779B9, 0xBB67AE85
ROUND_A, ROUND_B = 0xD2511F53, 0xCD9E8D57
LOW = 0xFFFFFFFF


def philox(seed: Tensor, c0: Tensor, c1: Tensor, c2: Tensor) -> Tensor:
    """First 32 random bits of each counter (c0, c1, c2, 0), whose parts broadcast; int64 in [0, 2**32)."""
    k0, k1 = seed & LOW, (seed >> 32) & LOW
    c3 = torch.zeros((), dtype=torch.int64, device=c0.device)
    for _ in range(10):
        b, a = ROUND_B * c2, ROUND_A * c0  # 64-bit products; the masks remove the sign bit
        c0, c1, c2, c3 = ((b >> 32) & LOW) ^ c1 ^ k0, b & LOW, ((a >> 32) & LOW) ^ c3 ^ k1, a & LOW
        k0, k1 = (k0 + KEY_A) & LOW, (k1 + KEY_B) & LOW
    return c0


def keep_threshold(dropout_p: float) -> int:
    """The smallest random bits for which a weight is kept."""
    return min(int(dropout_p * 2**32), LOW)


def dropout_keep(seed: Tensor, dropout_p: float, key: Tensor, query: Tensor, batch_head: Tensor) -> Tensor:
    """Bool mask of the weights that dropout keeps, at int64 coordinates that broadcast.

    `batch_head` is ``batch * num_heads + head``. The caller scales the kept weights by ``1 / (1 - dropout_p)``.
    """
    return philox(seed, key, query, batch_head) >= keep_threshold(dropout_p)
