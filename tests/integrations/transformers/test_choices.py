"""Which layers are sparse, and what a name is registered with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dilated_attention_pytorch import SparsePatternConfig
from dilated_attention_pytorch.integrations.transformers import (
    attention,
    register_block_sparse_attention,
)
from tests.integrations.transformers.models import (
    BLOCK,
    CAUSAL,
    DENSE,
    TOLERANCE,
    causal_logits,
    logits,
    model_of,
    padding,
    positions,
    tokens,
    tolerance,
    transformers,
)

SMALL = SparsePatternConfig(sparsity_ratio=0.2, block_size=BLOCK)


@pytest.mark.parametrize("side", [None, "left", "right"])
@pytest.mark.parametrize("name", CAUSAL)
def test_layers_that_are_not_chosen_are_dense(name: str, side: str | None) -> None:
    register_block_sparse_attention("no_layer", SMALL, layers=[])
    mask = None if side is None else padding(side)
    is_token = slice(None) if mask is None else mask.bool()
    model = model_of(name, DENSE.get(name, "sdpa"))
    expected = causal_logits(model, tokens(), mask)
    model.set_attn_implementation("no_layer")
    found = causal_logits(model, tokens(), mask)
    torch.testing.assert_close(found[is_token], expected[is_token], **tolerance(name))


@pytest.mark.parametrize("kind", ["numbers", "function"])
def test_layers_chooses(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = []
    attend = attention.attend_densely
    monkeypatch.setattr(
        attention, "attend_densely", lambda call: dense.append(call.module.layer_idx) or attend(call)
    )
    chosen: Any = [1] if kind == "numbers" else lambda module: module.layer_idx == 1
    register_block_sparse_attention("second_layer", SMALL, layers=chosen)
    causal_logits(model_of("llama", "second_layer"), tokens())
    assert dense == [0, 2]


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_dense_layers_continue_from_caches(name: str) -> None:
    register_block_sparse_attention("first_layer", SMALL, layers=[0])
    model, mask = model_of(name, "first_layer"), padding("left")
    options: dict[str, Any] = {
        "max_new_tokens": 20,
        "min_new_tokens": 20,
        "do_sample": False,
        "eos_token_id": None,
    }
    expected = model.generate(tokens(), attention_mask=mask, use_cache=False, **options)
    for cache in ({}, {"cache_implementation": "static"}, {"prefill_chunk_size": 40}):
        assert torch.equal(model.generate(tokens(), attention_mask=mask, **cache, **options), expected)


def test_cross_attention_is_dense_unless_asked_for() -> None:
    inputs = {"input_ids": tokens(), "decoder_input_ids": tokens()[:, :100], "use_cache": False}
    register_block_sparse_attention("self_only", SMALL, layers=[])
    register_block_sparse_attention("cross_only", SMALL, layers=[], cross_attention=True)
    model = model_of("bart", "sdpa")
    dense = logits(model, **inputs)
    model.set_attn_implementation("self_only")
    torch.testing.assert_close(logits(model, **inputs), dense, **TOLERANCE)
    model.set_attn_implementation("cross_only")
    assert not torch.allclose(logits(model, **inputs), dense, rtol=0, atol=1e-3)


def test_a_config_for_every_head() -> None:
    heads = [SparsePatternConfig(sparsity_ratio=0.2, block_size=BLOCK, rotation=i) for i in range(4)]
    register_block_sparse_attention("by_head", heads)
    model, mask = model_of("llama", "by_head"), padding("left")
    found = causal_logits(model, tokens(), mask)[1, 50:]
    torch.testing.assert_close(found, causal_logits(model, tokens()[1:, 50:])[0], **TOLERANCE)


def test_from_config_and_from_pretrained(tmp_path: Path) -> None:
    model = model_of("llama")
    expected = causal_logits(model, tokens())
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="sparse", dtype=torch.float64
    )
    torch.testing.assert_close(causal_logits(loaded, tokens()), expected, **TOLERANCE)
    made = transformers.AutoModelForCausalLM.from_config(model.config, attn_implementation="sparse")
    made = made.double().eval()
    made.load_state_dict(model.state_dict())
    torch.testing.assert_close(causal_logits(made, tokens()), expected, **TOLERANCE)


def test_registered_again_a_name_means_something_else() -> None:
    register_block_sparse_attention("again", SMALL)
    model = model_of("llama", "again")
    sparse = causal_logits(model, tokens())
    register_block_sparse_attention("again", SMALL, sparsity_ratio=1.0)
    dense = causal_logits(model_of("llama", "sdpa"), tokens())
    torch.testing.assert_close(causal_logits(model, tokens()), dense, **TOLERANCE)
    assert not torch.allclose(sparse, dense, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "sdpa"}, ValueError, "name must be free in transformers"),
        ({"name": "my_flash"}, ValueError, "'flash'"),
        ({"name": "me/sparse"}, ValueError, "'me/sparse'"),
        ({"name": 3}, TypeError, "name must be a str, got 3"),
        ({"layers": "all"}, TypeError, "layers must be numbers of layers"),
        ({"layers": [-1]}, ValueError, r"got \[-1\]"),
        ({"layers": 3}, TypeError, "got 3"),
        ({"cross_attention": "no"}, TypeError, "cross_attention must be True or False, got 'no'"),
        ({"look_for_padding": None}, TypeError, "look_for_padding must be True or False"),
        ({"deterministic": "no"}, TypeError, "deterministic must be True, False or None, got 'no'"),
        ({"sparsity_ratio": 2.0}, ValueError, "sparsity_ratio"),
        ({"sparse_config": 3}, TypeError, "sparse_config"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        register_block_sparse_attention(**{"name": "wrong", **arguments})


# ---- what is refused


def test_t5_has_a_position_bias() -> None:
    config = transformers.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4)
    # in transformers 5.17 set_attn_implementation does not reach its layers
    model = transformers.AutoModelForSeq2SeqLM.from_config(config, attn_implementation="sparse")
    with pytest.raises(NotImplementedError, match=r"sparse does not serve T5Attention: .*position_bias"):
        model(tokens(), decoder_input_ids=tokens())


def test_weights_are_not_computed() -> None:
    with pytest.raises(NotImplementedError, match="output_attentions=True asks for weights"):
        model_of("llama")(tokens(), output_attentions=True)


def test_padding_between_tokens() -> None:
    mask = padding("left")
    mask[0, 70:80] = 0
    with pytest.raises(ValueError, match="attention_mask has padding between tokens"):
        causal_logits(model_of("llama"), tokens(), mask)


def test_a_mask_of_four_dimensions() -> None:
    mask = torch.ones(2, 1, 150, 150, dtype=torch.bool).tril()
    message = r"causal layers of a model that is given an attention_mask \(batch, length\); LlamaAttention got torch.bool \(2, 1"
    with pytest.raises(NotImplementedError, match=message):
        logits(model_of("llama"), input_ids=tokens(), attention_mask=mask)


@pytest.mark.parametrize("heads", [1, 4])
def test_a_mask_of_integers_is_not_taken_for_key_ranges(heads: int) -> None:
    mask = torch.ones(2, heads, 150, 150, dtype=torch.int32)
    with pytest.raises(NotImplementedError, match=r"or bool or floating point .* got torch.int32 \(2"):
        logits(model_of("bert"), input_ids=tokens(), attention_mask=mask)


def test_a_mask_of_four_dimensions_of_an_encoder() -> None:
    mask = torch.rand(2, 1, 150, 150) < 0.7
    model = model_of("bert", "sdpa")
    expected = logits(model, input_ids=tokens(), attention_mask=mask)
    model.set_attn_implementation("all_blocks")
    torch.testing.assert_close(logits(model, input_ids=tokens(), attention_mask=mask), expected, **TOLERANCE)


def test_chunked_attention() -> None:
    text = {"attention_chunk_size": 32, "intermediate_size_mlp": 48, "num_local_experts": 1, "head_dim": 8}
    config = transformers.Llama4TextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, **text,
    )  # fmt: skip
    model = transformers.Llama4ForCausalLM(config).eval()
    model.set_attn_implementation("sparse")
    with pytest.raises(NotImplementedError, match="the model asks for the mask chunked_overlay"):
        logits(model, input_ids=tokens())


def test_layers_that_the_model_does_not_have() -> None:
    register_block_sparse_attention("numbers", SMALL, layers=[0, 3])
    with pytest.raises(ValueError, match="layers of numbers must be below the 3 layers of the model, got 3"):
        causal_logits(model_of("llama", "numbers"), tokens())


def test_layers_by_number_need_layer_idx() -> None:
    register_block_sparse_attention("numbers", SMALL, layers=[0])
    config = transformers.ViTConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        image_size=16,
        patch_size=4,
    )
    model = transformers.ViTModel(config).eval()
    model.set_attn_implementation("numbers")
    with pytest.raises(ValueError, match="ViTAttention has no layer_idx; pass a function"):
        logits(model, pixel_values=torch.randn(1, 3, 16, 16))


def test_a_model_without_the_registry_says_so(caplog: pytest.LogCaptureFixture) -> None:
    config = transformers.BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=4)
    model = transformers.BloomForCausalLM(config)
    model.set_attn_implementation("sparse")
    assert model.config._attn_implementation != "sparse"


def test_position_ids_of_the_helper_are_those_of_generate() -> None:
    assert positions(padding("left"))[1, 48:53].tolist() == [0, 0, 0, 1, 2]
    assert isinstance(model_of("llama"), nn.Module)


def test_padding_between_the_prompt_and_a_step() -> None:
    model, mask = model_of("llama"), padding("right")
    out = model(tokens()[:, :-1], attention_mask=mask[:, :-1])
    cache = {"cache": out.cache} if hasattr(out, "cache") else {"past_key_values": out.past_key_values}
    with torch.no_grad(), pytest.raises(ValueError, match="attention_mask has padding between tokens"):
        model(
            tokens()[:, -1:],
            attention_mask=torch.cat([mask[:, :-1], torch.ones_like(mask[:, :1])], 1),
            **cache,
        )
