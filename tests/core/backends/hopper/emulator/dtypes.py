"""Types of kernel values, and how floats are rounded to them. Floats of every type are held as float32 or float64."""

from __future__ import annotations

from typing import Any

import numpy as np


class dtype:
    """A type of Triton; `held` is the NumPy type of its values here."""

    def __init__(self, name: str, held: Any, bits: int) -> None:
        self.name, self.held, self.primitive_bitwidth = name, np.dtype(held), bits
        self.is_float = self.held.kind == "f"
        self.is_signed = self.held.kind == "i"
        self.low, self.high = 0, 1
        if self.held.kind in "iu":
            self.low, self.high = int(np.iinfo(self.held).min), int(np.iinfo(self.held).max)

    def is_floating(self) -> bool:
        return self.is_float

    def is_int(self) -> bool:
        return not self.is_float

    def is_fp8(self) -> bool:
        return False

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> str:
        return self.name

    @property
    def nothing(self) -> Any:
        """What stands where nothing was written."""
        if self.is_float:
            return self.held.type(np.nan)
        return (
            self.held.type(False)
            if self is int1
            else self.held.type(0x5BAD5BAD & (2 ** (self.primitive_bitwidth - 1) - 1))
        )

    def rounded(self, x: Any) -> Any:
        """Numbers of any type as numbers of this one."""
        if self is bfloat16:
            return to_bfloat16(x)
        if self is float16:
            with np.errstate(over="ignore"):
                return np.asarray(x).astype(np.float16).astype(np.float32)[()]
        if self is int1:
            return np.asarray(x != 0)[()]
        x = np.asarray(x)
        if not self.is_float and x.dtype.kind == "f":
            bad = ~np.isfinite(x) | (np.abs(x) >= 2.0**63)
            x = (
                np.where(bad, -(2**63), np.where(bad, 0, x)).astype(np.int64)
                if bad.any()
                else x.astype(np.int64)
            )
        return x.astype(self.held)[()]


int1 = dtype("int1", np.bool_, 1)
int8, int16, int32, int64 = (dtype(f"int{n}", f"i{n // 8}", n) for n in (8, 16, 32, 64))
uint8, uint16, uint32, uint64 = (dtype(f"uint{n}", f"u{n // 8}", n) for n in (8, 16, 32, 64))
float16, bfloat16 = dtype("float16", np.float32, 16), dtype("bfloat16", np.float32, 16)
float32, float64 = dtype("float32", np.float32, 32), dtype("float64", np.float64, 64)
ALL = {
    each.name: each
    for each in (
        int1, int8, int16, int32, int64, uint8, uint16, uint32, uint64, float16, bfloat16, float32, float64,
    )
}  # fmt: skip


def to_bfloat16(x: Any) -> Any:
    """Float32 numbers rounded to the nearest bfloat16, ties to even."""
    x = np.asarray(x, dtype=np.float32)
    bits = x.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32)
    return np.where(np.isnan(x), x, rounded.view(np.float32))[()]


def bits16(x: Any, kind: dtype) -> Any:
    """The 16 bits of numbers of a type of 16 bits, as uint32."""
    if kind is bfloat16:
        return np.asarray(x, dtype=np.float32).view(np.uint32) >> 16
    return np.asarray(x).astype(np.float16).view(np.uint16).astype(np.uint32)


def of_bits16(bits: Any, kind: dtype) -> Any:
    """The numbers of a type of 16 bits that have these bits."""
    if kind is bfloat16:
        return (np.asarray(bits).astype(np.uint32) << 16).view(np.float32)
    return np.asarray(bits).astype(np.uint16).view(np.float16).astype(np.float32)


class constexpr:
    """Annotation and wrapper of constants; wrapping gives a number or string that also has `value`, or the object itself."""

    def __new__(cls, value: Any = None) -> Any:
        if isinstance(value, (bool, int)):
            return Whole(value)
        if isinstance(value, float):
            return Real(value)
        if isinstance(value, str):
            return Text(value)
        return value


class Constant:
    value: Any = property(lambda self: self.__class__.plain(self))  # type: ignore[attr-defined]


class Whole(Constant, int):
    plain = int


class Real(Constant, float):
    plain = float


class Text(Constant, str):
    plain = str
