"""Training with each sequence distributed over processes: the losses and parameters are those of one process.

The weights are replicated by DistributedDataParallel or sharded by fully_shard (FSDP2), over all processes. Two processes share
a sequence; with four there are two such pairs, which split the batch, or two halves of the heads (tensor parallelism).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.torch_version import TorchVersion
from torch.utils.checkpoint import checkpoint

from dilated_attention_pytorch import (
    BlockLayout,
    BlockSparseAttention,
    BlockSparseDistributedAttention,
    DistributedSparseConfig,
    SequenceSharding,
    SparsePatternConfig,
    shard_sequence,
)
from tests.core.distributed.gloo_processes import GlooProcesses, needs_gloo

pytestmark = needs_gloo

VOCABULARY, FEATURES, HEADS, BLOCK = 19, 16, 4, 16
BATCH, STEPS, RANKS = 4, 4, 2  # ranks that share a sequence
IGNORED = -100  # the target of a token without a next one
PATTERNS = (
    SparsePatternConfig(block_size=BLOCK, sparsity_ratio=0.3),
    SparsePatternConfig("local_window", BLOCK, window_size=3 * BLOCK),
)


@dataclass(frozen=True)
class Case:
    """How a model is trained."""

    weights: str = "ddp"
    length: int = 8 * BLOCK
    patterns: tuple[SparsePatternConfig, ...] = (PATTERNS[0],) * 2
    checkpoint: bool = False
    save_fetched: bool = False
    micro_batches: int = 1
    dtype: torch.dtype = torch.float64


CASES = {
    "ddp": Case(),
    "ddp, float32": Case(dtype=torch.float32),
    "ddp, length that does not divide": Case(length=7 * BLOCK + 5),
    "ddp, layers of two patterns": Case(patterns=PATTERNS, length=9 * BLOCK - 1),
    "ddp, activation checkpointing": Case(checkpoint=True),
    "ddp, fetched blocks kept": Case(save_fetched=True),
    "ddp, gradient accumulation": Case(micro_batches=2),
}
if TorchVersion(torch.__version__) >= (2, 8):  # before, fully_shard asks the CPU for the streams of a GPU
    CASES["fsdp"] = Case("fsdp")
    CASES["fsdp, activation checkpointing"] = Case("fsdp", checkpoint=True)
    CASES["fsdp, gradient accumulation"] = Case("fsdp", micro_batches=2)
OF_FOUR = {"ddp": CASES["ddp"], "ddp, float32": CASES["ddp, float32"], "mixed": Case(
    patterns=PATTERNS, length=9 * BLOCK - 1, checkpoint=True, micro_batches=2)}  # fmt: skip
if "fsdp" in CASES:
    OF_FOUR |= {"fsdp": Case("fsdp"), "hsdp": Case("hsdp"), "tensor parallel": Case("tensor")}


# ---- the model: nothing in it knows of processes but the sharding, which says where the tokens are


class Layer(nn.Module):
    """Attention and an MLP with rotary positions; `attention` has no parameters."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(FEATURES, FEATURES) for _ in range(3))
        self.from_heads = nn.Linear(FEATURES, FEATURES)
        self.mlp = nn.Sequential(nn.LayerNorm(FEATURES), nn.Linear(FEATURES, FEATURES), nn.GELU())
        self.attention = attention

    def forward(self, x: Tensor, positions: Tensor, sharding: SequenceSharding | None) -> Tensor:
        head_dim = FEATURES // HEADS  # some of the heads with tensor parallelism
        q, k, v = (each(x).unflatten(-1, (-1, head_dim)) for each in (self.to_q, self.to_k, self.to_v))
        q, k = rotated(q, positions), rotated(k, positions)
        of_tokens = {} if sharding is None else {"sharding": sharding}
        x = x + self.from_heads(self.attention(q, k, v, is_causal=True, **of_tokens).flatten(2))
        out: Tensor = x + self.mlp(x)
        return out


def rotated(x: Tensor, positions: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    angle = positions[:, None, None] * 10.0 ** -torch.arange(a.shape[-1], dtype=x.dtype)
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)


class Model(nn.Module):
    def __init__(self, case: Case, attentions: list[nn.Module]) -> None:
        super().__init__()
        self.checkpoint = case.checkpoint
        self.embedding = nn.Embedding(VOCABULARY, FEATURES)
        self.layers = nn.ModuleList(Layer(attention) for attention in attentions)
        self.head = nn.Linear(FEATURES, VOCABULARY)

    def forward(self, tokens: Tensor, positions: Tensor, sharding: SequenceSharding | None = None) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            if self.checkpoint:
                x = checkpoint(layer, x, positions, sharding, use_reentrant=False)
            else:
                x = layer(x, positions, sharding)
        out: Tensor = self.head(x)
        return out


