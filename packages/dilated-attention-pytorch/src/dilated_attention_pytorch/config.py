"""What a user may ask for: the sparse pattern and the token dilation."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from . import values
from .removed import raise_removed_variant
from .values import shown

PatternType = Literal["dilated_sparse", "local_window", "global_local"]
PATTERN_TYPES: tuple[str, ...] = get_args(PatternType)
# The fields that only some patterns have, and which those are.
TAKEN_BY: dict[str, tuple[PatternType, ...]] = {
    "window_size": ("local_window", "global_local"),
    "global_tokens": ("global_local",),
    "dilation_rates": ("dilated_sparse",),
    "rotation": ("dilated_sparse",),
}
BLOCK_SIZES = (16, 32, 64, 128, 256)


def check_block_size(block_size: Any) -> int:
    """The block size as an int; ValueError unless it is a power of two from 16 to 256."""
    size = values.integer(block_size)
    if size not in BLOCK_SIZES:
        raise ValueError(f"block_size must be one of {BLOCK_SIZES}, got {shown(block_size)}")
    return size


def closest(name: str, choices: Iterable[str], what: str) -> str:
    """The end of a message about a misspelt name: the nearest of the choices, if one is near, and all of them."""
    choices = list(choices)
    near = difflib.get_close_matches(name, choices, n=1)
    return (f"; did you mean {near[0]!r}? The " if near else "; the ") + f"{what} are {', '.join(choices)}"


def takes(pattern_type: str, field: str) -> bool:
    """Whether a pattern has this field of TAKEN_BY."""
    return pattern_type in TAKEN_BY[field]


@dataclass(frozen=True)
class SparsePatternConfig:
    """Which blocks of the attention matrix are kept.

    Args:
        pattern_type: ``"dilated_sparse"`` (the own block, a link to the next, blocks at multiples of `dilation_rates`),
            ``"local_window"`` (the nearest blocks) or ``"global_local"`` (a few blocks that see and are seen
            by all, and a local window).
        block_size: tokens per block side, a power of two from 16 to 256.
        sparsity_ratio: the fraction of block pairs **kept**, 0 < ratio <= 1, of those that dense attention
            with the same lengths and causality computes. 0.01 is 99 % sparse. Honoured exactly, as a running
            total over the rows, wherever it pays for `min_blocks` in every row. A float is read as the decimal that
            was written, `fractions.Fraction` and `decimal.Decimal` as what they are.
        window_size: tokens, for ``local_window`` and ``global_local``, whatever the ratio; rounded up to blocks.
            Causal: every query sees at least so many past tokens. Else half of them to each side. None: the ratio
            decides.
        global_tokens: tokens at the start of the sequence that attend to all and are attended by all, rounded
            up to blocks. Only for ``global_local``, which has one such block at least.
        dilation_rates: in blocks, for ``dilated_sparse``. None: the powers of two up to the sequence. Of causal
            layouts with at least 3 blocks a row each of them up to half the sequence occurs.
        min_blocks: the least that a row keeps, as far as it has so many, whatever the ratio: a ratio alone leaves
            short and causal sequences with their own blocks only. Not beside window_size, which decides alone. None: 3 for causal ``dilated_sparse``, else 2.
            `BlockLayout.stats` says the density that results. 1: the ratio alone.
        rotation: for ``dilated_sparse``: every row begins so many offsets later in its round of scales. Heads with
            rotations 0, 1, 2, ... see other scales each, where a row keeps some of its round but not all, and cover a
            sequence together in fewer layers; `sparse_config` is then a list with a config for each head.

    Numbers may be of NumPy, lists one-dimensional arrays.

    Raises:
        ValueError: an argument is out of its range, or does not belong to the pattern; the message names it.

    Examples:
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
    min_blocks: int | None = None
    rotation: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.pattern_type, str) or self.pattern_type not in PATTERN_TYPES:
            if isinstance(self.pattern_type, str) and str(self.pattern_type) == "hierarchical":
                raise_removed_variant()
            raise ValueError(f"pattern_type must be one of {PATTERN_TYPES}, got {shown(self.pattern_type)}")
        self._set("block_size", check_block_size(self.block_size))
        self._set("sparsity_ratio", checked_ratio(self.sparsity_ratio))
        if self.window_size is not None:
            self._check_window(self.window_size)
        self._check_global_tokens()
        if self.dilation_rates is not None:
            self._check_dilation_rates(self.dilation_rates)
        if self.min_blocks is not None:
            blocks = values.tokens(self.min_blocks)
            if blocks is None:
                raise ValueError(
                    f"min_blocks must be a positive number of blocks per row, got {shown(self.min_blocks)}; "
                    "use 1 for the ratio alone, or None for the default"
                )
            if self.window_size is not None:
                raise ValueError(
                    f"min_blocks does not apply where window_size is given, which decides alone, got min_blocks {blocks} "
                    f"and window_size {self.window_size}; leave one of them out"
                )
            self._set("min_blocks", blocks)

        turns = values.integer(self.rotation)
        if turns is None or not 0 <= turns <= values.MAX_TOKENS:
            raise ValueError(f"rotation must be a number of offsets >= 0, got {shown(self.rotation)}")
        if turns:
            self._check_taken("rotation", str(turns))
        self._set("rotation", turns)

    def least_blocks(self, causal: bool) -> int:
        """`min_blocks`, or its default: 3 for causal ``dilated_sparse``, else 2."""
        if self.min_blocks is not None:
            return self.min_blocks
        return 3 if causal and self.pattern_type == "dilated_sparse" else 2

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_taken(self, field: str, as_given: str) -> None:
        if not takes(self.pattern_type, field):
            patterns = " or ".join(map(repr, TAKEN_BY[field]))
            raise ValueError(
                f"{field} does not apply to pattern_type={self.pattern_type!r}, got {as_given}; "
                f"use {patterns}, or leave it out"
            )

    def _check_window(self, window_size: Any) -> None:
        self._check_taken("window_size", shown(window_size))
        tokens = values.tokens(window_size)
        if tokens is None:
            raise ValueError(f"window_size must be a positive number of tokens, got {shown(window_size)}")
        self._set("window_size", tokens)

    def _check_global_tokens(self) -> None:
        tokens = values.integer(self.global_tokens)
        if tokens is None or not 0 <= tokens <= values.MAX_TOKENS:
            raise ValueError(
                f"global_tokens must be a number of tokens >= 0, got {shown(self.global_tokens)}"
            )
        if tokens:
            self._check_taken("global_tokens", str(tokens))
        self._set("global_tokens", tokens)

    def _check_dilation_rates(self, dilation_rates: Any) -> None:
        given = values.items(dilation_rates)
        as_given = shown(dilation_rates if given is None else given)
        self._check_taken("dilation_rates", as_given)
        rates = tuple(map(values.tokens, given or ()))
        if not rates or None in rates:
            raise ValueError(
                f"dilation_rates must be positive numbers of blocks, got {as_given}; use e.g. [1, 2, 4, 8]"
            )
        self._set("dilation_rates", rates)


