"""The order of the rows and the blocks that neighbours share, beside a definition in plain Python loops."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import (
    BlockLayout,
    BlockSparseAttention,
    SparsePatternConfig,
    block_sparse_attention,
)
from dilated_attention_pytorch.backends.registry import CPU
from dilated_attention_pytorch.config import PatternType, TokenDilation
from tests.core.backends.hopper.cases import offsets_of, work_order

Rows = list[list[int]]  # the active columns of every row of one head


@dataclasses.dataclass
class Order:
    """The rows' or the columns' part of a work order; the lists of the last four have one entry per head."""

    n_long: int
    order: list[list[int]]
    unions: list[list[int]]
    places: list[int]
    columns: list[int]


def quarter_octave(length: Fraction) -> int:
    """The greatest e with 2 ** (e / 4) <= length, by trying them."""
    e = 0
    while Fraction(2) ** (e + 1) <= length**4:
        e += 1
    return e


def alternating(first: list[int], second: list[int]) -> list[int]:
    """Two lists merged: between two columns that both have, each list's are spread evenly, the first list's before equals."""
    shared = [*sorted(set(first) & set(second)), None]
    merged: list[int] = []
    begin = -1
    for end in shared:
        keyed = []
        for which, row in enumerate((first, second)):
            own = [column for column in row if column > begin and (end is None or column < end)]
            keyed += [(Fraction(2 * i + 1, 2 * len(own)), which, column) for i, column in enumerate(own)]
        merged += [column for _, _, column in sorted(keyed)]
        if end is not None:
            merged.append(end)
            begin = end
    return merged


def slow_order(heads: Sequence[Rows], block_size: int) -> Order:
    """What `order_lists` says of the rows of all heads, one group of 128 tokens after the other."""
    per_group = {64: 2, 128: 1}[block_size]
    order: list[list[int]] = []
    unions: list[list[int]] = []
    places: list[int] = []
    columns: list[int] = []
    longs: list[int] = []
    for rows in heads:
        groups = [rows[i : i + per_group] for i in range(0, len(rows), per_group)]
        lengths = [sum(len(row) for row in group) for group in groups]
        mean = max(Fraction(sum(lengths), len(groups)), Fraction(1))
        levels = [quarter_octave(Fraction(max(length, 1))) for length in lengths]
        longs.append(sum(level > quarter_octave(2 * mean) for level in levels))
        # of equals the first comes first: neighbours stay together
        order.append([i for _, i in sorted(zip([-level for level in levels], range(len(groups))))])
        unions.append([])
        for group in groups:
            merged = alternating(group[0], group[1] if len(group) > 1 else [])
            unions[-1].append(len(merged))
            places += [merged.index(column) for row in group for column in row]
            n_shared = sum(map(len, group)) - len(merged)
            columns += [2 * column + (sum(column in row for row in group) > 1) for column in merged]
            columns += [-1] * n_shared
    return Order(max(longs), order, unions, places, columns)


def parts(made: Tensor, layout: BlockLayout, n_lists: int) -> Order:
    """A part of a work order taken apart; at block size 128 nothing is shared, so the last two parts are not there."""
    assert made.dtype == torch.int32
    assert made.device == layout.device
    n_groups = -(-n_lists // (128 // layout.block_size))
    n_entries = layout.num_active_blocks if layout.block_size == 64 else 0
    n = layout.num_heads * n_groups
    n_long, order, unions, places, columns = made.split([1, n, n, n_entries, n_entries])
    return Order(
        int(n_long),
        order.view(layout.num_heads, n_groups).tolist(),
        unions.view(layout.num_heads, n_groups).tolist(),
        places.tolist(),
        columns.tolist(),
    )


def rows_of(layout: BlockLayout) -> list[Rows]:
    return [layout.rows(head) for head in range(layout.num_heads)]


def columns_of(layout: BlockLayout) -> list[Rows]:
    """The active rows of every column of every head."""
    n_cols = layout.grid.n_cols
    return [
        [[r for r, row in enumerate(rows) if c in row] for c in range(n_cols)] for rows in rows_of(layout)
    ]


def parts_of_rows(layout: BlockLayout, dilation: TokenDilation | None = None) -> Order:
    """The rows' part of the tensor of a layout; with token dilation test_column_groups.py has the rest."""
    made, grid = work_order(layout, dilation), layout.grid
    n_groups = -(-grid.n_rows // (128 // layout.block_size))
    n_shared = 2 * layout.num_active_blocks if layout.block_size == 64 else 0
    length = 1 + 2 * layout.num_heads * n_groups + n_shared
    n_singles = 1 + 2 * layout.num_heads * grid.n_rows if n_shared else 0
    assert offsets_of(layout, dilation).rows.size == length + n_singles
    return parts(made[:length], layout, grid.n_rows)


def test_single_rows_are_ordered_as_groups_are() -> None:
    mask = torch.rand(2, 9, 14) < torch.rand(2, 9, 1)
    layout = BlockLayout.from_dense(mask, 64)
    offsets = offsets_of(layout).rows
    singles = work_order(layout)[offsets.singles : offsets.size]
    of_large = BlockLayout.from_dense(mask, 128)
    assert torch.equal(singles, work_order(of_large)[: offsets_of(of_large).rows.size])


def parts_of_columns(layout: BlockLayout) -> Order:
    """The columns' part, which begins at a multiple of 16 bytes."""
    offsets = offsets_of(layout)
    assert offsets.columns_at % 4 == 0
    assert work_order(layout).numel() == offsets.columns_at + offsets.columns.size
    return parts(work_order(layout)[offsets.columns_at :], layout, layout.grid.n_cols)


def check(layout: BlockLayout, dilation: TokenDilation | None = None) -> None:
    pairs = [(parts_of_rows(layout, dilation), rows_of(layout))]
    if dilation is None:
        pairs.append((parts_of_columns(layout), columns_of(layout)))
    for found, lists in pairs:
        wanted = slow_order(lists, layout.block_size)
        if layout.block_size == 128:
            wanted = dataclasses.replace(
                wanted, unions=[[0] * len(row) for row in wanted.order], places=[], columns=[]
            )
        assert found == wanted


def skewed(block_size: int, n_rows: int, heads: int = 1) -> BlockLayout:
    """One row sees all, some see nothing, the others a few blocks; heads differ."""
    mask = torch.rand(heads, n_rows, n_rows) < 0.15
    for head in range(heads):
        mask[head, (5 + 3 * head) % n_rows] = True
        mask[head, (head + 2) % n_rows] = False
        mask[head, -1] = False
    return BlockLayout.from_dense(mask, block_size)


def built(block_size: int, tokens: int, *ratios: float, causal: bool = False) -> BlockLayout:
    """Patterns of different densities, one for each head."""
    kinds: list[PatternType] = ["dilated_sparse", "local_window", "global_local"]
    configs = [
        SparsePatternConfig(kind, block_size, ratio, global_tokens=block_size * (kind == "global_local"))
        for kind, ratio in zip(kinds, ratios)
    ]
    return BlockLayout.from_config(configs, tokens, causal=causal)


LAYOUTS = {
    "one_block": lambda block: built(block, 1, 1.0),
    "two_blocks": lambda block: built(block, 2 * block, 1.0),
    "dilated": lambda block: built(block, 21 * block, 0.2),
    "causal": lambda block: built(block, 20 * block, 0.4, causal=True),
    "odd_rows": lambda block: built(block, 17 * block - 5, 0.3),
    "odd_rows_causal": lambda block: built(block, 23 * block - 5, 1.0, causal=True),
    "global_local": lambda block: built(block, 40 * block, 0.05, 0.05, 0.05),
    "per_head": lambda block: built(block, 19 * block, 0.3, 0.1, 0.5),
    "per_head_causal": lambda block: built(block, 18 * block, 0.3, 0.9, causal=True),
    "skewed": lambda block: skewed(block, 33),
    "skewed_heads": lambda block: skewed(block, 15, heads=3),
    "nothing": lambda block: BlockLayout.from_dense(torch.zeros(2, 5, 7, dtype=torch.bool), block),
    "cross": lambda block: BlockLayout.from_config(
        SparsePatternConfig(block_size=block, sparsity_ratio=0.3), 7 * block + 3, 20 * block
    ),
    "chunk": lambda block: BlockLayout.from_config(
        SparsePatternConfig(block_size=block, sparsity_ratio=0.5), 5 * block, 12 * block, causal=True
    ),
}


@pytest.mark.parametrize("block_size", [64, 128])
@pytest.mark.parametrize("name", LAYOUTS)
def test_work_order_is_that_of_the_slow_definition(name: str, block_size: int) -> None:
    check(LAYOUTS[name](block_size))


@pytest.mark.parametrize("block_size", [64, 128])
@pytest.mark.parametrize("name", LAYOUTS)
def test_order_is_a_permutation_with_the_longest_first(name: str, block_size: int) -> None:
    layout = LAYOUTS[name](block_size)
    per_group = 128 // block_size
    for order, rows in zip(parts_of_rows(layout).order, rows_of(layout), strict=True):
        assert sorted(order) == list(range(-(-len(rows) // per_group)))
        lengths = [max(1, sum(len(row) for row in rows[i * per_group : (i + 1) * per_group])) for i in order]
        for before, after in itertools.combinations(lengths, 2):
            assert before * 2**0.25 > after


@pytest.mark.parametrize("block_size", [64, 128])
@pytest.mark.parametrize("name", LAYOUTS)
def test_long_groups_stand_at_the_front_and_have_more_than_twice_the_mean(name: str, block_size: int) -> None:
    layout = LAYOUTS[name](block_size)
    per_group = 128 // block_size
    least, most = 0, 0
    for rows in rows_of(layout):
        lengths = [sum(map(len, rows[i : i + per_group])) for i in range(0, len(rows), per_group)]
        twice = 2 * max(1, sum(lengths) / len(lengths))
        least = max(least, sum(length > twice * 2**0.25 for length in lengths))
        most = max(most, sum(length > twice for length in lengths))
    assert least <= parts_of_rows(layout).n_long <= most


def test_a_dense_row_is_long_and_one_of_many_equals_is_not() -> None:
    assert parts_of_rows(skewed(128, 33)).n_long == 1
    assert parts_of_rows(built(128, 40 * 128, 0.2)).n_long == 0
    # the longest is twice the mean, not more
    assert parts_of_rows(built(64, 40 * 64, 1.0, causal=True)).n_long == 0


def test_shared_blocks_are_counted_once() -> None:
    mask = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1], [0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]]).bool()
    found = parts_of_rows(BlockLayout.from_dense(mask, 64))
    # rows 0 and 1 see 0, 1, 3 and 1, 2, 3; row 2 nothing and row 3 only 2; row 4 has no neighbour. Behind what both rows
    # have there is room
    assert found.unions == [[4, 1, 2]]
    assert found.places == [0, 1, 3, 1, 2, 3, 0, 0, 1]
    assert found.columns == [2 * 0, 2 * 1 + 1, 2 * 2, 2 * 3 + 1, -1, -1, 2 * 2, 2 * 0, 2 * 3]
    assert found.order == [[0, 2, 1]]


@pytest.mark.parametrize(
    ("first", "second", "owners"),
    [
        ("1111110000000000", "0000000011111100", "ABABABABABAB"),
        ("1110000011100000", "0001111100011111", "BABABBABBABABBAB"),
        ("1111000011110001", "0000111100001111", "ABABABABABABABAS"),
        ("1111110000000000", "0000100111111000", "AAAASBBBABBB"),
        ("1110000000000000", "0000000000000000", "AAA"),
    ],
)
def test_blocks_of_one_row_alternate_with_those_of_the_other(first: str, second: str, owners: str) -> None:
    """Also where the rows see blocks far apart; S is a block that both see."""
    mask = torch.tensor([[int(x) for x in row] for row in (first, second)]).bool()
    found = parts_of_rows(BlockLayout.from_dense(mask, 64))
    n = first.count("1")
    of_first, of_second = set(found.places[:n]), set(found.places[n:])
    names = {(True, False): "A", (False, True): "B", (True, True): "S"}
    assert "".join(names[i in of_first, i in of_second] for i in range(found.unions[0][0])) == owners


# (bounds of the classes, the last class being without one; rates)
DILATIONS = {
    "two_classes": ((256,), (1, 4)),
    "three_classes": ((128, 512), (1, 2, 8)),
    "one_class": ((), (4,)),
}


def dilation_of(name: str, block_size: int) -> TokenDilation:
    bounds, rates = DILATIONS[name]
    return TokenDilation.from_user([*bounds, 64 * block_size], list(rates), block_size)  # type: ignore[return-value]


@pytest.mark.parametrize("name", DILATIONS)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_distance_classes_of_a_row_count_together(name: str, causal: bool) -> None:
    check(built(128, 21 * 128, 0.4, 0.2, causal=causal), dilation_of(name, 128))


@pytest.mark.parametrize("name", DILATIONS)
def test_distance_classes_at_block_size_64_are_no_error(name: str) -> None:
    # no kernel asks for it
    layout = built(64, 21 * 64, 0.4, 0.2)
    n = 2 * 11
    assert work_order(layout, dilation_of(name, 64))[: 1 + n].tolist() == work_order(layout)[: 1 + n].tolist()


# ---- where it is kept


def test_work_order_is_made_once_for_each_dilation() -> None:
    layout = built(128, 1280, 0.3)
    dilation = dilation_of("two_classes", 128)
    assert work_order(layout) is work_order(layout, None)
    assert work_order(layout, dilation) is work_order(layout, dilation_of("two_classes", 128))
    assert work_order(layout, dilation) is not work_order(layout)


def test_layout_keeps_only_a_few_work_orders() -> None:
    layout = built(128, 1280, 0.3)
    for i in range(1, 30):
        work_order(layout, TokenDilation.from_user([128 * i], [2], 128))
    assert len(layout._prepared) <= 8
    check(layout)


def test_moved_layout_makes_its_own() -> None:
    layout = built(64, 640, 0.3)
    work_order(layout)
    made = work_order(layout.to("meta"))
    assert made.device.type == "meta"
    assert made.shape == work_order(layout).shape
    assert layout.to("cpu") is layout


@pytest.mark.parametrize("made_before", [False, True], ids=["in_the_graph", "before"])
@pytest.mark.parametrize("block_size", [64, 128])
def test_backend_prepares_when_a_compiled_graph_runs(
    block_size: int, made_before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as on a device whose backend needs something of the layout
    monkeypatch.setattr(type(CPU), "prepare", lambda self, layout, dilation: (work_order(layout, dilation),))
    torch.compiler.reset()
    layout = built(block_size, 700, 0.5, causal=True)
    if made_before:
        work_order(layout)
    q, k, v = (torch.randn(1, 700, 2, 16, requires_grad=True) for _ in range(3))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return block_sparse_attention(q, k, v, layout, is_causal=True)

    attention = BlockSparseAttention(SparsePatternConfig(block_size=block_size), [256, 512], [1, 2])
    for function in (attend, attention):
        found = torch.compile(function, fullgraph=True, backend="aot_eager")(q, k, v)
        expected = function(q, k, v)
        torch.testing.assert_close(found, expected)
        grads = [torch.autograd.grad(out.sum(), (q, k, v)) for out in (found, expected)]
        for ours, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(ours, theirs)
    assert layout._prepared
    check(layout)


@pytest.mark.gpu
@pytest.mark.parametrize("block_size", [64, 128])
@pytest.mark.parametrize("name", LAYOUTS)
def test_work_order_made_on_the_gpu_is_that_of_the_cpu(name: str, block_size: int) -> None:
    layout = LAYOUTS[name](block_size)
    assert torch.equal(work_order(layout.to("cuda")).cpu(), work_order(layout))


@pytest.mark.gpu
def test_work_order_needs_no_synchronisation() -> None:
    layouts = [built(block, 100 * block, 0.1, 0.2).to("cuda") for block in (64, 128)]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for layout in layouts:
            work_order(layout)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("block_size", [64, 128])
def test_lists_of_batch_elements_are_ordered_as_those_of_heads(block_size: int) -> None:
    mask = torch.rand(3, 2, 7, 5) < 0.5
    of_batch, of_heads = (BlockLayout.from_dense(x, block_size) for x in (mask, mask.flatten(0, 1)))
    assert (of_batch.batch, of_heads.batch) == (3, 1)
    assert torch.equal(work_order(of_batch), work_order(of_heads))
