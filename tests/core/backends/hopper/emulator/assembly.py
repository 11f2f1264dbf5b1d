"""PTX of inline_asm_elementwise: straight lines and uniform branches, on all lanes of a warp at once."""

from __future__ import annotations

import functools
import re
import struct
from typing import Any

import numpy as np

from .dtypes import bits16, float16, of_bits16, to_bfloat16
from .schedule import EmulatorError, current, scheduler
from .tensors import Diverged, pointer, tensor, to_tensor
from .threads import by_warp, from_threads, has_threads, to_threads
from .tma import stores_landed

NUMPY = {
    "f32": np.float32, "f64": np.float64, "b32": np.uint32, "u32": np.uint32, "s32": np.int32, "b64": np.uint64,
    "u64": np.uint64, "s64": np.int64, "b16": np.uint16, "u16": np.uint16, "pred": np.bool_,
}  # fmt: skip
COMPARE = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip
UNARY = {
    "ex2": np.exp2, "lg2": np.log2, "tanh": np.tanh, "rcp": np.reciprocal, "sqrt": np.sqrt, "neg": np.negative,
    "abs": np.abs, "not": np.invert, "rsqrt": lambda x: 1 / np.sqrt(x), "sin": np.sin, "cos": np.cos,
}  # fmt: skip
BINARY = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "max": np.fmax, "min": np.fmin, "and": np.bitwise_and,
    "or": np.bitwise_or, "xor": np.bitwise_xor, "div": np.divide,
    "shl": lambda a, b: np.where(b < 32, np.left_shift(a, np.minimum(b, 31)), 0),
    "shr": lambda a, b: np.right_shift(a, np.minimum(b, 31)) if a.dtype.kind == "i" else np.where(b < 32, np.right_shift(a, np.minimum(b, 31)), 0),
}  # fmt: skip


@functools.lru_cache(maxsize=256)
def statements(code: str) -> tuple[list[tuple[str, str, list[str]]], dict[str, int]]:
    """(guard, opcode, operands) of every statement, and where labels are."""
    made: list[tuple[str, str, list[str]]] = []
    labels: dict[str, int] = {}
    code = re.sub(r"//[^\n]*", "", code).strip()
    # braces around the whole or around blocks; those of vectors stay
    code = re.sub(r"\{(?=\s*(\.reg|@|[a-z][a-z0-9]*\.))", " ", code)
    for line in code.split(";"):
        line = re.sub(r"^\s*\}|\}\s*$", "", line.strip()).strip() if "{" not in line else line.strip()
        while (label := re.match(r"(\w+):\s*", line)) is not None:
            labels[label[1]] = len(made)
            line = line[label.end() :].strip()
        if not line or line == "}" or line.startswith((".reg", ".pragma")):
            continue
        guard = ""
        if line.startswith("@"):
            guard, line = line.split(None, 1)
        opcode, _, rest = line.partition(" ")
        operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+(?:\s*\|\s*[^,\s]+)?", rest)
        made.append((guard, opcode, operands))
    return made, labels


class Lanes:
    """The registers of all lanes, (warps, 32)."""

    def __init__(self, values: dict[str, Any], shape: tuple[int, ...]) -> None:
        self.values, self.shape = values, shape

    def read(self, name: str, kind: Any) -> Any:
        """A register or a literal as numbers of a NumPy type, by its bits."""
        if name in self.values:
            found = self.values[name]
            if isinstance(found, pointer):
                raise EmulatorError("PTX that computes with an address is not emulated")
            kind = np.dtype(kind)
            if found.dtype == kind:
                return found
            if found.dtype == np.bool_ or kind == np.bool_:
                raise EmulatorError(f"predicate {name} in PTX as a number")
            if found.dtype.itemsize == kind.itemsize:
                return found.view(kind)
            return found.astype(f"u{found.dtype.itemsize}").astype(f"u{kind.itemsize}").view(kind)
        return np.broadcast_to(literal(name, kind), self.shape)

    def predicate(self, name: str) -> Any:
        negated, name = name.startswith("!"), name.lstrip("!")
        found = self.values[name]
        return ~found if negated else found

    def write(self, name: str, value: Any) -> None:
        if name != "_":
            self.values[name] = np.broadcast_to(value, self.shape)


