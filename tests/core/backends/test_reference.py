"""The definition itself, where its dense arithmetic could betray it: hidden infinities, NaN, autocast."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import (
    BlockLayout,
    BlockSparseAttention,
    SparsePatternConfig,
    block_sparse_attention,
)

BACKENDS = ["reference", "cpu", pytest.param("triton", marks=pytest.mark.interpreter)]
EYE = torch.eye(3, dtype=torch.bool)
LOWER = EYE | EYE.roll(1, 0)  # block 2 of row 0 is active, 1 is not


def qkv(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(1, 48, 2, 16, dtype=dtype, requires_grad=True) for _ in range(3)]


# ---- infinite biases


@pytest.mark.parametrize("backend", BACKENDS)
def test_bias_of_minus_infinity_hides_its_block(backend: str) -> None:
    q, k, v = qkv()
    layout = BlockLayout.from_dense(LOWER, 16)
    bias = torch.randn(2, layout.num_active_blocks)
    bias[:, 1] = -torch.inf  # row 0, block 2
    bias.requires_grad_()
    hidden = LOWER.clone()
    hidden[0, 2] = False
    kept = torch.cat([bias[:, :1], bias[:, 2:]], dim=1).detach().requires_grad_()
    call = {"return_lse": True, "backend": backend}
    found = block_sparse_attention(q, k, v, layout, block_bias=bias, **call)
    expected = block_sparse_attention(q, k, v, BlockLayout.from_dense(hidden, 16), block_bias=kept, **call)
    torch.testing.assert_close(found, expected)
    seeds = [torch.randn_like(x) for x in found]
    grads = torch.autograd.grad(found, (q, k, v, bias), seeds)
    wanted = torch.autograd.grad(expected, (q, k, v, kept), seeds)
    torch.testing.assert_close(grads[:3], wanted[:3])
    assert not grads[3][:, 1].any()
    torch.testing.assert_close(torch.cat([grads[3][:, :1], grads[3][:, 2:]], dim=1), wanted[3])


@pytest.mark.parametrize("backend", BACKENDS)
def test_row_whose_biases_are_all_minus_infinity_gives_zero_not_nan(backend: str) -> None:
    q, k, v = qkv()
    layout = BlockLayout.from_dense(LOWER, 16)
    bias = torch.zeros(2, layout.num_active_blocks)
    bias[0, :2] = -torch.inf  # all of row 0 of head 0
    bias.requires_grad_()
    out, lse = block_sparse_attention(q, k, v, layout, block_bias=bias, return_lse=True, backend=backend)
    assert not out[:, :16, 0].any()
    assert (lse[:, 0, :16] == -torch.inf).all()
    assert lse[:, 1].isfinite().all()
    grads = torch.autograd.grad([out, lse], (q, k, v, bias), [torch.randn_like(out), torch.randn_like(lse)])
    assert all(grad.isfinite().all() for grad in grads)
    assert not grads[0][:, :16, 0].any()
    assert not grads[3][0, :2].any()


# ---- keys and values that are not finite


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=["nan", "inf", "minus_inf"])
@pytest.mark.parametrize("which", ["k", "v"])
@pytest.mark.parametrize("backend", BACKENDS)
# numpy's, in Triton's interpreter: 0 times infinity.
@pytest.mark.filterwarnings("ignore:invalid value encountered in (matmul|multiply):RuntimeWarning")
def test_rows_do_not_notice_what_stands_in_blocks_that_they_do_not_see(
    backend: str, which: str, value: float
) -> None:
    # block 1 is seen by rows 1 and 2, not by row 0
    q, k, v = (x.detach() for x in qkv())
    layout = BlockLayout.from_dense(LOWER, 16)
    results = []
    for poison in (0.5, value):
        tensors = {"q": q.clone(), "k": k.clone(), "v": v.clone()}
        tensors[which][:, 20] = poison
        leaves = {name: x.requires_grad_() for name, x in tensors.items()}
        out, lse = block_sparse_attention(**leaves, layout=layout, return_lse=True, backend=backend)
        out, lse = out[:, :16], lse[:, :, :16]
        grads = torch.autograd.grad(out.square().sum() + lse.sum(), list(leaves.values()))
        results.append((out, lse, grads[0][:, :16]))
    torch.testing.assert_close(results[1], results[0])


def test_rows_that_see_a_nan_become_nan() -> None:
    q, k, v = (x.detach() for x in qkv())
    layout = BlockLayout.from_dense(LOWER, 16)
    for tensor in (k, v):
        poisoned = tensor.clone()
        poisoned[:, 20] = torch.nan
        pair = (poisoned, v) if tensor is k else (k, poisoned)
        out = block_sparse_attention(q, *pair, layout, backend="reference")
        assert out[:, 16:].isnan().all()
        assert out[:, :16].isfinite().all()


# ---- autocast and defaults


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_lse_under_autocast_is_as_exact_as_without(backend: str) -> None:
    q, k, v = (x.detach() for x in qkv(torch.bfloat16))
    layout = BlockLayout.from_dense(LOWER, 16)
    expected = block_sparse_attention(q, k, v, layout, return_lse=True, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = block_sparse_attention(
            q.float(), k.float(), v.float(), layout, return_lse=True, backend=backend
        )
    assert found[1].dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0)


def test_attention_weights_under_autocast_are_float32_and_sum_to_one() -> None:
    module = BlockSparseAttention(SparsePatternConfig(block_size=16, sparsity_ratio=0.5))
    q, k, v = (x.detach() for x in qkv(torch.bfloat16))
    _, expected = module(q, k, v, return_attention_weights=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, weights = module(q.float(), k.float(), v.float(), return_attention_weights=True)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, expected, rtol=0.0, atol=0.0)
    # float32 rounds to 6e-8; sums over 48 keys cost a digit more
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2, 48), rtol=0.0, atol=1e-6)


def test_default_type_and_device_change_nothing() -> None:
    q, k, v = qkv()
    layout = BlockLayout.from_dense(LOWER, 16)
    call = {"segment_lengths": [16, 32], "dilation_rates": [1, 2], "return_lse": True, "backend": "reference"}
    expected = block_sparse_attention(q, k, v, layout, **call)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = block_sparse_attention(q, k, v, layout, **call)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0)


def test_large_finite_biases_leave_weights_that_sum_to_one() -> None:
    """As masks of padding hold them; the log of the denominator has no digits beside them."""
    layout = BlockLayout.from_config(SparsePatternConfig(sparsity_ratio=1.0), 70)
    q, k, v = (torch.randn(1, 70, 2, 16) for _ in range(3))
    bias = torch.full((70, 70), torch.finfo(torch.float32).min)
    bias[30:] = 0.0
    out = block_sparse_attention(q, k, v, layout, attn_bias=bias, backend="reference")
    torch.testing.assert_close(
        out[:, :30], v.mean(1, keepdim=True).expand(-1, 30, -1, -1), rtol=0.0, atol=1e-6
    )
    plain = block_sparse_attention(q, k, v, layout, backend="reference")
    torch.testing.assert_close(out[:, 30:], plain[:, 30:], rtol=0.0, atol=1e-6)
