"""At ratio 1 every model gives what it gives with the dense attention of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.integrations.transformers.models import (
    BIDIRECTIONAL,
    CAUSAL,
    DENSE,
    TOLERANCE,
    causal_logits,
    logits,
    model_of,
    padding,
    tokens,
    tolerance,
    transformers,
)

PADDINGS = {"no padding": None, "left": padding("left"), "right": padding("right")}


@pytest.mark.parametrize("side", PADDINGS)
@pytest.mark.parametrize("name", CAUSAL)
def test_decoders(name: str, side: str) -> None:
    mask = PADDINGS[side]
    is_token = torch.ones_like(tokens(), dtype=torch.bool) if mask is None else mask.bool()
    model = model_of(name, DENSE.get(name, "sdpa"))
    expected = causal_logits(model, tokens(), mask)
    model.set_attn_implementation("all_blocks")
    found = causal_logits(model, tokens(), mask)
    torch.testing.assert_close(found[is_token], expected[is_token], **tolerance(name))


@pytest.mark.parametrize("side", PADDINGS)
@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_encoders(name: str, side: str) -> None:
    mask = PADDINGS[side]
    is_token = torch.ones_like(tokens(), dtype=torch.bool) if mask is None else mask.bool()
    model = model_of(name, "sdpa")
    expected = logits(model, input_ids=tokens(), attention_mask=mask)
    model.set_attn_implementation("all_blocks")
    found = logits(model, input_ids=tokens(), attention_mask=mask)
    torch.testing.assert_close(found[is_token], expected[is_token], **tolerance(name))


@pytest.mark.parametrize("side", PADDINGS)
def test_encoder_and_decoder(side: str) -> None:
    inputs: dict[str, Any] = {
        "input_ids": tokens(), "attention_mask": PADDINGS[side], "decoder_input_ids": tokens()[:, :100], "use_cache": False
    }  # fmt: skip
    model = model_of("bart", "sdpa")
    expected = logits(model, **inputs)
    model.set_attn_implementation("all_blocks")
    torch.testing.assert_close(logits(model, **inputs), expected, **TOLERANCE)


def test_images() -> None:
    config = transformers.ViTConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=48,
        patch_size=4,
    )
    model = transformers.ViTModel(config).double().eval()
    pixels = torch.randn(2, 3, 48, 48, dtype=torch.float64)
    expected = logits(model, pixel_values=pixels)
    model.set_attn_implementation("all_blocks")
    torch.testing.assert_close(logits(model, pixel_values=pixels), expected, **TOLERANCE)
    model.set_attn_implementation("sparse")
    assert not torch.allclose(logits(model, pixel_values=pixels), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["llama", "bert", "gpt_oss"])
def test_a_small_ratio_changes_the_result(name: str) -> None:
    """So the models above do call the attention."""
    model = model_of(name, "all_blocks")
    dense = logits(model, input_ids=tokens())
    model.set_attn_implementation("sparse")
    assert not torch.allclose(logits(model, input_ids=tokens()), dense, rtol=0, atol=1e-3)


def test_a_layer_with_a_window_keeps_exactly_its_window() -> None:
    """It is sparse already, so the ratio does not apply to it."""
    model = model_of("mistral", "sdpa")
    expected = causal_logits(model, tokens())
    model.set_attn_implementation("sparse")
    torch.testing.assert_close(causal_logits(model, tokens()), expected, **TOLERANCE)