def made(case: Case, config: DistributedSparseConfig | None = None) -> Model:
    """The same in every process; without a config it attends in one process."""
    torch.manual_seed(0)
    attentions: list[nn.Module] = [
        BlockSparseAttention(pattern) if config is None else BlockSparseDistributedAttention(pattern, config)
        for pattern in case.patterns
    ]
    return Model(case, attentions).to(case.dtype)


def batches(case: Case) -> list[tuple[Tensor, Tensor]]:
    """Tokens and targets (batch, length): shifted before they are sharded, some of them ignored."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(STEPS):
        start = torch.randint(VOCABULARY, (BATCH, 1), generator=generator)
        tokens = (start + torch.arange(case.length)) % VOCABULARY  # something to learn
        targets = torch.cat([tokens[:, 1:], torch.full((BATCH, 1), IGNORED)], 1)
        targets[0, : case.length // 3] = IGNORED  # so processes have unequal numbers of targets
        found.append((tokens, targets))
    return found


def summed_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")


def trained_alone(case: Case) -> tuple[list[float], list[Tensor]]:
    """The losses and the parameters of one process with all tokens, the whole batch at once."""
    model = made(case)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    losses = []
    for tokens, targets in batches(case):
        optimizer.zero_grad()
        loss = summed_loss(model(tokens, torch.arange(case.length)), targets) / (targets != IGNORED).sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [x.detach() for x in model.parameters()]


# ---- in each process


def wrapped(case: Case, model: Model, mesh: DeviceMesh) -> tuple[nn.Module, int]:
    """The model with its weights replicated or sharded, and over how many processes gradients are averaged."""
    if case.weights == "ddp":
        return nn.parallel.DistributedDataParallel(model), mesh.size()
    from torch.distributed.fsdp import fully_shard

    over = mesh  # two dimensions: sharded over the last, replicated over the first
    if case.weights == "fsdp":
        over = init_device_mesh("cpu", (mesh.size(),))
    if case.weights == "tensor":
        split_heads(model, mesh["data"])
        over = mesh["sequence"]
    for layer in model.layers:
        fully_shard(layer, mesh=over)
    fully_shard(model, mesh=over)
    return model, over.size()


def split_heads(model: Model, mesh: DeviceMesh) -> None:
    """Tensor parallelism: each process has the projections of some heads."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    plan: dict[str, Any] = {name: ColwiseParallel() for name in ("to_q", "to_k", "to_v")}
    for layer in model.layers:
        parallelize_module(layer, mesh, plan | {"from_heads": RowwiseParallel()})


