"""Times candidate tiles of the Hopper kernels and prints lines for `backends/hopper/tuning.py`.

A candidate replaces the table's entry while it is compiled and timed. It is not timed if its result differs from that of
the entry.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import MISSING, astuple, fields
from typing import Any

import torch
from torch import Tensor

from dilated_attention_pytorch.backends.hopper import HOPPER, tuning
from dilated_attention_pytorch.backends.hopper.tuning import BackwardTiles, ForwardTiles
from dilated_attention_pytorch.backends.problem import AttentionProblem

from .counts import counted
from .measure import one_line
from .problem import Shape, make
from .processes import in_processes

TABLES: dict[str, dict[tuple[int, int], Any]] = {
    "forward": tuning.FORWARD,
    "dq": tuning.DQ,
    "dkdv": tuning.DKDV,
}
STAGES = tuple(range(2, 13))
SHARED_KIB = 227  # shared memory that a program can use
RESERVED = 512  # bytes that two programs lose each, in addition to what they allocate
BARRIERS = 1024  # bytes, about the size of all small allocations of a kernel
# Per pair and element of head_dim. For a pass of the backward, the whole backward is timed, the other pass unchanged.
FLOPS = {"forward": 4, "dq": 10, "dkdv": 10}
TOLERANCE = 0.01  # relative; results differ in rounding only
Tiles = ForwardTiles | BackwardTiles


def table_of(shape: Shape) -> dict[tuple[int, int], Any]:
    return TABLES[shape[0]]


def choices(name: str, head_dim: int, block: int) -> tuple[Any, ...]:
    """The values to try for a field of the tiles; none for an unknown field, which keeps its default."""
    flags: tuple[Any, ...] = (True, False)
    # at head_dim 256 what stays takes 128 KiB, so that steps of 64 do not fit
    sides = (64, 128) if head_dim <= 128 else (32, 64)
    return {
        "stages": STAGES,
        "k_stages": STAGES,
        "v_stages": STAGES,
        "overlap": ("intra_warpgroup", "none"),
        "unroll": (1, 2, 4),
        "programs": (1, 2),
        "tile": tuple(side for side in sides if side <= block),
        "slots": (1, 2),
        "operands_in_registers": flags,
        "late_lse": flags,
        "overlap_steps": flags,
    }.get(name, ())


def shared_bytes(kernel: str, tiles: Tiles, head_dim: int, block: int) -> int:
    """Shared memory of a program, in bytes."""
    if isinstance(tiles, ForwardTiles):
        n_tokens = tiles.slots * 128 + (tiles.k_stages + tiles.v_stages) * tiles.tile
        return n_tokens * head_dim * 2 + BARRIERS
    stats = 2 * 4 if kernel == "dkdv" else 0  # lse and delta of a query
    step, kept = tiles.tile * (2 * head_dim * 2 + stats), 2 * 128 * head_dim * 2
    return tiles.stages * step + tiles.slots * kept + BARRIERS


def fits(kernel: str, tiles: Tiles, shared: int, block: int) -> bool:
    """Whether the tiles fit in shared memory, use most of it, and no option is redundant."""
    if isinstance(tiles, BackwardTiles):
        # the dq pass reads no lse from shared memory, and only steps of one block overlap
        is_redundant = (kernel == "dq" and tiles.late_lse) or (tiles.tile == block and tiles.overlap_steps)
        return SHARED_KIB * 512 <= shared <= SHARED_KIB * 1024 and not is_redundant
    if block == 64 and tiles.k_stages != tiles.v_stages:
        return False  # the two rows skip tiles of both rings at the same pace
    if not 0 <= tiles.k_stages - tiles.v_stages <= 1 or (tiles.overlap == "none" and tiles.unroll != 2):
        return False  # only "intra_warpgroup" unrolls
    limit = SHARED_KIB * 1024 // tiles.programs - (RESERVED if tiles.programs > 1 else 0)
    # with two programs, registers suffice only for tiles of 64 keys without overlap
    lacks_registers = tiles.programs > 1 and (tiles.overlap != "none" or tiles.tile > 64)
    return limit // 2 <= shared <= limit and not lacks_registers


def candidates(shape: Shape) -> list[Tiles]:
    """The tiles to be timed for a kernel, the table's entry first."""
    kernel, head_dim, block = shape
    kind: Any = ForwardTiles if kernel == "forward" else BackwardTiles
    names = [field.name for field in fields(kind) if choices(field.name, head_dim, block)]
    every = itertools.product(*(choices(name, head_dim, block) for name in names))
    found = [kind(**dict(zip(names, values, strict=True))) for values in every]
    fitting = [
        tiles for tiles in found if fits(kernel, tiles, shared_bytes(kernel, tiles, head_dim, block), block)
    ]
    now = table_of(shape).get(shape[1:])
    return fitting if now is None else [now, *(tiles for tiles in fitting if tiles != now)]


