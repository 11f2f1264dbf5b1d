"""The exchange: blocks of k and v travel to the ranks that need them, and gradients come back to their owners.

A message holds, for every token, all batch elements and kv heads of a stage, k beside v, so that one all-to-all moves both
and lands where the kernels read. Everything is asynchronous: what is started returns a handle to wait for.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .local_layout import LocalLayout, Returned
from .plan import Transfers


class KeysAndValues(NamedTuple):
    """k and v (batch, tokens, kv heads, head_dim), which are halves of one tensor (tokens, batch, kv heads, both dims)."""

    both: Tensor
    head_dim: int

    @classmethod
    def empty(cls, tokens: int, k: Tensor, v: Tensor) -> KeysAndValues:
        """Room for so many tokens, and else as k and v."""
        batch, _, heads, head_dim = k.shape
        return cls(k.new_empty(tokens, batch, heads, head_dim + v.shape[3]), head_dim)

    @property
    def k(self) -> Tensor:
        return self.both[..., : self.head_dim].transpose(0, 1)

    @property
    def v(self) -> Tensor:
        return self.both[..., self.head_dim :].transpose(0, 1)

    def tokens(self, first: int, number: int) -> KeysAndValues:
        """A view of some tokens."""
        return KeysAndValues(self.both[first : first + number], self.head_dim)


class Started(NamedTuple):
    """What is under way; `wait` returns it when the current stream may read it."""

    result: KeysAndValues
    work: Any
    kept: Tensor  # read by the transfer until it is done
    order: Tensor | None = None  # the token of the result at each place of what `wait` returns

    def wait(self) -> KeysAndValues:
        if self.work is not None:
            self.work.wait()
        if self.order is None:
            return self.result
        return KeysAndValues(self.result.both.index_select(0, self.order), self.result.head_dim)


def kept(buffer: KeysAndValues) -> Started:
    """A buffer that is there already."""
    return Started(buffer, None, buffer.both)


def start_all_to_all(
    received: Tensor,
    sent: Tensor,
    received_tokens: tuple[int, ...],
    sent_tokens: tuple[int, ...],
    plan: Transfers,
    group: Any,
) -> Any:
    """Start to send tokens to every rank, and to receive from every rank; contiguous tensors with tokens first.

    None where no rank has anything to send.
    """
    if plan.is_local:
        return None
    into, out_of = (x.flatten(1).view(torch.uint8) for x in (received, sent))
    return dist.all_to_all_single(
        into, out_of, list(received_tokens), list(sent_tokens), group=group, async_op=True
    )


def start_fetch(k: Tensor, v: Tensor, plan: Transfers, local: LocalLayout, group: Any) -> Started:
    """Start to fill the buffer of a stage: own blocks are copied, others fetched."""
    buffer = KeysAndValues.empty(local.num_tokens, k, v)
    own = buffer.tokens(local.own_at, k.shape[1])
    if local.sent_from is None:
        sent = KeysAndValues.empty(plan.num_sent_tokens, k, v)
        copy(k, sent.k, local.sent)
        copy(v, sent.v, local.sent)
    else:
        copy(k, own.k)
        copy(v, own.v)
        sent = own.tokens(local.sent_from, plan.num_sent_tokens)
    fetched = buffer.tokens(local.fetched_at, plan.num_fetched_tokens)
    work = start_all_to_all(fetched.both, sent.both, plan.fetched_tokens, plan.sent_tokens, plan, group)
    if local.sent_from is None:  # while the others travel
        copy(k, own.k)
        copy(v, own.v)
    return Started(buffer, work, sent.both, None if local.pieces is None else local.pieces.order)


def start_return(dk: Tensor, dv: Tensor, plan: Transfers, local: LocalLayout, group: Any) -> Started:
    """Start to give the gradients of fetched blocks back to their owners; dk and dv are those of the buffer, see `unarranged`."""
    tokens = slice(local.fetched_at, local.fetched_at + plan.num_fetched_tokens)
    fetched = KeysAndValues.empty(plan.num_fetched_tokens, dk, dv)
    copy(dk[:, tokens], fetched.k)
    copy(dv[:, tokens], fetched.v)
    returned = KeysAndValues.empty(plan.num_sent_tokens, dk, dv)
    work = start_all_to_all(returned.both, fetched.both, plan.sent_tokens, plan.fetched_tokens, plan, group)
    return Started(returned, work, fetched.both)


def unarranged(grad: Tensor, local: LocalLayout) -> Tensor:
    """The gradient (batch, tokens, heads, dim) in the order of the buffer, where the call had another."""
    back = None if local.pieces is None else local.pieces.back
    return grad if back is None else grad.index_select(1, back)


def copy(x: Tensor, into: Tensor, tokens: Tensor | None = None) -> None:
    """``into[:, i] = x[:, tokens[i]]``, or all of x in order; of tensors (batch, tokens, heads, dim)."""
    if x.is_cuda:
        kernels().launch_copy(x, into, tokens)
    else:
        into.copy_(x if tokens is None else x.index_select(1, tokens))


def add_returned(own: Tensor, returned: Tensor, where: Returned, into: Tensor) -> None:
    """A rank's own gradients plus those that came back, added in float32 (or wider) by ascending rank.

    Args:
        own: (batch, own tokens, heads, dim).
        returned: (batch, returned tokens, heads, dim).
        where: the own token of each.
        into: as `own`.
    """
    if own.is_cuda:
        kernels().launch_add_returned(own, returned, where, into)
        return
    total = own.to(torch.promote_types(own.dtype, torch.float32), copy=True)
    start = 0
    for number in where.by_rank:
        part = slice(start, start + number)  # no token twice
        tokens = where.tokens[part]
        theirs = returned[:, part].to(total.dtype)
        if where.has_gaps:
            tokens, theirs = tokens[tokens >= 0], theirs[:, tokens >= 0]
        total.index_add_(1, tokens, theirs)
        start += number
    into.copy_(total)


@functools.cache
def kernels() -> ModuleType:
    """device_exchange.py, imported late because it needs triton."""
    from . import device_exchange

    return device_exchange
