"""The demo's language model, with each sequence distributed over two processes.

    torchrun --nproc-per-node 2 examples/train_distributed.py

Every process holds half of the tokens and all of the weights; with more processes (4, 6, ...) each pair
takes its own part of the batch. On GPUs it uses nccl, on CPUs gloo; without torchrun the script
starts two processes itself. It prints the losses, which are those of one process with all tokens.
"""

import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.run import main as torchrun
from torch.nn.parallel import DistributedDataParallel

from dilated_attention_pytorch import (
    DistributedSparseConfig,
    create_block_sparse_attention,
    shard_sequence,
)
from dilated_attention_pytorch.demo.model import LanguageModel, ModelSettings
from dilated_attention_pytorch.demo.task import make_batch
from dilated_attention_pytorch.demo.text import load_text
from dilated_attention_pytorch.demo.training import make_optimizer

RANKS = 2  # that share a sequence
CONTEXT, BATCH, STEPS = 1024, 6, 8
SETTINGS = ModelSettings(layers=2, dim=32, heads=2, block_size=16, min_blocks=6)


def batches(text: Tensor, device: torch.device):
    """The same in every process: tokens, targets (the *next* tokens), and the weight of each in the loss."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        batch = make_batch(text, CONTEXT, BATCH, generator).to(device)
        n_answers = batch.is_answer.sum()
        weights = torch.where(batch.is_answer, 1 / n_answers, 1 / (batch.is_answer.numel() - n_answers))
        yield batch.tokens, batch.targets, weights


def weighted_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """The part of these tokens in the loss of the whole batch."""
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return (losses * weights.flatten()).sum()


def make_model(attention: torch.nn.Module, device: torch.device) -> LanguageModel:
    torch.manual_seed(0)  # the same weights in every process
    return LanguageModel(SETTINGS, attention).to(device)


def train_alone(text: Tensor, device: torch.device) -> list[float]:
    """The losses of one process with all tokens."""
    attention = create_block_sparse_attention("base", sparse_config=SETTINGS.config("dilated_sparse"))
    model = make_model(attention, device)
    optimizer, losses = make_optimizer(model), []
    for tokens, targets, weights in batches(text, device):
        optimizer.zero_grad()
        loss = weighted_loss(model(tokens), targets, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def train_distributed(text: Tensor, device: torch.device) -> list[float]:
    """The same losses, from processes that each hold a part of the tokens."""
    n_groups = dist.get_world_size() // RANKS
    mesh = init_device_mesh(device.type, (n_groups, RANKS), mesh_dim_names=("data", "sequence"))
    attention = create_block_sparse_attention(
        "distributed",
        sparse_config=SETTINGS.config("dilated_sparse"),
        distributed_config=DistributedSparseConfig(mesh, "sequence"),
    )
    sharding = attention.sharding(CONTEXT, is_causal=True)
    positions = sharding.positions(device)
    contexts = torch.arange(BATCH).tensor_split(n_groups)[mesh.get_local_rank("data")]

    model = make_model(attention, device)
    replicated = DistributedDataParallel(model)  # over all processes, of both dimensions of the mesh
    optimizer, losses = make_optimizer(model), []
    for batch in batches(text, device):
        tokens, targets, weights = (shard_sequence(x[contexts], sharding) for x in batch)
        optimizer.zero_grad()
        loss = weighted_loss(replicated(tokens, positions=positions), targets, weights)
        # The gradient is the sum over all tokens, but DDP takes the mean over the processes.
        (loss * dist.get_world_size()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss = loss.detach()
        dist.all_reduce(loss)
        losses.append(loss.item())
    return losses


def main() -> None:
    if "RANK" not in os.environ:
        torchrun(["--standalone", "--nproc-per-node", str(RANKS), __file__])
        return
    n_processes = int(os.environ["WORLD_SIZE"])
    if n_processes % RANKS or n_processes > RANKS * BATCH:
        raise SystemExit(f"needs an even number of processes, at most {RANKS * BATCH}, got {n_processes}")
    on_gpus = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    device = torch.device("cuda" if on_gpus else "cpu", int(os.environ["LOCAL_RANK"]) if on_gpus else None)
    if on_gpus:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpus else "gloo")
    text = load_text([], CONTEXT).train
    losses, expected = train_distributed(text, device), train_alone(text, device)
    torch.testing.assert_close(losses, expected, rtol=1e-3, atol=0)
    if dist.get_rank() == 0:
        print(f"{dist.get_world_size()} processes", " ".join(f"{loss:.5f}" for loss in losses))
        print("one process ", " ".join(f"{loss:.5f}" for loss in expected))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
