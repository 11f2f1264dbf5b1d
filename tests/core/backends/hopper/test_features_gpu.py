"""What calls beyond a plain one ask of the Hopper backend on its GPU: the same bits, no waiting, little memory, graphs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import (
    BlockLayout,
    SparsePatternConfig,
    block_sparse_attention,
    block_sparse_attention_varlen,
)
from tests.core.backends.hopper.cases import ROUNDING, ROUNDINGS, lse_gradient_of_rounding
from tests.core.backends.hopper.test_gpu import is_hopper

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not is_hopper(), reason="needs a GPU of compute capability 9.0"),
]
NAMES = ("out", "lse", "q", "k", "v", "block_bias", "sinks")


class Asked(NamedTuple):
    """What a call asks for: its layout, options, and the tensors among them that have a gradient."""

    layout: BlockLayout
    options: dict[str, Any]
    leaves: dict[str, Tensor] = MappingProxyType({})  # type: ignore[assignment]


def layout_of(length: int, block_size: int, causal: bool = False) -> BlockLayout:
    ratio = min(0.3, 20_000 / length**2 * 100)  # of long sequences few blocks
    config = SparsePatternConfig(block_size=block_size, sparsity_ratio=ratio)
    return BlockLayout.from_config(config, length, causal=causal, device="cuda")


def int32(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32, device="cuda")


def bias_of(layout: BlockLayout, heads: int) -> Tensor:
    return torch.randn(heads, layout.num_block_ids, device="cuda", requires_grad=True)


def masked_layout(n: int, block_size: int) -> BlockLayout:
    """A window that cuts through blocks."""
    return BlockLayout.from_mask_mod(
        lambda b, h, q_idx, kv_idx: (q_idx - kv_idx).abs() < 3 * block_size // 2,
        n,
        n,
        block_size,
        device="cuda",
    )


FEATURES: dict[str, Callable[[int, int, int], Asked]] = {  # of length, block_size and heads
    "kv_lengths": lambda n, b, h: Asked(layout_of(n, b), {"kv_lengths": int32(n, n // 3)}),
    "left_padding": lambda n, b, h: Asked(
        layout_of(n, b, True), {"is_causal": True, "kv_starts": int32(17, n // 2)}
    ),
    "padding": lambda n, b, h: Asked(
        layout_of(n, b), {"key_padding_mask": torch.rand(2, n, device="cuda") < 0.3}
    ),
    "softcap": lambda n, b, h: Asked(layout_of(n, b, True), {"is_causal": True, "softcap": 5.0}),
    "alibi": lambda n, b, h: Asked(layout_of(n, b), {"alibi_slopes": (-0.5) ** torch.arange(1, h + 1, device="cuda")}),
    "sinks": lambda n, b, h: Asked(layout_of(n, b), {}, {"sinks": torch.randn(h, device="cuda", requires_grad=True)}),
    "bias": lambda n, b, h: Asked(layout := layout_of(n, b), {}, {"block_bias": bias_of(layout, h)}),
    "masks": lambda n, b, h: Asked(masked_layout(n, b), {}),
    "dropout": lambda n, b, h: Asked(layout_of(n, b, True), {"is_causal": True, "dropout_p": 0.2}),
    "elements": lambda n, b, h: Asked(
        BlockLayout.from_indices(
            torch.rand(2, h, -(-n // b), -(-n // b), device="cuda").argsort(-1)[..., :4], q_len=n, kv_len=n, block_size=b
        ),
        {},
    ),
    "chunk": lambda n, b, h: Asked(layout_of(2 * n, b, True), {"is_causal": True, "q_offset": n - 13}),
}  # fmt: skip


def inputs(length: int, heads: int, head_dim: int, kv_heads: int) -> list[Tensor]:
    shapes = [(2, length, n, head_dim) for n in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, dtype=torch.bfloat16, device="cuda").requires_grad_() for shape in shapes]


def step(
    tensors: list[Tensor],
    asked: Asked,
    grad_out: Tensor,
    backend: str = "hopper",
    grad_lse: Tensor | None = None,
) -> list[Tensor]:
    """out, lse and the gradients of q, k, v and what else has one; dropout is the same every time."""
    if "dropout_p" in asked.options and not torch.cuda.is_current_stream_capturing():
        torch.manual_seed(0)
    leaves = [*tensors, *asked.leaves.values()]
    out, lse = block_sparse_attention(
        *tensors, asked.layout, return_lse=True, backend=backend, **asked.options, **asked.leaves
    )
    if grad_lse is None:
        return [out.detach(), lse.detach(), *torch.autograd.grad(out, leaves, grad_out)]
    return [out.detach(), lse.detach(), *torch.autograd.grad((out, lse), leaves, (grad_out, grad_lse))]


def names_of(asked: Asked) -> list[str]:
    return [*NAMES[:5], *asked.leaves]


def relative(found: Tensor, wanted: Tensor) -> float:
    """The relative error; infinities must be the same."""
    found, wanted = found.double(), wanted.double()
    finite = wanted.isfinite()
    assert torch.equal(found[~finite], wanted[~finite])
    return float((found[finite] - wanted[finite]).norm() / wanted[finite].norm().clamp(min=1e-30))


SHAPES = [(64, 64), (128, 64), (64, 128), (128, 128), (128, 256), (96, 128)]  # head_dim, block size
SMALL = {
    (64, 16): ("bias", "masks", "elements"),
    (128, 32): ("bias",),
}  # joined to tiles of 64, without these features
EVERY = [
    *itertools.product(FEATURES, SHAPES),
    *((name, shape) for shape, without in SMALL.items() for name in FEATURES if name not in without),
]


@pytest.mark.parametrize(("name", "shape"), EVERY)
def test_results_are_those_of_the_reference_and_the_same_in_every_run(
    name: str, shape: tuple[int, int]
) -> None:
    head_dim, block_size = shape
    asked = FEATURES[name](1000, block_size, 4)
    tensors = inputs(1000, 4, head_dim, 2)
    if name == "chunk":
        tensors[1:] = inputs(2000, 4, head_dim, 2)[1:]
    grad_out = torch.randn_like(tensors[0])
    found = step(tensors, asked, grad_out)
    exact = [x.detach().double().requires_grad_() for x in tensors]
    leaves = {name: x.detach().double().requires_grad_() for name, x in asked.leaves.items()}
    exactly = asked._replace(leaves=leaves)
    wanted = step(exact, exactly, grad_out.double(), "reference")
    if leaves:  # sums that cancel: of the rounded out
        grad_lse = lse_gradient_of_rounding(grad_out, found[0], wanted[0])
        wanted[5:] = step(exact, exactly, grad_out.double(), "reference", grad_lse)[5:]
    for of, ours, theirs in zip(names_of(asked), found, wanted, strict=True):
        roundings = ROUNDINGS.get(of if of == "out" else f"grad_{of}", 0.0)
        limit = 2e-5 if of == "lse" else roundings * ROUNDING[torch.bfloat16]
        assert relative(ours, theirs) < limit, of
    for _ in range(19):
        again = step(tensors, asked, grad_out)
        for of, ours, first in zip(names_of(asked), again, found, strict=True):
            assert torch.equal(ours, first), of


@pytest.mark.parametrize("name", FEATURES)
def test_a_step_does_not_synchronise_with_the_host(name: str) -> None:
    asked = FEATURES[name](1000, 64, 4)
    tensors = inputs(1000, 4, 64, 2)
    if name == "chunk":
        tensors[1:] = inputs(2000, 4, 64, 2)[1:]
    grad_out = torch.randn_like(tensors[0])
    step(tensors, asked, grad_out)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(tensors, asked, grad_out)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", FEATURES)
def test_forward_and_backward_need_hardly_more_memory_than_their_results(name: str) -> None:
    length = 32_768
    asked = FEATURES[name](length, 128, 8)
    tensors = inputs(length, 8, 128, 8)
    if name == "chunk":
        tensors[1:] = inputs(2 * length, 8, 128, 8)[1:]
    grad_out = torch.randn_like(tensors[0])
    step(tensors, asked, grad_out)  # what is made of a layout stays
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    results = step(tensors, asked, grad_out)
    torch.cuda.synchronize()
    above = torch.cuda.max_memory_allocated() - before
    assert above <= 1.05 * sum(x.numel() * x.element_size() for x in results)


@pytest.mark.parametrize("name", [name for name in FEATURES if name != "dropout"])
def test_a_graph_gives_the_numbers_of_eager_mode(name: str) -> None:
    asked = FEATURES[name](1000, 128, 4)
    tensors = inputs(1000, 4, 128, 2)
    if name == "chunk":
        tensors[1:] = inputs(2000, 4, 128, 2)[1:]
    grad_out = torch.randn_like(tensors[0])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(tensors, asked, grad_out)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = step(tensors, asked, grad_out)
    with torch.no_grad():
        for x in (*tensors, grad_out):
            x.copy_(torch.randn_like(x))
    expected = step(tensors, asked, grad_out)
    for _ in range(2):  # the second replay finds what the first one left
        graph.replay()
        torch.cuda.synchronize()
        for of, ours, theirs in zip(names_of(asked), captured, expected, strict=True):
            assert torch.equal(ours, theirs), of


def test_every_replay_of_a_graph_draws_new_dropout() -> None:
    asked = FEATURES["dropout"](1000, 128, 4)
    tensors = inputs(1000, 4, 128, 2)
    grad_out = torch.randn_like(tensors[0])
    step(tensors, asked, grad_out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse, *_ = step(tensors, asked, grad_out)
    made = []
    for _ in range(2):
        graph.replay()
        torch.cuda.synchronize()
        made.append((out.clone(), lse.clone()))
    assert not torch.equal(made[0][0], made[1][0])
    assert torch.equal(made[0][1], made[1][1])


@pytest.mark.parametrize("block_size", [64, 128])
def test_packed_sequences_are_those_of_calls_of_their_own(block_size: int) -> None:
    """Whatever is in the tokens between them."""
    layout = layout_of(1000, block_size, True)
    bounds, lengths = int32(0, 300, 310, 450, 1450), [(0, 300), (310, 140), (450, 1000)]
    q, k, v = (torch.randn(1500, 4, 128, dtype=torch.bfloat16, device="cuda") for _ in range(3))
    with torch.no_grad():
        for x in (k, v):
            x[300:310] = torch.nan  # in a sequence of its own, which nobody asks about
        found = block_sparse_attention_varlen(
            q, k, v, layout, bounds, bounds, 1000, 1000, is_causal=True, backend="hopper"
        )
        for first, length in lengths:
            part = slice(first, first + length)
            alone = block_sparse_attention(
                *(x[None, part] for x in (q, k, v)), layout, is_causal=True, q_offset=0, backend="hopper"
            )
            assert relative(found[part], alone[0]) < ROUNDINGS["out"] * ROUNDING[torch.bfloat16]
