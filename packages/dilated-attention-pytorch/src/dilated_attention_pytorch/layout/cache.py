"""Cache of the layouts of patterns, shared by all modules.

The lists of a layout depend on its block rows and columns alone, so 64 consecutive lengths at block size 64 share them.
A layout for other lengths with the same lists is a small object beside them. The steps of decoding share one layout.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch

from .. import values
from ..caching import LOCK, make_to_stay
from ..config import SparsePatternConfig, check_same_block_size
from ..grid import BlockGrid
from .configs import configs_as_text, configs_of_text
from .layout import BlockLayout

MAX_LISTS = 128  # sets of lists
MAX_BYTES = 2**30  # of all lists together; the newest stay, whatever their size
MAX_LENGTHS = 1024  # layouts over all lists
STEP_ROWS = 64  # of the layout that steps of decoding share


class Pattern(NamedTuple):
    """The pattern of all heads, or of each, as a constant of a compiled graph."""

    text: str  # the configs as JSON
    block_size: int
    num_heads: int  # of the layout

    @classmethod
    def of(cls, configs: SparsePatternConfig | Sequence[SparsePatternConfig]) -> Pattern:
        one = [configs] if isinstance(configs, SparsePatternConfig) else list(configs)
        check_same_block_size(one)
        return cls(configs_as_text(one), one[0].block_size, len(one))

    @classmethod
    def of_text(cls, text: str) -> Pattern:
        configs = json.loads(text)
        return cls(text, configs[0]["block_size"], len(configs))

    def configs(self) -> list[SparsePatternConfig]:
        return configs_of_text(self.text)


class Lists:
    """A set of lists: the first layout with them, and when they were last used."""

    def __init__(self, key: tuple[Hashable, ...], layout: BlockLayout) -> None:
        self.key = key
        self.layout = layout
        self.used = 0
        self.captured = False
        self.may_be_captured = layout.device.type == "cuda"

    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.layout.held_tensors())

    def drop(self) -> None:
        """Tell the allocator that launched kernels may still read the memory."""
        if self.layout.device.type == "cuda":
            for tensor in self.layout.held_tensors():
                tensor.record_stream(torch.cuda.current_stream(tensor.device))


class Found:
    """A layout, its set of lists, and when it was last used."""

    __slots__ = ("layout", "lists", "used")

    def __init__(self, layout: BlockLayout, lists: Lists) -> None:
        self.layout, self.lists, self.used = layout, lists, 0


class LayoutCache:
    """Layouts by pattern and lengths; the least recently used go first.

    Threads share it: looking up takes no lock, building does, so no two threads build the same. What a CUDA graph was
    captured with stays until `clear` is told otherwise, because the graph reads it at every replay.
    """

    def __init__(
        self, max_lists: int = MAX_LISTS, max_bytes: int = MAX_BYTES, max_lengths: int = MAX_LENGTHS
    ) -> None:
        self.max_lists, self.max_bytes, self.max_lengths = max_lists, max_bytes, max_lengths
        self._clock = itertools.count(1)
        self._by_lengths: dict[Hashable, Found] = {}
        self._by_blocks: dict[tuple[Hashable, ...], Lists] = {}

    def find(
        self, pattern: Pattern, q_len: int, kv_len: int, causal: bool, device: torch.device
    ) -> BlockLayout:
        """The layout of a pattern for these lengths, built if it is not there."""
        key = (pattern.text, q_len, kv_len, causal, device)
        found = self._by_lengths.get(key)
        if found is None:
            found = self._add(pattern, key)
        lists = found.lists
        found.used = lists.used = next(self._clock)
        if lists.may_be_captured and torch.cuda.is_current_stream_capturing():
            with LOCK:
                lists.captured, lists.may_be_captured = True, False
                self._by_blocks[lists.key] = lists  # another thread may just have dropped it
        return found.layout

    def covering(
        self, pattern: Pattern, q_len: int, kv_len: int, causal: bool, device: torch.device
    ) -> BlockLayout:
        """The layout of a pattern for these lengths, or for a few queries after other keys the one of many positions.

        Causal rows are the same at every length, so the steps of decoding share a layout, which covers `STEP_ROWS` rows. Chunks
        of whole blocks have a layout of their own: every backend serves it.
        """
        first, size = kv_len - q_len, pattern.block_size
        if not causal or first <= 0 or (first % size == 0 and q_len >= size):
            return self.find(pattern, q_len, kv_len, causal, device)
        step = STEP_ROWS * size
        end = min(-(-kv_len // step) * step, values.MAX_TOKENS)
        return self.find(pattern, end - first // step * step, end, causal, device)

    def _add(self, pattern: Pattern, key: tuple[str, int, int, bool, torch.device]) -> Found:
        text, q_len, kv_len, causal, device = key
        grid = BlockGrid(q_len, kv_len, pattern.block_size, bool(causal))
        blocks = (text, grid.n_rows, grid.n_cols, grid.first_row, grid.causal, device)
        with LOCK:
            found = self._by_lengths.get(key)
            if found is not None:  # another thread was faster
                return found
            lists = self._by_blocks.get(blocks)
            if lists is None:
                configs = pattern.configs()
                layout = make_to_stay(
                    device, lambda: BlockLayout.from_config(configs, q_len, kv_len, causal, device)
                )
                lists = Lists(blocks, layout)
                self._shrink(lists)
                self._by_blocks[blocks] = lists
            else:
                layout = lists.layout.for_lengths(q_len, kv_len)
            if len(self._by_lengths) >= self.max_lengths:
                by_use = sorted(self._by_lengths.items(), key=lambda item: item[1].used)
                for old, _ in by_use[: 1 + self.max_lengths // 8]:
                    del self._by_lengths[old]
            found = self._by_lengths[key] = Found(layout, lists)
            found.used = lists.used = next(self._clock)
            return found

    def _shrink(self, added: Lists) -> None:
        """Drop the least recently used lists until `added` fits; never those of CUDA graphs."""
        by_use = sorted(
            (lists for lists in self._by_blocks.values() if not lists.captured), key=lambda x: x.used
        )
        total = added.num_bytes() + sum(lists.num_bytes() for lists in self._by_blocks.values())
        dropped = set()
        for lists in by_use:
            if len(self._by_blocks) < self.max_lists and total <= self.max_bytes:
                break
            del self._by_blocks[lists.key]
            lists.drop()
            dropped.add(id(lists))
            total -= lists.num_bytes()
        self._forget(dropped)

    def _forget(self, dropped: set[int]) -> None:
        for key, found in list(self._by_lengths.items()):
            if id(found.lists) in dropped:
                del self._by_lengths[key]

    def clear(self, pattern: Pattern | None = None, captured: bool = False) -> None:
        """Drop the layouts of a pattern, or all; those that CUDA graphs were captured with only if `captured`."""
        with LOCK:
            dropped = set()
            for key, lists in list(self._by_blocks.items()):
                is_meant = pattern is None or key[0] == pattern.text
                if is_meant and (captured or not lists.captured):
                    del self._by_blocks[key]
                    lists.drop()
                    dropped.add(id(lists))
            self._forget(dropped)


LAYOUTS = LayoutCache()
