"""Below ratio 1 a sequence in a batch, padded or packed, gives what it gives alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch.integrations.transformers import register_block_sparse_attention
from tests.integrations.transformers.models import (
    CAUSAL,
    TOLERANCE,
    causal_logits,
    logits,
    model_of,
    padding,
    tokens,
    tolerance,
)

LENGTHS = [60, 70, 20]
CU_SEQLENS = torch.tensor([0, 60, 130, 150], dtype=torch.int32)
PACKED_POSITIONS = torch.cat([torch.arange(length) for length in LENGTHS])[None]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", CAUSAL)
def test_padded_as_alone(name: str, side: str) -> None:
    model, mask = model_of(name), padding(side)
    is_token = mask[1].bool()
    found = causal_logits(model, tokens(), mask)[1, is_token]
    alone = causal_logits(model, tokens()[1:, is_token])[0]
    torch.testing.assert_close(found, alone, **tolerance(name))


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_padding_is_not_dropped(name: str) -> None:
    """What stands in the padding changes nothing. Without a mask function transformers would pass no mask on."""
    model, mask = model_of(name), padding("left")
    others = torch.where(mask.bool(), tokens(), 5)
    first, second = (
        logits(model, input_ids=ids, attention_mask=mask)[mask.bool()] for ids in (tokens(), others)
    )
    torch.testing.assert_close(first, second, **tolerance(name))
    without = logits(model, input_ids=others)[mask.bool()]
    assert not torch.allclose(first, without, rtol=0, atol=1e-3)


@pytest.mark.parametrize("look", [True, False])
def test_a_mask_of_ones_changes_nothing(look: bool) -> None:
    register_block_sparse_attention("looking", sparsity_ratio=0.2, block_size=16, look_for_padding=look)
    model = model_of("gemma2", "looking")
    expected = causal_logits(model, tokens())
    torch.testing.assert_close(
        causal_logits(model, tokens(), torch.ones_like(tokens())), expected, **TOLERANCE
    )


def one_by_one(model: object, ids: Tensor) -> Tensor:
    return torch.cat([causal_logits(model, part) for part in ids.split(LENGTHS, 1)], 1)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3"])
def test_packed_position_ids_as_alone(name: str) -> None:
    model = model_of(name)
    found = logits(model, input_ids=tokens(), position_ids=PACKED_POSITIONS.expand(2, -1), use_cache=False)
    torch.testing.assert_close(found, one_by_one(model, tokens()), **tolerance(name))


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_oss"])
@pytest.mark.parametrize("layers", [None, [1]], ids=["sparse", "some dense"])
def test_cu_seq_lens_as_alone(name: str, layers: list[int] | None) -> None:
    register_block_sparse_attention("packed", sparsity_ratio=0.2, block_size=16, layers=layers)
    model = model_of(name, "packed")
    lengths = {
        "cu_seq_lens_q": CU_SEQLENS,
        "cu_seq_lens_k": CU_SEQLENS,
        "max_length_q": 70,
        "max_length_k": 70,
    }
    ids = tokens()[:1]
    found = logits(model, input_ids=ids, position_ids=PACKED_POSITIONS, use_cache=False, **lengths)
    torch.testing.assert_close(found, one_by_one(model, ids), **tolerance(name))


def test_a_sequence_of_nothing_but_padding_gives_numbers() -> None:
    model, mask = model_of("llama"), padding("left")
    mask[1] = 0
    found = causal_logits(model, tokens(), mask)
    torch.testing.assert_close(found[0], causal_logits(model, tokens()[:1])[0], **TOLERANCE)
    assert found.isfinite().all()


def test_no_layout_is_built_for_a_token() -> None:
    from dilated_attention_pytorch.layout.cache import LAYOUTS

    register_block_sparse_attention("counted", sparsity_ratio=0.21, block_size=16)
    model = model_of("llama", "counted")
    generate = {"max_new_tokens": 40, "min_new_tokens": 40, "do_sample": False}
    model.generate(tokens(), attention_mask=padding("left"), **{**generate, "max_new_tokens": 41})
    before = set(LAYOUTS._by_lengths)
    model.generate(tokens(), attention_mask=padding("left"), **generate)
    assert set(LAYOUTS._by_lengths) == before
    assert len([key for key in before if "0.21" in str(key)]) == 1
