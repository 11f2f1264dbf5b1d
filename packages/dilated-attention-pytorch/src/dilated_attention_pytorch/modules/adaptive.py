"""BlockSparseAdaptive: attention to blocks that a learned scorer chooses from the content."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import values
from ..adaptive_config import AdaptiveConfig
from ..config import SparsePatternConfig, takes, with_shorthands
from ..config_warnings import UnusedFieldWarning, warn_caller
from ..functional import block_sparse_attention
from ..grid import BlockGrid
from ..layout.budgets import Share, row_budgets
from ..layout.layout import BlockLayout
from ..layout.pooled import block_means, first_tokens, moved_to_front, valid_means, without_autocast
from ..layout.selection import check_pooled, select_blocks
from ..patterns.budget import written_ratio
from ..upstream.keywords import explains_old_keywords, refuse_old_keywords
from ..upstream.neighbours import refuse_unknown
from ..validation.call import check_call
from ..validation.numbers import check_flag, check_is_causal, checked_dropout, checked_scale
from ..values import shown
from .scorer import BlockScorer, LazyBlockScorer
from .settings import PatternSettings

DEFAULT = SparsePatternConfig()


class Padding(NamedTuple):
    """Which keys of a call are there. At least one of them is given."""

    mask: Tensor | None
    """`key_padding_mask`, bool (batch, kv_len)."""
    lengths: Tensor | None
    """`kv_lengths`, int (batch,)."""
    starts: Tensor | None
    """`kv_starts`, int (batch,)."""

    def valid(self, k: Tensor) -> Tensor:
        """Bool (batch, kv_len), from the first position of each batch element on."""
        place = torch.arange(k.shape[1], device=k.device)
        ends = (
            k.new_full((k.shape[0],), k.shape[1], dtype=torch.int64) if self.lengths is None else self.lengths
        )
        if self.starts is not None:
            ends = ends - self.starts
        valid = place < ends[:, None]
        if self.mask is None:
            return valid
        hidden = self.mask if self.starts is None else moved_to_front(self.mask, self.starts)
        return valid & ~hidden


class Compared(NamedTuple):
    """What the scores of a call are made of."""

    queries: Tensor
    """Features (batch, num_heads, n_rows, hidden_dim), divided by the temperature."""
    keys: Tensor
    """Features (batch, num_heads, hidden_dim, n_cols)."""
    has_keys: Tensor | None
    """Bool (batch, n_cols), which blocks have keys; None: all."""
    lengths: Tensor | None
    """int (batch,), the keys of each batch element; None: all."""
    grid: BlockGrid

    def scores(self) -> Tensor:
        """(batch, num_heads, n_rows, n_cols); blocks without keys have -inf."""
        with without_autocast(self.queries):
            scores = self.queries @ self.keys
        if self.has_keys is None:
            return scores
        return scores.masked_fill_(~self.has_keys[:, None, None], -torch.inf)

    def future(self, device: torch.device) -> Tensor:
        """Bool (n_rows, n_cols): what no row may know of, its own block too, whose later keys its queries do not see."""
        col = torch.arange(self.grid.n_cols, device=device)
        return col >= self.grid.diagonal(device)[:, None]


@explains_old_keywords
class BlockSparseAdaptive(PatternSettings, nn.Module):
    """Attention to the blocks that a learned scorer finds best, chosen in every call for each batch element and head.

    The scorer compares a vector for every block of queries with one for every block of keys: the mean of the keys, and the mean
    of the queries, or with ``is_causal=True`` the first query of the block, so that no query knows anything of later tokens.
    Before training these are products of queries and keys. The best blocks of each row are chosen, as many as
    `base_sparsity` grants, and always its own; the scorer is trained through the bias that the chosen blocks get.

    Args:
        sparse_config: `block_size` and `min_blocks`; and what is always kept beside the diagonal: the window of a config with
            `window_size`, the first blocks of one with `global_tokens` (which do not see everything here). Its
            `sparsity_ratio` is ``1 - base_sparsity``; of the two, one that differs from its default is taken. A dict stands
            for a config of its items. Default ``SparsePatternConfig()``.
        adaptive_config: how blocks are chosen, or a dict. Default ``AdaptiveConfig()``.
        segment_lengths: as of `BlockSparseAttention`.
        dilation_rates: as of `BlockSparseAttention`.
        num_heads: heads of q. Default: those of the first call, in which the weights are made then.
        head_dim: of q and k. Default likewise.
        embed_dim: stands for ``head_dim = embed_dim // num_heads``.
        dropout: attention dropout, in training mode only.
        softmax_scale: default ``1 / sqrt(head_dim)``. The products of the scorer are multiplied by it, too.
        backend: see `block_sparse_attention`.
        device: of the weights.
        dtype: of the weights. Scores are float32, or float64 of float64 inputs.
        sparsity_ratio: the fraction of blocks kept, instead of that of the configs.
        block_size: replaces the field of that name in `sparse_config`.
        deterministic: see `block_sparse_attention`. False changes nothing where the chosen blocks get a bias, as in training.

    Attributes:
        scorer (BlockScorer | LazyBlockScorer): the network.
        log_temperature (Tensor): the logarithm of the temperature, (1,), a parameter, or a buffer if it is not learnable.

    Nothing waits for a GPU, and calls can be captured in a CUDA graph, whose replays choose anew. Scores take 4 bytes for every
    pair of blocks, head and batch element (268 MB for 131,072 tokens, blocks of 64 and 16 heads).

    Raises:
        ValueError: an argument is out of its range, or two contradict each other; the message names them.
        TypeError: an argument has the wrong type; the message names it.

    Examples:
        >>> attention = BlockSparseAdaptive(SparsePatternConfig(block_size=16), num_heads=4, head_dim=32)
        >>> q = k = v = torch.randn(1, 256, 4, 32)
        >>> out, pattern = attention(q, k, v, is_causal=True, return_pattern=True)
        >>> out.shape, pattern["layout"].num_active_blocks <= 4 * 16 * 3
        (torch.Size([1, 256, 4, 32]), True)
    """

    def __init__(
        self,
        sparse_config: SparsePatternConfig | None = None,
        adaptive_config: AdaptiveConfig | Mapping[str, Any] | None = None,
        segment_lengths: Sequence[int] | None = None,
        dilation_rates: Sequence[int] | None = None,
        num_heads: int | None = None,
        head_dim: int | None = None,
        *,
        embed_dim: int | None = None,
        dropout: float = 0.0,
        softmax_scale: float | None = None,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        sparsity_ratio: float | None = None,
        block_size: int | None = None,
        deterministic: bool | None = None,
    ) -> None:
        super().__init__()
        config = one_config(with_shorthands(sparse_config, None, block_size))
        if sparsity_ratio is not None:
            config = dataclasses.replace(config, sparsity_ratio=sparsity_ratio)
        adaptive = checked_adaptive(adaptive_config)
        self._adaptive_config = with_one_ratio(config, adaptive, sparsity_ratio)
        # numbers of a module are constants of a compiled graph
        self._kept, self._kept_of, self._kept_above, _ = Share.of(self.adaptive_config.sparsity_ratio, 1)
        self._set_pattern(config, segment_lengths, dilation_rates)
        self.dropout = checked_dropout(dropout, "dropout")
        self.softmax_scale = checked_scale(softmax_scale)
        self.backend = backend
        self.deterministic = deterministic
        its = self.adaptive_config
        sizes = checked_sizes(num_heads, head_dim, embed_dim)
        network: dict[str, Any] = {
            "hidden_dim": its.hidden_dim, "num_layers": its.num_layers, "share_across_heads": its.share_across_heads,
            "device": device, "dtype": dtype,
        }  # fmt: skip
        self.scorer = LazyBlockScorer(**network) if sizes is None else BlockScorer(*sizes, **network)
        # one axis: fully_shard takes no parameters without dimensions
        log_temperature = torch.full((1,), math.log(its.temperature), device=device, dtype=dtype)
        if its.learnable_temperature:
            self.log_temperature: Tensor = nn.Parameter(log_temperature)
        else:
            self.register_buffer("log_temperature", log_temperature)
        self._compared: Compared | None = None  # of the last call in training, for get_sparsity_loss

    @property
    def adaptive_config(self) -> AdaptiveConfig:
        """How blocks are chosen; it stays as it is made."""
        return self._adaptive_config

    @property
    def num_heads(self) -> int | None:
        """Heads of q; None before the first call, if they were not given."""
        return self.scorer.num_heads or None

    @property
    def head_dim(self) -> int | None:
        """Of q and k; None before the first call, if it was not given."""
        return self.scorer.head_dim or None

    @property
    def temperature(self) -> Tensor:
        """What divides the scores, at least `min_temperature`. Assign a number to anneal it."""
        temperature = self.log_temperature.squeeze().exp()
        # a temperature below the least one still has a gradient, or it would stay there for good
        return (
            temperature + (temperature.clamp(min=self.adaptive_config.min_temperature) - temperature).detach()
        )

    @temperature.setter
    def temperature(self, value: float) -> None:
        self.log_temperature.detach().fill_(math.log(AdaptiveConfig(temperature=value).temperature))

    def layout(self, *args: Any, **kwargs: Any) -> BlockLayout:
        """There is none before a call."""
        raise RuntimeError(
            "the layout of BlockSparseAdaptive depends on q and k; call it with return_pattern=True, "
            "which also returns the layout"
        )

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        is_causal: bool = False,
        return_pattern: bool = False,
        *,
        key_padding_mask: Tensor | None = None,
        kv_lengths: Tensor | None = None,
        kv_starts: Tensor | None = None,
        **unknown: Any,
    ) -> Tensor | tuple[Tensor, dict[str, Any]]:
        """Choose blocks and attend to them.

        Args:
            q: (batch, q_len, num_heads, head_dim).
            k: (batch, kv_len, num_kv_heads, head_dim); num_kv_heads divides num_heads (GQA, MQA).
            v: (batch, kv_len, num_kv_heads, v_head_dim).
            is_causal: the last query sits at the last key and no query sees a key after it, nor does what it sees depend on
                a later token.
            return_pattern: also return what was chosen.
            key_padding_mask: bool (batch, kv_len), True where a key is padding.
            kv_lengths: int (batch,), where the valid keys of each batch element end.
            kv_starts: int (batch,), where they begin, and its blocks with them; needs q_len == kv_len.

        Where keys are padding and q_len == kv_len without `is_causal`, the queries there count as padding too. So a sequence that is
        padded gets the blocks that it gets alone, up to rounding.

        Returns:
            out (batch, q_len, num_heads, v_head_dim), or (out, pattern). The pattern is a dict: ``layout`` (BlockLayout),
            ``indices`` and ``counts`` (of `select_blocks`), and ``scores`` (batch, num_heads, n_rows, n_cols), without noise.
        """
        if unknown:
            refuse_unknown(unknown, "BlockSparseAdaptive.forward")
        if not torch.compiler.is_compiling():
            check_flag("return_pattern", return_pattern)
            check_is_causal(is_causal)
            self._check_call(q, k, kv_starts)
        padding = None
        if key_padding_mask is not None or kv_lengths is not None or kv_starts is not None:
            # the call checks its arguments itself, but these are read before it
            check_call(
                q, k, v, self._pattern, is_causal=is_causal, kv_lengths=kv_lengths, kv_starts=kv_starts,
                key_padding_mask=key_padding_mask,
            )  # fmt: skip
            padding = Padding(key_padding_mask, kv_lengths, kv_starts)
        compared = self._compare(q, k, is_causal, padding)
        if self.training and self.adaptive_config.sparsity_reg_weight and torch.is_grad_enabled():
            self._compared = compared
        scores = compared.scores()
        indices, counts = self._choose(scores, compared)
        bias = self._bias(scores, indices, compared)
        if padding is None and self._can_be_heads(k, bias):
            layout = layout_of(indices.flatten(0, 1)[None], counts.flatten(0, 1)[None], compared.grid)
            out = self._attend(
                as_heads(q), as_heads(k), as_heads(v), layout, is_causal=is_causal, block_bias=bias
            )
            out = as_elements(out, q.shape[0])
        else:
            layout = layout_of(indices, counts, compared.grid)
            out = self._attend(
                q, k, v, layout, is_causal=is_causal, block_bias=bias, kv_lengths=kv_lengths, kv_starts=kv_starts,
                key_padding_mask=key_padding_mask,
            )  # fmt: skip
        if not return_pattern:
            return out
        if layout.batch != q.shape[0]:
            layout = layout_of(indices, counts, compared.grid)
        return out, {"layout": layout, "indices": indices, "counts": counts, "scores": scores.detach()}

    def _can_be_heads(self, k: Tensor, bias: Tensor | None) -> bool:
        """Whether batch elements are to become heads of one element: not with a token dilation, which counts heads.

        Every backend serves that, and a CPU does not take the elements one by one then. With a bias the backends of a GPU take
        them as they are.
        """
        batch, kv_len, num_kv_heads, _ = k.shape
        is_worth_it = batch > 1 and (bias is None or k.device.type == "cpu")
        return is_worth_it and self._dilation == (None, None) and batch * num_kv_heads < 4 * kv_len

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, **options: Any) -> Tensor:
        """The call, with the settings of the module."""
        segment_lengths, dilation_rates = self._dilation
        out: Tensor = block_sparse_attention(
            q, k, v, layout, softmax_scale=self.softmax_scale, segment_lengths=segment_lengths,
            dilation_rates=dilation_rates, dropout_p=self.dropout if self.training else 0.0, backend=self.backend,
            deterministic=self.deterministic, **options,
        )  # fmt: skip
        return out

    def get_sparsity_loss(self) -> Tensor:
        """`sparsity_reg_weight` times the mean entropy of the rows' softmax over their blocks, from 0 (one block) to 1 (all alike).

        Of the last call in training mode, 0 before one. Add it to the loss before the backward: it makes the scorer decide: fewer blocks hold more
        of the softmax, so fewer of those that matter are left out, and `top_p` stops earlier. It makes the scores once more.
        """
        its, compared = self.adaptive_config, self._compared
        if compared is None or not its.sparsity_reg_weight:
            return self.log_temperature.new_zeros((), requires_grad=True)
        scores = compared.scores()
        if compared.grid.causal:
            scores = scores.masked_fill(compared.future(scores.device), -torch.inf)
        is_visible = scores > -torch.inf
        n_visible = is_visible.sum(-1)
        # a row of one block or none has nothing to choose
        scores = scores.masked_fill((n_visible == 0)[..., None], 0.0)
        log_share = scores.log_softmax(-1)
        entropy = -(log_share.exp() * log_share.masked_fill(~is_visible, 0.0)).sum(-1)
        counts = n_visible > 1
        share = entropy / n_visible.clamp(min=2).log()
        mean = share.masked_fill(~counts, 0.0).sum() / counts.sum().clamp(min=1)
        return its.sparsity_reg_weight * mean

    # ---- the parts of a call

    def _check_call(self, q: Tensor, k: Tensor, kv_starts: Tensor | None) -> None:
        check_pooled(q, k)
        for name, axis, wanted in (("num_heads", 2, self.num_heads), ("head_dim", 3, self.head_dim)):
            if wanted is not None and q.shape[axis] != wanted:
                raise ValueError(
                    f"q must have {name} {wanted}, which the scorer is for, got shape {tuple(q.shape)}"
                )
        if kv_starts is not None and q.shape[1] != k.shape[1]:
            raise ValueError(
                f"kv_starts needs q_len == kv_len, got {q.shape[1]} and {k.shape[1]}; pad on the right, or "
                "choose with select_blocks"
            )

    def _compare(self, q: Tensor, k: Tensor, is_causal: bool, padding: Padding | None) -> Compared:
        grid = BlockGrid(q.shape[1], k.shape[1], self.block_size, is_causal)
        size = grid.block_size
        valid = has_keys = lengths = None
        pooled_q, pooled_k = q, k
        if padding is not None:
            valid = padding.valid(k)
            place = torch.arange(1, grid.kv_len + 1, device=k.device)
            lengths = (valid * place).amax(1)
            if padding.starts is not None:
                pooled_q, pooled_k = moved_to_front(q, padding.starts), moved_to_front(k, padding.starts)
        if valid is None:
            keys = block_means(pooled_k, size, 0)
        else:
            keys, has_keys = valid_means(pooled_k, valid, size)
        if grid.causal:
            queries = first_tokens(pooled_q, grid)
        else:
            queries = block_means(pooled_q, size, 0)
            if valid is not None and grid.q_len == grid.kv_len:
                of_valid, has_queries = valid_means(pooled_q, valid, size)
                queries = torch.where(has_queries[:, :, None, None], of_valid, queries)
        of_queries, of_keys = self.scorer(queries, keys)
        scale = 1.0 / math.sqrt(q.shape[3]) if self.softmax_scale is None else self.softmax_scale
        return Compared(of_queries * (scale / self.temperature), of_keys, has_keys, lengths, grid)

    def _choose(self, scores: Tensor, compared: Compared) -> tuple[Tensor, Tensor]:
        """Indices and counts of `select_blocks`."""
        its, grid, config = self.adaptive_config, compared.grid, self.sparse_config
        if not isinstance(config, SparsePatternConfig):
            raise ValueError(f"sparse_config must be one config for all heads, got {shown(config)}")
        window, sinks = always_kept(config, grid.causal)
        kept = 1 + sinks + window * (1 if grid.causal else 2)
        least = max(config.least_blocks(grid.causal), min(kept, grid.n_cols))
        share = Share(self._kept, self._kept_of, self._kept_above, least)
        scores = scores.detach()
        if its.top_p is not None and grid.causal:
            # the share of a row's own block would depend on keys that its first queries do not see
            scores = scores.masked_fill(compared.future(scores.device), 0.0)
        if self.training and its.gumbel_noise:
            # minus the logarithm of an exponential variable is a Gumbel variable
            scores = torch.empty_like(scores).exponential_().log_().neg_().add_(scores)
        return select_blocks(
            scores, share.most(grid.n_cols), its.top_p, window=window, sinks=sinks, causal=grid.causal,
            row_budgets=row_budgets(share, grid, compared.lengths, scores.device),
        )  # fmt: skip

    def _bias(self, scores: Tensor, indices: Tensor, compared: Compared) -> Tensor | None:
        """The bias of every chosen block (1, 1, num_block_ids)."""
        is_hard = self.adaptive_config.hard_sparsity
        if is_hard and not (scores.requires_grad and torch.is_grad_enabled()):
            return None
        bias = scores.gather(-1, indices.clamp(min=0).long())
        grid = compared.grid
        if grid.causal:
            diagonal = grid.diagonal(scores.device)[:, None]
            bias = bias.masked_fill(indices >= diagonal, 0.0)  # whose mean knows of later keys
        if compared.has_keys is not None:
            bias = bias.masked_fill(bias == -torch.inf, 0.0)
        if is_hard:
            bias = bias - bias.detach()
        return bias.flatten()[None, None]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compared": None}  # no graph of autograd in copies

    def extra_repr(self) -> str:
        parts = [f"sparse_config={self.sparse_config}", f"adaptive_config={self.adaptive_config}"]
        for name in ("segment_lengths", "dilation_rates", "softmax_scale", "backend", "deterministic"):
            value = getattr(self, name)
            if value is not None:
                parts.append(f"{name}={list(value) if isinstance(value, tuple) else value!r}")
        return ", ".join(parts + ([f"dropout={self.dropout}"] if self.dropout else []))


def layout_of(indices: Tensor, counts: Tensor, grid: BlockGrid) -> BlockLayout:
    """The layout of chosen blocks."""
    return BlockLayout.from_indices(
        indices, counts, q_len=grid.q_len, kv_len=grid.kv_len, block_size=grid.block_size, causal=grid.causal
    )


def as_heads(x: Tensor) -> Tensor:
    """(batch, seq_len, heads, head_dim) as (1, seq_len, batch * heads, head_dim)."""
    return x.transpose(0, 1).flatten(1, 2)[None]


def as_elements(x: Tensor, batch: int) -> Tensor:
    """The inverse of `as_heads`, a view."""
    elements: Tensor = x[0].unflatten(1, (batch, -1))
    return elements.transpose(0, 1)


# ---- the arguments of the constructor


def one_config(config: SparsePatternConfig | Sequence[SparsePatternConfig]) -> SparsePatternConfig:
    """The config; warns of what has no effect where blocks are chosen."""
    if not isinstance(config, SparsePatternConfig):
        raise ValueError(
            f"sparse_config must be one config for all heads, got {len(config)}: every head chooses its blocks"
        )
    ignored = {"dilation_rates": None, "rotation": 0, "exact": False}
    for name, default in ignored.items():
        value = getattr(config, name)
        if value != default:
            warn_caller(
                f"{name} {value} of sparse_config has no effect: blocks are chosen from the content; leave it out",
                UnusedFieldWarning,
            )
    return config


def checked_adaptive(given: Any) -> AdaptiveConfig:
    """The config of an argument `adaptive_config`."""
    if given is None:
        return AdaptiveConfig()
    if isinstance(given, Mapping):
        refuse_old_keywords(given, "adaptive_config")
        fields = [field.name for field in dataclasses.fields(AdaptiveConfig)]
        for name in given:
            if name not in fields:
                raise ValueError(
                    f"adaptive_config has no field {shown(name)}; the fields are {', '.join(fields)}"
                )
        return AdaptiveConfig(**given)
    if not isinstance(given, AdaptiveConfig):
        raise TypeError(f"adaptive_config must be an AdaptiveConfig or a dict, got {shown(given)}")
    return given


def with_one_ratio(
    config: SparsePatternConfig, adaptive: AdaptiveConfig, sparsity_ratio: float | None
) -> AdaptiveConfig:
    """The config with the `base_sparsity` that all arguments agree on."""
    dropped = 1 - written_ratio(config.sparsity_ratio)
    if sparsity_ratio is None:
        if config.sparsity_ratio == DEFAULT.sparsity_ratio or dropped == 1 - adaptive.sparsity_ratio:
            return adaptive
        if adaptive.base_sparsity != AdaptiveConfig.base_sparsity:
            raise ValueError(
                f"sparsity_ratio {config.sparsity_ratio} of sparse_config (kept) and base_sparsity {adaptive.base_sparsity} of "
                "adaptive_config (dropped) do not add up to 1; leave one of them out"
            )
    return dataclasses.replace(adaptive, base_sparsity=dropped)  # type: ignore[arg-type]


def checked_sizes(num_heads: Any, head_dim: Any, embed_dim: Any) -> tuple[int, int] | None:
    """num_heads and head_dim; None where they are those of the first call."""
    given = {"num_heads": num_heads, "head_dim": head_dim, "embed_dim": embed_dim}
    sizes = {name: values.tokens(value) for name, value in given.items() if value is not None}
    for name, size in sizes.items():
        if size is None:
            raise values.wrong(
                values.integer(given[name]),
                f"{name} must be a number of at least 1, got {shown(given[name])}",
            )
    heads, dim, whole = (sizes.get(name) for name in given)
    if heads is None and dim is None and whole is None:
        return None
    if heads is None or (dim is None and whole is None):
        raise ValueError(
            f"num_heads and head_dim go together, got num_heads {heads} and head_dim {dim}; pass both, or neither: the "
            "first call makes the weights then"
        )
    if whole is not None:
        if whole % heads or dim not in (None, whole // heads):
            raise ValueError(f"embed_dim must be num_heads * head_dim, got {whole}, {heads} and {dim}")
        dim = whole // heads
    assert dim is not None  # for mypy
    return heads, dim


def always_kept(config: SparsePatternConfig, causal: bool) -> tuple[int, int]:
    """Blocks before the diagonal one (if not causal as many after it), and first columns, that every row keeps."""
    size = config.block_size
    window = 0
    if config.window_size is not None:
        window = -(-config.window_size // (size if causal else 2 * size))
    sinks = -(-config.global_tokens // size) if takes(config.pattern_type, "global_tokens") else 0
    return window, sinks
