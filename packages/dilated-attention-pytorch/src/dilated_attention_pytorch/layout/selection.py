"""Which blocks to keep, chosen from the content: scores of block pairs from pooled q and k, and the best of each row.

Nothing here waits for a GPU, and all of it can be captured in a CUDA graph. `BlockLayout.from_indices` makes the layout.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import values
from .._torch_internals import as_of_call, is_for_the_dispatcher
from ..grid import BlockGrid
from ..launching.installed import HAS_TRITON
from ..op_library import LIBRARY, NAMESPACE, define
from ..samples import one_by_one
from ..values import DTYPES, shown
from .best_blocks import Choice, Rows, best_of, diagonal_of
from .block_indices import check_index_tensor
from .pooled import block_means, without_autocast

SCORES_AT_ONCE = 2**23  # of which rows are chosen together; at most about 40 bytes for each


# ---- scores


def block_scores(
    q: Tensor, k: Tensor, block_size: int, *, causal: bool = False, softmax_scale: float | None = None
) -> Tensor:
    """Scores of all pairs of blocks: the products of the mean query and the mean key of each block, differentiable.

    Takes 4 bytes for every pair of blocks and head (8 for float64), and the pooled q and k.

    Args:
        q: (batch, q_len, num_heads, head_dim), floating point.
        k: (batch, kv_len, num_kv_heads, head_dim); num_kv_heads divides num_heads (GQA, MQA).
        block_size: tokens per block side.
        causal: the last query sits at the last key, and blocks after a row's own get -inf.
        softmax_scale: default ``1 / sqrt(head_dim)``.

    Returns:
        (batch, num_heads, n_rows, n_cols), float32, or float64 for float64 inputs: the rows and columns of a `BlockLayout` of
        these lengths.

    Raises:
        ValueError: an argument does not fit the others, or is out of its range.
        TypeError: an argument is something else; the message names it.

    Examples:
        >>> q = k = torch.randn(1, 256, 4, 32)
        >>> indices, counts = select_blocks(block_scores(q, k, 64), num_blocks=2)
        >>> indices.shape, counts.unique().tolist()
        (torch.Size([1, 4, 4, 2]), [2])
    """
    check_pooled(q, k)
    scale = 1.0 / math.sqrt(q.shape[3]) if softmax_scale is None else values.number(softmax_scale)
    # a tracer has symbols for numbers
    if scale is None or not (torch.compiler.is_compiling() or math.isfinite(scale)):
        raise values.wrong(scale, f"softmax_scale must be a finite number, got {shown(softmax_scale)}")
    batch, q_len, num_heads, _ = q.shape
    kv_len, num_kv_heads = k.shape[1:3]
    grid = BlockGrid(q_len, kv_len, block_size, causal)
    rows = block_means(q, grid.block_size, grid.q_offset % grid.block_size) * scale
    cols = block_means(k, grid.block_size, 0)
    # (batch, num_kv_heads, heads of the group * n_rows, head_dim) by (batch, num_kv_heads, head_dim, n_cols)
    rows = rows.transpose(1, 2).reshape(batch, num_kv_heads, -1, q.shape[3])
    with without_autocast(q):
        scores = torch.matmul(rows, cols.permute(0, 2, 3, 1)).view(batch, num_heads, grid.n_rows, grid.n_cols)
    if not grid.causal:
        return scores
    col = torch.arange(grid.n_cols, device=q.device)
    return scores.masked_fill_(col > grid.diagonal(q.device)[:, None], -torch.inf)


def check_pooled(q: Any, k: Any) -> None:
    """Raise unless q and k are tensors of one attention call."""
    for name, x in (("q", q), ("k", k)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
        if x.is_nested or x.layout != torch.strided or x.dim() != 4 or 0 in x.shape or x.dtype not in DTYPES:
            raise ValueError(
                f"{name} must be a float32, float16, bfloat16 or float64 tensor (batch, seq_len, num_heads, head_dim), got {shown(x)}"
            )
        if x.device != q.device or x.dtype != q.dtype:
            raise ValueError(f"{name} must be {q.dtype} on {q.device} as q, got {x.dtype} on {x.device}")
    if (k.shape[0], k.shape[3]) != (q.shape[0], q.shape[3]):
        raise ValueError(
            f"k must have q's batch {q.shape[0]} and head_dim {q.shape[3]}, got shape {tuple(k.shape)}"
        )
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"num_kv_heads must divide num_heads {q.shape[2]}, got {k.shape[2]}")


# ---- selection


def select_blocks(
    scores: Tensor,
    num_blocks: int | None = None,
    top_p: float | None = None,
    *,
    keep_diagonal: bool = True,
    window: int = 0,
    sinks: int = 0,
    causal: bool = False,
    row_budgets: Tensor | None = None,
    diagonal: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The blocks with the highest scores in every row, as `BlockLayout.from_indices` takes them.

    Blocks of score -inf or NaN are not chosen, and of equal scores the first columns are. What is always kept
    (`keep_diagonal`, `window`, `sinks`) counts towards `num_blocks` and `top_p`, and comes before everything else.

    On a GPU a kernel chooses, which takes no memory beside the result. It serves float32, bfloat16 and float16, and up to
    16,384 columns. Elsewhere rows are chosen a few at a time, so beside the result that takes no more than about 400 MiB.
    Both give the same blocks; with `top_p`, where the sum comes within the rounding of the exponentials of it, one may take a
    block more. Shares below 2**-24 of that of the best block count as 0.

    Args:
        scores: floating point, (..., n_rows, n_cols), at most 4 axes, as `block_scores` makes them. No gradient flows to them.
        num_blocks: the most blocks of a row, of all that are kept.
        top_p: over 0 and up to 1: a row keeps its best blocks until the softmax of its scores over them adds up to this. Without
            `num_blocks` a row may keep all blocks, and so many indices are returned.
        keep_diagonal: always keep the diagonal block of a row: its own, or where n_rows != n_cols the one that
            `BlockLayout.from_config` takes.
        window: always keep so many blocks before the diagonal one, and if not causal as many after it.
        sinks: always keep so many of the first columns.
        causal: the rows end at the last column, and blocks after the diagonal one are not chosen.
        row_budgets: int32 or int64, broadcastable to (..., n_rows): the most blocks of each row, at most `num_blocks`. What is
            always kept stays. Default: `num_blocks` in every row.
        diagonal: int32 or int64 (n_rows,): the column of each row's diagonal block, where the rows are not the last ones of a
            sequence: those of one rank, ``sharding.block_rows(device)``.

    Returns:
        indices: int32 (..., n_rows, k), ascending; k is `num_blocks`, at most n_cols.
        counts: int32 (..., n_rows), how many of them count; the others are -1.

    Raises:
        ValueError: an argument is out of its range, or `num_blocks` has no room for what is always kept.
        TypeError: an argument is something else; the message names it.

    Examples:
        >>> scores = torch.tensor([[9.0, 0.0, 0.0], [1.0, 2.0, 0.0], [5.0, 6.0, 0.0]])
        >>> indices, counts = select_blocks(scores, num_blocks=2, causal=True)
        >>> indices.tolist(), counts.tolist()
        ([[0, -1], [0, 1], [1, 2]], [1, 2, 2])
    """
    choice = checked_choice(scores, num_blocks, top_p, keep_diagonal, window, sinks, causal)
    is_traced = torch.compiler.is_compiling() or is_for_the_dispatcher(scores)
    if row_budgets is not None:
        check_budgets(row_budgets, scores)
        if is_traced and not torch.compiler.is_compiling():
            row_budgets = as_of_call(row_budgets, scores)
    if diagonal is not None:
        check_diagonal(diagonal, scores)
        if is_traced and not torch.compiler.is_compiling():
            diagonal = as_of_call(diagonal, scores)
    choose = chosen_blocks if is_traced else choose_blocks
    made: tuple[Tensor, Tensor] = choose(scores.detach(), row_budgets, *choice, diagonal)
    return made


