"""FLOPs as torch.utils.flop_counter counts them: two products over the active blocks forward, five backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from dilated_attention_pytorch import (
    BlockLayout,
    BlockSparseAttention,
    SparsePatternConfig,
    block_sparse_attention,
)

BATCH, HEADS, DIM = 2, 4, 16
DENSE = SparsePatternConfig(block_size=16, sparsity_ratio=1.0)


def flops(attend: Callable[..., Tensor], tensors: list[Tensor], backward: bool = False) -> int:
    with FlopCounterMode(display=False) as counter:
        out = attend(*tensors)
        if backward:
            out.sum().backward()
    total: int = counter.get_total_flops()
    return total


def qkv(q_len: int, kv_len: int | None = None, v_dim: int = DIM, requires_grad: bool = False) -> list[Tensor]:
    kv_len = q_len if kv_len is None else kv_len
    shapes = [(q_len, DIM), (kv_len, DIM), (kv_len, v_dim)]
    return [torch.randn(BATCH, n, HEADS, dim, requires_grad=requires_grad) for n, dim in shapes]


def of_dense(tensors: list[Tensor], backward: bool = False) -> int:
    """What torch counts for scaled_dot_product_attention's fused kernels."""
    q, k, v = (x.transpose(1, 2).shape for x in tensors)
    forward: int = sdpa_flop_count(q, k, v)
    return forward + (sdpa_backward_flop_count((*q[:3], v[3]), q, k, v) if backward else 0)


def function(config: SparsePatternConfig = DENSE, **options: Any) -> Callable[..., Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        layout = BlockLayout.from_config(config, q.shape[1], k.shape[1], options.get("is_causal", False))
        return block_sparse_attention(q, k, v, layout, **options)

    return attend


@pytest.mark.parametrize("attend", [BlockSparseAttention(DENSE), function()], ids=["module", "function"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "with_backward"])
@pytest.mark.parametrize(
    ("q_len", "kv_len", "v_dim"), [(64, 64, 16), (33, 33, 16), (20, 50, 16), (64, 64, 8)]
)
def test_ratio_one_counts_as_dense_attention(
    attend: Callable[..., Tensor], backward: bool, q_len: int, kv_len: int, v_dim: int
) -> None:
    tensors = qkv(q_len, kv_len, v_dim, requires_grad=backward)
    assert flops(attend, tensors, backward) == of_dense(tensors, backward)


@pytest.mark.parametrize("is_causal", [False, True])
def test_active_blocks_count_alone(is_causal: bool) -> None:
    config = SparsePatternConfig(block_size=16, sparsity_ratio=0.3)
    layout = BlockLayout.from_config(config, 128, causal=is_causal)
    pairs = BATCH * HEADS * layout.num_active_blocks * 16**2
    module = BlockSparseAttention(config)
    assert flops(lambda *x: module(*x, is_causal=is_causal), qkv(128)) == 4 * pairs * DIM
    assert flops(function(config, is_causal=is_causal), qkv(128)) == 4 * pairs * DIM


def test_last_blocks_count_up_to_the_lengths() -> None:
    config = SparsePatternConfig("local_window", 16, window_size=16)  # the neighbours on both sides
    pairs = BATCH * HEADS * (16 * 32 + 16 * 40 + 8 * 24)
    assert flops(BlockSparseAttention(config), qkv(40)) == 4 * pairs * DIM
    # one query in the middle of the last block of 40 keys
    decoding = flops(lambda *x: BlockSparseAttention(config)(*x, is_causal=True), qkv(1, 40))
    assert decoding == 4 * BATCH * HEADS * (16 + 8) * DIM


def test_dropped_keys_of_token_dilation_do_not_count() -> None:
    tensors = qkv(64)
    everywhere = BlockSparseAttention(DENSE, [16], [4])
    assert flops(everywhere, tensors) == of_dense(tensors) // 4
    # the 4 blocks of the diagonal whole, the 12 others by a quarter
    beyond = BlockSparseAttention(DENSE, [16, 32], [1, 4])
    assert flops(beyond, tensors) == of_dense(tensors) * (4 + 12 // 4) // 16


def test_heads_with_patterns_of_their_own() -> None:
    neighbours = SparsePatternConfig("local_window", 16, window_size=16)  # 10 of 16 blocks
    module = BlockSparseAttention([DENSE, DENSE, DENSE, neighbours])
    tensors = qkv(64)
    assert flops(module, tensors) == of_dense(tensors) * (3 * 16 + 10) // (4 * 16)


@pytest.mark.filterwarnings(r"ignore:Using `torch.compile\(module\)` when there are global hooks")
def test_compiled_calls_and_fake_tensors_count_the_same() -> None:
    module, tensors = BlockSparseAttention(SparsePatternConfig(block_size=16, sparsity_ratio=0.4)), qkv(128)
    expected = flops(module, tensors)
    torch.compiler.reset()
    assert flops(torch.compile(module, backend="aot_eager"), tensors) == expected
    with FakeTensorMode():
        assert flops(module, qkv(128)) == expected


def test_reference_counts_its_dense_products_whatever_the_ratio() -> None:
    tensors = qkv(64)
    sparse, dense = (
        flops(
            BlockSparseAttention(
                SparsePatternConfig(block_size=16, sparsity_ratio=ratio), backend="reference"
            ),
            tensors,
        )
        for ratio in (0.1, 1.0)
    )
    assert sparse == dense >= of_dense(tensors)
