"""In nn.TransformerEncoder and its layers the module is what computes: in training, in eval, compiled, nested, copied."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dilated_attention_pytorch import (
    BlockSparseMultiheadAttention,
    SparsePatternConfig,
    convert_to_block_sparse,
)
from dilated_attention_pytorch.modules import multihead

LENGTH, EMBED = 100, 16
ENCODER_KNOWS_COMPILE = "is_compiling" in inspect.getsource(nn.TransformerEncoder.forward)
SPARSE = SparsePatternConfig(sparsity_ratio=0.2, block_size=16)
# PyTorch on its NestedTensors
pytestmark = pytest.mark.filterwarnings(
    "ignore:The PyTorch API of nested tensors:UserWarning", "ignore:packed sequences have:UserWarning"
)


def sparse_layer(config: SparsePatternConfig = SPARSE, **options: Any) -> nn.TransformerEncoderLayer:
    layer = nn.TransformerEncoderLayer(EMBED, 4, 32, dropout=0.0, batch_first=True, **options)
    return convert_to_block_sparse(layer, config)


def sparse_encoder(**options: Any) -> nn.TransformerEncoder:
    return nn.TransformerEncoder(sparse_layer(), 2, **options)


def padding() -> Tensor:
    """Padding on the right of all but the longest sequence."""
    return torch.arange(LENGTH) >= torch.tensor([[40], [LENGTH], [71]])


@contextmanager
def counted_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A list that gets an item for every call of a module, nested or not."""
    calls: list[int] = []
    with monkeypatch.context() as patch:
        for name in ("attend_to_pattern", "block_sparse_attention_varlen"):
            whole = getattr(multihead, name)

            def counting(*args: Any, whole: Callable[..., Any] = whole, **options: Any) -> Any:
                calls.append(1)
                return whole(*args, **options)

            patch.setattr(multihead, name, counting)
        yield calls


