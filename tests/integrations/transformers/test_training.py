"""Gradients, checkpointing, torch.compile and Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import SparsePatternConfig
from dilated_attention_pytorch.integrations.transformers import register_block_sparse_attention
from tests.core.backward_spy import backwards
from tests.integrations.transformers.models import (
    BLOCK,
    DENSE,
    TOLERANCE,
    logits,
    model_of,
    padding,
    tokens,
    tolerance,
    transformers,
)


def gradients(model: Any, mask: Tensor | None, checkpointing: bool = False, **options: Any) -> list[Tensor]:
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(options)
    labels = tokens().clone()
    if mask is not None:  # not the first token either, which the padding before it predicts
        labels[mask.roll(1, 1) * mask == 0] = -100
    loss = model(tokens(), attention_mask=mask, labels=labels, use_cache=False).loss
    loss.backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("side", [None, "left"], ids=["no padding", "left"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_gradients_at_ratio_1(name: str, side: str | None) -> None:
    mask = None if side is None else padding(side)
    attentions = (DENSE.get(name, "sdpa"), "all_blocks")
    expected, found = (gradients(model_of(name, attention), mask) for attention in attentions)
    torch.testing.assert_close(found, expected, **tolerance(name))


@pytest.mark.parametrize("side", [None, "left"], ids=["no padding", "left"])
def test_deterministic_reaches_the_backward_and_no_step_of_decoding(side: str | None) -> None:
    mask, grads = None if side is None else padding(side), []
    for value, name in ((None, "given_none"), (False, "given_false")):
        config = SparsePatternConfig(block_size=BLOCK, sparsity_ratio=0.2)
        register_block_sparse_attention(name, config, deterministic=value)
        with backwards() as seen:
            grads.append(gradients(model_of("llama", name), mask))
        assert set(seen) == {value is None}
        model_of("llama", name).generate(tokens(), attention_mask=mask, max_new_tokens=2)
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


def test_attention_dropout_is_for_training() -> None:
    model = model_of("llama", attention_dropout=0.5)
    expected = logits(model_of("llama"), input_ids=tokens())
    torch.testing.assert_close(logits(model, input_ids=tokens()), expected, **TOLERANCE)
    model.train()
    first, second = logits(model, input_ids=tokens()), logits(model, input_ids=tokens())
    assert not torch.allclose(first, second, rtol=0, atol=1e-3)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("side", [None, "left"], ids=["no padding", "left"])
def test_gradient_checkpointing_changes_nothing(side: str | None, use_reentrant: bool) -> None:
    mask = None if side is None else padding(side)
    expected = gradients(model_of("llama"), mask)
    found = gradients(model_of("llama"), mask, True, use_reentrant=use_reentrant)
    torch.testing.assert_close(found, expected, **TOLERANCE)


@pytest.mark.parametrize("name", ["llama", pytest.param("mistral", marks=pytest.mark.slow)])
def test_compiles_to_one_graph(name: str) -> None:
    torch.compiler.reset()
    model = model_of(name, num_hidden_layers=1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for mask in (None, padding("left")):
        with torch.no_grad():
            found, expected = (
                f(tokens(), attention_mask=mask, use_cache=False).logits for f in (compiled, model)
            )
        is_token = slice(None) if mask is None else mask.bool()
        torch.testing.assert_close(found[is_token], expected[is_token], **tolerance(name))
    grads = []
    for function in (compiled, model):
        loss = function(tokens(), labels=tokens(), use_cache=False).loss
        grads.append(torch.autograd.grad(loss, list(model.parameters())))
    torch.testing.assert_close(*grads, **tolerance(name))


def test_compiled_packed_position_ids_are_refused() -> None:
    """Reading whether sequences are packed would end the graph, so the graph itself fails if they are."""
    torch.compiler.reset()
    compiled = torch.compile(model_of("llama", num_hidden_layers=1), fullgraph=True, backend="aot_eager")
    places = torch.cat([torch.arange(100), torch.arange(50)])[None]
    with pytest.raises(RuntimeError, match="cannot read packed position_ids in a compiled model"):
        compiled(tokens()[:1], position_ids=places, use_cache=False)


def test_trainer(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    losses = {}
    for attention in ("sdpa", "all_blocks", "sparse"):
        model = model_of("llama", attention).float()
        rows = [
            {"input_ids": row, "labels": row, "attention_mask": mask}
            for row, mask in zip(tokens(), padding("left"))
        ]
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=2, max_steps=3, learning_rate=1e-2, report_to=[],
            save_strategy="no", logging_steps=1, gradient_checkpointing=True, use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        trainer = transformers.Trainer(model, arguments, train_dataset=rows)
        trainer.train()
        losses[attention] = torch.tensor(
            [each["loss"] for each in trainer.state.log_history if "loss" in each]
        )
    assert len(losses["sparse"]) == 3
    assert losses["sparse"][-1] < losses["sparse"][0]
    # rounded to a few digits by Trainer
    torch.testing.assert_close(losses["all_blocks"], losses["sdpa"], rtol=1e-3, atol=0)
    assert not torch.allclose(losses["sparse"], losses["sdpa"], rtol=1e-3, atol=0)
