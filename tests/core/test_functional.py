"""What single options mean: empty rows, padding, dropout, attention weights, token dilation, bias, the layout cache."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import (
    BlockLayout,
    BlockSparseAttention,
    SparsePatternConfig,
    block_sparse_attention,
    block_sparse_attention_varlen,
)
from dilated_attention_pytorch.backends.dropout import dropout_keep, keep_scale, keep_threshold, philox
from dilated_attention_pytorch.backends.problem import AttentionProblem
from dilated_attention_pytorch.backends.reference import attention_reference
from dilated_attention_pytorch.backends.registry import backend_named
from dilated_attention_pytorch.eager import run_attention
from dilated_attention_pytorch.functional import make_problem
from dilated_attention_pytorch.sequences import sequences_of_batch
from tests.core import slow_definition

FAST = ["cpu", pytest.param("triton", marks=pytest.mark.interpreter)]
BACKENDS = ["reference", *FAST]
HALF_KEPT = SparsePatternConfig(block_size=16, sparsity_ratio=0.5)
DENSE = SparsePatternConfig(block_size=16, sparsity_ratio=1.0)


def results(problem: AttentionProblem, backend: str) -> tuple[Tensor, Tensor]:
    """out and lse of a problem that no check has seen."""
    return (
        attention_reference(problem)
        if backend == "reference"
        else run_attention(problem, backend_named(backend))
    )


def qkv(
    q_len: int = 40, kv_len: int | None = None, batch: int = 1, heads: int = 2, kv_heads: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """float32 leaves with head_dim 16."""
    kv = (batch, q_len if kv_len is None else kv_len, heads if kv_heads is None else kv_heads, 16)
    shapes = ((batch, q_len, heads, 16), kv, kv)
    q, k, v = (torch.randn(shape, requires_grad=True) for shape in shapes)
    return q, k, v


def sdpa(q: Tensor, k: Tensor, v: Tensor, **kwargs: object) -> Tensor:
    """PyTorch's dense attention, in our shapes."""
    out = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), enable_gqa=True, **kwargs
    )
    return out.transpose(1, 2)


# ---- beside PyTorch


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_ratio_one_is_dense_attention(backend: str, is_causal: bool) -> None:
    q, k, v = qkv(75, batch=2, heads=4, kv_heads=2)
    layout = BlockLayout.from_config(DENSE, 75, causal=is_causal)
    out = block_sparse_attention(q, k, v, layout, is_causal=is_causal, backend=backend)
    torch.testing.assert_close(out, sdpa(q, k, v, is_causal=is_causal))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_softmax_runs_over_the_union_of_all_blocks(backend: str) -> None:
    # a key of another block changes the weights of all the others: no block is normalised on its own
    q, k, v = qkv(64, heads=1)
    mask = torch.eye(4, dtype=torch.bool)
    mask[2, 0] = True
    layout = BlockLayout.from_dense(mask, 16)
    tokens = mask.repeat_interleave(16, 0).repeat_interleave(16, 1)
    out = block_sparse_attention(q, k, v, layout, backend=backend)
    torch.testing.assert_close(out, sdpa(q, k, v, attn_mask=tokens))


@pytest.mark.parametrize("backend", FAST)
def test_large_scores_do_not_overflow(backend: str) -> None:
    q, k, v = qkv(40)
    layout = BlockLayout.from_config(HALF_KEPT, 40)
    out, lse = block_sparse_attention(q, k, v, layout, softmax_scale=1e4, return_lse=True, backend=backend)
    doubles = (x.detach().double() for x in (q, k, v))
    expected, expected_lse = block_sparse_attention(
        *doubles, layout, softmax_scale=1e4, return_lse=True, backend="reference"
    )
    assert lse.abs().max() > 1e3  # exp() of it is infinite in float32
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(out.double(), expected, rtol=0.0, atol=0.05)
    assert all(x.isfinite().all() for x in torch.autograd.grad(out.sum() + lse.sum(), (q, k, v)))


# ---- rows that see no key


