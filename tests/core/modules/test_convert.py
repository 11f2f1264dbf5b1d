"""convert_to_block_sparse: which modules of a model become block-sparse, and that nothing else changes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from dilated_attention_pytorch import (
    BlockSparseMultiheadAttention,
    SparsePatternConfig,
    convert_to_block_sparse,
)

SPARSE = SparsePatternConfig(sparsity_ratio=0.2, block_size=16)


def transformer() -> nn.Transformer:
    return nn.Transformer(16, 4, 2, 1, 32, dropout=0.0, batch_first=True)


def converted_names(model: nn.Module) -> list[str]:
    return [name for name, each in model.named_modules() if isinstance(each, BlockSparseMultiheadAttention)]


SELF_ATTENTION = ["encoder.layers.0.self_attn", "encoder.layers.1.self_attn", "decoder.layers.0.self_attn"]
CROSS_ATTENTION = ["decoder.layers.0.multihead_attn"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (None, SELF_ATTENTION + CROSS_ATTENTION),
        ("*.self_attn", SELF_ATTENTION),
        ("encoder.layers.1.*", SELF_ATTENTION[1:2]),
        (["encoder.layers.[0-9].*", "*.multihead_attn"], SELF_ATTENTION[:2] + CROSS_ATTENTION),
        (lambda name, module: name.startswith("decoder") and module.num_heads == 4, SELF_ATTENTION[2:] + CROSS_ATTENTION),
    ],
)  # fmt: skip
def test_modules_are_chosen_by_class_and_name(names: Any, expected: list[str]) -> None:
    model = transformer()
    assert convert_to_block_sparse(model, SPARSE, names=names) is model
    assert converted_names(model) == expected
    assert all(model.get_submodule(name).sparse_config == SPARSE for name in expected)


def test_modules_stay_the_objects_that_they_were_with_weights_hooks_and_mode() -> None:
    model = transformer().eval()
    attention = model.encoder.layers[0].self_attn
    attention.in_proj_weight.requires_grad_(False)
    called: list[int] = []
    attention.register_forward_hook(lambda *_: called.append(1))
    parameters, state = list(model.parameters()), copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    random_state = torch.get_rng_state()
    convert_to_block_sparse(model, SPARSE)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.encoder.layers[0].self_attn is attention
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], parameters, strict=True))
    assert list(model.state_dict()) == list(state)
    assert not attention.training
    assert not attention.in_proj_weight.requires_grad
    x = torch.randn(1, 40, 16)
    with torch.no_grad():
        model(x, x)
    assert called == [1]


def test_at_ratio_1_the_model_computes_the_same() -> None:
    model = transformer().double()
    x, y = torch.randn(2, 70, 16, dtype=torch.float64), torch.randn(2, 50, 16, dtype=torch.float64)
    expected = model(x, y)
    sparse = convert_to_block_sparse(copy.deepcopy(model), sparsity_ratio=1.0)
    torch.testing.assert_close(sparse(x, y), expected, atol=1e-12, rtol=1e-12)
    assert not torch.allclose(convert_to_block_sparse(model, SPARSE)(x, y), expected)


def test_single_module_is_converted() -> None:
    attention = nn.MultiheadAttention(16, 4)
    assert convert_to_block_sparse(attention, SPARSE, backend="cpu") is attention
    assert isinstance(attention, BlockSparseMultiheadAttention)
    assert (attention.sparse_config, attention.backend) == (SPARSE, "cpu")


def test_shared_module_is_converted_once() -> None:
    shared = nn.MultiheadAttention(16, 4)
    model = nn.ModuleList([shared, shared])
    convert_to_block_sparse(model, SPARSE, sparsity_ratio=0.5)
    assert model[0] is model[1] is shared
    assert shared.sparse_config.sparsity_ratio == 0.5


def test_encoder_of_converted_layers_does_not_pack_and_others_may() -> None:
    model = nn.ModuleList(
        nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 1) for _ in range(2)
    )
    convert_to_block_sparse(model, SPARSE, names="0.*")
    assert [each.use_nested_tensor for each in model] == [False, True]
    # padding behind the longest sequence is part of the pattern, as in training
    encoder, x = model[0].eval(), torch.randn(2, 100, 16)
    padding = torch.arange(100) >= torch.tensor([[70], [60]])
    with torch.no_grad():
        out = encoder(x, src_key_padding_mask=padding)
    expected = encoder(x, src_key_padding_mask=padding)
    torch.testing.assert_close(out[~padding], expected[~padding])


def test_subclasses_stay_as_they_are() -> None:
    class Own(nn.MultiheadAttention):
        pass

    model = nn.ModuleList([Own(16, 4), nn.MultiheadAttention(16, 4), BlockSparseMultiheadAttention(16, 4)])
    convert_to_block_sparse(model, SPARSE)
    assert [type(each) for each in model] == [
        Own,
        BlockSparseMultiheadAttention,
        BlockSparseMultiheadAttention,
    ]
    assert model[2].sparse_config == SparsePatternConfig()


@pytest.mark.parametrize(
    ("model", "settings", "kind", "message"),
    [
        (transformer(), {"names": "*.attention"}, ValueError, r"no torch.nn.MultiheadAttention that names='\*.attention' means; there are 'encoder.layers.0.self_attn', "),
        (transformer(), {"names": ["*.self_attn", "typo.*"]}, ValueError, r"that names=\['typo.\*'\] means; there are 'enc"),
        (nn.Linear(3, 3), {}, ValueError, "model has no torch.nn.MultiheadAttention; subclasses of it stay as they are"),
        ("model", {}, TypeError, "model must be a torch.nn.Module, got 'model'"),
        (transformer(), {"sparse_config": [SPARSE] * 3}, ValueError, "one for each of num_heads 4, got 3"),
        (transformer(), {"sparsity_ratio": 2}, ValueError, "sparsity_ratio must be"),
        (transformer(), {"segment_lengths": [64]}, ValueError, "pass both or neither"),
        (transformer(), {"backend": "cuda"}, ValueError, "backend must be one of"),
    ],
)  # fmt: skip
def test_errors_change_nothing(
    model: Any, settings: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        convert_to_block_sparse(model, **settings)
    assert not isinstance(model, nn.Module) or not converted_names(model)


def test_error_of_one_module_leaves_the_others_dense() -> None:
    model = nn.ModuleList([nn.MultiheadAttention(16, 4), nn.MultiheadAttention(16, 8)])
    with pytest.raises(ValueError, match="one for each of num_heads 8, got 4"):
        convert_to_block_sparse(model, [SPARSE] * 4)
    assert not converted_names(model)


def test_a_second_conversion_says_how_to_change_a_pattern() -> None:
    layer = convert_to_block_sparse(nn.TransformerEncoderLayer(64, 4, 128))
    with pytest.raises(
        ValueError, match=r"converted already: 'self_attn'; to change a pattern, assign a sparse_config"
    ):
        convert_to_block_sparse(layer, sparsity_ratio=0.3)
    attention = layer.self_attn
    assert isinstance(attention, BlockSparseMultiheadAttention)
    attention.sparse_config = SparsePatternConfig(sparsity_ratio=0.3)
    assert attention.layout(640).density > 0.28


def test_setting_that_a_module_cannot_take_is_refused_with_the_name_of_the_module() -> None:
    model = nn.ModuleDict({"first": nn.MultiheadAttention(32, 2), "last": nn.MultiheadAttention(32, 2, 1.0)})
    with pytest.raises(ValueError, match=r"^module 'last': dropout must be in \[0, 1\), got 1.0"):
        convert_to_block_sparse(model)
    assert type(model["first"]) is nn.MultiheadAttention
    with pytest.raises(ValueError, match=r"^dropout must be in"):
        convert_to_block_sparse(model["last"])
