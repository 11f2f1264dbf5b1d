"""torch.set_default_device and set_default_dtype change nothing about layouts, modules and what backends compute."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import (
    BlockLayout,
    SparsePatternConfig,
    block_sparse_attention,
    create_block_sparse_attention,
    explain_backends,
)
from tests.core.backends.hopper.cases import work_order
from tests.core.op_recorder import OpRecorder

CONFIGS = {
    "dilated": SparsePatternConfig(block_size=16, sparsity_ratio=0.3),
    "rates": SparsePatternConfig(block_size=16, sparsity_ratio=0.3, dilation_rates=[1, 2]),
    "window": SparsePatternConfig("local_window", 16, 0.3),
    "global": SparsePatternConfig("global_local", 16, 0.3, global_tokens=20),
}
LENGTH = 50


@pytest.fixture(params=["float64", "bfloat16", "float16", "meta"])
def default(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "meta":
        torch.set_default_device("meta")
    else:
        torch.set_default_dtype(getattr(torch, request.param))
    yield request.param
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


def qkv() -> list[Tensor]:
    generator = torch.Generator("cpu").manual_seed(0)
    return [
        torch.randn(1, LENGTH, 2, 16, generator=generator, dtype=torch.float32, device="cpu").requires_grad_()
        for _ in range(3)
    ]


def results(name: str, backend: str | None, causal: bool) -> list[Tensor]:
    """Layouts, outputs and gradients of everything that is public."""
    config, tensors, found = CONFIGS[name], qkv(), []
    layout = BlockLayout.from_config(config, LENGTH, causal=causal)
    dense = layout.to_dense()
    again = BlockLayout.from_dense(dense, 16, LENGTH, LENGTH, causal)
    found += [dense, again.row_lists.indices, work_order(layout)]
    coverage = [layout.coverage(2), float(layout.hops_to_full_coverage() or 0), layout.density]
    found.append(torch.tensor(coverage, dtype=torch.float64, device="cpu"))
    dilated = {"segment_lengths": [32, 64], "dilation_rates": [1, 4]}
    for options in ({}, dilated):
        module = create_block_sparse_attention("base", sparse_config=config, backend=backend, **options)
        module.clear_cache()
        out = module(*tensors, is_causal=causal)
        found += [out, *torch.autograd.grad(out.square().sum(), tensors)]
        with OpRecorder():  # through the operators
            out = module(*tensors, is_causal=causal)
            found += [out, *torch.autograd.grad(out.square().sum(), tensors)]
    bias = torch.linspace(-1, 1, layout.num_active_blocks, dtype=torch.float32, device="cpu").requires_grad_()
    padding = torch.arange(LENGTH, device="cpu")[None] % 7 == 3
    out = block_sparse_attention(
        *tensors, layout, is_causal=causal, block_bias=bias, key_padding_mask=padding, backend=backend
    )
    return [*found, out, *torch.autograd.grad(out.square().sum(), [*tensors, bias])]


@functools.cache
def expected(name: str, backend: str | None, causal: bool) -> list[Tensor]:
    """The results with torch's own defaults, computed once for all other defaults: the interpreter is slow."""
    assert torch.get_default_dtype() == torch.float32
    assert torch.get_default_device().type == "cpu"
    return [x.detach() for x in results(name, backend, causal)]


CASES: list[Any] = [(name, backend) for name in CONFIGS for backend in (None, "reference")]
CASES.append(pytest.param("global", "triton", marks=pytest.mark.interpreter))  # one, the interpreter is slow


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("name", "backend"), CASES)
def test_defaults_change_nothing(name: str, backend: str | None, causal: bool, default: str) -> None:
    found = results(name, backend, causal)
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)
    for ours, theirs in zip(found, expected(name, backend, causal), strict=True):
        assert ours.device.type == "cpu"
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs)


def test_compiled_and_explained_calls_keep_their_device(default: str) -> None:
    torch.compiler.reset()
    module, tensors = create_block_sparse_attention("base", sparse_config=CONFIGS["dilated"]), qkv()
    out = torch.compile(module, fullgraph=True, backend="aot_eager")(*tensors)
    out.sum().backward()
    assert out.device.type == "cpu"
    torch.testing.assert_close(out, module(*tensors))
    layout = BlockLayout.from_config(CONFIGS["dilated"], LENGTH)
    assert explain_backends(*tensors, layout)["cpu"] is None