def empty_by_layout() -> tuple[BlockLayout, dict[str, object], slice]:
    mask = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    return BlockLayout.from_dense(mask, 16, 40, 40), {}, slice(16, 32)


def empty_by_kv_lengths() -> tuple[BlockLayout, dict[str, object], slice]:
    return BlockLayout.from_config(DENSE, 40), {"kv_lengths": torch.tensor([0])}, slice(0, 40)


def empty_by_padding() -> tuple[BlockLayout, dict[str, object], slice]:
    mask = torch.zeros(1, 40, dtype=torch.bool)
    mask[:, :20] = True
    kwargs = {"key_padding_mask": mask, "is_causal": True}
    return BlockLayout.from_config(DENSE, 40, causal=True), kwargs, slice(0, 20)


def empty_by_position() -> tuple[BlockLayout, dict[str, object], slice]:
    return BlockLayout.from_config(DENSE, 40, 13, causal=True), {"is_causal": True}, slice(0, 27)


EMPTY = [empty_by_layout, empty_by_kv_lengths, empty_by_padding, empty_by_position]


@pytest.mark.parametrize("make", EMPTY, ids=lambda make: make.__name__)
@pytest.mark.parametrize("backend", BACKENDS)
def test_row_without_keys_gives_zero_and_minus_infinity_not_nan(backend: str, make: object) -> None:
    layout, kwargs, empty = make()
    q, k, v = qkv(layout.q_len, layout.kv_len)
    out, lse = block_sparse_attention(q, k, v, layout, return_lse=True, backend=backend, **kwargs)
    sees = torch.ones(layout.q_len, dtype=torch.bool)
    sees[empty] = False
    assert torch.equal(out[:, empty], torch.zeros_like(out[:, empty]))
    assert (lse[:, :, empty] == -torch.inf).all()
    assert lse[:, :, sees].isfinite().all()
    assert (out[:, sees] != 0).all()
    grads = torch.autograd.grad([out, lse], (q, k, v), [torch.randn_like(out), torch.randn_like(lse)])
    assert all(grad.isfinite().all() for grad in grads)
    assert not grads[0][:, empty].any()
    assert bool(grads[0].any()) == bool(sees.any())
    if not sees.any():
        assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("backend", BACKENDS)
def test_head_whose_residue_no_key_has_gives_zero(backend: str) -> None:
    # one key, j = 0: only heads with h mod 4 == 0 keep it
    q, k, v = qkv(20, 1, heads=4)
    layout = BlockLayout.from_config(DENSE, 20, 1)
    out, lse = block_sparse_attention(
        q, k, v, layout, segment_lengths=[16], dilation_rates=[4], return_lse=True, backend=backend
    )
    torch.testing.assert_close(out[:, :, 0], v[:, :, 0].expand(-1, 20, -1))
    assert not out[:, :, 1:].any()
    assert (lse[:, 1:] == -torch.inf).all()
    assert lse[:, 0].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_the_lse_of_an_empty_row_is_zero_even_for_a_bad_loss(backend: str) -> None:
    # the loss of -inf has the gradient inf; the row must not spread it
    layout, kwargs, empty = empty_by_layout()
    q, k, v = qkv()
    out, lse = block_sparse_attention(q, k, v, layout, return_lse=True, backend=backend, **kwargs)
    grad_lse = torch.randn_like(lse)
    grad_lse[:, :, empty] = torch.inf
    grads = torch.autograd.grad([out, lse], (q, k, v), [torch.randn_like(out), grad_lse])
    assert all(grad.isfinite().all() for grad in grads)
    assert not grads[0][:, empty].any()


# ---- padding


