"""Decoding with a KV cache: rows computed one by one, or chunk by chunk, equal those of the full causal forward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import BlockSparseAttention, SparsePatternConfig

PATTERNS = {
    "dilated_sparse": SparsePatternConfig(block_size=16, sparsity_ratio=0.4),
    "fixed_rates": SparsePatternConfig(block_size=16, sparsity_ratio=0.3, dilation_rates=[1, 4]),
    "local_ratio": SparsePatternConfig("local_window", 16, 0.3),
    "local_window": SparsePatternConfig("local_window", 16, window_size=64),
    "global_local": SparsePatternConfig("global_local", 16, 0.6, global_tokens=20),
    "per_head": [
        SparsePatternConfig(block_size=16, sparsity_ratio=0.4),
        SparsePatternConfig("local_window", 16, 0.2),
        SparsePatternConfig(block_size=16, sparsity_ratio=1.0),
        SparsePatternConfig("global_local", 16, 0.5, global_tokens=16),
    ],
    "large_blocks": SparsePatternConfig(block_size=64, sparsity_ratio=0.6),
}
BACKENDS = ["reference", "cpu", pytest.param("triton", marks=pytest.mark.interpreter)]


def tensors(length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two sequences, four heads, two kv heads."""
    return (
        torch.randn(2, length, 4, 16),
        torch.randn(2, length, 2, 16),
        torch.randn(2, length, 2, 24),
    )


def in_chunks(module: BlockSparseAttention, q: Tensor, k: Tensor, v: Tensor, ends: list[int]) -> Tensor:
    """The outputs of successive calls, each with the queries since the last one and all keys so far."""
    outs, begin = [], 0
    for end in ends:
        outs.append(module(q[:, begin:end], k[:, :end], v[:, :end], is_causal=True))
        begin = end
    return torch.cat(outs, dim=1)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_row_by_row_is_the_full_forward(backend: str, pattern: str) -> None:
    module = BlockSparseAttention(PATTERNS[pattern], backend=backend)
    q, k, v = tensors(150)
    full = module(q, k, v, is_causal=True)
    rows = in_chunks(module, q, k, v, list(range(1, 151)))
    torch.testing.assert_close(rows, full, rtol=1e-5, atol=1e-6)


@pytest.mark.interpreter
def test_row_by_row_is_the_full_forward_in_the_interpreter() -> None:
    module = BlockSparseAttention(PATTERNS["dilated_sparse"], backend="triton")
    q, k, v = tensors(50)
    full = module(q, k, v, is_causal=True)
    steps = [1, *range(14, 20), *range(30, 35), 50]
    torch.testing.assert_close(in_chunks(module, q, k, v, steps), full, rtol=1e-5, atol=1e-6)


@pytest.mark.interpreter
def test_chunks_are_the_full_forward_in_the_interpreter() -> None:
    module = BlockSparseAttention(PATTERNS["per_head"], backend="triton")
    q, k, v = tensors(100)
    full = module(q, k, v, is_causal=True)
    torch.testing.assert_close(in_chunks(module, q, k, v, [37, 48, 49, 100]), full, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_chunks_of_any_length_are_the_full_forward(backend: str, pattern: str) -> None:
    # prompt, then chunks that begin and end in the middle of blocks, at their edges, and span several
    module = BlockSparseAttention(PATTERNS[pattern], backend=backend)
    q, k, v = tensors(150)
    full = module(q, k, v, is_causal=True)
    chunks = in_chunks(module, q, k, v, [37, 48, 49, 80, 85, 150])
    torch.testing.assert_close(chunks, full, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_token_dilation_decodes_to_the_full_forward(backend: str) -> None:
    config = SparsePatternConfig(block_size=16, sparsity_ratio=0.8)
    module = BlockSparseAttention(config, [16, 64], [1, 4], softmax_scale=0.3, backend=backend)
    q, k, v = tensors(100)
    full = module(q, k, v, is_causal=True)
    chunks = in_chunks(module, q, k, v, [1, 33, 40, 99, 100])
    torch.testing.assert_close(chunks, full, rtol=1e-5, atol=1e-6)


def test_padded_prompts_decode_to_the_full_forward() -> None:
    # shorter prompts of a batch are filled up on the left
    module = BlockSparseAttention(PATTERNS["dilated_sparse"])
    q, k, v = tensors(70)
    padding = torch.arange(70) < torch.tensor([[0], [13]])
    full = module(q, k, v, is_causal=True, key_padding_mask=padding)
    for end in (20, 33, 70):
        row = module(
            q[:, end - 1 : end], k[:, :end], v[:, :end], is_causal=True, key_padding_mask=padding[:, :end]
        )
        torch.testing.assert_close(row, full[:, end - 1 : end], rtol=1e-5, atol=1e-6)


def test_a_row_does_not_depend_on_what_comes_after_it() -> None:
    module = BlockSparseAttention(PATTERNS["global_local"])
    q, k, v = tensors(150)
    full = module(q, k, v, is_causal=True)
    for end in (1, 16, 17, 100):
        prefix = module(q[:, :end], k[:, :end], v[:, :end], is_causal=True)
        torch.testing.assert_close(prefix, full[:, :end], rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("pattern", PATTERNS)
def test_row_by_row_is_the_full_forward_on_the_gpu(pattern: str) -> None:
    module = BlockSparseAttention(PATTERNS[pattern], backend="triton")
    q, k, v = (x.cuda() for x in tensors(150))
    full = module(q, k, v, is_causal=True)
    rows = in_chunks(module, q, k, v, list(range(1, 151)))
    torch.testing.assert_close(rows, full, rtol=1e-5, atol=1e-6)
