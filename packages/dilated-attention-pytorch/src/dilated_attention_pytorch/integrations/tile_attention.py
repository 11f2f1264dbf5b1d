"""TileAttention: block-sparse attention of the tokens of a video, with or without text tokens beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .. import _torch_internals, values
from ..caching import make_to_stay
from ..config import check_block_size, checked_ratio
from ..functional import block_sparse_attention
from ..layout.layout import BlockLayout
from ..layout.selection import block_scores, select_blocks
from ..layout.tile_order import TileOrder, checked_triple, checked_windows
from ..sdpa import Masks, masks_of_four_axes
from ..validation.numbers import check_backend, checked_deterministic

MAX_READY = 8  # orders that are kept, each with its layout


class Ready(NamedTuple):
    """What is kept for one video: its order, and the layout of its windows."""

    order: TileOrder
    block_size: int
    layout: BlockLayout | None


class Kept:
    """The `Ready` of each kind of call as an attribute, which torch.compile can guard; the oldest goes first."""


class TileAttention:
    """Which tokens of a video see one another, and the attention that follows from it.

    The tokens are brought into the order of `TileOrder`. Then either every tile sees a window of tiles around itself
    (sliding tile attention, arXiv:2502.04507), or the blocks with the highest scores are chosen for every batch element
    and head (`block_scores`, `select_blocks`). Text tokens see all and are seen by all.

    Args:
        grid: tokens of the video along (frames, height, width). None: `set_block_sparse_attention` reads them from the latents
            of every call.
        tile: tokens of a tile along the three axes.
        window: tiles that a tile sees along the three axes, itself included; or such a triple for every head.
        sparsity_ratio: without a window: the fraction of the blocks of the video that a block sees, 0 < ratio <= 1, rounded
            down, at least one.
        top_p: without a window: a block sees the best blocks until the softmax of its scores adds up to this; with
            `sparsity_ratio` no more than that allows.
        block_size: tokens per block side, a power of two from 16 to 256. Default: the largest up to 128 that divides a tile.
        text_first: whether text tokens come before those of the video. None: `set_block_sparse_attention` knows it of the
            models that it names; elsewhere text tokens raise an error.
        backend: see `block_sparse_attention`.
        deterministic: see `block_sparse_attention`.

    Raises:
        ValueError: an argument is out of its range, or neither or both ways to choose are given.

    Examples:
        >>> attention = TileAttention((4, 8, 8), window=(1, 1, 1))
        >>> q = k = v = torch.randn(1, 256, 2, 32)
        >>> attention(q, k, v).shape
        torch.Size([1, 256, 2, 32])
    """

    def __init__(
        self,
        grid: Sequence[int] | None = None,
        *,
        tile: Sequence[int] = (4, 4, 4),
        window: Sequence[int] | Sequence[Sequence[int]] | None = None,
        sparsity_ratio: float | None = None,
        top_p: float | None = None,
        block_size: int | None = None,
        text_first: bool | None = None,
        backend: str | None = None,
        deterministic: bool | None = None,
    ) -> None:
        self.grid = None if grid is None else checked_triple("grid", grid, "tokens")
        self.tile = checked_triple("tile", tile, "tokens")
        if (window is None) == (sparsity_ratio is None and top_p is None):
            given = f"window={window}, sparsity_ratio={sparsity_ratio} and top_p={top_p}"
            raise ValueError(
                f"window, or sparsity_ratio and top_p, say which tiles a tile sees, got {given}; use e.g. window=(3, 3, 3) "
                "or sparsity_ratio=0.1"
            )
        self.windows = None if window is None else checked_windows(window)
        self.sparsity_ratio = None if sparsity_ratio is None else checked_ratio(sparsity_ratio)
        self.top_p = None if top_p is None else values.number(top_p)
        if top_p is not None and (self.top_p is None or not 0.0 < self.top_p <= 1.0):
            raise values.wrong(self.top_p, f"top_p must be over 0 and at most 1, got {values.shown(top_p)}")
        self.block_size = None if block_size is None else check_block_size(block_size)
        if block_size is None:
            TileOrder(1, 1, 1, self.tile).block_size()  # raises where none divides the tile
        self.text_first = None if text_first is None else values.flag(text_first)
        if text_first is not None and self.text_first is None:
            raise TypeError(f"text_first must be True, False or None, got {values.shown(text_first)}")
        check_backend(backend)
        self.backend = backend
        self.deterministic = None if deterministic is None else checked_deterministic(deterministic)
        self._kept = Kept()

    def __repr__(self) -> str:
        names = (
            "grid", "tile", "windows", "sparsity_ratio", "top_p", "block_size", "text_first", "backend",
            "deterministic",
        )  # fmt: skip
        given = ((name, getattr(self, name)) for name in names)
        return f"TileAttention({', '.join(f'{name}={value}' for name, value in given if value is not None)})"

    def __reduce__(self) -> tuple[Any, ...]:
        state = {name: value for name, value in self.__dict__.items() if name != "_kept"}
        return of_state, (state,)

    # ---- the call

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
    ) -> Tensor:
        """Attention of the tokens of a video in raster order, and of text tokens before or behind them.

        Args:
            q: (batch, seq_len, num_heads, head_dim); seq_len is the video and the text.
            k: (batch, seq_len, num_kv_heads, head_dim).
            v: (batch, seq_len, num_kv_heads, v_head_dim).
            attn_mask: as of `scaled_dot_product_attention`: bool, True where a query sees a key, or floating point, added to
                the scores; broadcastable to (batch, num_heads, seq_len, seq_len). One that differs between queries takes as
                much memory as dense scores.
            dropout_p: probability with which an attention weight is dropped.
            softmax_scale: default ``1 / sqrt(head_dim)``.

        Returns:
            (batch, seq_len, num_heads, v_head_dim), in the order of q.

        Raises:
            ValueError: the tokens are not those of the grid; the message says what to pass.
        """
        n_text = self._check_tokens(q, k)
        ready = self._ready(n_text, q.device)
        order, text_first = ready.order, bool(self.text_first)
        masks = masks_of_video(order, attn_mask, q, n_text, text_first)
        # blocks that each batch element chooses are those of a head where elements are heads of one: every backend serves it
        as_heads = ready.layout is None and attn_mask is None and q.shape[0] > 1
        q_video, keys, values_ = (
            batch_as_heads(x.transpose(0, 1), order, n_text, text_first, with_text)
            if as_heads
            else tiles_and_text(order, x, n_text, text_first, 1, with_text)
            for x, with_text in ((q, False), (k, True), (v, True))
        )
        layout = ready.layout
        if layout is None:
            layout = self._chosen(q_video, keys, order, ready.block_size, softmax_scale)
        out = block_sparse_attention(
            q_video, keys, values_, layout, dropout_p=dropout_p, softmax_scale=softmax_scale, backend=self.backend,
            attn_bias=masks.attn_bias, key_padding_mask=masks.key_padding_mask, deterministic=self.deterministic,
        )  # fmt: skip
        if as_heads:  # (tokens, batch, num_heads, v_head_dim)
            video = order.to_raster(out[0].unflatten(1, (q.shape[0], -1)), 0).transpose(0, 1)
        else:
            video = order.to_raster(out)
        if not n_text:
            return video
        q_text = parted(q, n_text, text_first, 1)[1]
        text = dense_rows(q_text, k, v, text_rows(attn_mask, n_text, text_first), dropout_p, softmax_scale)
        return torch.cat([text, video] if text_first else [video, text], 1)

    def _check_tokens(self, q: Tensor, k: Tensor) -> int:
        """The number of text tokens; ValueError where the tokens are not those of a video."""
        if self.grid is None:
            raise ValueError(
                "grid must be known before the attention runs, got None; pass grid=(frames, height, width) in tokens, or "
                "use set_block_sparse_attention(model, ...), which reads it from the latents"
            )
        frames, height, width = self.grid
        n_text = q.shape[1] - frames * height * width
        if n_text < 0 or k.shape[1] != q.shape[1]:
            raise ValueError(
                f"q and k must hold the {frames} x {height} x {width} tokens of grid, got {q.shape[1]} queries and "
                f"{k.shape[1]} keys; leave this layer out (layers=...), or pass the grid of its tokens"
            )
        if n_text and self.text_first is None:
            raise ValueError(
                f"text_first must say where the {n_text} tokens beside the {frames} x {height} x {width} of the video are, "
                "got None; pass text_first=True (before the video) or False (behind it)"
            )
        return n_text

    def _ready(self, n_text: int, device: torch.device) -> Ready:
        """What this video and device need. In torch.compile it is made while the graph is traced: a constant of the graph."""
        assert self.grid is not None
        frames, height, width = self.grid
        name = f"{frames}x{height}x{width}+{n_text}@{device}"
        self._make_ready(name)
        made: Ready = getattr(self._kept, name)
        return made

    @_torch_internals.constant_in_graphs
    def _make_ready(self, name: str) -> bool:
        kept = self._kept.__dict__
        if name in kept:
            return True
        shape, _, device = name.partition("@")
        video, _, n_text = shape.partition("+")
        frames, height, width = map(int, video.split("x"))
        order = TileOrder(frames, height, width, self.tile)
        size = order.block_size() if self.block_size is None else self.block_size
        layout = None
        if self.windows is not None:
            target = torch.device(device)
            windows, text_tokens = self.windows, int(n_text)
            layout = make_to_stay(
                target,
                lambda: order.window_layout(windows, size, text_tokens=text_tokens, device=target),
            )
        while len(kept) >= MAX_READY:
            kept.pop(next(iter(kept)), None)
        kept[name] = Ready(order, size, layout)
        return True

    def _chosen(
        self, q: Tensor, keys: Tensor, order: TileOrder, block_size: int, softmax_scale: float | None
    ) -> BlockLayout:
        """The layout of the best blocks of the video for q, in tile order, and of all blocks with text."""
        n_video, n_keys = order.num_tokens, keys.shape[1]
        most, top_p = self._limits(f"{-(-n_video // block_size)}").split(",")
        with torch.no_grad():
            scores = block_scores(q, keys[:, :n_video], block_size, softmax_scale=softmax_scale)
            indices, _ = select_blocks(scores, int(most) if most else None, float(top_p) if top_p else None)
            if n_keys > n_video:  # all that is not chosen is -1, and dropped
                of_text = torch.arange(
                    n_video // block_size, -(-n_keys // block_size), dtype=indices.dtype, device=q.device
                )
                indices = torch.cat([indices, of_text.expand(*indices.shape[:-1], -1)], -1)
            return BlockLayout.from_indices(indices, q_len=n_video, kv_len=n_keys, block_size=block_size)

    @_torch_internals.constant_in_graphs
    def _limits(self, n_blocks: str) -> str:
        """The most blocks of a row, and their share, empty for none: a text, as torch.compile may make symbols of numbers."""
        if self.sparsity_ratio is None:
            return f",{self.top_p}"
        exact = values.written(self.sparsity_ratio)
        assert exact is not None
        most = max(1, exact.numerator * int(n_blocks) // exact.denominator)
        return f"{most},{'' if self.top_p is None else self.top_p}"


def of_state(state: dict[str, Any]) -> TileAttention:
    """A copy or an unpickled one; it has none of what was kept."""
    made = TileAttention.__new__(TileAttention)
    made.__dict__.update(state, _kept=Kept())
    return made


def parted(x: Tensor, n_text: int, text_first: bool, dim: int) -> tuple[Tensor, Tensor]:
    """The tokens of the video and those of the text."""
    n_video = x.shape[dim] - n_text
    if text_first:
        return x.narrow(dim, n_text, n_video), x.narrow(dim, 0, n_text)
    return x.narrow(dim, 0, n_video), x.narrow(dim, n_video, n_text)


def tiles_and_text(
    order: TileOrder, x: Tensor, n_text: int, text_first: bool, dim: int, with_text: bool = True
) -> Tensor:
    """The tokens of the video in tile order, and the text behind them."""
    video, text = parted(x, n_text, text_first, dim)
    video = order.to_tiles(video, dim)
    return torch.cat([video, text], dim) if n_text and with_text else video


def batch_as_heads(x: Tensor, order: TileOrder, n_text: int, text_first: bool, with_text: bool) -> Tensor:
    """(1, tokens, batch * heads, head_dim) of (tokens, batch, heads, head_dim), as `tiles_and_text`; no copy more than there."""
    return tiles_and_text(order, x, n_text, text_first, 0, with_text).flatten(1, 2)[None]


def masks_of_video(
    order: TileOrder, attn_mask: Tensor | None, q: Tensor, n_text: int, text_first: bool
) -> Masks:
    """The mask of the video's queries, in tile order."""
    if attn_mask is None:
        return Masks()
    mask = attn_mask[(None,) * (4 - attn_mask.dim())]  # (batch or 1, heads or 1, seq_len or 1, seq_len or 1)
    if mask.shape[2] > 1:
        mask = order.to_tiles(parted(mask, n_text, text_first, 2)[0], 2)
    if mask.shape[3] > 1:
        mask = tiles_and_text(order, mask, n_text, text_first, 3)
    return masks_of_four_axes(mask, q, q.shape[1])


def text_rows(attn_mask: Tensor | None, n_text: int, text_first: bool) -> Tensor | None:
    """The mask of the text's queries, whose keys are in the order of the call."""
    if attn_mask is None or attn_mask.dim() < 2 or attn_mask.shape[-2] == 1:
        return attn_mask
    return parted(attn_mask, n_text, text_first, attn_mask.dim() - 2)[1]


def dense_rows(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, dropout_p: float, scale: float | None
) -> Tensor:
    """The text's queries see all keys; tensors (batch, seq_len, heads, head_dim)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    is_grouped = q.shape[1] != k.shape[1]
    out = scaled_dot_product_attention(
        q, k, v, attn_mask, dropout_p=dropout_p, scale=scale, enable_gqa=is_grouped
    )
    return out.transpose(1, 2)
