"""Where the emulated forward could go wrong beside random calls: what is behind the ends, rows that see nothing at first."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton.experimental.gluon")

from dilated_attention_pytorch import BlockLayout
from dilated_attention_pytorch.backends.hopper import HOPPER
from dilated_attention_pytorch.backends.problem import AttentionProblem
from dilated_attention_pytorch.functional import make_problem
from dilated_attention_pytorch.sequences import sequences_of_batch, within_grid
from tests.core.backends.hopper import emulator
from tests.core.backends.hopper.test_emulated_kernels import over_the_limit

pytestmark = pytest.mark.interpreter
OUT, LSE = 2**-7, 2**-18  # out is rounded to bfloat16, as are its weights; lse is float32
KERNELS = [(64, 64), (64, 128), (128, 64), (128, 128)]  # head_dim, block size
ONE_OF_EACH_LOOP = [(64, 128), (128, 64)]


def inputs(length: int, head_dim: int, batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(batch, length, 2, head_dim, generator=generator) for _ in range(3))
    return q.bfloat16(), k.bfloat16(), v.bfloat16()


def is_right(problem: AttentionProblem, layout: BlockLayout) -> bool:
    found = emulator.errors(problem.prepared_by(HOPPER, layout), gradients=False, through_launch=True)
    return found["out"] < OUT and found["lse"] < LSE


def lower_blocks(block: int, n: int) -> BlockLayout:
    return BlockLayout.from_dense(torch.ones(n, n).tril().bool(), block, n * block, n * block)


@pytest.mark.parametrize(("head_dim", "block"), KERNELS)
def test_nan_behind_the_ends_of_a_sequence_reaches_nothing(head_dim: int, block: int) -> None:
    length, layout = 2 * block + 40, lower_blocks(block, 3)
    q, k, v = inputs(length, head_dim)
    for x in (k, v):
        x[:, :9] = x[:, length - 21 :] = float("nan")
    first, end = torch.tensor([9], dtype=torch.int32), torch.tensor([length - 21], dtype=torch.int32)
    assert is_right(make_problem(q, k, v, layout, kv_starts=first, kv_lengths=end, is_causal=True), layout)


def test_nan_behind_the_ends_reaches_nothing_where_a_block_is_two_tiles() -> None:
    length, layout = 2 * 128 + 40, lower_blocks(128, 3)
    q, k, _ = inputs(length, 192)
    v = k[..., :128].clone()
    k[:, length - 21 :] = v[:, length - 21 :] = float("nan")  # the end is in the first tile of the last block
    end = torch.tensor([length - 21], dtype=torch.int32)
    assert is_right(make_problem(q, k, v, layout, kv_lengths=end), layout)


@pytest.mark.parametrize(("head_dim", "block"), ONE_OF_EACH_LOOP)
def test_nan_in_padded_keys_reaches_nothing(head_dim: int, block: int) -> None:
    length, layout = 2 * block + 40, lower_blocks(block, 3)
    q, k, v = inputs(length, head_dim)
    padding = torch.zeros(1, length, dtype=torch.bool)
    padding[:, 3::7] = padding[:, :block] = True
    k[padding] = v[padding] = float("nan")
    assert is_right(make_problem(q, k, v, layout, key_padding_mask=padding), layout)


@pytest.mark.parametrize("block", [256])
def test_queries_behind_the_last_position_of_a_layout_get_zeros(block: int) -> None:
    layout = BlockLayout.from_dense(torch.ones(-(-300 // block), -(-300 // block)).bool(), block, 300, 300)
    q, k, v = inputs(300, 64)
    problem = make_problem(q, k, v, layout)
    _, sequences = sequences_of_batch(q, 300, False, torch.tensor([100], dtype=torch.int32))
    assert sequences is not None
    problem = dataclasses.replace(problem, sequences=within_grid(sequences, layout.grid))
    found = emulator.errors(problem.prepared_by(HOPPER, layout), through_launch=True)
    assert over_the_limit(found) == {}


@pytest.mark.parametrize(("head_dim", "block"), ONE_OF_EACH_LOOP)
def test_rows_may_see_their_first_key_in_a_later_block(head_dim: int, block: int) -> None:
    length = 3 * block
    mask = torch.rand(length, length, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[: block // 2, :block] = False
    mask[5:9] = False
    layout = BlockLayout.from_mask(mask, block_size=block)
    q, k, v = inputs(length, head_dim)
    q = q - 40.0  # scores far below 0: a maximum that begins at 0 would lose them
    k = k + 2.0
    assert is_right(make_problem(q, k, v, layout), layout)


@pytest.mark.parametrize("hidden", [float("-inf"), -1e9])
@pytest.mark.parametrize(("head_dim", "block"), ONE_OF_EACH_LOOP)
def test_biases_that_hide_blocks_leave_the_others_exact(head_dim: int, block: int, hidden: float) -> None:
    length, layout = 3 * block, lower_blocks(block, 3)
    q, k, v = inputs(length, head_dim)
    bias = torch.full((1, 2, layout.num_block_ids), hidden)
    rows = layout.row_lists
    bias[..., rows.block_ids[rows.indptr[1:].long() - 1].long()] = 0.25  # the diagonal
    assert is_right(make_problem(q, k, v, layout, block_bias=bias), layout)


@pytest.mark.parametrize("bias", [-1e30, 1e30, torch.finfo(torch.float32).min])
@pytest.mark.parametrize(("head_dim", "block"), ONE_OF_EACH_LOOP)
def test_a_bias_that_leaves_nothing_of_the_products_weighs_all_keys_alike(
    head_dim: int, block: int, bias: float
) -> None:
    length, layout = 3 * block, lower_blocks(block, 3)
    q, k, v = inputs(length, head_dim)
    biases = torch.full((1, 2, layout.num_block_ids), bias)
    problem = make_problem(q, k, v, layout, block_bias=biases).prepared_by(HOPPER, layout)
    # float64, of the definition, holds nothing of them either
    assert emulator.errors(problem, gradients=False, through_launch=True)["out"] < OUT


@pytest.mark.parametrize("bias", [400.0, 1500.0])
def test_large_biases_weigh_blocks_as_small_ones_do(bias: float) -> None:
    length, layout = 3 * 128, lower_blocks(128, 3)
    q, k, v = inputs(length, 128)
    biases = bias + torch.arange(layout.num_block_ids).remainder(2).expand(1, 2, -1).float()
    assert is_right(make_problem(q, k, v, layout, block_bias=biases), layout)


def test_biases_and_slopes_together() -> None:
    length, layout = 2 * 128, lower_blocks(128, 2)
    q, k, v = inputs(length, 128)
    slopes, biases = torch.tensor([0.5, 0.01]), torch.randn(1, 2, layout.num_block_ids)
    assert is_right(make_problem(q, k, v, layout, block_bias=biases, alibi_slopes=slopes), layout)


def test_slopes_may_be_negative() -> None:
    length, layout = 200, lower_blocks(64, 4)
    q, k, v = inputs(length, 64)
    problem = make_problem(q, k, v, layout, alibi_slopes=torch.tensor([-0.5, 0.0])).prepared_by(
        HOPPER, layout
    )
    assert over_the_limit(emulator.errors(problem, through_launch=True)) == {}


@pytest.mark.parametrize("block", [64, 128])
def test_gradients_are_right_where_heads_that_share_keys_see_other_columns(block: int) -> None:
    mask = torch.ones(8, 4, 4, dtype=torch.bool)
    for head, column in ((0, 0), (0, 1), (1, 0), (1, 1), (5, 2), (5, 3), (7, 1)):
        mask[head, :, column] = False
    length = 4 * block
    layout = BlockLayout.from_dense(mask, block, length, length)
    generator = torch.Generator().manual_seed(block)
    q, k, v = (torch.randn(1, length, heads, 64, generator=generator).bfloat16() for heads in (8, 2, 2))
    problem = make_problem(q, k, v, layout).prepared_by(HOPPER, layout)
    assert over_the_limit(emulator.errors(problem, lse_gradient=True)) == {}


@pytest.mark.parametrize("slopes", [None, torch.tensor([0.02, -0.01])], ids=["plain", "alibi"])
@pytest.mark.parametrize("n_keys", [250, 450])
def test_blocks_that_no_query_of_two_rows_sees_keep_their_places(n_keys: int, slopes: Tensor | None) -> None:
    """One row has the first blocks and the other the last: in their common order they alternate, also those behind the keys."""
    mask = torch.zeros(6, 10).bool()
    mask[4, :5] = mask[5, 5:] = True
    layout = BlockLayout.from_dense(mask, 64, 384, 640)
    q, k, v = inputs(640, 64)
    end = torch.tensor([n_keys], dtype=torch.int32)
    problem = make_problem(q[:, :128], k, v, layout, kv_lengths=end, q_offset=256, alibi_slopes=slopes)
    assert over_the_limit(emulator.errors(problem.prepared_by(HOPPER, layout), through_launch=True)) == {}
