"""What `attention-bench scaling` compares: ways to compute a rank's tokens of a sequence that several GPUs share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.attention import SDPBackend, sdpa_kernel

from dilated_attention_pytorch import (
    BlockLayout,
    BlockSparseAttention,
    BlockSparseDistributedAttention,
    DistributedSparseConfig,
    SequenceSharding,
    block_sparse_attention,
    distributed_block_sparse_attention,
)
from dilated_attention_pytorch.distributed.plan import ExchangePlan

from .all_gather import all_gather_attention
from .cases import Case
from .peers.base import Attend
from .ring import ring_attention
from .scaling_rows import BASE, GATHER, KEPT, NO_OVERLAP, OURS, RING, SHARE, WHOLE


@dataclass(frozen=True)
class Place:
    """Where a peer runs: `group` are the ranks that share the tokens of `case`; `layout` is that of all tokens."""

    case: Case
    layout: BlockLayout
    group: ProcessGroup
    device: str
    stack: ExitStack
    """Closed after the last call."""


@dataclass(frozen=True)
class Prepared:
    """A call of a rank.

    positions: of its tokens in the whole sequence.
    active_blocks: of a head, over all ranks; None if dense.
    fetched: tokens of other ranks that it fetches for a forward.
    held: tokens of keys that it holds besides its own.
    note: what else is to be known of it.
    """

    attend: Attend
    positions: Tensor
    active_blocks: int | None = None
    fetched: int = 0
    held: int = 0
    note: str | None = None

    @property
    def tokens(self) -> int:
        return self.positions.numel()


@dataclass(frozen=True)
class ScalingPeer:
    """`on_one`: only the first rank runs it. `forward`: whether the forward alone is of interest."""

    name: str
    prepare: Callable[[Place], Prepared]
    on_one: bool = False
    forward: bool = True
    dense: bool = False


def sharding_of(place: Place, **options: Any) -> tuple[SequenceSharding, DistributedSparseConfig]:
    config = DistributedSparseConfig(place.group, **options)
    return SequenceSharding.from_layout(place.layout, config), config


def ours(**options: Any) -> Callable[[Place], Prepared]:
    """The functional form, with these options of DistributedSparseConfig."""

    def prepare(place: Place) -> Prepared:
        sharding, config = sharding_of(place, **options)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out: Tensor = distributed_block_sparse_attention(
                q, k, v, place.layout, sharding, config, is_causal=place.case.causal
            )
            return out

        fetched = ExchangePlan.make(place.layout, sharding, place.case.causal).num_fetched_tokens
        positions, active_blocks = sharding.positions(place.device), place.layout.num_active_blocks
        return Prepared(attend, positions, active_blocks, fetched, sharding.local_len + fetched)

    return prepare


def all_gather(place: Place) -> Prepared:
    sharding, _ = sharding_of(place)
    attend = all_gather_attention(place.layout, sharding, place.group, place.case.causal)
    positions, active_blocks = sharding.positions(place.device), place.layout.num_active_blocks
    others = place.case.seqlen - sharding.local_len
    return Prepared(attend, positions, active_blocks, others, place.case.seqlen + sharding.local_len)


def ring(place: Place) -> Prepared:
    if place.device != "cuda":
        raise RuntimeError("torch's context parallelism needs a CUDA device")
    made = ring_attention(place.case, place.group, place.stack)
    others = place.case.seqlen - made.positions.numel()
    held = 4 * place.case.seqlen  # sent, received, and gradients in float32
    note = "the kv heads are repeated for every query head" if made.repeats_kv_heads else None
    return Prepared(made.attend, made.positions, None, others, held, note)


def one_gpu(share: bool) -> Callable[[Place], Prepared]:
    """The kernel on one GPU, with all tokens or with as many as each rank has."""

    def prepare(place: Place) -> Prepared:
        case, layout = place.case, place.layout
        if share:
            case = replace(case, seqlen=case.seqlen // place.group.size())
            layout = case.layout(place.device)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return block_sparse_attention(q, k, v, layout, is_causal=case.causal)

        return Prepared(attend, torch.arange(case.seqlen, device=place.device), layout.num_active_blocks)

    return prepare


def base_module(place: Place) -> Prepared:
    module = BlockSparseAttention(place.case.config())
    return Prepared(
        lambda q, k, v: module(q, k, v, is_causal=place.case.causal),
        torch.arange(place.case.seqlen, device=place.device),
        place.layout.num_active_blocks,
    )


def distributed_module(place: Place) -> Prepared:
    module = BlockSparseDistributedAttention(place.case.config(), DistributedSparseConfig(place.group))
    sharding = module.sharding(place.case.seqlen, is_causal=place.case.causal)
    return Prepared(
        lambda q, k, v: module(q, k, v, is_causal=place.case.causal),
        sharding.positions(place.device),
        place.layout.num_active_blocks,
    )


def dense_attention(place: Place) -> Attend:
    """Dense attention on one GPU, what the ring is compared with."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            gqa, causal = q.shape[1] != k.shape[1], place.case.causal
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=gqa).transpose(1, 2)

    return attend


PEERS = {
    peer.name: peer
    for peer in (
        ScalingPeer(OURS, ours()),
        ScalingPeer(NO_OVERLAP, ours(stages=1)),
        ScalingPeer(KEPT, ours(save_fetched=True), forward=False),
        ScalingPeer(GATHER, all_gather),
        ScalingPeer(SHARE, one_gpu(share=True), on_one=True),
        ScalingPeer(WHOLE, one_gpu(share=False), on_one=True),
        ScalingPeer(RING, ring, dense=True),
    )
}
ALONE_PEERS = [ScalingPeer(BASE, base_module), ScalingPeer("distributed module", distributed_module)]
