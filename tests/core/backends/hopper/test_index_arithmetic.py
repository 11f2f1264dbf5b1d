"""Index arithmetic of the Hopper kernels, run as plain Python: which tile comes next, and whose lse goes with which q."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton.experimental.gluon")
from triton.experimental.gluon import language

from dilated_attention_pytorch import BlockLayout
from dilated_attention_pytorch.backends.hopper.kernels import backward, tile_scheduler
from tests.core.backends.hopper.cases import offsets_of, work_order

ENTRIES, ORDER = 10**6, 2 * 10**6  # where lists and order lie in the memory of a test; the offsets begin at 0


class Number(int):
    """An int that has the methods of a scalar of a kernel."""

    def to(self, _: object) -> Number:
        return self


def arithmetic(name: str) -> Callable[[Number, int], Number]:
    return lambda self, other: Number(getattr(int, name)(self, int(other)))


for operator in ("add", "sub", "mul", "floordiv", "mod", "and", "rshift", "xor"):
    setattr(Number, f"__{operator}__", arithmetic(f"__{operator}__"))
    setattr(Number, f"__r{operator}__", arithmetic(f"__r{operator}__"))


class Anything:
    """What the arithmetic does not look into: shared memory, barriers."""

    def __getattr__(self, _: str) -> Anything:
        return Anything()

    def __call__(self, *_: object, **__: object) -> Anything:
        return Anything()


def language_over(memory: dict[int, int]) -> Any:
    """Of Gluon what the functions below use; a load from a place that is not there is a KeyError."""
    return SimpleNamespace(
        load=lambda place, mask=True, other=0: Number(memory[place]) if mask else Number(other),
        minimum=lambda a, b: Number(min(a, b)),
        where=lambda condition, a, b: Number(a if condition else b),
        static_range=range,
        int64=None,
        constexpr=language.constexpr,
    )


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("kv_heads", "heads_per_kv"), [(1, 1), (3, 1), (2, 4), (1, 5)])
@pytest.mark.parametrize("n_groups", [1, 2, 5])
def test_every_tile_is_taken_once(
    batch: int, kv_heads: int, heads_per_kv: int, n_groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = kv_heads * heads_per_kv
    shuffled = random.Random(0)
    for layout_heads, n_long in itertools.product({1, kv_heads, heads}, range(n_groups + 1)):
        orders = [shuffled.sample(range(n_groups), n_groups) for _ in range(layout_heads)]
        memory = dict(enumerate([n_long, *itertools.chain.from_iterable(orders)]))
        monkeypatch.setattr(tile_scheduler, "gl", language_over(memory))
        # dq pass: a tile of every head; dkdv pass: one for all heads that share k and v
        for own_heads, per_tile, beside in ((heads, 1, heads_per_kv), (kv_heads, heads_per_kv, 1)):
            n_batch_heads = batch * own_heads
            numbers = SimpleNamespace(num=own_heads, batched=n_batch_heads, per_list=heads // layout_heads)
            taken = [
                tile_scheduler.work_tile_coords.fn(
                    Number(0), Number(tile), n_groups, numbers, per_tile, beside
                )
                for tile in range(n_groups * n_batch_heads)
            ]
            assert set(taken) == set(itertools.product(range(n_batch_heads), range(n_groups)))
            ranks = [
                orders[head % own_heads * per_tile * layout_heads // heads].index(group)
                for head, group in taken
            ]
            n_first = n_long * n_batch_heads
            assert all(rank < n_long for rank in ranks[:n_first])
            if beside > 1:
                for tile in range(n_first, len(taken), beside):
                    together = taken[tile : tile + beside]
                    assert len({head // beside for head, _ in together}) == 1
                    assert len(set(ranks[tile : tile + beside])) == 1


def queries_and_stats(
    layout: BlockLayout, heads: int, kv_heads: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[int, int]]:
    """For every step of the dkdv pass: the batch and head of which q is loaded, and that of which lse and delta are."""
    block, per_kv = layout.block_size, heads // kv_heads
    per_group = 128 // block
    cols = layout.lists()[1]
    order = work_order(layout)[offsets_of(layout).columns_at :]
    n_lists, n_groups = layout.grid.n_cols, -(-layout.grid.n_cols // per_group)
    entries = cols.indices
    if block == 64:  # the blocks of both columns of a group
        entries = order[1 + 2 * layout.num_heads * n_groups + layout.num_active_blocks :]
    memory = dict(enumerate(cols.indptr.tolist()))
    memory |= {ENTRIES + i: entry for i, entry in enumerate(entries.tolist())}
    memory |= {ORDER + i: number for i, number in enumerate(order.tolist())}
    stride = layout.grid.n_rows * block * 2  # of lse and delta of a head
    n_tiles, per_list = n_groups * batch * kv_heads, heads // layout.num_heads
    lists = SimpleNamespace(offsets=Number(0), order=Number(ORDER), entries=Number(ENTRIES))
    numbers = SimpleNamespace(
        num=Number(kv_heads), batched=Number(batch * kv_heads), per_kv=Number(per_kv), per_list=per_list
    )
    grid = SimpleNamespace(
        n_groups=n_groups, n_lists=n_lists, n_rows=Number(layout.grid.n_rows), kept_token=Number(0),
        streamed_token=Number(0),
    )  # fmt: skip
    config = SimpleNamespace(D=64, TILE=64, BLOCK_SIZE=block, STAGES=3, SLOTS=2, DKDV=True)
    steps: list[tuple[int, int]] = []
    loaded = []

    def load_tokens(desc: Any, _boxes: Any, _full: Any, _i: Any, i_batch: int, head: int, *_: Any) -> None:
        if desc.name == "q":
            loaded.append(i_batch * heads + head)

    def read_work_tile(_: object, i_tile: int) -> Any:
        names = ("batch_head", "group", "lo", "middle", "hi")
        published = backward.find_lists.fn(Number(i_tile), lists, numbers, grid, config)
        return SimpleNamespace(**dict(zip(names, published, strict=True)))

    class LseStages(Anything):
        def index(self, _: object) -> Any:
            return SimpleNamespace(store=lambda head: steps.append((loaded[-1], head)))

    for name, function in {
        "gl": language_over(memory),
        "work_tile_coords": tile_scheduler.work_tile_coords.fn,
        "wait_work_tile": lambda _, i_tile: min(i_tile, n_tiles),
        "read_work_tile": read_work_tile,
        "release_work_tile": Anything(),
        "mbarrier": Anything(),
        "reinterpret": Anything(),
        "stats_of_head": backward.stats_of_head.fn,
        "load_stats": lambda stats, *_: (stats // stride, 0),
        "load_tokens": load_tokens,
    }.items():
        monkeypatch.setattr(backward, name, function)
    monkeypatch.setattr(tile_scheduler, "gl", language_over(memory))
    some = Anything()
    inputs = SimpleNamespace(
        **{
            field: SimpleNamespace(name=name, layout=None)
            for field, name in {"kept_qk": "k", "kept_gv": "v", "qk": "q", "gv": "grad_out"}.items()
        }
    )
    streams = SimpleNamespace(qk=some, gv=some, lse=LseStages(), delta=some)
    backward.producer.fn(inputs, some, streams, some, lists, Number(0), numbers, grid, config)
    return steps


def per_head_layout(block: int, unseen: list[tuple[int, int]], heads: int) -> BlockLayout:
    """All blocks, but the columns that a head does not see."""
    n = 512 // block
    mask = torch.ones(heads, n, n, dtype=torch.bool)
    for head, column in unseen:
        mask[head, :, column] = False
    return BlockLayout.from_dense(mask, block, 512, 512)


@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    "unseen",
    [
        [],
        [(0, 2), (0, 3)],
        [(1, 0), (1, 1), (2, 1)],
        [(0, 0), (0, 1), (1, 0), (1, 1), (5, 2), (5, 3), (7, 1)],
    ],
    ids=["nothing", "first", "second", "several"],
)
def test_lse_is_that_of_the_queries(
    block: int, batch: int, unseen: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = per_head_layout(block, unseen, 8)
    steps = queries_and_stats(layout, 8, 2, batch, monkeypatch)
    assert all(query == stats for query, stats in steps)
    mask = layout.to_dense()
    if block == 64:  # a block that either column of a group sees
        mask = mask.view(8, 8, 4, 2).any(-1)
    assert len(steps) == batch * int(mask.sum()) * block // 64


def test_lse_of_one_layout_for_all_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[:, 1] = False
    steps = queries_and_stats(BlockLayout.from_dense(mask, 128, 512, 512), 4, 2, 2, monkeypatch)
    assert all(query == stats for query, stats in steps)
    assert len(steps) == 2 * 4 * 12 * 2
