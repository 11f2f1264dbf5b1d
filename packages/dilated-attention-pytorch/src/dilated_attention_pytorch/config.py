"""User settings: the sparse pattern and the token dilation, validated when they are made."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, NoReturn, get_args

from . import _torch_internals, values
from .config_warnings import UnusedFieldWarning, warn_caller, warn_of_high_ratio
from .removed import raise_removed_variant
from .upstream.keywords import explains_old_keywords, refuse_old_keywords
from .values import shown

PatternType = Literal["dilated_sparse", "local_window", "global_local"]
PATTERN_TYPES: tuple[str, ...] = get_args(PatternType)
# Fields that apply only to some patterns. Others drop them with a warning; `exact` is a promise and refused instead.
TAKEN_BY: dict[str, tuple[PatternType, ...]] = {
    "window_size": ("local_window", "global_local"),
    "exact": ("local_window",),
    "global_tokens": ("global_local",),
    "dilation_rates": ("dilated_sparse",),
    "rotation": ("dilated_sparse",),
}
# What `exact` cannot be combined with in a pattern.
BEYOND_EXACT = {"dilation_rates": "a window with gaps", "global_tokens": "a window with global tokens"}
BLOCK_SIZES = (16, 32, 64, 128, 256)


def check_block_size(block_size: Any) -> int:
    """Return the block size as an int; raise TypeError or ValueError unless it is a power of two from 16 to 256."""
    size = values.integer(block_size)
    if size not in BLOCK_SIZES:
        raise values.wrong(size, f"block_size must be one of {BLOCK_SIZES}, got {shown(block_size)}")
    return size


def closest(name: str, choices: Iterable[str], what: str) -> str:
    """End of an error message about an unknown name: the closest choice, if there is one, and all choices."""
    choices = list(choices)
    near = difflib.get_close_matches(name, choices, n=1)
    return (f"; did you mean {near[0]!r}? The " if near else "; the ") + f"{what} are {', '.join(choices)}"


def or_(choices: Iterable[str]) -> str:
    """Choices for a message."""
    return " or ".join(map(repr, choices))


def takes(pattern_type: str, field: str) -> bool:
    """Whether a field of TAKEN_BY applies to a pattern."""
    return pattern_type in TAKEN_BY[field]


@explains_old_keywords
@dataclass(frozen=True)
class SparsePatternConfig:
    """Which blocks of the attention matrix are kept.

    Args:
        pattern_type: ``"dilated_sparse"`` (the diagonal block, a link to the next one and blocks at multiples of
            `dilation_rates`), ``"local_window"`` (the nearest blocks) or ``"global_local"`` (a local window and a
            few global blocks, which attend to every block and are attended to by every block).
        block_size: side of a block in tokens, a power of two from 16 to 256.
        sparsity_ratio: the fraction of block pairs **kept**, 0 < ratio <= 1, relative to dense attention with the
            same lengths and causality; 0.01 is 99 % sparse. The density is exact as a running total over the rows,
            except where `min_blocks` requires more. A float is read as the decimal it prints as (0.29 is 29/100);
            `fractions.Fraction` and `decimal.Decimal` are taken exactly.
        window_size: width of the window in tokens, rounded up to blocks, for ``local_window`` and ``global_local``;
            it replaces the ratio. With a causal layout every query sees at least this many past tokens, otherwise
            half of them on each side; see `exact`. None: the ratio sets the width.
        global_tokens: number of tokens at the start of the sequence that are global, rounded up to blocks. Only for
            ``global_local``, which always has at least one global block.
        dilation_rates: distances in blocks, for ``dilated_sparse``. None: all powers of two below the sequence
            length. In a causal layout with at least 3 blocks per row, every rate up to half the sequence occurs.
        min_blocks: the fewest blocks a row keeps, whatever the ratio (a row with fewer visible blocks keeps them
            all). Without it, short and causal sequences would keep little more than their diagonal. 1: the ratio
            alone decides. Cannot be combined with `window_size`. None: 3 for causal ``dilated_sparse``, otherwise 2.
            `BlockLayout.stats` reports the resulting density.
        rotation: for ``dilated_sparse``: how many places every row starts later in its cycle of offsets. Give the
            heads rotations 0, 1, 2, ... (one config per head) to spread the scales over the heads: where a row has
            room for only part of the cycle, the heads together then cover a sequence in fewer layers.
        exact: for ``local_window`` with `window_size`: the window is exact to the token instead of rounded up to blocks. With a
            causal layout a query sees `window_size` tokens, itself and those before it (``q - k < window_size``, as
            ``sliding_window`` of Mistral and transformers; `window_size` of flash-attn does not count the query itself: add
            1). Otherwise ``window_size // 2`` tokens on each side and itself.

    Numbers may be NumPy scalars, and lists may be one-dimensional arrays.

    Fields that the pattern does not take are dropped with an `UnusedFieldWarning`; a ratio from 0.5 up to, but not 1,
    gives a `SparsityRatioWarning`, as it is often meant as the fraction dropped.

    Raises:
        ValueError: an argument is out of range, or `exact` does not apply to the pattern; the message names it.
        TypeError: an argument has the wrong type; the message names it.

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
    exact: bool = False

    def __post_init__(self) -> None:
        self._check()
        if self.window_size is None:
            warn_of_high_ratio(self.sparsity_ratio)

    def _check(self) -> None:
        if not isinstance(self.pattern_type, str) or self.pattern_type not in PATTERN_TYPES:
            name = str(self.pattern_type) if isinstance(self.pattern_type, str) else ""
            if name == "hierarchical":
                raise_removed_variant()
            fix = "; use variant='adaptive' instead" if name == "adaptive" else ""
            raise values.wrong(
                values.text(self.pattern_type),
                f"pattern_type must be one of {PATTERN_TYPES}, got {shown(self.pattern_type)}{fix}",
            )
        self._set("block_size", check_block_size(self.block_size))
        self._set("sparsity_ratio", checked_ratio(self.sparsity_ratio))
        self._check_window()
        self._check_global_tokens()
        self._check_dilation_rates()
        self._check_rotation()
        self._check_exact()
        self._drop_unused()
        self._check_min_blocks()

    def least_blocks(self, causal: bool) -> int:
        """`min_blocks`, or its default: 3 for causal ``dilated_sparse``, otherwise 2."""
        if self.min_blocks is not None:
            return self.min_blocks
        return 3 if causal and self.pattern_type == "dilated_sparse" else 2

    @_torch_internals.constant_in_graphs
    def _as_text(self) -> str:
        """The fields as JSON; a constant where torch.compile meets it."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(SparsePatternConfig)}
        return json.dumps(fields, default=as_pair)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _drop_unused(self) -> None:
        """Warn of the fields that the pattern does not take, and give them their defaults."""
        unused = {
            field: getattr(self, field)
            for field, patterns in TAKEN_BY.items()
            if self.pattern_type not in patterns and getattr(self, field) not in (None, 0)
        }
        for field in unused:
            if self.exact and field in BEYOND_EXACT:
                self._refuse_exact(field, unused[field])
        if not unused:
            return
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for field in unused:
            self._set(field, defaults[field])
        what = " and ".join(
            f"{field}={list(value) if isinstance(value, tuple) else value}" for field, value in unused.items()
        )
        fix = ", ".join(f"{field} is for {or_(TAKEN_BY[field])}" for field in unused)
        has, it = ("have", "them") if len(unused) > 1 else ("has", "it")
        warn_caller(
            f"{what} {has} no effect with pattern_type={self.pattern_type!r}; leave {it} out ({fix}). To silence "
            "this: warnings.filterwarnings('ignore', category=dilated_attention_pytorch.UnusedFieldWarning)",
            UnusedFieldWarning,
        )

    def _refuse_exact(self, field: str, value: object) -> NoReturn:
        """Refuse what goes beyond every pattern, but can be said with a mask of tokens."""
        what = BEYOND_EXACT.get("global_tokens" if self.pattern_type == "global_local" else field)
        raise ValueError(
            f"{field} does not apply to pattern_type={self.pattern_type!r}, got {value}; "
            f"use {or_(TAKEN_BY[field])}, or leave it out"
            + (f"; for {what}, exact to the token, use BlockLayout.from_mask_mod" if what else "")
        )

    def _is_empty(self, field: str, value: object) -> bool:
        """Whether a field that the pattern does not take was filled in with nothing, as config builders do."""
        return not takes(self.pattern_type, field) and (
            values.integer(value) == 0 or values.items(value) == ()
        )

    def _check_window(self) -> None:
        if self.window_size is None or self._is_empty("window_size", self.window_size):
            self._set("window_size", None)
            return
        tokens = values.tokens(self.window_size)
        if tokens is None:
            raise values.wrong(
                values.integer(self.window_size),
                f"window_size must be a positive number of tokens, got {shown(self.window_size)}",
            )
        self._set("window_size", tokens)

    def _check_global_tokens(self) -> None:
        if self.global_tokens is None and not takes(self.pattern_type, "global_tokens"):
            self._set("global_tokens", 0)
            return
        tokens = values.integer(self.global_tokens)
        if tokens is None or not 0 <= tokens <= values.MAX_TOKENS:
            raise values.wrong(
                tokens, f"global_tokens must be a number of tokens >= 0, got {shown(self.global_tokens)}"
            )
        self._set("global_tokens", tokens)

    def _check_dilation_rates(self) -> None:
        if self.dilation_rates is None:
            return
        given = values.items(self.dilation_rates)
        if self._is_empty("dilation_rates", given):
            self._set("dilation_rates", None)
            return
        rates = tuple(map(values.tokens, given or ()))
        if not rates or None in rates:
            printed = shown(self.dilation_rates if given is None else given)
            raise values.wrong(
                values.integers(given),
                f"dilation_rates must be positive numbers of blocks, got {printed}; use e.g. [1, 2, 4, 8]",
            )
        self._set("dilation_rates", rates)

    def _check_rotation(self) -> None:
        rotation = values.integer(self.rotation)
        if rotation is None or not 0 <= rotation <= values.MAX_TOKENS:
            raise values.wrong(
                rotation, f"rotation must be a number of offsets >= 0, got {shown(self.rotation)}"
            )
        self._set("rotation", rotation)

    def _check_exact(self) -> None:
        exact = values.flag(self.exact)
        if exact is None:
            raise TypeError(f"exact must be True or False, got {shown(self.exact)}")
        if exact and not takes(self.pattern_type, "exact"):
            self._refuse_exact("exact", True)
        if exact and self.window_size is None:
            raise ValueError("exact=True needs window_size, got None; pass the width in tokens")
        self._set("exact", exact)

    def _check_min_blocks(self) -> None:
        if self.min_blocks is None:
            return
        blocks = values.tokens(self.min_blocks)
        if blocks is None:
            raise values.wrong(
                values.integer(self.min_blocks),
                f"min_blocks must be a positive number of blocks per row, got {shown(self.min_blocks)}; "
                "use 1 for the ratio alone, or None for the default",
            )
        if self.window_size is not None:
            raise ValueError(
                f"min_blocks cannot be combined with window_size, got min_blocks {blocks} and "
                f"window_size {self.window_size}; leave one of them out"
            )
        self._set("min_blocks", blocks)


def as_pair(value: Fraction) -> list[int]:
    """A Fraction for JSON."""
    return [value.numerator, value.denominator]


def checked_ratio(ratio: Any) -> float:
    """The ratio as a float; a Fraction or Decimal that no float prints as is returned unchanged."""
    exact = values.written(ratio)
    if exact is None or not 0 < exact <= 1:
        raise values.wrong(
            values.number(ratio),
            f"sparsity_ratio must be the fraction of blocks kept, 0 < ratio <= 1, got {shown(ratio)}; "
            "for 99 % sparse use 0.01",
        )
    nearest = float(exact)
    return nearest if values.written(nearest) == exact else exact  # type: ignore[return-value]


def checked_configs(
    given: Any, name: str = "sparse_config"
) -> SparsePatternConfig | tuple[SparsePatternConfig, ...]:
    """Validate a config or a sequence with one per head; a dict holds the fields of a config."""
    if isinstance(given, SparsePatternConfig):
        return given
    if isinstance(given, Mapping):
        return config_of_dict(given, name)
    configs = values.items(given)
    if not configs or not all(isinstance(item, (SparsePatternConfig, Mapping)) for item in configs):
        fix = "use e.g. SparsePatternConfig(sparsity_ratio=0.1)"
        if configs and None not in map(values.integer, configs):
            fix = "if these are segment_lengths of 0.2.0, leave them and dilation_rates out: they had no effect there"
        raise values.wrong(
            configs if configs == () else None,
            f"{name} must be a SparsePatternConfig or a sequence of them, got {shown(given)}; {fix}",
        )
    return tuple(config_of_dict(item, name) if isinstance(item, Mapping) else item for item in configs)


def check_same_block_size(configs: Sequence[SparsePatternConfig]) -> None:
    """Raise ValueError unless all configs have the same block size."""
    sizes = sorted({config.block_size for config in configs})
    if len(sizes) > 1:
        raise ValueError(
            f"all heads need the same block_size, got {sizes}; use one size in every config, "
            "or pass block_size as an argument"
        )


def config_of_dict(given: Mapping[Any, Any], name: str) -> SparsePatternConfig:
    fields = [field.name for field in dataclasses.fields(SparsePatternConfig)]
    refuse_old_keywords(given, name)
    for key in given:
        if key not in fields:
            raise ValueError(f"{name} has no field {shown(key)}{closest(str(key), fields, 'fields')}")
    return SparsePatternConfig(**given)


def config_of_saved(fields: Mapping[str, Any]) -> SparsePatternConfig:
    """A config of the fields of one that was made before: checked like that one, but without its warnings."""
    config = object.__new__(SparsePatternConfig)
    for field in dataclasses.fields(SparsePatternConfig):
        object.__setattr__(config, field.name, fields.get(field.name, field.default))
    config._check()
    return config


def with_shorthands(
    sparse_config: Any, sparsity_ratio: float | None, block_size: int | None
) -> SparsePatternConfig | tuple[SparsePatternConfig, ...]:
    """`sparse_config` (default ``SparsePatternConfig()``) with the fields that were also passed as arguments."""
    given = {"sparsity_ratio": sparsity_ratio, "block_size": block_size}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    configs = checked_configs({} if sparse_config is None else sparse_config)
    one = (configs,) if isinstance(configs, SparsePatternConfig) else configs
    if sparsity_ratio is not None and any(config.window_size is not None for config in one):
        windows = sorted({config.window_size for config in one if config.window_size is not None})
        warn_caller(
            f"sparsity_ratio {sparsity_ratio} has no effect because the config has window_size {windows}; "
            "leave sparsity_ratio out, or use a config without window_size",
            UnusedFieldWarning,
        )
    if not changes:
        return configs
    if isinstance(configs, SparsePatternConfig):
        return dataclasses.replace(configs, **changes)
    return tuple(dataclasses.replace(config, **changes) for config in configs)


@dataclass(frozen=True)
class TokenDilation:
    """Token dilation: which keys of an active block take part, depending on the distance of the block.

    An active pair of blocks I, J at distance ``d = |I - J| * block_size`` tokens uses the rate of the first pair
    ``(segment_lengths[k], dilation_rates[k])`` with ``segment_lengths[k] > d``, or of the last pair if there is none.
    Only the keys ``j`` with ``j mod rate == head mod rate`` take part.

    Source: LongNet, arXiv:2307.02486, whose dilation is applied here to keys only.
    """

    segment_lengths: tuple[int, ...]
    dilation_rates: tuple[int, ...]

    @classmethod
    def from_user(
        cls, segment_lengths: Sequence[int] | None, dilation_rates: Sequence[int] | None, block_size: int
    ) -> TokenDilation | None:
        """Validate the arguments of a user; None if every key of an active block takes part.

        Raises:
            TypeError: an argument is not a sequence of ints.
            ValueError: the lists differ in length, the segment lengths are not ascending or not multiples of
                `block_size`, or a rate does not divide `block_size`.
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
                raise values.wrong(
                    values.integer(segment),
                    f"segment_lengths must be multiples of block_size {block_size}, got {shown(segment)} in {list(segments)}",
                )
        segments = tuple(map(int, segments))
        if any(a >= b for a, b in itertools.pairwise(segments)):
            raise ValueError(f"segment_lengths must be ascending, got {list(segments)}")
        for given in rates:
            rate = values.tokens(given)
            if rate is None or block_size % rate:
                raise values.wrong(
                    values.integer(given),
                    f"dilation_rates must divide block_size {block_size}, got {shown(given)} in {list(rates)}: a rate keeps as many "
                    f"keys of every block; use powers of two up to {block_size}, or dilation_rates of SparsePatternConfig, which "
                    "spread out whole blocks and may be any numbers",
                )
        rates = tuple(map(int, rates))
        return None if set(rates) == {1} else cls(segments, rates)


def listed(name: str, given: Any) -> tuple[Any, ...]:
    """The items of a sequence that a user passed as the argument `name`."""
    items = values.items(given)
    if items is None:
        raise TypeError(f"{name} must be a list or tuple of int, got {shown(given)}")
    return items
