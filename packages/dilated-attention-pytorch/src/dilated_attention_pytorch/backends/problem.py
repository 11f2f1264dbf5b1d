"""The contract of the backends: AttentionProblem is what they compute, Backend what they implement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import TokenDilation
from ..grid import BlockGrid
from ..layout.layout import BlockLayout
from ..layout.lists import BlockLists, BlockMasks
from ..sequences import Sequences, default_offset
from .decode_problem import Decode, DecodeProblem


@dataclass(frozen=True, eq=False)
class AttentionProblem:
    """One attention call.

    Rows and columns of a layout are blocks of positions. Without `sequences` query i is at position ``i + q_offset`` and key
    j at j. Row r of the layout holds the positions of block ``grid.first_row + r``, column c those of block c; a query or
    key that is at none of them sees nothing, or is seen by none. Head h uses the lists of layout head
    ``h // (num_heads // layout_heads)`` and kv head ``h // (num_heads // num_kv_heads)``.

    The score of a pair is ``s = softmax_scale * (q @ k)``, then ``softcap * tanh(s / softcap)``, plus the bias of its block,
    minus ``alibi_slopes[h] * abs(position of q - position of k)``, plus attn_bias. A query that sees no key has out 0, lse
    -inf and no gradients, also with sinks.

    Attributes:
        q: (batch, q_len, num_heads, head_dim), any strides, as of k and v. Packed sequences have batch 1.
        k: (batch, kv_len, num_kv_heads, head_dim).
        v: (batch, kv_len, num_kv_heads, v_head_dim).
        grid: the rows and columns of the layout.
        layout_batch: 1, or the number of sequences (without `sequences`, batch): then each has lists of its own.
        layout_heads: 1, num_kv_heads or num_heads.
        rows: the row lists, one for every (layout batch, layout head, row, distance class).
        cols: the column lists, likewise.
        undilated: row and column lists without distance classes: what the operators take.
        block_masks: masks inside blocks, None where every active block counts as a whole.
        prepared: what the backend that serves the call has made of the layout, see `Backend.prepare`.
        shares: what that backend has made of the layout for the sizes of the call, see `Backend.prepare_shares`.
        entries: for the reference, where a trace cannot read the lists: int64 (layout_batch * layout_heads, grid.n_rows,
            grid.n_cols), the block id of every active pair, else -1.
        q_offset: the position of query 0.
        sequences: what differs from one batch element, or packed sequence, to the next; None where nothing does.
        key_padding_mask: bool (batch, kv_len), True is padding.
        block_bias: (number of sequences or 1, num_heads or 1, num_block_ids), added to the scores of each block.
        attn_bias: (batch or 1, num_heads or 1, q_len, kv_len) in q's dtype or float32, added to the scores, -inf hides; any
            strides, 0 where broadcast. No gradient. None with packed sequences.
        alibi_slopes: float32 (num_heads,). No gradient.
        sinks: (num_heads,), a logit per head that only joins the denominator, so that lse includes it.
        softcap: 0 is none.
        is_causal: no query sees a key at a later position.
        softmax_scale: multiplies q k^T.
        dropout_p: probability with which a weight is dropped, rounded as dropout.py says.
        deterministic: two backwards give the same bits; False lets a backend choose a faster one.
        seed: int64 (1,), for dropout.
        dilation: token dilation by distance.
        of_pattern: the layout is that of patterns, in which most active blocks have others beside them; False where that is
            not known.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    grid: BlockGrid
    layout_heads: int
    rows: BlockLists
    cols: BlockLists
    undilated: tuple[BlockLists, BlockLists]
    q_offset: int
    is_causal: bool
    softmax_scale: float
    dropout_p: float
    dilation: TokenDilation | None
    block_bias: Tensor | None
    key_padding_mask: Tensor | None
    seed: Tensor | None
    sequences: Sequences | None = None
    softcap: float = 0.0
    attn_bias: Tensor | None = None
    alibi_slopes: Tensor | None = None
    sinks: Tensor | None = None
    layout_batch: int = 1
    block_masks: BlockMasks | None = None
    prepared: tuple[Tensor, ...] = ()
    entries: Tensor | None = None
    deterministic: bool = True
    shares: tuple[Tensor, ...] = ()
    of_pattern: bool = False

    def without_inputs(self) -> AttentionProblem:
        """The problem without its inputs, the tensors that can have gradients: q, k, v, block_bias and sinks."""
        made = self.with_inputs(None, None, None)  # type: ignore[arg-type]
        made.__dict__["signature"] = self.signature  # which is computed from them
        return made

    def with_inputs(
        self, q: Tensor, k: Tensor, v: Tensor, block_bias: Tensor | None = None, sinks: Tensor | None = None
    ) -> AttentionProblem:
        """The problem with other inputs of the same shapes, strides and types; its signature stays."""
        fields = self.__dict__.copy()  # dataclasses.replace takes ten times as long
        fields["q"], fields["k"], fields["v"] = q, k, v
        fields["block_bias"], fields["sinks"] = block_bias, sinks
        made = object.__new__(AttentionProblem)
        object.__setattr__(made, "__dict__", fields)
        return made

    def prepared_by(self, backend: Backend, layout: BlockLayout) -> AttentionProblem:
        """The problem with what a backend derives from its layout, which is on the device of q."""
        prepared, shares = backend.prepare(layout, self.dilation), backend.prepare_shares(self, layout)
        if not prepared and not shares:
            return self
        return self.made_of(**{**self.__dict__, "prepared": prepared, "shares": shares})

    @staticmethod
    def made_of(**fields: Any) -> AttentionProblem:
        """The problem with these fields, three times as fast as the constructor of a frozen dataclass."""
        made = object.__new__(AttentionProblem)
        object.__setattr__(made, "__dict__", fields)
        return made

    @property
    def needs_grad(self) -> bool:
        """Whether autograd will call backward."""
        inputs = (self.q, self.k, self.v, self.block_bias, self.sinks)
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
    def kv_lengths(self) -> Tensor | None:
        """int32 (batch,) where sequences differ in nothing else; see `Sequences.only_lengths`."""
        return None if self.sequences is None else self.sequences.column("kv_len").contiguous()

    @property
    def block_size(self) -> int:
        return self.grid.block_size

    @property
    def first_row(self) -> int:
        """The block of the first query."""
        return self.q_offset // self.block_size

    @property
    def n_rows(self) -> int:
        """Block rows of the call; those of the layout are `grid.n_rows`."""
        return -(-(self.q_len + self.q_offset) // self.block_size) - self.first_row

    @property
    def n_cols(self) -> int:
        """Block columns of the call; those of the layout are `grid.n_cols`."""
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
            p.rates, p.layout_batch, p.grid.q_offset, p.grid.q_len, p.grid.kv_len, p.softcap, p.block_masks is None,
            p.alibi_slopes is None, p.sinks is None, p.dropout_p,
            None if p.sequences is None else (p.sequences.table.shape[0], p.sequences.is_packed, p.sequences.only_lengths),
            None if p.block_bias is None else (p.block_bias.dtype, p.block_bias.shape, p.block_bias.stride()),
            p.key_padding_mask is None, p.attn_bias is None,
        ))  # fmt: skip


