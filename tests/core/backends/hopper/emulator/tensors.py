"""Values of a kernel: numbers, tensors and pointers, with the arithmetic of Triton."""

from __future__ import annotations

from typing import Any

import numpy as np

from .dtypes import bfloat16, bits16, dtype, float16, float32, int1, int32, int64, of_bits16
from .layouts import Layout, Reshaped, SliceLayout
from .schedule import EmulatorError


class base_value:
    """What kernels handle, but constants."""


class Type:
    """The type of a tensor."""

    def __init__(self, of: tensor) -> None:
        self.of = of

    @property
    def layout(self) -> Layout | None:
        return self.of.layout

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape

    @property
    def scalar(self) -> Any:
        return self.of.dtype

    element_ty = scalar

    def is_block(self) -> bool:
        return bool(self.of.shape)


class Diverged(Exception):
    """Warps of a tensor of threads take different branches."""


class tensor(base_value):
    """A number or a tensor of numbers."""

    by_thread = False  # its last dimension is the threads of a warp: a branch is taken by warp

    def __init__(self, data: Any, kind: dtype, layout: Layout | None = None) -> None:
        self.data, self.dtype, self.layout = data, kind, layout

    # ---- what it is

    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.data.shape
        return shape

    @property
    def type(self) -> Type:
        return Type(self)

    @property
    def numel(self) -> int:
        return int(np.size(self.data))

    def __repr__(self) -> str:
        return f"{self.dtype}{list(self.shape)}: {self.data}"

    def like(self, data: Any, kind: dtype | None = None, other: Any = None) -> tensor:
        """Another tensor with the layout of this one or of another operand."""
        layout = self.layout
        if layout is None and isinstance(other, tensor):
            layout = other.layout
        made = tensor(data, self.dtype if kind is None else kind, layout)
        if self.by_thread or (isinstance(other, tensor) and other.by_thread):
            made.by_thread = True
        return made

    def number(self) -> Any:
        if self.shape:
            raise EmulatorError(f"a number is needed, not a tensor of {list(self.shape)}")
        return self.data

    def __bool__(self) -> bool:
        if self.by_thread and self.shape:
            if self.data.all():
                return True
            if not self.data.any():
                return False
            if self.data.ndim > 1 and (self.data.all(-1) | ~self.data.any(-1)).all():
                raise Diverged
            raise EmulatorError("threads of a warp take different branches")
        return bool(self.number())

    def __index__(self) -> int:
        if self.dtype.is_float:
            raise EmulatorError("a float is no index")
        return int(self.number())

    __int__ = __index__

    def __float__(self) -> float:
        return float(self.number())

    __hash__ = None  # type: ignore[assignment]

    # ---- arithmetic

    def __add__(self, other: Any) -> Any:
        if isinstance(other, pointer):
            return other + self
        return arithmetic(np.add, self, other)

    def __radd__(self, other: Any) -> tensor:
        return arithmetic(np.add, other, self)

    def __sub__(self, other: Any) -> tensor:
        return arithmetic(np.subtract, self, other)

    def __rsub__(self, other: Any) -> tensor:
        return arithmetic(np.subtract, other, self)

    def __mul__(self, other: Any) -> tensor:
        return arithmetic(np.multiply, self, other)

    def __rmul__(self, other: Any) -> tensor:
        return arithmetic(np.multiply, other, self)

    def __truediv__(self, other: Any) -> tensor:
        return arithmetic(np.divide, self, other, division=True)

    def __rtruediv__(self, other: Any) -> tensor:
        return arithmetic(np.divide, other, self, division=True)

    def __floordiv__(self, other: Any) -> tensor:
        return arithmetic(truncating_quotient, self, other, whole=True)

    def __rfloordiv__(self, other: Any) -> tensor:
        return arithmetic(truncating_quotient, other, self, whole=True)

    def __mod__(self, other: Any) -> tensor:
        return arithmetic(truncating_rest, self, other)

    def __rmod__(self, other: Any) -> tensor:
        return arithmetic(truncating_rest, other, self)

    def __and__(self, other: Any) -> tensor:
        return arithmetic(np.bitwise_and, self, other, whole=True)

    __rand__ = __and__

    def __or__(self, other: Any) -> tensor:
        return arithmetic(np.bitwise_or, self, other, whole=True)

    __ror__ = __or__

    def __xor__(self, other: Any) -> tensor:
        return arithmetic(np.bitwise_xor, self, other, whole=True)

    __rxor__ = __xor__

    def __lshift__(self, other: Any) -> tensor:
        return arithmetic(shift_left, self, other, whole=True)

    def __rlshift__(self, other: Any) -> tensor:
        return arithmetic(shift_left, other, self, whole=True)

    def __rshift__(self, other: Any) -> tensor:
        return arithmetic(shift_right, self, other, whole=True)

    def __rrshift__(self, other: Any) -> tensor:
        return arithmetic(shift_right, other, self, whole=True)

    def __invert__(self) -> tensor:
        return self.like(~self.data)

    def __neg__(self) -> tensor:
        return self.like(-self.data)

    def __eq__(self, other: Any) -> tensor:  # type: ignore[override]
        return arithmetic(np.equal, self, other, kind=int1)

    def __ne__(self, other: Any) -> tensor:  # type: ignore[override]
        return arithmetic(np.not_equal, self, other, kind=int1)

    def __lt__(self, other: Any) -> tensor:
        return arithmetic(np.less, self, other, kind=int1)

    def __le__(self, other: Any) -> tensor:
        return arithmetic(np.less_equal, self, other, kind=int1)

    def __gt__(self, other: Any) -> tensor:
        return arithmetic(np.greater, self, other, kind=int1)

    def __ge__(self, other: Any) -> tensor:
        return arithmetic(np.greater_equal, self, other, kind=int1)

    # ---- shape and type

    def to(self, kind: dtype, fp_downcast_rounding: Any = None, bitcast: bool = False) -> tensor:
        if bitcast:
            return self.like(bitcast_of(self.data, self.dtype, kind), kind)
        return self if kind is self.dtype else self.like(kind.rounded(self.data), kind)

    cast = to

    def __getitem__(self, key: Any) -> tensor:
        key = key if isinstance(key, tuple) else (key,)
        if sum(each is not None for each in key) != len(self.shape) or any(
            each is not None and each != slice(None) for each in key
        ):
            raise EmulatorError(
                f"a tensor of {list(self.shape)} is indexed with {key}: only None and : are known"
            )
        made = self
        for axis, each in enumerate(key):
            if each is None:
                made = expand_dims(made, axis)
        return made

    def expand_dims(self, axis: int) -> tensor:
        return expand_dims(self, axis)

    def reshape(self, *shape: Any) -> tensor:
        return reshape(self, *shape)

    def broadcast_to(self, *shape: Any) -> tensor:
        shape = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        return self.like(np.broadcast_to(self.data, shape))

    def permute(self, *order: Any) -> tensor:
        return permute(self, *order)

    @property
    def T(self) -> tensor:
        return permute(self, *reversed(range(len(self.shape))))


