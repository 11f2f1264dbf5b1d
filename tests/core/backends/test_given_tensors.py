"""Backends that fill given tensors write there what they return otherwise, to the bit, and nothing beside it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
from dilated_attention_pytorch.backends.problem import AttentionProblem
from dilated_attention_pytorch.backends.registry import backend_named
from dilated_attention_pytorch.functional import make_problem
from dilated_attention_pytorch.validation.call import check_packed_call

BACKENDS = ["cpu", pytest.param("triton", marks=pytest.mark.interpreter)]
ON_GPU = [pytest.param(name, marks=pytest.mark.gpu) for name in ("triton", "hopper")]
HEADS, MORE = 2, 3  # of the call, and beside it in the given tensors


def check_given(problem: AttentionProblem, name: str) -> None:
    backend = backend_named(name)
    why_not = backend.rejects(problem)
    if why_not is not None:
        pytest.skip(f"{name}: {why_not}")
    out, lse = backend.forward(problem)
    wide = wide_tensor(problem)
    assert torch.equal(backend.forward_into(problem, part(wide)), lse)
    assert torch.equal(part(wide), out)
    assert beside(wide).isnan().all()

    grad_out, grad_lse = torch.randn_like(out), torch.randn_like(lse)
    wanted = backend.backward(problem, out, lse, grad_out, grad_lse)
    of_q = wide_tensor(problem)
    found = backend.backward_into(problem, part(wide), lse, grad_out, grad_lse, part(of_q))
    assert found.q is not None
    assert torch.equal(part(of_q), wanted.q)
    assert torch.equal(found.q, wanted.q)
    assert torch.equal(found.k, wanted.k)
    assert torch.equal(found.v, wanted.v)
    assert beside(of_q).isnan().all()


def wide_tensor(problem: AttentionProblem) -> Tensor:
    shape = (problem.batch, problem.q_len, HEADS + MORE, problem.head_dim)
    return problem.q.new_full(shape, torch.nan)


def part(wide: Tensor) -> Tensor:
    return wide[:, :, 1 : 1 + HEADS]


def beside(wide: Tensor) -> Tensor:
    return torch.cat([wide[:, :, :1], wide[:, :, 1 + HEADS :]], 2)


def batch_problem(
    device: str, dtype: torch.dtype, block_size: int, dim: int, causal: bool
) -> AttentionProblem:
    length = 5 * block_size + 3
    config = SparsePatternConfig(block_size=block_size, sparsity_ratio=0.4)
    layout = BlockLayout.from_config(config, length, causal=causal, device=device)
    q, k, v = (torch.randn(2, length, n, dim, device=device, dtype=dtype) for n in (HEADS, 1, 1))
    problem = make_problem(q, k, v, layout, is_causal=causal)
    return problem if device == "cpu" else problem.prepared_by(backend_named("hopper"), layout)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", BACKENDS)
def test_heads_of_a_tensor_are_filled(name: str, causal: bool) -> None:
    check_given(batch_problem("cpu", torch.float32, 16, 16, causal), name)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", ON_GPU)
def test_heads_of_a_tensor_are_filled_on_a_gpu(name: str, causal: bool) -> None:
    check_given(batch_problem("cuda", torch.bfloat16, 128, 128, causal), name)


@pytest.mark.parametrize("name", BACKENDS)
def test_heads_of_packed_sequences_are_filled(name: str) -> None:
    config = SparsePatternConfig(block_size=16, sparsity_ratio=0.5)
    layout = BlockLayout.from_config(config, 70, causal=True)
    offsets = torch.tensor([0, 40, 40, 110], dtype=torch.int32)
    q, k, v = (torch.randn(110, n, 16) for n in (HEADS, 1, 1))
    call = check_packed_call(q, k, v, layout, offsets, offsets, 70, 70, is_causal=True)
    check_given(call.problem(layout), name)
