"""Layers that go straight to the launch of the first of them give what they give on their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout, block_sparse_decode
from dilated_attention_pytorch.backends.decode_problem import Decode, DecodeInputs
from dilated_attention_pytorch.integrations.transformers import steps
from tests.integrations.transformers.models import model_of, padding, positions, tokens, transformers

STEPS = 3


class Resolver:
    """Stands for the launches of a GPU, which calls on the CPU have not."""

    def __init__(self) -> None:
        self.resolved = self.again = 0

    def __call__(
        self, inputs: DecodeInputs, layout: BlockLayout, softmax_scale: float | None, softcap: float | None
    ) -> Decode:
        self.resolved += 1

        def decode(given: DecodeInputs, with_lse: bool) -> tuple[Tensor, None]:
            self.again += 1
            out = block_sparse_decode(
                given.q, given.k_cache, given.v_cache, layout, given.cache_lengths,
                kv_starts=given.kv_starts, sinks=given.sinks, softmax_scale=softmax_scale, softcap=softcap,
            )  # fmt: skip
            return out, None

        return decode


@torch.no_grad()
def decoded(model: Any) -> Tensor:
    """Logits of a few steps behind a prompt that is padded on the left."""
    mask, cache, parts = padding("left"), transformers.DynamicCache(config=model.config), []
    name = "cache" if "cache" in model.forward.__code__.co_varnames else "past_key_values"
    for begin, end in ((0, 147), *((147 + i, 148 + i) for i in range(STEPS))):
        inputs = {"attention_mask": mask[:, :end], "position_ids": positions(mask)[:, begin:end], name: cache}
        parts.append(model(tokens()[:, begin:end], use_cache=True, **inputs).logits)
    return torch.cat(parts[1:], 1)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("llama", 1),
        ("gemma2", 2),  # with a window, and without
        ("gpt_oss", 2),  # and sinks that every layer has of its own
    ],
)
def test_layers_behind_the_first_take_its_launch(
    name: str, kinds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(name)
    expected, resolver = decoded(model), Resolver()
    monkeypatch.setattr(steps, "resolved_call", resolver)
    assert torch.equal(decoded(model), expected)
    assert (resolver.resolved, resolver.again) == (STEPS * kinds, STEPS * (3 - kinds))


@torch.enable_grad()
def test_steps_with_gradients_are_resolved_each(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = Resolver()
    monkeypatch.setattr(steps, "resolved_call", resolver)
    model, mask = model_of("llama"), padding("left")
    model(tokens()[:, :10], attention_mask=mask[:, 50:60], use_cache=False).logits.sum().backward()
    assert resolver.resolved == 0