@pytest.mark.parametrize("poison", [torch.nan, torch.inf], ids=["nan", "inf"])
@pytest.mark.parametrize("how", ["kv_lengths", "key_padding_mask"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_padded_keys_may_hold_anything(backend: str, how: str, poison: float) -> None:
    # a cache holds what its memory held before
    q, k, v = qkv(40, batch=2)
    padding = torch.arange(40) >= torch.tensor([[33], [7]])
    kwargs = (
        {"key_padding_mask": padding} if how == "key_padding_mask" else {"kv_lengths": torch.tensor([33, 7])}
    )
    layout = BlockLayout.from_config(DENSE, 40)
    clean = block_sparse_attention(q, k, v, layout, backend=backend, **kwargs)
    expected = torch.autograd.grad(clean.square().sum(), (q, k, v))
    poisoned = [x.detach().masked_fill(padding[:, :, None, None], poison).requires_grad_() for x in (k, v)]
    out = block_sparse_attention(q, *poisoned, layout, backend=backend, **kwargs)
    found = torch.autograd.grad(out.square().sum(), (q, *poisoned))
    torch.testing.assert_close(out, clean)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not found[1][padding].any()
    assert not found[2][padding].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_kv_lengths_and_padding_mask_agree_with_a_shorter_call(backend: str) -> None:
    q, k, v = qkv(40, 64)
    short = block_sparse_attention(
        q, k[:, :50], v[:, :50], BlockLayout.from_config(DENSE, 40, 50), backend=backend
    )
    layout = BlockLayout.from_config(DENSE, 40, 64)
    for kwargs in (
        {"kv_lengths": torch.tensor([50])},
        {"kv_lengths": torch.tensor([50], dtype=torch.int32)},
        {"key_padding_mask": torch.arange(64)[None] >= 50},
    ):
        torch.testing.assert_close(block_sparse_attention(q, k, v, layout, backend=backend, **kwargs), short)


@pytest.mark.parametrize("backend", BACKENDS)
def test_kv_lengths_that_nobody_checks_are_clamped(backend: str) -> None:
    # on a GPU and in compiled code their values are not read
    q, k, v = qkv(40, batch=3)
    layout = BlockLayout.from_config(HALF_KEPT, 40)
    problem = make_problem(q, k, v, layout, kv_lengths=torch.tensor([40, 0, 7]))
    expected = results(problem, backend)
    beyond = torch.tensor([2**31 - 1, -(2**31), 7], dtype=torch.int32)
    _, sequences = sequences_of_batch(q, 40, False, kv_lengths=beyond)
    found = results(dataclasses.replace(problem, sequences=sequences), backend)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0)


def test_compiled_kv_lengths_beyond_int32_do_not_wrap() -> None:
    q, k, v = qkv(40, batch=3)
    layout = BlockLayout.from_config(HALF_KEPT, 40)
    expected = block_sparse_attention(q, k, v, layout, kv_lengths=torch.tensor([40, 0, 7]))
    compiled = torch.compile(block_sparse_attention, backend="eager", fullgraph=True)
    found = compiled(q, k, v, layout, kv_lengths=torch.tensor([2**32 + 3, -(2**32) + 5, 7]))
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0)


# ---- block_bias of inference mode


@pytest.mark.parametrize("shape", [(2, 2, -1), (2, -1), (-1,)], ids=len)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_block_bias_made_in_inference_mode_serves_training(
    shape: tuple[int, ...], backend: str, name: str
) -> None:
    inputs = dict(zip("qkv", qkv(40, batch=2)))
    inputs = {each: x.detach().requires_grad_(each == name) for each, x in inputs.items()}
    layout = BlockLayout.from_config(HALF_KEPT, 40)
    with torch.inference_mode():
        bias = torch.randn(*shape[:-1], layout.num_active_blocks)
    gradients = []
    for each in (bias, bias.clone()):
        out = block_sparse_attention(**inputs, layout=layout, block_bias=each, backend=backend)
        gradients.append(torch.autograd.grad(out.square().sum(), inputs[name])[0])
    assert torch.equal(*gradients)


# ---- dropout


