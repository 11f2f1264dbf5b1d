"""Memory of the CPU backend where a call is no plain batch: in proportion to its tensors and active blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout
from dilated_attention_pytorch.backends.cpu import CPU, call_lists, list_cache
from dilated_attention_pytorch.backends.problem import AttentionProblem
from dilated_attention_pytorch.layout.lists import BlockMasks, packed_masks
from dilated_attention_pytorch.sequences import packed_sequences, sequences_of_batch
from tests.core.backends.cpu.test_backend import allocated
from tests.core.backends.cpu.test_sequences import problem

BLOCK, HEADS, DIM = 16, 2, 8


def diagonals(length: int) -> BlockLayout:
    """A causal layout whose rows have their own block and the first one."""
    n = length // BLOCK
    mask = torch.eye(n, dtype=torch.bool)
    mask[:, 0] = True
    return BlockLayout.from_dense(mask, BLOCK, length, length, causal=True)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def tensors(batch: int, q_len: int, kv_len: int) -> tuple[Tensor, Tensor, Tensor]:
    keys = batch, kv_len, HEADS, DIM
    return normal(batch, q_len, HEADS, DIM), normal(*keys), normal(*keys)


def run(made: AttentionProblem) -> None:
    out, lse = CPU.forward(made)
    CPU.backward(made, out, lse, out, lse)


@pytest.mark.parametrize("batch", [1, 4])
def test_decoding_memory_does_not_follow_the_cache(batch: int) -> None:
    layout = diagonals(16384)

    def bytes_of(length: int) -> int:
        q, k, v = tensors(batch, 1, length)
        end = torch.full((batch,), length - 3, dtype=torch.int32)
        _, sequences = sequences_of_batch(q, length, True, end - 1, end)
        made = problem((q, k, v), layout, sequences=sequences)
        return allocated(lambda: CPU.forward(made))

    assert bytes_of(16384) <= 1.05 * bytes_of(1024)  # a page more or less


def scores_of_every_kind(length: int, layout: BlockLayout) -> dict[str, dict[str, Any]]:
    masks = packed_masks(torch.ones(1, BLOCK, BLOCK, dtype=torch.bool).tril())
    ids = torch.zeros(layout.num_active_blocks, dtype=torch.int32)
    return {
        "masks inside blocks": {"block_masks": BlockMasks(ids, masks)},
        "softcap": {"softcap": 2.0},
        "alibi_slopes": {"alibi_slopes": torch.tensor([0.5, 0.25])},
        "attn_bias": {"attn_bias": normal(1, 1, length, length)},
        "sinks": {"sinks": normal(HEADS)},
    }


@pytest.mark.parametrize("name", scores_of_every_kind(64, diagonals(64)))
def test_no_score_costs_memory_for_every_pair(name: str) -> None:
    used = []
    for length in (1024, 4096):
        layout = diagonals(length)
        made = problem(tensors(1, length, length), layout, **scores_of_every_kind(length, layout)[name])
        used.append(allocated(lambda made=made: run(made)))
    # four times as many tokens and blocks; what is left per call and per chunk does not matter
    assert used[1] < 4.5 * used[0]


def test_packed_sequences_cost_memory_for_their_own_blocks() -> None:
    layout = diagonals(4096)
    used = []
    for n in (4, 16):
        bounds = torch.arange(n + 1, dtype=torch.int32) * 250
        made = problem(
            tensors(1, 250 * n, 250 * n), layout, sequences=packed_sequences(bounds, bounds, 250, 250, True)
        )
        used.append(allocated(lambda made=made: run(made)))
    assert used[1] < 4.5 * used[0]


def test_bias_of_lists_per_element_has_a_gradient_of_its_own_size() -> None:
    # 8 batch elements with lists of their own: a gradient for every batch element and head would be 16 times as large
    batch, length = 8, 512
    n = length // BLOCK
    mask = torch.rand(batch * HEADS, n, n, generator=torch.Generator().manual_seed(1)) < 0.5
    layout = BlockLayout.from_dense(mask, BLOCK, length, length)
    made = problem(
        tensors(batch, length, length), layout, layout_batch=batch, layout_heads=HEADS, is_causal=False,
        block_bias=normal(1, 1, layout.num_active_blocks),
    )  # fmt: skip
    out, lse = CPU.forward(made)
    grad = CPU.backward(made, out, lse, out, None).block_bias
    assert grad is not None
    assert grad.shape == (1, 1, layout.num_active_blocks)


def test_a_bounded_number_of_cuts_is_kept() -> None:
    layout = diagonals(4096)
    q, k, v = tensors(1, 1, 4096)
    for position in range(0, 4096, 16):
        CPU.forward(problem((q, k, v), layout, q_offset=position))
    cuts = list_cache.CACHE[layout.row_lists.indices]["cuts"]
    assert len(cuts) == call_lists.MAX_KEPT
