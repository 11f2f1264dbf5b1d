"""BlockLayout: which block pairs of the attention matrix are active, as compact lists on a device."""

from __future__ import annotations

import dataclasses
import itertools
import os
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import values
from .._torch_internals import is_for_the_dispatcher, mark_length_dynamic, without_modes
from ..caching import BoundedCache, make_in_graph, make_once
from ..config import (
    SparsePatternConfig,
    TokenDilation,
    check_block_size,
    check_same_block_size,
    checked_configs,
)
from ..grid import BlockGrid
from ..patterns.registry import active_pairs, check_connected
from .arguments import check_block_mask, check_index, checked_device
from .block_indices import checked_indices
from .coverage import coverage, hops_to_full_coverage
from .dilated_lists import split_by_distance
from .element_masks import Active, active_blocks, kept_pairs, share_of
from .from_indices import lists_of
from .from_mask import (
    Listed,
    Within,
    all_blocks,
    ask,
    blocks_within,
    check_count,
    check_same_grid,
    checked_mask,
    groups_of,
    mask_within,
    masked_lists,
    of_mask_mod,
    of_tensor,
)
from .lists import BlockLists, BlockMasks, build_csr, csr_of_sorted
from .pattern_masks import pattern_masks
from .prefix import cut_lists
from .saving import Saved, load_layout, save_layout
from .stats import LayoutStats, stats_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch.nn.attention.flex_attention import BlockMask


# Living layouts by their row lists, grid and masks: an operator is given their tensors, and finds the layout here.
ALIVE: weakref.WeakValueDictionary[Hashable, BlockLayout] = weakref.WeakValueDictionary()


def key_of_alive(grid: BlockGrid, row_lists: BlockLists, masks: BlockMasks | None) -> Hashable:
    """The key of a layout in `ALIVE`."""
    return (
        id(row_lists.indices),
        None if masks is None else id(masks.ids),
        grid.q_len,
        grid.kv_len,
        grid.q_offset,
    )


# of fields, in pickles from before they were public
OLD_NAMES = {"_is_exact": "is_exact", "_in_graph": "is_captured", "_cached_calls": "calls"}


