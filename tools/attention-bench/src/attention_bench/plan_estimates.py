"""PlanRow: bytes, memory, FLOPs and times of one distributed attention per rank, computed from counts and stated rates.

Beside ours (only the blocks that are needed travel) stand ring attention (dense, all of k and v go round) and an all-gather of
k and v that feeds our kernel. Nothing here was measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from dilated_attention_pytorch.distributed.attention import Arriving

from .cases import DTYPES, Case
from .exchange_counts import ExchangeCounts

# TFLOP/s forward and backward of the active blocks in bfloat16, by head_dim and block: 131,072 tokens on an H200,
# results/h200.json, at 1 % of the blocks where that was measured.
TFLOPS = {(128, 128): (624, 460), (128, 64): (571, 431), (64, 128): (465, 419), (64, 64): (466, 383)}
# The same of dense attention through cuDNN, by head_dim: results/h200-0.3.0.json.
DENSE_TFLOPS = {128: (606, 548), 64: (461, 453)}
NEAR_GBS = 450.0  # NVLink of an H100 or H200: 900 GB/s, both ways together (NVIDIA's data sheet)
FAR_GBS = 50.0  # one 400 Gb/s port for each GPU, as in a DGX H100
RANKS_PER_HOST = 8
BACKWARD = 2.5  # FLOPs of the backward over those of the forward
FETCHED_AT_ONCE = 1 + Arriving.AHEAD  # stages of which k and v are in memory: one computes, the others travel
RETURNED_AT_ONCE = 2  # the same of dk and dv


@dataclass(frozen=True)
class Machine:
    """Stated rates. GB/s are each way and of each GPU, TFLOP/s forward and backward."""

    tflops: tuple[float, float]
    dense_tflops: tuple[float, float]
    near_gbs: float = NEAR_GBS
    far_gbs: float = FAR_GBS
    ranks_per_host: int = RANKS_PER_HOST

    def ring_gbs(self, ranks: int) -> float:
        """Of the slowest link of a ring: the one between two hosts, if there are several."""
        return self.near_gbs if ranks <= self.ranks_per_host else self.far_gbs


@dataclass(frozen=True)
class Direction:
    """The forward or the backward of one layer, of the rank that has most of each, and the mean over the ranks."""

    sent_bytes: int | None
    """None where a sample of the ranks was counted."""
    mean_sent_bytes: float
    received_bytes: int
    memory_bytes: int
    flops: float
    mean_flops: float
    compute_ms: float
    transfer_ms: float
    ms: float


@dataclass(frozen=True)
class Method:
    """A way to distribute attention."""

    name: str
    forward: Direction
    backward: Direction
    kept_bytes: int
    """From the forward of a layer to its backward."""

    @property
    def mean_sent_bytes(self) -> float:
        return self.forward.mean_sent_bytes + self.backward.mean_sent_bytes

    @property
    def ms(self) -> float:
        return self.forward.ms + self.backward.ms


@dataclass
class PlanRow:
    """A case on so many ranks; figures of methods are of one layer."""

    case: Case
    ranks: int
    balance: str
    stages: int
    save_fetched: bool
    layers: int
    machine: Machine
    counted_ranks: int
    """Ranks whose needs were counted: all, or a sample."""
    tokens: int
    """Of the rank that holds most, as the next ones."""
    fetched_tokens: int
    mean_fetched_tokens: float
    sources: int
    active_blocks: int
    mean_active_blocks: float
    lists_bytes: int
    methods: list[Method] = field(default_factory=list)

    @property
    def imbalance(self) -> float:
        """FLOPs of the rank with most over the mean, minus 1."""
        ours = self.methods[0].forward
        return ours.flops / ours.mean_flops - 1

    @property
    def share_of_ring(self) -> float:
        """Bytes sent in the forward by all ranks together over those of ring attention."""
        ours, ring = self.methods[:2]
        return ours.forward.mean_sent_bytes / ring.forward.mean_sent_bytes if self.ranks > 1 else 0.0

    def memory_bytes(self, method: Method) -> int:
        """The peak of a step: what all layers keep, and one layer at work."""
        at_work = max(method.forward.memory_bytes, method.backward.memory_bytes) - method.kept_bytes
        return self.layers * method.kept_bytes + at_work


@dataclass(frozen=True)
class TokenBytes:
    """Bytes that a token takes in tensors of a case."""

    case: Case

    @property
    def query(self) -> int:
        """In q, or what has its shape."""
        return self.case.batch * self.case.heads * self.case.head_dim * DTYPES[self.case.dtype].itemsize

    def key_and_value(self, heads: int) -> int:
        """In k and v together, or their gradients, of so many kv heads."""
        return self.case.batch * heads * 2 * self.case.head_dim * DTYPES[self.case.dtype].itemsize

    @property
    def all_heads(self) -> int:
        """In k and v of all kv heads."""
        return self.key_and_value(self.case.num_kv_heads)

    @property
    def gradients(self) -> int:
        """In those of q, k, v and out."""
        return 2 * self.query + self.all_heads

    @property
    def kept(self) -> int:
        """In q, k, v, out and lse."""
        return 2 * self.query + self.all_heads + 4 * self.case.batch * self.case.heads

    def of_stages(self, stages: int, at_once: int) -> int:
        """In k and v of the stages that are in memory at once, if there are so many."""
        return min(stages, at_once) * self.key_and_value(-(-self.case.num_kv_heads // stages))


def staged_ms(stages: int, fetch_ms: float, compute_ms: float, return_ms: float = 0.0) -> float:
    """Stages of equal parts: while one computes, the next is fetched and what the last one returns travels."""
    of_stage = max((fetch_ms + return_ms) / stages, compute_ms / stages)
    return fetch_ms / stages + (stages - 1) * of_stage + compute_ms / stages + return_ms / stages


def milliseconds_of(num_bytes: float, gbs: float) -> float:
    return num_bytes / gbs / 1e6


def compute_ms(flops: float, tflops: float) -> float:
    return flops / tflops / 1e9


def flops_of(case: Case, counts: ExchangeCounts) -> Tensor:
    """FLOPs of the forward of every rank, counted as the benchmark counts them; float64 (world_size,)."""
    size = case.block
    pairs = counts.active.double() * size**2
    if case.causal:
        pairs -= counts.diagonal.double() * (size * (size - 1) // 2)
    return pairs * (4 * case.batch * case.heads * case.head_dim)


def lists_bytes(counts: ExchangeCounts, block: int, slots: Tensor) -> Tensor:
    """Lists of the rows and columns of every counted rank; `slots`: blocks of its buffer."""
    active, rows = counts.active[counts.ranks], -(-counts.tokens[counts.ranks] // block)
    return 4 * 4 * active + 4 * (rows + slots + 2)  # indices and block ids, int32, and where each list begins


def exchange_lists_bytes(counts: ExchangeCounts, block: int) -> Tensor:
    """`lists_bytes` of the local layouts, and the int64 indices beside them: a block id per block, two per sent token."""
    held = counts.tokens[counts.ranks] + counts.fetched
    lists = lists_bytes(counts, block, -(-held // block))
    return lists + 8 * counts.active[counts.ranks] + 16 * counts.sent_of_ranks


def ours(case: Case, counts: ExchangeCounts, machine: Machine, stages: int, save_fetched: bool) -> Method:
    """Only the blocks that are needed travel; gradients of fetched blocks go back."""
    token, held, fetched = TokenBytes(case), counts.tokens[counts.ranks], counts.fetched
    sent, again = counts.sent_of_ranks, not save_fetched
    # where nobody needs a block of another, k and v are read where they are
    buffer = (held + fetched) * int(fetched.any())
    kept = token.kept * held + (0 if again else token.all_heads * buffer)
    lists, of_stages = exchange_lists_bytes(counts, case.block), token.of_stages(stages, FETCHED_AT_ONCE)
    fetching = of_stages * (buffer + sent)
    # gradients of the buffer, both messages
    returning = token.of_stages(stages, RETURNED_AT_ONCE) * (buffer + fetched + sent)
    compute = OfCompute.make(case, counts, machine)
    transfer, mean_sent = (
        transfer_ms(token, counts, machine),
        token.all_heads * float(fetched.double().mean()),
    )
    both_ways = token.all_heads * int((fetched + sent).max())
    out, into = (token.all_heads * int(tokens.max()) for tokens in (sent, fetched))
    forward = Direction(
        sent_bytes=None if counts.is_sample else out,
        mean_sent_bytes=mean_sent,
        received_bytes=into,
        memory_bytes=int((kept + lists + (fetching if again else of_stages * sent)).max()),
        flops=compute.flops[0],
        mean_flops=compute.mean_flops[0],
        compute_ms=compute.ms[0],
        transfer_ms=transfer,
        ms=staged_ms(stages, transfer, compute.ms[0]),
    )
    fetch = transfer if again else 0.0
    backward_sent, backward_into = (both_ways, both_ways) if again else (into, out)
    backward_memory = kept + lists + token.gradients * held + returning + (fetching if again else 0)
    backward = Direction(
        sent_bytes=None if counts.is_sample else backward_sent,
        mean_sent_bytes=2 * mean_sent if again else mean_sent,
        received_bytes=backward_into,
        memory_bytes=int(backward_memory.max()),
        flops=compute.flops[1],
        mean_flops=compute.mean_flops[1],
        compute_ms=compute.ms[1],
        transfer_ms=fetch + transfer,
        ms=staged_ms(stages, fetch, compute.ms[1], transfer),
    )
    return Method("ours", forward, backward, int(kept.max()))


class OfCompute(NamedTuple):
    """Forward and backward of our kernel."""

    flops: tuple[float, float]
    mean_flops: tuple[float, float]
    ms: tuple[float, float]

    @classmethod
    def make(cls, case: Case, counts: ExchangeCounts, machine: Machine) -> OfCompute:
        flops = flops_of(case, counts)
        most, mean = float(flops.max()), float(flops.mean())
        forward, backward = machine.tflops
        ms = compute_ms(most, forward), compute_ms(BACKWARD * most, backward)
        return cls((most, BACKWARD * most), (mean, BACKWARD * mean), ms)


def transfer_ms(token: TokenBytes, counts: ExchangeCounts, machine: Machine) -> float:
    """Until the last rank has received and sent what one exchange moves; links inside and between hosts work at once."""
    near, far = (
        [counts.fetched_near, counts.sent_near[counts.ranks]],
        [counts.fetched_far, counts.sent_far[counts.ranks]],
    )
    return max(
        milliseconds_of(token.all_heads * int(tokens.max()), gbs)
        for of_link, gbs in ((near, machine.near_gbs), (far, machine.far_gbs))
        for tokens in of_link
    )


def ring(case: Case, ranks: int, machine: Machine) -> Method:
    """Dense: k and v of every rank go to each of the others, from neighbour to neighbour, in chunks of equal length.

    Forward and backward pass them on ranks - 1 times; dk and dv go along in the backward, and once more to reach their owner.
    """
    token, held, hops = TokenBytes(case), -(-case.seqlen // ranks), ranks - 1
    home = 1 if ranks > 1 else 0
    chunk, kept = token.all_heads * held, token.kept * held
    hop_ms = milliseconds_of(chunk, machine.ring_gbs(ranks))
    flops = case.flops(case.dense_pairs()) / ranks
    of_chunk = [
        compute_ms(times * flops / ranks, rate)
        for times, rate in zip((1, BACKWARD), machine.dense_tflops, strict=True)
    ]
    forward = Direction(
        sent_bytes=hops * chunk,
        mean_sent_bytes=hops * chunk,
        received_bytes=hops * chunk,
        memory_bytes=kept + 2 * chunk,  # the one that is used and the one that arrives
        flops=flops,
        mean_flops=flops,
        compute_ms=ranks * of_chunk[0],
        transfer_ms=hops * hop_ms,
        ms=of_chunk[0] + hops * max(hop_ms, of_chunk[0]),
    )
    backward = Direction(
        sent_bytes=(2 * hops + home) * chunk,
        mean_sent_bytes=(2 * hops + home) * chunk,
        received_bytes=(2 * hops + home) * chunk,
        memory_bytes=kept + token.gradients * held + 4 * chunk,
        flops=BACKWARD * flops,
        mean_flops=BACKWARD * flops,
        compute_ms=ranks * of_chunk[1],
        transfer_ms=(2 * hops + home) * hop_ms,
        ms=of_chunk[1] + hops * max(2 * hop_ms, of_chunk[1]) + home * hop_ms,
    )
    return Method("ring attention", forward, backward, kept)


def all_gather(case: Case, counts: ExchangeCounts, machine: Machine, stages: int) -> Method:
    """Our kernel with all of k and v, in as many stages as the library would choose for them; a reduce-scatter gives dk and dv back.

    Every byte comes into a host once, shared out over its ports, and goes on inside, as NCCL's rings do.
    """
    token, ranks, per_host = TokenBytes(case), counts.tokens.numel(), machine.ranks_per_host
    all_bytes = token.all_heads * case.seqlen
    moved = all_bytes - token.all_heads * int(counts.tokens.min())
    outside = max(0.0, 1 - per_host / ranks) * all_bytes / per_host
    transfer = max(milliseconds_of(moved, machine.near_gbs), milliseconds_of(outside, machine.far_gbs))
    held, buffers, gradients = (
        counts.tokens[counts.ranks],
        token.of_stages(stages, FETCHED_AT_ONCE) * case.seqlen,
        token.of_stages(stages, RETURNED_AT_ONCE) * case.seqlen,
    )
    lists = lists_bytes(counts, case.block, torch.full_like(held, -(-case.seqlen // case.block)))
    kept, mean_moved = token.kept * held, all_bytes * (ranks - 1) / ranks
    compute = OfCompute.make(case, counts, machine)
    forward = Direction(
        sent_bytes=moved,
        mean_sent_bytes=mean_moved,
        received_bytes=moved,
        memory_bytes=int((kept + lists).max()) + buffers,
        flops=compute.flops[0],
        mean_flops=compute.mean_flops[0],
        compute_ms=compute.ms[0],
        transfer_ms=transfer,
        ms=staged_ms(stages, transfer, compute.ms[0]),
    )
    backward = Direction(
        sent_bytes=2 * moved,
        mean_sent_bytes=2 * mean_moved,
        received_bytes=2 * moved,
        memory_bytes=int((kept + lists + token.gradients * held).max()) + buffers + gradients,
        flops=compute.flops[1],
        mean_flops=compute.mean_flops[1],
        compute_ms=compute.ms[1],
        transfer_ms=2 * transfer,
        ms=staged_ms(stages, transfer, compute.ms[1], transfer),
    )
    return Method("all-gather", forward, backward, int(kept.max()))
