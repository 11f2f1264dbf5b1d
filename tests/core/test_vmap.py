"""torch.vmap over everything that takes tensors: what a loop over the samples gives. The operators: test_ops_transforms.py."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dilated_attention_pytorch import (
    BlockLayout,
    BlockSparseAdaptive,
    BlockSparseMultiheadAttention,
    SparsePatternConfig,
    block_scores,
    block_sparse_attention,
    block_sparse_attention_varlen,
    block_sparse_decode,
    block_sparse_sdpa,
    select_blocks,
)

CONFIG = SparsePatternConfig(block_size=16, sparsity_ratio=0.4)
LENGTH = 96
CAUSAL = BlockLayout.from_config(CONFIG, LENGTH, causal=True)
OFFSETS = torch.tensor([0, 40, LENGTH], dtype=torch.int32)
ADAPTIVE = BlockSparseAdaptive(CONFIG, num_heads=2, head_dim=4).eval()  # in training it draws noise
MODULE = BlockSparseMultiheadAttention(8, 2, sparse_config=CONFIG, batch_first=True)


def chosen(q: Tensor, k: Tensor, v: Tensor, **selection: Any) -> Tensor:
    scores = block_scores(q, k, 16, causal=True)
    indices, counts = select_blocks(scores, 3, causal=True, **selection)
    layout = BlockLayout.from_indices(
        indices, counts, q_len=LENGTH, kv_len=LENGTH, block_size=16, causal=True
    )
    bias = scores.gather(-1, indices.clamp(min=0).long()).flatten()[None, None]
    return block_sparse_attention(q, k, v, layout, is_causal=True, block_bias=bias)


def packed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.flatten(0, 1)[:LENGTH] for x in (q, k, v))
    return block_sparse_attention_varlen(q, k, v, CAUSAL, OFFSETS, OFFSETS, 56, 56, is_causal=True)


CALLS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "chosen": chosen,
    "chosen_by_share": lambda q, k, v: chosen(q, k, v, top_p=0.6),
    "packed": packed,
    "adaptive": lambda q, k, v: ADAPTIVE(q, k, v, is_causal=True),
    "multihead": lambda q, k, v: MODULE(*(x.flatten(2) for x in (q, k, v)))[0],
    "sdpa": lambda q, k, v: block_sparse_sdpa(*(x.transpose(1, 2) for x in (q, k, v)), sparse_config=CONFIG),
}


def tensors(*lead: int) -> list[Tensor]:
    return [torch.randn(*lead, 1, LENGTH, 2, 4) for _ in range(3)]


def assert_equal(found: Any, expected: Any) -> None:
    for ours, theirs in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.fixture(autouse=True)
def every_operator_has_a_rule() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="There is a performance drop.*dilated_attention")
        yield


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (2, 0, None)], ids=str)
def test_samples_give_what_each_gives_alone(name: str, in_dims: tuple[Any, ...]) -> None:
    q, k, v = tensors(3)
    given = [
        x if dim == 0 else x[0] if dim is None else x.movedim(0, dim) for x, dim in zip((q, k, v), in_dims)
    ]
    alone = [
        CALLS[name](*(x[0] if dim is None else x[i] for x, dim in zip((q, k, v), in_dims))) for i in range(3)
    ]
    assert_equal(torch.vmap(CALLS[name], in_dims)(*given), torch.stack(alone))


@pytest.mark.parametrize("name", CALLS)
def test_samples_of_samples_and_their_gradients(name: str) -> None:
    def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return CALLS[name](q, k, v).square().sum()

    given = tensors(2, 2)
    gradient = torch.func.grad(loss, (0, 1, 2))
    found = torch.vmap(torch.vmap(gradient))(*given)
    rows = [[gradient(*(x[i, j] for x in given)) for j in range(2)] for i in range(2)]
    stacked = [torch.stack([torch.stack([one[n] for one in row]) for row in rows]) for n in range(3)]
    assert_equal(found, tuple(stacked))
    over = torch.func.grad(lambda *x: torch.vmap(torch.vmap(loss))(*x).sum(), (0, 1, 2))(*given)
    assert_equal(over, tuple(stacked))


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, 0), (0, 0, None)], ids=str)
def test_decoding_samples(in_dims: tuple[Any, ...]) -> None:
    q, cache = torch.randn(3, 2, 1, 2, 4), torch.randn(3, 2, LENGTH, 2, 4)
    lengths = torch.tensor([[5, 60], [96, 1], [33, 40]], dtype=torch.int32)

    def step(q: Tensor, cache: Tensor, lengths: Tensor) -> Tensor:
        return block_sparse_decode(q, cache, cache, CAUSAL, lengths)

    given = [x if dim == 0 else x[0] for x, dim in zip((q, cache, lengths), in_dims)]
    alone = [step(*(x[i] if dim == 0 else x for x, dim in zip(given, in_dims))) for i in range(3)]
    assert_equal(torch.vmap(step, in_dims)(*given), torch.stack(alone))


def test_packed_sequences_of_samples_have_their_own_lengths() -> None:
    given = [x[:, 0] for x in tensors(2)]
    offsets = torch.tensor([[0, 40, LENGTH], [0, 90, LENGTH]], dtype=torch.int32)

    def attend(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
        return block_sparse_attention_varlen(q, k, v, CAUSAL, offsets, offsets, 90, 90, is_causal=True)

    alone = [attend(*(x[i] for x in given), offsets[i]) for i in range(2)]
    assert_equal(torch.vmap(attend)(*given, offsets), torch.stack(alone))


def test_scores_and_selections_of_samples_are_those_of_a_batch() -> None:
    q, k, _ = tensors(3)
    scores = torch.vmap(lambda q, k: block_scores(q, k, 16))(q, k)
    assert_equal(scores[:, 0], block_scores(q[:, 0], k[:, 0], 16))
    found = torch.vmap(lambda x: select_blocks(x, 2), 1, 2)(scores.movedim(0, 1))
    for ours, theirs in zip(found, select_blocks(scores[:, 0], 2)):
        assert torch.equal(ours.movedim(2, 0)[:, 0], theirs)
