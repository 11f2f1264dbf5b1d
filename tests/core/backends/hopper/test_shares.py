"""Split rows: the lists of their shares, how many there are, and their results beside those of the definition."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton.experimental.gluon")

from dilated_attention_pytorch import BlockLayout
from dilated_attention_pytorch.backends import hopper
from dilated_attention_pytorch.backends.hopper import launch
from dilated_attention_pytorch.backends.hopper.shares import (
    MOST_BYTES,
    estimate,
    num_shares,
    num_shares_of,
    shares_of,
    split_lists,
    splits_rows,
)
from dilated_attention_pytorch.backends.problem import AttentionProblem
from dilated_attention_pytorch.environment_settings import SPLIT_ROWS
from dilated_attention_pytorch.functional import make_problem
from tests.core.backends.hopper import emulator
from tests.core.backends.hopper.emulator.launches import emulated_launches
from tests.core.backends.hopper.test_emulated_kernels import over_the_limit, problem_of


def split(problem: AttentionProblem, n_shares: int) -> AttentionProblem:
    return dataclasses.replace(problem, shares=shares_of(problem, n_shares))


# ---- lists


@pytest.mark.parametrize("n_shares", [1, 2, 3, 8])
def test_shares_of_a_row_follow_one_another_and_are_alike(n_shares: int) -> None:
    torch.manual_seed(0)
    mask = torch.rand(2, 9, 14) < 0.5
    mask[0, 3] = False
    mask[1, :, 5] = False
    lists = BlockLayout.from_dense(mask, 64).row_lists
    shares = split_lists(lists, n_shares)
    begins, of_shares = lists.indptr.tolist(), shares.indptr.tolist()
    n_lists = len(begins) - 1
    assert len(of_shares) == n_shares * n_lists + 1
    for row in range(n_lists):
        parts = [slice(of_shares[i], of_shares[i + 1]) for i in range(row, n_shares * n_lists, n_lists)]
        for ours, theirs in ((shares.indices, lists.indices), (shares.block_ids, lists.block_ids)):
            found = [x for part in parts for x in ours[part].tolist()]
            assert found == theirs[begins[row] : begins[row + 1]].tolist()
        lengths = [part.stop - part.start for part in parts]
        assert max(lengths) - min(lengths) <= 1


# ---- how many


def sized(q_len: int, heads: int, blocks: int, is_causal: bool = False, **others: Any) -> AttentionProblem:
    """A problem of blocks of 128, so many of each row."""
    n = q_len // 128
    column = torch.arange(n)
    mask = ((column[None] - column[:, None]) % n) < blocks
    layout = BlockLayout.from_dense(mask.tril() if is_causal else mask, 128, causal=is_causal)
    q = torch.empty(1, q_len, heads, 128, dtype=torch.bfloat16)
    return make_problem(q, q, q, layout, is_causal=is_causal, **others)


@pytest.mark.parametrize(
    ("q_len", "heads", "blocks", "is_causal", "wanted"),
    [
        (4096, 2, 32, False, 2),  # 64 tiles for 132 multiprocessors
        (4096, 1, 32, False, 4),
        (4096, 1, 32, True, 1),
        (8192, 3, 16, False, 1),
        (16384, 2, 32, False, 1),
        (2048, 4, 16, False, 1),  # the host takes as long
    ],
)
def test_rows_are_split_where_multiprocessors_would_be_idle(
    q_len: int, heads: int, blocks: int, is_causal: bool, wanted: int
) -> None:
    found = num_shares(sized(q_len, heads, blocks, is_causal), 128, 132)
    assert found == wanted


def test_shares_take_a_bounded_memory() -> None:
    problem = sized(16384, 1, 128)
    n = num_shares(problem, 128, 10**6)
    assert n > 1
    assert n * problem.q_len * 129 * 4 <= MOST_BYTES


def test_estimate_falls_with_idle_multiprocessors_and_counts_the_merging() -> None:
    assert estimate(66, 64, 2, 132, 128) < estimate(66, 64, 1, 132, 128)
    assert estimate(132, 64, 2, 132, 128) > estimate(132, 64, 1, 132, 128)


@pytest.mark.parametrize("name", ["sequences", "masks", "lists of their own"])
def test_other_calls_are_not_split(name: str) -> None:
    plain = sized(4096, 1, 32)
    lengths = torch.tensor([2000], dtype=torch.int32)
    others: dict[str, AttentionProblem] = {
        "sequences": sized(4096, 1, 32, kv_lengths=lengths),
        "masks": dataclasses.replace(plain, block_masks=(Tensor(), Tensor())),  # type: ignore[arg-type]
        "lists of their own": dataclasses.replace(plain, layout_batch=2),
    }
    assert num_shares(plain, 128, 132) > 1
    assert num_shares(others[name], 128, 132) == 1


@pytest.mark.parametrize("block", [64, 128, 256])
@pytest.mark.parametrize("head_dims", [(64, 64), (96, 96), (128, 64), (256, 256)])
def test_any_block_size_and_head_dim_may_ask(
    block: int, head_dims: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "multiprocessors", lambda index: 132)
    layout = BlockLayout.from_dense(torch.ones(8, 8, dtype=torch.bool), block)
    q, v = (torch.empty(1, 8 * block, 1, dim, dtype=torch.bfloat16) for dim in head_dims)
    n_shares = launch.wanted_shares(make_problem(q, q, v, layout))
    assert n_shares == 1 or (block < 256 and head_dims[0] == head_dims[1] != 96)


# ---- results


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("block", "batch", "layout_heads"), [(128, 1, 1), (64, 2, 2)])
def test_results_are_those_of_the_definition(
    block: int, batch: int, layout_heads: int, is_causal: bool
) -> None:
    problem = problem_of(64, block, is_causal, q_len=330, batch=batch, layout_heads=layout_heads, empty=(1,))
    found = emulator.errors(split(problem, 3), gradients=False, through_launch=True, programs=3)
    assert over_the_limit(found) == {}


def test_slopes() -> None:
    problem = problem_of(64, 64, True, q_len=330, alibi_slopes=torch.tensor([0.1, 0.5]))
    assert over_the_limit(emulator.errors(split(problem, 2), gradients=False, through_launch=True)) == {}


def test_sinks_softcap_and_padding() -> None:
    padding = torch.zeros(2, 330, dtype=torch.bool)
    padding[0, 200:], padding[1, :70] = True, True
    problem = problem_of(
        64,
        128,
        True,
        q_len=330,
        batch=2,
        softcap=3.0,
        sinks=torch.tensor([0.5, -1.0]),
        key_padding_mask=padding,
    )
    found = emulator.errors(split(problem, 2), gradients=False, through_launch=True)
    assert over_the_limit(found) == {}


def test_expanded_keys_are_copied() -> None:
    problem = problem_of(64, 64, True, q_len=330)
    k = problem.k[:, :1].expand(-1, 330, -1, -1)
    found = emulator.errors(
        split(dataclasses.replace(problem, k=k), 2), gradients=False, through_launch=True, programs=3
    )
    assert over_the_limit(found) == {}


def test_number_of_shares_is_read_from_their_lists() -> None:
    problem = problem_of(64, 64, False, layout_heads=2)
    assert [num_shares_of(split(problem, n)) for n in (2, 3)] == [2, 3]
    assert num_shares_of(problem) == 1


def test_bound_forward_gives_what_a_launch_gives() -> None:
    problem = split(problem_of(64, 64, True, q_len=330), 2)
    with emulated_launches() as module:
        out, lse = module.launch_forward(problem)
        forward = module.bind_forward(problem)
        assert forward is not None
        for found, wanted in zip(forward(problem.q, problem.k, problem.v), (out, lse), strict=True):
            assert torch.equal(found, wanted)
        other = torch.randn_like(problem.v)
        again, _ = forward(problem.q, problem.k, other)
        fresh, _ = module.launch_forward(dataclasses.replace(problem, v=other))
        assert torch.equal(again, fresh)


def test_another_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SPLIT_ROWS.name, "true")
    with pytest.raises(ValueError, match="SPLIT_ROWS must be 0 or 1, got 'true'"):
        splits_rows()


@pytest.mark.parametrize(("setting", "expected"), [(None, False), ("", False), ("0", False), ("1", True)])
def test_rows_are_split_on_request_only(
    setting: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SPLIT_ROWS.name, raising=False)
    if setting is not None:
        monkeypatch.setenv(SPLIT_ROWS.name, setting)
    assert splits_rows() is expected
    # what a GPU would answer, had it been asked
    layout = SimpleNamespace(
        is_exact=True, is_captured=False, device=torch.device("cuda"), keep=lambda *_: ("kept",)
    )
    monkeypatch.setattr(hopper, "HAS_GLUON", True)
    monkeypatch.setattr(hopper, "launches", lambda: SimpleNamespace(wanted_shares=lambda problem: 2))
    assert (hopper.HOPPER.prepare_shares(None, layout) != ()) is expected  # type: ignore[arg-type]