@lru_cache(maxsize=256)
def interned(key: Hashable) -> object:
    """One object for equal keys: it is hashed and compared faster than the key."""
    return object()


def beyond_plain_batch(problem: AttentionProblem) -> str | None:
    """What a problem asks for beyond one layout for exactly its positions, the same for all batch elements.

    For `Backend.rejects`: kernels that know of no more have to refuse it. None where there is nothing.
    """
    p, grid, sequences = problem, problem.grid, problem.sequences
    if p.layout_batch != 1:
        return f"the layout has {p.layout_batch} batch elements, needs one for all"
    if sequences is not None and sequences.is_packed:
        return "the sequences are packed, needs a batch"
    if sequences is not None and not sequences.only_lengths:
        return "the sequences have positions of their own (q_offset as a tensor, or kv_starts), needs the same for all"
    default = default_offset(p.q_len, p.kv_len, p.is_causal)
    if p.q_offset != default:
        return f"q_offset is {p.q_offset}, needs {default}"
    if (p.first_row, p.n_rows, p.n_cols) != (grid.first_row, grid.n_rows, grid.n_cols):
        return f"the layout is for q_len {grid.q_len} and kv_len {grid.kv_len}, needs the call's {p.q_len} and {p.kv_len}"
    return None


def beyond_plain_scores(problem: AttentionProblem) -> str | None:
    """What a problem asks of its scores beyond the products, block_bias and the masks of whole blocks.

    For `Backend.rejects`, as `beyond_plain_batch`.
    """
    p = problem
    if p.block_masks is not None:
        return "the layout has masks inside blocks, needs none"
    if p.softcap != 0.0:
        return f"softcap is {p.softcap}, needs 0"
    for name in ("alibi_slopes", "sinks", "attn_bias"):
        if getattr(p, name) is not None:
            return f"{name} is given, needs None"
    return None


