"""One sequence over several processes: each holds some tokens, and attends with some heads.

Two all-to-alls around the call (as in DeepSpeed-Ulysses, arXiv:2309.14509) give each process all tokens of
some heads, so the call can do all that it can in one process, ALiBi and padding included. Use it where
variant="distributed", which moves only the blocks that are needed (train_distributed.py), refuses a
call. The script runs two processes with gloo on the CPU; on GPUs use nccl and torchrun. It prints the
largest differences from a single process.
"""

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from dilated_attention_pytorch import SparsePatternConfig, create_block_sparse_attention

RANKS, TOKENS, HEADS, HEAD_DIM = 2, 2048, 4, 32


class Exchange(torch.autograd.Function):
    """Send part i to rank i; the backward sends the gradients back."""

    @staticmethod
    def forward(ctx, parts: Tensor) -> Tensor:
        received = torch.empty_like(parts)
        dist.all_to_all_single(received, parts)
        return received

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return Exchange.forward(ctx, grad.contiguous())


def exchange(x: Tensor, split: int, join: int) -> Tensor:
    """Give every rank its part of axis `split`, and join what the ranks held along axis `join`."""
    parts = torch.stack(x.chunk(dist.get_world_size(), split))
    return torch.cat(Exchange.apply(parts).unbind(0), dim=join)


def attend(attention: torch.nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q, k, v: (batch, tokens of this rank, num_heads, head_dim); the ranks divide both numbers of heads."""
    q, k, v = (exchange(x, split=2, join=1) for x in (q, k, v))  # all tokens of some heads
    out = attention(q, k, v, is_causal=True)
    return exchange(out, split=1, join=2)  # some tokens of all heads


def work(rank: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    torch.manual_seed(0)  # every rank makes the same full tensors, to compare with
    attention = create_block_sparse_attention(
        variant="base", sparse_config=SparsePatternConfig(sparsity_ratio=0.1)
    )
    full = [torch.randn(1, TOKENS, HEADS, HEAD_DIM, requires_grad=True) for _ in range(3)]
    expected = attention(*full, is_causal=True)
    expected.square().sum().backward()

    mine = [x.detach().chunk(RANKS, 1)[rank].clone().requires_grad_() for x in full]
    out = attend(attention, *mine)
    out.square().sum().backward()

    difference = (out - expected.chunk(RANKS, 1)[rank]).abs().max().item()
    gradients = [(a.grad - b.grad.chunk(RANKS, 1)[rank]).abs().max().item() for a, b in zip(mine, full)]
    assert difference < 1e-5
    assert max(gradients) < 1e-4
    if rank == 0:
        print(f"{RANKS} processes, {TOKENS // RANKS} tokens each; largest differences to one process:")
        print(f"output {difference:.1e}, gradients {max(gradients):.1e}")
    dist.destroy_process_group()


def main() -> None:
    store = Path(tempfile.mkdtemp()) / "store"
    mp.spawn(work, (str(store),), nprocs=RANKS)


if __name__ == "__main__":
    main()
