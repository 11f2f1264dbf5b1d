"""Training steps and held-out loss."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .model import ByteLanguageModel, autocast

LEARNING_RATE = 3e-3  # at width 128; it shrinks with the root of the width
WARM_UP_SHARE = 0.05
LAST_SHARE = 0.05  # of the learning rate, at the end
HELD_OUT_WINDOWS = 8


def make_optimizer(model: nn.Module, dim: int) -> torch.optim.Optimizer:
    """AdamW; matrices decay, gains do not."""
    matrices = [weight for weight in model.parameters() if weight.dim() == 2]
    others = [weight for weight in model.parameters() if weight.dim() != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE * (128 / dim) ** 0.5, betas=(0.9, 0.95), fused=True)


def learning_rate_share(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a twentieth."""
    n_warm_up = max(1, round(WARM_UP_SHARE * steps))
    if step < n_warm_up:
        return (step + 1) / n_warm_up
    done = (step - n_warm_up) / max(1, steps - n_warm_up)
    return LAST_SHARE + (1 - LAST_SHARE) * 0.5 * (1 + math.cos(math.pi * done))


def next_byte_loss(model: ByteLanguageModel, windows: Tensor) -> Tensor:
    """Mean loss in nats. windows: uint8 (batch, context + 1)."""
    device = model.embedding.weight.device
    tokens = windows.to(device).long()
    with autocast(device):
        logits = model(tokens[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


def training_step(model: ByteLanguageModel, optimizer: torch.optim.Optimizer, windows: Tensor) -> Tensor:
    """One step of the optimizer; returns the loss before it."""
    optimizer.zero_grad(set_to_none=True)
    loss = next_byte_loss(model, windows)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.detach()


def random_windows(text: Tensor, context: int, batch_size: int, generator: torch.Generator) -> Tensor:
    """uint8 (batch_size, context + 1), from random places of the text."""
    starts = torch.randint(len(text) - context, (batch_size,), generator=generator)
    return torch.stack([text[start : start + context + 1] for start in starts.tolist()])


def even_windows(text: Tensor, context: int, n_windows: int = HELD_OUT_WINDOWS) -> Tensor:
    """uint8 (n, context + 1), n <= n_windows, evenly over the text and without overlap."""
    n_windows = min(n_windows, (len(text) - 1) // context)
    starts = torch.linspace(0, len(text) - context - 1, n_windows).long()
    return torch.stack([text[start : start + context + 1] for start in starts.tolist()])


@torch.no_grad()
def held_out_loss(model: ByteLanguageModel, windows: Tensor, batch_size: int) -> float:
    """Mean loss over the windows, in nats per byte."""
    parts = windows.split(batch_size)
    return sum(float(next_byte_loss(model, part)) * len(part) for part in parts) / len(windows)


def train(
    model: ByteLanguageModel,
    text: Tensor,
    *,
    dim: int,
    context: int,
    batch_size: int,
    steps: int,
    seed: int,
    after_step: Callable[[int, float], None],
) -> None:
    """Train in place; `after_step(step, loss)` hears of every step."""
    optimizer = make_optimizer(model, dim)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_share(step, steps))
    generator = torch.Generator().manual_seed(seed)
    for step in range(1, steps + 1):
        loss = training_step(model, optimizer, random_windows(text, context, batch_size, generator))
        schedule.step()
        after_step(step, float(loss))