class Gradients(NamedTuple):
    """What a backward pass returns; None for what the problem has not."""

    q: Tensor
    k: Tensor
    v: Tensor
    # float32 or wider, of a shape that `sum_to_size` takes to that of the problem's
    block_bias: Tensor | None
    sinks: Tensor | None = None  # float32 or wider, (num_heads,)


Forward = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # out and lse of q, k and v
OutputGrads = tuple[Tensor, Tensor | None]  # of out and of lse


class Backend(ABC):
    """One way to compute a problem.

    The first call runs `rejects`, `prepare` and `forward`; a repeated one runs only `forward`, or what `bind` returned.
    `backward` gets the problem of the forward.
    """

    name: str

    @abstractmethod
    def rejects(self, problem: AttentionProblem) -> str | None:
        """Why this backend cannot serve the call, with the argument and its value; None if it can."""

    def prepare(self, layout: BlockLayout, dilation: TokenDilation | None) -> tuple[Tensor, ...]:
        """What the backend derives from a layout beside its lists; it becomes `prepared` of the problem.

        It may depend on the rows and columns of the layout, not on its lengths. Cache it with `BlockLayout.keep`.
        """
        return ()

    def prepare_shares(self, problem: AttentionProblem, layout: BlockLayout) -> tuple[Tensor, ...]:
        """What it derives from a layout for the sizes of a call alone; it becomes `shares` of the problem. Cached likewise."""
        return ()

    @abstractmethod
    def forward(self, problem: AttentionProblem) -> tuple[Tensor, Tensor]:
        """out (batch, q_len, num_heads, v_head_dim) in q's dtype and lse (batch, num_heads, q_len), float32 (float64 for float64 inputs)."""

    def bind(self, problem: AttentionProblem) -> Forward | None:
        """A forward for problems that differ from one that was served only in q, k and v.

        It looks up once what does not change, and must not hold q, k and v of this problem. None if that saves nothing.
        """
        return None

    @abstractmethod
    def backward(
        self, problem: AttentionProblem, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
    ) -> Gradients:
        """Gradients in the inputs' dtypes, given the gradients of out and lse."""

    def forward_into(self, problem: AttentionProblem, out: Tensor) -> Tensor:
        """`forward` that fills `out`, of any strides with 1 for the last; returns lse. A backend may save the copy."""
        made, lse = self.forward(problem)
        out.copy_(made)
        return lse

    def backward_into(
        self,
        problem: AttentionProblem,
        out: Tensor,
        lse: Tensor,
        grad_out: Tensor,
        grad_lse: Tensor | None,
        dq: Tensor,
    ) -> Gradients:
        """`backward` that fills `dq`, as `forward_into` fills out, and returns it among the gradients."""
        grads = self.backward(problem, out, lse, grad_out, grad_lse)
        dq.copy_(grads.q)
        return grads._replace(q=dq)

    def why_deterministic(self, problem: AttentionProblem) -> str | None:
        """Why its backward of a problem with ``deterministic=False`` gives the same bits every time; None if it may not."""
        return f"backend {self.name!r} has no other backward"

    def rejects_for(self, problem: AttentionProblem, capability: tuple[int, int]) -> str | None:
        """`rejects` for a GPU of a compute capability, wherever the tensors are."""
        return "it has no kernels for a GPU"

    def compile_for(
        self, problem: AttentionProblem, capability: tuple[int, int], grads: list[OutputGrads]
    ) -> None:
        """Compile what `forward` launches, and `backward` with each of grad_out and grad_lse; run nothing. All is on the CPU."""
        raise NotImplementedError

    def rejects_decode(self, problem: DecodeProblem) -> str | None:
        """`rejects` of a decoding call."""
        return "it does not decode"

    def decode(self, problem: DecodeProblem) -> tuple[Tensor, Tensor]:
        """`forward` of a decoding call. It reads no tensor on the host, unless it is there."""
        raise NotImplementedError

    def bind_decode(self, problem: DecodeProblem) -> Decode | None:
        """`decode` for other inputs of the same types, shapes and strides; `bind` says more."""
        return None