class pointer(tensor):
    """Addresses in a buffer of global memory: offsets in elements."""

    def __init__(self, buffer: Any, offsets: Any = 0, layout: Layout | None = None) -> None:
        self.buffer, self.data, self.layout = (
            buffer,
            np.int64(offsets) if np.ndim(offsets) == 0 else offsets,
            layout,
        )
        self.dtype = buffer.dtype

    def like(self, data: Any, kind: dtype | None = None, other: Any = None) -> tensor:
        if kind is not None:
            return super().like(data, kind, other)
        layout = self.layout
        if layout is None and isinstance(other, tensor):
            layout = other.layout
        return pointer(self.buffer, data, layout)

    def __repr__(self) -> str:
        return f"{self.buffer.name} + {self.data}"

    def __add__(self, other: Any) -> pointer:
        if isinstance(other, pointer):
            raise EmulatorError(f"{self} + {other}: the sum of two pointers")
        if isinstance(other, tensor):
            if other.dtype.is_float:
                raise EmulatorError(f"{self.buffer.name} plus a float")
            check_shapes(self, other)
            moved = other.data if other.dtype is int64 else np.asarray(other.data).astype(np.int64)
            return self.like(self.data + moved, None, other)  # type: ignore[return-value]
        return self.like(self.data + np.int64(other))  # type: ignore[return-value]

    __radd__ = __add__

    def __sub__(self, other: Any) -> pointer:  # type: ignore[override]
        return self + (-other)

    def to(self, kind: Any, *_: Any, **__: Any) -> tensor:
        raise EmulatorError("casts of pointers are not emulated")

    def __bool__(self) -> bool:
        return True


# ---- functions of numbers


def truncating_quotient(a: Any, b: Any) -> Any:
    if np.any(np.equal(b, 0)):
        raise EmulatorError("division by zero")
    return (a - np.fmod(a, b)) // b