@dataclass(frozen=True, eq=False)
class BlockLayout:
    """The active block pairs of one attention call. Immutable; make one with a ``from_`` method.

    Attributes:
        q_len: tokens of the queries.
        kv_len: tokens of the keys.
        block_size: tokens per block side.
        causal: whether queries are aligned to the end of the keys (they differ only when q_len != kv_len).
        num_heads: 1 (all heads share the pattern) or the number of heads or of kv heads.
        batch: 1 (all batch elements share the pattern) or the number of batch elements.
        row_lists: per (head, row) the sorted active columns.
        col_lists: the transpose, per (head, column) the sorted active rows.
        configs: the pattern of all heads, or one per head; None for layouts of your own.
        block_masks: which elements of the active blocks count; None where all do.

    The lists of a layout from indices have room for as many blocks as there are indices, as their lengths were never read:
    what needs these (`num_active_blocks`, `density`, `coo` and what follows from them) waits for the GPU.

    Memory is proportional to the active blocks. A CUDA graph reads the lists of the layout that it was captured with:
    keep that as long as the graph. A layout made while a graph is captured changes with every replay.
    """

    grid: BlockGrid
    num_heads: int
    row_lists: BlockLists
    col_lists: BlockLists
    configs: tuple[SparsePatternConfig, ...] | None = None
    batch: int = 1
    block_masks: BlockMasks | None = None
    is_exact: bool = True
    """Whether the lists fill their tensors."""
    is_captured: bool = field(default=False, init=False, repr=False)
    """Whether it was made while a CUDA graph was captured, whose replays refill its lists."""
    calls: BoundedCache = field(default_factory=lambda: BoundedCache(64), init=False, repr=False)
    """The resolved calls of the entrance with this layout; copies and pickles have none, as of the caches below."""
    # made at first use
    _dilated: BoundedCache = field(default_factory=lambda: BoundedCache(8), init=False, repr=False)
    _prepared: BoundedCache = field(default_factory=lambda: BoundedCache(8), init=False, repr=False)
    _prefixes: BoundedCache = field(default_factory=lambda: BoundedCache(8), init=False, repr=False)

    def __post_init__(self) -> None:
        if torch.compiler.is_compiling():
            return
        for name in ("row_lists", "col_lists"):
            object.__setattr__(self, name, getattr(self, name).savable())
        if self.block_masks is not None:
            object.__setattr__(self, "block_masks", self.block_masks.savable())
        is_captured = (
            self.device.type == "cuda"
            and torch.cuda.is_initialized()
            and torch.cuda.is_current_stream_capturing()
        )
        object.__setattr__(self, "is_captured", is_captured)
        ALIVE[key_of_alive(self.grid, self.row_lists, self.block_masks)] = self
        for tensor in self._tensors():
            mark_length_dynamic(tensor)  # a graph serves lists of every length

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update((OLD_NAMES.get(name, name), value) for name, value in state.items())
        self.__dict__.setdefault("_prefixes", BoundedCache(8))  # of 0.3.0
        self.__post_init__()

    def _tensors(self) -> tuple[Tensor, ...]:
        """The lists and the masks inside blocks."""
        return (*self.row_lists.tensors(), *self.col_lists.tensors(), *(self.block_masks or ()))

    def held_tensors(self) -> list[Tensor]:
        """The lists, the masks, and what is cached with them: of all layouts with the same rows and columns."""
        tensors = list(self._tensors())
        for entry in list(self._prepared.values()):
            tensors += entry.value
        for entry in list(self._dilated.values()):
            rows, cols = entry.value
            tensors += [*rows.tensors(), *cols.tensors()]
        return tensors

    @classmethod
    def from_lists(
        cls,
        grid: BlockGrid,
        num_heads: int,
        row_lists: BlockLists,
        col_lists: BlockLists,
        batch: int = 1,
        block_masks: BlockMasks | None = None,
        is_exact: bool = True,
    ) -> BlockLayout:
        """The living layout with these lists and masks, and so with its caches; a new one if there is none."""
        found = ALIVE.get(key_of_alive(grid, row_lists, block_masks))
        if found is not None and (found.grid, found.num_heads, found.batch) == (grid, num_heads, batch):
            theirs = (*row_lists.tensors(), *col_lists.tensors(), *(block_masks or ()))
            if all(x is y for x, y in itertools.zip_longest(found._tensors(), theirs)):
                return found
        return cls(
            grid, num_heads, row_lists, col_lists, batch=batch, block_masks=block_masks, is_exact=is_exact
        )

    def for_lengths(self, q_len: int, kv_len: int) -> BlockLayout:
        """The layout for other lengths with the same rows and columns; it shares the lists and their caches."""
        made = dataclasses.replace(self, grid=self.grid.with_lengths(q_len, kv_len))
        for name in ("_dilated", "_prepared", "is_captured"):
            object.__setattr__(made, name, getattr(self, name))
        return made

    # ---- constructors

    @classmethod
    def from_config(
        cls,
        config: SparsePatternConfig | Sequence[SparsePatternConfig],
        q_len: int,
        kv_len: int | None = None,
        causal: bool = False,
        device: torch.device | str | None = None,
    ) -> BlockLayout:
        """The layout of a pattern, or of one pattern per head, for the given lengths.

        Args:
            config: one for all heads, or a sequence with one per head or kv head (same block_size).
            q_len: number of queries.
            kv_len: number of keys, default q_len.
            causal: keep only blocks of the past; with q_len != kv_len the last query sits at the last key.
            device: where the lists are built and live, default the CPU.

        Raises:
            ValueError: an argument is out of its range; the message names it.
            TypeError: an argument is something else; the message names it.

        Examples:
            >>> layout = BlockLayout.from_config(SparsePatternConfig(sparsity_ratio=0.01), q_len=16_384)
            >>> layout.num_active_blocks
            655
        """
        checked = checked_configs(config, "config")
        configs = (checked,) if isinstance(checked, SparsePatternConfig) else checked
        check_same_block_size(configs)
        grid = BlockGrid(q_len, q_len if kv_len is None else kv_len, configs[0].block_size, causal)
        target = checked_device(device)
        made: dict[SparsePatternConfig, tuple[Tensor, Tensor]] = {}
        with without_modes():  # a layout built in inference mode may be used in training later
            for item in configs:
                if item not in made:
                    check_connected(item, grid)
                    made[item] = active_pairs(item, grid, target)
            heads = [made[item] for item in configs]
            layout = cls._from_pairs(grid, heads, configs)
            if not any(config.exact for config in configs):
                return layout
            return dataclasses.replace(layout, block_masks=pattern_masks(configs, grid, *layout.coo()))

    @classmethod
    def from_dense(
        cls,
        mask: Tensor,
        block_size: int,
        q_len: int | None = None,
        kv_len: int | None = None,
        causal: bool = False,
    ) -> BlockLayout:
        """The layout of a boolean block mask, on its device.

        Args:
            mask: bool (n_rows, n_cols), (num_heads, n_rows, n_cols) or (batch, num_heads, n_rows, n_cols), True where a
                block is active.
            block_size: tokens per block side.
            q_len: number of queries, default whole blocks.
            kv_len: number of keys, default whole blocks.
            causal: whether the layout is for ``is_causal=True``: then the last query sits at the last key.

        Raises:
            ValueError: the mask does not have the blocks of the lengths.
            TypeError: an argument is something else; the message names it.
        """
        check_block_mask(mask)
        size = check_block_size(block_size)
        n_rows, n_cols = mask.shape[-2:]
        grid = BlockGrid(
            n_rows * size if q_len is None else q_len,
            n_cols * size if kv_len is None else kv_len,
            size,
            causal,
        )
        if (n_rows, n_cols) != (grid.n_rows, grid.n_cols):
            raise ValueError(
                f"mask has {n_rows} x {n_cols} blocks, but q_len {grid.q_len}, kv_len {grid.kv_len} and "
                f"block_size {size} with causal={grid.causal} need {grid.n_rows} x {grid.n_cols}"
            )
        batch = mask.shape[0] if mask.dim() == 4 else 1
        of_heads = mask.reshape(-1, n_rows, n_cols)
        head, rows, cols = of_heads.nonzero(as_tuple=True)
        return cls.from_blocks(grid, of_heads.shape[0] // batch, head, rows, cols, batch=batch)

    @classmethod
    def from_indices(
        cls,
        indices: Tensor,
        counts: Tensor | None = None,
        *,
        q_len: int,
        kv_len: int,
        block_size: int,
        causal: bool = False,
    ) -> BlockLayout:
        """The layout of active blocks by their columns, for every row of blocks, on the device of `indices`.

        Made for blocks chosen from the content (see `select_blocks`): on a GPU it never waits, and can be captured in a CUDA
        graph, whose replays then make the lists of whatever indices are there. Equal arguments give equal lists, bit by bit.

        The block id of a block, its place in a block bias, is the place of its index in ``indices.flatten()``, so the bias of
        chosen blocks is ``scores.gather(-1, indices.clamp(min=0).long()).flatten()[None, None]``.

        Args:
            indices: int32 or int64 (batch or 1, heads or 1, n_rows, k), or with fewer leading axes: the active columns of
                every row, in any order. Dropped are negative ones, columns beyond the keys, the second of two equal ones
                in a row and, if causal, blocks after the row's own.
            counts: int32 or int64 (batch or 1, heads or 1, n_rows), or with fewer leading axes: only so many of the k count.
                Default: all.
            q_len: number of queries; n_rows are their blocks.
            kv_len: number of keys.
            block_size: tokens per block side.
            causal: whether the layout is for ``is_causal=True``: then the last query sits at the last key.

        Raises:
            ValueError: an argument is out of its range, or the indices do not have the rows of the lengths.
            TypeError: an argument is something else; the message names it.

        Examples:
            >>> indices = torch.tensor([[0, 0], [1, -1], [2, 0]])
            >>> layout = BlockLayout.from_indices(indices, q_len=48, kv_len=48, block_size=16)
            >>> layout.rows()
            [[0], [1], [0, 2]]
            >>> layout.row_lists.block_ids[:4].tolist()
            [0, 2, 5, 4]
        """
        grid = BlockGrid(q_len, kv_len, block_size, causal)
        given = checked_indices(indices, counts, grid)
        if torch.compiler.is_compiling() or is_for_the_dispatcher(given.indices):
            rows, cols = lists_of(given)
        else:
            with without_modes():  # a layout built in inference mode may be used in training later
                rows, cols = lists_of(given)
        batch, heads = given.indices.shape[:2]
        return cls(grid, heads, rows, cols, batch=batch, is_exact=False)

    @classmethod
    def from_block_mask(
        cls,
        block_mask: BlockMask,
        allow_partial: bool = False,
        q_len: int | None = None,
        kv_len: int | None = None,
        causal: bool = False,
        block_size: int | None = None,
    ) -> BlockLayout:
        """The layout of a FlexAttention BlockMask, exact for every pair: blocks, and masks inside the partial ones.

        Blocks of another shape or size are split into square ones. The `mask_mod` is asked about partial blocks alone. A
        slice, ``block_mask[:, :, rows]``, has lost its `mask_mod` and which rows it is of: one with partial blocks is
        refused, unless it is given a `mask_mod` that counts batch, heads and queries from the slice.

        Args:
            block_mask: for one or several batch elements. The layout has `batch` 1 where all are the same.
            allow_partial: keep all token pairs of the partial blocks.
            q_len: number of queries, default that of the BlockMask; of a slice of its rows, whole blocks.
            kv_len: number of keys, default that of the BlockMask.
            causal: whether the layout is for ``is_causal=True``, as in `from_mask_mod`.
            block_size: tokens per block side of the layout, default the largest that divides the blocks.

        Raises:
            ValueError: a layout cannot hold the mask, or the lengths do not fit it; the message says why.
            TypeError: `block_mask` is no BlockMask.
        """
        from .block_mask import read_block_mask

        with torch.inference_mode(False), torch.no_grad():  # a mask_mod needs torch.vmap
            read = read_block_mask(block_mask, allow_partial, q_len, kv_len, causal, block_size)
        return cls._of_listed(read.grid, read.batch, read.num_heads, read.listed)

    @classmethod
    def from_mask_mod(
        cls,
        mask_mod: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
        q_len: int,
        kv_len: int | None = None,
        block_size: int = 64,
        batch: int | None = None,
        num_heads: int | None = None,
        causal: bool = False,
        device: torch.device | str | None = None,
        within: BlockLayout | None = None,
    ) -> BlockLayout:
        """The layout of a mask_mod, exact for every pair: blocks with a pair that it keeps, and masks inside blocks.

        Blocks with the same mask share it. The mask_mod is asked about every pair of tokens once, in pieces of bounded
        memory, so the time grows with ``batch * num_heads * q_len * kv_len`` (about 1 s for 16,384 x 16,384 on a CPU);
        with `within` only about those in its active blocks.

        Args:
            mask_mod: ``mask_mod(b, h, q_idx, kv_idx)``, True where a query sees a key, as for FlexAttention: of tensors
                without dimensions, which `torch.vmap` maps. One that `torch.vmap` cannot take is called with b and h
                without dimensions and q_idx (n, q, 1), kv_idx (n, 1, kv) that broadcast. Indices are those of existing
                tokens: q_idx from 0 to q_len - 1, kv_idx from 0 to kv_len - 1.
            q_len: number of queries.
            kv_len: number of keys, default q_len.
            block_size: tokens per block side, a power of two from 16 to 256.
            batch: number of batch elements. None: the mask is the same for all.
            num_heads: number of heads, or of kv heads. None: the mask is the same for all.
            causal: whether the layout is for ``is_causal=True``, which then hides later keys whatever `mask_mod` says of
                them: the last query sits at the last key. (Of a causal mask_mod, False makes a layout for ``is_causal=False``,
                True one for ``is_causal=True``; the second has fewer masks.)
            device: where `mask_mod` is called and the lists live, default the CPU, or the device of `within`.
            within: a layout of the same lengths, block_size and `causal`: pairs that it does not have do not count. So a
                pattern and a mask are combined, and a long window takes little time.

        Raises:
            ValueError: an argument is out of its range, or `mask_mod` raised; the message says which.
            TypeError: an argument is something else, or `mask_mod` returned no bool tensor.

        Examples:
            >>> document = torch.tensor([0] * 100 + [1] * 156)
            >>> layout = BlockLayout.from_mask_mod(lambda b, h, q, k: (document[q] == document[k]) & (q >= k), q_len=256)
            >>> layout.stats().num_pairs == 100 * 101 // 2 + 156 * 157 // 2
            True
        """
        if within is not None and not isinstance(within, BlockLayout):
            raise TypeError(f"within must be a BlockLayout, got {values.shown(within)}")
        grid = BlockGrid(q_len, q_len if kv_len is None else kv_len, block_size, causal)
        target = within.device if within is not None and device is None else checked_device(device)
        mask = of_mask_mod(mask_mod)
        elements = check_count("batch", batch, 1 if within is None else within.batch)
        heads = check_count("num_heads", num_heads, 1 if within is None else within.num_heads)
        with torch.inference_mode(False), torch.no_grad():  # a mask_mod needs torch.vmap
            if within is None:
                groups = all_blocks(grid, elements, heads, target)
            else:
                inside = within.to(target)._as_within(grid)
                groups = groups_of(blocks_within(inside, elements, heads), grid)
                mask = mask_within(mask, inside)
            listed = masked_lists(grid, elements, heads, ask(grid, groups, mask, target))
        return cls._of_listed(grid, elements, heads, listed)

    @classmethod
    def from_mask(cls, mask: Tensor, block_size: int = 64, causal: bool = False) -> BlockLayout:
        """The layout of a boolean mask of tokens, exact for every pair, on the device of the mask.

        Args:
            mask: bool, True where a query **sees** a key, as in `scaled_dot_product_attention` (the opposite of
                `torch.nn.MultiheadAttention`, whose True hides: pass ``~attn_mask``): (q_len, kv_len),
                (heads, q_len, kv_len) or (batch, heads, q_len, kv_len).
            block_size: tokens per block side, a power of two from 16 to 256.
            causal: whether the layout is for ``is_causal=True``, as in `from_mask_mod`.

        Raises:
            ValueError: the mask has another shape; the message names it.
            TypeError: the mask is no bool tensor.

        Examples:
            >>> layout = BlockLayout.from_mask(torch.ones(100, 100, dtype=torch.bool).tril())
            >>> layout.num_active_blocks, layout.stats().num_pairs
            (3, 5050)
        """
        whole = checked_mask(mask)
        elements, heads, q_len, kv_len = whole.shape
        grid = BlockGrid(q_len, kv_len, check_block_size(block_size), causal)
        with torch.inference_mode(False), torch.no_grad():  # a mask_mod needs torch.vmap
            groups = all_blocks(grid, elements, heads, mask.device)
            listed = masked_lists(grid, elements, heads, ask(grid, groups, of_tensor(whole), mask.device))
        return cls._of_listed(grid, elements, heads, listed)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str | None = None) -> BlockLayout:
        """The layout in a file that `save` wrote.

        Args:
            path: of the file.
            device: where the lists are to live, default the CPU.

        Raises:
            ImportError: safetensors is not installed.
            ValueError: the file is not one of `save`, or is damaged; the message says why.
            OSError: the file cannot be read.
        """
        saved = load_layout(path)
        target = checked_device(device)
        masks, exact = saved.block_masks, saved.is_exact
        return cls(
            saved.grid, saved.num_heads, saved.rows, saved.cols, saved.configs, saved.batch, masks, exact
        ).to(target)

    @classmethod
    def _of_listed(cls, grid: BlockGrid, batch: int, num_heads: int, listed: Listed) -> BlockLayout:
        rows, cols, masks = listed
        return cls(grid, num_heads, rows, cols, batch=batch, block_masks=masks)

    @classmethod
    def _from_pairs(
        cls,
        grid: BlockGrid,
        heads: list[tuple[Tensor, Tensor]],
        configs: tuple[SparsePatternConfig, ...],
    ) -> BlockLayout:
        """The layout of the pairs of each head, in any order."""
        rows = torch.cat([pair_rows for pair_rows, _ in heads])
        cols = torch.cat([pair_cols for _, pair_cols in heads])
        head = torch.cat([torch.full_like(pair[0], i_head) for i_head, pair in enumerate(heads)])
        order = ((head * grid.n_rows + rows) * grid.n_cols + cols).argsort()
        return cls.from_blocks(grid, len(heads), head[order], rows[order], cols[order], configs)

    @classmethod
    def from_blocks(
        cls,
        grid: BlockGrid,
        num_heads: int,
        head: Tensor,
        rows: Tensor,
        cols: Tensor,
        configs: tuple[SparsePatternConfig, ...] | None = None,
        batch: int = 1,
    ) -> BlockLayout:
        """The layout of blocks, int64 (n,) each, in the order of the row lists; heads are counted over the batch elements."""
        if rows.numel() >= 2**31:
            raise ValueError(
                f"a layout holds at most 2**31 - 1 active blocks, got {rows.numel()}; use a larger block_size"
            )
        n_heads, n_rows, n_cols = batch * num_heads, grid.n_rows, grid.n_cols
        block_ids = torch.arange(rows.numel(), dtype=torch.int32, device=rows.device)
        row_key, col_key = (head * n_rows + rows) * n_cols + cols, (head * n_cols + cols) * n_rows + rows
        row_lists = csr_of_sorted(row_key, n_heads * n_rows, n_cols, cols, block_ids)
        col_lists = build_csr(col_key, n_heads * n_cols, n_rows, rows, block_ids)
        return cls(grid, num_heads, row_lists, col_lists, configs, batch)

    # ---- properties

    @property
    def q_len(self) -> int:
        return self.grid.q_len

    @property
    def kv_len(self) -> int:
        return self.grid.kv_len

    @property
    def block_size(self) -> int:
        return self.grid.block_size

    @property
    def causal(self) -> bool:
        return self.grid.causal

    @property
    def device(self) -> torch.device:
        return self.row_lists.indices.device

    @property
    def num_active_blocks(self) -> int:
        """Active block pairs, over all heads and batch elements of the layout."""
        return self.row_lists.indices.numel() if self.is_exact else int(self.row_lists.indptr[-1])

    @property
    def num_block_ids(self) -> int:
        """The length of the last axis of a block bias: `num_active_blocks`, or of a layout from indices their number."""
        return self.row_lists.indices.numel()

    @property
    def density(self) -> float:
        """Active blocks over those that dense attention with the same lengths and causality computes.

        A block with a mask inside counts as one; `stats` has the share of the pairs of tokens, ``element_density``.
        """
        return self.num_active_blocks / self._num_available()

    def _num_available(self) -> int:
        """Block pairs that dense attention computes, over all heads and batch elements of the layout."""
        return self.batch * self.num_heads * self.grid.available()

    def __repr__(self) -> str:
        of_batch = f"batch={self.batch}, " if self.batch > 1 else ""
        return (
            f"BlockLayout(q_len={self.q_len}, kv_len={self.kv_len}, block_size={self.block_size}, "
            f"causal={self.causal}, {of_batch}num_heads={self.num_heads}, num_active_blocks={self.num_active_blocks}, "
            f"density={self.density:.4g}, device='{self.device}')"
        )

    def to(self, device: torch.device | str) -> BlockLayout:
        """The same layout on another device; ValueError from meta, where it has no values."""
        device = values.device(device)
        if device == self.device:
            return self
        if self.device.type == "meta":
            raise ValueError(f"layout must be on {device}, got one on meta, which holds no values")
        rows, cols = self.row_lists.to(device), self.col_lists.to(device)
        masks = None if self.block_masks is None else self.block_masks.to(device)
        return dataclasses.replace(self, row_lists=rows, col_lists=cols, block_masks=masks)

    def prefix(self, length: int) -> BlockLayout:
        """The layout of the first positions of a square one, for queries and keys alike.

        A causal pattern has the same rows at every length, so this is its layout for `length`. A block keeps its masks,
        but has another place in a `block_bias`. The lists are made once per number of blocks, and kept.

        Args:
            length: 1 to `q_len`, in tokens.

        Raises:
            ValueError: the layout is not square, or has fewer positions.
            TypeError: `length` is not an int.
        """
        grid, tokens = self.grid, values.tokens(length)
        if not grid.is_square:
            raise ValueError(
                f"prefix needs a layout of queries and keys at the same positions, got q_len {grid.q_len} and kv_len "
                f"{grid.kv_len}"
            )
        if tokens is None or tokens > grid.q_len:
            raise values.wrong(
                values.integer(length), f"length must be 1 to q_len {grid.q_len}, got {values.shown(length)}"
            )
        n_blocks = -(-tokens // grid.block_size)
        if n_blocks == grid.n_rows:
            return self if tokens == grid.q_len else self.for_lengths(tokens, tokens)
        found: BlockLayout = self._make(self._prefixes, n_blocks, lambda: self._cut(n_blocks))
        return found if tokens == found.q_len else found.for_lengths(tokens, tokens)

    def has_prefix(self, length: int) -> bool:
        """Whether `prefix` finds its lists made, so that it neither launches kernels nor waits for a GPU."""
        n_blocks = -(-length // self.block_size)
        return n_blocks == self.grid.n_rows or n_blocks in self._prefixes

    def _cut(self, n_blocks: int) -> BlockLayout:
        rows, cols, masks = cut_lists(self.grid, self.row_lists, self.block_masks, n_blocks)
        length = n_blocks * self.block_size
        grid = self.grid.with_lengths(length, length)
        configs = self.configs if self.causal else None  # other patterns depend on the length
        return BlockLayout(grid, self.num_heads, rows, cols, configs, self.batch, masks)

    def coo(self) -> tuple[Tensor, Tensor, Tensor]:
        """(head, row, column) of every active block in the order of the row lists, int64.

        Head h of batch element b is ``b * num_heads + h``.
        """
        n_blocks = self.num_active_blocks
        owner = self.row_lists.owners()[:n_blocks]
        return owner // self.grid.n_rows, owner % self.grid.n_rows, self.row_lists.indices[:n_blocks].long()

    def _active(self) -> Active:
        return active_blocks(self.row_lists, self.grid, self.num_heads)

    def _as_within(self, grid: BlockGrid) -> Within:
        check_same_grid(self.grid, grid)
        return Within(self.grid, self.batch, self.num_heads, self._active(), self.block_masks)

    def rows(self, head: int = 0, batch: int = 0) -> list[list[int]]:
        """The active columns of every row of one head (and batch element), as Python lists."""
        first = check_index("batch", batch, self.batch) * self.num_heads
        first = (first + check_index("head", head, self.num_heads)) * self.grid.n_rows
        offsets = self.row_lists.indptr[first : first + self.grid.n_rows + 1].tolist()
        columns = self.row_lists.indices.tolist()
        return [columns[a:b] for a, b in itertools.pairwise(offsets)]

    def to_dense(self) -> Tensor:
        """Bool block mask (n_rows, n_cols), (num_heads, n_rows, n_cols) or, where batch elements differ, (batch, num_heads,
        n_rows, n_cols)."""
        grid = self.grid
        n_heads = self.batch * self.num_heads
        dense = torch.zeros(n_heads, grid.n_rows, grid.n_cols, dtype=torch.bool, device=self.device)
        dense[self.coo()] = True
        if self.batch > 1:
            return dense.view(self.batch, self.num_heads, grid.n_rows, grid.n_cols)
        return dense[0] if self.num_heads == 1 else dense

    def to_block_mask(self, num_heads: int | None = None) -> BlockMask:
        """The same pairs as a FlexAttention BlockMask, for compiled and eager `flex_attention`: blocks and masks inside them.

        It hides later keys where the layout is causal. Its rows begin at the first query, also where that sits in the middle
        of a block. Its format takes 16 to 17 bytes for every pair of blocks, active or not, and head of the BlockMask.

        Args:
            num_heads: heads of the BlockMask, a multiple of those of the layout, each of which then serves a group of heads in
                order. `flex_attention` counts the heads of q: with ``enable_gqa=True``, a layout with one pattern per kv head
                needs it. Default: one for every head of the layout, and a layout with one head serves any number.

        Raises:
            ValueError: `num_heads` is no multiple of the heads of the layout.
            TypeError: it is not an int.
        """
        from .block_mask import block_mask_of, group_size

        entries = self.entries().view(self.batch, self.num_heads, self.grid.n_rows, self.grid.n_cols)
        if num_heads is not None:
            entries = entries.repeat_interleave(group_size(num_heads, self.num_heads), 1)
        return block_mask_of(self.grid, entries, self.block_masks)

    def stats(self) -> LayoutStats:
        """Block counts, the density requested and real, the reach of a query, and memory."""
        return stats_of(
            self.grid,
            self.num_heads,
            self.batch,
            self.row_lists,
            self.col_lists,
            self.block_masks,
            self.configs,
        )

    def coverage(self, layers: int = 1) -> float:
        """Fraction of the allowed (query, key) block pairs connected within `layers` stacked layers.

        A pair of blocks counts as connected by one layer if any head sees any pair of its tokens: masks inside blocks and
        token dilation do not change the figure. With lists for each batch element it is the mean over them.
        """
        return sum(coverage(self.grid, rows, cols, layers) for rows, cols in self._elements()) / self.batch

    def hops_to_full_coverage(self) -> int | None:
        """The fewest layers that connect every allowed (query, key) block pair; None if no number does.

        Pairs of blocks count as for `coverage`. With lists for each batch element it is the most of them.
        """
        hops = [hops_to_full_coverage(self.grid, rows, cols) for rows, cols in self._elements()]
        return None if None in hops else max(number for number in hops if number is not None)

    def _elements(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The rows and columns of all heads of each batch element."""
        blocks = self._active().blocks
        for element in range(self.batch):
            here = blocks.batch == element
            yield blocks.row[here], blocks.col[here]

    def plot(self, ax: Axes | None = None, head: int = 0, batch: int = 0, **kwargs: Any) -> Axes:
        """Plot the active blocks of one head with matplotlib, if it is installed; returns the axes.

        Blocks of which a mask keeps some pairs are lighter, by their share of the pairs.

        Args:
            ax: where to plot, default a new figure.
            head: of the layout.
            batch: the batch element of a layout that has lists for each.
            **kwargs: for ``ax.imshow``.
        """
        from .plot import plot_blocks

        active, element = self._active(), check_index("batch", batch, self.batch)
        blocks = active.blocks
        meant = (blocks.head == check_index("head", head, self.num_heads)) & (blocks.batch == element)
        shown = Active(blocks.taken(meant), active.block_ids[meant])
        shares = share_of(self.grid, shown.blocks, kept_pairs(self.grid, shown, self.block_masks))
        title = f"{self.num_active_blocks:,} of {self._num_available():,} blocks ({self.density:.2%})"
        if self.block_masks is not None:
            title += f", {self.stats().element_density:.2%} of the pairs"
        return plot_blocks(self.grid, shown.blocks, shares, title, ax, **kwargs)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the layout to a file in the format of safetensors, which `load` reads: lists, masks, patterns and lengths.

        Raises:
            ImportError: safetensors is not installed.
            OSError: the file cannot be written.
        """
        rows, cols, configs = self.row_lists, self.col_lists, self.configs
        held = Saved(
            self.grid, self.num_heads, self.batch, rows, cols, configs, self.block_masks, self.is_exact
        )
        save_layout(held, path)

    # ---- what backends take

    def lists(self, dilation: TokenDilation | None = None) -> tuple[BlockLists, BlockLists]:
        """Row and column lists; with token dilation each list is split into distance classes."""
        if dilation is None:
            return self.row_lists, self.col_lists
        lists: tuple[BlockLists, BlockLists] = self._make(
            self._dilated,
            dilation,
            lambda: split_by_distance(
                self.grid, self.row_lists, self.batch * self.num_heads, self.is_exact, dilation
            ),
        )
        return lists

    def keep_lists(self, dilation: TokenDilation, lists: tuple[BlockLists, BlockLists]) -> None:
        """Make `lists` return these for a token dilation, of a layout whose blocks are elsewhere than its columns say."""
        self._make(self._dilated, dilation, lambda: lists)

    def keep(
        self, owner: str, dilation: TokenDilation | None, make: Callable[[], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """What a backend derives from the rows and columns: computed once, then returned from the cache.

        Layouts for other lengths with the same rows and columns share it. On a GPU the current stream waits for it.

        Args:
            owner: the name of the backend.
            dilation: the token dilation that it depends on.
            make: computes it, maybe in another thread, which must not call `lists` or `keep` of a layout.
        """
        made: tuple[Tensor, ...] = self._make(self._prepared, (owner, dilation), make)
        return made

    def _make(self, cache: BoundedCache, key: Hashable, make: Callable[[], Any]) -> Any:
        """What is derived from the lists: from the cache, unless the replays of a CUDA graph change the lists."""
        if self.is_captured:
            return make_in_graph(cache, key, self.device, make)
        # a layout from indices serves a step: what is derived need not outlive that
        return make_once(cache, key, self.device, make, is_to_stay=self.is_exact)

    def entries(self) -> Tensor:
        """The block id of every pair, -1 where inactive; int64 (batch * num_heads, n_rows, n_cols)."""
        n_rows, n_cols = self.grid.n_rows, self.grid.n_cols
        lists, n_lists = self.row_lists, self.batch * self.num_heads * n_rows
        owner = lists.owners()
        # one more list, for what is behind the last one
        entries = torch.full((n_lists + 1, n_cols), -1, dtype=torch.int64, device=self.device)
        entries[owner, torch.where(owner < n_lists, lists.indices, 0).long()] = lists.block_ids.long()
        return entries[:n_lists].view(self.batch * self.num_heads, n_rows, n_cols)
