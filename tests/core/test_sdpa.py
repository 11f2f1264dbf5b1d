"""block_sparse_sdpa: PyTorch's function at a ratio of 1, whatever its arguments, and the layout's blocks below it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dilated_attention_pytorch import (
    BlockLayout,
    SparsePatternConfig,
    block_sparse_attention,
    block_sparse_sdpa,
)

ALL = SparsePatternConfig(block_size=16, sparsity_ratio=1.0)
SOME = SparsePatternConfig(block_size=16, sparsity_ratio=0.4)
LENGTHS = [(40, 40), (24, 50), (50, 24)]


def heads_first(*lead: int, q_len: int = 40, kv_len: int = 40, kv_heads: int = 4) -> list[Tensor]:
    shapes = [(4, q_len, 8), (kv_heads, kv_len, 8), (kv_heads, kv_len, 6)]
    return [torch.randn(*lead, *shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def compare(tensors: list[Tensor], **options: Any) -> None:
    """Equal results and gradients in float64."""
    found = block_sparse_sdpa(*tensors, **options, sparse_config=ALL)
    expected = scaled_dot_product_attention(*tensors, **options)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, tensors, weight), torch.autograd.grad(expected, tensors, weight)
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("q_len", "kv_len"), LENGTHS)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_lengths_causality_and_groups(q_len: int, kv_len: int, is_causal: bool, kv_heads: int) -> None:
    tensors = heads_first(2, q_len=q_len, kv_len=kv_len, kv_heads=kv_heads)
    compare(tensors, is_causal=is_causal, scale=0.3, enable_gqa=kv_heads != 4)


@pytest.mark.parametrize("lead", [(), (1,), (3,), (2, 3), (2, 1, 2)])
@pytest.mark.parametrize("masked", [False, True])
def test_leading_axes(lead: tuple[int, ...], masked: bool) -> None:
    mask = torch.rand(*lead, 1, 40, 40) < 0.7
    mask[..., 0] = True
    compare(heads_first(*lead), **({"attn_mask": mask} if masked else {}))


MASKS = [
    (40, 50),
    (1, 50),
    (2, 1, 1, 50),
    (2, 4, 40, 50),
    (1, 4, 1, 50),
    (1, 1, 40, 1),
    (2, 1, 40, 50),
]


@pytest.mark.parametrize("shape", MASKS)
@pytest.mark.parametrize("kind", ["bool", "float", "double"])
def test_masks(shape: tuple[int, ...], kind: str) -> None:
    mask = torch.rand(shape) < 0.7
    mask[..., 0] = True  # PyTorch's function gives NaN to a query without a key where its mask is of numbers
    if kind != "bool":
        dtype = torch.float64 if kind == "double" else torch.float32
        mask = torch.randn(shape, dtype=dtype).masked_fill(~mask, -torch.inf)
    if kind == "float":  # which PyTorch's function does not take beside float64
        found = block_sparse_sdpa(*(tensors := heads_first(2, kv_len=50)), mask, sparse_config=ALL)
        torch.testing.assert_close(found, scaled_dot_product_attention(*tensors, mask.double()))
    else:
        compare(heads_first(2, kv_len=50), attn_mask=mask)


@pytest.mark.parametrize(("q_len", "kv_len"), LENGTHS)
@pytest.mark.parametrize("shape", ["keys", "pairs"])
def test_mask_beside_is_causal_hides_what_either_hides(q_len: int, kv_len: int, shape: str) -> None:
    tensors = heads_first(2, q_len=q_len, kv_len=kv_len)
    mask = torch.rand(2, 1, q_len if shape == "pairs" else 1, kv_len) < 0.7
    mask[..., 0] = True
    found = block_sparse_sdpa(*tensors, mask, is_causal=True, sparse_config=ALL)
    both = mask & torch.ones(q_len, kv_len, dtype=torch.bool).tril()
    torch.testing.assert_close(found, scaled_dot_product_attention(*tensors, both), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("is_causal", [False, True])
def test_below_a_ratio_of_one_it_is_the_attention_of_the_layout(is_causal: bool) -> None:
    tensors = heads_first(2, q_len=120, kv_len=120)
    layout = BlockLayout.from_config(SOME, 120, causal=is_causal)
    assert layout.density < 1
    expected = block_sparse_attention(
        *(x.transpose(1, 2) for x in tensors), layout, is_causal=is_causal
    ).transpose(1, 2)
    for given in ({"layout": layout}, {"sparse_config": SOME}, {"sparse_config": [SOME] * 4}):
        assert torch.equal(block_sparse_sdpa(*tensors, is_causal=is_causal, **given), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(("q_len", "kv_len"), LENGTHS)
def test_causal_layout_of_positions_serves_other_lengths(q_len: int, kv_len: int) -> None:
    layout = BlockLayout.from_config(ALL, 50, causal=True)
    tensors = heads_first(1, q_len=q_len, kv_len=kv_len)
    found = block_sparse_sdpa(*tensors, is_causal=True, layout=layout)
    torch.testing.assert_close(found, scaled_dot_product_attention(*tensors, is_causal=True))


def test_dropout_drops_with_its_probability() -> None:
    query, key, value = (torch.ones(1, 2, 64, 8) for _ in range(3))
    out = block_sparse_sdpa(query, key, value, dropout_p=0.5, sparse_config=ALL)
    assert not torch.equal(out, value)
    # 8,192 weights of 1/64, doubled or dropped: 0.011 standard deviation.
    assert abs(float(out.mean()) - 1.0) < 0.1


@pytest.mark.parametrize("is_causal", [False, True])
def test_it_compiles_to_one_graph_for_every_length(is_causal: bool) -> None:
    torch.compiler.reset()
    graphs = []

    def count(graph: Any, inputs: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward  # type: ignore[no-any-return]

    @torch.compile(fullgraph=True, backend=count)
    def compiled(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return block_sparse_sdpa(query, key, value, is_causal=is_causal, sparse_config=SOME)

    for length in range(40, 45):
        tensors = heads_first(2, q_len=length, kv_len=length)
        assert torch.equal(
            compiled(*tensors), block_sparse_sdpa(*tensors, is_causal=is_causal, sparse_config=SOME)
        )
    assert len(graphs) == 2


def test_gradients_of_samples() -> None:
    tensors = [x.detach() for x in heads_first(3, 2)]
    gradient = torch.func.grad(lambda *x: block_sparse_sdpa(*x, sparse_config=SOME).square().sum(), (0, 1, 2))
    found = torch.vmap(gradient)(*tensors)
    for i in range(3):
        for ours, theirs in zip(found, gradient(*(x[i] for x in tensors))):
            torch.testing.assert_close(ours[i], theirs)


LEADS = {
    "keys": ((3,), (1,), (1,)),
    "queries": ((1,), (3,), (3,)),
    "values": ((1,), (1,), (3,)),
    "each": ((2, 1), (1, 3), ()),
}


@pytest.mark.parametrize("leads", LEADS.values(), ids=LEADS)
@pytest.mark.parametrize("is_causal", [False, True])
def test_axes_before_the_heads_are_broadcast_as_by_torch(leads: tuple[Any, ...], is_causal: bool) -> None:
    tensors = [torch.randn(*lead, 2, 40, 8, dtype=torch.float64, requires_grad=True) for lead in leads]
    ours = block_sparse_sdpa(*tensors, is_causal=is_causal, sparse_config=ALL)
    theirs = scaled_dot_product_attention(*torch.broadcast_tensors(*tensors), is_causal=is_causal)
    torch.testing.assert_close(ours, theirs)
    grad = torch.randn_like(theirs)
    for a, b in zip(torch.autograd.grad(ours, tensors, grad), torch.autograd.grad(theirs, tensors, grad)):
        torch.testing.assert_close(a, b)


def call(change: dict[str, Any]) -> Tensor:
    query, key, value = (x.detach() for x in heads_first(1))
    given = {"query": query, "key": key, "value": value, "sparse_config": ALL, **change}
    return block_sparse_sdpa(**given)


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "neither": (
        {"sparse_config": None},
        ValueError,
        "layout or sparse_config says .* got neither; pass e.g.",
    ),
    "both": ({"layout": BlockLayout.from_config(ALL, 40)}, ValueError, "got both"),
    "query": (
        {"query": [1.0]},
        TypeError,
        r"query must be a tensor \(batch, ..., num_heads, seq_len, head_dim\)",
    ),
    "key": (
        {"query": torch.zeros(3, 4, 40, 8), "key": torch.zeros(2, 4, 40, 8)},
        ValueError,
        r"key must be .* with axes before num_heads that broadcast with \(3,\), got shape \(2, 4, 40, 8\)",
    ),
    "dims": (
        {"query": torch.zeros(40, 8)},
        ValueError,
        r"query must be .* at least three axes, got shape \(40, 8\); use query\[None\], one head",
    ),
    "gqa": (
        {"key": torch.zeros(1, 2, 40, 8)},
        ValueError,
        "enable_gqa=False needs as many heads of key as of query, 4, got 2; pass enable_gqa=True",
    ),
    "mask_shape": (
        {"attn_mask": torch.zeros(3, 1, 1, 40)},
        ValueError,
        r"attn_mask must be bool or floating point, broadcastable to \(1, 4, 40, 40\), got torch.float32 \(3, 1, 1, 40\)",
    ),
    "mask_type": ({"attn_mask": torch.zeros(40, 40, dtype=torch.int64)}, ValueError, "got torch.int64"),
    "mask": ({"attn_mask": True}, TypeError, "attn_mask must be a tensor or None, got True"),
    "is_causal": ({"is_causal": "yes"}, TypeError, "is_causal must be True or False"),
    "layout": (
        {"sparse_config": None, "layout": BlockLayout.from_config(ALL, 30, causal=True), "is_causal": True},
        ValueError,
        "layout",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_name_the_argument_and_the_fix(name: str) -> None:
    change, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        call(change)
