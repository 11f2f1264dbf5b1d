"""`deterministic` reaches the backward of every distributed call, and the ranks agree on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from dilated_attention_pytorch import (
    BlockLayout,
    BlockSparseDistributedAttention,
    DistributedSparseConfig,
    PackedSharding,
    SequenceSharding,
    distributed_attention_from_indices,
    distributed_attention_from_plan,
    distributed_block_sparse_attention,
    distributed_block_sparse_attention_varlen,
    plan_of_indices,
)
from tests.core.backward_spy import backwards
from tests.core.distributed.attention_grid import BLOCK, DILATED
from tests.core.distributed.gloo_processes import GlooProcesses, needs_gloo
from tests.core.distributed.one_process import mesh_of_one

pytestmark = needs_gloo

NAMES = ("layout", "module", "indices", "plan", "packed, split", "packed, whole")

Attend = Callable[[Any], tuple[Tensor, Tensor]]


def calls_of(config: DistributedSparseConfig, n_blocks: int = 12) -> dict[str, Attend]:
    """Every distributed call with a value of `deterministic`; out, and the tokens that q, k and v are."""
    length = n_blocks * BLOCK
    layout = BlockLayout.from_config(DILATED, length, causal=True)
    sharding = SequenceSharding.from_layout(layout, config)
    packs = {
        "packed, split": PackedSharding.from_sequences([0, length], layout, config),
        "packed, whole": PackedSharding.from_sequences([0, length // 2, length], layout, config),
    }
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, sharding.local_len, 2, 16, generator=generator).requires_grad_()
    rows = sharding.blocks_of(config.rank)
    indices = torch.stack([torch.zeros_like(rows), rows // 2, rows], 1).expand(1, 2, -1, -1)

    def of_layout(value: Any) -> tuple[Tensor, Tensor]:
        return distributed_block_sparse_attention(
            x, x, x, layout, sharding, config, is_causal=True, deterministic=value
        ), x

    def of_module(value: Any) -> tuple[Tensor, Tensor]:
        module = BlockSparseDistributedAttention(DILATED, config, deterministic=value)
        return module(x, x, x, is_causal=True, sharding=sharding), x

    def of_indices(value: Any) -> tuple[Tensor, Tensor]:
        return distributed_attention_from_indices(
            x, x, x, indices, sharding, config, is_causal=True, deterministic=value
        ), x

    def of_plan(value: Any) -> tuple[Tensor, Tensor]:
        plan = plan_of_indices(x, x, indices, sharding, config, is_causal=True)
        return distributed_attention_from_plan(x, x, x, plan, deterministic=value), x

    def of_pack(name: str) -> Attend:
        its = packs[name]
        tokens = torch.randn(its.local_len, 2, 16, generator=generator).requires_grad_()

        def attend(value: Any) -> tuple[Tensor, Tensor]:
            return distributed_block_sparse_attention_varlen(
                tokens, tokens, tokens, layout, its, config, is_causal=True, deterministic=value
            ), tokens

        return attend

    calls = (of_layout, of_module, of_indices, of_plan, *map(of_pack, packs))
    return dict(zip(NAMES, calls, strict=True))


def told(calls: dict[str, Attend]) -> dict[str, tuple[list[set[bool]], bool]]:
    """What the backend is told for False, again False, and the default; and whether all gradients are the same."""
    made = {}
    for name, attend in calls.items():
        seen, grads = [], []
        for value in (False, False, None):
            with backwards() as of_call:
                out, tokens = attend(value)
                grads += torch.autograd.grad(out.square().sum(), [tokens])
            seen.append(set(of_call))
        made[name] = seen, all(torch.equal(grad, grads[0]) for grad in grads)
    return made


def of_this_rank(rank: int) -> dict[str, tuple[list[set[bool]], bool]]:
    return told(calls_of(DistributedSparseConfig(dist.group.WORLD)))


RIGHT = [{False}, {False}, {True}], True


def test_it_reaches_the_backward_of_two_processes(two: GlooProcesses) -> None:
    for of_rank in two.run(of_this_rank):
        assert of_rank == dict.fromkeys(NAMES, RIGHT)


def test_it_reaches_the_backward_of_one_process() -> None:
    with mesh_of_one() as mesh:
        calls = calls_of(DistributedSparseConfig(mesh))
        assert told(calls) == dict.fromkeys(NAMES, RIGHT)
        for attend in calls.values():
            with pytest.raises(TypeError, match="deterministic must be True, False or None, got 'no'"):
                attend("no")


def of_other_calls(rank: int) -> dict[str, str]:
    """What a rank is told where only the other one permits any order; of lengths that they have not agreed on."""
    calls = calls_of(DistributedSparseConfig(dist.group.WORLD), n_blocks=14)
    said = {}
    for name, attend in calls.items():
        with pytest.raises(ValueError, match="the ranks of a distributed call") as error:
            attend(rank == 0)
        said[name] = str(error.value)
    return said


def test_ranks_that_differ_in_it_are_told(two: GlooProcesses) -> None:
    for said in two.run(of_other_calls):
        assert said.keys() == set(NAMES)
        for text in said.values():
            assert "deterministic is True on rank 0, False on rank 1" in text
