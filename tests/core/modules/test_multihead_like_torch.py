"""At ratio 1 the multi-head module computes what nn.MultiheadAttention does, and so do layers around it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dilated_attention_pytorch import BlockSparseMultiheadAttention
from tests.core.modules.multihead_cases import (
    EXACT,
    assert_same,
    converted,
    inputs_of_torch,
    noise_like,
    pair,
    results,
)

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning")

EMBED, HEADS, BATCH, Q_LEN, KV_LEN = 8, 2, 2, 3, 5
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no_bias": {"bias": False},
    "extra_keys": {"add_bias_kv": True, "add_zero_attn": True},
    "own_dims": {"kdim": 6, "vdim": 7, "add_zero_attn": True},
}
SHAPES = ["batch_first", "batch_second", "unbatched", "unbatched_batch_first"]
WEIGHTS: list[dict[str, bool]] = [
    {"need_weights": False},
    {"need_weights": True},
    {"need_weights": True, "average_attn_weights": False},
]
PADDINGS = [None, "bool", "float"]
ATTN_MASKS = [None, "bool 2-d", "float 2-d", "bool 3-d", "float 3-d"]


def combinations(kind: str, shape: str) -> Iterator[tuple[str | None, str | None, dict[str, bool]]]:
    """Padding, attn_mask and the flags; what weights are asked for goes round."""
    turns = itertools.cycle(WEIGHTS)
    for _ in range(list(KINDS).index(kind) + SHAPES.index(shape)):
        next(turns)
    for padding, attn_mask in itertools.product(PADDINGS, ATTN_MASKS):
        for is_causal in (False, True) if attn_mask else (False,):
            yield padding, attn_mask, {**next(turns), "is_causal": is_causal}


def mask(kind: str | None, *shape: int) -> Tensor | None:
    if kind is None:
        return None
    if kind.startswith("float"):
        return torch.randn(shape, dtype=torch.float64)
    hidden = torch.rand(shape) < 0.4
    hidden[..., 0] = False  # PyTorch's output of a query without keys is NaN
    return hidden


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_combination_of_arguments(kind: str, shape: str) -> None:
    options = KINDS[kind]
    dense, sparse = pair(EMBED, HEADS, batch_first=shape.endswith("batch_first"), **options)
    is_batched = not shape.startswith("unbatched")
    n_compared = 0
    for padding, attn_mask, flags in combinations(kind, shape):
        has_extra_keys = options.get("add_bias_kv") or options.get("add_zero_attn")
        if has_extra_keys and flags["is_causal"] and not flags["need_weights"] and padding is None:
            continue  # PyTorch hides the extra keys from early queries, see below
        tensors: dict[str, Tensor | None] = {}
        dims = (EMBED, options.get("kdim", EMBED), options.get("vdim", EMBED))
        for name, length, dim in zip(("query", "key", "value"), (Q_LEN, KV_LEN, KV_LEN), dims):
            batch = [BATCH] if is_batched else []
            sizes = [*batch, length, dim] if shape == "batch_first" else [length, *batch, dim]
            tensors[name] = torch.randn(sizes, dtype=torch.float64)
        heads = BATCH * HEADS if is_batched else HEADS
        tensors["key_padding_mask"] = mask(padding, *([BATCH] if is_batched else []), KV_LEN)
        three = [heads] if attn_mask and attn_mask.endswith("3-d") else []
        tensors["attn_mask"] = mask(attn_mask, *three, Q_LEN, KV_LEN)
        given = {name: x for name, x in tensors.items() if x is not None}
        assert_same(results(sparse, given, **flags), results(dense, given, **flags))
        n_compared += 1
    assert n_compared >= 20


def test_combinations_are_many() -> None:
    assert sum(len(list(combinations(kind, shape))) for kind in KINDS for shape in SHAPES) == 432


@pytest.mark.parametrize("extra", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_causality_does_not_hide_the_extra_keys(extra: dict[str, bool]) -> None:
    # as in PyTorch with the mask; with the hint alone it counts the extra keys as the last ones
    dense, sparse = pair(EMBED, HEADS, batch_first=True, **extra)
    x = torch.randn(BATCH, Q_LEN, EMBED, dtype=torch.float64)
    causal = torch.ones(Q_LEN, Q_LEN, dtype=torch.bool).triu(1)
    given = {"query": x, "key": x, "value": x}
    expected = results(dense, {**given, "attn_mask": causal}, need_weights=False)
    assert_same(results(sparse, given, need_weights=False, is_causal=True), expected)


def test_inputs_of_pytorch_for_multihead_attention() -> None:
    inputs = inputs_of_torch("MultiheadAttention")
    assert len(inputs) >= 64
    for each in inputs:
        dense, sparse = pair(*each.constructor_input.args, **each.constructor_input.kwargs)
        arguments = dict(zip(("query", "key", "value"), each.forward_input.args)) | each.forward_input.kwargs
        tensors = {name: x for name, x in arguments.items() if isinstance(x, Tensor)}
        others = {name: x for name, x in arguments.items() if name not in tensors}
        assert_same(results(sparse, tensors, **others), results(dense, tensors, **others))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ["TransformerEncoderLayer", "TransformerDecoderLayer"])
def test_inputs_of_pytorch_for_layers(name: str, training: bool) -> None:
    inputs = inputs_of_torch(name, training)
    assert len(inputs) >= 32
    for each in inputs:
        dense = getattr(nn, name)(*each.constructor_input.args, **each.constructor_input.kwargs)
        dense = dense.double().train(training)
        sparse = converted(dense)
        found = []
        for layer in (sparse, dense):
            with torch.set_grad_enabled(training):  # in eval PyTorch's layer goes its fast path
                out = layer(*each.forward_input.args, **each.forward_input.kwargs)
            if training:
                (out * noise_like(out)).sum().backward()
            found.append([out, *(parameter.grad for parameter in layer.parameters())])
        torch.testing.assert_close(found[0], found[1], **EXACT)


@pytest.mark.parametrize("dims", [{}, {"kdim": 6}], ids=["same_dims", "own_dims"])
@pytest.mark.parametrize("extra", [{}, {"bias": False}, {"add_bias_kv": True}])
def test_state_dicts_load_both_ways_and_begin_alike(dims: dict[str, int], extra: dict[str, bool]) -> None:
    torch.manual_seed(5)
    dense = nn.MultiheadAttention(EMBED, HEADS, **dims, **extra)
    torch.manual_seed(5)
    sparse = BlockSparseMultiheadAttention(EMBED, HEADS, **dims, **extra)
    after = torch.get_rng_state()
    torch.manual_seed(5)
    nn.MultiheadAttention(EMBED, HEADS, **dims, **extra)
    assert torch.equal(torch.get_rng_state(), after)
    ours, theirs = sparse.state_dict(), dense.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    dense.load_state_dict(ours, strict=True)
    sparse.load_state_dict(theirs, strict=True)
    assert dict(sparse.named_buffers()) == {}
    sparse._reset_parameters()  # what code that materialises modules calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch_first", [True, False])
def test_other_precisions_are_as_close_as_pytorch(dtype: torch.dtype, batch_first: bool) -> None:
    dense, sparse = pair(32, 2, batch_first=batch_first)
    x = torch.randn(10, 10, 32, dtype=torch.float64)
    exact, exact_weights = dense(x, x, x)
    dense, sparse, y = dense.to(dtype), sparse.to(dtype), x.to(dtype)
    errors = []
    for module in (sparse, dense):
        out, weights = module(y, y, y)
        assert out.dtype == weights.dtype == dtype
        errors.append([(out.double() - exact).abs().max(), (weights.double() - exact_weights).abs().max()])
    assert all(ours <= 2 * theirs for ours, theirs in zip(*errors))
