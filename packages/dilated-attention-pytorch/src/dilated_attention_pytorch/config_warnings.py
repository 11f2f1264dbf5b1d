"""The warnings about settings that are allowed, but are often not what was meant; each kind can be silenced by its class."""

from __future__ import annotations

import sys
import warnings

from . import values

# Modules between a user's line and a warning: this library, torch, which calls modules, and the code that copies a config.
BETWEEN = (__name__.partition(".")[0], "torch", "dataclasses", "copy")


class SparsityRatioWarning(UserWarning):
    """`sparsity_ratio` is 0.5 or more, below 1: it is the fraction of blocks kept, not the fraction dropped.

    Examples:
        >>> import warnings
        >>> warnings.filterwarnings("ignore", category=SparsityRatioWarning)  # where half of the blocks and more are meant
    """


class UnusedFieldWarning(UserWarning):
    """A field of `SparsePatternConfig` has no effect with the pattern, and was dropped.

    Examples:
        >>> import warnings
        >>> warnings.filterwarnings("ignore", category=UnusedFieldWarning)  # for code that fills in all fields
    """


def warn_caller(message: str, category: type[Warning]) -> None:
    """Warn of the user's line that led here."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in BETWEEN:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def warn_of_high_ratio(ratio: float) -> None:
    """Warn of a ratio from 0.5 up to, but not 1, which often was meant as the fraction dropped."""
    exact = values.written(ratio)
    if exact is None or not 0.5 <= exact < 1:
        return
    percent = f"{float(100 * exact):.6g} %"
    fix = f"; for {percent} sparse use {float(1 - exact):.6g}" if 2 * exact != 1 else ""
    warn_caller(
        f"sparsity_ratio {ratio} keeps {percent} of the blocks: it is the fraction kept, not the fraction dropped{fix}. "
        "To silence this: warnings.filterwarnings('ignore', category=dilated_attention_pytorch.SparsityRatioWarning)",
        SparsityRatioWarning,
    )
