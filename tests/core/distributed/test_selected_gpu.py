"""Chosen blocks of a distributed sequence on GPUs: the same results, no host synchronisation, captured in a CUDA graph.

On one GPU the other rank is a mirror: the halves of the sequence are alike, and so are what their rows choose, the own half
and the other one exchanged. What the other rank sends is then what this one sends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from dilated_attention_pytorch import BlockLayout, block_scores, block_sparse_attention, select_blocks
from dilated_attention_pytorch.distributed.config import DistributedSparseConfig
from dilated_attention_pytorch.distributed.scores import distributed_block_scores
from dilated_attention_pytorch.distributed.selected import distributed_attention_from_plan
from dilated_attention_pytorch.distributed.selection_plan import SelectionPlan, plan_of_indices
from dilated_attention_pytorch.distributed.sharding import SequenceSharding, shard_sequence
from tests.core.distributed.gloo_processes import GlooProcesses, needs_gloo
from tests.core.distributed.selected_cases import TOLERANCE

BLOCK, N_BLOCKS, HEADS, KV_HEADS, DIM = 64, 6, 4, 2, 64  # blocks and tokens of one rank
LENGTH = N_BLOCKS * BLOCK
# Of the largest element: bfloat16 has 8 bits; both sides are rounded, and each part of a sum.
HALF_TOLERANCE = 2**-7


class Done:
    def wait(self) -> None: ...


class Mirror:
    """Stands for a DeviceMesh of two ranks."""

    mesh_dim_names, ndim = None, 1

    def get_group(self, dim: Any = None) -> None: ...


def mirrored(received: Tensor, sent: Tensor, *splits: list[int], **_: Any) -> Done:
    """An all-to-all with the mirror: nothing goes to itself, or all receive the same."""
    assert received.shape == sent.shape
    assert splits[0] == splits[1]
    received.copy_(sent)
    return Done()


@pytest.fixture
def make_config(monkeypatch: pytest.MonkeyPatch) -> Callable[..., DistributedSparseConfig]:
    monkeypatch.setattr(dist, "all_to_all_single", mirrored)

    def make(**settings: Any) -> DistributedSparseConfig:
        config = DistributedSparseConfig(Mirror(), agreement_timeout=0, **settings)  # type: ignore[arg-type]
        config.__dict__.update(rank=0, world_size=2)
        return config

    return make


def sharding() -> SequenceSharding:
    halves = (((0, N_BLOCKS),), ((N_BLOCKS, 2 * N_BLOCKS),))
    return SequenceSharding.make(halves, 2 * LENGTH, BLOCK, 0)


def tensors(device: str, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v and the gradient of out, of one rank."""
    generator = torch.Generator(device).manual_seed(0)
    return [
        torch.randn(2, LENGTH, heads, DIM, device=device, dtype=dtype, generator=generator)
        for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)
    ]


def drawn(device: str, seed: int, heads: int = HEADS) -> Tensor:
    """int32 (2, heads, N_BLOCKS, 4), some of no block, some double."""
    generator = torch.Generator(device).manual_seed(seed)
    shape = (2, heads, N_BLOCKS, 4)
    return torch.randint(-2, 2 * N_BLOCKS, shape, device=device, generator=generator, dtype=torch.int32)


Step = Callable[[Tensor], tuple[Tensor, ...]]


def make_step(inputs: list[Tensor], config: DistributedSparseConfig) -> Step:
    q, k, v, grad = inputs
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]

    def step(indices: Tensor) -> tuple[Tensor, ...]:
        plan = plan_of_indices(leaves[0], leaves[1], indices, sharding(), config)
        out, lse = distributed_attention_from_plan(*leaves, plan, return_lse=True)
        return out.detach(), lse.detach(), *torch.autograd.grad(out, leaves, grad), plan.dropped, plan.needed

    return step