def dropped_weights(
    backend: str, n: int, p: float, heads: int = 2, kv_heads: int | None = None
) -> tuple[Tensor, Tensor]:
    """The weights after dropout that the forward used and those that the backward used, (batch, heads, n, n).

    With v the unit matrix the output is the weights; with the unit matrix as its gradient that of v is their
    transpose. All weights are 1 / n before dropout, as q is 0.
    """
    q = torch.zeros(2, n, heads, 16)
    k = torch.randn(2, n, heads if kv_heads is None else kv_heads, 16)
    v = torch.eye(n)[None, :, None].repeat(2, 1, k.shape[2], 1).requires_grad_()
    layout = BlockLayout.from_config(DENSE, n)
    out = block_sparse_attention(q, k, v, layout, dropout_p=p, backend=backend)
    grad = torch.eye(n)[None, :, None].expand(2, n, heads, n)
    (grad_v,) = torch.autograd.grad(out, v, grad)
    return out.detach().transpose(1, 2), grad_v.permute(0, 2, 3, 1)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_and_backward_drop_the_same_weights(backend: str, p: float) -> None:
    n = 48
    forward, backward = dropped_weights(backend, n, p)
    torch.testing.assert_close(backward, forward)
    kept = forward > 0
    assert kept.any()
    assert not kept.all()
    torch.testing.assert_close(forward[kept], torch.full_like(forward[kept], 1 / n * keep_scale(p)))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_the_share_that_was_asked_for(p: float) -> None:
    n = 128
    weights, _ = dropped_weights("cpu", n, p)
    kept = (weights > 0).double()
    deviation = math.sqrt(p * (1 - p))
    # five standard deviations of the mean: of all weights, of every row, of every column, of every head
    assert abs(float(kept.mean()) - (1 - p)) < 5 * deviation / math.sqrt(kept.numel())
    for dims in ((0, 1, 3), (0, 1, 2), (0, 2, 3)):
        means = kept.mean(dims)
        assert (means - (1 - p)).abs().max() < 5 * deviation / math.sqrt(kept.numel() / means.numel())
    # neighbouring weights are dropped independently
    for shifted in (kept[..., 1:] * kept[..., :-1], kept[..., 1:, :] * kept[..., :-1, :]):
        both = (1 - p) ** 2
        assert abs(float(shifted.mean()) - both) < 5 * math.sqrt(3 * both / shifted.numel())


def test_every_head_batch_element_and_call_draws_its_own_mask() -> None:
    first, _ = dropped_weights("cpu", 48, 0.5)
    second, _ = dropped_weights("cpu", 48, 0.5)
    masks = [*(first > 0).flatten(0, 1), *(second > 0).flatten(0, 1)]
    for i, mask in enumerate(masks):
        for other in masks[i + 1 :]:
            assert 0.4 < float((mask == other).double().mean()) < 0.6


def test_heads_that_share_keys_draw_their_own_masks() -> None:
    weights, _ = dropped_weights("cpu", 48, 0.5, heads=2, kv_heads=1)
    first, second = (weights > 0).unbind(1)
    assert 0.4 < float((first == second).double().mean()) < 0.6


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_weights_are_dropped_independently(p: float) -> None:
    n = 256
    places, seed = torch.arange(n), 0x1234_5678_9ABC_DEF

    def mask(key: int = 0, query: int = 0, head: int = 3, of: int = seed) -> Tensor:
        return dropout_keep(
            torch.tensor([of]), p, places + key, (places + query)[:, None], torch.tensor([head])
        )

    # of one call of Philox, and of neighbours; of other heads, batch elements and seeds
    others = [
        mask(key, query)
        for key, query in (
            (1, 0),
            (8, 0),
            (9, 0),
            (0, 8),
            (1, 8),
            (8, 8),
            (9, 8),
            (0, 1),
            (2, 0),
            (4, 4),
            (16, 0),
        )
    ]
    others += [mask(head=head) for head in (2, 4, 3 + 2**16)]
    others += [mask(of=of) for of in (seed + 1, seed ^ 2**31, seed ^ 2**32, seed ^ 2**61)]
    first, both = mask(), (1 - p) ** 2
    for other in others:
        assert abs(float((first & other).double().mean()) - both) < 5 * math.sqrt(3 * both) / n