def trained(rank: int, case: Case) -> tuple[list[float], list[Tensor]]:
    """The losses and the parameters of a process that holds some tokens of some sequences."""
    world_size = dist.get_world_size()
    mesh = init_device_mesh("cpu", (world_size // RANKS, RANKS), mesh_dim_names=("data", "sequence"))
    config = DistributedSparseConfig(mesh, "sequence", save_fetched=case.save_fetched)
    layouts = [BlockLayout.from_config(pattern, case.length, causal=True) for pattern in case.patterns]
    sharding = SequenceSharding.from_layout(layouts, config)
    is_tensor_parallel = case.weights == "tensor"  # then all ranks have the whole batch
    n_groups, group = (1, 0) if is_tensor_parallel else (world_size // RANKS, mesh.get_local_rank("data"))

    model, averaged_over = wrapped(case, made(case, config), mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    losses = []
    for tokens, targets in batches(case):
        n_targets = (targets != IGNORED).sum()
        optimizer.zero_grad()
        total = torch.zeros((), dtype=case.dtype)
        mine = [shard_sequence(x, sharding).chunk(n_groups)[group] for x in (tokens, targets)]
        micro_batches = list(zip(*(x.chunk(case.micro_batches) for x in mine)))
        for i, (of_tokens, of_targets) in enumerate(micro_batches):
            with last_synchronizes(case, model, i == len(micro_batches) - 1):
                logits = model(of_tokens, sharding.positions(), sharding)
                loss = summed_loss(logits, of_targets) / n_targets
                (loss * averaged_over).backward()
            total += loss.detach()
        optimizer.step()
        dist.all_reduce(total, group=mesh["sequence"].get_group() if is_tensor_parallel else None)
        losses.append(total.item())
    parameters = [x.full_tensor() if hasattr(x, "full_tensor") else x for x in model.parameters()]
    return losses, [x.detach().clone() for x in parameters]


def last_synchronizes(case: Case, model: nn.Module, is_last: bool) -> Any:
    """Gradients are averaged once, with the last part of a batch."""
    if case.weights == "ddp":
        return nullcontext() if is_last else model.no_sync()
    model.set_requires_gradient_sync(is_last)
    return nullcontext()


def gradients_with_dropout(rank: int) -> list[list[Tensor]]:
    """The gradients of a step without and with activation checkpointing."""
    config = DistributedSparseConfig(init_device_mesh("cpu", (RANKS,)))
    found = []
    for case in (Case(), Case(checkpoint=True)):
        model = made(case, config).train()
        for layer in model.layers:
            layer.attention.dropout = 0.3
        sharding = model.layers[0].attention.sharding(case.length, is_causal=True)
        tokens = shard_sequence(batches(case)[0][0], sharding)
        torch.manual_seed(0)
        model(tokens, sharding.positions(), sharding).square().sum().backward()
        found.append([x.grad for x in model.parameters()])
    return found


def exchanges(rank: int, case: Case) -> float:
    """How many exchanges of blocks a training step makes in each layer."""
    mesh = init_device_mesh("cpu", (RANKS,))
    config = DistributedSparseConfig(mesh, save_fetched=case.save_fetched)
    layout = BlockLayout.from_config(case.patterns[0], case.length, causal=True)
    sharding, model = SequenceSharding.from_layout(layout, config), made(case, config)
    tokens = shard_sequence(batches(case)[0][0], sharding)
    exchange, count = dist.all_to_all_single, 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        return exchange(*args, **kwargs)

    dist.all_to_all_single = counted
    try:
        model(tokens, sharding.positions(), sharding).sum().backward()
    finally:
        dist.all_to_all_single = exchange
    return count / len(case.patterns)


# ---- the tests


@pytest.fixture(scope="module")
def four() -> Iterator[GlooProcesses]:
    with GlooProcesses(4) as processes:
        yield processes


def check(found: list[Any], case: Case) -> None:
    """Every process has the losses and parameters of one process.

    Sums over up to 4 x 143 tokens in another order: pairwise, each rounds by at most log2(572), some 10 eps. That happens in the
    forward, the backward and the update of each of four steps: 128 eps.
    """
    losses, parameters = trained_alone(case)
    tolerance = 128 * torch.finfo(case.dtype).eps
    assert losses[-1] < losses[0] / 2  # it has learned something
    for theirs, of_rank in found:
        assert theirs == pytest.approx(losses, rel=tolerance)
        assert len(of_rank) == len(parameters)
        for ours, expected in zip(of_rank, parameters):
            assert (ours - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("name", CASES)
def test_two_processes_with_one_sequence_train_as_one(two: GlooProcesses, name: str) -> None:
    check(two.run(trained, CASES[name], limit=60), CASES[name])


def test_two_runs_are_bit_equal(two: GlooProcesses) -> None:
    first, second = (two.run(trained, CASES["ddp, float32"], limit=60) for _ in range(2))
    for (losses, parameters), (again, others) in zip(first, second):
        assert losses == again
        assert all(torch.equal(a, b) for a, b in zip(parameters, others))


def test_recomputation_drops_the_same_weights(two: GlooProcesses) -> None:
    for plain, recomputed in two.run(gradients_with_dropout):
        assert all(torch.equal(a, b) for a, b in zip(plain, recomputed))


@pytest.mark.parametrize(("is_checkpointed", "save_fetched", "count"), [
    (False, False, 3), (False, True, 2), (True, False, 4), (True, True, 3)])  # fmt: skip
def test_exchanges_of_a_step(
    two: GlooProcesses, is_checkpointed: bool, save_fetched: bool, count: int
) -> None:
    case = Case(checkpoint=is_checkpointed, save_fetched=save_fetched)
    assert two.run(exchanges, case) == [count] * RANKS


@pytest.mark.processes
@pytest.mark.parametrize("name", OF_FOUR)
def test_two_by_two_processes_train_as_one(four: GlooProcesses, name: str) -> None:
    check(four.run(trained, OF_FOUR[name], limit=120), OF_FOUR[name])