@pytest.mark.parametrize("masked", [None, "padding", "causal", "causal hint", "padding and causal"])
def test_training_eval_inference_and_compiled_agree(
    masked: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.compiler.reset()
    encoder, x = sparse_encoder(), torch.randn(3, LENGTH, EMBED)
    options: dict[str, Any] = {}
    if masked and "padding" in masked:
        options["src_key_padding_mask"] = padding()
    if masked and "causal" in masked:
        options["is_causal"] = True
    if masked in ("causal", "padding and causal"):
        options["mask"] = nn.Transformer.generate_square_subsequent_mask(LENGTH).isinf()
    expected = encoder(x, **options)
    dense = copy.deepcopy(encoder)
    for layer in dense.layers:
        layer.self_attn.sparse_config = SparsePatternConfig(sparsity_ratio=1.0)
    assert (dense(x, **options) - expected).abs().max() > 0.1
    real = ~padding() if "src_key_padding_mask" in options else slice(None)
    encoder.eval()
    with counted_calls(monkeypatch) as calls:
        with torch.no_grad():
            torch.testing.assert_close(encoder(x, **options)[real], expected[real])
        assert len(calls) == 2
        with torch.inference_mode():
            torch.testing.assert_close(encoder(x, **options)[real], expected[real])
        assert len(calls) == 4
    with torch.no_grad():
        # older releases break the graph where the encoder looks at the padding
        is_whole = not (masked and "padding" in masked) or ENCODER_KNOWS_COMPILE
        compiled = torch.compile(encoder, fullgraph=is_whole, backend="aot_eager")
        torch.testing.assert_close(compiled(x, **options)[real], expected[real])


def saved_and_loaded(encoder: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(encoder, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert isinstance(loaded, nn.Module)
    return loaded


def with_state(encoder: nn.Module) -> nn.Module:
    other = sparse_encoder()
    other.load_state_dict(encoder.state_dict())
    return other


def materialised(encoder: nn.Module) -> nn.Module:
    other = copy.deepcopy(encoder).to("meta").to_empty(device="cpu")
    for module in other.modules():
        for reset in ("reset_parameters", "_reset_parameters"):
            if hasattr(module, reset):
                getattr(module, reset)()
    other.load_state_dict(encoder.state_dict())
    return other


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda encoder: pickle.loads(pickle.dumps(encoder)),
    "save": saved_and_loaded,
    "state": with_state,
    "meta": materialised,
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_called_in_eval_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, x = sparse_encoder(), torch.randn(3, LENGTH, EMBED)
    other = COPIES[name](encoder).eval()
    with counted_calls(monkeypatch) as calls, torch.no_grad():
        torch.testing.assert_close(other(x), encoder(x))
    assert len(calls) == 4


def test_half_precision_encoder_is_called_in_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = sparse_encoder().bfloat16().eval()
    with counted_calls(monkeypatch) as calls, torch.no_grad():
        assert encoder(torch.randn(3, LENGTH, EMBED).bfloat16()).dtype == torch.bfloat16
    assert len(calls) == 2


def test_module_put_into_a_layer_by_hand_is_called_in_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.TransformerEncoderLayer(EMBED, 4, 32, batch_first=True).eval()
    layer.self_attn = BlockSparseMultiheadAttention(EMBED, 4, batch_first=True, sparse_config=SPARSE).eval()
    with counted_calls(monkeypatch) as calls, torch.no_grad():
        layer(torch.randn(3, LENGTH, EMBED))
    assert len(calls) == 1


def test_no_dense_kernel_of_pytorch_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("a dense kernel was called")

    for name in ("_native_multi_head_attention", "_transformer_encoder_layer_fwd"):
        monkeypatch.setattr(torch, name, refuse)
    encoder, x = sparse_encoder().eval(), torch.randn(3, LENGTH, EMBED)
    with torch.inference_mode():
        encoder(x)
        encoder(x, src_key_padding_mask=padding())
        encoder.layers[0].self_attn(x, x, x)
        with pytest.raises(AssertionError, match="a dense kernel was called"):  # the stock layer does
            nn.TransformerEncoderLayer(EMBED, 4, 32, batch_first=True).eval()(x)


def test_hooks_of_users_see_the_output() -> None:
    layer, seen = sparse_layer().eval(), []
    layer.self_attn.register_forward_hook(lambda module, args, output: seen.append(output[0].shape))
    with torch.no_grad():
        layer(torch.randn(3, LENGTH, EMBED))
    assert seen == [(3, LENGTH, EMBED)]


# ---- NestedTensors


# PyTorch packs no padding on the left, and does not look without mask_check
@pytest.mark.parametrize(("side", "mask_check"), [("right", True), ("left", True), ("right", False)])
def test_encoder_that_packs_padding_gives_what_it_gives_padded(side: str, mask_check: bool) -> None:
    encoder = sparse_encoder(mask_check=mask_check).eval()
    assert encoder.use_nested_tensor
    x, hidden = torch.randn(3, LENGTH, EMBED), padding()
    if side == "left":
        hidden = hidden.flip(1)
    padded = copy.deepcopy(encoder)
    padded.use_nested_tensor = False
    with torch.no_grad():
        out, expected = (each(x, src_key_padding_mask=hidden) for each in (encoder, padded))
    torch.testing.assert_close(out[~hidden], expected[~hidden])
    assert side == "left" or not out[hidden].any()


@pytest.mark.parametrize(
    ("config", "warns"),
    [
        (SPARSE, True),
        (SparsePatternConfig("global_local", 16, 0.5), True),
        (SparsePatternConfig(sparsity_ratio=1.0, block_size=16), False),
        (SparsePatternConfig("local_window", 16, window_size=32), False),
    ],
)
def test_encoder_that_packs_warns_where_the_padded_length_decides_the_pattern(
    config: SparsePatternConfig, warns: bool
) -> None:
    encoder, x = nn.TransformerEncoder(sparse_layer(config), 1).eval(), torch.randn(3, LENGTH, EMBED)
    with warnings.catch_warnings(record=True) as given, torch.no_grad():
        warnings.simplefilter("always")
        encoder(x, src_key_padding_mask=padding())
    ours = [str(each.message) for each in given if "pass enable_nested_tensor=False" in str(each.message)]
    assert len(ours) == warns
    assert not warns or "longest one, of 100 tokens" in ours[0]


@pytest.mark.parametrize("d_model", [12, 64])
def test_packed_padding_behind_the_longest_sequence_at_ratio_1(d_model: int) -> None:
    # the packed batch has forgotten the columns of padding behind the longest sequence; the output has them
    layer = nn.TransformerEncoderLayer(d_model, 4, 32, dropout=0.0, batch_first=True)
    dense = nn.TransformerEncoder(layer, 2).eval()
    sparse = convert_to_block_sparse(copy.deepcopy(dense), sparsity_ratio=1.0)
    sparse.use_nested_tensor = True
    x = torch.randn(4, 1040, d_model)
    hidden = torch.arange(1040) >= torch.tensor([[2], [1000], [513], [64]])
    with torch.no_grad():
        out, expected = (each(x, src_key_padding_mask=hidden) for each in (sparse, dense))
    assert out.shape == x.shape
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_sequences_give_what_each_gives_alone_under_the_pattern_of_the_longest(layout: Any) -> None:
    config = SparsePatternConfig("local_window", 16, window_size=48)  # the same for every length
    attention = BlockSparseMultiheadAttention(EMBED, 4, batch_first=True, sparse_config=config).eval()
    sequences = [torch.randn(length, EMBED) for length in (1, 40, 100)]
    nested = torch.nested.nested_tensor(sequences, layout=layout)
    with torch.no_grad():
        out, none = attention(nested, nested, nested, need_weights=False)
        padded_out, weights = attention(nested, nested, nested)
        assert none is None
        assert out.is_nested
        assert out.layout == layout
        assert weights.shape == (3, 100, 100)
        found = zip(sequences, out.unbind(), padded_out.unbind(), weights)
        for x, packed, padded, dense in found:
            expected, of_alone = attention(x, x, x)
            torch.testing.assert_close(packed, expected)
            torch.testing.assert_close(padded, expected)
            torch.testing.assert_close(dense[: len(x), : len(x)], of_alone)
            assert not dense[len(x) :].any()
            assert not dense[:, len(x) :].any()
        torch.testing.assert_close((nested + out).unbind()[1], sequences[1] + out.unbind()[1])


def test_jagged_tensors_train_and_may_be_cross_attention() -> None:
    attention = BlockSparseMultiheadAttention(
        EMBED, 4, batch_first=True, sparsity_ratio=1.0, add_bias_kv=True, add_zero_attn=True
    )
    q, kv = ([torch.randn(n, EMBED) for n in lengths] for lengths in ((3, 30), (50, 7)))
    jagged = [torch.nested.nested_tensor(x, layout=torch.jagged, requires_grad=True) for x in (q, kv)]
    out, _ = attention(jagged[0], jagged[1], jagged[1], need_weights=False)
    out.values().square().sum().backward()
    found = [parameter.grad.clone() for parameter in attention.parameters()]
    attention.zero_grad()
    alone = [attention(x, y, y, need_weights=False)[0] for x, y in zip(q, kv)]
    torch.cat(alone).square().sum().backward()
    torch.testing.assert_close(out.values(), torch.cat(alone))
    torch.testing.assert_close(found, [parameter.grad for parameter in attention.parameters()])
    assert all(x.grad is not None and x.grad.values().isfinite().all() for x in jagged)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
@pytest.mark.parametrize("lengths", [(10, 0, 8), (0, 3), (0, 0)])
def test_nested_sequences_without_tokens(lengths: tuple[int, ...], layout: Any) -> None:
    attention = BlockSparseMultiheadAttention(EMBED, 4, batch_first=True, sparsity_ratio=1.0).eval()
    sequences = [torch.randn(length, EMBED) for length in lengths]
    x = torch.nested.nested_tensor(sequences, layout=layout)
    for need_weights in (False, True):
        with torch.no_grad():
            out, _ = attention(x, x, x, need_weights=need_weights)
            for found, each in zip(out.unbind(), sequences):
                torch.testing.assert_close(found, attention(each, each, each)[0])


def test_jagged_values_may_be_other_tensors_than_their_keys() -> None:
    attention = BlockSparseMultiheadAttention(10, 5, batch_first=True, sparsity_ratio=1.0)
    q, k, v = ([torch.randn(n, 10) for n in lengths] for lengths in ((4, 6), (7, 16), (7, 16)))
    jagged = [torch.nested.nested_tensor(x, layout=torch.jagged) for x in (q, k, v)]
    for need_weights in (False, True):
        out, _ = attention(*jagged, need_weights=need_weights)
        for found, *each in zip(out.unbind(), q, k, v):
            torch.testing.assert_close(found, attention(*each)[0])


def test_causal_jagged_sequences() -> None:
    attention = BlockSparseMultiheadAttention(EMBED, 4, batch_first=True, sparse_config=SPARSE)
    sequences = [torch.randn(length, EMBED) for length in (100, 33)]
    nested = torch.nested.nested_tensor(sequences, layout=torch.jagged)
    out, _ = attention(nested, nested, nested, need_weights=False, is_causal=True)
    for x, found in zip(sequences, out.unbind()):  # causal patterns are the same at every length
        torch.testing.assert_close(found, attention(x, x, x, need_weights=False, is_causal=True)[0])


@pytest.mark.parametrize("need_weights", [False, True])
def test_compiled_jagged_sequences(need_weights: bool) -> None:
    torch.compiler.reset()
    attention = BlockSparseMultiheadAttention(EMBED, 4, batch_first=True, sparse_config=SPARSE)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    x = torch.nested.nested_tensor([torch.randn(n, EMBED) for n in (100, 33)], layout=torch.jagged)
    out, weights = compiled(x, x, x, need_weights=need_weights)
    expected, expected_weights = attention(x, x, x, need_weights=need_weights)
    torch.testing.assert_close(out.values(), expected.values())
    torch.testing.assert_close(weights, expected_weights)


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("grad is enabled and at least one of query or the input/output projection weights", {}),
        ("training is enabled", {"training": True}),
        ("batch_first was not True", {"batch_first": False}),
        ("key_padding_mask or attn_mask is not supported", {"mask": True}),
        ("non-self attention was used", {"other_key": True}),
        ("not NestedTensors of one layout", {"dense_key": True}),
        ("received 1-D query tensor", {"empty": True}),
    ],
)
def test_strided_nested_tensors_are_refused_as_by_pytorch(reason: str, change: dict[str, Any]) -> None:
    attention = BlockSparseMultiheadAttention(EMBED, 4, batch_first=change.get("batch_first", True))
    attention.train(change.get("training", False))
    x = torch.nested.nested_tensor([] if "empty" in change else [torch.randn(n, EMBED) for n in (3, 5)])
    key = x
    if "other_key" in change:
        key = x.clone()
    if "dense_key" in change:
        key = torch.randn(2, 5, EMBED)
    mask = torch.zeros(2, 5, dtype=torch.bool) if "mask" in change else None
    with torch.set_grad_enabled(not change), pytest.raises(AssertionError) as error:
        attention(x, key, key, key_padding_mask=mask)
    assert "does not support NestedTensor outside of its fast path" in str(error.value)
    assert reason in str(error.value)


def test_transposed_jagged_tensors_are_refused() -> None:
    attention = BlockSparseMultiheadAttention(EMBED, 4, batch_first=True)
    x = torch.nested.nested_tensor([torch.randn(n, EMBED) for n in (3, 5)], layout=torch.jagged).transpose(
        1, 2
    )
    with pytest.raises(AssertionError, match="transposed or has gaps"):
        attention(x, x, x)


# ---- what it cannot do


def test_scripting_says_that_it_cannot() -> None:
    with pytest.raises(RuntimeError, match=r"cannot be scripted by .*; use torch.compile"):
        torch.jit.script(sparse_layer())