def test_packed_sequences_drop_what_elements_of_a_batch_drop() -> None:
    q, k, v = qkv(40, batch=3)
    layout = BlockLayout.from_config(HALF_KEPT, 40)
    torch.manual_seed(5)
    batch = block_sparse_attention(q, k, v, layout, dropout_p=0.5, backend="cpu")
    bounds = torch.tensor([0, 40, 80, 120], dtype=torch.int32)
    torch.manual_seed(5)
    packed = block_sparse_attention_varlen(
        *(x.flatten(0, 1) for x in (q, k, v)), layout, bounds, bounds, 40, 40, dropout_p=0.5, backend="cpu"
    )
    torch.testing.assert_close(packed.view_as(batch), batch)


def test_a_chunk_of_queries_drops_what_the_whole_call_drops() -> None:
    q, k, v = qkv(40)
    layout = BlockLayout.from_config(HALF_KEPT, 40, causal=True)
    made = []
    for first in (0, 13):
        torch.manual_seed(5)
        made.append(
            block_sparse_attention(
                q[:, first:], k, v, layout, is_causal=True, q_offset=first, dropout_p=0.5, backend="cpu"
            )
        )
    torch.testing.assert_close(made[1], made[0][:, 13:])


@pytest.mark.interpreter
def test_every_backend_drops_the_same_weights() -> None:
    masks = []
    for backend in ("reference", "cpu", "triton"):
        torch.manual_seed(5)
        masks.append(dropped_weights(backend, 40, 0.5)[0] > 0)
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


def test_dropout_follows_the_seed_and_leaves_the_rest_of_the_random_numbers_alone() -> None:
    q, k, v = qkv()
    layout = BlockLayout.from_config(HALF_KEPT, 40)
    torch.manual_seed(7)
    first = block_sparse_attention(q, k, v, layout, dropout_p=0.5)
    torch.manual_seed(7)
    assert torch.equal(block_sparse_attention(q, k, v, layout, dropout_p=0.5), first)
    torch.manual_seed(7)
    block_sparse_attention(q, k, v, layout)  # no dropout, no random number
    after = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(1), after)


def test_random_bits_are_those_of_philox() -> None:
    seed = torch.tensor([0x1234_5678_9ABC_DEF])
    key = (int(seed) & 0xFFFFFFFF, int(seed) >> 32)
    counters = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**31, 2**32 - 1, 17), (4095, 100, 7)]
    expected = [slow_definition.philox_4x32((*counter, 0), key, 7) for counter in counters]
    columns = [torch.tensor(column) for column in zip(*counters, strict=True)]
    assert torch.stack(philox(seed, *columns), 1).tolist() == expected
    # the known answers of Random123 for counter and key 0 (kat_vectors, philox4x32)
    zero = torch.zeros(1, dtype=torch.int64)
    known = {
        7: [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48],
        10: [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8],
    }
    for rounds, words in known.items():
        assert torch.cat(philox(zero, zero, zero, zero, rounds)).tolist() == words


def test_weights_are_dropped_by_the_numbers_of_the_definition() -> None:
    seed, p = 0x1234_5678_9ABC_DEF, 0.3
    keys, queries, heads = torch.arange(100, 140), torch.arange(-9, 30), torch.tensor([0, 5])
    keep = dropout_keep(torch.tensor([seed]), p, keys, queries[:, None], heads[:, None, None])
    expected = [
        [
            [
                slow_definition.dropout_number(seed, int(j), int(i) & 0xFFFFFFFF, int(h)) >= 0.3 * 2**16
                for j in keys
            ]
            for i in queries
        ]
        for h in heads
    ]
    assert keep.tolist() == expected


def test_a_probability_is_rounded_to_15_bits() -> None:
    keys = torch.arange(10_000)
    seed, zero = torch.tensor([1]), torch.zeros(1, dtype=torch.int64)
    assert dropout_keep(seed, 1e-9, keys, zero, zero).all()
    assert keep_scale(1e-9) == 1.0
    assert int(dropout_keep(seed, 1 - 1e-9, keys, zero, zero).sum()) < 10
    assert keep_scale(1 - 1e-9) == 2**15
    assert keep_scale(0.1) == pytest.approx(1 / 0.9, rel=1e-4)
    assert keep_threshold(0.25) == 2**14


