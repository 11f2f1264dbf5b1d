"""Training steps, the schedules of context length and learning rate, and the held-out losses."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .model import LanguageModel, autocast
from .task import SHORTEST_CONTEXT, Batch

LEARNING_RATE = 5e-3  # at width 32; inversely proportional to the square root of the width
WARM_UP_SHARE = 0.05  # of the steps
DECAY_SHARE = 0.4  # of the steps, at the end
LAST_SHARE = 0.02  # of the learning rate, at the end
# Shares of the steps with the shortest and with the full context; the lengths in between divide the rest equally.
SHORTEST_SHARE, WHOLE_SHARE = 0.15, 0.45


def make_optimizer(model: LanguageModel) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices, but not on the gains of the norms."""
    matrices = [weight for weight in model.parameters() if weight.dim() == 2]
    others = [weight for weight in model.parameters() if weight.dim() != 2]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    rate = LEARNING_RATE * (32 / model.settings.dim) ** 0.5
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)


def learning_rate_share(step: int, steps: int) -> float:
    """Learning rate relative to its maximum: linear warm-up, constant, linear decay to LAST_SHARE."""
    warm_up = (step + 1) / max(1, round(WARM_UP_SHARE * steps))
    decay = (steps - step) / max(1, round(DECAY_SHARE * steps))
    return min(1.0, warm_up, max(LAST_SHARE, decay))


def context_lengths(context: int, steps: int) -> list[int]:
    """Context length of every step, doubling from 64 tokens or a little more to `context`.

    With short contexts the attention learns the task within a few hundred steps, with long ones it takes thousands.
    """
    lengths = [context]
    while lengths[0] // 2 >= SHORTEST_CONTEXT:
        lengths.insert(0, lengths[0] // 2)
    if len(lengths) == 1:
        return lengths * steps
    n_between = len(lengths) - 2
    between = (1 - SHORTEST_SHARE - WHOLE_SHARE) / n_between if n_between else 0.0
    first = SHORTEST_SHARE if n_between else 1 - WHOLE_SHARE
    ends = [first + between * i for i in range(n_between + 1)] + [1.0]
    return [lengths[sum(step >= end * steps for end in ends)] for step in range(steps)]


@dataclass(frozen=True)
class Losses:
    """Mean losses in nats over text bytes and over answers, and the share of correct answers."""

    text: Tensor
    answer: Tensor
    right: Tensor


def losses_of(model: LanguageModel, batch: Batch) -> Losses:
    """The losses of a model on a batch on the same device."""
    with autocast(batch.tokens.device):
        logits = model(batch.tokens)
    losses = F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten(), reduction="none")
    is_answer = batch.is_answer.flatten()
    answers = losses[is_answer]
    right = logits[batch.is_answer].argmax(-1) == batch.targets[batch.is_answer]
    return Losses(losses[~is_answer].mean(), answers.mean(), right.float().mean())


def training_step(model: LanguageModel, optimizer: torch.optim.Optimizer, batch: Batch) -> Losses:
    """One optimizer step on the sum of both losses; returns the losses before the step."""
    optimizer.zero_grad(set_to_none=True)
    losses = losses_of(model, batch)
    (losses.text + losses.answer).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return losses


class Learner:
    """A model with its optimizer and learning rate schedule."""

    def __init__(self, model: LanguageModel, steps: int) -> None:
        self.model = model
        self.optimizer = make_optimizer(model)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_share(step, steps)
        )

    def step(self, batch: Batch) -> tuple[float, float]:
        """Train on a batch; returns the answer loss before the step and the seconds taken."""
        started = time.perf_counter()
        loss = float(training_step(self.model, self.optimizer, batch).answer.detach())
        if batch.tokens.is_cuda:
            torch.cuda.synchronize(batch.tokens.device)
        self.schedule.step()
        return loss, time.perf_counter() - started


@torch.no_grad()
def held_out_losses(model: LanguageModel, batches: Iterable[Batch]) -> dict[str, float]:
    """Means over the batches: text loss, answer loss and share of correct answers."""
    found = [losses_of(model, batch) for batch in batches]
    return {
        name: sum(float(getattr(losses, name)) for losses in found) / len(found)
        for name in ("text", "answer", "right")
    }


class TimeLeft:
    """Estimates the remaining seconds: each remaining item of a kind takes the mean time of that kind so far."""

    def __init__(self, remaining: Iterable[Hashable]) -> None:
        self.remaining = Counter(remaining)
        self.seconds: dict[Hashable, list[float]] = {}

    def tried(self, kind: Hashable, seconds: float) -> None:
        """Add the time of a trial run, which is not one of the remaining items."""
        self.seconds.setdefault(kind, []).append(seconds)

    def done(self, kind: Hashable, seconds: float) -> None:
        """Add the time of a remaining item that is done."""
        self.remaining[kind] -= 1
        self.seconds.setdefault(kind, []).append(seconds)

    def left(self) -> float:
        """The estimate in seconds; every remaining kind must have been tried or done once."""
        return sum(
            count * sum(self.seconds[kind]) / len(self.seconds[kind])
            for kind, count in self.remaining.items()
            if count > 0
        )
