"""Arguments of users as plain Python values; None for an argument of another kind."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Set
from decimal import Decimal
from fractions import Fraction
from numbers import Real
from typing import Any

import torch
from torch import Tensor

MAX_SHOWN = 1000  # characters of a value in a message
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # of q, k and v
MAX_TOKENS = 2**31 - 1  # kernels count tokens in int32


def integer(value: Any) -> int | None:
    """The value of a Python or NumPy integer or of an integer tensor without dimensions; no booleans, no floats."""
    if type(value) is int:
        return value
    if isinstance(value, bool) or getattr(value, "ndim", 0) != 0 or is_bool_type(value):
        return None
    try:
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor without values
        return None


def tokens(value: Any) -> int | None:
    """A number of tokens or blocks, 1 to `MAX_TOKENS`."""
    found = integer(value)
    return found if found is not None and 1 <= found <= MAX_TOKENS else None


def is_bool_type(value: Any) -> bool:
    return str(getattr(value, "dtype", "")) in ("bool", "torch.bool")


def written(value: Any) -> Fraction | None:
    """A finite real number as the decimal that was written: 0.1 is 1/10 in every precision."""
    whole = integer(value)
    if whole is not None:
        return Fraction(whole)
    if isinstance(value, Tensor):
        return written_tensor(value)
    if isinstance(value, (str, bytes)):
        return None
    if getattr(value, "ndim", None) == 0 and not isinstance(value, Real):  # an array without dimensions
        value = value[()]
    if isinstance(value, bool) or not isinstance(value, (Real, Decimal)):
        return None
    try:
        return Fraction(str(value))
    except ValueError:  # nan, inf
        return None


def written_tensor(value: Tensor) -> Fraction | None:
    """The shortest decimal that the tensor's type rounds to its only element."""
    if value.dim() != 0 or not value.is_floating_point() or value.requires_grad:
        return None
    try:
        exact = float(value.detach())
    except RuntimeError:  # no values
        return None
    if not math.isfinite(exact):
        return None
    texts = (f"{exact:.{digits}g}" for digits in range(1, 18))
    return Fraction(next(text for text in texts if bool(value.new_tensor(float(text)) == value)))


def number(value: Any) -> float | None:
    """A real number as a float, nan and the infinities too; no booleans, strings or complex numbers."""
    if type(value) is float:
        return value
    exact = written(value)
    try:
        if exact is not None:
            return float(exact)
        return float(value) if isinstance(value, (Real, Decimal)) and not isinstance(value, bool) else None
    except (OverflowError, ValueError):
        return None


def flag(value: Any) -> bool | None:
    """True or False, also as 1 and 0, of Python, NumPy or a tensor without dimensions."""
    if type(value) is bool:
        return value
    if isinstance(value, (str, bytes)) or getattr(value, "ndim", 0) != 0:
        return None
    try:
        return bool(value) if value in (0, 1) else None
    except (TypeError, ValueError, RuntimeError):
        return None


def text(value: Any) -> str | None:
    """A str."""
    return value if isinstance(value, str) else None


def items(value: Any) -> tuple[Any, ...] | None:
    """The items of a list, a tuple, a range, a generator or a one-dimensional array, in their order."""
    if isinstance(value, (str, bytes, bytearray, Set, Mapping)) or not isinstance(value, Iterable):
        return None
    if hasattr(value, "ndim"):
        try:
            return tuple(value.tolist()) if value.ndim == 1 else None  # type: ignore[attr-defined]
        except (NotImplementedError, RuntimeError):  # no values
            return None
    return tuple(value)


def integers(value: Any) -> tuple[int, ...] | None:
    """The `items`, each of which is an `integer`."""
    found = items(value)
    numbers = None if found is None else tuple(map(integer, found))
    return None if numbers is None or None in numbers else numbers  # type: ignore[return-value]


def wrong(read: object, message: str) -> TypeError | ValueError:
    """The exception for an argument: of its type, if one of the functions above read it as None, else of its value."""
    return TypeError(message) if read is None else ValueError(message)


def device(value: Any) -> torch.device:
    """A torch.device; None is the CPU.

    Raises:
        TypeError: it is neither a device nor a name.
        ValueError: it names no device.
    """
    if isinstance(value, torch.device):
        return value
    try:
        return torch.device("cpu" if value is None else value)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise wrong(
            None if isinstance(error, TypeError) else value,
            f"device must be a torch.device or its name, such as 'cuda:0', got {shown(value)}",
        ) from error


def shown(value: Any) -> str:
    """The value for a message: tensors and arrays by type and shape, long texts cut off."""
    if getattr(value, "is_nested", False):
        return "a nested tensor"
    if getattr(value, "ndim", 0) and hasattr(value, "dtype"):
        kind = "tensor" if isinstance(value, Tensor) else type(value).__name__
        if isinstance(value, Tensor) and value.layout != torch.strided:
            kind = f"{value.layout} tensor"
        return f"a {kind} of shape {tuple(value.shape)} and type {value.dtype}"
    try:
        text = repr(value)
    except ValueError:  # an int of more digits than Python writes
        return f"{type(value).__name__} too long to write"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
