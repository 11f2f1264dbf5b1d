"""On a GPU: no step of decoding or of training waits for it, and results are those of the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dilated_attention_pytorch.integrations.transformers import register_block_sparse_attention
from tests.integrations.transformers.models import model_of, padding, positions, tokens, transformers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def waits_are_errors() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def on_gpu(name: str, attention: str = "sparse", **changes: Any) -> Any:
    return model_of(name, attention, hidden_size=256, num_attention_heads=4, **changes).cuda().bfloat16()


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
@torch.no_grad()
def test_a_step_of_decoding_does_not_wait(name: str, kind: str, waits_are_errors: None) -> None:
    torch.cuda.set_sync_debug_mode("default")
    if (name, kind) == ("gemma3", "static"):
        pytest.skip(
            "transformers' own static cache of a sliding window copies a number from the host in every step"
        )
    model, mask, ids = on_gpu(name), padding("left").cuda(), tokens().cuda()
    caches = {"static": transformers.StaticCache, "dynamic": transformers.DynamicCache}
    cache_of = {"dynamic": {}, "static": {"max_cache_len": 200}}[kind]
    cache = caches[kind](config=model.config, **cache_of)
    name_of_cache = (
        "cache" if "cache" in transformers.LlamaModel.forward.__code__.co_varnames else "past_key_values"
    )
    places = positions(mask)
    for begin, end in ((0, 146), (146, 147), (147, 148), (148, 149), (149, 150)):
        if begin == 148:  # kernels are compiled
            torch.cuda.set_sync_debug_mode("error")
        inputs = {"attention_mask": mask[:, :end], "position_ids": places[:, begin:end], name_of_cache: cache}
        model(ids[:, begin:end], use_cache=True, **inputs)


def test_a_step_of_training_does_not_wait(waits_are_errors: None) -> None:
    """With padding too, if it is not looked for."""
    torch.cuda.set_sync_debug_mode("default")
    register_block_sparse_attention("not_looking", sparsity_ratio=0.2, block_size=64, look_for_padding=False)
    model, mask, ids = on_gpu("llama", "not_looking").train(), padding("left").cuda(), tokens().cuda()
    places = positions(mask)
    for attempt in range(3):
        if attempt == 2:
            torch.cuda.set_sync_debug_mode("error")
        logits = model(ids, attention_mask=mask, position_ids=places, use_cache=False).logits
        logits.float().square().mean().backward()


@pytest.mark.parametrize(
    "cache", [{}, {"cache_implementation": "static"}], ids=["dynamic", "static, compiled"]
)
def test_generates_what_the_cpu_generates(cache: dict[str, str]) -> None:
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    mask = padding("left")
    model = model_of("llama").float()
    expected = model.generate(tokens(), attention_mask=mask, **options)
    model.cuda()
    found = model.generate(tokens().cuda(), attention_mask=mask.cuda(), **cache, **options)
    assert torch.equal(found.cpu(), expected)
