"""Training steps, how contexts and learning rate change over them, and the held-out loss."""

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

LEARNING_RATE = 5e-3  # at width 32; it shrinks with the root of the width
WARM_UP_SHARE = 0.05
DECAY_SHARE = 0.4  # of the steps, at the end
LAST_SHARE = 0.02  # of the learning rate, at the end
# Of the steps: with the shortest contexts, and with the whole context. Those between share the rest.
SHORTEST_SHARE, WHOLE_SHARE = 0.15, 0.45


def make_optimizer(model: LanguageModel) -> torch.optim.Optimizer:
    """AdamW; matrices decay, gains do not."""
    matrices = [weight for weight in model.parameters() if weight.dim() == 2]
    others = [weight for weight in model.parameters() if weight.dim() != 2]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    rate = LEARNING_RATE * (32 / model.settings.dim) ** 0.5
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)


def learning_rate_share(step: int, steps: int) -> float:
    """Linear warm-up, then constant, then linear down to a fiftieth."""
    warm_up = (step + 1) / max(1, round(WARM_UP_SHARE * steps))
    decay = (steps - step) / max(1, round(DECAY_SHARE * steps))
    return min(1.0, warm_up, max(LAST_SHARE, decay))


def context_lengths(context: int, steps: int) -> list[int]:
    """The context of every step: it doubles from 64 tokens or a little more to `context`.

    In a short context attention learns what a passkey is, within a few hundred steps; in a long one it takes thousands.
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
    """Mean loss in nats, of the text's bytes and of the answers, and the share of right answers."""

    text: Tensor
    answer: Tensor
    right: Tensor


def losses_of(model: LanguageModel, batch: Batch) -> Losses:
    """The model's losses on a batch that is on its device."""
    with autocast(batch.tokens.device):
        logits = model(batch.tokens)
    losses = F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten(), reduction="none")
    is_answer = batch.is_answer.flatten()
    answers = losses[is_answer]
    right = logits[batch.is_answer].argmax(-1) == batch.targets[batch.is_answer]
    return Losses(losses[~is_answer].mean(), answers.mean(), right.float().mean())


def training_step(model: LanguageModel, optimizer: torch.optim.Optimizer, batch: Batch) -> Losses:
    """One step of the optimizer on the sum of both losses; returns the losses before it."""
    optimizer.zero_grad(set_to_none=True)
    losses = losses_of(model, batch)
    (losses.text + losses.answer).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return losses


class Learner:
    """A model in training."""

    def __init__(self, model: LanguageModel, steps: int) -> None:
        self.model = model
        self.optimizer = make_optimizer(model)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_share(step, steps)
        )

    def step(self, batch: Batch) -> tuple[float, float]:
        """Learn from a batch; returns the answers' loss before and the seconds that it took."""
        started = time.perf_counter()
        loss = float(training_step(self.model, self.optimizer, batch).answer.detach())
        if batch.tokens.is_cuda:
            torch.cuda.synchronize(batch.tokens.device)
        self.schedule.step()
        return loss, time.perf_counter() - started


@torch.no_grad()
def held_out_losses(model: LanguageModel, batches: Iterable[Batch]) -> dict[str, float]:
    """Mean over the batches of the text's loss, the answers' loss and the share of right answers."""
    found = [losses_of(model, batch) for batch in batches]
    return {
        name: sum(float(getattr(losses, name)) for losses in found) / len(found)
        for name in ("text", "answer", "right")
    }


class TimeLeft:
    """Seconds that the work to come takes: a piece of a kind costs the mean of those of its kind so far."""

    def __init__(self, to_come: Iterable[Hashable]) -> None:
        self.to_come = Counter(to_come)
        self.seconds: dict[Hashable, list[float]] = {}

    def tried(self, kind: Hashable, seconds: float) -> None:
        """A piece that does not count as work was timed; it stands for its kind until the first that counts."""
        self.seconds.setdefault(kind, []).append(seconds)

    def done(self, kind: Hashable, seconds: float) -> None:
        """A piece of work was done."""
        self.to_come[kind] -= 1
        self.seconds.setdefault(kind, []).append(seconds)

    def left(self) -> float:
        """The estimate, in seconds; every kind to come was tried or done."""
        return sum(
            count * sum(self.seconds[kind]) / len(self.seconds[kind])
            for kind, count in self.to_come.items()
            if count > 0
        )
