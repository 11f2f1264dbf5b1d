"""Compile the kernels of a call for a GPU that need not be there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ... import _torch_internals
from ..compile_only import compile_only, replaced
from ..problem import AttentionProblem, OutputGrads
from . import launch
from .adding import Limits, bytes_of_head
from .device_order import work_order_by_kernels
from .device_tiles import joined_tiles_by_kernels
from .launcher import LAUNCHES, descriptor
from .prepared import as_with_turns, has_kernel_blocks, of_kernel_blocks
from .single_pass import SINGLE_PASS

CPU = -1  # the index of its device
PROGRAMS = 132  # of an H100; kernels do not depend on them


class CompiledLaunch:
    """Stands for a `Launch`, and only compiles it."""

    def __init__(self, function: Any, arguments: dict[str, Any], options: dict[str, Any], grid: int) -> None:
        made = {name: descriptor(*x) if isinstance(x, tuple) else x for name, x in arguments.items()}
        compiled = function.warmup(grid=(1,), **made, **options)
        if hasattr(compiled, "result"):  # another process compiles it
            compiled.result()

    def run(self, *_: Any) -> None:
        """Run nothing."""


def compile_call(problem: AttentionProblem, capability: tuple[int, int], grads: list[OutputGrads]) -> None:
    """Compile what a call launches, and what makes its work order; its tensors are on the CPU, and nothing is computed."""
    p = problem
    without_gpu: dict[str, Any] = {
        "Launch": CompiledLaunch,
        "multiprocessors": lambda index: PROGRAMS,
        "tile_counter": lambda index: 0,
    }
    here = replaced(_torch_internals, current_device=lambda: CPU)
    LAUNCHES.clear()
    try:
        with compile_only(capability), replaced(launch, **without_gpu), here:
            of_kernels = p if has_kernel_blocks(p) else of_kernel_blocks(p)
            if p.block_size < of_kernels.block_size:
                joined_tiles_by_kernels(p.rows, p.grid, p.layout_heads)
            work_order_by_kernels(
                of_kernels.grid, p.layout_heads, of_kernels.rows, of_kernels.cols, p.dilation
            )
            out, lse = launch.launch_forward(p)
            for grad_out, grad_lse in grads:
                for problem, limits in of_all_sizes(p, of_kernels):
                    with replaced(SINGLE_PASS, limits=limits):
                        launch.launch_backward(problem, out, lse, grad_out, grad_lse)
    finally:
        LAUNCHES.clear()


def of_all_sizes(
    problem: AttentionProblem, of_kernels: AttentionProblem
) -> Iterator[tuple[AttentionProblem, Limits]]:
    """Problems that stand for small and large ones of their kind, which may have other backwards, and limits at which they do.

    Args:
        problem: as it is called.
        of_kernels: the same with blocks of the kernels.
    """
    p = of_kernels
    for least in (sys.maxsize, 0):
        limits = Limits(
            fixed_point_queries=0, fixed_point_blocks=least, any_order_blocks=least, any_order_blocks_of_64=least
        )  # fmt: skip
        yield problem, limits
    if p.block_size != 128 or p.dilation is not None:
        return
    if not p.deterministic:
        in_ranges = Limits(l2_bytes=bytes_of_head(p) // 2, range_blocks=1, any_order_blocks=0)
        yield replace(p, of_pattern=False), in_ranges
    elif p.of_pattern and not p.is_causal:
        yield as_with_turns(p), Limits(turn_columns=0, turn_blocks=0)
