"""What a user may ask for: the sparse pattern and the token dilation."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal, get_args

from .removed import raise_removed_variant

PatternType = Literal["dilated_sparse", "local_window", "global_local"]
PATTERN_TYPES: tuple[str, ...] = get_args(PatternType)
BLOCK_SIZES = (16, 32, 64, 128, 256)


def is_int(value: object) -> bool:
    """True for an int that is not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_block_size(block_size: int) -> None:
    """Raise ValueError unless `block_size` is a power of two from 16 to 256."""
    if not is_int(block_size) or block_size not in BLOCK_SIZES:
        raise ValueError(f"block_size must be one of {BLOCK_SIZES}, got {block_size!r}")


@dataclass(frozen=True)
class SparsePatternConfig:
    """Which blocks of the attention matrix are kept.

    Args:
        pattern_type: ``"dilated_sparse"`` (the diagonal, then blocks at multiples of `dilation_rates`),
            ``"local_window"`` (the nearest blocks) or ``"global_local"`` (a few blocks that see and are seen
            by all, and a local window).
        block_size: tokens per block side, a power of two from 16 to 256.
        sparsity_ratio: the fraction of block pairs **kept**, 0 < ratio <= 1, of those that dense attention
            with the same lengths and causality computes. 0.01 is 99 % sparse. Honoured exactly, as a running
            total over the rows; every row keeps at least its diagonal block.
        window_size: tokens, for ``local_window`` and ``global_local``: keep the blocks within
            ``(window_size // block_size) // 2`` of the diagonal, whatever the ratio. None: the ratio decides.
        global_tokens: tokens at the start of the sequence that attend to all and are attended by all, rounded
            up to blocks. Only for ``global_local``.
        dilation_rates: in blocks, for ``dilated_sparse``. None: the powers of two up to the sequence, so that
            every scale is present whatever the length.

    Raises:
        ValueError: an argument is out of its range, or does not belong to the pattern; the message names it.

    Example:
        >>> config = SparsePatternConfig(sparsity_ratio=0.01, dilation_rates=[1, 2, 4, 8])
        >>> config.pattern_type, config.dilation_rates
        ('dilated_sparse', (1, 2, 4, 8))
    """

    pattern_type: PatternType = "dilated_sparse"
    block_size: int = 64
    sparsity_ratio: float = 0.1
    window_size: int | None = None
    global_tokens: int = 0
    dilation_rates: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if str(self.pattern_type) == "hierarchical":
            raise_removed_variant()
        if self.pattern_type not in PATTERN_TYPES:
            raise ValueError(f"pattern_type must be one of {PATTERN_TYPES}, got {self.pattern_type!r}")
        check_block_size(self.block_size)
        ratio = self.sparsity_ratio
        if not isinstance(ratio, (int, float)) or isinstance(ratio, bool) or not 0 < ratio <= 1:
            raise ValueError(
                f"sparsity_ratio must be the fraction of blocks kept, 0 < ratio <= 1, got {ratio!r}; "
                "for 99 % sparse use 0.01"
            )
        if self.window_size is not None:
            if self.pattern_type == "dilated_sparse":
                raise ValueError(
                    f"window_size does not apply to pattern_type='dilated_sparse', got {self.window_size!r}; "
                    "use 'local_window' or 'global_local', or leave it out"
                )
            if not is_int(self.window_size) or self.window_size < 1:
                raise ValueError(f"window_size must be a positive number of tokens, got {self.window_size!r}")
        if not is_int(self.global_tokens) or self.global_tokens < 0:
            raise ValueError(f"global_tokens must be a number of tokens >= 0, got {self.global_tokens!r}")
        if self.global_tokens and self.pattern_type != "global_local":
            raise ValueError(
                f"global_tokens does not apply to pattern_type={self.pattern_type!r}, "
                f"got {self.global_tokens}; use 'global_local', or leave it out"
            )
        if self.dilation_rates is not None:
            rates = tuple(self.dilation_rates)
            if self.pattern_type != "dilated_sparse":
                raise ValueError(
                    f"dilation_rates does not apply to pattern_type={self.pattern_type!r}, got {rates}; "
                    "use 'dilated_sparse', or leave it out"
                )
            if not rates or not all(is_int(rate) and rate >= 1 for rate in rates):
                raise ValueError(
                    f"dilation_rates must be positive numbers of blocks, got {rates}; use e.g. [1, 2, 4, 8]"
                )
            object.__setattr__(self, "dilation_rates", rates)


@dataclass(frozen=True)
class TokenDilation:
    """Which keys of an active block take part, by the distance of the block (LongNet's idea, on keys).

    Pairs ``(segment_lengths[k], dilation_rates[k])``: for an active block pair at distance
    ``d = |I - J| * block_size`` the first pair with ``segment_lengths[k] > d`` rules, the last one covers
    everything farther; only the keys ``j`` with ``j mod rate == head mod rate`` take part.

    Source: LongNet, arXiv:2307.02486.
    """

    segment_lengths: tuple[int, ...]
    dilation_rates: tuple[int, ...]

    @classmethod
    def from_user(
        cls, segment_lengths: Sequence[int] | None, dilation_rates: Sequence[int] | None, block_size: int
    ) -> TokenDilation | None:
        """Check what a user passed; None when every key of an active block takes part.

        Raises:
            ValueError: lengths differ or are not ascending, a segment length is no multiple of `block_size`, or
                a rate does not divide `block_size`.
        """
        if segment_lengths is None and dilation_rates is None:
            return None
        if segment_lengths is None or dilation_rates is None:
            missing = "segment_lengths" if segment_lengths is None else "dilation_rates"
            raise ValueError(
                f"segment_lengths and dilation_rates go together, {missing} is None; pass both or neither"
            )
        for name, given in (("segment_lengths", segment_lengths), ("dilation_rates", dilation_rates)):
            if isinstance(given, str | bytes | Set | Mapping) or not isinstance(given, Iterable):
                raise TypeError(f"{name} must be a list or tuple of int, got {given!r}")
        segments, rates = tuple(segment_lengths), tuple(dilation_rates)
        if len(segments) != len(rates) or not segments:
            raise ValueError(
                f"segment_lengths and dilation_rates must have the same length >= 1, got {list(segments)} and {list(rates)}"
            )
        for segment in segments:
            if not is_int(segment) or segment < 1 or segment % block_size:
                raise ValueError(
                    f"segment_lengths must be multiples of block_size {block_size}, got {segment!r} in {list(segments)}"
                )
        if any(a >= b for a, b in itertools.pairwise(segments)):
            raise ValueError(f"segment_lengths must be ascending, got {list(segments)}")
        for rate in rates:
            if not is_int(rate) or rate < 1 or block_size % rate:
                raise ValueError(
                    f"dilation_rates must divide block_size {block_size}, got {rate!r} in {list(rates)}"
                )
        return None if set(rates) == {1} else cls(segments, rates)
