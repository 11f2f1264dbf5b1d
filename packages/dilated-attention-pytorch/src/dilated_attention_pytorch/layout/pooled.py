"""What stands for a block of queries or keys when blocks are compared: their mean, or the first of them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..grid import BlockGrid


def block_means(x: Tensor, block_size: int, behind: int) -> Tensor:
    """The mean token of each block (batch, n_blocks, heads, head_dim), at least float32; `behind`: where in its block the first one is."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    first = (block_size - behind) % block_size
    n_whole = max(0, x.shape[1] - first) // block_size
    head, body, tail = x.split_with_sizes(part_lengths(x.shape[1], first, n_whole * block_size), 1)
    means = [body.unflatten(1, (n_whole, block_size)).mean(2, dtype=dtype)] if n_whole else []
    if head.shape[1]:
        means.insert(0, head.mean(1, keepdim=True, dtype=dtype))
    if tail.shape[1]:
        means.append(tail.mean(1, keepdim=True, dtype=dtype))
    return torch.cat(means, 1) if len(means) > 1 else means[0]


def part_lengths(length: int, first: int, whole: int) -> list[int]:
    """Tokens of a first block that is not whole, of whole blocks and of a last one that is not."""
    head = min(first, length)
    return [head, whole, length - head - whole]


def valid_means(x: Tensor, valid: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """`block_means` of the valid tokens, 0 where there is none, and whether there is one (batch, n_blocks).

    valid: bool (batch, seq_len). The first token is the first of its block.
    """
    sums = block_means(x.masked_fill(~valid[:, :, None, None], 0), block_size, 0)
    share = block_means(valid[:, :, None, None].to(sums.dtype), block_size, 0)
    return sums / share.clamp(min=1 / block_size), (share > 0)[:, :, 0, 0]


def first_tokens(x: Tensor, grid: BlockGrid) -> Tensor:
    """The first query of each block row (batch, n_rows, heads, head_dim), at least float32."""
    behind = grid.q_offset % grid.block_size
    rows = torch.arange(grid.n_rows, device=x.device)
    firsts = x.index_select(1, (rows * grid.block_size - behind).clamp(min=0))
    return firsts.to(torch.promote_types(x.dtype, torch.float32))


def moved_to_front(x: Tensor, starts: Tensor) -> Tensor:
    """Each batch element of x (batch, seq_len, ...) from its start on; what is behind its end is its last token again."""
    place = (torch.arange(x.shape[1], device=x.device) + starts[:, None]).clamp(max=x.shape[1] - 1)
    element = torch.arange(x.shape[0], device=x.device)[:, None]
    return x[element, place]


def without_autocast(x: Tensor) -> torch.autocast:
    """A context in which products on the device of a tensor keep their types."""
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)  # there is none for meta