def truncating_rest(a: Any, b: Any) -> Any:
    if np.any(np.equal(b, 0)):
        raise EmulatorError("division by zero")
    return np.fmod(a, b)


def width(a: Any) -> int:
    return 8 * np.asarray(a).dtype.itemsize


def shift_left(a: Any, b: Any) -> Any:
    check_distance(a, b)
    return np.left_shift(a, b)


def shift_right(a: Any, b: Any) -> Any:
    check_distance(a, b)
    return np.right_shift(a, b)


def check_distance(a: Any, b: Any) -> None:
    if np.any((np.asarray(b) < 0) | (np.asarray(b) >= width(a))):
        raise EmulatorError(f"a shift by {b} of {width(a)} bits is undefined")


def check_shapes(a: Any, b: Any) -> None:
    """Tensors of the same rank, or numbers; dimensions of 1 are broadcast."""
    sa, sb = a.shape, b.shape
    if (
        sa
        and sb
        and sa != sb
        and (len(sa) != len(sb) or any(x != y and 1 not in (x, y) for x, y in zip(sa, sb)))
    ):
        raise EmulatorError(f"shapes {list(sa)} and {list(sb)} do not fit")


def common_type(a: dtype, b: dtype) -> dtype:
    if a is b:
        return a
    if a.is_float or b.is_float:
        if not (a.is_float and b.is_float):
            return a if a.is_float else b
        if {a, b} == {float16, bfloat16}:
            return float32
        return a if a.primitive_bitwidth >= b.primitive_bitwidth else b
    if a.primitive_bitwidth != b.primitive_bitwidth:
        return a if a.primitive_bitwidth > b.primitive_bitwidth else b
    return b if a.is_signed else a  # unsigned wins


def number_type(value: Any, beside: dtype | None = None) -> dtype:
    """The type of a number of Python beside a tensor's."""
    if isinstance(value, (bool, np.bool_)):
        return int1 if beside is None else beside
    if isinstance(value, float):
        return beside if beside is not None and beside.is_float else float32
    if beside is not None and beside.is_float:
        return beside
    if beside is not None and beside is not int1 and beside.low <= value <= beside.high:
        return beside
    return int32 if -(2**31) <= value < 2**31 else int64


def arithmetic(
    function: Any, a: Any, b: Any, kind: dtype | None = None, division: bool = False, whole: bool = False
) -> tensor:
    """function of two operands, of which one is a tensor, in their common type."""
    first = a if isinstance(a, tensor) else b
    if not isinstance(a, tensor):
        if not isinstance(a, (int, float, np.generic)):
            raise EmulatorError(f"{a!r} is no number")
        of = number_type(a, b.dtype)
        a_data, b_data, b_kind, a_kind = of.held.type(a), b.data, b.dtype, of
    elif not isinstance(b, tensor):
        if not isinstance(b, (int, float, np.generic)):
            raise EmulatorError(f"{b!r} is no number")
        of = number_type(b, a.dtype)
        a_data, b_data, a_kind, b_kind = a.data, of.held.type(b), a.dtype, of
    else:
        if a.shape != b.shape:
            check_shapes(a, b)
        a_data, b_data, a_kind, b_kind = a.data, b.data, a.dtype, b.dtype
    if isinstance(a, pointer) or isinstance(b, pointer):
        if kind is not int1:
            raise EmulatorError(f"{function.__name__} of a pointer")
        made_kind = int64
    else:
        made_kind = common_type(a_kind, b_kind)
        if division and not made_kind.is_float:
            made_kind = float32
        if whole and made_kind.is_float:
            raise EmulatorError(f"{function.__name__} of floats")
        if made_kind is int1 and function in (np.add, np.subtract, np.multiply):
            made_kind = int32 if function is not np.multiply else int1
    if a_kind is not made_kind:
        a_data = np.asarray(a_data).astype(made_kind.held)[()]
    if b_kind is not made_kind:
        b_data = np.asarray(b_data).astype(made_kind.held)[()]
    data = function(a_data, b_data)
    if kind is None and made_kind.is_float and made_kind.primitive_bitwidth == 16:
        data = made_kind.rounded(data)
    return first.like(data, made_kind if kind is None else kind, b if first is a else a)


def to_tensor(value: Any) -> tensor:
    """A number as a value of the kernel."""
    if isinstance(value, tensor):
        return value
    if isinstance(value, (bool, int, float, np.generic)):
        kind = number_type(value)
        return tensor(kind.held.type(value), kind)
    raise EmulatorError(f"{value!r} is no value of a kernel")


