"""Which tile comes next: a counter in global memory, read by one warp that tells the others through shared memory.

That warp does nothing else and is a tile or two ahead: from the counter to the ends of a list are three loads that wait for
each other, 2 us and more, and the ring of tiles is empty before that.

Rows and columns differ in length (causal, global tokens, chosen from the content), so tiles go to whoever is free, the longest
first. `Order` begins with the number of long groups, and then holds, for every layout head, the groups of rows (or columns) in
the order of their length (work_order.py): the long ones go first for all heads; the others by heads that share k and v and row
by row, so that neighbours, in time, share k and v in the L2 cache.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

COUNT_LANES = gl.constexpr(128)
# Told of a tile: which it is, batch and head, group of rows or columns, where its lists begin and end; and in the forward with a
# mask, for each of two lists, how many of its entries some query sees, and how many need no mask.
TOLD = gl.constexpr(10)


@gluon.jit
def next_tile(Counter, n_tiles, tile_smem, tile_bars, i_tile):
    """Take the next tile; n_tiles or more when none is left.

    Every lane of the warp adds 1, and the counter counts lanes: an atomic of one lane alone is a branch, after which
    ptxas takes the warp for converged although it is not. It makes one atomic of the 32 equal ones. The last program to ask sets the counter back to 0.
    """
    tile_full, tile_empty = tile_bars
    mbarrier.wait(tile_empty.index(i_tile & 1), ((i_tile >> 1) & 1) ^ 1)
    seen = gl.inline_asm_elementwise(
        "{ .reg .b32 t; atom.global.gpu.relaxed.add.u32 t, [$1], 1; shfl.sync.idx.b32 $0, t, 0, 31, 0xffffffff; }",
        "=r,l", [Counter], dtype=gl.int32, is_pure=False, pack=1,
    )  # fmt: skip
    keep(tile_smem, i_tile, 0, seen // 32)
    tile = told(tile_smem, i_tile, 0)  # what ptxas knows to be the same in all lanes
    if tile == n_tiles + gl.num_programs(0) - 1:
        gl.store(Counter, 0)
    return tile


@gluon.jit
def take_tiles(tile_smem, tile_bars, Counter, n_tiles, LOOK_UP: gl.constexpr, problem):
    """What the warp that takes tiles does; LOOK_UP(tile, problem) gives the numbers to `tell`."""
    i_tile = 0
    tile = next_tile(Counter, n_tiles, tile_smem, tile_bars, i_tile)
    while tile < n_tiles:
        tell(tile_smem, tile_bars, i_tile, LOOK_UP(tile, problem))
        i_tile += 1
        tile = next_tile(Counter, n_tiles, tile_smem, tile_bars, i_tile)
    # none is left
    mbarrier.arrive(tile_bars[0].index(i_tile & 1), count=1)


@gluon.jit
def keep(tile_smem, i_tile, i: gl.constexpr, number):
    """Number i of what the warpgroups are told of the i-th tile."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    place = (i_tile & 1) * TOLD + i
    tile_smem.index(place).store(gl.full([1], number, gl.int32, layout=layout))


@gluon.jit
def tell(tile_smem, tile_bars, i_tile, numbers):
    """Put down, for the other warps, the numbers of a tile from 1 on; none is below 0."""
    tile_full, tile_empty = tile_bars
    for i in gl.static_range(len(numbers)):
        keep(tile_smem, i_tile, i + 1, numbers[i])
    # all lanes have written before one of them arrives, which racecheck sees only where they read as well
    bits = 0
    for i in gl.static_range(len(numbers)):
        bits |= told(tile_smem, i_tile, i + 1)
    mbarrier.arrive(tile_full.index(i_tile & 1), count=1, pred=bits >= 0)


@gluon.jit
def told_numbers(tile_smem, i_tile):
    """Batch and head, group, and where the lists begin and end."""
    return (
        told(tile_smem, i_tile, 1), told(tile_smem, i_tile, 2), told(tile_smem, i_tile, 3), told(tile_smem, i_tile, 4),
        told(tile_smem, i_tile, 5),
    )  # fmt: skip


@gluon.jit
def told(tile_smem, i_tile, i: gl.constexpr):
    """Number i of what is told of a tile: 0 is the tile, the others are those of `tell`."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    return gl.max(tile_smem.index((i_tile & 1) * TOLD + i).load(layout), 0)


@gluon.jit
def shared_tile(tile_smem, tile_bars, i_tile):
    """The i-th tile of this program. `was_told` is to follow when everything told of it was read."""
    tile_full, tile_empty = tile_bars
    mbarrier.wait(tile_full.index(i_tile & 1), (i_tile >> 1) & 1)
    return told(tile_smem, i_tile, 0)


@gluon.jit
def was_told(tile_bars, i_tile):
    """The slot of the i-th tile may be used again."""
    tile_full, tile_empty = tile_bars
    mbarrier.arrive(tile_empty.index(i_tile & 1), count=1)


@gluon.jit
def tile_barriers():
    """Two slots for what is told of a tile, and their barriers, ready."""
    tile_smem = gl.allocate_shared_memory(gl.int32, [2 * TOLD, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    tile_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    tile_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(2):
        mbarrier.init(tile_full.index(i), count=1)
        mbarrier.init(tile_empty.index(i), count=3)  # two warpgroups and the copying warp
    return tile_smem, (tile_full, tile_empty)


@gluon.jit
def parts_of_schedule(Schedule, Indices, n_layout_groups, n_entries, BLOCK_SIZE: gl.constexpr):
    """Order, counts and places of shared blocks, and what to load: the parts of a work order (work_order.py)."""
    Unions = Schedule + 1 + n_layout_groups
    Places = Unions + n_layout_groups
    Entries = Indices
    if BLOCK_SIZE == 64:
        Entries = Places + n_entries
    return Schedule, Unions, Places, Entries


@gluon.jit
def tile_place(Order, tile, n_groups, n_batch_heads, num_heads, heads_per_list, heads_per_tile, heads_beside):
    """(batch and head, group of rows) of a tile; of a tile of several query heads, the first of them says the order.

    `heads_beside` heads, which share k and v, follow each other with the same place in the order: with one layout for
    all of them they go through the same blocks at a time.
    """
    n_long = gl.load(Order)
    n_first = n_long * n_batch_heads
    batch_head = tile % n_batch_heads
    rank = tile // n_batch_heads
    if tile >= n_first:
        rest = (tile - n_first) // heads_beside
        n_rest = n_groups - n_long
        batch_head = rest // n_rest * heads_beside + (tile - n_first) % heads_beside
        rank = n_long + rest % n_rest
    head = (batch_head % num_heads) * heads_per_tile
    return batch_head, gl.load(Order + 1 + (head // heads_per_list) * n_groups + rank)


@gluon.jit
def count_below(Indices, lo, hi, bound, other_bound):
    """How many entries of the sorted list are below two bounds: they are its first ones."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    n = 0
    n_other = 0
    for e in range(lo, hi, COUNT_LANES):
        lanes = e + gl.arange(0, COUNT_LANES, layout=layout)
        index = gl.load(Indices + lanes, mask=lanes < hi, other=2147483647)
        n += gl.sum((index < bound).to(gl.int32), 0)
        n_other += gl.sum((index < other_bound).to(gl.int32), 0)
    return n, n_other