def written(tiles: Tiles) -> str:
    """As written in the table: positional arguments, then keyword arguments that differ from their defaults."""
    parts = []
    for field in fields(tiles):
        value = getattr(tiles, field.name)
        if field.default is MISSING:
            parts.append(json.dumps(value) if isinstance(value, str) else str(value))
        elif value != field.default:
            parts.append(f"{field.name}={value}")
    return f"{type(tiles).__name__}({', '.join(parts)})"


@contextlib.contextmanager
def replaced(shape: Shape, tiles: Tiles) -> Iterator[None]:
    """Replace the table's entry by `tiles` within the context."""
    from dilated_attention_pytorch.backends.hopper.launcher import LAUNCHES

    table, key = table_of(shape), shape[1:]
    before = table.get(key)
    table[key] = tiles
    LAUNCHES.clear()
    try:
        yield
    finally:
        if before is None:
            del table[key]
        else:
            table[key] = before
        LAUNCHES.clear()


def call_of(kernel: str, problem: AttentionProblem) -> Callable[[], tuple[Tensor, ...]]:
    """The call to be timed; its results are compared with those of other tiles."""
    if kernel == "forward":
        return lambda: HOPPER.forward(problem)
    out, lse = HOPPER.forward(problem)
    grad_out = torch.randn_like(out)

    def backward() -> tuple[Tensor, ...]:
        return HOPPER.backward(problem, out, lse, grad_out, None)[:3]

    return backward


def compile_one(work: tuple[Shape, Tiles]) -> str | None:
    """Run a candidate on a small problem, which compiles it to the disk cache; returns the error, or None."""
    shape, tiles = work
    try:
        problem = make(shape, 16 * shape[2], 0.2, HOPPER)
        with replaced(shape, tiles):
            call_of(shape[0], problem)()
            torch.cuda.synchronize()
    except Exception as error:
        return one_line(error)
    return None


def check(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        off = float((a.float() - b.float()).norm() / b.float().norm())
        if not off <= TOLERANCE:
            raise RuntimeError(f"result {i} is off by {off:.1e}")


def time_one(shape: Shape, call: Callable[[], tuple[Tensor, ...]], tiles: Tiles, expected: Any) -> float:
    """Milliseconds of a candidate, after its result has been checked."""
    from triton.testing import do_bench

    with replaced(shape, tiles):
        if expected is not None:
            check(call(), expected)
        return float(do_bench(call, warmup=10, rep=50, return_mode="median"))


def search(
    shape: Shape, tried: list[Tiles], failures: dict[Tiles, str], time: Callable[[Tiles], float]
) -> list[tuple[float, Tiles]]:
    """Times of the candidates that run, the fastest first; prints why the others fail."""
    timed = []
    for tiles in tried:
        failure = failures.get(tiles)
        if failure is None:
            try:
                timed.append((time(tiles), tiles))
            except Exception as error:  # a candidate that fails is a line of the output
                failure = one_line(error)
        if failure is not None:
            print(f"{shape} {written(tiles)}: {failure}", flush=True)
    return sorted(timed, key=lambda item: item[0])


def tune_shape(shape: Shape, problem: AttentionProblem, failures: dict[Tiles, str]) -> dict[str, Any]:
    """Time the candidates of a kernel and print the fastest as lines for the table."""
    tried = candidates(shape)
    call = call_of(shape[0], problem)
    expected = None if tried[0] in failures else call()
    timed = search(shape, tried, failures, lambda tiles: time_one(shape, call, tiles, expected))
    pairs = problem.rows.indices.numel() * shape[2] ** 2
    flops = FLOPS[shape[0]] * problem.num_heads * pairs * shape[1]
    print(f"# {shape[0]}", flush=True)
    for ms, tiles in timed[:4]:
        now = ", in the table now" if tiles == table_of(shape).get(shape[1:]) else ""
        speed = f"{ms:.3f} ms, {flops / ms / 1e9:.0f} TFLOP/s"
        print(f"    {shape[1:]}: {written(tiles)},  # {speed}{now}", flush=True)
    return {"shape": shape, "timed": [(ms, astuple(tiles)) for ms, tiles in timed], "flops": flops}


def tune(shapes: list[Shape], seqlen: int, density: float, processes: int) -> Iterator[dict[str, Any]]:
    """The timings of each kernel, as they are measured; prints the fastest."""
    for shape in shapes:
        if shape[1:] not in table_of(shape):
            print(f"{shape}: not in the table, the portable kernels serve it", flush=True)
    shapes = [shape for shape in shapes if shape[1:] in table_of(shape)]
    work = [(shape, tiles) for shape in shapes for tiles in candidates(shape)]
    tasks, workers = counted(len(work), "candidate"), counted(processes, "process", "processes")
    print(f"compiling {tasks} with {workers}", flush=True)
    reasons = dict(zip(work, in_processes(compile_one, work, processes), strict=True))
    for shape in shapes:
        problem = make(shape, seqlen, density, HOPPER)
        why_not = HOPPER.rejects(problem)
        if why_not is not None:
            print(f"{shape}: {why_not}", flush=True)
            continue
        failures = {
            tiles: why for (other, tiles), why in reasons.items() if other == shape and why is not None
        }
        yield tune_shape(shape, problem, failures)