def test_module_drops_in_training_only() -> None:
    module = BlockSparseAttention(HALF_KEPT, dropout=0.5)
    plain = BlockSparseAttention(HALF_KEPT)
    q, k, v = qkv()
    assert not torch.allclose(module(q, k, v), plain(q, k, v))
    module.eval()
    assert torch.equal(module(q, k, v), plain(q, k, v))


# ---- attention weights of the module


@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_attention_weights_give_the_output(is_causal: bool) -> None:
    module = BlockSparseAttention(HALF_KEPT)
    q, k, v = qkv(40, 75, batch=2, heads=4, kv_heads=2)
    padding = torch.rand(2, 75) < 0.2
    out, weights = module(q, k, v, is_causal, padding, return_attention_weights=True)
    assert torch.equal(out, module(q, k, v, is_causal, padding))
    assert weights.shape == (2, 4, 40, 75)
    assert weights.dtype == torch.float32
    product = torch.einsum("bhij,bjhd->bihd", weights, v.repeat_interleave(2, dim=2))
    torch.testing.assert_close(product, out)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 40))
    assert not weights.masked_select(padding[:, None, None]).any()


def test_attention_weights_are_zero_outside_the_layout() -> None:
    module = BlockSparseAttention(HALF_KEPT)
    q, k, v = qkv(64)
    _, weights = module(q, k, v, return_attention_weights=True)
    active = module.layout(64).to_dense().repeat_interleave(16, 0).repeat_interleave(16, 1)
    assert torch.equal(weights > 0, active.expand(1, 2, 64, 64))


def test_attention_weights_are_those_after_dropout() -> None:
    module = BlockSparseAttention(HALF_KEPT, dropout=0.5)
    q, k, v = qkv()
    out, weights = module(q, k, v, return_attention_weights=True)
    torch.testing.assert_close(torch.einsum("bhij,bjhd->bihd", weights, v), out)
    assert not torch.allclose(weights.sum(-1), torch.ones(1, 2, 40))


def test_attention_weights_of_half_precision_are_float32() -> None:
    module = BlockSparseAttention(HALF_KEPT)
    out, weights = module(*(x.bfloat16() for x in qkv()), return_attention_weights=True)
    assert out.dtype == torch.bfloat16
    assert weights.dtype == torch.float32


# ---- token dilation


def seen_keys(heads: int, segment_lengths: list[int], dilation_rates: list[int], backend: str) -> Tensor:
    """Bool (heads, query, key) of 64 tokens in blocks of 16."""
    v = torch.eye(64)[None, :, None].repeat(1, 1, heads, 1)
    q = torch.zeros(1, 64, heads, 16)
    out = block_sparse_attention(
        q, q, v, BlockLayout.from_config(DENSE, 64), segment_lengths=segment_lengths,
        dilation_rates=dilation_rates, backend=backend,
    )  # fmt: skip
    return out[0].transpose(0, 1) > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_token_dilation_keeps_the_keys_of_the_heads_residue_by_distance(backend: str) -> None:
    seen = seen_keys(4, [16, 32], [1, 4], backend)
    blocks = torch.arange(64) // 16
    near = blocks[:, None] == blocks
    for head in range(4):
        kept = (torch.arange(64) % 4 == head).expand(64, 64)
        assert torch.equal(seen[head], near | kept)
    assert seen.any(0).all()  # the heads together see every key


@pytest.mark.parametrize("backend", BACKENDS)
def test_rate_one_everywhere_is_no_token_dilation(backend: str) -> None:
    q, k, v = qkv()
    layout = BlockLayout.from_config(HALF_KEPT, 40)
    plain = block_sparse_attention(q, k, v, layout, backend=backend)
    for segments in ([2048], [16, 2048]):
        same = block_sparse_attention(
            q, k, v, layout, segment_lengths=segments, dilation_rates=[1] * len(segments), backend=backend
        )
        assert torch.equal(same, plain)


