"""Data parallel training with DDP, and with FSDP, which also shards the weights.

The attention has no weights, so both wrap the model like any other. The script runs two processes
with gloo on the CPU; on GPUs use nccl, one process per GPU and torchrun. It prints the losses,
which agree with those of a single process.
"""

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from dilated_attention_pytorch import SparsePatternConfig, create_block_sparse_attention

RANKS, DIM, HEADS, TOKENS, STEPS = 2, 32, 4, 256, 3


class Layer(nn.Module):
    """Attention between two projections."""

    def __init__(self) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(DIM, 3 * DIM)
        self.from_heads = nn.Linear(DIM, DIM)
        self.attention = create_block_sparse_attention(
            variant="base", sparse_config=SparsePatternConfig(sparsity_ratio=0.25, block_size=32)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(x).unflatten(-1, (3, HEADS, -1)).unbind(2)
        return x + self.from_heads(self.attention(q, k, v, is_causal=True).flatten(2))


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Layer(), Layer())


def train(model: nn.Module, batch: Tensor) -> list[float]:
    """The loss of every step, of this process's part of the batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(STEPS):
        loss = model(batch).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def mean(losses: list[float]) -> list[float]:
    """Over all processes."""
    total = torch.tensor(losses)
    dist.all_reduce(total)
    return (total / RANKS).tolist()


def work(rank: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    batch = torch.randn(4, TOKENS, DIM, generator=torch.Generator().manual_seed(1))
    mine = batch.chunk(RANKS)[rank]

    alone = train(make_model(), batch)
    ddp = mean(train(DistributedDataParallel(make_model()), mine))

    model, mesh = make_model(), init_device_mesh("cpu", (RANKS,))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fsdp = mean(train(fully_shard(model, mesh=mesh), mine))

    for name, losses in (("one process", alone), ("DDP", ddp), ("FSDP", fsdp)):
        torch.testing.assert_close(losses, alone, rtol=1e-5, atol=1e-6)
        if rank == 0:
            print(f"{name:12}", " ".join(f"{loss:.5f}" for loss in losses))
    dist.destroy_process_group()


def main() -> None:
    store = Path(tempfile.mkdtemp()) / "store"
    mp.spawn(work, (str(store),), nprocs=RANKS)


if __name__ == "__main__":
    main()