def literal(text: str, kind: Any) -> Any:
    if text.startswith(("0f", "0F")):
        number = struct.unpack(">f", bytes.fromhex(text[2:]))[0]
        return (
            np.array(number, np.float32).view(kind)
            if np.dtype(kind).itemsize == 4
            else np.array(number, kind)
        )
    try:
        whole = int(text, 0)
    except ValueError:
        try:
            return np.array(float(text), kind)
        except ValueError:
            raise EmulatorError(f"PTX reads {text!r}, which nothing has written") from None
    kind = np.dtype(kind)
    if kind.kind in "iu":
        return np.array(whole & (2 ** (8 * kind.itemsize) - 1), f"u{kind.itemsize}").view(kind)
    return np.array(whole, kind)


def uniform(x: Any) -> bool:
    """A value of a branch, the same in all lanes of a warp."""
    if x.all():
        return True
    if not x.any():
        return False
    if x.shape[0] > 1 and (x.all(-1) | ~x.any(-1)).all():
        raise Diverged
    raise EmulatorError("lanes of a warp take different branches in PTX")


def execute(code: str, lanes: Lanes) -> None:
    """Run all statements."""
    lines, labels = statements(code)
    at = 0
    while at < len(lines):
        guard, opcode, operands = lines[at]
        at += 1
        active = lanes.predicate(guard[1:]) if guard else None
        name, *parts = opcode.split(".")
        if name == "bra":
            if active is None or uniform(active):
                at = labels[operands[0]]
            continue
        if name in ("ret", "exit", "bar", "fence", "membar"):
            continue
        before = dict(lanes.values) if active is not None and not active.all() else None
        statement(name, parts, operands, lanes, active)
        if before is not None:  # only active lanes write
            for each, value in lanes.values.items():
                old = before.get(each)
                if old is not value and isinstance(value, np.ndarray):
                    lanes.values[each] = (
                        value if old is None else np.where(active, value, old.view(value.dtype))
                    )