def elementwise(function: Any, floats: bool = True) -> Any:
    """A function of one operand."""

    def apply(x: Any) -> tensor:
        x = to_tensor(x)
        if floats and not x.dtype.is_float:
            x = x.to(float32)
        return x.like(x.dtype.rounded(function(x.data)))

    return apply


def maximum(a: Any, b: Any, propagate_nan: Any = None) -> Any:
    if not isinstance(a, tensor) and not isinstance(b, tensor):
        return max(a, b)
    return arithmetic(np.fmax, a, b)


def minimum(a: Any, b: Any, propagate_nan: Any = None) -> Any:
    if not isinstance(a, tensor) and not isinstance(b, tensor):
        return min(a, b)
    return arithmetic(np.fmin, a, b)


def where(condition: Any, a: Any, b: Any) -> tensor:
    condition = to_tensor(condition)
    if isinstance(a, pointer) or isinstance(b, pointer):
        if not (isinstance(a, pointer) and isinstance(b, pointer) and a.buffer is b.buffer):
            raise EmulatorError("where of pointers into different buffers")
        return pointer(a.buffer, np.where(condition.data, a.data, b.data), a.layout)
    if not isinstance(a, tensor) and not isinstance(b, tensor):
        a = to_tensor(a)
    if not isinstance(a, tensor):
        of = number_type(a, b.dtype)
        a = tensor(of.held.type(a), of)
    if not isinstance(b, tensor):
        of = number_type(b, a.dtype)
        b = tensor(of.held.type(b), of)
    check_shapes(a, b)
    check_shapes(condition, a)
    check_shapes(condition, b)
    kind = common_type(a.dtype, b.dtype)
    data = np.where(condition.data, a.to(kind).data, b.to(kind).data)[()]
    layout = condition.layout or a.layout or b.layout
    made = tensor(data, kind, layout)
    made.by_thread = condition.by_thread or a.by_thread or b.by_thread
    return made


def fma(a: Any, b: Any, c: Any) -> tensor:
    a, b, c = to_tensor(a), to_tensor(b), to_tensor(c)
    exact = a.data.astype(np.float64) * b.data + c.data
    return (a * b + c).like(np.asarray(exact).astype(np.float32)[()])


def cdiv(a: Any, b: Any) -> Any:
    return (a + b - 1) // b


def bitcast_of(data: Any, kind: dtype, new: dtype) -> Any:
    if kind.primitive_bitwidth != new.primitive_bitwidth:
        raise EmulatorError(f"{kind} and {new} have not the same width")
    x = np.asarray(data)
    if kind.primitive_bitwidth == 16:
        bits = bits16(x, kind) if kind.is_float else x.astype(np.uint16).astype(np.uint32)
        made = of_bits16(bits, new) if new.is_float else bits.astype(np.uint16).view(new.held)
        return np.asarray(made)[()]
    return x.view(new.held)[()]


# ---- shapes


def expand_dims(x: tensor, axis: int) -> tensor:
    axis = int(axis)
    made = x.like(np.expand_dims(x.data, axis))
    layout = x.layout
    made.layout = layout.parent if isinstance(layout, SliceLayout) and layout.dim == axis else None
    if isinstance(layout, SliceLayout) and layout.dim != axis:
        raise EmulatorError(
            f"dimension {axis} is put into a tensor of {layout}, which has lost dimension {layout.dim}"
        )
    return made


def shape_of(shape: Any) -> tuple[int, ...]:
    shape = shape[0] if len(shape) == 1 and isinstance(shape[0], (list, tuple)) else shape
    return tuple(int(n) for n in shape)


def reshape(x: tensor, *shape: Any) -> tensor:
    made = x.like(np.reshape(x.data, shape_of(shape)))
    made.layout = None if x.layout is None else Reshaped(x.layout, shape_of(shape))
    return made


def permute(x: tensor, *order: Any) -> tensor:
    made = x.like(np.transpose(x.data, shape_of(order)))
    made.layout = None
    return made


def broadcast(a: Any, b: Any) -> tuple[tensor, tensor]:
    a, b = to_tensor(a), to_tensor(b)
    check_shapes(a, b)
    layout = a.layout or b.layout
    first, second = np.broadcast_arrays(a.data, b.data)
    first, second = a.like(first), b.like(second)  # type: ignore[assignment]
    first.layout, second.layout = layout, layout  # type: ignore[attr-defined]
    return first, second  # type: ignore[return-value]


def join(a: tensor, b: tensor) -> tensor:
    made = a.like(np.stack(np.broadcast_arrays(a.data, b.data), -1))
    made.layout = None
    return made


