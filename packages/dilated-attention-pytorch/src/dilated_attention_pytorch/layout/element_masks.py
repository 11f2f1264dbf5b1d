"""Pairs of tokens inside blocks: which exist, which are kept, and the bit masks of those that are kept in part."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..grid import BlockGrid
from .lists import BlockLists, BlockMasks, packed_masks, unpacked_masks

N_KINDS = 16
PAIRS_COUNTED = 2**22  # at a time


class Blocks(NamedTuple):
    """Blocks of a layout, int64 (n,) each."""

    batch: Tensor
    head: Tensor
    row: Tensor
    col: Tensor

    def taken(self, places: Tensor | slice) -> Blocks:
        """The blocks at these places."""
        return Blocks(*(x[places] for x in self))

    @property
    def number(self) -> int:
        return self.batch.numel()


class Active(NamedTuple):
    """The active blocks of a layout, in the order of its row lists."""

    blocks: Blocks
    block_ids: Tensor
    """int64 (n,), the place of each in a block bias and in the masks inside blocks."""


def active_blocks(lists: BlockLists, grid: BlockGrid, num_heads: int) -> Active:
    """The blocks in the row lists of a layout."""
    owner = lists.owners()
    listed = (owner < lists.indptr.numel() - 1).nonzero().squeeze(1)
    owner = owner[listed]
    head = owner // grid.n_rows
    blocks = Blocks(head // num_heads, head % num_heads, owner % grid.n_rows, lists.indices[listed].long())
    return Active(blocks, lists.block_ids[listed].long())


def concatenated(parts: list[Blocks]) -> Blocks:
    return Blocks(*(torch.cat(x) for x in zip(*parts, strict=True)))


# ---- pairs that exist


def kinds_of(grid: BlockGrid, row: Tensor, col: Tensor) -> Tensor:
    """Which pairs exist in these blocks, as a number for `existing`: 0 where all do.

    Queries or keys end in the middle of a block, a causal grid may begin in one, and has a diagonal.
    """
    size, end = grid.block_size, grid.q_offset + grid.q_len
    begins = (row == 0) if grid.q_offset % size else torch.zeros_like(row, dtype=torch.bool)
    ends = (row == grid.n_rows - 1) if end % size else torch.zeros_like(begins)
    ends_right = (col == grid.n_cols - 1) if grid.kv_len % size else torch.zeros_like(begins)
    diagonal = (row + grid.first_row == col) if grid.causal else torch.zeros_like(begins)
    return begins + 2 * ends + 4 * ends_right + 8 * diagonal


def existing(grid: BlockGrid, device: torch.device) -> Tensor:
    """Bool (N_KINDS, block_size, block_size): the pairs that exist in a block of each kind."""
    size = grid.block_size
    kind = torch.arange(N_KINDS, device=device)[:, None]
    place = torch.arange(size, device=device)
    after_begin = (kind & 1 == 0) | (place >= grid.q_offset % size)
    before_end = (kind & 2 == 0) | (place < (grid.q_offset + grid.q_len) % size)
    before_right_end = (kind & 4 == 0) | (place < grid.kv_len % size)
    not_later = (kind[..., None] & 8 == 0) | (place <= place[:, None])
    return (after_begin & before_end)[:, :, None] & before_right_end[:, None, :] & not_later


def has_pairs(grid: BlockGrid, row: Tensor, col: Tensor) -> Tensor:
    """Whether any pair of the blocks exists: causal, none does in the future."""
    return (row + grid.first_row >= col) if grid.causal else torch.ones_like(row, dtype=torch.bool)


# ---- pairs that are kept


class Kept(NamedTuple):
    """Which pairs of some blocks are kept."""

    some: Tensor
    """Bool (n,): at least one pair."""
    masked: Tensor
    """int64 (m,): the places of the blocks of which only some of the existing pairs are kept."""
    bits: Tensor
    """int32 (m, block_size, words): those pairs, see `packed_masks`; no bit where a pair does not exist."""


def kept_in(pairs: Tensor, kinds: Tensor, exists: Tensor) -> Kept:
    """What is kept of blocks, given bool (n, block_size, block_size); pairs that do not exist may say anything.

    Args:
        pairs: whether each pair is kept.
        kinds: of `kinds_of`.
        exists: of `existing`.
    """
    pairs = pairs.contiguous()
    special = kinds.nonzero().squeeze(1)
    pairs_of_special = pairs[special]
    words = pairs.view(torch.int64).flatten(1)  # eight pairs each
    most, least = words.amax(1), words.amin(1)
    some, whole = most != 0, least == 0x0101010101010101
    if special.numel():
        real = exists[kinds[special]]
        pairs_of_special &= real
        some[special] = pairs_of_special.flatten(1).any(1)
        whole[special] = (pairs_of_special == real).flatten(1).all(1)
    masked = (some & ~whole).nonzero().squeeze(1)
    kept = pairs[masked]
    if special.numel():
        kept &= exists[kinds[masked]]
    return Kept(some, masked, packed_masks(kept))


# ---- distinct masks


def fingerprints(bits: Tensor) -> Tensor:
    """int64 (n,) of (n, words): equal for equal rows, almost never for others."""
    n = torch.arange(1, bits.shape[1] + 1, device=bits.device)
    factors = (n * 0x1E3779B97F4A7C15) ^ (n * 0x3F58476D1CE4E5B9 >> 7) | 1  # odd, without a pattern
    mixed = bits.long() * factors  # modulo 2**64, as the sum
    return (mixed ^ (mixed >> 29)).sum(1)


def distinct(bits: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows of int32 (n, words), and which of them each row is, int64 (n,)."""
    _, number = fingerprints(bits).unique(return_inverse=True)
    first = first_places(number)
    rows = bits[first]
    if not torch.equal(rows[number], bits):  # two rows with one fingerprint
        rows, number = bits.unique(dim=0, return_inverse=True)
    return rows, number


