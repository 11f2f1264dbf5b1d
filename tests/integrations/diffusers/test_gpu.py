"""On a GPU: the processor gives the model's own results at ratio 1, and a step never waits for the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from dilated_attention_pytorch.integrations.diffusers import TileAttention, set_block_sparse_attention
from tests.integrations.diffusers.models import MODELS, TILE, Case

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

WAYS: dict[str, dict[str, Any]] = {"window": {"window": (99, 99, 99)}, "ratio": {"sparsity_ratio": 1.0}}


def on_gpu(name: str) -> Case:
    torch.manual_seed(0)
    case = MODELS[name]()
    case.model.to("cuda")
    call = {key: moved(value) for key, value in case.call.items()}
    return case._replace(call=call)


def moved(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(moved, value))
    return value.to("cuda") if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_ratio_of_one_is_the_model_itself(name: str, way: str) -> None:
    case = on_gpu(name)
    dense = case()
    set_block_sparse_attention(case.model, tile=TILE, **WAYS[way], **case.setting)
    torch.testing.assert_close(case(), dense, rtol=2e-2, atol=2e-3)  # products in tf32


@pytest.mark.parametrize("way", [{"window": (1, 2, 1)}, {"sparsity_ratio": 0.3}], ids=["window", "ratio"])
@pytest.mark.parametrize("name", ["wan", "hunyuan"])
def test_step_never_waits(name: str, way: dict[str, Any]) -> None:
    case = on_gpu(name)
    set_block_sparse_attention(case.model, tile=TILE, **way)
    case().square().mean().backward()
    attention = next(x.attention for x in case.model.attn_processors.values() if hasattr(x, "attention"))
    q = torch.randn(2, 210 + 12 * (name == "hunyuan"), 2, 16, device="cuda", requires_grad=True)
    attention.grid = (5, 6, 7)
    attention(q, q, q).sum().backward()  # makes what is kept
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        attention(q, q, q).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_window_of_a_real_size_is_the_masked_definition() -> None:
    torch.manual_seed(0)
    attention = TileAttention((8, 16, 16), window=(3, 3, 3), text_first=False)
    q, k, v = (torch.randn(1, 2048 + 77, 2, 128, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    ready = attention._ready(77, q.device)
    assert ready.layout is not None
    order, seen = ready.order, ready.layout.to_dense()
    place = torch.empty(2048, dtype=torch.int64, device="cuda")
    place[order.to_tiles(torch.arange(2048, device="cuda"), 0)] = torch.arange(2048, device="cuda")
    block = torch.cat([place, torch.arange(2048, 2048 + 77, device="cuda")]) // ready.block_size
    mask = torch.ones(2125, 2125, dtype=torch.bool, device="cuda")
    mask[:2048] = seen[block[:2048]][:, block]
    expected = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), mask).transpose(1, 2)
    torch.testing.assert_close(attention(q, k, v), expected, rtol=2e-2, atol=2e-2)