def test_module_passes_its_token_dilation_scale_and_backend_on() -> None:
    q, k, v = qkv(64)
    module = BlockSparseAttention(HALF_KEPT, [16, 32], [1, 4], softmax_scale=0.7, backend="reference")
    expected = block_sparse_attention(
        q, k, v, BlockLayout.from_config(HALF_KEPT, 64), segment_lengths=[16, 32], dilation_rates=[1, 4],
        softmax_scale=0.7, backend="reference",
    )  # fmt: skip
    assert torch.equal(module(q, k, v), expected)


# ---- block bias


@pytest.mark.parametrize("backend", BACKENDS)
def test_block_bias_is_added_to_the_scores_in_the_order_of_the_row_lists(backend: str) -> None:
    q, k, v = qkv(64, heads=1)
    layout = BlockLayout.from_config(HALF_KEPT, 64)
    bias = torch.randn(layout.num_active_blocks)
    dense = torch.full((64, 64), -torch.inf)
    place = 0
    for row, columns in enumerate(layout.rows()):
        for column in columns:
            dense[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = bias[place]
            place += 1
    out = block_sparse_attention(q, k, v, layout, block_bias=bias, backend=backend)
    torch.testing.assert_close(out, sdpa(q, k, v, attn_mask=dense))


# ---- memory formats


@pytest.mark.parametrize("backend", FAST)
def test_parts_of_one_projection_are_taken_as_they_are(backend: str) -> None:
    packed = torch.randn(2, 40, 3, 2, 16, requires_grad=True)
    layout = BlockLayout.from_config(HALF_KEPT, 40)
    results = []
    for tensors in (packed.unbind(2), [x.contiguous() for x in packed.unbind(2)]):
        out = block_sparse_attention(*tensors, layout, backend=backend)
        results.append((out, *torch.autograd.grad(out.square().sum(), packed)))
    torch.testing.assert_close(results[0], results[1])
    assert results[0][0].is_contiguous()


@pytest.mark.parametrize("backend", FAST)
def test_inputs_are_left_as_they_were(backend: str) -> None:
    q, k, v = qkv()
    before = [x.detach().clone() for x in (q, k, v)]
    padding = torch.rand(1, 40) < 0.3
    out = block_sparse_attention(
        q, k, v, BlockLayout.from_config(HALF_KEPT, 40), key_padding_mask=padding, backend=backend
    )
    out.sum().backward()
    for tensor, old in zip((q, k, v), before, strict=True):
        assert torch.equal(tensor, old)


# ---- the module's layouts


def test_module_builds_a_layout_once_per_lengths_and_causality() -> None:
    module = BlockSparseAttention(HALF_KEPT)
    first = module.layout(40)
    assert module.layout(40, 40) is first
    assert module.layout(40, causal=True) is not first
    assert module.layout(40, 41) is not first
    module.clear_cache()
    assert module.layout(40) is not first
    assert module.layout(40).rows() == first.rows()


def test_module_with_a_pattern_per_head() -> None:
    configs = [HALF_KEPT, SparsePatternConfig("local_window", 16, window_size=16)]
    module = BlockSparseAttention(configs)
    q, k, v = qkv(64)
    out = module(q, k, v)
    for head, config in enumerate(configs):
        alone = BlockSparseAttention(config)(*(x[:, :, head : head + 1] for x in (q, k, v)))
        torch.testing.assert_close(out[:, :, head : head + 1], alone)


def test_largest_allocation_of_the_cpu_backend_follows_the_active_blocks() -> None:
    # twice the length at half the ratio: twice the active blocks, but four times the pairs of tokens
    largest = {}
    for length, ratio in ((4096, 0.02), (8192, 0.01)):
        q, k, v = (torch.randn(1, length, 1, 16, requires_grad=True) for _ in range(3))
        layout = BlockLayout.from_config(SparsePatternConfig(block_size=16, sparsity_ratio=ratio), length)
        with torch.profiler.profile(profile_memory=True) as profile:
            block_sparse_attention(q, k, v, layout, backend="cpu").sum().backward()
        events = profile.profiler.kineto_results.events()
        largest[length] = max(event.nbytes() for event in events if event.name() == "[memory]")
        assert largest[length] < length * length / 4  # bytes: a byte for every pair is too much
    assert largest[8192] < 2.5 * largest[4096]