def first_places(numbers: Tensor) -> Tensor:
    """Where each of the numbers 0 to n - 1 occurs first; each does."""
    count = int(numbers.max()) + 1 if numbers.numel() else 0
    places = torch.arange(numbers.numel(), device=numbers.device)
    first = torch.full((count,), numbers.numel(), dtype=torch.int64, device=numbers.device)
    return first.scatter_reduce_(0, numbers, places, "amin")


class MaskTable:
    """Collects the masks of blocks, piece by piece, and makes one table of the distinct ones."""

    def __init__(self, grid: BlockGrid, device: torch.device) -> None:
        self.grid = grid
        self.exists = existing(grid, device)
        self._rows: list[Tensor] = []  # distinct masks of every piece, flat
        self._kinds: list[Tensor] = []  # of the rows
        self._numbers: list[Tensor] = []  # of every masked block, its row
        self._n_rows = 0

    def add(self, bits: Tensor, kinds: Tensor) -> None:
        """Masks of blocks, int32 (n, block_size, words), and the kinds of the blocks."""
        flat = torch.cat([kinds[:, None].to(torch.int32), bits.flatten(1)], 1)
        rows, numbers = distinct(flat)
        self._rows.append(rows[:, 1:])
        self._kinds.append(rows[:, 0].long())
        self._numbers.append(numbers + self._n_rows)
        self._n_rows += rows.shape[0]

    def finished(self) -> tuple[Tensor, Tensor]:
        """The mask of every block in the order in which they were added, int64 (n,), and the table.

        Blocks share a mask where it says the same of all pairs that exist in them. A mask that no block shares in which
        all pairs exist says yes to those that do not.
        """
        size = self.grid.block_size
        words = max(1, size // 32)
        if self._n_rows == 0:
            empty = torch.empty(0, dtype=torch.int64, device=self.exists.device)
            return empty, empty.new_empty(0, size, words, dtype=torch.int32)
        kinds, rows = torch.cat(self._kinds), torch.cat(self._rows)
        table, number = rows[:0], torch.empty_like(kinds)
        for kind in kinds.unique().tolist():  # kind 0 comes first: all pairs exist
            of_kind = (kinds == kind).nonzero().squeeze(1)
            real = packed_masks(self.exists[kind][None]).flatten()
            # what is in the table, as a block of this kind sees it, then what is new
            known = table.shape[0]
            seen, found = distinct(torch.cat([table & real, rows[of_kind]]))
            first = first_places(found)  # below `known`: a mask of the table
            is_new = first >= known
            place = torch.where(is_new, known + is_new.cumsum(0) - 1, first)
            number[of_kind] = place[found[known:]]
            all_bits = packed_masks(torch.ones_like(self.exists[kind][None])).flatten()
            table = torch.cat([table, seen[is_new] | (all_bits & ~real)])
        return number[torch.cat(self._numbers)], table.view(-1, size, words)


def numbered_as_they_occur(ids: Tensor, table: Tensor) -> BlockMasks | None:
    """Masks in the order of the blocks that have them first, without those of no block; `ids` are int64, -1 for none.

    None where no block has one.
    """
    masked = ids >= 0
    if not bool(masked.any()):
        return None
    used, number = ids[masked].unique(return_inverse=True)
    order = first_places(number).argsort()
    renumbered = torch.full_like(ids, -1)
    renumbered[masked] = order.argsort()[number]
    return BlockMasks(renumbered.to(torch.int32), table[used[order]].contiguous())


# ---- counts


def pairs_per_kind(grid: BlockGrid, device: torch.device) -> Tensor:
    """How many pairs exist in a block of each kind, int64 (N_KINDS,)."""
    return existing(grid, device).flatten(1).sum(1)


def kept_pairs(grid: BlockGrid, active: Active, masks: BlockMasks | None) -> Tensor:
    """How many existing pairs each of some active blocks keeps, int64 (n,)."""
    row, col = active.blocks.row, active.blocks.col
    kinds = kinds_of(grid, row, col)
    counts = pairs_per_kind(grid, row.device)[kinds]
    if masks is not None:
        ids = masks.ids[active.block_ids]
        masked = (ids >= 0).nonzero().squeeze(1)
        # a mask may be that of several kinds of blocks
        used, number = (ids[masked].long() * N_KINDS + kinds[masked]).unique(return_inverse=True)
        exists = existing(grid, row.device)
        parts = [torch.empty(0, dtype=torch.int64, device=row.device)]
        for some in used.split(max(1, PAIRS_COUNTED // grid.block_size**2)):
            pairs = unpacked_masks(masks.table[some // N_KINDS]) & exists[some % N_KINDS]
            parts.append(pairs.flatten(1).sum(1))
        counts[masked] = torch.cat(parts)[number]
    return counts * has_pairs(grid, row, col)


def share_of(grid: BlockGrid, blocks: Blocks, kept: Tensor) -> Tensor:
    """The share of the existing pairs that blocks keep, float64 (n,); 1 for a block without pairs."""
    exist = pairs_per_kind(grid, kept.device)[kinds_of(grid, blocks.row, blocks.col)]
    exist = exist * has_pairs(grid, blocks.row, blocks.col)
    return torch.where(exist > 0, kept.double() / exist.clamp(min=1), 1.0)
