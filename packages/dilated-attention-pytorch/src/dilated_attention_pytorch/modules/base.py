"""BlockSparseAttention: the base variant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..backends.problem import AttentionProblem
from ..backends.reference import attention_reference, attention_weights
from ..call import PLAIN_TYPES, Call
from ..config import SparsePatternConfig, with_shorthands
from ..eager import CachedCall, can_bypass_dispatcher, is_plain_eager, key_of, run_attention
from ..functional import attend, block_sparse_attention, run_operator
from ..grid import BlockGrid
from ..layout.cache import LAYOUTS, Pattern
from ..layout.layout import BlockLayout
from ..layout.lists import BlockLists
from ..upstream.keywords import explains_old_keywords
from ..upstream.neighbours import refuse_unknown
from ..validation.call import check_call, refusal
from ..validation.numbers import check_flag
from .settings import AttentionSettings

SETTINGS = ("sparse_config", "segment_lengths", "dilation_rates", "dropout", "softmax_scale", "backend")


@explains_old_keywords
class BlockSparseAttention(AttentionSettings, nn.Module):
    """Block-sparse attention of q, k and v. It has no parameters.

    Args:
        sparse_config: the pattern of all heads, or a sequence with one per head or kv head; a dict stands for a
            config of its items. Default ``SparsePatternConfig()``.
        segment_lengths: tokens up to which each of `dilation_rates` rules, see `block_sparse_attention`. Default:
            every key of an active block takes part, as with ``[2048], [1]``.
        dilation_rates: token dilation by distance, as many as `segment_lengths`; each divides the block size, so it is a power
            of two.
        dropout: attention dropout, in training mode only.
        softmax_scale: default ``1 / sqrt(head_dim)``.
        backend: see `block_sparse_attention`.
        device: taken as by every torch module; without effect, as there are no parameters.
        dtype: likewise without effect.
        sparsity_ratio: replaces the field of that name in `sparse_config`.
        block_size: replaces the field of that name in `sparse_config`.
        deterministic: see `block_sparse_attention`.

    The arguments are attributes too: an assigned value is checked as here and applies from the next call on.

    Layouts are built at first use and kept for all modules with the same `sparse_config`. Lengths with the same block
    rows and columns share their lists, and decoding builds a layout once per 64 blocks. The least recently used lists
    go first, when there are more than 128 sets of them or 1 GiB; those that a CUDA graph was captured with stay.

    Under torch.compile and torch.export the layout is looked up when the graph runs: a graph with dynamic shapes serves
    every length.

    Raises:
        ValueError: an argument is out of its range; the message names it.
        TypeError: an argument has the wrong type; the message names it.

    Examples:
        >>> attention = BlockSparseAttention(SparsePatternConfig(sparsity_ratio=0.05))
        >>> q = k = v = torch.randn(1, 1024, 4, 32)
        >>> attention(q, k, v, is_causal=True).shape
        torch.Size([1, 1024, 4, 32])
    """

    def __init__(
        self,
        sparse_config: SparsePatternConfig | Sequence[SparsePatternConfig] | None = None,
        segment_lengths: Sequence[int] | None = None,
        dilation_rates: Sequence[int] | None = None,
        dropout: float = 0.0,
        softmax_scale: float | None = None,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        sparsity_ratio: float | None = None,
        block_size: int | None = None,
        deterministic: bool | None = None,
    ) -> None:
        del device, dtype
        super().__init__()
        configs = with_shorthands(sparse_config, sparsity_ratio, block_size)
        self._set_pattern(configs, segment_lengths, dilation_rates)
        self.dropout = dropout
        self.softmax_scale = softmax_scale
        self.backend = backend
        self.deterministic = deterministic

    def extra_repr(self) -> str:
        parts = [f"sparse_config={self.sparse_config}"]
        for name in ("segment_lengths", "dilation_rates", "softmax_scale", "backend", "deterministic"):
            value = getattr(self, name)
            if value is not None:
                parts.append(f"{name}={list(value) if isinstance(value, tuple) else value!r}")
        return ", ".join(parts + ([f"dropout={self.dropout}"] if self.dropout else []))

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        old = {name: state.pop(name) for name in SETTINGS if name in state}  # of 0.3.0
        state.pop("_layouts", None)
        if old:
            state.pop("_dilation", None)
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if old:
            self._segment_lengths = self._dilation_rates = None
            self.sparse_config = old["sparse_config"]
            self._set_dilation(old["segment_lengths"], old["dilation_rates"])
            for name in ("dropout", "softmax_scale", "backend"):
                setattr(self, name, old[name])

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        is_causal: bool = False,
        key_padding_mask: Tensor | None = None,
        return_attention_weights: bool = False,
        *,
        kv_lengths: Tensor | None = None,
        layout: BlockLayout | None = None,
        **unknown: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Compute attention.

        Args:
            q: (batch, q_len, num_heads, head_dim).
            k: (batch, kv_len, num_kv_heads, head_dim).
            v: (batch, kv_len, num_kv_heads, v_head_dim).
            is_causal: the last query sits at the last key and no query sees a later key. With q_len < kv_len
                this is decoding with a KV cache: the rows equal those of the full forward.
            key_padding_mask: bool (batch, kv_len), True where a key is padding. When decoding, pad on the left: the
                last query sits at the last key.
            return_attention_weights: also return the weights after dropout, dense: (batch, num_heads, q_len,
                kv_len), float32. Meant for looking at short sequences.
            kv_lengths: int (batch,), the number of valid keys of each batch element; not when decoding.
            layout: attend to the blocks of this layout, instead of those of `sparse_config`.

        Returns:
            out (batch, q_len, num_heads, v_head_dim), or (out, weights).
        """
        if unknown:
            refuse_unknown(unknown, "BlockSparseAttention.forward")
        dropout_p = self._dropout if self.training else 0.0
        backend, scale = self._backend, self._softmax_scale
        segment_lengths, dilation_rates = self._dilation
        deterministic = self._deterministic
        if layout is None and type(q) in PLAIN_TYPES and type(k) in PLAIN_TYPES and type(is_causal) is bool:
            try:
                of_q, of_k = q.shape, k.shape
                if len(of_q) == len(of_k) == 4 and is_plain_eager():
                    layout = LAYOUTS.covering(self._pattern, of_q[1], of_k[1], is_causal, q.device)
            except Exception as error:
                if q.device.type != "meta":  # a meta tensor gets its shapes from the operator
                    raise refusal(error, q, k, v, is_causal) from None
            if layout is not None and return_attention_weights is False:
                key = None
                if kv_lengths is None and key_padding_mask is None and not dropout_p:
                    key = key_of(
                        q, k, v, is_causal, scale, None, segment_lengths, dilation_rates, backend, None, deterministic
                    )  # fmt: skip
                    cached: CachedCall | None = layout.calls.get(key)
                    if cached is not None:
                        return cached.run(q, k, v)[0]
                return attend(
                    q, k, v, layout, key, is_causal=is_causal, softmax_scale=scale, kv_lengths=kv_lengths,
                    key_padding_mask=key_padding_mask, segment_lengths=segment_lengths, dilation_rates=dilation_rates,
                    dropout_p=dropout_p, backend=backend, deterministic=deterministic,
                )[0]  # fmt: skip
        if not torch.compiler.is_compiling():
            check_flag("return_attention_weights", return_attention_weights)
        if layout is not None and not return_attention_weights:
            return block_sparse_attention(
                q, k, v, layout, is_causal=is_causal, softmax_scale=scale, kv_lengths=kv_lengths,
                key_padding_mask=key_padding_mask, segment_lengths=segment_lengths, dilation_rates=dilation_rates,
                dropout_p=dropout_p, backend=backend, deterministic=deterministic,
            )  # fmt: skip
        source = self._pattern if layout is None else layout
        call = check_call(
            q, k, v, source, is_causal=is_causal, softmax_scale=scale, kv_lengths=kv_lengths,
            key_padding_mask=key_padding_mask, segment_lengths=segment_lengths, dilation_rates=dilation_rates,
            dropout_p=dropout_p, deterministic=deterministic,
        )  # fmt: skip
        if backend == "reference" or return_attention_weights:
            dense = dense_problem(call, self._pattern) if layout is None else call.dense_problem(layout)
            if backend == "reference":
                out = attention_reference(dense)[0]
            elif layout is not None and can_bypass_dispatcher(call):
                out = run_attention(*call.served(layout, backend))[0]
            else:
                out = run_operator(call, source, backend)[0]
            return (out, attention_weights(dense)[0]) if return_attention_weights else out
        return run_operator(call, source, backend)[0]


def dense_problem(call: Call, pattern: Pattern) -> AttentionProblem:
    """The problem for the reference, with the blocks of the pattern looked up when a graph runs."""
    q_len, kv_len, size = call.q.shape[1], call.k.shape[1], pattern.block_size
    none = BlockLists(*(torch.empty(0, dtype=torch.int32, device=call.q.device) for _ in range(3)))
    return AttentionProblem(
        q=call.q, k=call.k, v=call.v, grid=BlockGrid(q_len, kv_len, size, call.is_causal, call.q_offset),
        layout_heads=pattern.num_heads, rows=none, cols=none, undilated=(none, none),
        entries=ops.block_entries(pattern.text, q_len, kv_len, call.is_causal, call.q.device),
        q_offset=call.q_offset, is_causal=call.is_causal, softmax_scale=call.softmax_scale, dropout_p=call.dropout_p,
        softcap=call.softcap, dilation=call.dilation, block_bias=call.block_bias, attn_bias=call.attn_bias, sinks=call.sinks,
        alibi_slopes=call.alibi_slopes, key_padding_mask=call.key_padding_mask, seed=call.seed, sequences=call.sequences,
    )  # fmt: skip
