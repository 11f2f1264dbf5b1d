"""BlockSparseDistributedAttention: the variant for a sequence distributed over processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import values
from .._torch_internals import not_traced
from ..caching import BoundedCache
from ..config import SparsePatternConfig, with_shorthands
from ..layout.cache import LAYOUTS
from ..layout.layout import BlockLayout
from ..modules.settings import AttentionSettings
from ..upstream.keywords import explains_old_keywords
from ..upstream.neighbours import refuse_unknown
from ..validation.numbers import check_is_causal
from ..validation.tensors import SHAPE, check_qkv
from ..values import shown
from .attention import distributed_block_sparse_attention
from .config import DistributedSparseConfig, checked_distributed
from .default_shardings import check_one_choice
from .sharding import SequenceSharding


@explains_old_keywords
class BlockSparseDistributedAttention(AttentionSettings, nn.Module):
    """Block-sparse attention of a sequence whose tokens are distributed over processes. It has no parameters.

    Every rank calls it with its own tokens, those of ``sharding(seq_len)``, and fetches the blocks of others that its rows need:
    see `distributed_block_sparse_attention`.

    Args:
        sparse_config: the pattern of all heads, or a sequence with one per head or kv head; a dict stands for a config of its
            items. Default ``SparsePatternConfig()``.
        distributed_config: the processes, and how they exchange blocks; a dict stands for a config of its items. Required.
        segment_lengths: tokens up to which each of `dilation_rates` rules, see `block_sparse_attention`.
        dilation_rates: token dilation by distance, as many as `segment_lengths`.
        dropout: attention dropout, in training mode only.
        softmax_scale: default ``1 / sqrt(head_dim)``.
        backend: see `block_sparse_attention`.
        device: taken as by every torch module; without effect, as there are no parameters.
        dtype: likewise without effect.
        sparsity_ratio: replaces the field of that name in `sparse_config`.
        block_size: replaces the field of that name in `sparse_config`.
        deterministic: see `block_sparse_attention`; alike on every rank.

    The arguments but `distributed_config` are attributes that can be assigned; a value is checked as here and applies from the
    next call on.

    Raises:
        ValueError: an argument is out of its range; the message names it.
        TypeError: an argument has the wrong type, or `distributed_config` is missing.
    """

    def __init__(
        self,
        sparse_config: SparsePatternConfig | Sequence[SparsePatternConfig] | None = None,
        distributed_config: DistributedSparseConfig | Mapping[str, Any] | None = None,
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
        config = checked_distributed(distributed_config)
        self._set_pattern(
            with_shorthands(sparse_config, sparsity_ratio, block_size), segment_lengths, dilation_rates
        )
        self._distributed_config = config
        self.dropout = dropout
        self.softmax_scale = softmax_scale
        self.backend = backend
        self.deterministic = deterministic
        self._shardings = BoundedCache(64)

    @property
    def distributed_config(self) -> DistributedSparseConfig:
        """The processes, and how they exchange blocks; fixed."""
        return self._distributed_config

    def extra_repr(self) -> str:
        config = self.distributed_config
        return (
            f"sparse_config={self.sparse_config}, balance={config.balance!r}, world_size={config.world_size}"
        )

    @not_traced
    def sharding(self, seq_len: int, is_causal: bool = False) -> SequenceSharding:
        """Which tokens of a sequence each rank holds; alike on every rank, made once per length and pattern.

        Layers with other patterns must share one: give it to each call, or make it of all their layouts with
        `SequenceSharding.from_layout`.

        Args:
            seq_len: tokens of the whole sequence.
            is_causal: of the calls: it changes the costs of the rows.
        """
        check_is_causal(is_causal)
        length = values.tokens(seq_len)
        if length is None:
            raise values.wrong(
                values.integer(seq_len),
                f"seq_len must be a positive number of tokens below 2**31, got {shown(seq_len)}",
            )
        key = (self._pattern.text, length, is_causal)
        found: SequenceSharding | None = self._shardings.get(key)
        if found is not None:
            return found
        layout = LAYOUTS.find(self._pattern, length, length, is_causal, torch.device("cpu"))
        return self._shardings.keep(key, SequenceSharding.from_layout(layout, self.distributed_config))

    @not_traced
    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        is_causal: bool = False,
        *,
        seq_len: int | None = None,
        sharding: SequenceSharding | None = None,
        layout: BlockLayout | None = None,
        **unknown: Any,
    ) -> Tensor:
        """Compute attention of this rank's queries.

        Args:
            q: (batch, local_len, num_heads, head_dim).
            k: (batch, local_len, num_kv_heads, head_dim).
            v: (batch, local_len, num_kv_heads, v_head_dim).
            is_causal: no query sees a key at a later position of the whole sequence.
            seq_len: tokens of the whole sequence. Default: those of the sharding, else ``local_len * world_size``.
            sharding: which tokens each rank holds. Default: ``self.sharding(seq_len, is_causal)``, if no other layer that is
                called without one has chosen other tokens.
            layout: attend to the blocks of this layout of the whole sequence, instead of those of `sparse_config`.

        Returns:
            out (batch, local_len, num_heads, v_head_dim).

        Raises:
            ValueError: an argument does not fit the others; the message says why.
            TypeError: an argument has the wrong type; the message names it and its value.
        """
        if unknown:
            refuse_unknown(unknown, "BlockSparseDistributedAttention.forward")
        check_qkv(q, k, v)
        if q.dim() != 4:
            raise ValueError(f"q must be {SHAPE}, got shape {tuple(q.shape)}")
        if sharding is None:
            length = q.shape[1] * self.distributed_config.world_size if seq_len is None else seq_len
            sharding = self.sharding(length, is_causal)
            if sharding.local_len != q.shape[1] and seq_len is None:
                raise ValueError(
                    f"seq_len is missing: rank {sharding.rank} has {q.shape[1]} tokens, which is not its share of "
                    f"{length}, {q.shape[1]} times the {sharding.world_size} ranks; pass the tokens of the whole sequence"
                )
            check_one_choice(self.distributed_config.group, self, sharding)
        elif not isinstance(sharding, SequenceSharding):
            raise TypeError(f"sharding must be a SequenceSharding, got {shown(sharding)}")
        elif seq_len is not None and seq_len != sharding.seq_len:
            raise ValueError(
                f"seq_len must be that of the sharding, {sharding.seq_len}, got {shown(seq_len)}"
            )
        if layout is None:
            length = sharding.seq_len
            layout = LAYOUTS.find(self._pattern, length, length, is_causal, q.device)
        segment_lengths, dilation_rates = self._dilation
        return distributed_block_sparse_attention(
            q, k, v, layout, sharding, self.distributed_config, is_causal=is_causal, softmax_scale=self._softmax_scale,
            segment_lengths=segment_lengths, dilation_rates=dilation_rates,
            dropout_p=self._dropout if self.training else 0.0, backend=self._backend,
            deterministic=self._deterministic,
        )  # fmt: skip
