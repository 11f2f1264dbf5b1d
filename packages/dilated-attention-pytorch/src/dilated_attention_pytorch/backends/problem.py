"""The contract of the backends: AttentionProblem, what they are given, and Backend, what they do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import TokenDilation
from ..layout.layout import BlockLayout
from ..layout.lists import BlockLists


@dataclass(frozen=True, eq=False)
class AttentionProblem:
    """One attention call.

    Query i sits at position ``i + q_offset``; layout row r holds the positions of block ``first_row + r``.
    Head h uses the lists of layout head ``h // (num_heads // layout_heads)`` and kv head
    ``h // (num_heads // num_kv_heads)``. List x of `rows` is (layout head, row, dilation class) in this order.
    `prepared` is what the backend that serves the call has made of the layout (`Backend.prepare`). `undilated` are the
    row and column lists without distance classes and `causal_layout` the alignment of the layout: what the operators
    take, from which the lists are found again. `entries`, where it is given, says for the reference what the lists say
    (`block_entries` in reference.py).

    Shapes: q (batch, q_len, num_heads, head_dim), k (batch, kv_len, num_kv_heads, head_dim), v (batch, kv_len,
    num_kv_heads, v_head_dim), any strides; block_bias (batch or 1, num_heads or 1, num_entries), added to the
    scaled scores of each block; kv_lengths int32 (batch,), keys from there on are padding; key_padding_mask
    bool (batch, kv_len), True is padding; seed int64 (1,), for dropout.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    rows: BlockLists
    cols: BlockLists
    prepared: tuple[Tensor, ...]
    block_bias: Tensor | None
    kv_lengths: Tensor | None
    key_padding_mask: Tensor | None
    seed: Tensor | None
    block_size: int
    first_row: int
    q_offset: int
    layout_heads: int
    is_causal: bool
    softmax_scale: float
    dropout_p: float
    dilation: TokenDilation | None
    undilated: tuple[BlockLists, BlockLists]
    causal_layout: bool
    entries: Tensor | None = None

    def without_inputs(self) -> AttentionProblem:
        """The problem without its inputs, the tensors that can have gradients: q, k, v and block_bias."""
        made = self.with_inputs(None, None, None, None)  # type: ignore[arg-type]
        made.__dict__["signature"] = self.signature  # which is computed from them
        return made

    def with_inputs(self, q: Tensor, k: Tensor, v: Tensor, block_bias: Tensor | None) -> AttentionProblem:
        """The problem with other inputs of the same shapes, strides and types; its signature stays."""
        fields = self.__dict__.copy()  # dataclasses.replace takes ten times as long
        fields["q"], fields["k"], fields["v"], fields["block_bias"] = q, k, v, block_bias
        made = object.__new__(AttentionProblem)
        object.__setattr__(made, "__dict__", fields)
        return made

    def prepared_by(self, backend: Backend, layout: BlockLayout) -> AttentionProblem:
        """The problem with what a backend needs of its layout, which is on the device of q."""
        prepared = backend.prepare(layout, self.dilation)
        return self.made_of(**{**self.__dict__, "prepared": prepared}) if prepared else self

    @staticmethod
    def made_of(**fields: Any) -> AttentionProblem:
        """The problem with all of these fields; a frozen dataclass takes three times as long to fill them."""
        made = object.__new__(AttentionProblem)
        object.__setattr__(made, "__dict__", fields)
        return made

    @property
    def needs_grad(self) -> bool:
        """Whether autograd will ask for a backward."""
        inputs = (self.q, self.k, self.v, self.block_bias)
        return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)

    @property
    def batch(self) -> int:
        return self.q.shape[0]

    @property
    def q_len(self) -> int:
        return self.q.shape[1]

    @property
    def num_heads(self) -> int:
        return self.q.shape[2]

    @property
    def head_dim(self) -> int:
        return self.q.shape[3]

    @property
    def kv_len(self) -> int:
        return self.k.shape[1]

    @property
    def num_kv_heads(self) -> int:
        return self.k.shape[2]

    @property
    def v_head_dim(self) -> int:
        return self.v.shape[3]

    @property
    def n_rows(self) -> int:
        return -(-(self.q_len + self.q_offset) // self.block_size) - self.first_row

    @property
    def n_cols(self) -> int:
        return -(-self.kv_len // self.block_size)

    @property
    def rates(self) -> tuple[int, ...]:
        """Token dilation rate of every distance class; one class of rate 1 without token dilation."""
        return (1,) if self.dilation is None else self.dilation.dilation_rates

    @cached_property
    def signature(self) -> object:
        """The same object for all problems that differ only in the values and the addresses of their tensors."""
        p = self
        return interned((
            p.q.device, p.q.dtype, p.q.shape, p.q.stride(), p.k.shape, p.k.stride(), p.v.shape, p.v.stride(),
            p.rows.indices.shape, p.block_size, p.first_row, p.q_offset, p.layout_heads, p.is_causal, p.softmax_scale,
            p.rates,
        ))  # fmt: skip


@lru_cache(maxsize=256)
def interned(key: Hashable) -> object:
    """One object for equal keys: it is hashed and compared faster than the key."""
    return object()


class Gradients(NamedTuple):
    """What a backward pass returns; `block_bias` is None when the problem has none."""

    q: Tensor
    k: Tensor
    v: Tensor
    block_bias: Tensor | None  # float32 or wider, (batch, num_heads, num_entries)


Forward = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # out and lse of q, k and v


class Backend(ABC):
    """One way to compute a problem.

    A call goes through `rejects`, `prepare` and `forward`; calls like it that follow need the last alone, or what `bind`
    returns. `backward` is given the problem that `forward` was given.
    """

    name: str

    @abstractmethod
    def rejects(self, problem: AttentionProblem) -> str | None:
        """Why this backend cannot serve the call, with the argument and its value; None if it can."""

    def prepare(self, layout: BlockLayout, dilation: TokenDilation | None) -> tuple[Tensor, ...]:
        """What the backend needs of a layout beside its lists; it becomes the `prepared` of the problem.

        Depends on the rows and columns of the layout, not on its lengths. Kept with the layout: use `BlockLayout.keep`.
        """
        return ()

    @abstractmethod
    def forward(self, problem: AttentionProblem) -> tuple[Tensor, Tensor]:
        """out (batch, q_len, num_heads, v_head_dim) in q's dtype and lse (batch, num_heads, q_len), float32 (float64 for float64 inputs)."""

    def bind(self, problem: AttentionProblem) -> Forward | None:
        """The forward of all problems that differ from one that was served in nothing but q, k and v.

        For what can be looked up once; it must not keep q, k and v of the problem. None where that saves nothing.
        """
        return None

    @abstractmethod
    def backward(
        self, problem: AttentionProblem, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
    ) -> Gradients:
        """Gradients in the inputs' dtypes, given the gradients of out and lse."""
