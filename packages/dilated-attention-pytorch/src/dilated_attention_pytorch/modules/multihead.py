"""BlockSparseMultiheadAttention: nn.MultiheadAttention over the blocks of a pattern."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

from .. import values
from ..config import SparsePatternConfig, with_shorthands
from ..upstream.keywords import explains_old_keywords
from ..validation.numbers import checked_dropout
from ..varlen import block_sparse_attention_varlen
from .extra_keys import with_extra_keys
from .multihead_masks import Masks, check_shapes, check_types_of_masks, first_or_more, masks_of
from .nested_input import Packed, check_nested, nested_like, warn_of_length
from .pattern_attention import Attended, attend_to_pattern
from .settings import PatternSettings


@explains_old_keywords
class BlockSparseMultiheadAttention(PatternSettings, nn.MultiheadAttention):
    """A drop-in for `torch.nn.MultiheadAttention` that attends over the blocks of a pattern.

    The arguments up to `dtype` are those of `torch.nn.MultiheadAttention`, in its order, and so are the parameters, their
    names and their first values: a state dict loads both ways. At ``sparsity_ratio=1.0`` it computes the same.

    Args:
        embed_dim: features of a token, split between the heads.
        num_heads: number of heads; divides `embed_dim`.
        dropout: probability with which an attention weight is dropped, in training mode only.
        bias: whether the projections have a bias.
        add_bias_kv: one learned key and value more, which every query sees.
        add_zero_attn: one key and value of zeros more, which every query sees.
        kdim: features of a token of `key`. Default `embed_dim`.
        vdim: features of a token of `value`. Default `embed_dim`.
        batch_first: inputs are (batch, length, features), not (length, batch, features).
        device: of the parameters.
        dtype: of the parameters.
        sparse_config: the pattern of all heads, or a sequence with one per head; a dict stands for a config of its items.
            Default ``SparsePatternConfig()``.
        sparsity_ratio: replaces the field of that name in `sparse_config`.
        block_size: replaces the field of that name in `sparse_config`.
        segment_lengths: token dilation by distance, see `block_sparse_attention`, with `dilation_rates`. Default: none.
        dilation_rates: the rate of each of `segment_lengths`.
        backend: see `block_sparse_attention`.
        deterministic: see `block_sparse_attention`.

    What differs from `torch.nn.MultiheadAttention`, see also `forward`:

    - `nn.TransformerEncoderLayer` calls this module in eval mode too, where it would compute dense attention itself.
    - A query whose keys are all hidden gives the bias of `out_proj`, where PyTorch's gives NaN or that.
    - ``is_causal=True`` needs no `attn_mask`.
    - It cannot be scripted with `torch.jit.script`; `torch.compile` and `torch.export` work.

    Raises:
        ValueError: an argument is out of its range; the message names it.
        TypeError: an argument has the wrong type; the message names it.
        AssertionError: `num_heads` does not divide `embed_dim`.

    Examples:
        >>> dense = torch.nn.MultiheadAttention(64, 4, batch_first=True)
        >>> sparse = BlockSparseMultiheadAttention(64, 4, batch_first=True, sparsity_ratio=1.0)
        >>> sparse.load_state_dict(dense.state_dict())
        <All keys matched successfully>
        >>> x = torch.randn(2, 300, 64)
        >>> out, _ = sparse(x, x, x, need_weights=False)
        >>> torch.allclose(out, dense(x, x, x, need_weights=False)[0], atol=1e-5)
        True
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        sparse_config: SparsePatternConfig | Sequence[SparsePatternConfig] | None = None,
        sparsity_ratio: float | None = None,
        block_size: int | None = None,
        segment_lengths: Sequence[int] | None = None,
        dilation_rates: Sequence[int] | None = None,
        backend: str | None = None,
        deterministic: bool | None = None,
    ) -> None:
        if values.items(dropout) is not None:
            raise TypeError(
                f"dropout must be a number, got {values.shown(dropout)}; the arguments are in the order of "
                "torch.nn.MultiheadAttention; leave segment_lengths and dilation_rates of 0.2.0 out, where they had no effect"
            )
        checked_dropout(dropout, "dropout")
        super().__init__(
            embed_dim,
            num_heads,
            dropout,
            bias,
            add_bias_kv,
            add_zero_attn,
            kdim,
            vdim,
            batch_first,
            device,
            dtype,
        )
        configs = with_shorthands(sparse_config, sparsity_ratio, block_size)
        self._set_up(configs, segment_lengths, dilation_rates, backend, deterministic)

    def _set_up(
        self,
        sparse_config: SparsePatternConfig | Sequence[SparsePatternConfig],
        segment_lengths: Sequence[int] | None,
        dilation_rates: Sequence[int] | None,
        backend: str | None,
        deterministic: bool | None,
    ) -> None:
        """Set up what nn.MultiheadAttention has not."""
        self._set_pattern(sparse_config, segment_lengths, dilation_rates)
        self.backend = backend
        self.deterministic = deterministic
        check_layout_heads(self._pattern.num_heads, self.num_heads)
        if does_nothing not in self._forward_pre_hooks.values():
            self.register_forward_pre_hook(does_nothing)

    def extra_repr(self) -> str:
        parts = [
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, sparse_config={self.sparse_config}"
        ]
        for name in ("segment_lengths", "dilation_rates", "backend", "deterministic"):
            value = getattr(self, name)
            if value is not None:
                parts.append(f"{name}={list(value) if isinstance(value, tuple) else value!r}")
        parts += [f"dropout={self.dropout}"] if self.dropout else []
        return ", ".join(parts + (["batch_first=True"] if self.batch_first else []))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        join_separate_projections(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *others)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute attention, with the arguments of `torch.nn.MultiheadAttention.forward`.

        L queries attend to S keys. A bool `attn_mask`, and every mask that is floating point, is added to the scores: that
        takes as much memory as its shape says, or batch * L * S where `attn_mask` and a floating point `key_padding_mask` are
        given together. A mask with a gradient is computed densely by ``backend="reference"``.

        Args:
            query: (L, N, embed_dim), with `batch_first` (N, L, embed_dim), or (L, embed_dim). A NestedTensor with
                `batch_first`, without masks: each sequence attends within itself, over the pattern of the longest one.
            key: (S, N, kdim), (N, S, kdim) or (S, kdim).
            value: (S, N, vdim), (N, S, vdim) or (S, vdim).
            key_padding_mask: (N, S) or (S,), bool and True where a key is padding, or added to the scores.
            need_weights: also return the weights. They are computed a second time, densely, in time and memory of N *
                num_heads * L * S: pass False for long sequences.
            attn_mask: (L, S) or (N * num_heads, L, S), bool and True where a query may not see a key, or added to the
                scores.
            average_attn_weights: return the mean of the weights over the heads.
            is_causal: no query sees a later key; query i sits at key i, whatever L and S. An `attn_mask` given with it is
                taken to be the causal one and is not read, but for a pattern that keeps every block: there the mask counts
                as in PyTorch, with weights or padding.

        Returns:
            out of the shape of `query`, and the weights after dropout, in the type of out: (N, L, S), without `average_attn_weights`
            (N, num_heads, L, S), of inputs without batch (L, S) or (num_heads, L, S); with one column more for each of `add_bias_kv`
            and `add_zero_attn`. None without `need_weights`.

        Raises:
            AssertionError: shapes or types of masks do not fit, in the words of PyTorch; a NestedTensor is not served.
            RuntimeError: an `attn_mask` does not have the sizes of the call.
        """
        if query.is_nested or key.is_nested or value.is_nested:
            has_masks = key_padding_mask is not None or attn_mask is not None
            return self._forward_nested(
                query, key, value, has_masks, need_weights, average_attn_weights, is_causal
            )
        tensors = (query, key, value, self.in_proj_weight, self.in_proj_bias, self.out_proj.weight)
        options = (key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)
        if has_torch_function(tensors):
            made: tuple[Tensor, Tensor | None] = handle_torch_function(
                multihead_attention, tensors, self, query, key, value, *options
            )
            return made
        return multihead_attention(self, query, key, value, *options)

    def _forward_nested(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        has_masks: bool,
        need_weights: bool,
        average_attn_weights: bool,
        is_causal: bool,
    ) -> tuple[Tensor, Tensor | None]:
        needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (query, *self.parameters()))
        check_nested(
            query, key, value, has_masks=has_masks, is_causal=is_causal, batch_first=self.batch_first,
            training=self.training, needs_grad=needs_grad,
        )  # fmt: skip
        of_query = Packed.of(query)
        of_key = of_query if key is query else Packed.of(key)
        of_value = of_key if value is key else Packed.of(value)
        if query.layout != torch.jagged and not is_causal and self._depends_on_length:
            warn_of_length(of_query.max_len)
        max_q, max_k = of_query.max_len, of_key.max_len
        # a compiled graph has no layout for packed sequences, nor has one without tokens
        if need_weights or torch.compiler.is_compiling() or max_q == 0 or max_k == 0:
            padded = of_query.padded()
            of_keys = padded if key is query else of_key.padded()
            of_values = of_keys if value is key else of_value.padded()
            options = (of_key.is_padding(), need_weights, None, average_attn_weights, is_causal)
            out, weights = multihead_attention(self, padded, of_keys, of_values, *options)
            if weights is not None:
                is_padding = of_query.is_padding()[:, None, :, None]
                weights = weights.masked_fill(is_padding[:, 0] if average_attn_weights else is_padding, 0.0)
            return nested_like(query, out[of_query.element_and_position()]), weights
        q, k, v = (x[None] for x in self._projected(of_query.values, of_key.values, of_value.values))
        dropout_p = self.dropout if self.training else 0.0
        layout = self.layout(max_q, max_k, is_causal, q.device)
        out, lse = block_sparse_attention_varlen(
            q[0], k[0], v[0], layout, of_query.offsets, of_key.offsets, max_q, max_k, is_causal=is_causal,
            segment_lengths=self._dilation[0], dilation_rates=self._dilation[1], dropout_p=dropout_p,
            backend=self.backend, deterministic=self.deterministic, return_lse=True,
        )  # fmt: skip
        attended = self._with_extra_keys(Attended(out[None], lse[None], None), q, dropout_p)
        return nested_like(query, self.out_proj(attended.out[0].flatten(1))), None

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Heads of the projected inputs, (..., num_heads, head_dim); of self-attention views of one product."""
        weight, n = self.in_proj_weight, self.embed_dim
        bias: Tensor | None = self.in_proj_bias
        if bias is not None and bias.dtype != query.dtype:  # which PyTorch adds, too
            bias = bias.to(query.dtype)
        if weight is None:
            weights: Sequence[Tensor] = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        elif query is key and key is value:
            return self._heads(F.linear(query, weight, bias).chunk(3, -1))
        elif key is value:
            of_q, of_kv = (None, None) if bias is None else (bias[:n], bias[n:])
            k, v = F.linear(key, weight[n:], of_kv).chunk(2, -1)
            return self._heads((F.linear(query, weight[:n], of_q), k, v))
        else:
            weights = weight.chunk(3)
        biases = (None, None, None) if bias is None else bias.chunk(3)
        return self._heads([F.linear(*each) for each in zip((query, key, value), weights, biases)])

    def _heads(self, projected: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)) for x in projected)
        return q, k, v

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, masks: Masks, is_causal: bool, need_weights: bool
    ) -> Attended:
        """Attention of (batch, length, num_heads, head_dim), to the extra keys too."""
        dropout_p = self.dropout if self.training else 0.0
        q_len, kv_len = q.shape[1], k.shape[1]
        kv_lengths = None
        if is_causal and q_len != kv_len:
            # query i sits at key i: the first q_len keys, or keys that do not count behind them
            k, v, masks = first_or_more(k, 1, q_len), first_or_more(v, 1, q_len), masks.of_keys(q_len)
            if q_len > kv_len:
                kv_lengths = torch.full((q.shape[0],), kv_len, dtype=torch.int32, device=q.device)
        backend = self.backend
        if (
            backend is None
            and masks.bias is not None
            and masks.bias.requires_grad
            and torch.is_grad_enabled()
        ):
            backend = "reference"  # the only one with a gradient for it
        attended = attend_to_pattern(
            q, k, v, self._pattern, is_causal=is_causal, need_weights=need_weights, backend=backend,
            key_padding_mask=masks.padding, attn_bias=masks.bias, kv_lengths=kv_lengths,
            segment_lengths=self._dilation[0], dilation_rates=self._dilation[1], dropout_p=dropout_p,
            deterministic=self.deterministic,
        )  # fmt: skip
        if attended.weights is not None and attended.weights.shape[-1] != kv_len:
            weights = first_or_more(attended.weights, -1, kv_len)
            attended = Attended(attended.out, attended.lse, weights)
        return self._with_extra_keys(attended, q, dropout_p)

    def _with_extra_keys(self, attended: Attended, q: Tensor, dropout_p: float) -> Attended:
        if self.bias_k is None and not self.add_zero_attn:
            return attended
        return with_extra_keys(attended, q, self.bias_k, self.bias_v, self.add_zero_attn, dropout_p)

    @property
    def _configs(self) -> Sequence[SparsePatternConfig]:
        one = self.sparse_config
        return (one,) if isinstance(one, SparsePatternConfig) else one

    @property
    def _keeps_all_blocks(self) -> bool:
        return all(config.sparsity_ratio == 1 and config.window_size is None for config in self._configs)

    @property
    def _depends_on_length(self) -> bool:
        """Whether tokens see other blocks in a longer sequence, without causality."""
        return any(config.sparsity_ratio != 1 and config.window_size is None for config in self._configs)