def check_diagonal(diagonal: Any, scores: Tensor) -> None:
    """Raise unless `diagonal` is an integer for every row of the scores."""
    check_index_tensor("diagonal", diagonal, "(n_rows,)")
    if diagonal.device != scores.device:
        raise ValueError(f"diagonal must be on {scores.device} as scores, got {diagonal.device}")
    if diagonal.shape != scores.shape[-2:-1]:
        raise ValueError(
            f"diagonal must have one column for each of the {scores.shape[-2]} rows of scores, got shape "
            f"{tuple(diagonal.shape)}"
        )


def check_budgets(budgets: Any, scores: Tensor) -> None:
    """Raise unless `row_budgets` are integers for the rows of the scores."""
    check_index_tensor("row_budgets", budgets, "(..., n_rows)")
    rows = scores.shape[:-1]
    if budgets.device != scores.device:
        raise ValueError(f"row_budgets must be on {scores.device} as scores, got {budgets.device}")
    if budgets.dim() > len(rows) or any(
        mine not in (1, theirs) for mine, theirs in zip(reversed(budgets.shape), reversed(rows), strict=False)
    ):
        raise ValueError(
            f"row_budgets must broadcast to the rows of scores {tuple(rows)}, got shape {tuple(budgets.shape)}"
        )


