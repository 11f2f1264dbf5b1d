"""AdaptiveConfig: how blocks are chosen from the content, validated when it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from . import values
from .upstream.keywords import explains_old_keywords
from .values import shown


@explains_old_keywords
@dataclass(frozen=True)
class AdaptiveConfig:
    """How `BlockSparseAdaptive` chooses its blocks.

    Args:
        base_sparsity: the fraction of block pairs **dropped**, 0 <= base_sparsity < 1: 0.9 keeps 10 %. It is honoured exactly as
            ``sparsity_ratio = 1 - base_sparsity`` of `SparsePatternConfig` is: as a running total over the rows, except where
            the fewest blocks of a row require more. A float is read as the decimal it prints as.
        temperature: divides the scores. Lower is more decided: the noise of training changes fewer choices, and the scores of
            chosen blocks weigh more.
        learnable_temperature: whether `temperature` is trained. It is a parameter then, otherwise a buffer.
        min_temperature: a lower temperature counts as this one.
        hidden_dim: features of a block that the scorer compares.
        num_layers: linear layers of the scorer, with a ReLU between them, of queries and of keys. 1: it is a bilinear form.
        share_across_heads: one scorer for all heads. Otherwise each has weights of its own.
        sparsity_reg_weight: multiplies `BlockSparseAdaptive.get_sparsity_loss`.
        hard_sparsity: chosen blocks count alike, as in a fixed pattern; the scorer is trained by a straight-through gradient.
            False: the scores of the chosen blocks are added to the scores of their pairs.
        top_p: over 0 and up to 1: a row stops as soon as its blocks have this share of the softmax of its scores, so that rows
            that need fewer blocks keep fewer. None: every row keeps what `base_sparsity` grants.
        gumbel_noise: in training, choose by scores with Gumbel noise, which is drawing blocks without replacement with the
            probabilities of the softmax (Gumbel-top-k, arXiv:1903.06059). Otherwise blocks that are never chosen teach nothing.

    Raises:
        ValueError: a number is out of its range; the message names it.
        TypeError: a number or a flag is something else; the message names it.

    Examples:
        >>> AdaptiveConfig(base_sparsity=0.95).sparsity_ratio
        Fraction(1, 20)
    """

    base_sparsity: float = 0.9
    temperature: float = 1.0
    learnable_temperature: bool = True
    min_temperature: float = 0.1
    hidden_dim: int = 128
    num_layers: int = 2
    share_across_heads: bool = False
    sparsity_reg_weight: float = 0.01
    hard_sparsity: bool = False
    top_p: float | None = None
    gumbel_noise: bool = True

    def __post_init__(self) -> None:
        dropped = values.written(self.base_sparsity)
        if dropped is None or not 0 <= dropped < 1:
            raise values.wrong(
                values.number(self.base_sparsity),
                f"base_sparsity must be the fraction of blocks dropped, 0 <= base_sparsity < 1, got {shown(self.base_sparsity)}; "
                "0.9 keeps 10 %",
            )
        is_float = Fraction(str(float(dropped))) == dropped
        self._set("base_sparsity", float(dropped) if is_float else dropped)
        for name in ("temperature", "min_temperature"):
            self._set(name, self._positive(name))
        if self.temperature < self.min_temperature:
            raise ValueError(
                f"temperature must be at least min_temperature {self.min_temperature}, got {self.temperature}"
            )
        for name in ("hidden_dim", "num_layers"):
            number = values.tokens(getattr(self, name))
            if number is None:
                raise values.wrong(
                    values.integer(getattr(self, name)),
                    f"{name} must be a number of at least 1, got {shown(getattr(self, name))}",
                )
            self._set(name, number)
        for name in ("learnable_temperature", "share_across_heads", "hard_sparsity", "gumbel_noise"):
            flag = values.flag(getattr(self, name))
            if flag is None:
                raise TypeError(f"{name} must be True or False, got {shown(getattr(self, name))}")
            self._set(name, flag)
        weight = values.number(self.sparsity_reg_weight)
        if weight is None or not 0.0 <= weight < math.inf:
            raise values.wrong(
                weight,
                f"sparsity_reg_weight must be finite and not negative, got {shown(self.sparsity_reg_weight)}",
            )
        self._set("sparsity_reg_weight", weight)
        share = None if self.top_p is None else values.number(self.top_p)
        if self.top_p is not None and (share is None or not 0.0 < share <= 1.0):
            raise values.wrong(share, f"top_p must be over 0 and at most 1, got {shown(self.top_p)}")
        self._set("top_p", share)

    @property
    def sparsity_ratio(self) -> Fraction:
        """The fraction of block pairs kept, ``1 - base_sparsity``."""
        return 1 - Fraction(str(self.base_sparsity))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _positive(self, name: str) -> float:
        given: Any = getattr(self, name)
        number = values.number(given)
        if number is None or not 0.0 < number < math.inf:
            raise values.wrong(number, f"{name} must be a positive number, got {shown(given)}")
        return number
