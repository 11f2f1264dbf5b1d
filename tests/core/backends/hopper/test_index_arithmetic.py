"""Index arithmetic of the Hopper kernels, run as plain Python: which tile comes next."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("triton.experimental.gluon")
from triton.experimental.gluon import language

from dilated_attention_pytorch.backends.hopper.kernels import tile_scheduler


class Number(int):
    """An int that has the methods of a scalar of a kernel."""

    def to(self, _: object) -> Number:
        return self


def arithmetic(name: str) -> Callable[[Number, int], Number]:
    return lambda self, other: Number(getattr(int, name)(self, int(other)))


for operator in ("add", "sub", "mul", "floordiv", "mod", "and", "rshift", "xor"):
    setattr(Number, f"__{operator}__", arithmetic(f"__{operator}__"))
    setattr(Number, f"__r{operator}__", arithmetic(f"__r{operator}__"))


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
