"""Which work tile comes next: one warp reads a counter in global memory and publishes the tile in shared memory.

Finding a tile takes three dependent loads (over 2 us), longer than the pipeline stays full, so a dedicated warp works one
or two tiles ahead.

Rows and columns differ in length (causal, global tokens, chosen from the content), so a tile goes to whichever program is
free, the longest first. `order` (work_order.py) holds the number of long groups, then for every layout head its groups of rows (or columns)
by length. The long groups go first, for all heads; the others follow by heads that share k and v and then row by row, so that
tiles that run at the same time share k and v in the L2 cache.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from ..gluon_names import aggregate
from .layouts import FLAT_LAYOUT
from .pipeline import barriers, init_barriers

COUNT_LANES = gl.constexpr(128)
# Numbers of a published tile: which it is; batch and head, group of rows or columns, where its lists begin and end; in the
# forward with a mask also, for each of two lists, how many of its entries some query sees and how many need no mask.
NUMBERS_PER_TILE = gl.constexpr(10)


@aggregate
class WorkQueue:
    """Two slots for published tiles, and the barriers that tell when a slot is full and when it is empty."""

    numbers: gl.shared_memory_descriptor
    full: gl.shared_memory_descriptor
    empty: gl.shared_memory_descriptor


@aggregate
class WorkTile:
    """A published tile: its lists are those of two rows (columns), or the distance classes of one."""

    batch_head: gl.tensor
    group: gl.tensor
    lo: gl.tensor
    middle: gl.tensor
    hi: gl.tensor


@aggregate
class Heads:
    """`num` heads have tiles of their own: query heads, or key heads in the dkdv pass; `batched`: times the batch."""

    num: gl.tensor
    batched: gl.tensor
    per_kv: gl.tensor
    per_list: gl.tensor


@aggregate
class BlockLists:
    """The lists of rows or columns, and the work order (see `block_lists`)."""

    offsets: gl.tensor
    indices: gl.tensor
    order: gl.tensor
    unions: gl.tensor
    places: gl.tensor
    entries: gl.tensor


@gluon.jit
def allocate_queue(NUMBERS: gl.constexpr = NUMBERS_PER_TILE, READERS: gl.constexpr = 3):
    """A work queue for tiles of so many numbers, ready to use; READERS: two warpgroups and the loading warps."""
    numbers = gl.allocate_shared_memory(gl.int32, [2 * NUMBERS, 1], FLAT_LAYOUT)
    full = barriers(2)
    empty = barriers(2)
    init_barriers(full, 1, empty, READERS)
    return WorkQueue(numbers, full, empty)


@gluon.jit
def scheduler_warp(
    queue, Counter, n_tiles, FIND: gl.constexpr, lists, heads, grid, config, SIGNED: gl.constexpr = False
):  # fmt: skip
    """Publish tiles until none is left; FIND(tile, lists, heads, grid, config) gives the numbers of a tile from 1 on."""
    i_tile = 0
    tile = next_tile(queue, Counter, n_tiles, i_tile)
    while tile < n_tiles:
        publish_work_tile(queue, i_tile, FIND(tile, lists, heads, grid, config), SIGNED)
        i_tile += 1
        tile = next_tile(queue, Counter, n_tiles, i_tile)
    # none is left
    mbarrier.arrive(queue.full.index(i_tile & 1), count=1)


@gluon.jit
def next_tile(queue, Counter, n_tiles, i_tile):
    """Take the next tile; n_tiles or more when none is left.

    Every lane of the warp adds 1, and the counter counts lanes: an atomic of a single lane is a branch, after which ptxas
    wrongly takes the warp for converged. It merges the 32 equal atomics into one. The last program to ask resets the counter.
    """
    mbarrier.wait(queue.empty.index(i_tile & 1), ((i_tile >> 1) & 1) ^ 1)
    count = gl.inline_asm_elementwise(
        "{ .reg .b32 t; atom.global.gpu.relaxed.add.u32 t, [$1], 1; shfl.sync.idx.b32 $0, t, 0, 31, 0xffffffff; }",
        "=r,l", [Counter], dtype=gl.int32, is_pure=False, pack=1,
    )  # fmt: skip
    write_number(queue, i_tile, 0, count // 32)
    tile = read_number(queue, i_tile, 0)  # read back, so that ptxas knows it to be equal in all lanes
    if tile == n_tiles + gl.num_programs(0) - 1:
        gl.store(Counter, 0)
    return tile


@gluon.jit
def write_number(queue, i_tile, i: gl.constexpr, number):
    """Write number i of the i_tile-th tile of this program."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    place = (i_tile & 1) * (queue.numbers.shape[0] // 2) + i
    queue.numbers.index(place).store(gl.full([1], number, gl.int32, layout=layout))