def split(x: tensor) -> tuple[tensor, tensor]:
    first, second = x.like(x.data[..., 0]), x.like(x.data[..., 1])
    first.layout = second.layout = None
    return first, second


def convert_layout(x: tensor, layout: Any, assert_trivial: bool = False) -> tensor:
    if not isinstance(x, tensor):
        raise EmulatorError(f"convert_layout of {x!r}")
    made = x.like(x.data)
    made.layout = layout
    return made


def full(shape: Any, value: Any, kind: dtype, layout: Any = None) -> tensor:
    shape = shape_of((shape,)) if isinstance(shape, (list, tuple)) else (int(shape),)
    value = to_tensor(value).to(kind).number()
    return tensor(np.full(shape, value, kind.held)[()], kind, layout)


def zeros(shape: Any, kind: dtype, layout: Any = None) -> tensor:
    return full(shape, 0, kind, layout)


def zeros_like(x: tensor) -> tensor:
    return x.like(np.zeros_like(x.data))


def full_like(x: tensor, value: Any) -> tensor:
    return full(x.shape, value, x.dtype, x.layout)


def arange(start: int, end: int, layout: Any = None) -> tensor:
    length = int(end) - int(start)
    if length <= 0 or length & (length - 1):
        raise EmulatorError(f"arange of {length}, which is no power of two")
    return tensor(np.arange(int(start), int(end), dtype=np.int32), int32, layout)


# ---- reductions


def reduction(
    function: Any, x: tensor, axis: Any, keep_dims: bool = False, kind: dtype | None = None
) -> tensor:
    axis = None if axis is None else int(axis)
    data = x.data
    kind = kind or x.dtype
    if kind is not x.dtype:
        data = data.astype(kind.held)
    made = x.like(function(data, axis=axis, keepdims=keep_dims), kind)
    made.data = kind.rounded(made.data)
    if axis is None:
        made.layout = None
    elif x.layout is not None and not keep_dims and made.shape:
        made.layout = SliceLayout(axis, x.layout)
    elif not made.shape:
        made.layout = None
    return made


def reduce_sum(x: tensor, axis: Any = None, keep_dims: bool = False, dtype: Any = None) -> tensor:
    small = not x.dtype.is_float and x.dtype.primitive_bitwidth < 32
    return reduction(np.sum, x, axis, keep_dims, dtype or (int32 if small else None))


def reduce_max(x: tensor, axis: Any = None, keep_dims: bool = False, **_: Any) -> tensor:
    small = not x.dtype.is_float and x.dtype.primitive_bitwidth < 32
    return reduction(np.fmax.reduce, x, axis, keep_dims, int32 if small else None)


def reduce_min(x: tensor, axis: Any = None, keep_dims: bool = False, **_: Any) -> tensor:
    small = not x.dtype.is_float and x.dtype.primitive_bitwidth < 32
    return reduction(np.fmin.reduce, x, axis, keep_dims, int32 if small else None)


def xor_sum(x: tensor, axis: Any = None, keep_dims: bool = False) -> tensor:
    return reduction(np.bitwise_xor.reduce, x, axis, keep_dims)


def combined(x: Any, axis: Any, function: Any, keep_dims: bool = False) -> Any:
    """gl.reduce, one element after the other."""
    values = x if isinstance(x, tuple) else (x,)
    moved = [v.like(np.moveaxis(v.data, int(axis), 0)) for v in values]
    slices = lambda i: tuple(strip(v.like(v.data[i]), v) for v in moved)  # noqa: E731

    def strip(made: tensor, of: tensor) -> tensor:
        made.layout = None if of.layout is None else SliceLayout(int(axis), of.layout)
        return made

    sums = slices(0)
    for i in range(1, moved[0].shape[0]):
        sums = function(*sums, *slices(i))
        sums = sums if isinstance(sums, tuple) else (sums,)
    if keep_dims:
        sums = tuple(expand_dims(s, axis) for s in sums)
    return sums if isinstance(x, tuple) else sums[0]


def cumsum(x: tensor, axis: int = 0, reverse: bool = False) -> tensor:
    data = np.flip(x.data, axis) if reverse else x.data
    made = np.cumsum(data, axis=axis, dtype=x.data.dtype)
    return x.like(np.flip(made, axis) if reverse else made)


def gather(x: tensor, index: tensor, axis: int) -> tensor:
    return index.like(np.take_along_axis(x.data, index.data, int(axis)), x.dtype)