def of_both(inputs: list[Tensor], indices: Tensor) -> tuple[Tensor, ...]:
    """What a single process gives for the half of this rank."""
    q, k, v, grad = (torch.cat([x, x], 1) for x in inputs)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    of_mirror = torch.where(indices < 0, indices, (indices + N_BLOCKS) % (2 * N_BLOCKS))
    layout = BlockLayout.from_indices(
        torch.cat([indices, of_mirror], 2), q_len=2 * LENGTH, kv_len=2 * LENGTH, block_size=BLOCK
    )
    out, lse = block_sparse_attention(*leaves, layout, return_lse=True)
    grads = torch.autograd.grad(out, leaves, grad)
    return out[:, :LENGTH].detach(), lse[:, :, :LENGTH].detach(), *(x[:, :LENGTH] for x in grads)


def check(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...], tolerance: float) -> None:
    for mine, right in zip(found, wanted, strict=False):
        is_finite = right.isfinite()
        assert torch.equal(mine.isfinite(), is_finite)
        error = (mine.float() - right.float())[is_finite].abs().max()
        assert error <= tolerance * right[is_finite].abs().max().float()


def test_a_rank_beside_its_mirror_gives_what_one_process_gives(
    make_config: Callable[..., DistributedSparseConfig],
) -> None:
    """On the CPU: the mirror is right."""
    inputs, indices = [x[:1, :, :, :16] for x in tensors("cpu", torch.float32)], drawn("cpu", 0)[:1]
    check(make_step(inputs, make_config(stages=2))(indices), of_both(inputs, indices), TOLERANCE)


@pytest.mark.gpu
@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("heads", [1, KV_HEADS, HEADS])
def test_a_gpu_beside_its_mirror_gives_what_one_process_gives(
    make_config: Callable[..., DistributedSparseConfig], stages: int, heads: int
) -> None:
    inputs, indices = tensors("cuda", torch.bfloat16), drawn("cuda", heads, heads)
    check(make_step(inputs, make_config(stages=stages))(indices), of_both(inputs, indices), HALF_TOLERANCE)


@pytest.mark.gpu
def test_a_plan_on_a_gpu_is_that_of_the_cpu(make_config: Callable[..., DistributedSparseConfig]) -> None:
    """Bit by bit, also of what a capacity drops."""

    def plan_on(device: str, capacity: int | None) -> SelectionPlan:
        q, k, *_ = (x.to(device) for x in tensors("cpu", torch.bfloat16))
        indices = drawn("cpu", 1).to(device)
        return plan_of_indices(q, k, indices, sharding(), make_config(stages=2, capacity=capacity))

    for capacity in (None, 2):
        mine, other = plan_on("cuda", capacity), plan_on("cpu", capacity)
        assert (mine.dropped.item() > 0) == (capacity is not None)
        assert mine.dropped.item() == other.dropped.item()
        assert torch.equal(mine.needed.cpu(), other.needed)
        for a, b in zip(mine.stages, other.stages, strict=True):
            assert a.local.layout.rows() == b.local.layout.rows()
            assert torch.equal(a.local.sent.cpu(), b.local.sent)
            returned, wanted = a.local.returned, b.local.returned
            assert torch.equal(returned.indptr.cpu(), wanted.indptr)
            number = int(wanted.indptr[-1])
            assert torch.equal(returned.starts[:number].cpu(), wanted.starts[:number])