def statement(name: str, parts: list[str], operands: list[str], lanes: Lanes, active: Any) -> None:
    kind = NUMPY.get(parts[-1], np.uint32) if parts else np.uint32
    target = operands[0]

    def of(i: int, as_kind: Any = None) -> Any:
        return lanes.read(operands[i], kind if as_kind is None else as_kind)

    if name == "mov":
        if target.startswith("{"):  # two halves of a register
            low, high = [part.strip() for part in target.strip("{}").split(",")]
            if parts[-1] == "b64":
                x = lanes.read(operands[1], np.uint64)
                lanes.write(low, x.astype(np.uint32))
                lanes.write(high, (x >> np.uint64(32)).astype(np.uint32))
                return
            x = lanes.read(operands[1], np.uint32)
            lanes.write(low, (x & 0xFFFF).astype(np.uint16))
            lanes.write(high, (x >> 16).astype(np.uint16))
        elif operands[1].startswith("{"):
            low, high = [part.strip() for part in operands[1].strip("{}").split(",")]
            bits = lanes.read(low, np.uint16).astype(np.uint32) | (
                lanes.read(high, np.uint16).astype(np.uint32) << 16
            )
            lanes.write(target, bits)
        elif operands[1] == "%laneid":
            lanes.write(target, np.arange(32, dtype=np.uint32))
        elif isinstance(lanes.values.get(operands[1]), pointer):
            lanes.values[target] = lanes.values[operands[1]]
        elif operands[1] in lanes.values:
            lanes.write(target, lanes.values[operands[1]])
        else:
            lanes.write(target, of(1))
    elif name == "cvt":
        to, come = parts[-2], parts[-1]
        if to in ("bf16x2", "f16x2"):
            high, low = of(1, np.float32), of(2, np.float32)
            if "relu" in parts:
                high, low = np.maximum(high, 0), np.maximum(low, 0)
            lanes.write(target, half_bits(low, to) | (half_bits(high, to) << 16))
        elif to in ("bf16", "f16"):
            lanes.write(target, half_bits(of(1, np.float32), to + "x2").astype(np.uint16))
        elif come in ("bf16", "f16"):
            x = lanes.read(operands[1], np.uint16)
            lanes.write(
                target,
                (x.astype(np.uint32) << 16).view(np.float32) if come == "bf16" else of_bits16(x, float16),
            )
        else:
            x = lanes.read(operands[1], NUMPY[come])
            if NUMPY[to] in (np.int32, np.uint32) and x.dtype.kind == "f":
                x = np.rint(x) if "rni" in parts else np.trunc(x) if "rzi" in parts else np.floor(x)
                ends = np.iinfo(NUMPY[to])
                x = np.clip(np.nan_to_num(x.astype(np.float64), nan=0.0), ends.min, ends.max)
            lanes.write(target, x.astype(NUMPY[to]))
    elif name == "setp":
        compare = parts[0]
        a, b = of(1), of(2)
        unordered = compare.endswith("u") and compare not in ("equ",) and compare[:-1] in COMPARE
        made = COMPARE[compare[:-1] if unordered or compare == "equ" else compare](a, b)
        if compare == "ne" and a.dtype.kind == "f":
            made = made & ~(np.isnan(a) | np.isnan(b))
        if unordered or compare == "equ":
            made = made | np.isnan(a) | np.isnan(b)
        if parts[1] in ("or", "and", "xor"):
            other = lanes.predicate(operands[3])
            made = {"or": np.logical_or, "and": np.logical_and, "xor": np.logical_xor}[parts[1]](made, other)
        both = [each.strip() for each in target.split("|")]
        lanes.write(both[0], made)
        if len(both) > 1:
            lanes.write(both[1], ~made)
    elif name == "selp":
        lanes.write(target, np.where(lanes.predicate(operands[3]), of(1), of(2)))
    elif name == "vote":
        x = lanes.predicate(operands[1])
        if parts[1] == "ballot":
            bits = (x.astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(-1, keepdims=True)
            lanes.write(target, bits.astype(np.uint32))
        else:
            lanes.write(target, (x.any if parts[1] == "any" else x.all)(-1, keepdims=True))
    elif name == "shfl":
        x = lanes.values[operands[1]]
        lane, n = np.arange(32), lanes.read(operands[2], np.int32)[0]
        source = {
            "bfly": lane ^ n,
            "idx": n & 31,
            "up": np.maximum(lane - n, 0),
            "down": np.minimum(lane + n, 31),
        }[parts[1]]
        lanes.write(target.split("|")[0].strip(), x[:, source])
    elif name in ("atom", "red"):
        operation = next(part for part in parts if part in ("add", "max", "min", "exch", "or", "and"))
        place = 0 if name == "red" else 1
        old = atomic(
            lanes.values[operands[place].strip("[] ")], operation, of(place + 1), active, lanes.shape
        )
        if name == "atom":
            lanes.write(target, old)
    elif name == "redux":
        x, reduce = of(1), {"or": np.bitwise_or, "and": np.bitwise_and, "max": np.maximum, "min": np.minimum}
        lanes.write(target, reduce[parts[1]].reduce(x, -1, keepdims=True))
    elif name == "ld" and "global" in parts:
        scheduler().pause()
        lanes.write(target, loaded(lanes.values[operands[1].strip("[] ")], lanes.shape).view(kind))
    elif name == "cp" and parts[:3] == ["async", "bulk", "wait_group"]:
        stores_landed(int(operands[0]))
    elif name in ("fma", "mad"):
        a, b, c = (of(i) for i in (1, 2, 3))
        exact = a.astype(np.float64) * b + c if a.dtype.kind == "f" else a * b + c
        lanes.write(target, exact.astype(a.dtype))
    elif name == "mul" and parts[0] == "wide":
        lanes.write(target, of(1).astype(np.uint64) * of(2).astype(np.uint64))
    elif name == "prmt":
        lanes.write(target, permuted_bytes(of(1), of(2), of(3)))
    elif name in UNARY and len(operands) == 2:
        lanes.write(target, UNARY[name](of(1)).astype(kind))
    elif name in ("and", "or", "xor", "not") and parts[-1] == "pred":
        a = lanes.predicate(operands[1])
        b = lanes.predicate(operands[2]) if len(operands) > 2 else None
        lanes.write(target, ~a if name == "not" else {"and": a & b, "or": a | b, "xor": a ^ b}[name])
    elif name in BINARY:
        lanes.write(target, np.asarray(BINARY[name](of(1), of(2))).astype(kind))
    else:
        raise EmulatorError(f"PTX {name}.{'.'.join(parts)} is not emulated: add it to emulator/assembly.py")


def permuted_bytes(a: Any, b: Any, selector: Any) -> Any:
    """prmt: each of four bytes is one of eight, or its sign."""
    both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    made = np.zeros_like(a)
    for i in range(4):
        choice = (selector >> np.uint32(4 * i)) & np.uint32(15)
        byte = ((both >> (8 * (choice & 7)).astype(np.uint64)) & np.uint64(255)).astype(np.uint32)
        byte = np.where(choice & 8, (byte >> 7) * np.uint32(255), byte)
        made |= byte.astype(np.uint32) << np.uint32(8 * i)
    return made


def half_bits(x: Any, kind: str) -> Any:
    if kind == "bf16x2":
        return np.asarray(to_bfloat16(x)).view(np.uint32) >> 16
    return bits16(x, float16)


def atomic(ptr: Any, operation: str, values: Any, active: Any, shape: Any) -> Any:
    """One lane after the other."""
    if not isinstance(ptr, pointer):
        raise EmulatorError("an atomic operation without an address")
    buffer = ptr.buffer
    offsets = np.broadcast_to(ptr.data, shape)
    old = np.zeros(shape, buffer.memory.dtype)
    for place in np.ndindex(*shape):
        if active is None or active[place]:
            buffer.check(offsets[place], "atomic operation")
            found = buffer.memory[offsets[place]]
            value = values[place].view(buffer.memory.dtype)
            old[place] = found
            buffer.memory[offsets[place]] = {
                "add": lambda a, b: a + b, "max": max, "min": min, "exch": lambda a, b: b, "or": lambda a, b: a | b,
                "and": lambda a, b: a & b,
            }[operation](found, value)  # fmt: skip
    return old.view(np.uint32) if old.dtype.itemsize == 4 else old


def loaded(ptr: Any, shape: Any) -> Any:
    """What all lanes load."""
    if not isinstance(ptr, pointer):
        raise EmulatorError("a load without an address")
    offsets = np.broadcast_to(ptr.data, shape)
    ptr.buffer.check(offsets, "load")
    return np.ascontiguousarray(ptr.buffer.memory[offsets])


def packed_registers(x: Any, kind: Any) -> Any:
    """Numbers of threads, the last axis, as registers of 32 or 64 bits."""
    if kind.primitive_bitwidth >= 32:
        return x
    if kind.primitive_bitwidth != 16:
        if kind.primitive_bitwidth == 1:
            return x.astype(np.uint32)
        raise EmulatorError(f"PTX with operands of {kind} is not emulated")
    bits = bits16(x, kind) if kind.is_float else x.astype(np.uint16).astype(np.uint32)
    if x.shape[-1] == 1:
        return bits
    return bits[..., 0::2] | (bits[..., 1::2] << 16)


def unpacked_registers(x: list[Any], kind: Any, pack: int) -> list[Any]:
    if kind.primitive_bitwidth >= 32:
        return [
            value.view(kind.held) if value.dtype.itemsize == kind.held.itemsize else value.astype(kind.held)
            for value in x
        ]
    if kind.primitive_bitwidth == 1:
        return [value.astype(np.uint32) & 1 != 0 for value in x]
    made = []
    for value in x:
        bits = value.view(np.uint32) if value.dtype.itemsize == 4 else value.astype(np.uint32)
        halves = [bits & 0xFFFF, bits >> 16][: 2 if pack > 1 else 1]
        made += [of_bits16(half, kind) if kind.is_float else half.astype(kind.held) for half in halves]
    return made


def inline_asm_elementwise(
    asm: str, constraints: str, args: Any, dtype: Any, is_pure: bool = False, pack: int = 1
) -> Any:
    """Results of PTX, called for every `pack` numbers of a thread."""
    pack, several = int(pack), isinstance(dtype, (tuple, list))
    kinds = list(dtype) if several else [dtype]
    args = [to_tensor(x) for x in args]
    if not is_pure:
        scheduler().pause()
    names = [each.strip() for each in constraints.split(",")]
    n_outputs = sum(each.startswith("=") for each in names)
    shape = next((x.shape for x in args if x.shape), ())
    model = next((x for x in args if x.shape), args[0])
    layout = next((x.layout for x in args if x.layout is not None), None)
    is_number, n_warps = not shape, current().num_warps
    if any(x.shape and x.shape != shape for x in args):
        raise EmulatorError(f"PTX with operands of shapes {[list(x.shape) for x in args]}")
    in_threads = False
    if is_number:
        threads = [
            np.broadcast_to(x.data, (n_warps, 32, 1)) if not isinstance(x, pointer) else x for x in args
        ]
        n = 1
    elif model.by_thread:
        threads, n = [np.broadcast_to(x.data, shape)[..., None] for x in args], 1
    elif has_threads(layout):
        in_threads = True
        threads = [to_threads(np.broadcast_to(x.data, shape), layout) for x in args]
        n = threads[0].shape[-1]
    else:
        if pack > 1 or re.search(r"vote|shfl|%laneid|match|elect", asm):
            raise EmulatorError(
                f"PTX with pack {pack} or between lanes, of a tensor of {layout}: only results of products"
            )
        if any(isinstance(x, pointer) for x in args):
            raise EmulatorError("PTX of a tensor of addresses is not emulated")
        threads, n = [np.broadcast_to(x.data, shape).reshape(1, -1, 1) for x in args], 1
    if n % pack:
        raise EmulatorError(f"threads hold {n} numbers, no multiple of pack {pack}")

    results: list[list[Any]] = []
    for first in range(0, n, pack):
        registers: list[Any] = []
        for x, arg in zip(threads, args):
            if isinstance(x, pointer):
                registers.append(x)
            else:
                packed = packed_registers(np.ascontiguousarray(x[..., first : first + pack]), arg.dtype)
                registers += [packed[..., i] for i in range(packed.shape[-1])]
        # fewer operands than the string has: those of the string past the last are not read
        tied = names[n_outputs:]

        def call(operands: list[Any], registers: list[Any] = registers, tied: list[str] = tied) -> list[Any]:
            values: dict[str, Any] = {}
            given = iter(operands)
            lanes_shape = operands[0].shape if operands else threads[0].shape[:2]
            for i, x in enumerate(registers):
                value = x if isinstance(x, pointer) else next(given)
                name = tied[i] if i < len(tied) else ""
                values[f"${name}" if name.isdigit() else f"${n_outputs + i}"] = value
                if name.isdigit():
                    values[f"${n_outputs + i}"] = value
            lanes = Lanes(values, lanes_shape if operands else (n_warps, 32))
            execute(str(asm), lanes)
            missing = [i for i in range(n_outputs) if f"${i}" not in lanes.values]
            if missing:
                raise EmulatorError(f"PTX leaves ${missing[0]} unwritten: {asm:.80}")
            return [np.ascontiguousarray(lanes.values[f"${i}"]) for i in range(n_outputs)]

        plain = [x for x in registers if not isinstance(x, pointer)]
        results.append(by_warp(call, plain, n_warps if is_number else threads[0].shape[0]))

    per_kind = n_outputs // len(kinds)
    made = []
    for k, kind in enumerate(kinds):
        columns: list[Any] = []
        for group in results:
            columns += unpacked_registers(group[k * per_kind : (k + 1) * per_kind], kind, pack)
        if is_number:
            lane = columns[0]
            if not ((lane == lane[0, 0]) | (lane != lane)).all():
                raise EmulatorError(f"PTX gives lanes different numbers, and the kernel wants one: {asm:.80}")
            made.append(tensor(lane[0, 0], kind))
            continue
        data = np.stack(columns, -1)
        if in_threads:
            data = from_threads(data, shape, layout)
        else:
            data = data[..., 0].reshape(shape)
        each = tensor(kind.rounded(data), kind, layout)
        each.by_thread = model.by_thread
        made.append(each)
    return tuple(made) if several else made[0]