def multihead_attention(
    module: BlockSparseMultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    need_weights: bool,
    attn_mask: Tensor | None,
    average_attn_weights: bool,
    is_causal: bool,
) -> tuple[Tensor, Tensor | None]:
    """The forward of a module for tensors that are not nested: what ``__torch_function__`` of their types sees."""
    check_types_of_masks(attn_mask, key_padding_mask)
    is_batched = check_shapes(
        query, key, value, key_padding_mask, attn_mask, module.num_heads, module.embed_dim, module._qkv_same_embed_dim
    )  # fmt: skip
    if is_causal and attn_mask is not None:
        # PyTorch reads the mask where there are weights or padding; where every block is kept, that can be done too
        if module._keeps_all_blocks and (need_weights or key_padding_mask is not None):
            is_causal = False
        else:
            attn_mask = None

    q, k, v = module._projected(query, key, value)
    if not is_batched:
        q, k, v = q[None], k[None], v[None]
    elif not module.batch_first:
        q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
    masks = masks_of(attn_mask, key_padding_mask, q, k, query.dtype)
    attended = module._attend(q, k, v, masks, is_causal, need_weights)

    out = attended.out.flatten(2)
    if not is_batched:
        out = out[0]
    elif not module.batch_first:
        out = out.transpose(0, 1)
    weights = attended.weights
    if weights is not None:
        weights = (weights.mean(1) if average_attn_weights else weights).to(attended.out.dtype)
        weights = weights if is_batched else weights[0]
    return module.out_proj(out), weights


def does_nothing(module: nn.Module, args: Any) -> None:
    """A hook: with one on any of its modules, nn.TransformerEncoderLayer calls them, where in eval mode it would
    otherwise read their weights and compute dense attention itself."""


def check_layout_heads(layout_heads: int, num_heads: int) -> None:
    if layout_heads not in (1, num_heads):
        raise ValueError(
            f"sparse_config must be one config or one for each of num_heads {num_heads}, got {layout_heads}"
        )


def join_separate_projections(module: nn.MultiheadAttention, state_dict: dict[str, Any], prefix: str) -> None:
    """Rename the keys of modules with q_proj, k_proj and v_proj of their own to those of nn.MultiheadAttention."""
    for kind in ("weight", "bias"):
        names = [f"{prefix}{letter}_proj.{kind}" for letter in "qkv"]
        if not all(name in state_dict for name in names):
            continue
        parts = [state_dict.pop(name) for name in names]
        if kind == "bias" or module._qkv_same_embed_dim:
            state_dict[f"{prefix}in_proj_{kind}"] = torch.cat(parts)
        else:
            state_dict.update((f"{prefix}{letter}_proj_weight", part) for letter, part in zip("qkv", parts))
