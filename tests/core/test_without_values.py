"""Tensors that have shapes and no values: on the meta device, and fake ones of a FakeTensorMode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from dilated_attention_pytorch import (
    BlockLayout,
    BlockSparseAdaptive,
    BlockSparseAttention,
    SparsePatternConfig,
    TileOrder,
    block_scores,
    block_sparse_attention,
    block_sparse_attention_varlen,
    block_sparse_decode,
    block_sparse_sdpa,
    create_block_sparse_attention,
    select_blocks,
)

CONFIG = SparsePatternConfig(block_size=16, sparsity_ratio=0.4)
EXACT = SparsePatternConfig("local_window", 16, window_size=20, exact=True)
LENGTH = 100
LAYOUT = BlockLayout.from_config(CONFIG, LENGTH)
CAUSAL = BlockLayout.from_config(CONFIG, LENGTH, causal=True)
MASKED = BlockLayout.from_config(EXACT, LENGTH, causal=True)


def int32(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def chosen(q: Tensor, k: Tensor, v: Tensor, **selection: Any) -> Tensor:
    indices, counts = select_blocks(block_scores(q, k, 16, causal=True), causal=True, **selection)
    layout = BlockLayout.from_indices(
        indices, counts, q_len=LENGTH, kv_len=LENGTH, block_size=16, causal=True
    )
    return block_sparse_attention(q, k, v, layout, is_causal=True)


def decoded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    device = q.device if q.is_meta else None
    lengths = torch.full((2,), 60, dtype=torch.int32, device=device)
    layout = CAUSAL.to(q.device) if q.is_meta else CAUSAL
    return block_sparse_decode(q[:, :1].detach(), k.detach(), v.detach(), layout, lengths)


def packed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    offsets = int32(0, 60, LENGTH).to(q.device) if q.is_meta else int32(0, 60, LENGTH)
    return block_sparse_attention_varlen(q[0], k[0], v[0], LAYOUT, offsets, offsets, LENGTH, LENGTH)


def with_lengths(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    lengths = torch.full((2,), 7, dtype=torch.int32, device=q.device if q.is_meta else None)
    return block_sparse_attention(q, k, v, CAUSAL, is_causal=True, kv_lengths=lengths, kv_starts=lengths)


def biased(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    bias = torch.zeros(LAYOUT.num_block_ids, device=q.device if q.is_meta else None, requires_grad=True)
    return block_sparse_attention(q, k, v, LAYOUT, block_bias=bias, sinks=bias[:4], softcap=5.0)


CALLS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "plain": lambda q, k, v: block_sparse_attention(q, k, v, LAYOUT),
    "with_lse": lambda q, k, v: sum(
        x.sum() for x in block_sparse_attention(q, k, v, LAYOUT, return_lse=True)
    ),  # type: ignore[misc, return-value]
    "masks_inside_blocks": lambda q, k, v: block_sparse_attention(q, k, v, MASKED, is_causal=True),
    "dropout": lambda q, k, v: block_sparse_attention(q, k, v, LAYOUT, dropout_p=0.1),
    "lengths": with_lengths,
    "biases": biased,
    "new_layout": lambda q, k, v: block_sparse_attention(q, k, v, BlockLayout.from_config(CONFIG, LENGTH)),
    "tiles": lambda q, k, v: block_sparse_attention(
        q, k, v, TileOrder(4, 5, 5, tile=(4, 2, 2)).window_layout((1, 1, 1), 16)
    ),
    "chosen": lambda q, k, v: chosen(q, k, v, num_blocks=2),
    "chosen_by_share": lambda q, k, v: chosen(q, k, v, top_p=0.5),
    "adaptive": lambda q, k, v: BlockSparseAdaptive(CONFIG, num_heads=4, head_dim=8, device=q.device)(
        q, k, v, is_causal=True
    ),
    "module": lambda q, k, v: BlockSparseAttention(CONFIG)(q, k, v, is_causal=True),
    "module_with_a_layout": lambda q, k, v: BlockSparseAttention(CONFIG)(q, k, v, layout=LAYOUT),
    "sdpa": lambda q, k, v: block_sparse_sdpa(
        *(x.transpose(1, 2) for x in (q, k, v)), is_causal=True, enable_gqa=True, sparse_config=CONFIG
    ).transpose(1, 2),
    "sdpa_with_a_layout": lambda q, k, v: block_sparse_sdpa(
        *(x.transpose(1, 2) for x in (q, k, v)), enable_gqa=True, layout=LAYOUT
    ).transpose(1, 2),
    "packed": packed,
    "decode": decoded,
}


def tensors(device: str | None = None) -> list[Tensor]:
    return [torch.zeros(2, LENGTH, heads, 8, device=device, requires_grad=True) for heads in (4, 2, 2)]


def described(x: Tensor) -> tuple[Any, ...]:
    return x.shape, x.dtype


def shapes_of(name: str, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    """The result, and the gradients where there are some."""
    out = CALLS[name](q, k, v)
    return [out, *(torch.autograd.grad(out.sum(), (q, k, v)) if out.requires_grad else ())]


@pytest.mark.parametrize("name", CALLS)
def test_meta_tensors_get_shapes_forward_and_backward(name: str) -> None:
    found = shapes_of(name, *tensors("meta"))
    expected = shapes_of(name, *tensors())
    assert all(x.is_meta for x in found)
    assert list(map(described, found)) == list(map(described, expected))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("allow", [False, True])
def test_fake_tensors_get_shapes_also_where_a_mode_takes_no_others(name: str, allow: bool) -> None:
    expected = shapes_of(name, *tensors())
    with FakeTensorMode(allow_non_fake_inputs=allow):
        found = shapes_of(name, *tensors())
    assert all(isinstance(x, FakeTensor) for x in found)
    assert list(map(described, found)) == list(map(described, expected))


def test_fake_tensors_of_a_gpu_that_is_not_there() -> None:
    with FakeTensorMode():
        q = torch.empty(2, LENGTH, 4, 8, device="cuda")
        for name in ("plain", "module", "sdpa"):
            out = CALLS[name](q, q, q)
            assert (out.device.type, out.shape) == ("cuda", q.shape)


def test_call_without_values_leaves_the_layout_as_it_was() -> None:
    layout = BlockLayout.from_config(CONFIG, LENGTH)
    block_sparse_attention(*tensors("meta"), layout)
    with FakeTensorMode():
        block_sparse_attention(*tensors(), layout)
    assert not layout.calls
    assert not isinstance(layout.row_lists.indices, FakeTensor)
    out = block_sparse_attention(*tensors(), layout)
    assert not isinstance(out, FakeTensor)


# ---- modules


@pytest.mark.parametrize("variant", ["base", "multihead", "adaptive"])
def test_modules_are_made_on_meta_and_filled_later(variant: str) -> None:
    arguments: dict[str, Any] = {"sparse_config": CONFIG}
    if variant == "multihead":
        arguments |= {"embed_dim": 32, "num_heads": 4, "batch_first": True}
    if variant == "adaptive":
        arguments |= {"head_dim": 8, "num_heads": 4}
    torch.manual_seed(0)
    whole = create_block_sparse_attention(variant=variant, **arguments).eval()
    with torch.device("meta"):
        made = create_block_sparse_attention(variant=variant, **arguments)
        x = torch.randn(2, LENGTH, 32) if variant == "multihead" else torch.randn(2, LENGTH, 4, 8)
        result = made(x, x, x)
    out = result[0] if variant == "multihead" else result
    assert out.is_meta
    assert out.shape == x.shape
    assert all(p.is_meta for p in made.parameters())

    filled = made.to_empty(device="cpu").eval()
    filled.load_state_dict(whole.state_dict())
    x = torch.randn(x.shape)
    for ours, theirs in zip(filled(x, x, x), whole(x, x, x)):
        assert ours is theirs is None or torch.equal(ours, theirs)


# ---- errors


def test_layouts_of_patterns_need_values() -> None:
    with pytest.raises(ValueError, match="device must hold values, got 'meta'; make the layout on the CPU"):
        BlockLayout.from_config(CONFIG, LENGTH, device="meta")


def test_option_without_values_beside_tensors_with_them_is_named() -> None:
    q, k, v = tensors()
    with pytest.raises(ValueError, match="which holds no values"):
        block_sparse_attention(q, k, v, LAYOUT, kv_lengths=int32(5, 5).to("meta"))


def test_layout_without_values_beside_tensors_with_them_is_named() -> None:
    q, k, v = tensors()
    with pytest.raises(ValueError, match="layout must be on cpu, got one on meta, which holds no values"):
        block_sparse_attention(q, k, v, LAYOUT.to("meta"))
