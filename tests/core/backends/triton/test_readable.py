"""Tensors as the Triton kernels read them: in any layout in memory, copied only where heads do not begin at 16 bytes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
from dilated_attention_pytorch.backends.problem import AttentionProblem
from dilated_attention_pytorch.backends.triton import TRITON
from dilated_attention_pytorch.functional import make_problem

pytest.importorskip("triton")
from dilated_attention_pytorch.backends.triton.launch import readable, unit_of

LENGTH, HEADS, DIM = 40, 2, 16
WHOLE = (2, LENGTH, HEADS, DIM)


def problem(**changes: Tensor) -> AttentionProblem:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(WHOLE, generator=generator) for _ in range(3))
    layout = BlockLayout.from_config(
        SparsePatternConfig(block_size=16, sparsity_ratio=0.6), LENGTH, causal=True
    )
    return dataclasses.replace(make_problem(q, k, v, layout, is_causal=True), **changes)


def laid_out(x: Tensor, way: str) -> Tensor:
    """The same values, elsewhere in memory."""
    made = {
        "heads first": lambda: torch.empty(2, HEADS, LENGTH, DIM).transpose(1, 2),
        "fused": lambda: torch.empty(2, LENGTH, 3, HEADS, DIM)[:, :, 1],
        "longer": lambda: torch.empty(2, LENGTH + 3, HEADS, DIM)[:, :LENGTH],
        "odd rows": lambda: torch.empty(2, LENGTH, HEADS, DIM + 3)[..., :DIM],
        "begins between": lambda: torch.empty(2 * LENGTH * HEADS * DIM + 1)[1:].view(WHOLE),
        "dims apart": lambda: torch.empty(2, LENGTH, HEADS, 2 * DIM)[..., ::2],
        "dims first": lambda: torch.empty(2, DIM, LENGTH, HEADS).permute(0, 2, 3, 1),
    }[way]()
    return made.copy_(x)


READ = ("heads first", "fused", "longer")
COPIED = ("odd rows", "begins between", "dims apart", "dims first")


@pytest.mark.parametrize("way", [*READ, *COPIED])
def test_only_what_cannot_be_read_is_copied(way: str) -> None:
    p = problem()
    x = laid_out(p.q, way)
    found = readable(x, unit_of(p))
    assert torch.equal(found, x)
    assert (found is x) == (way in READ)


def test_strides_of_a_dimension_of_one_do_not_count() -> None:
    x = torch.empty(1, LENGTH, 1, DIM).as_strided((1, LENGTH, 1, DIM), (3, DIM, 5, 1))
    assert readable(x, 4) is x


def test_heads_of_odd_length_are_read_where_they_are() -> None:
    x = torch.empty(2, LENGTH, HEADS, 5)
    p = problem(q=x, k=x, v=x)
    assert unit_of(p) == 1
    assert readable(x, 1) is x


@pytest.mark.interpreter
@pytest.mark.parametrize("way", ["heads first", "odd rows", "dims first"])
def test_same_results_wherever_the_tensors_are(way: str) -> None:
    p = problem()
    if TRITON.rejects(p) is not None:
        pytest.skip(str(TRITON.rejects(p)))
    there = problem(**{name: laid_out(getattr(p, name), way) for name in "qkv"})
    grad_out, grad_lse = torch.randn(WHOLE), torch.randn(2, HEADS, LENGTH)
    found = []
    for each, grad in ((p, grad_out), (there, laid_out(grad_out, way))):
        out, lse = TRITON.forward(each)
        grads = TRITON.backward(each, out, lse, grad, grad_lse)
        found.append((out, lse, grads.q, grads.k, grads.v))
    for here, other in zip(*found, strict=True):
        assert torch.equal(here, other)
