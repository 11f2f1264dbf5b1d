"""Distributed attention on GPUs through NCCL, a process for each: what one GPU gives, the same bits in every run, no waiting.

With one GPU only the tests of a group of one rank run.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from dilated_attention_pytorch import (
    BlockLayout,
    BlockSparseAttention,
    BlockSparseDistributedAttention,
    DistributedSparseConfig,
    SequenceSharding,
    SparsePatternConfig,
    block_sparse_attention,
    distributed_block_sparse_attention,
    shard_sequence,
)
from tests.core.attention_cases import LIMITS
from tests.core.distributed.gloo_processes import GlooProcesses, needs_gloo

N_GPUS = torch.cuda.device_count()
pytestmark = [pytest.mark.gpu, pytest.mark.processes, needs_gloo]
several = pytest.mark.skipif(N_GPUS < 2, reason="needs several GPUs")


@pytest.fixture(scope="module")
def processes() -> Iterator[GlooProcesses]:
    """A process for each GPU, with a gloo group; NCCL's are made in them."""
    with GlooProcesses(max(1, N_GPUS)) as running:
        yield running


# ---- calls


@dataclass(frozen=True)
class Case:
    """A call: `kinds` are the patterns of all heads, or one for each; `window` makes a layout with masks inside blocks."""

    name: str
    length: int = 3000
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    v_head_dim: int | None = None
    batch: int = 1
    block: int = 64
    kinds: tuple[str, ...] = ("dilated_sparse",)
    ratio: float = 0.2
    window: int | None = None
    is_causal: bool = True
    dtype: torch.dtype = torch.bfloat16
    balance: str = "cost"
    stages: int | None = 2
    save_fetched: bool = False
    bias: bool = False
    sinks: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def layout(self) -> BlockLayout:
        if self.window is not None:
            return BlockLayout.from_mask_mod(
                self.mask_mod, self.length, self.length, self.block, device="cuda"
            )
        configs = [
            SparsePatternConfig(
                kind, self.block, self.ratio, global_tokens=self.block if kind == "global_local" else 0
            )  # type: ignore[arg-type]
            for kind in self.kinds
        ]
        one_or_all = configs[0] if len(configs) == 1 else configs
        return BlockLayout.from_config(one_or_all, self.length, causal=self.is_causal, device="cuda")

    def mask_mod(self, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """A window, and every 700th key."""
        assert self.window is not None
        seen = ((i - j).abs() < self.window) | (j % 700 == 3)
        return seen & (j <= i) if self.is_causal else seen

    def tensors(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """q, k, v, the gradient of the output, and what else the call has; the same on every rank."""
        generator = torch.Generator().manual_seed(7)

        def random(*shape: int) -> Tensor:
            # Rounded first: all types see these numbers.
            made = torch.randn(shape, generator=generator).to(self.dtype)
            return made.to("cuda", dtype or self.dtype)

        v_dim = self.v_head_dim or self.head_dim
        found = {
            "q": random(self.batch, self.length, self.heads, self.head_dim),
            "k": random(self.batch, self.length, self.kv_heads, self.head_dim),
            "v": random(self.batch, self.length, self.kv_heads, v_dim),
            "grad": random(self.batch, self.length, self.heads, v_dim),
        }
        if self.bias:
            found["block_bias"] = random(1, self.heads, self.layout().num_block_ids)
        if self.sinks:
            found["sinks"] = random(self.heads)
        return found


CASES = [
    Case("dilated_causal"),
    Case("dilated_full", is_causal=False),
    Case("local_causal", kinds=("local_window",), dtype=torch.float16, head_dim=128, block=128),
    Case("global_full", kinds=("global_local",), is_causal=False, dtype=torch.float16),
    Case("whole_blocks", length=4096, block=128, head_dim=128, balance="contiguous"),
    Case("one_token_in_the_last_block", length=2049, balance="zigzag"),
    Case("one_token_in_the_last_block_full", length=2049, is_causal=False),
    Case("no_groups", heads=4, kv_heads=4, stages=4),
    Case("one_kv_head", heads=4, kv_heads=1, stages=None),
    Case("batch", length=1000, batch=3, save_fetched=True),
    Case("pattern_per_head", kinds=("dilated_sparse", "local_window", "global_local", "dilated_sparse"), stages=2),
    Case("pattern_per_kv_head_full", kinds=("dilated_sparse", "local_window"), is_causal=False),
    Case("masks", window=300),
    Case("masks_full", window=300, is_causal=False, dtype=torch.float16),
    Case("dilation", options={"segment_lengths": [256, 1024], "dilation_rates": [1, 2]}),
    Case("dilation_full", is_causal=False, options={"segment_lengths": [128, 512], "dilation_rates": [1, 2]}),
    Case("scores", bias=True, sinks=True, options={"softcap": 20.0}),
    Case("other_dims", head_dim=80, v_head_dim=48, block=32, dtype=torch.float16),
    Case("small_blocks", block=16, length=1500, heads=2, kv_heads=1),
    Case("one_stage", stages=1, head_dim=128, block=128),
    Case("float32", dtype=torch.float32),
]  # fmt: skip
BY_NAME = {case.name: case for case in CASES}


def on_one_gpu(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """Output and gradients of the whole sequence."""
    tensors = case.tensors(dtype)
    grad = tensors.pop("grad")
    leaves = {name: x.requires_grad_() for name, x in tensors.items()}
    q, k, v = (leaves[name] for name in "qkv")
    others = {name: leaves[name] for name in ("block_bias", "sinks") if name in leaves}
    out = block_sparse_attention(q, k, v, case.layout(), is_causal=case.is_causal, **others, **case.options)
    return dict(zip(["out", *leaves], [out.detach(), *torch.autograd.grad(out, leaves.values(), grad)]))


class Call:
    """A call on this rank, which can be made several times."""

    def __init__(self, case: Case, group: dist.ProcessGroup) -> None:
        self.case, self.layout = case, case.layout()
        self.config = DistributedSparseConfig(
            group, balance=case.balance, stages=case.stages, save_fetched=case.save_fetched
        )  # type: ignore[arg-type]
        self.sharding = SequenceSharding.from_layout(self.layout, self.config)
        whole = case.tensors()
        cut = {name: shard_sequence(whole[name], self.sharding) for name in ("q", "k", "v", "grad")}
        self.grad = cut.pop("grad").contiguous()
        others = {name: x for name, x in whole.items() if name in ("block_bias", "sinks")}
        self.leaves = {name: x.detach().requires_grad_() for name, x in (cut | others).items()}

    def __call__(self) -> dict[str, Tensor]:
        """Output and gradients of this rank's tokens."""
        q, k, v = (self.leaves[name] for name in "qkv")
        others = {name: self.leaves[name] for name in ("block_bias", "sinks") if name in self.leaves}
        out = distributed_block_sparse_attention(
            q, k, v, self.layout, self.sharding, self.config, is_causal=self.case.is_causal, **others, **self.case.options
        )  # fmt: skip
        grads = torch.autograd.grad(out, self.leaves.values(), self.grad)
        return dict(zip(["out", *self.leaves], [out.detach(), *grads]))


@functools.cache
def nccl_group() -> dist.ProcessGroup:
    """All ranks, each on its GPU."""
    torch.cuda.set_device(dist.get_rank())
    made: dist.ProcessGroup = dist.new_group(backend="nccl")
    return made


@functools.cache
def group_of_one() -> dist.ProcessGroup:
    """This rank alone, on its GPU."""
    torch.cuda.set_device(dist.get_rank())
    groups = [dist.new_group([rank], backend="nccl") for rank in range(dist.get_world_size())]
    made: dist.ProcessGroup = groups[dist.get_rank()]
    return made


# ---- what the processes run


def errors(rank: int, name: str) -> dict[str, float]:
    """Relative errors of the output and gradients of this rank's tokens, beside one GPU in float32."""
    case = BY_NAME[name]
    call, expected = Call(case, nccl_group()), on_one_gpu(case, torch.float32)
    found, positions = call(), call.sharding.positions("cuda")
    assert found.keys() == expected.keys()
    relative = {}
    for key, x in found.items():
        if key in ("block_bias", "sinks"):  # of what ranks share: the sum
            dist.all_reduce(x, group=call.config.group)
        wanted = (
            expected[key].double() if key in ("block_bias", "sinks") else expected[key][:, positions].double()
        )
        relative[key] = float((x.double() - wanted).norm() / wanted.norm())
    return relative


def differing_runs(rank: int, name: str, repeats: int) -> list[str]:
    """What of a call was not the same to the bit in each of some runs."""
    call = Call(BY_NAME[name], nccl_group())
    first = call()
    return [
        f"{key} in run {i}"
        for i in range(1, repeats)
        for key, x in call().items()
        if not torch.equal(x, first[key])
    ]


def differing_with_overlap(rank: int, name: str) -> list[str]:
    """What is not the same to the bit with other stages, or with blocks that are kept for the backward."""
    case = BY_NAME[name]
    first = Call(replace(case, stages=1, save_fetched=False), nccl_group())()
    ways = [(2, False), (case.kv_heads, False), (None, False), (1, True), (2, True)]
    return [
        f"{key} with stages {stages}, save_fetched {kept}"
        for stages, kept in ways
        for key, x in Call(replace(case, stages=stages, save_fetched=kept), nccl_group())().items()
        if not torch.equal(x, first[key])
    ]


def step_without_waiting(rank: int, name: str, alone: bool) -> None:
    """A step after the first, which raises if it waits for the GPU."""
    call = Call(BY_NAME[name], group_of_one() if alone else nccl_group())
    call()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()


def alone_beside_one_gpu(rank: int, name: str) -> list[str]:
    """What a group of one rank does not give to the bit as a single GPU does."""
    case = BY_NAME[name]
    found, expected = Call(case, group_of_one())(), on_one_gpu(case, case.dtype)
    return [key for key in expected if not torch.equal(found[key], expected[key])]


def module_alone_beside_base_module(rank: int) -> bool:
    """Whether the module on a group of one rank gives the bits of the base module."""
    config = SparsePatternConfig(block_size=64, sparsity_ratio=0.2)
    q, k, v = (torch.randn(1, 1000, 4, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    module = BlockSparseDistributedAttention(config, DistributedSparseConfig(group_of_one()))
    return torch.equal(module(q, k, v, is_causal=True), BlockSparseAttention(config)(q, k, v, is_causal=True))


# ---- several GPUs


@several
@pytest.mark.parametrize("name", BY_NAME)
def test_output_and_gradients_are_those_of_one_gpu(processes: GlooProcesses, name: str) -> None:
    limit = LIMITS[BY_NAME[name].dtype]
    for found in processes.run(errors, name, limit=120):
        assert all(error <= limit for error in found.values()), found


@several
@pytest.mark.parametrize(
    "name", ["dilated_causal", "whole_blocks", "pattern_per_head", "scores", "masks_full"]
)
def test_twenty_runs_are_equal_to_the_bit(processes: GlooProcesses, name: str) -> None:
    assert processes.run(differing_runs, name, 20, limit=120) == [[]] * N_GPUS


@several
@pytest.mark.parametrize("name", ["whole_blocks", "no_groups", "dilated_full", "pattern_per_kv_head_full"])
def test_overlap_changes_no_bit(processes: GlooProcesses, name: str) -> None:
    assert processes.run(differing_with_overlap, name, limit=120) == [[]] * N_GPUS


@several
@pytest.mark.parametrize(
    "name", ["dilated_causal", "whole_blocks", "batch", "pattern_per_head", "masks", "dilation", "scores"]
)
def test_step_does_not_wait_for_the_gpu(processes: GlooProcesses, name: str) -> None:
    processes.run(step_without_waiting, name, False, limit=120)


# ---- one rank


@pytest.mark.parametrize(
    "name", ["dilated_causal", "whole_blocks", "pattern_per_head", "masks_full", "dilation", "scores"]
)
def test_one_rank_gives_the_bits_of_one_gpu(processes: GlooProcesses, name: str) -> None:
    assert processes.run(alone_beside_one_gpu, name, limit=120) == [[]] * max(1, N_GPUS)


@pytest.mark.parametrize("name", ["dilated_causal", "scores"])
def test_step_of_one_rank_does_not_wait_for_the_gpu(processes: GlooProcesses, name: str) -> None:
    processes.run(step_without_waiting, name, True, limit=120)


def test_module_of_one_rank_gives_the_bits_of_the_base_module(processes: GlooProcesses) -> None:
    assert processes.run(module_alone_beside_base_module, limit=120) == [True] * max(1, N_GPUS)
