"""BlockSparseAttention: the base variant."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from ..backends.hopper import wants_schedule
from ..backends.reference import attention_weights
from ..config import SparsePatternConfig, TokenDilation, listed, with_shorthands
from ..functional import block_sparse_attention, make_problem, run_problem
from ..patterns.keep import plain_tensors
from ..patterns.layout import BlockLayout
from ..validation import check_backend, checked_dropout, checked_scale, refusal

# Decoding makes a layout per step: old ones go first.
CACHED_LAYOUTS = 32


# Modules by id, for `build_while_tracing`, whose arguments must be constants of the trace.
MODULES: weakref.WeakValueDictionary[int, BlockSparseAttention] = weakref.WeakValueDictionary()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def build_while_tracing(module_id: int, q_len: int, kv_len: int, causal: bool, device: torch.device) -> bool:
    """Put a layout of real tensors into a module's cache while torch.compile or torch.export trace a call."""
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        MODULES[module_id].build_layout(q_len, kv_len, causal, device)
    return True


class BlockSparseAttention(nn.Module):
    """Block-sparse attention of q, k and v. It has no parameters.

    Args:
        sparse_config: the pattern of all heads, or a sequence with one per head or kv head; a dict stands for a
            config of its items. Default ``SparsePatternConfig()``.
        segment_lengths, dilation_rates: token dilation by distance, see `block_sparse_attention`. Default: every
            key of an active block takes part, as with ``[2048], [1]``.
        dropout: attention dropout, in training mode only.
        softmax_scale: default ``1 / sqrt(head_dim)``.
        backend: see `block_sparse_attention`.
        device, dtype: taken as by every torch module; without effect, as there are no parameters.
        sparsity_ratio, block_size: shorthands that replace the fields of that name in `sparse_config`.

    Layouts are built once per lengths, causality and device and kept (at most 32; `clear_cache` drops them).

    Raises:
        ValueError, TypeError: an argument is out of its range or something else; the message names it.

    Example:
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
    ) -> None:
        del device, dtype
        super().__init__()
        self.sparse_config = with_shorthands(sparse_config, sparsity_ratio, block_size)
        segments = None if segment_lengths is None else listed("segment_lengths", segment_lengths)
        rates = None if dilation_rates is None else listed("dilation_rates", dilation_rates)
        self._dilation = TokenDilation.from_user(segments, rates, self.block_size)
        self.segment_lengths = None if segments is None else list(map(int, segments))
        self.dilation_rates = None if rates is None else list(map(int, rates))
        self.dropout = checked_dropout(dropout, "dropout")
        self.softmax_scale = checked_scale(softmax_scale)
        check_backend(backend)
        self.backend = backend
        self._layouts: OrderedDict[tuple[int, int, bool, torch.device], BlockLayout] = OrderedDict()
        MODULES[id(self)] = self

    @property
    def block_size(self) -> int:
        config = self.sparse_config
        return (config if isinstance(config, SparsePatternConfig) else config[0]).block_size

    def extra_repr(self) -> str:
        parts = [f"sparse_config={self.sparse_config}"]
        for name in ("segment_lengths", "dilation_rates", "softmax_scale", "backend"):
            if getattr(self, name) is not None:
                parts.append(f"{name}={getattr(self, name)!r}")
        return ", ".join(parts + ([f"dropout={self.dropout}"] if self.dropout else []))

    def layout(
        self,
        q_len: int,
        kv_len: int | None = None,
        causal: bool = False,
        device: torch.device | str | None = None,
    ) -> BlockLayout:
        """The layout used for these lengths; built once and kept."""
        target = torch.device("cpu" if device is None else device)
        key = (q_len, q_len if kv_len is None else kv_len, causal, target)
        if torch.compiler.is_compiling():
            # A layout belongs to one length. `range` turns lengths that the trace left open into numbers.
            key = (len(range(key[0])), len(range(key[1])), causal, target)
            build_while_tracing(id(self), *key)
        elif key not in self._layouts:
            self.build_layout(*key)
        return self._layouts[key]

    def build_layout(self, q_len: int, kv_len: int, causal: bool, device: torch.device) -> None:
        """Build a layout that `layout` will return, unless it is there."""
        key = (q_len, kv_len, causal, device)
        if key not in self._layouts:
            if len(self._layouts) >= CACHED_LAYOUTS:
                self._layouts.popitem(last=False)
            with plain_tensors():
                layout = BlockLayout.from_config(self.sparse_config, *key)
            layout.lists(self._dilation)  # so that a trace finds them made
            if wants_schedule(device, layout.block_size):
                layout.schedule(self._dilation)
            self._layouts[key] = layout

    def clear_cache(self) -> None:
        """Drop the layouts that were kept."""
        self._layouts.clear()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_layouts": OrderedDict()}

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        MODULES[id(self)] = self

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
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend.

        Args:
            q: (batch, q_len, num_heads, head_dim). k, v: (batch, kv_len, num_kv_heads, head_dim).
            is_causal: the last query sits at the last key and no query sees a later key. With q_len < kv_len
                this is decoding with a KV cache: the rows equal those of the full forward.
            key_padding_mask: bool (batch, kv_len), True where a key is padding. When decoding, pad on the left: the
                last query sits at the last key.
            return_attention_weights: also return the weights after dropout, dense: (batch, num_heads, q_len,
                kv_len), float32. Meant for looking at short sequences.
            kv_lengths: int (batch,), the number of valid keys of each batch element; not when decoding.

        Returns:
            out (batch, q_len, num_heads, v_head_dim), or (out, weights).
        """
        try:
            layout = self.layout(q.shape[1], k.shape[1], is_causal, q.device)
        except Exception as error:
            raise refusal(error, q, k, v, is_causal) from None
        dropout_p = self.dropout if self.training else 0.0
        if not return_attention_weights:
            return block_sparse_attention(
                q, k, v, layout, is_causal=is_causal, softmax_scale=self.softmax_scale, kv_lengths=kv_lengths,
                key_padding_mask=key_padding_mask, segment_lengths=self.segment_lengths,
                dilation_rates=self.dilation_rates, dropout_p=dropout_p, backend=self.backend,
            )  # fmt: skip
        problem = make_problem(
            q, k, v, layout, is_causal, self.softmax_scale, None, kv_lengths, key_padding_mask,
            self.segment_lengths, self.dilation_rates, dropout_p,
        )  # fmt: skip
        out, _, _ = run_problem(problem, self.backend)
        return out, attention_weights(problem)[0]
