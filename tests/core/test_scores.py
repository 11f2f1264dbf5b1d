"""What changes the scores: softcap, alibi_slopes, sinks and attn_bias, beside one dense formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import (
    BlockLayout,
    SparsePatternConfig,
    block_sparse_attention,
    block_sparse_attention_varlen,
)

BACKENDS = ["reference", "cpu"]
CONFIG = SparsePatternConfig(block_size=16, sparsity_ratio=0.5)
Q_LEN, KV_LEN, HEADS = 30, 50, 4
LAYOUT = BlockLayout.from_config(CONFIG, 64, causal=True)
SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0])
# float64, over 50 keys
TOLERANCE = {"rtol": 0.0, "atol": 1e-12}


def qkv(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """float64 leaves: queries 20 to 49 of 50 keys."""
    shapes = ((batch, Q_LEN, HEADS, 8), (batch, KV_LEN, 2, 8), (batch, KV_LEN, 2, 8))
    q, k, v = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    return q, k, v


def dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    attn_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """out and lse of the last queries, causal, with the blocks of `LAYOUT`."""
    k, v = k.repeat_interleave(2, 2), v.repeat_interleave(2, 2)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / 8**0.5
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    query, key = torch.arange(KV_LEN)[-Q_LEN:, None], torch.arange(KV_LEN)
    if alibi_slopes is not None:
        scores = scores - alibi_slopes[:, None, None] * (query - key).abs()
    if attn_bias is not None:
        scores = scores + attn_bias
    tokens = LAYOUT.to_dense().repeat_interleave(16, 0).repeat_interleave(16, 1)
    visible = tokens[KV_LEN - Q_LEN : KV_LEN, :KV_LEN] & (key <= query)
    scores = scores.masked_fill(~visible, -torch.inf)
    if sinks is not None:
        sink = sinks[None, :, None, None].expand(*scores.shape[:3], 1)
        weights, lse = (
            torch.cat([scores, sink], -1).softmax(-1)[..., :-1],
            torch.cat([scores, sink], -1).logsumexp(-1),
        )
    else:
        weights, lse = scores.softmax(-1), scores.logsumexp(-1)
    return torch.einsum("bhij,bjhd->bihd", weights, v), lse


def bias(*shape: int) -> Tensor:
    hidden = torch.rand(shape) < 0.2
    hidden[..., 0] = False
    return torch.randn(shape, dtype=torch.float64).masked_fill(hidden, -torch.inf)


OPTIONS: dict[str, dict[str, Any]] = {
    "softcap": {"softcap": 0.7},
    "softcap_of_an_int": {"softcap": 2},
    "no_softcap": {"softcap": 0.0},
    "alibi": {"alibi_slopes": SLOPES},
    "alibi_of_another_type": {"alibi_slopes": SLOPES.half()},
    "sinks": {"sinks": torch.tensor([0.3, -2.0, 4.0, -torch.inf], dtype=torch.float64)},
    "attn_bias": {"attn_bias": bias(2, HEADS, Q_LEN, KV_LEN)},
    "attn_bias_of_heads": {"attn_bias": bias(HEADS, Q_LEN, KV_LEN)},
    "attn_bias_of_keys": {"attn_bias": bias(2, 1, 1, KV_LEN)},
    "attn_bias_of_all": {"attn_bias": bias(Q_LEN, KV_LEN)},
    "attn_bias_in_float32": {"attn_bias": bias(Q_LEN, KV_LEN).float()},
    "all": {
        "softcap": 1.5, "alibi_slopes": SLOPES, "sinks": torch.randn(HEADS, dtype=torch.float64),
        "attn_bias": bias(2, 1, Q_LEN, KV_LEN),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_are_those_of_the_dense_formula(backend: str, name: str) -> None:
    options, leaves = dict(OPTIONS[name]), list(qkv())
    if "sinks" in options:
        options["sinks"] = options["sinks"].clone().requires_grad_()
    if "attn_bias" in options and name != "attn_bias_in_float32":
        # a query may see nothing but what the bias hides
        options["attn_bias"] = options["attn_bias"].clamp(min=-50.0)
    found = block_sparse_attention(
        *leaves, LAYOUT, is_causal=True, return_lse=True, backend=backend, **options
    )
    wanted = dense(*leaves, **options)
    leaves += [options["sinks"]] if "sinks" in options else []
    outputs = [torch.randn_like(x) for x in wanted]
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, **TOLERANCE)
    grads = [torch.autograd.grad(x, leaves, outputs) for x in (found, wanted)]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs.nan_to_num(), **TOLERANCE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_minus_infinity_in_an_attn_bias_hides(backend: str) -> None:
    q, k, v = (x.detach() for x in qkv(1))
    hides = torch.zeros(Q_LEN, KV_LEN, dtype=torch.float64)
    hides[:, 25:40] = -torch.inf
    hides[3] = -torch.inf
    out, lse = block_sparse_attention(
        q, k, v, LAYOUT, is_causal=True, attn_bias=hides, return_lse=True, backend=backend
    )
    padding = (torch.arange(KV_LEN) >= 25) & (torch.arange(KV_LEN) < 40)
    wanted = block_sparse_attention(
        q, k, v, LAYOUT, is_causal=True, key_padding_mask=padding[None], backend=backend
    )
    rows = torch.arange(Q_LEN) != 3
    torch.testing.assert_close(out[:, rows], wanted[:, rows], **TOLERANCE)
    assert not out[:, 3].any()
    assert (lse[:, :, 3] == -torch.inf).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_query_that_sees_no_key_has_no_output_also_with_sinks(backend: str) -> None:
    q, k, v = qkv(1)
    sinks = torch.zeros(HEADS, dtype=torch.float64, requires_grad=True)
    out, lse = block_sparse_attention(
        q,
        k,
        v,
        LAYOUT,
        is_causal=True,
        sinks=sinks,
        kv_lengths=torch.tensor([0]),
        return_lse=True,
        backend=backend,
    )
    assert not out.any()
    assert (lse == -torch.inf).all()
    grads = torch.autograd.grad((out, lse), (q, k, v, sinks), (torch.ones_like(out), torch.ones_like(lse)))
    assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_sinks_and_bias_are_those_of_finite_differences(backend: str, packed: bool) -> None:
    layout = BlockLayout.from_config(CONFIG, 32, causal=True)
    offsets = torch.tensor([0, 5, 14], dtype=torch.int32)
    shapes = [(14, 2, 3), (14, 1, 3), (14, 1, 2)] if packed else [(2, 9, 2, 3), (2, 20, 1, 3), (2, 20, 1, 2)]
    shapes += [(2,), (2, 2, layout.num_block_ids)]
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def attend(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, block_bias: Tensor) -> tuple[Tensor, ...]:
        options: dict[str, Any] = {
            "is_causal": True, "sinks": sinks, "block_bias": block_bias, "softcap": 2.0, "alibi_slopes": SLOPES[:2],
            "return_lse": True, "backend": backend,
        }  # fmt: skip
        if packed:
            return block_sparse_attention_varlen(q, k, v, layout, offsets, offsets, 9, 9, **options)
        starts, ends = torch.tensor([0, 3]), torch.tensor([20, 15])
        out, lse = block_sparse_attention(q, k, v, layout, kv_starts=starts, kv_lengths=ends, **options)
        return out, torch.where(lse == -torch.inf, 0.0, lse)

    assert torch.autograd.gradcheck(attend, leaves, fast_mode=True)


def test_sinks_in_a_narrower_type_get_a_gradient_in_it() -> None:
    q, k, v = (x.detach().bfloat16() for x in qkv())
    sinks = torch.zeros(HEADS, dtype=torch.float16, requires_grad=True)
    block_sparse_attention(q, k, v, LAYOUT, is_causal=True, sinks=sinks).sum().backward()
    assert sinks.grad is not None
    assert (sinks.grad.dtype, sinks.grad.shape) == (torch.float16, sinks.shape)


def test_only_the_reference_gives_the_gradient_of_an_attn_bias() -> None:
    q, k, v = (x.detach() for x in qkv())
    learned = torch.zeros(Q_LEN, KV_LEN, dtype=torch.float64, requires_grad=True)
    out = block_sparse_attention(q, k, v, LAYOUT, is_causal=True, attn_bias=learned, backend="reference")
    (grad,) = torch.autograd.grad(out.square().sum(), learned)
    assert grad.any()
    with torch.no_grad():
        block_sparse_attention(q, k, v, LAYOUT, is_causal=True, attn_bias=learned)


# ---- what a backward reads


@pytest.mark.parametrize("name", ["attn_bias", "alibi_slopes", "kv_lengths", "kv_starts", "q_offset"])
def test_options_changed_before_the_backward(name: str) -> None:
    """The gradient is that of the forward, or autograd refuses it as it does for every saved tensor."""
    q, k, v = qkv()
    made = {
        "attn_bias": lambda: torch.ones(Q_LEN, KV_LEN, dtype=torch.float64).tril(),
        "alibi_slopes": lambda: SLOPES.clone(),
        "kv_lengths": lambda: torch.tensor([40, 50], dtype=torch.int32),
        "kv_starts": lambda: torch.tensor([4, 0], dtype=torch.int32),
        "q_offset": lambda: torch.tensor([20, 7], dtype=torch.int32),
    }[name]
    option = made()
    wanted = block_sparse_attention(q, k, v, LAYOUT, is_causal=True, **{name: made()}).sin().sum()
    out = block_sparse_attention(q, k, v, LAYOUT, is_causal=True, **{name: option}).sin().sum()
    option.zero_()
    if name == "attn_bias":
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.backward()
        return
    for ours, theirs in zip(
        torch.autograd.grad(out, (q, k, v)), torch.autograd.grad(wanted, (q, k, v)), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["sinks", "attn_bias"])
def test_options_made_in_inference_mode_serve_training(name: str) -> None:
    q, k, v = qkv()
    with torch.inference_mode():
        option = {"sinks": torch.zeros(HEADS), "attn_bias": torch.zeros(Q_LEN, KV_LEN)}[name]
    block_sparse_attention(q, k, v, LAYOUT, is_causal=True, **{name: option}).sum().backward()
    assert q.grad is not None


def test_sinks_made_in_inference_mode_serve_training_of_a_bias_alone() -> None:
    q, k, v = (x.detach() for x in qkv())
    with torch.inference_mode():
        sinks = torch.zeros(HEADS)
    bias = torch.zeros(LAYOUT.num_block_ids, requires_grad=True)
    block_sparse_attention(q, k, v, LAYOUT, is_causal=True, block_bias=bias, sinks=sinks).sum().backward()
    assert bias.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_options_under_autocast(dtype: torch.dtype) -> None:
    q, k, v = (x.detach().float().requires_grad_() for x in qkv())
    sinks = torch.randn(HEADS, requires_grad=True)
    options: dict[str, Any] = {
        "is_causal": True, "softcap": 3.0, "alibi_slopes": SLOPES, "attn_bias": torch.randn(Q_LEN, KV_LEN),
        "kv_lengths": torch.tensor([50, 41]), "q_offset": torch.tensor([20, 11]),
    }  # fmt: skip
    with torch.autocast("cpu", dtype):
        out = block_sparse_attention(q, k, v, LAYOUT, sinks=sinks, **options)
    narrow = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
    wanted = block_sparse_attention(*narrow, LAYOUT, sinks=sinks, **options)
    assert out.dtype == dtype
    assert torch.equal(out, wanted)
    found = torch.autograd.grad(out.float().sin().sum(), (q, k, v, sinks))
    expected = torch.autograd.grad(wanted.float().sin().sum(), (*narrow, sinks))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs.float())


@pytest.mark.parametrize("backend", [*BACKENDS, pytest.param("triton", marks=pytest.mark.interpreter)])
def test_the_least_float_as_a_bias_is_no_minus_infinity(backend: str) -> None:
    """Masks of padding hold it: a row of nothing else is the mean of all values, as in scaled_dot_product_attention."""
    layout = BlockLayout.from_config(SparsePatternConfig(sparsity_ratio=1.0, block_size=16), 40)
    q, k, v = (torch.randn(1, 40, 2, 16) for _ in range(3))
    bias = torch.full((40, 40), torch.finfo(torch.float32).min)
    bias[20:] = 0.0
    out = block_sparse_attention(q, k, v, layout, attn_bias=bias, backend=backend)
    dense = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), attn_mask=bias
    )
    torch.testing.assert_close(out, dense.transpose(1, 2), rtol=0.0, atol=2e-6)