@pytest.mark.gpu
@pytest.mark.parametrize("capacity", [None, 2])
def test_a_step_does_not_wait_for_the_gpu(
    make_config: Callable[..., DistributedSparseConfig], capacity: int | None
) -> None:
    """Scores, choice, plan, forward and backward."""
    q, k, v, grad = tensors("cuda", torch.bfloat16)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    config, mine = make_config(capacity=capacity), sharding()

    def step() -> None:
        scores = distributed_block_scores(q, k, mine, config)
        indices, counts = select_blocks(scores, 3, diagonal=mine.block_rows("cuda"))
        plan = plan_of_indices(q, k, indices, mine, config, counts=counts)
        out = distributed_attention_from_plan(q, k, v, plan)
        torch.autograd.grad((out, scores), leaves, (grad, torch.ones_like(scores)), allow_unused=True)

    step()  # compiles, and makes the tables of the sharding
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("capacity", [None, 2])
def test_a_captured_step_replays_with_other_blocks_bit_by_bit(
    make_config: Callable[..., DistributedSparseConfig], capacity: int | None
) -> None:
    step = make_step(tensors("cuda", torch.bfloat16), make_config(capacity=capacity, stages=2))
    indices = drawn("cuda", 0)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(indices)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(indices)
    for seed in (1, 2, 1):
        other = drawn("cuda", seed)
        indices.copy_(other)
        graph.replay()
        for found, wanted in zip(captured, step(other), strict=True):
            assert torch.equal(found, wanted)


# ---- two GPUs


def on_two_gpus(rank: int, causal: bool) -> dict[str, Any]:
    """A rank of NCCL: its errors beside one GPU, and whether a captured step repeats it."""
    torch.cuda.set_device(rank)
    group = dist.new_group(backend="nccl")
    try:
        return in_group(rank, causal, DistributedSparseConfig(group, stages=2))
    finally:
        torch.cuda.synchronize()
        dist.destroy_process_group(group)


def in_group(rank: int, causal: bool, config: DistributedSparseConfig) -> dict[str, Any]:
    size = 64
    length, n_blocks = 12 * size, 12
    mine = SequenceSharding.make((((0, 3), (6, 9)), ((3, 6), (9, 12))), length, size, rank)
    generator = torch.Generator("cuda").manual_seed(0)
    q, k, v, grad = (
        torch.randn(1, length, 4, 64, device="cuda", dtype=torch.bfloat16, generator=generator)
        for _ in range(4)
    )
    everything = torch.rand(1, 4, n_blocks, n_blocks, device="cuda", generator=generator)
    kept, _ = select_blocks(everything, 4, causal=causal)
    layout = BlockLayout.from_indices(kept, q_len=length, kv_len=length, block_size=size, causal=causal)
    whole = [x.clone().requires_grad_() for x in (q, k, v)]
    out = block_sparse_attention(*whole, layout, is_causal=causal)
    wanted = [out, *torch.autograd.grad(out, whole, grad)]
    leaves = [shard_sequence(x, mine).clone().requires_grad_() for x in (q, k, v)]
    local_grad = shard_sequence(grad, mine)
    indices = kept[:, :, mine.block_rows("cuda")].contiguous()

    def step() -> list[Tensor]:
        plan = plan_of_indices(leaves[0], leaves[1], indices, mine, config, is_causal=causal)
        found = distributed_attention_from_plan(*leaves, plan)
        return [found.detach(), *torch.autograd.grad(found, leaves, local_grad), plan.dropped]

    eager = step()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    torch.cuda.synchronize()
    scores = distributed_block_scores(leaves[0], leaves[1], mine, config)
    right = block_scores(q, k, size)[:, :, mine.block_rows("cuda")]
    errors = [
        float((x - shard_sequence(y, mine)).abs().max() / y.abs().max())
        for x, y in zip(eager[:4], wanted, strict=True)
    ]
    return {
        "errors": errors,
        "scores": float((scores - right).abs().max() / right.abs().max()),
        "repeats": all(map(torch.equal, captured, eager)),
        "dropped": int(eager[4]),
    }


@pytest.mark.gpu
@pytest.mark.processes
@needs_gloo
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("causal", [True, False])
def test_two_gpus_give_what_one_gives_also_in_a_graph(causal: bool) -> None:
    with GlooProcesses(2) as processes:
        for found in processes.run(on_two_gpus, causal, limit=300):
            assert found["dropped"] == 0
            assert max(found["errors"]) < HALF_TOLERANCE, found
            assert found["scores"] < TOLERANCE, found
            assert found["repeats"]
