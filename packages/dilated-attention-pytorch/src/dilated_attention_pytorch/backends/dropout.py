"""Attention dropout, the same mask in every backend, whatever its tiles: Philox 4x32-7 of positions.

A weight is dropped if its number of 16 bits is below `keep_threshold`. The call with the counters (key, query, sequence_head, 0),
where bits 0 and 3 of the position of the key are 0 and so is bit 3 of that of the query, gives the numbers of eight pairs:

    word 0   query       keys key and key + 1, in its low and its high half
    word 1   query       keys key + 8 and key + 9
    word 2   query + 8   as word 0
    word 3   query + 8   as word 1

These are pairs that a thread holds of the result of a `wgmma` product, (64, N): rows r and r + 8, pairs of neighbouring
columns, each 8 columns from the next. A mask thus takes few calls, also where scores are transposed.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011: of the 4x32 variants that of 7 rounds is the
smallest that passes BigCrush.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 7
KEY_A, KEY_B = 0x9E3779B9, 0xBB67AE85
ROUND_A, ROUND_B = 0xD2511F53, 0xCD9E8D57
LOW = 0xFFFFFFFF
SHARES = 2**15  # a probability is a multiple of its inverse


def philox(
    seed: Tensor, c0: Tensor, c1: Tensor, c2: Tensor, rounds: int = ROUNDS
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four random words of each counter (c0, c1, c2, 0), whose parts broadcast; int64 in [0, 2**32)."""
    k0, k1 = seed & LOW, (seed >> 32) & LOW
    c0, c1, c2, c3 = c0 & LOW, c1 & LOW, c2 & LOW, torch.zeros((), dtype=torch.int64, device=c0.device)
    for _ in range(rounds):
        b, a = ROUND_B * c2, ROUND_A * c0  # 64-bit products; the masks remove the sign bit
        c0, c1, c2, c3 = ((b >> 32) & LOW) ^ c1 ^ k0, b & LOW, ((a >> 32) & LOW) ^ c3 ^ k1, a & LOW
        k0, k1 = (k0 + KEY_A) & LOW, (k1 + KEY_B) & LOW
    return c0, c1, c2, c3


def keep_threshold(dropout_p: float) -> int:
    """The smallest number of 16 bits for which a weight is kept: even, so that 15 bits decide."""
    return 2 * min(round(dropout_p * SHARES), SHARES - 1)


def keep_scale(dropout_p: float) -> float:
    """What the kept weights are multiplied by: the inverse of the share that is kept."""
    return 1.0 / (1.0 - keep_threshold(dropout_p) / (2 * SHARES))


def dropout_keep(seed: Tensor, dropout_p: float, key: Tensor, query: Tensor, sequence_head: Tensor) -> Tensor:
    """Bool mask of the weights that dropout keeps, at int64 coordinates that broadcast.

    Args:
        seed: int64 (1,).
        dropout_p: probability with which a weight is dropped, in [0, 1).
        key: position in its sequence.
        query: likewise.
        sequence_head: ``sequence * num_heads + head``; without packed sequences an element of the batch is one.
    """
    word0, word1, word2, word3 = philox(seed, key & ~9, query & ~8, sequence_head)
    is_behind, is_below = (key & 8) != 0, (query & 8) != 0
    word = torch.where(is_below, torch.where(is_behind, word3, word2), torch.where(is_behind, word1, word0))
    return ((word >> (16 * (key & 1))) & 0xFFFF) >= keep_threshold(dropout_p)
