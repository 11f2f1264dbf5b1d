"""Flags, numbers and the name of a backend."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from .. import values
from ..backends.registry import BACKEND_NAMES
from ..values import shown


def check_numbers(is_causal: object, softmax_scale: object, softcap: object, dropout_p: object) -> None:
    checked_scale(softmax_scale)
    checked_softcap(softcap)
    checked_dropout(dropout_p)
    check_is_causal(is_causal)


def check_flag(name: str, value: object) -> None:
    if values.flag(value) is None:
        raise TypeError(f"{name} must be True or False, got {shown(value)}")


def checked_deterministic(deterministic: object) -> bool:
    """The flag, True for None.

    Raises:
        TypeError: neither.
    """
    if deterministic is None:
        return True
    flag = values.flag(deterministic)
    if flag is None:
        raise TypeError(
            f"deterministic must be True, False or None, got {shown(deterministic)}; None is True"
        )
    return flag


def check_is_causal(is_causal: object) -> None:
    if values.flag(is_causal) is None:
        fix = ""
        if isinstance(is_causal, Tensor):
            fix = "; padding goes into key_padding_mask, other masks into a layout: BlockLayout.from_mask"
        raise TypeError(f"is_causal must be True or False, got {shown(is_causal)}{fix}")


def checked_scale(softmax_scale: Any) -> float | None:
    """The scale as a float, None as it is.

    Raises:
        TypeError: no number. ValueError: infinite or nan.
    """
    if softmax_scale is None:
        return None
    scale = checked_number("softmax_scale", softmax_scale, "scale q instead")
    if not math.isfinite(scale):
        raise ValueError(f"softmax_scale must be finite, got {scale}; None is 1 / sqrt(head_dim)")
    return scale


def checked_softcap(softcap: Any) -> float:
    """The softcap as a float, 0 where there is none.

    Raises:
        TypeError: no number. ValueError: negative, infinite or nan.
    """
    if softcap is None:
        return 0.0
    cap = checked_number("softcap", softcap, "pass softcap.item()")
    if not 0.0 <= cap < math.inf:
        raise ValueError(f"softcap must be finite and not negative, got {shown(softcap)}; None or 0 is none")
    return cap


def checked_dropout(dropout_p: Any, name: str = "dropout_p") -> float:
    """The probability as a float.

    Raises:
        TypeError: no number. ValueError: not in [0, 1).
    """
    share = checked_number(name, dropout_p, "pass a number")
    if not 0.0 <= share < 1.0:
        raise ValueError(f"{name} must be in [0, 1), got {shown(dropout_p)}")
    return share


def checked_number(name: str, value: Any, fix: str) -> float:
    if isinstance(value, Tensor) and value.requires_grad:
        raise TypeError(f"{name} must be a number, got a tensor that requires grad and would get none; {fix}")
    number = values.number(value)
    if number is None:
        raise TypeError(f"{name} must be a number, got {shown(value)}")
    return number


def check_backend(backend: object) -> None:
    """Raise unless it is None or the name of a backend."""
    if backend is not None and not (isinstance(backend, str) and backend in BACKEND_NAMES):
        raise values.wrong(
            values.text(backend), f"backend must be one of {BACKEND_NAMES}, got {shown(backend)}"
        )
