"""Continuing from a cache gives what the whole sequence gives at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.integrations.transformers.models import (
    CAUSAL,
    HYBRID,
    LENGTH,
    causal_logits,
    model_of,
    padding,
    positions,
    tokens,
    tolerance,
    transformers,
)

GREEDY: dict[str, Any] = {
    "max_new_tokens": 24,
    "min_new_tokens": 24,
    "do_sample": False,
    "eos_token_id": None,
}
SLOW = ("mistral", "qwen3", "gemma2", "gpt2")


def slow_but(*quick: str) -> list[Any]:
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in CAUSAL]


def cache_of(kind: str, model: Any) -> Any:
    if kind == "static":
        return transformers.StaticCache(config=model.config, max_cache_len=LENGTH + 10)
    return transformers.DynamicCache(config=model.config)


@torch.no_grad()
def in_chunks(model: Any, mask: Tensor, sizes: list[int], kind: str) -> Tensor:
    """Logits of the tokens, in chunks that continue from a cache."""
    cache, parts, begin = cache_of(kind, model), [], 0
    name = "cache" if "cache" in model.forward.__code__.co_varnames else "past_key_values"
    for size in sizes:
        end = begin + size
        inputs = {"attention_mask": mask[:, :end], "position_ids": positions(mask)[:, begin:end], name: cache}
        parts.append(model(tokens()[:, begin:end], use_cache=True, **inputs).logits)
        begin = end
    return torch.cat(parts, 1)


CHUNKS = {
    "token by token": [100] + [1] * 50,
    "by the block": [48, 32, 32, 32, 6],
    "of any size": [37, 50, 20, 3, 40],
    "a few tokens": [100, 5, 16, 2, 17, 10],
}


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("name", slow_but("llama", "gpt_oss"))
def test_in_chunks_as_at_once(name: str, chunks: str, kind: str) -> None:
    model, mask = model_of(name), padding("left")
    expected = causal_logits(model, tokens(), mask)
    found = in_chunks(model, mask, CHUNKS[chunks], kind)
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], **tolerance(name))


CACHES: dict[str, dict[str, Any]] = {
    "dynamic": {},
    "static": {"cache_implementation": "static"},
    "chunked prefill": {"prefill_chunk_size": 32},
    "static, chunked prefill": {"cache_implementation": "static", "prefill_chunk_size": 32},
    "offloaded": {"cache_implementation": "offloaded"},
}


@pytest.mark.parametrize("name", slow_but("gemma3"))
def test_generation_is_the_same_with_every_cache(name: str) -> None:
    model, mask = model_of(name), padding("left")
    expected = model.generate(tokens(), attention_mask=mask, use_cache=False, **GREEDY)
    for cache, options in CACHES.items():
        if cache == "offloaded" and not torch.cuda.is_available():
            continue
        found = model.generate(tokens(), attention_mask=mask, **options, **GREEDY)
        assert torch.equal(found, expected), cache
    alone = model.generate(tokens()[1:, 50:], **GREEDY)
    assert torch.equal(alone[0, 100:], expected[1, LENGTH:])


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", [pytest.param("gpt_oss", marks=pytest.mark.slow), "llama"])
def test_beams(name: str, cache: str) -> None:
    model, mask = model_of(name), padding("left")
    expected = model.generate(tokens(), attention_mask=mask, num_beams=3, use_cache=False, **GREEDY)
    found = model.generate(tokens(), attention_mask=mask, num_beams=3, **CACHES[cache], **GREEDY)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["llama", pytest.param("gemma3", marks=pytest.mark.slow)])
def test_assisted_decoding(name: str) -> None:
    model, assistant = model_of(name), model_of("llama", num_hidden_layers=1)
    ids = tokens()[:1]
    expected = model.generate(ids, **GREEDY)
    assert torch.equal(model.generate(ids, assistant_model=assistant, **GREEDY), expected)
    repeated = torch.cat([ids[:, :40]] * 3, 1)
    expected = model.generate(repeated, **GREEDY)
    assert torch.equal(model.generate(repeated, prompt_lookup_num_tokens=4, **GREEDY), expected)


def test_steps_go_to_block_sparse_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    from dilated_attention_pytorch.integrations.transformers import attention

    calls = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args[0].shape[1])
        return decode(*args, **kwargs)

    decode = attention.block_sparse_decode
    monkeypatch.setattr(attention, "block_sparse_decode", counted)
    model = model_of("llama")
    model.generate(tokens(), **GREEDY)
    assert calls == [1] * 23 * model.config.num_hidden_layers  # the first token is the prompt's


def test_encoder_and_decoder() -> None:
    model = model_of("bart")
    ids, mask = tokens(), padding("right")
    expected = model.generate(ids, attention_mask=mask, use_cache=False, **GREEDY)
    for options in ({}, CACHES["static"]):
        assert torch.equal(model.generate(ids, attention_mask=mask, **options, **GREEDY), expected)


@pytest.mark.parametrize(
    "name", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gemma3", "gpt_oss"))]
)
def test_compiled_with_a_static_cache(name: str) -> None:
    """Without a graph break, so nothing is read on the host: the step for one token is one graph."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    layers = {"num_hidden_layers": 2} | (
        {} if name == "llama" else {"layer_types": HYBRID["layer_types"][:2]}
    )
    model, mask = model_of(name, **layers), padding("left")
    compile_config = transformers.CompileConfig(fullgraph=True, backend="aot_eager", mode=None)
    compile_config._compile_all_devices = True  # the CPU too
    expected = model.generate(tokens(), attention_mask=mask, **GREEDY)
    found = model.generate(
        tokens(), attention_mask=mask, cache_implementation="static", compile_config=compile_config, **GREEDY
    )
    assert torch.equal(found, expected)
    # a second one where the cache of a window counts in Python
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == (1 if name == "llama" else 2)


def test_compiled_after_another_attention() -> None:
    """The masks differ in their lengths, which torch.compile makes symbols of then."""
    torch.compiler.reset()
    model, mask = model_of("llama", num_hidden_layers=1), padding("left")
    ours = model.config._attn_implementation
    compile_config = transformers.CompileConfig(fullgraph=True, backend="eager", mode=None)
    compile_config._compile_all_devices = True
    options = {**GREEDY, "max_new_tokens": 4, "min_new_tokens": 4, "attention_mask": mask}
    compiled = {"cache_implementation": "static", "compile_config": compile_config}
    for name in ("sdpa", ours, "sdpa", ours):
        model.set_attn_implementation(name)
        expected = model.generate(tokens(), **options)
        assert torch.equal(model.generate(tokens(), **options, **compiled), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_compiled_chunked_prefill(name: str) -> None:
    torch.compiler.reset()
    model, mask = model_of(name), padding("left")
    compile_config = transformers.CompileConfig(fullgraph=True, backend="aot_eager", mode=None)
    compile_config._compile_all_devices = True
    expected = model.generate(tokens(), attention_mask=mask, **GREEDY)
    options = {"cache_implementation": "static", "prefill_chunk_size": 50, "compile_config": compile_config}
    assert torch.equal(model.generate(tokens(), attention_mask=mask, **options, **GREEDY), expected)


@pytest.mark.slow
def test_compiled_with_a_cache_that_grows() -> None:
    torch.compiler.reset()
    model, mask = model_of("llama"), padding("left")
    expected = model.generate(tokens(), attention_mask=mask, **GREEDY)
    model.forward = torch.compile(model.forward, backend="aot_eager")
    assert torch.equal(model.generate(tokens(), attention_mask=mask, **GREEDY), expected)
