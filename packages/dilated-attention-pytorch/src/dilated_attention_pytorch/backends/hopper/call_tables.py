"""What the kernels need of the tensors of a call beside q, k and v: made in every call, without a host synchronisation."""

from __future__ import annotations

import torch
from torch import Tensor

from ...launching.kept_kernel import KeptKernel
from ...sequences import Sequences
from .kernels.padding_bits import padding_bits_kernel
from .kernels.tile_starts import tile_starts_kernel

SEQUENCES_AT_ONCE = 1024
KEYS_OF_A_BLOCK = 128  # kernels read the words of a block at once
WORDS = 32  # of padding bits, of a program
TILE_STARTS, PADDING_BITS = KeptKernel(tile_starts_kernel), KeptKernel(padding_bits_kernel)


def tile_starts(sequences: Sequences, first_position: int) -> Tensor:
    """Cumulative numbers of tiles of 128 queries and of 128 keys, int32 (2, n_sequences + 1); see kernels/tile_starts.py.

    Args:
        sequences: of the call.
        first_position: where the first row of the layout begins.
    """
    table = sequences.table
    n_sequences = table.shape[0]
    starts = torch.empty(2, n_sequences + 1, dtype=torch.int32, device=table.device)
    arguments = (table, starts, n_sequences, first_position, SEQUENCES_AT_ONCE)
    TILE_STARTS.run(table.device, 1, arguments)
    return starts


def padding_bits(mask: Tensor, sequences: Sequences | None) -> Tensor:
    """The keys that count as bits, int32 (batch, words); see kernels/padding_bits.py.

    A block of 128 keys has all its words, and so has the one behind the last key: a layout may have a column more than a call.

    Args:
        mask: bool (batch, kv_len), True is padding; any strides.
        sequences: of the call, one in each batch element.
    """
    batch, kv_len = mask.shape
    n_words = (-(-kv_len // KEYS_OF_A_BLOCK) + 1) * (KEYS_OF_A_BLOCK // 32)
    bits = torch.empty(batch, n_words, dtype=torch.int32, device=mask.device)
    n_programs = batch * -(-n_words // WORDS)
    table = None if sequences is None else sequences.table
    arguments = (mask.view(torch.int8), table, bits, kv_len, n_words, *mask.stride(), WORDS)
    PADDING_BITS.run(mask.device, n_programs, arguments)
    return bits
