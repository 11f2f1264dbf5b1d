"""The kernel makes the table of sequences that the definition makes, whatever the tensors say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dilated_attention_pytorch.grid import BlockGrid
from dilated_attention_pytorch.sequence_plans import Given, plan_of_batch, plan_of_packed
from dilated_attention_pytorch.sequence_tables import table_by_kernel
from dilated_attention_pytorch.sequences import Sequences, packed_sequences, sequences_of_batch, within_grid
from dilated_attention_pytorch.validation.sequences import as_int32

pytestmark = pytest.mark.interpreter

CPU = torch.device("cpu")
# in and out of range, up to the ends of int64
LENGTHS = st.one_of(st.integers(-3, 60), st.sampled_from([-(2**31), 2**31 - 1, -(2**63), 2**63 - 1]))
GRIDS = st.sampled_from(
    [
        BlockGrid(48, 48, 16, False),
        BlockGrid(40, 48, 16, False),
        BlockGrid(30, 37, 16, True),
        BlockGrid(9, 50, 16, False, 7),
    ]
)
OFFSETS = st.one_of(st.none(), st.integers(-70, 70))


def integers(draw: st.DrawFn, n: int, dtype: torch.dtype, values: st.SearchStrategy[int] = LENGTHS) -> Tensor:
    """A tensor (n,) of every second number."""
    ends = torch.iinfo(dtype)
    drawn = draw(st.lists(values.map(lambda x: min(max(x, ends.min), ends.max)), min_size=n, max_size=n))
    return torch.tensor(drawn, dtype=dtype).repeat_interleave(2)[::2]


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, int, bool, int | Tensor | None, Given]:
    n, dtype = draw(st.integers(1, 4)), draw(st.sampled_from([torch.uint8, torch.int32, torch.int64]))
    names = draw(st.sets(st.sampled_from(["q_offset", "kv_lengths", "kv_starts"]), min_size=1))
    tensors = {name: integers(draw, n, dtype) for name in names}
    q_offset = tensors["q_offset"] if "q_offset" in tensors else draw(OFFSETS)
    return (
        torch.empty(n, draw(st.integers(1, 50)), 1, 1),
        draw(st.integers(1, 60)),
        draw(st.booleans()),
        q_offset,
        Given(**tensors),
    )


@settings(max_examples=60, deadline=None)
@given(case=batches(), grid=GRIDS)
def test_table_of_a_batch(case: Any, grid: BlockGrid) -> None:
    q, kv_len, is_causal, q_offset, tensors = case
    as_checked = {name: None if x is None else as_int32(x, CPU) for name, x in tensors._asdict().items()}
    offset = as_checked["q_offset"] if isinstance(q_offset, Tensor) else q_offset
    first, wanted = sequences_of_batch(
        q, kv_len, is_causal, offset, as_checked["kv_lengths"], as_checked["kv_starts"]
    )
    assert wanted is not None
    plan = plan_of_batch(q, kv_len, is_causal, q_offset, tensors.kv_starts is not None, grid)
    check(table_by_kernel(plan, tensors, CPU), within_grid(wanted, grid), grid)
    assert plan.first == first


@st.composite
def packs(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[int, int], bool, int | Tensor | None, Given]:
    n = draw(st.integers(0, 4))
    near = st.integers(-3, 60)
    of_q = integers(draw, n + 1, torch.int32, near)
    of_k = of_q if draw(st.booleans()) else integers(draw, n + 1, torch.int32, near)
    q_offset = draw(st.one_of(OFFSETS, st.just("tensor")))
    if q_offset == "tensor":
        q_offset = integers(draw, n, torch.int32, near)
    lengths = st.tuples(st.integers(0, 55), st.integers(0, 55))
    tensors = Given(of_q, of_k, q_offset if isinstance(q_offset, Tensor) else None)
    return draw(lengths), draw(lengths), draw(st.booleans()), q_offset, tensors


@settings(max_examples=60, deadline=None)
@given(case=packs(), grid=GRIDS)
def test_table_of_packed_sequences(case: Any, grid: BlockGrid) -> None:
    tokens, longest, is_causal, q_offset, tensors = case
    of_q, of_k = tensors.cu_seqlens_q.clamp(0, tokens[0]), tensors.cu_seqlens_k.clamp(0, tokens[1])
    wanted = within_grid(packed_sequences(of_q, of_k, *longest, is_causal, q_offset), grid)
    plan = plan_of_packed(of_q.shape[0] - 1, tokens, longest, is_causal, q_offset, grid)
    check(table_by_kernel(plan, tensors, CPU), wanted, grid)


def test_more_sequences_than_a_program_takes() -> None:
    grid = BlockGrid(48, 48, 16, False)
    bounds = torch.arange(301, dtype=torch.int32)
    plan = plan_of_packed(300, (300, 300), (1, 1), False, None, grid)
    check(
        table_by_kernel(plan, Given(bounds, bounds), CPU), packed_sequences(bounds, bounds, 1, 1, False), grid
    )


def groups_of(sequences: Sequences, grid: BlockGrid) -> list[list[int]]:
    """Groups of 128 positions that hold a token, of the sequences before each one."""
    first = grid.first_row * grid.block_size
    of_q, of_kv = [0], [0]
    for _, q_len, _, kv_len, position in sequences.table.tolist():
        begin, end = (position - first) // 128, -((first - position - q_len) // 128)
        of_q.append(of_q[-1] + (end - begin if q_len > 0 else 0))
        of_kv.append(of_kv[-1] - -kv_len // 128)
    return [of_q, of_kv]


def check(found: Sequences, wanted: Sequences, grid: BlockGrid) -> None:
    assert found.table.tolist() == wanted.table.tolist()
    assert found.table.dtype == torch.int32
    assert found.table.is_contiguous()
    assert found.groups is not None
    assert found.groups.tolist() == groups_of(wanted, grid)
    assert found._replace(table=None, groups=None) == wanted._replace(table=None)  # type: ignore[arg-type]