@gluon.jit
def read_number(queue, i_tile, i: gl.constexpr):
    """Number i of the i_tile-th tile of this program: 0 is the tile, the others are those that were published."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    place = (i_tile & 1) * (queue.numbers.shape[0] // 2) + i
    return gl.max(queue.numbers.index(place).load(layout), 0)


@gluon.jit
def publish_work_tile(queue, i_tile, numbers, SIGNED: gl.constexpr = False):
    """Publish the numbers of a tile from 1 on. Without SIGNED none is negative, else the first is not."""
    for i in gl.static_range(len(numbers)):
        write_number(queue, i_tile, i + 1, numbers[i])
    # all lanes have written before one arrives; racecheck sees that only where they also read
    bits = 0
    if SIGNED:
        bits = read_number(queue, i_tile, 1)
    for i in gl.static_range(len(numbers)):
        if SIGNED:
            bits = gl.maximum(bits, read_number(queue, i_tile, i + 1))
        else:
            bits |= read_number(queue, i_tile, i + 1)
    mbarrier.arrive(queue.full.index(i_tile & 1), count=1, pred=bits >= 0)


@gluon.jit
def wait_work_tile(queue, i_tile):
    """Wait for the i_tile-th tile of this program; `release_work_tile` must follow once its numbers are read."""
    mbarrier.wait(queue.full.index(i_tile & 1), (i_tile >> 1) & 1)
    return read_number(queue, i_tile, 0)


@gluon.jit
def read_work_tile(queue, i_tile):
    """Batch and head, group, and where the lists begin and end."""
    return WorkTile(
        read_number(queue, i_tile, 1), read_number(queue, i_tile, 2), read_number(queue, i_tile, 3),
        read_number(queue, i_tile, 4), read_number(queue, i_tile, 5),
    )  # fmt: skip


@gluon.jit
def release_work_tile(queue, i_tile):
    """Let the slot of the i_tile-th tile be used again."""
    mbarrier.arrive(queue.empty.index(i_tile & 1), count=1)


@gluon.jit
def block_lists(Offsets, Indices, WorkOrder, n_layout_groups, n_entries, BLOCK_SIZE: gl.constexpr):
    """The parts of a work order (`ListOrder` in work_order.py): order, blocks per group, place of every entry among them, entries to load."""
    Unions = WorkOrder + 1 + n_layout_groups
    Places = Unions + n_layout_groups
    Entries = Indices
    if BLOCK_SIZE == 64:
        Entries = Places + n_entries
    return BlockLists(Offsets, Indices, WorkOrder, Unions, Places, Entries)


@gluon.jit
def work_tile_coords(order, tile, n_groups, heads, heads_per_tile, heads_beside):
    """(batch and head, group of rows) of a tile; a tile of several query heads follows the order of the first of them.

    `heads_beside` heads, which share k and v, come one after the other at the same place of the order: with one layout for
    all of them they read the same blocks at the same time.
    """
    n_long = gl.load(order)
    n_first = n_long * heads.batched
    batch_head = tile % heads.batched
    rank = tile // heads.batched
    if tile >= n_first:
        rest = (tile - n_first) // heads_beside
        n_rest = n_groups - n_long
        batch_head = rest // n_rest * heads_beside + (tile - n_first) % heads_beside
        rank = n_long + rest % n_rest
    head = (batch_head % heads.num) * heads_per_tile
    return batch_head, gl.load(order + 1 + (head // heads.per_list) * n_groups + rank)


@gluon.jit
def count_below(Indices, lo, hi, bound, other_bound):
    """How many entries of a sorted list are below two bounds: they are its first ones."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    n = 0
    n_other = 0
    for e in range(lo, hi, COUNT_LANES):
        lanes = e + gl.arange(0, COUNT_LANES, layout=layout)
        index = gl.load(Indices + lanes, mask=lanes < hi, other=2147483647)
        n += gl.sum((index < bound).to(gl.int32), 0)
        n_other += gl.sum((index < other_bound).to(gl.int32), 0)
    return n, n_other