def checked_ratio(ratio: Any) -> float:
    """The ratio as the float of the decimal that was written; a fraction that no float writes stays one."""
    exact = values.written(ratio)
    if exact is None or not 0 < exact <= 1:
        raise ValueError(
            f"sparsity_ratio must be the fraction of blocks kept, 0 < ratio <= 1, got {shown(ratio)}; "
            "for 99 % sparse use 0.01"
        )
    nearest = float(exact)
    return nearest if values.written(nearest) == exact else exact  # type: ignore[return-value]


def checked_configs(
    given: Any, name: str = "sparse_config"
) -> SparsePatternConfig | tuple[SparsePatternConfig, ...]:
    """A config, or a tuple with one per head, of what a user passed; a dict stands for a config of its items."""
    if isinstance(given, SparsePatternConfig):
        return given
    if isinstance(given, Mapping):
        return config_of_dict(given, name)
    configs = values.items(given)
    if not configs or not all(isinstance(item, (SparsePatternConfig, Mapping)) for item in configs):
        raise ValueError(
            f"{name} must be a SparsePatternConfig or a sequence of them, got {shown(given)}; "
            "use e.g. SparsePatternConfig(sparsity_ratio=0.1)"
        )
    return tuple(config_of_dict(item, name) if isinstance(item, Mapping) else item for item in configs)


def check_same_block_size(configs: Sequence[SparsePatternConfig]) -> None:
    """Raise ValueError unless the blocks of all heads have one size."""
    sizes = sorted({config.block_size for config in configs})
    if len(sizes) > 1:
        raise ValueError(
            f"all heads need the same block_size, got {sizes}; give every config the same one, or block_size beside them"
        )


def config_of_dict(given: Mapping[Any, Any], name: str) -> SparsePatternConfig:
    fields = [field.name for field in dataclasses.fields(SparsePatternConfig)]
    for key in given:
        if key not in fields:
            raise ValueError(f"{name} has no field {shown(key)}{closest(str(key), fields, 'fields')}")
    return SparsePatternConfig(**given)


def with_shorthands(
    sparse_config: Any, sparsity_ratio: float | None, block_size: int | None
) -> SparsePatternConfig | tuple[SparsePatternConfig, ...]:
    """The config, default ``SparsePatternConfig()``, with the fields replaced that were given beside it."""
    given = {"sparsity_ratio": sparsity_ratio, "block_size": block_size}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    configs = checked_configs({} if sparse_config is None else sparse_config)
    one = (configs,) if isinstance(configs, SparsePatternConfig) else configs
    if sparsity_ratio is not None and any(config.window_size is not None for config in one):
        windows = sorted({config.window_size for config in one if config.window_size is not None})
        warnings.warn(
            f"sparsity_ratio {sparsity_ratio} does nothing where window_size is given, which decides alone, got "
            f"window_size {windows}; leave sparsity_ratio out, or use a config without window_size",
            stacklevel=3,
        )
    if isinstance(configs, SparsePatternConfig):
        return dataclasses.replace(configs, **changes)
    return tuple(dataclasses.replace(config, **changes) for config in configs)


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
        segments = listed("segment_lengths", segment_lengths)
        rates = listed("dilation_rates", dilation_rates)
        if len(segments) != len(rates) or not segments:
            raise ValueError(
                f"segment_lengths and dilation_rates must have the same length >= 1, got {list(segments)} and {list(rates)}"
            )
        for segment in segments:
            tokens = values.tokens(segment)
            if tokens is None or tokens % block_size:
                raise ValueError(
                    f"segment_lengths must be multiples of block_size {block_size}, got {shown(segment)} in {list(segments)}"
                )
        segments = tuple(map(int, segments))
        if any(a >= b for a, b in itertools.pairwise(segments)):
            raise ValueError(f"segment_lengths must be ascending, got {list(segments)}")
        for given in rates:
            rate = values.tokens(given)
            if rate is None or block_size % rate:
                raise ValueError(
                    f"dilation_rates must divide block_size {block_size}, got {shown(given)} in {list(rates)}"
                )
        rates = tuple(map(int, rates))
        return None if set(rates) == {1} else cls(segments, rates)


def listed(name: str, given: Any) -> tuple[Any, ...]:
    items = values.items(given)
    if items is None:
        raise TypeError(f"{name} must be a list or tuple of int, got {shown(given)}")
    return items
