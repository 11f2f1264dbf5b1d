"""Masks, causality and errors of the multi-head module, also at ratios below 1."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dilated_attention_pytorch import BlockSparseMultiheadAttention, SparsePatternConfig
from tests.core.modules.multihead_cases import EXACT, assert_same, pair, results

EMBED, HEADS = 8, 2
MODES = ["train", "eval", "no_grad", "autocast"]
SPARSE = SparsePatternConfig(sparsity_ratio=0.3, block_size=16)


def inputs(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(*shape, EMBED, dtype=torch.float64) for shape in shapes]


def sparse_attention(config: Any = SPARSE, **options: Any) -> BlockSparseMultiheadAttention:
    attention = BlockSparseMultiheadAttention(EMBED, HEADS, batch_first=True, sparse_config=config, **options)
    return attention.double()


def active_pairs(attention: BlockSparseMultiheadAttention, length: int, causal: bool = False) -> Tensor:
    """Bool (layout heads, length, length): what the pattern shows, without masks."""
    blocks = attention.layout(length, causal=causal).to_dense()
    size = attention.block_size
    pairs = blocks.repeat_interleave(size, -2).repeat_interleave(size, -1)[..., :length, :length]
    return pairs.tril() if causal else pairs


# ---- float masks


def test_float_masks_with_finite_values_and_their_gradients() -> None:
    dense, sparse = pair(EMBED, HEADS, batch_first=True)
    (x,) = inputs((2, 40))
    distance = (torch.arange(40)[:, None] - torch.arange(40)).abs().double()
    slopes = torch.tensor([0.5, 0.25, 0.5, 0.25]).double()[:, None, None]
    given = {
        "query": x, "key": x, "value": x,
        "attn_mask": -slopes * distance,  # ALiBi
        "key_padding_mask": torch.where(torch.arange(40) >= torch.tensor([[30], [40]]), -1e4, 0.0).double(),
    }  # fmt: skip
    for need_weights in (False, True):
        found = results(sparse, given, need_weights=need_weights)
        assert found["gradient of attn_mask"] is not None
        assert_same(found, results(dense, given, need_weights=need_weights))


def test_float_mask_without_gradient_is_served_by_a_sparse_backend() -> None:
    _, sparse = pair(EMBED, HEADS, batch_first=True)
    sparse.backend = "cpu"
    (x,) = inputs((2, 40))
    mask = torch.randn(40, 40, dtype=torch.float64)
    assert sparse(x, x, x, attn_mask=mask)[0].isfinite().all()
    with pytest.raises(ValueError, match="attn_bias requires grad"):  # what was asked for is not replaced
        sparse(x, x, x, attn_mask=mask.requires_grad_())


def test_masks_of_other_precisions_are_taken() -> None:
    attention = sparse_attention().float()
    x = torch.randn(2, 40, EMBED)
    mask = torch.randn(40, 40, dtype=torch.float64)
    expected, _ = attention(x, x, x, attn_mask=mask.float())
    assert torch.equal(attention(x, x, x, attn_mask=mask)[0], expected)


# ---- below ratio 1


@pytest.mark.parametrize("config", [SPARSE, [SPARSE, SparsePatternConfig("local_window", 16, 0.5)]])
@pytest.mark.parametrize("causal", [False, True])
def test_weights_are_the_softmax_over_the_pattern(config: Any, causal: bool) -> None:
    attention = sparse_attention(config)
    (x,) = inputs((2, 70))
    padding = torch.arange(70) >= torch.tensor([[60], [70]])
    out, weights = attention(x, x, x, key_padding_mask=padding, average_attn_weights=False, is_causal=causal)
    visible = active_pairs(attention, 70, causal) & ~padding[:, None, None, :]
    visible = visible.expand(2, HEADS, 70, 70)
    q, k, v = (
        y.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for y in nn.functional.linear(x, attention.in_proj_weight).chunk(3, -1)
    )
    scores = (q @ k.transpose(2, 3) / (EMBED // HEADS) ** 0.5).masked_fill(~visible, -torch.inf)
    expected = scores.softmax(-1).nan_to_num(0.0)
    torch.testing.assert_close(weights, expected, **EXACT)
    torch.testing.assert_close(out, attention.out_proj((expected @ v).transpose(1, 2).flatten(2)), **EXACT)
    sums = weights.sum(-1)
    torch.testing.assert_close(sums, visible.any(-1).double(), **EXACT)
    averaged = attention(x, x, x, key_padding_mask=padding, is_causal=causal)[1]
    torch.testing.assert_close(averaged, expected.mean(1), **EXACT)


@pytest.mark.parametrize("mask", ["none", "hint", "mask", "mask with padding"])
def test_asking_for_weights_does_not_change_the_output(mask: str) -> None:
    attention = sparse_attention()
    (x,) = inputs((2, 70))
    options: dict[str, Any] = {"is_causal": mask == "hint"}
    if mask.startswith("mask"):
        options = {"attn_mask": torch.ones(70, 70, dtype=torch.bool).triu(1), "is_causal": True}
    if mask.endswith("padding"):
        options["key_padding_mask"] = torch.arange(70) >= torch.tensor([[60], [70]])
    assert torch.equal(*(attention(x, x, x, need_weights=each, **options)[0] for each in (True, False)))


def test_causal_hint_with_padding_keeps_the_causal_pattern() -> None:
    attention = sparse_attention()
    (x,) = inputs((2, 70))
    causal = torch.ones(70, 70, dtype=torch.bool).triu(1)
    padding = torch.arange(70) >= torch.tensor([[60], [70]])
    options: dict[str, Any] = {"need_weights": False, "is_causal": True}
    out, _ = attention(x, x, x, attn_mask=causal, key_padding_mask=padding, **options)
    assert torch.equal(out, attention(x, x, x, key_padding_mask=padding, **options)[0])
    alone, _ = attention(x[:1, :60], x[:1, :60], x[:1, :60], **options)
    torch.testing.assert_close(out[:1, :60], alone, **EXACT)


# ---- causality


@pytest.mark.parametrize(("q_len", "kv_len"), [(5, 5), (40, 40), (20, 50), (50, 20), (1, 7), (7, 1)])
@pytest.mark.parametrize("padding", [None, "bool", "float"])
def test_query_i_sits_at_key_i_whatever_the_lengths(q_len: int, kv_len: int, padding: str | None) -> None:
    dense, sparse = pair(EMBED, HEADS, batch_first=True)
    q, kv = inputs((2, q_len), (2, kv_len))
    given = {"query": q, "key": kv, "value": kv}
    if padding == "bool":
        given["key_padding_mask"] = torch.arange(kv_len) >= torch.tensor([[max(1, kv_len // 2)], [kv_len]])
    elif padding == "float":
        given["key_padding_mask"] = torch.randn(2, kv_len, dtype=torch.float64)
    causal = torch.ones(q_len, kv_len, dtype=torch.bool).triu(1)
    # float, as PyTorch warns of masks of two types
    mask = torch.zeros(q_len, kv_len, dtype=torch.float64).masked_fill(causal, -torch.inf)
    mask = causal if padding == "bool" else mask
    for need_weights in (False, True):
        found = results(sparse, given, need_weights=need_weights, is_causal=True)
        expected = results(dense, {**given, "attn_mask": mask}, need_weights=need_weights)
        expected.pop("gradient of attn_mask", None)
        assert_same(found, expected)


def test_causal_rows_are_those_of_shorter_sequences() -> None:
    attention = sparse_attention()
    (x,) = inputs((1, 200))
    whole, _ = attention(x, x, x, need_weights=False, is_causal=True)
    for length in (1, 16, 100):
        part = x[:, :length]
        torch.testing.assert_close(
            attention(part, part, part, need_weights=False, is_causal=True)[0], whole[:, :length], **EXACT
        )
        # and with keys that nobody may see
        torch.testing.assert_close(
            attention(part, x, x, need_weights=False, is_causal=True)[0], whole[:, :length], **EXACT
        )


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("has_padding", [False, True])
def test_wrong_hint_counts_as_in_pytorch_where_every_block_is_kept(
    need_weights: bool, has_padding: bool
) -> None:
    dense, sparse = pair(EMBED, HEADS, batch_first=True)
    (x,) = inputs((2, 20))
    given = {"query": x, "key": x, "value": x, "attn_mask": torch.ones(20, 20, dtype=torch.bool).tril(-1)}
    if has_padding:
        given["key_padding_mask"] = torch.arange(20) >= torch.tensor([[20], [20]])
    options = {"need_weights": need_weights, "is_causal": True}
    assert_same(results(sparse, given, **options), results(dense, given, **options))


# ---- queries that see nothing


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("compiled", "padding"), *itertools.product(MODES, ["padding", "float padding", "mask"])],
)
def test_queries_without_keys_give_the_bias_and_finite_gradients(mode: str, kind: str) -> None:
    torch.compiler.reset()
    attention = sparse_attention(SparsePatternConfig(sparsity_ratio=1.0)).float()
    nn.init.normal_(attention.out_proj.bias)
    attention.train(mode == "train")
    x = torch.randn(2, 20, EMBED, requires_grad=True)
    hidden = torch.tensor([[True], [False]]).expand(2, 20)
    options: dict[str, Any] = {"key_padding_mask": hidden}
    if kind == "float padding":
        options = {"key_padding_mask": torch.zeros(2, 20).masked_fill(hidden, -torch.inf)}
    elif kind == "mask":
        options = {"attn_mask": hidden.repeat_interleave(HEADS, 0)[:, :, None].expand(-1, -1, 20)}
    called: Any = (
        torch.compile(attention, fullgraph=True, backend="aot_eager") if mode == "compiled" else attention
    )
    for need_weights in (False, True):
        with (
            torch.set_grad_enabled(mode != "no_grad"),
            torch.autocast("cpu", torch.bfloat16, mode == "autocast"),
        ):
            out, weights = called(x, x, x, need_weights=need_weights, **options)
        assert torch.equal(out[0], attention.out_proj.bias.to(out.dtype).expand(20, EMBED))
        if weights is not None:
            assert not weights[0].any()
        if mode != "no_grad":
            out.float().square().sum().backward()
            assert all(p.grad.isfinite().all() for p in attention.parameters())
            assert x.grad is not None
            assert x.grad.isfinite().all()


# ---- sizes at the edge


@pytest.mark.parametrize("embed_dim", [1, 3, 7, 10])
@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 1), (2, 9), (10, 3)])
def test_sizes_below_a_block(embed_dim: int, q_len: int, kv_len: int) -> None:
    dense, sparse = pair(embed_dim, 1)
    q, kv = (torch.randn(n, 2, embed_dim, dtype=torch.float64) for n in (q_len, kv_len))
    assert_same(
        results(sparse, {"query": q, "key": kv, "value": kv}),
        results(dense, {"query": q, "key": kv, "value": kv}),
    )


@pytest.mark.parametrize("extra", [{}, {"add_bias_kv": True, "add_zero_attn": True}])
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize(("batch", "q_len", "kv_len"), [(0, 3, 5), (2, 3, 0), (2, 0, 5), (0, 0, 0)])
def test_nothing_in_a_dimension(
    batch: int, q_len: int, kv_len: int, need_weights: bool, extra: dict[str, bool]
) -> None:
    dense, sparse = pair(EMBED, HEADS, batch_first=True, **extra)
    q, kv = inputs((batch, q_len), (batch, kv_len))
    given = {"query": q, "key": kv, "value": kv}
    found = results(sparse, given, need_weights=need_weights)
    assert found["out"] is not None
    assert found["out"].shape == (batch, q_len, EMBED)
    assert found["out"].isfinite().all()
    if kv_len == 0 and batch:
        assert_same(found, results(dense, given, need_weights=need_weights))


# ---- errors, in PyTorch's words


def shape(*sizes: int) -> Tensor:
    return torch.zeros(sizes)


MASK = torch.zeros(3, 3, dtype=torch.bool)
ERRORS: dict[str, tuple[list[Tensor], dict[str, Any], type[Exception], str]] = {
    "key unbatched": ([shape(3, 3, 8), shape(3, 8), shape(3, 3, 8)], {}, AssertionError, "expected `key` and `value` to be 3-D but found 2-D and 3-D tensors respectively"),
    "value batched": ([shape(3, 8), shape(3, 8), shape(3, 3, 8)], {}, AssertionError, "expected `key` and `value` to be 2-D but found 2-D and 3-D tensors respectively"),
    "query 1-d": ([shape(8), shape(8), shape(8)], {}, AssertionError, "query should be unbatched 2D or batched 3D tensor but received 1-D query tensor"),
    "query 4-d": ([shape(1, 3, 3, 8)] * 3, {}, AssertionError, "received 4-D query tensor"),
    "padding 1-d": ([shape(3, 3, 8)] * 3, {"key_padding_mask": MASK[0]}, AssertionError, "expected `key_padding_mask` to be `None` or 2-D but found 1-D tensor instead"),
    "padding 2-d": ([shape(3, 8)] * 3, {"key_padding_mask": MASK}, AssertionError, "expected `key_padding_mask` to be `None` or 1-D but found 2-D tensor instead"),
    "mask 1-d": ([shape(3, 3, 8)] * 3, {"attn_mask": MASK[0]}, AssertionError, "expected `attn_mask` to be `None`, 2-D or 3-D but found 1-D tensor instead"),
    "mask 4-d": ([shape(3, 3, 8)] * 3, {"attn_mask": MASK[None, None]}, AssertionError, "expected `attn_mask` to be `None`, 2-D or 3-D but found 4-D tensor instead"),
    "mask of heads": ([shape(3, 8)] * 3, {"attn_mask": MASK[None].expand(4, 3, 3)}, AssertionError, "Expected `attn_mask` shape to be (2, 3, 3) but got"),
    "mask of other lengths": ([shape(3, 3, 8)] * 3, {"attn_mask": MASK[:2]}, RuntimeError, "The shape of the 2D attn_mask is torch.Size([2, 3]), but should be (3, 3)"),
    "mask of other batches": ([shape(3, 3, 8)] * 3, {"attn_mask": MASK[None].expand(4, 3, 3)}, RuntimeError, "The shape of the 3D attn_mask is torch.Size([4, 3, 3]), but should be (6, 3, 3)"),
    "padding of another batch": ([shape(3, 3, 8)] * 3, {"key_padding_mask": MASK[:2]}, AssertionError, "Expected key_padded_mask.shape[0] to be 3, but got 2"),
    "padding of another length": ([shape(3, 3, 8)] * 3, {"key_padding_mask": MASK[:, :2]}, AssertionError, "Expected key_padded_mask.shape[1] to be 3, but got 2"),
    "integer mask": ([shape(3, 3, 8)] * 3, {"attn_mask": MASK.long()}, AssertionError, "only bool and floating types of attn_mask are supported"),
    "integer padding": ([shape(3, 3, 8)] * 3, {"key_padding_mask": MASK.byte()}, AssertionError, "only bool and floating types of key_padding_mask are supported"),
    "features": ([shape(3, 3, 6)] * 3, {}, AssertionError, "was expecting embedding dimension of 8, but got 6"),
    "key and value": ([shape(3, 3, 8), shape(4, 3, 8), shape(3, 3, 8)], {}, AssertionError, "key shape torch.Size([4, 3, 8]) does not match value shape torch.Size([3, 3, 8])"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_those_of_pytorch(name: str) -> None:
    tensors, options, kind, message = ERRORS[name]
    for attention in (nn.MultiheadAttention(EMBED, HEADS), BlockSparseMultiheadAttention(EMBED, HEADS)):
        with pytest.raises(kind) as error:
            attention(*tensors, **options)
        assert message in str(error.value)


def test_lengths_of_key_and_value_with_dims_of_their_own() -> None:
    with pytest.raises(AssertionError, match=r"key's sequence and batch dims .* do not match value's"):
        BlockSparseMultiheadAttention(EMBED, HEADS, kdim=4)(shape(3, 3, 8), shape(3, 3, 4), shape(4, 3, 8))


def test_masks_of_two_types_warn_as_in_pytorch() -> None:
    for attention in (nn.MultiheadAttention(EMBED, HEADS), BlockSparseMultiheadAttention(EMBED, HEADS)):
        with pytest.warns(
            UserWarning, match="Support for mismatched key_padding_mask and attn_mask is deprecated"
        ):
            attention(*[shape(3, 3, 8)] * 3, key_padding_mask=MASK, attn_mask=MASK.float())
