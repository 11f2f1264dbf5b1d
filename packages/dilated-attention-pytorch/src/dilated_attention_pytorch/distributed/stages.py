"""Stages of a call: groups of kv heads, whose exchanges overlap with the attention of the others."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .._torch_internals import without_any_modes
from ..caching import BoundedCache
from ..config import TokenDilation
from ..layout.layout import BlockLayout
from .chunks import Chunked
from .local_layout import LocalLayout, make_local_layout
from .plan import Blocks, ExchangePlan, Transfers, blocks_of, needed_blocks
from .sharding import SequenceSharding

MOST_STAGES = 8  # chosen by default where all heads share their blocks: the first exchange is an eighth, the rest is hidden
MOST_STAGES_BY_HEAD = 8  # where they do not: each fetches what its own heads need
# Fetched by a stage, on average over the ranks: less takes longer to launch than to compute.
LEAST_BYTES = 256 * 2**20


@dataclass(frozen=True, eq=False)
class Stage:
    """Some kv heads with their queries, what is exchanged for them, and what they compute with."""

    kv_heads: range
    heads: range
    plan: Transfers
    local: LocalLayout


@dataclass(frozen=True)
class Shape:
    """What of a call its stages depend on beside the layout."""

    sharding: Chunked
    is_causal: bool
    num_heads: int
    num_kv_heads: int
    dilation: TokenDilation | None
    device: torch.device
    stages: int | None  # as asked for
    bytes_per_token: int  # of k and v, over the batch and the kv heads


# The stages of calls, by the id of their layout. A length has its own: as many are kept as a model with hundreds of lengths or
# patterns uses at a time.
STAGES = BoundedCache(256)


def stages_of(layout: BlockLayout, sharding: SequenceSharding, shape: Shape) -> tuple[Stage, ...]:
    """The stages of a call: made once, then kept as long as the layout lives."""
    key = id(layout), shape
    found: tuple[Stage, ...] | None = STAGES.get(key)
    if found is not None:
        return found
    with without_any_modes():  # made in inference mode, they may be used in training later
        made = STAGES.keep(key, make_stages(layout, shape, WholeSequence(layout, sharding, shape)))
    weakref.finalize(layout, STAGES.pop, key, None).atexit = False
    return made


class Source(Protocol):
    """Where the plans and local layouts of some heads of a layout come from."""

    def needed(self, heads: range) -> Tensor:
        """The blocks that each rank needs of others, see `needed_blocks`."""

    def local(self, heads: range, plan: ExchangePlan) -> LocalLayout:
        """The local layout of this plan of the heads."""


class WholeSequence:
    """The source of a call of one sequence."""

    def __init__(self, layout: BlockLayout, sharding: SequenceSharding, shape: Shape) -> None:
        self.layout, self.sharding, self.shape = layout, sharding, shape
        self.heads = range(layout.num_heads)
        self.blocks = blocks_of(layout, None, shape.is_causal)

    def blocks_of(self, heads: range) -> Blocks:
        if heads != self.heads:  # the same are asked for twice
            self.heads, self.blocks = heads, blocks_of(self.layout, heads, self.shape.is_causal)
        return self.blocks

    def needed(self, heads: range) -> Tensor:
        blocks = self.blocks_of(heads)
        return needed_blocks(blocks.row, blocks.col, self.sharding)

    def local(self, heads: range, plan: ExchangePlan) -> LocalLayout:
        shape = self.shape
        return make_local_layout(
            self.layout, self.blocks_of(heads), len(heads), plan, self.sharding, shape.is_causal, shape.dilation, shape.device
        )  # fmt: skip


def make_stages(layout: BlockLayout, shape: Shape, source: Source) -> tuple[Stage, ...]:
    """The stages of a call; one where no rank needs a block of another."""
    every = range(layout.num_heads)
    needed = source.needed(every)
    parts = [range(shape.num_kv_heads)]
    if needed.numel():
        fetched = (
            needed.numel() * shape.sharding.block_size * shape.bytes_per_token / shape.sharding.world_size
        )
        parts = split_heads(shape, layout.num_heads > 1, fetched)
    group = shape.num_heads // shape.num_kv_heads
    made: dict[range, tuple[ExchangePlan, LocalLayout]] = {}
    stages = []
    for part in parts:
        heads = range(part.start * group, part.stop * group)
        per_list = shape.num_heads // layout.num_heads
        of_layout = range(heads.start // per_list, -(-heads.stop // per_list))
        if of_layout not in made:
            theirs = needed if of_layout == every else source.needed(of_layout)
            plan = ExchangePlan.of_needed(theirs, shape.sharding)
            made[of_layout] = plan, source.local(of_layout, plan)
        stages.append(Stage(part, heads, *made[of_layout]))
    return tuple(stages)


def split_heads(shape: Shape, by_head: bool, fetched_bytes: float) -> list[range]:
    """The kv heads of each stage, of nearly equal numbers.

    Token dilation counts heads from the first of a call, so a stage begins where that counts anew.
    """
    n = shape.num_kv_heads
    if shape.stages is not None:
        number = min(shape.stages, n)
    elif by_head:
        number = min(MOST_STAGES_BY_HEAD, n)
    else:
        number = max(1, min(MOST_STAGES, n, int(fetched_bytes // LEAST_BYTES)))
    rate = 1 if shape.dilation is None else max(shape.dilation.dilation_rates)
    group = shape.num_heads // n
    bounds = [0]
    for i in range(1, number):
        bound = i * n // number
        if bound > bounds[-1] and bound * group % rate == 0:
            bounds.append(bound)
    return [range(a, b) for a, b in zip(bounds, [*bounds[1:], n], strict=True)]
