"""What modules around a pattern have in common: the pattern, the token dilation and settings of the call, as attributes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .. import values
from ..config import SparsePatternConfig, TokenDilation, checked_configs, listed
from ..grid import BlockGrid
from ..layout.cache import LAYOUTS, Pattern
from ..layout.layout import BlockLayout
from ..validation.numbers import check_backend, checked_deterministic, checked_dropout, checked_scale


class PatternSettings:
    """The attributes `sparse_config`, `segment_lengths`, `dilation_rates`, `backend` and `deterministic`, and the layouts.

    What is assigned is checked, and applies from the next call on.
    """

    _deterministic: bool | None = None  # of a module saved by 0.3.0

    def _set_pattern(
        self,
        sparse_config: SparsePatternConfig | Sequence[SparsePatternConfig],
        segment_lengths: Sequence[int] | None,
        dilation_rates: Sequence[int] | None,
    ) -> None:
        """Check and set what is of the pattern; in the constructor."""
        self._segment_lengths: tuple[int, ...] | None = None
        self._dilation_rates: tuple[int, ...] | None = None
        self.sparse_config = sparse_config
        if segment_lengths is not None and dilation_rates is not None:
            segment_lengths = listed("segment_lengths", segment_lengths)
            dilation_rates = listed("dilation_rates", dilation_rates)
        TokenDilation.from_user(segment_lengths, dilation_rates, self.block_size)
        self._set_dilation(segment_lengths, dilation_rates)

    @property
    def sparse_config(self) -> SparsePatternConfig | Sequence[SparsePatternConfig]:
        """The pattern of all heads, or a tuple with one per head or kv head."""
        return self._sparse_config

    @sparse_config.setter
    def sparse_config(self, value: SparsePatternConfig | Sequence[SparsePatternConfig]) -> None:
        value = checked_configs(value)
        pattern = Pattern.of(value)
        check_dilation(self._segment_lengths, self._dilation_rates, pattern.block_size)
        self._sparse_config, self._pattern = value, pattern

    @property
    def segment_lengths(self) -> tuple[int, ...] | None:
        """Token dilation by distance, with `dilation_rates`."""
        return self._segment_lengths

    @segment_lengths.setter
    def segment_lengths(self, value: Sequence[int] | None) -> None:
        self._set_dilation(value, self._dilation_rates)

    @property
    def dilation_rates(self) -> tuple[int, ...] | None:
        """Token dilation by distance, with `segment_lengths`."""
        return self._dilation_rates

    @dilation_rates.setter
    def dilation_rates(self, value: Sequence[int] | None) -> None:
        self._set_dilation(self._segment_lengths, value)

    def _set_dilation(
        self, segment_lengths: Sequence[int] | None, dilation_rates: Sequence[int] | None
    ) -> None:
        """Set both. Assigned one after the other, they need not fit each other before the next call."""
        segments = None if segment_lengths is None else listed("segment_lengths", segment_lengths)
        rates = None if dilation_rates is None else listed("dilation_rates", dilation_rates)
        check_dilation(segments, rates, self.block_size)
        segments = None if segments is None else tuple(map(int, segments))
        rates = None if rates is None else tuple(map(int, rates))
        self._segment_lengths, self._dilation_rates = segments, rates
        # rates of 1 drop no key, and a call without dilation is cheaper
        is_trivial = (
            rates is not None and set(rates) == {1} and segments is not None and len(segments) == len(rates)
        )
        self._dilation = (None, None) if is_trivial else (segments, rates)

    @property
    def backend(self) -> str | None:
        """See `block_sparse_attention`."""
        return self._backend

    @backend.setter
    def backend(self, value: str | None) -> None:
        check_backend(value)
        self._backend = value

    @property
    def deterministic(self) -> bool | None:
        """See `block_sparse_attention`."""
        return self._deterministic

    @deterministic.setter
    def deterministic(self, value: bool | None) -> None:
        self._deterministic = None if value is None else checked_deterministic(value)

    def __prepare_scriptable__(self) -> Any:
        raise RuntimeError(
            f"{type(self).__name__} cannot be scripted by torch.jit.script; use torch.compile or torch.export"
        )

    @property
    def block_size(self) -> int:
        return self._pattern.block_size

    def layout(
        self,
        q_len: int,
        kv_len: int | None = None,
        causal: bool = False,
        device: torch.device | str | None = None,
    ) -> BlockLayout:
        """The layout for these lengths; built at first use and kept. Steps of decoding use a longer one with the same rows.

        Not inside of torch.compile, whose graphs look layouts up themselves: call it outside, and pass what it returns
        as `layout` to the call.
        """
        if torch.compiler.is_compiling():
            raise RuntimeError(
                f"{type(self).__name__}.layout cannot run inside of torch.compile; call it outside, and pass what it "
                "returns as layout=..., or leave it out: a compiled call finds its layout when it runs"
            )
        grid = BlockGrid(q_len, q_len if kv_len is None else kv_len, self.block_size, causal)  # checks them
        return LAYOUTS.find(self._pattern, grid.q_len, grid.kv_len, grid.causal, values.device(device))

    def clear_cache(self, captured: bool = False) -> None:
        """Drop the layouts kept for this `sparse_config`, whichever module they were built for.

        Args:
            captured: also those that CUDA graphs were captured with; only once these graphs are gone.
        """
        LAYOUTS.clear(self._pattern, captured)


class AttentionSettings(PatternSettings):
    """Also `dropout` and `softmax_scale`: of modules that do nothing but attend."""

    @property
    def dropout(self) -> float:
        """Attention dropout, in training mode only."""
        return self._dropout

    @dropout.setter
    def dropout(self, value: float) -> None:
        self._dropout = checked_dropout(value, "dropout")

    @property
    def softmax_scale(self) -> float | None:
        """None is ``1 / sqrt(head_dim)``."""
        return self._softmax_scale

    @softmax_scale.setter
    def softmax_scale(self, value: float | None) -> None:
        self._softmax_scale = checked_scale(value)


def check_dilation(
    segment_lengths: tuple[Any, ...] | None, dilation_rates: tuple[Any, ...] | None, block_size: int
) -> None:
    """Check each of the two by itself: they are assigned one after the other."""
    if segment_lengths is not None:
        TokenDilation.from_user(segment_lengths, [1] * len(segment_lengths), block_size)
    if dilation_rates is not None:
        segments = [block_size * i for i in range(1, len(dilation_rates) + 1)]
        TokenDilation.from_user(segments, dilation_rates, block_size)
