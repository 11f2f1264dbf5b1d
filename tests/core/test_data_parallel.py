"""Models with our modules under DistributedDataParallel and fully_shard (FSDP2): two processes train as one does.

All of it runs in one pair of processes, which takes some seconds to start; every test looks at a part of what they did.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.torch_version import TorchVersion

from dilated_attention_pytorch import (
    BlockSparseAdaptive,
    BlockSparseAttention,
    BlockSparseMultiheadAttention,
    SparsePatternConfig,
    convert_to_block_sparse,
)

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo"
)

CONFIG = SparsePatternConfig(block_size=16, sparsity_ratio=0.4)
WORLD, STEPS, LIMIT = 2, 2, 300.0  # seconds
FEATURES, HEADS, LENGTH = 16, 2, 60


class Base(nn.Module):
    """The projections around `BlockSparseAttention`, which has no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.to_qkv, self.from_heads = nn.Linear(FEATURES, 3 * FEATURES), nn.Linear(FEATURES, FEATURES)
        self.attention = BlockSparseAttention(CONFIG)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(x).unflatten(-1, (3, HEADS, -1)).unbind(2)
        out: Tensor = self.from_heads(self.attention(q, k, v, is_causal=True).flatten(2))
        return x + out


class Multihead(nn.Module):
    """Self-attention without its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = BlockSparseMultiheadAttention(
            FEATURES, HEADS, batch_first=True, add_bias_kv=True, sparse_config=CONFIG
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attention(x, x, x, need_weights=False, is_causal=True)[0]
        return x + out


class Adaptive(nn.Module):
    """Attention that trains its scorer, whose parameters have another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(FEATURES, 3 * FEATURES)
        self.attention = BlockSparseAdaptive(
            SparsePatternConfig(block_size=16),
            {"hidden_dim": 8, "hard_sparsity": True},
            num_heads=HEADS,
            head_dim=FEATURES // HEADS,
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(x).unflatten(-1, (3, HEADS, -1)).unbind(2)
        return x + self.attention(q, k, v, is_causal=True).flatten(2)


def encoder_layer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(FEATURES, HEADS, 2 * FEATURES, dropout=0.0, batch_first=True)
    converted: nn.Module = convert_to_block_sparse(layer, CONFIG)
    return converted


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "base": Base,
    "multihead": Multihead,
    "adaptive": Adaptive,
    "encoder": encoder_layer,
}


def made(name: str) -> nn.Sequential:
    """Two layers, the same in every process."""
    torch.manual_seed(0)
    return nn.Sequential(LAYERS[name](), LAYERS[name]()).double().eval()  # no noise of the choice


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (WORLD, LENGTH, FEATURES)
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(STEPS)]


def trained(model: nn.Module, batches: list[Tensor]) -> list[float]:
    """The losses of a few steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        loss = model(batch).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# ---- in each of the two processes


def in_ddp(name: str) -> nn.Module:
    return nn.parallel.DistributedDataParallel(made(name))


def in_fsdp(name: str) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    model, mesh = made(name), init_device_mesh("cpu", (WORLD,))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(hasattr(x, "placements") for x in model.parameters())
    return model


def in_fsdp_from_meta(name: str) -> nn.Module:
    """Made without memory, sharded, then filled: how models that fit on no device begin."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.fsdp import fully_shard

    whole = made(name).state_dict()
    with torch.device("meta"):
        model = made(name)
    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to_empty(device="cpu")
    set_model_state_dict(model, whole, options=StateDictOptions(full_state_dict=True))
    return model


WRAPPED: dict[str, Callable[[str], nn.Module]] = {
    "ddp": in_ddp,
    "fsdp": in_fsdp,
    "fsdp_from_meta": in_fsdp_from_meta,
}
CASES = [("ddp", name) for name in LAYERS]
if TorchVersion(torch.__version__) >= (2, 8):  # before, fully_shard asks the CPU for the streams of a GPU
    CASES += [("fsdp", name) for name in LAYERS] + [("fsdp_from_meta", "multihead")]


def run(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    found: dict[str, Any] = {}
    for wrap, name in CASES:
        try:
            model = WRAPPED[wrap](name)
            losses = trained(model, [batch[rank : rank + 1] for batch in batches()])
            state = {
                key: (x.full_tensor() if hasattr(x, "full_tensor") else x).detach().clone()
                for key, x in model.named_parameters()
            }
            found[f"{wrap} {name}"] = losses, list(state.values())
        except Exception as error:
            found[f"{wrap} {name}"] = f"{type(error).__name__}: {error}"
            break  # the processes are no longer in step
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


# ---- the tests


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found."""
    folder = tmp_path_factory.mktemp("processes")
    context = mp.start_processes(run, (str(folder),), WORLD, join=False, start_method="spawn")
    end = time.monotonic() + LIMIT
    try:
        while not context.join(timeout=1.0):
            if time.monotonic() > end:
                pytest.fail(f"the processes did not end within {LIMIT} s")
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize(("wrap", "name"), CASES)
def test_two_processes_train_as_one(found: list[dict[str, Any]], wrap: str, name: str) -> None:
    model = made(name)
    losses, parameters = trained(model, batches()), list(model.parameters())
    results = [each.get(f"{wrap} {name}", "an earlier case failed") for each in found]
    for result in results:
        assert not isinstance(result, str), result
    for step in range(STEPS):  # each process has the loss of its half
        mean = sum(result[0][step] for result in results) / WORLD
        assert mean == pytest.approx(losses[step], rel=1e-12)
    for result in results:
        assert len(result[1]) == len(parameters) > 0
        for ours, theirs in zip(result[1], parameters):
            torch.testing.assert_close(ours, theirs.detach(), rtol=1e-10, atol=1e-12)


def test_training_moves_the_parameters() -> None:
    for name in LAYERS:
        model = made(name)
        trained(model, batches())
        for ours, theirs in zip(model.parameters(), made(name).parameters()):
            assert not torch.equal(ours, theirs)