def choose_blocks(
    scores: Tensor,
    budgets: Tensor | None,
    n_slots: int,
    top_p: float | None,
    keep_diagonal: bool,
    window: int,
    sinks: int,
    causal: bool,
    diagonal: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Indices and counts of all rows, by the fields of a Choice."""
    choice = Choice(n_slots, top_p, keep_diagonal, window, sinks, causal)
    rows, (n_rows, n_cols) = scores.shape[:-1], scores.shape[-2:]
    flat = scores.reshape(-1, n_rows, n_cols)
    if budgets is not None:
        budgets = budgets.expand(rows).reshape(-1, n_rows)
    indices, counts = by_kernel_or_not(flat, budgets, choice, diagonal)
    return indices.view(*rows, choice.n_slots), counts.view(rows)


def by_kernel_or_not(
    scores: Tensor, budgets: Tensor | None, choice: Choice, diagonal: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `choose_a_few_at_a_time`; on a GPU by a kernel, where triton is installed and the kernel serves the scores."""
    if scores.is_cuda and HAS_TRITON:
        from . import device_selection

        if device_selection.fits(scores):
            return device_selection.choose_on_device(scores, budgets, choice, diagonal)
    return choose_a_few_at_a_time(scores, budgets, choice, diagonal)


def choose_a_few_at_a_time(
    scores: Tensor, budgets: Tensor | None, choice: Choice, diagonal: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Indices (heads, n_rows, n_slots) and counts (heads, n_rows) of scores (heads, n_rows, n_cols)."""
    heads, n_rows, n_cols = scores.shape
    indices = torch.empty(heads, n_rows, choice.n_slots, dtype=torch.int32, device=scores.device)
    counts = torch.empty(heads, n_rows, dtype=torch.int32, device=scores.device)
    if diagonal is None:
        diagonal = diagonal_of(n_rows, n_cols, choice.causal, scores.device)
    n_heads = max(1, SCORES_AT_ONCE // (n_rows * n_cols))
    rows_at_once = max(1, SCORES_AT_ONCE // n_cols)
    for head in range(0, heads, n_heads):
        for row in range(0, n_rows, rows_at_once):
            part = slice(head, head + n_heads), slice(row, row + rows_at_once)
            some = Rows(scores[part], diagonal[part[1]], None if budgets is None else budgets[part])
            indices[part], counts[part] = best_of(some, choice)
    return indices, counts


def checked_choice(
    scores: Any, num_blocks: Any, top_p: Any, keep_diagonal: Any, window: Any, sinks: Any, causal: Any
) -> Choice:
    """The arguments of `select_blocks`; TypeError or ValueError name the one that does not fit."""
    if not isinstance(scores, Tensor):
        raise TypeError(
            f"scores must be a floating point tensor (..., n_rows, n_cols), got {type(scores).__name__}"
        )
    if (
        scores.is_nested
        or scores.layout != torch.strided
        or not 2 <= scores.dim() <= 4
        or 0 in scores.shape
        or not scores.is_floating_point()
    ):
        raise ValueError(
            f"scores must be a floating point tensor (..., n_rows, n_cols) of 2 to 4 axes, got {shown(scores)}"
        )
    flags = []
    for name, given in (("keep_diagonal", keep_diagonal), ("causal", causal)):
        flag = values.flag(given)
        if flag is None:
            raise TypeError(f"{name} must be True or False, got {shown(given)}")
        flags.append(flag)
    numbers = []
    for name, given in (("window", window), ("sinks", sinks)):
        number = values.integer(given)
        if number is None or not 0 <= number <= values.MAX_TOKENS:
            raise values.wrong(number, f"{name} must be a number of blocks, 0 or more, got {shown(given)}")
        numbers.append(number)
    share = None if top_p is None else values.number(top_p)
    if top_p is not None and (share is None or not 0.0 < share <= 1.0):
        raise values.wrong(share, f"top_p must be over 0 and at most 1, got {shown(top_p)}")
    if num_blocks is None and top_p is None:
        raise ValueError(
            "num_blocks or top_p must be given, got neither; num_blocks keeps so many blocks a row"
        )
    n_cols = scores.shape[-1]
    most = n_cols if num_blocks is None else values.tokens(num_blocks)
    if most is None:
        raise values.wrong(
            values.integer(num_blocks),
            f"num_blocks must be a number of blocks, at least 1, got {shown(num_blocks)}",
        )
    choice = Choice(min(most, n_cols), share, flags[0], numbers[0], numbers[1], flags[1])
    kept = min(n_cols, choice.sinks + choice.keep_diagonal + choice.window * (1 if choice.causal else 2))
    if kept > choice.n_slots:
        raise ValueError(
            f"num_blocks must be at least {kept}, which keep_diagonal={choice.keep_diagonal}, window={choice.window} and "
            f"sinks={choice.sinks} always keep, got {num_blocks}"
        )
    return choice


# ---- the operator, which torch.compile sees as one node: how many rows are chosen at a time depends on the length

chosen_blocks = define(
    "chosen_blocks(Tensor scores, Tensor? budgets, SymInt n_slots, float? top_p, bool keep_diagonal, SymInt window, SymInt sinks, bool causal, "
    "Tensor? diagonal=None) "
    "-> (Tensor, Tensor)"
)


def fake_chosen_blocks(
    scores: Tensor, budgets: Tensor | None, n_slots: int, *fields: Any
) -> tuple[Tensor, Tensor]:
    rows = scores.shape[:-1]
    return scores.new_empty(*rows, n_slots, dtype=torch.int32), scores.new_empty(rows, dtype=torch.int32)


LIBRARY.impl("chosen_blocks", choose_blocks, "CompositeExplicitAutograd")
torch.library.register_fake(f"{NAMESPACE}::chosen_blocks", fake_chosen_blocks, lib=LIBRARY)


def vmap_chosen_blocks(info: Any, in_dims: tuple[Any, ...], scores: Tensor, *others: Any) -> tuple[Any, Any]:
    """The rows of all samples at once."""
    if any(dim is not None for dim in in_dims[1:]):
        return one_by_one(chosen_blocks, in_dims, (scores, *others), info.batch_size)
    return chosen_blocks(scores.movedim(in_dims[0], 0), *others), (0, 0)


torch.library.register_vmap(f"{NAMESPACE}::chosen_blocks", vmap_chosen_blocks, lib=LIBRARY)
