"""block_scores and select_blocks beside plain Python loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import block_scores, select_blocks
from dilated_attention_pytorch.grid import BlockGrid
from dilated_attention_pytorch.layout import selection
from dilated_attention_pytorch.layout.best_blocks import Choice

BLOCK = 16


# ---- scores


def slow_scores(q: Tensor, k: Tensor, causal: bool, scale: float) -> Tensor:
    """The mean query of a block times the mean key of another, one pair after the other."""
    grid = BlockGrid(q.shape[1], k.shape[1], BLOCK, causal)
    group = q.shape[2] // k.shape[2]
    scores = torch.full((q.shape[0], q.shape[2], grid.n_rows, grid.n_cols), -torch.inf, dtype=torch.float64)
    positions = torch.arange(q.shape[1]) + grid.q_offset
    for row in range(grid.n_rows):
        queries = q[:, positions // BLOCK - grid.first_row == row].double().mean(1)
        for col in range(grid.n_cols):
            if causal and col > row + grid.first_row:
                continue
            keys = k[:, col * BLOCK : (col + 1) * BLOCK].double().mean(1).repeat_interleave(group, 1)
            scores[:, :, row, col] = scale * (queries * keys).sum(-1)
    return scores


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [(64, 64), (100, 100), (5, 5), (90, 200), (30, 200), (7, 100), (100, 40)])
@pytest.mark.parametrize("heads", [(2, 2), (4, 2)])
def test_scores_are_products_of_means(causal: bool, lengths: tuple[int, int], heads: tuple[int, int]) -> None:
    """Also of blocks that are not whole: the first, where queries begin in the middle of a block, and the last."""
    q = torch.randn(2, lengths[0], heads[0], 8, dtype=torch.float64)
    k = torch.randn(2, lengths[1], heads[1], 8, dtype=torch.float64)
    found = block_scores(q, k, BLOCK, causal=causal)
    torch.testing.assert_close(found, slow_scores(q, k, causal, 8**-0.5), atol=1e-12, rtol=1e-12)
    wanted = slow_scores(q, k, causal, 0.3)
    torch.testing.assert_close(
        block_scores(q, k, BLOCK, causal=causal, softmax_scale=0.3), wanted, atol=1e-12, rtol=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_scores_of_half_precision_are_float32(dtype: torch.dtype) -> None:
    """Means and products in float32: 16 and 8 rounded additions of numbers of about 1, 1e-6."""
    q, k = (torch.randn(1, 64, 2, 8).to(dtype) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        found = block_scores(q, k, BLOCK)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), slow_scores(q, k, False, 8**-0.5), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_scores_are_differentiable(causal: bool) -> None:
    q, k = (torch.randn(1, 40, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(
        lambda q, k: block_scores(q, k, BLOCK, causal=causal).clamp(min=-1e3), (q, k)
    )


Q = torch.randn(1, 64, 4, 8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"q": None}, TypeError, "q must be a tensor, got NoneType"),
        ({"k": [1.0]}, TypeError, "k must be a tensor, got list"),
        ({"q": Q[0]}, ValueError, r"q must be a float32, float16, bfloat16 or float64 tensor \(batch.*\(64, 4, 8\)"),
        ({"k": Q.long()}, ValueError, r"k must be a float32, float16, bfloat16 or float64 tensor .*torch.int64"),
        ({"k": Q.double()}, ValueError, r"k must be torch.float32 on cpu as q, got torch.float64"),
        ({"k": Q.to("meta")}, ValueError, r"k must be torch.float32 on cpu as q, got torch.float32 on meta"),
        ({"k": Q.repeat(2, 1, 1, 1)}, ValueError, r"k must have q's batch 1 and head_dim 8, got shape \(2, 64, 4, 8\)"),
        ({"k": Q[..., :4]}, ValueError, r"head_dim 8, got shape \(1, 64, 4, 4\)"),
        ({"k": Q[:, :, :3]}, ValueError, "num_kv_heads must divide num_heads 4, got 3"),
        ({"q": Q[:, :0]}, ValueError, r"q must be .*\(1, 0, 4, 8\)"),
        ({"block_size": 10}, ValueError, "block_size must be"),
        ({"causal": 2}, TypeError, "causal must be True or False, got 2"),
        ({"softmax_scale": "x"}, TypeError, "softmax_scale must be a finite number, got 'x'"),
        ({"softmax_scale": math.inf}, ValueError, "softmax_scale must be a finite number, got inf"),
    ],
)  # fmt: skip
def test_errors_of_block_scores_name_the_argument(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        block_scores(**{"q": Q, "k": Q, "block_size": 16, **arguments})


# ---- selection


def slow_choice(
    scores: Tensor, num_blocks: int | None, top_p: float | None, **options: object
) -> list[set[int]]:
    """The blocks of every row of (heads, n_rows, n_cols), one after the other; distinct scores."""
    causal = bool(options.get("causal", False))
    n_rows, n_cols = scores.shape[-2:]
    chosen = []
    for i, row in enumerate(scores.reshape(-1, n_cols).double().tolist()):
        r = i % n_rows
        diagonal = r + n_cols - n_rows if causal else r * n_cols // n_rows
        visible = [c for c in range(n_cols) if not causal or c <= diagonal]
        window = int(options.get("window", 0))  # type: ignore[call-overload]
        kept = [c for c in visible if options.get("keep_diagonal", True) and c == diagonal]
        kept += [c for c in visible if c != diagonal and abs(c - diagonal) <= window]
        kept += [c for c in visible if c < int(options.get("sinks", 0)) and c not in kept]  # type: ignore[call-overload]
        others = [c for c in visible if c not in kept and row[c] > -math.inf]
        total = sum(math.exp(row[c]) for c in visible)
        take = list(kept)
        for c in sorted(others, key=lambda c: -row[c]):
            share = sum(math.exp(row[x]) for x in take) / total
            if (num_blocks is None or len(take) < num_blocks) and (top_p is None or share < top_p):
                take.append(c)
        chosen.append(set(take))
    return chosen


def chosen_of(scores: Tensor, *arguments: object, **options: object) -> list[set[int]]:
    indices, counts = select_blocks(scores, *arguments, **options)
    assert indices.dtype == counts.dtype == torch.int32
    assert indices.shape[:-1] == counts.shape == scores.shape[:-1]
    found = []
    for row, count in zip(indices.flatten(0, -2).tolist(), counts.flatten().tolist(), strict=True):
        assert set(row[count:]) <= {-1}
        assert len(set(row[:count])) == count
        found.append(set(row[:count]))
    return found


OPTIONS = {
    "diagonal": {},
    "no_diagonal": {"keep_diagonal": False},
    "window": {"window": 1},
    "sinks": {"sinks": 2},
    "all": {"window": 1, "sinks": 1},
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 9, 9), (3, 5, 12), (12, 5)])
@pytest.mark.parametrize("how", [(4, None), (None, 0.7), (6, 0.9), (50, None), (None, 1.0)])
@pytest.mark.parametrize("name", OPTIONS)
def test_chosen_blocks_are_the_best_ones(
    causal: bool, shape: tuple[int, ...], how: tuple[int | None, float | None], name: str
) -> None:
    scores = torch.randn(shape) * 2
    options = {**OPTIONS[name], "causal": causal}
    assert chosen_of(scores, *how, **options) == slow_choice(scores, *how, **options)


def test_indices_ascend_and_of_equal_scores_the_first_are_taken() -> None:
    scores = torch.tensor([[1.0, 3.0, 1.0, 1.0, 2.0], [0.0, -0.0, 0.0, 0.0, 0.0]])
    indices, _ = select_blocks(scores, 3, keep_diagonal=False)
    assert indices.tolist() == [[0, 1, 4], [0, 1, 2]]
    indices, counts = select_blocks(scores[1:], top_p=0.5, keep_diagonal=False)
    assert (indices.tolist(), counts.tolist()) == ([[0, 1, 2, -1, -1]], [3])


def test_scores_of_infinity_have_all_of_the_softmax() -> None:
    scores = torch.tensor([[0.0, torch.inf, 5.0, torch.inf, 1.0]])
    for top_p, wanted in ((0.4, {1}), (0.6, {1, 3}), (1.0, {1, 3})):
        assert chosen_of(scores, None, top_p, keep_diagonal=False) == [wanted]
    assert chosen_of(scores, 3) == [{0, 1, 3}]


@pytest.mark.parametrize("causal", [False, True])
def test_every_row_keeps_its_budget(causal: bool) -> None:
    scores, budgets = torch.randn(2, 3, 7, 7), torch.randint(0, 6, (2, 1, 7))
    found = chosen_of(scores, 4, window=1 if causal else 0, causal=causal, row_budgets=budgets)
    most = budgets.clamp(max=4).expand(2, 3, 7).flatten().tolist()
    for i, (row, budget) in enumerate(zip(scores.flatten(0, 2), most, strict=True)):
        diagonal = i % 7
        kept = {diagonal} | ({diagonal - 1} & set(range(7)) if causal else set())
        others = [c for c in range(7) if c not in kept and (c <= diagonal or not causal)]
        others.sort(key=lambda c: -float(row[c]))
        assert found[i] == kept | set(others[: max(0, budget - len(kept))])


@pytest.mark.parametrize("at_once", [1, 50, 100])
def test_rows_chosen_a_few_at_a_time_are_the_same(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    scores = torch.randn(2, 3, 7, 9)
    wanted = select_blocks(scores, 4, 0.8, causal=True)
    monkeypatch.setattr(selection, "SCORES_AT_ONCE", at_once)
    for found, other in zip(select_blocks(scores, 4, 0.8, causal=True), wanted, strict=True):
        assert torch.equal(found, other)


def test_blocks_without_a_score_are_chosen_only_where_they_are_always_kept() -> None:
    scores = torch.tensor(
        [[-torch.inf, torch.nan, 1.0], [-torch.inf, -torch.inf, -torch.inf], [0.0, torch.nan, -torch.inf]]
    )
    assert chosen_of(scores, 3) == [{0, 2}, {1}, {0, 2}]
    assert chosen_of(scores, 3, keep_diagonal=False) == [{2}, set(), {0}]
    assert chosen_of(scores, None, 1.0) == [{0, 2}, {1}, {0, 2}]


def test_as_many_indices_as_asked_for_or_as_there_are_columns() -> None:
    scores = torch.randn(4, 6)
    assert select_blocks(scores, 2)[0].shape == (4, 2)
    assert select_blocks(scores, 9)[0].shape == (4, 6)
    assert select_blocks(scores, top_p=0.1)[0].shape == (4, 6)


def test_scores_that_need_a_gradient_are_not_changed() -> None:
    scores = torch.randn(4, 4, requires_grad=True)
    before = scores.detach().clone()
    indices, _ = select_blocks(scores, 2, causal=True)
    assert not indices.requires_grad
    assert torch.equal(scores, before)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("how", [(4, None), (None, 0.6)])
def test_some_rows_choose_what_they_choose_among_all(
    causal: bool, how: tuple[int | None, float | None]
) -> None:
    """Rows in any order, by the columns of their diagonal blocks, int32 or int64."""
    scores, rows = torch.randn(2, 9, 9), torch.tensor([1, 2, 7, 8, 0])
    options = {"window": 1, "sinks": 1, "causal": causal}
    wanted = select_blocks(scores, *how, **options)
    for diagonal in (rows, rows.int()):
        found = select_blocks(scores[:, rows], *how, **options, diagonal=diagonal)
        for mine, of_all in zip(found, wanted, strict=True):
            assert torch.equal(mine, of_all[:, rows])


@pytest.mark.parametrize("top_p", [None, 0.5])
def test_operator_keeps_the_rules_of_operators(top_p: float | None) -> None:
    choose = torch.ops.dilated_attention_pytorch.chosen_blocks.default
    budgets = None if top_p is None else torch.tensor([1, 2, 3, 4, 5])
    torch.library.opcheck(choose, (torch.randn(2, 5, 7), budgets, 3, top_p, True, 1, 0, True))
    diagonal = torch.tensor([0, 3, 4, 5, 6])
    torch.library.opcheck(choose, (torch.randn(2, 5, 7), budgets, 3, top_p, True, 1, 0, True, diagonal))


# ---- the kernel


def hard_scores(dtype: torch.dtype, n_cols: int) -> Tensor:
    """(1, 9, n_cols): distinct scores, a few different ones, one, all magnitudes, infinities, nan, zeros, one score, none."""
    scores = torch.randn(9, n_cols)
    scores[1].round_()
    scores[2] = 0.5
    scores[3] *= 10.0 ** torch.randint(-30, 30, (n_cols,))
    scores[4, ::3], scores[4, 1::4] = -torch.inf, torch.inf
    scores[5, ::2] = torch.nan
    scores[6], scores[6, ::2] = -0.0, 0.0
    scores[7:] = -torch.inf
    scores[7, 2] = 1.0
    return scores.to(dtype)[None]


CHOICES = {
    "top_k": Choice(4, None, True, 0, 0, False),
    "all": Choice(12, None, True, 1, 1, True),
    "nothing_kept": Choice(3, None, False, 0, 0, True),
    "only_kept": Choice(1, None, True, 0, 0, False),
    "top_p": Choice(12, 0.6, True, 0, 0, False),
    "both": Choice(6, 0.9, True, 1, 1, True),
    "whole": Choice(12, 1.0, False, 0, 0, True),
}


@pytest.mark.interpreter
@pytest.mark.parametrize(
    ("name", "dtype", "n_cols", "with_budgets"),
    [
        *((name, torch.float32, 9, i % 2 == 0) for i, name in enumerate(CHOICES)),
        *((name, torch.float32, 40, name == "top_k") for name in ("top_k", "both")),
        *((name, dtype, 9, False) for name in ("top_k", "both") for dtype in (torch.bfloat16, torch.float16)),
    ],
)
def test_kernel_chooses_what_the_definition_chooses(
    name: str, dtype: torch.dtype, n_cols: int, with_budgets: bool
) -> None:
    from dilated_attention_pytorch.layout.device_selection import choose_on_device

    scores, choice = hard_scores(dtype, n_cols), CHOICES[name]
    choice = choice._replace(n_slots=min(choice.n_slots, n_cols))
    budgets = torch.randint(0, 9, (1, 9)) if with_budgets else None
    found = choose_on_device(scores, budgets, choice)
    wanted = selection.choose_a_few_at_a_time(scores, budgets, choice)
    for mine, other in zip(found, wanted, strict=True):
        assert mine.dtype == other.dtype == torch.int32
        assert torch.equal(mine, other)


@pytest.mark.interpreter
def test_kernel_chooses_of_more_rows_than_columns() -> None:
    from dilated_attention_pytorch.layout.device_selection import choose_on_device

    scores = torch.randn(1, 7, 3)
    for causal in (False, True):
        choice = Choice(2, None, True, 0, 0, causal)
        wanted = selection.choose_a_few_at_a_time(scores, None, choice)
        assert all(map(torch.equal, choose_on_device(scores, None, choice), wanted))


@pytest.mark.interpreter
def test_kernel_chooses_of_rows_with_given_diagonals() -> None:
    from dilated_attention_pytorch.layout.device_selection import choose_on_device

    scores, diagonal = torch.randn(2, 4, 9), torch.tensor([1, 2, 7, 8])
    for causal in (False, True):
        choice = Choice(4, None, True, 1, 0, causal)
        wanted = selection.choose_a_few_at_a_time(scores, None, choice, diagonal)
        assert all(map(torch.equal, choose_on_device(scores, None, choice, diagonal), wanted))


@pytest.mark.interpreter
def test_kernel_takes_scores_of_any_strides() -> None:
    from dilated_attention_pytorch.layout.device_selection import choose_on_device

    scores, choice = torch.randn(2, 3, 9), Choice(2, None, True, 0, 0, False)
    for strided in (
        scores.transpose(0, 1),
        scores.transpose(1, 2),
        scores[:, :, 1:],
        scores[:1].expand(3, 3, 9),
    ):
        wanted = selection.choose_a_few_at_a_time(strided, None, choice)
        assert all(map(torch.equal, choose_on_device(strided, None, choice), wanted))


def test_kernel_is_left_out_where_it_does_not_serve() -> None:
    pytest.importorskip("triton")
    from dilated_attention_pytorch.layout.device_selection import fits

    assert fits(torch.empty(1, 1, 16384))
    assert not fits(torch.empty(1, 1, 16385))
    assert not fits(torch.empty(1, 1, 8, dtype=torch.float64))


SCORES = torch.randn(2, 4, 5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"scores": [[1.0]]}, TypeError, "scores must be a floating point tensor .* got list"),
        ({"scores": SCORES.long()}, ValueError, "scores must be a floating point tensor .*torch.int64"),
        ({"scores": SCORES[0, 0]}, ValueError, r"of 2 to 4 axes, got .*\(5,\)"),
        ({"scores": SCORES[:, :0]}, ValueError, r"got .*\(2, 0, 5\)"),
        ({"scores": SCORES.to_sparse()}, ValueError, "scores must be .*sparse"),
        ({"num_blocks": None}, ValueError, "num_blocks or top_p must be given, got neither"),
        ({"num_blocks": 0}, ValueError, "num_blocks must be a number of blocks, at least 1, got 0"),
        ({"num_blocks": 2.0}, TypeError, "num_blocks must be a number of blocks, at least 1, got 2.0"),
        ({"top_p": 0.0}, ValueError, "top_p must be over 0 and at most 1, got 0.0"),
        ({"top_p": 1.5}, ValueError, "top_p must be over 0 and at most 1, got 1.5"),
        ({"top_p": "half"}, TypeError, "top_p must be over 0 and at most 1, got 'half'"),
        ({"keep_diagonal": "no"}, TypeError, "keep_diagonal must be True or False, got 'no'"),
        ({"causal": None}, TypeError, "causal must be True or False, got None"),
        ({"window": -1}, ValueError, "window must be a number of blocks, 0 or more, got -1"),
        ({"row_budgets": 3}, TypeError, r"row_budgets must be an int32 or int64 tensor \(..., n_rows\), got int"),
        ({"row_budgets": torch.ones(4)}, ValueError, "row_budgets must be int32 or int64, got torch.float32"),
        ({"row_budgets": torch.ones(5, dtype=torch.int32)}, ValueError, r"row_budgets must broadcast .* \(2, 4\), got shape \(5,\)"),
        ({"row_budgets": torch.ones(1, 1, 4, dtype=torch.int32)}, ValueError, r"row_budgets must broadcast .* \(1, 1, 4\)"),
        ({"diagonal": 3}, TypeError, r"diagonal must be an int32 or int64 tensor \(n_rows,\), got int"),
        ({"diagonal": torch.arange(5)}, ValueError, r"diagonal must have one column for each of the 4 rows .* \(5,\)"),
        ({"diagonal": torch.zeros(1, 4).int()}, ValueError, r"diagonal must have one column .* \(1, 4\)"),
        ({"sinks": 0.5}, TypeError, "sinks must be a number of blocks, 0 or more, got 0.5"),
        ({"window": 1}, ValueError, "num_blocks must be at least 3, which keep_diagonal=True, window=1 and sinks=0 .* got 2"),
        ({"num_blocks": 1, "sinks": 1}, ValueError, "num_blocks must be at least 2, which .* sinks=1 always keep, got 1"),
    ],
)  # fmt: skip
def test_errors_of_select_blocks_name_the_argument(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        select_blocks(**{"scores": SCORES, "num_blocks": 2, **arguments})


@pytest.mark.gpu
@pytest.mark.parametrize("how", [(4, None), (None, 0.7)])
def test_blocks_are_chosen_in_a_graph_as_outside_it(how: tuple[int | None, float | None]) -> None:
    q, k = (torch.randn(1, 640, 2, 64, device="cuda", dtype=torch.bfloat16) for _ in range(2))

    def choose() -> tuple[Tensor, Tensor]:
        return select_blocks(block_scores(q, k, 64, causal=True), *how, window=1, causal=True)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        choose()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = choose()
    q.normal_()
    graph.replay()
    for found, wanted in zip(captured, choose(), strict=True):
        assert torch.equal(found, wanted)


def test_scores_and_choice_compile_with_every_number_a_symbol() -> None:
    torch.compiler.reset()

    def choose(q: torch.Tensor) -> torch.Tensor:
        return select_blocks(block_scores(q, q, 16), 3)[0]

    compiled = torch.compile(choose, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((2, 100, 2, 16), (3, 140, 4, 8)):
        q = torch.randn(shape)
        assert torch.equal(compiled(q), choose(q))
