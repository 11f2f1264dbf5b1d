"""Times candidate tiles of the Triton kernels and prints lines for `backends/triton/tuning.py`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import astuple
from typing import Any

import torch

from dilated_attention_pytorch.backends.problem import AttentionProblem
from dilated_attention_pytorch.backends.triton import TRITON, tuning
from dilated_attention_pytorch.backends.triton import launch as launches
from dilated_attention_pytorch.backends.triton.tuning import Tiles, default_tiles, shared_kib

from .counts import counted
from .problem import Shape, make
from .processes import in_processes


def candidates(shape: Shape, capability: tuple[int, int]) -> Iterator[Tiles]:
    """The tiles to be timed for a kernel, the default first."""
    kernel, head_dim, block_size = shape
    first = default_tiles(kernel, head_dim, block_size, 2, capability)
    yield first
    kept_sides = [side for side in (64, 128) if side <= block_size]
    for mine, other, num_warps, num_stages in itertools.product(kept_sides, (32, 64, 128), (4, 8), (2, 3, 4)):
        if other > max(block_size, 64) or (num_warps == 4 and mine * other > 64 * 64 and mine + other > 192):
            continue
        held = (1 if kernel == "forward" else 2) * mine * head_dim * 2
        staged = 2 * other * head_dim * 2
        if held + num_stages * staged > shared_kib(capability) * 1024:
            continue
        block_m, block_n = (other, mine) if kernel == "dkdv" else (mine, other)
        tiles = Tiles(block_m, block_n, num_warps, num_stages)
        if tiles != first:
            yield tiles


def prepared(shape: Shape, problem: AttentionProblem, tiles: Tiles) -> launches.Launch:
    """The launch of a kernel with the given tiles; out and lse hold arbitrary values."""
    original = tuning.tiles
    tuning.tiles = lambda kernel, *others: tiles if kernel == shape[0] else original(kernel, *others)
    try:
        capability = torch.cuda.get_device_capability()
        out = torch.randn_like(problem.q)
        lse = torch.full((1, problem.num_heads, problem.q_len), 20.0, device="cuda")
        if shape[0] == "forward":
            return launches.forward_launch(problem, out, lse, capability)
        backward, _ = launches.backward_launches(problem, out, lse, out, None, capability)
        return next(item for item in backward if item.kernel.__name__ == f"{shape[0]}_kernel")
    finally:
        tuning.tiles = original


def compile_one(work: tuple[Shape, Tiles]) -> str | None:
    shape, tiles = work
    try:
        prepared(shape, make(shape, 16 * shape[2], 0.2, TRITON), tiles).run()
        torch.cuda.synchronize()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
    return None


def tune(shapes: list[Shape], seqlen: int, density: float, processes: int) -> Iterator[dict[str, Any]]:
    """The timings of each kernel, as they are measured; prints the fastest."""
    from triton.testing import do_bench

    capability = torch.cuda.get_device_capability()
    work = [(shape, tiles) for shape in shapes for tiles in candidates(shape, capability)]
    tasks, workers = counted(len(work), "candidate"), counted(processes, "process", "processes")
    print(f"compiling {tasks} with {workers}", flush=True)
    failures = list(in_processes(compile_one, work, processes))
    for shape in shapes:
        problem = make(shape, seqlen, density, TRITON)
        pairs = problem.rows.indices.numel() * shape[2] ** 2
        products = {"forward": 2, "dq": 3, "dkdv": 4}[shape[0]]
        flops = 2 * products * problem.num_heads * pairs * shape[1]
        timed = []
        for (other, tiles), failure in zip(work, failures, strict=True):
            if other != shape:
                continue
            if failure is not None:
                print(f"{shape} {astuple(tiles)} {failure}", flush=True)
                continue
            launch = prepared(shape, problem, tiles)
            ms = do_bench(launch.run, warmup=5, rep=25, return_mode="median")
            timed.append((ms, tiles))
        timed.sort(key=lambda item: item[0])
        for ms, tiles in timed[:4]:
            print(f"    {shape}: {tiles},  # {ms:.3f} ms, {flops / ms / 1e9:.0f} TFLOP/s", flush=True)
        default = default_tiles(*shape, 2, capability)
        print(f"    # default {[(round(ms, 3), astuple(t)) for ms, t in timed if t == default]}", flush=True)
        yield {"shape": shape, "timed": [(ms, astuple(tiles)) for ms, tiles in timed], "flops": flops}
