"""Compile the Triton kernels that choose blocks and make lists, work orders and tables of sequences on a GPU, without one, and
read what ptxas reports.

Run as a script (without TRITON_INTERPRET): prints one JSON object per kernel and case; with --some of fewer choices.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from offline_compile import compiled

from dilated_attention_pytorch.backends.hopper import device_order, device_tiles
from dilated_attention_pytorch.backends.triton.launch import Launch
from dilated_attention_pytorch.grid import BlockGrid
from dilated_attention_pytorch.launching.kept_kernel import KeptKernel
from dilated_attention_pytorch.layout import device_lists, device_selection
from dilated_attention_pytorch.layout.best_blocks import Choice
from dilated_attention_pytorch.layout.block_indices import checked_indices
from dilated_attention_pytorch.layout.lists import BlockLists
from dilated_attention_pytorch.sequence_kernel import table_kernel
from dilated_attention_pytorch.sequence_launch import arguments_of
from dilated_attention_pytorch.sequence_plans import Given, TablePlan, plan_of_batch, plan_of_packed


class Compiling:
    """Stands for a kernel: a launch compiles it and prints a line, once for equal types and constants."""

    def __init__(self, kernel: Any, capability: int) -> None:
        self.kernel, self.capability = kernel, capability
        self.seen: list[dict[str, str]] = []

    def __getitem__(self, grid: tuple[int]) -> Any:
        def launch(*given: Any, **others: Any) -> None:
            arguments = {**dict(zip(self.kernel.arg_names, given, strict=False)), **others}
            case = {
                name: str(value.dtype if isinstance(value, torch.Tensor) else value)
                for name, value in arguments.items()
                if isinstance(value, torch.Tensor) or name.isupper()
            }
            if case not in self.seen:
                self.seen.append(case)
                warps = {"num_warps": arguments.pop("num_warps", 4)}
                made = Launch(self.kernel, grid, arguments, warps)
                print(json.dumps({**case, **compiled(made, self.capability)}), flush=True)

        return launch


class Case(NamedTuple):
    """The arguments of a layout from indices that choose how kernels are compiled."""

    dtype: torch.dtype
    has_counts: bool
    causal: bool
    block_size: int


CASES = [Case(torch.int64, False, False, 64), Case(torch.int32, True, True, 128)]
# Scores, and how to choose of them; the first with --some.
CHOICES = [
    (torch.zeros(1, 3, 2048, dtype=torch.bfloat16), Choice(205, 0.9, True, 1, 1, True)),
    (torch.zeros(1, 3, 2048), Choice(205, None, True, 1, 1, True)),
    (torch.zeros(1, 3, 300), Choice(40, None, True, 0, 0, False)),
    (torch.zeros(1, 3, 8192), Choice(1639, 0.9, True, 0, 0, True)),
    (torch.zeros(1, 3, 16384), Choice(1639, None, True, 0, 0, True)),
]


# Blocks that are joined to tiles, and tokens; the keys of many are int64. The first with --some.
TILES = [(16, 1000), (32, 1000), (16, 2**21)]
RAGGED = BlockGrid(1000, 1000, 64, True)
BOUNDS, NUMBERS = torch.zeros(4, dtype=torch.int32), torch.zeros(3, dtype=torch.int64)
TABLES: list[tuple[TablePlan, Given]] = [
    (plan_of_packed(3, (1000, 1000), (500, 500), True, None, RAGGED), Given(BOUNDS, BOUNDS)),
    (
        plan_of_batch(torch.empty(3, 100, 1, 1), 1000, True, NUMBERS, True, RAGGED),
        Given(None, None, NUMBERS, NUMBERS, NUMBERS),
    ),
]


def main(
    capability: int, choices: Sequence[tuple[torch.Tensor, Choice]], tiles: Sequence[tuple[int, int]]
) -> None:
    """Compile every kernel for one compute capability."""
    for module in (device_lists, device_order, device_selection, device_tiles):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            setattr(module, name, Compiling(getattr(module, name), capability))
        for kept in [value for value in vars(module).values() if isinstance(value, KeptKernel)]:
            kept.kernel = Compiling(kept.kernel, capability)
    for case in CASES:
        grid = BlockGrid(300 * case.block_size, 300 * case.block_size, case.block_size, case.causal)
        indices = torch.zeros(1, 2, grid.n_rows, 100, dtype=case.dtype)
        counts = torch.ones(1, 2, grid.n_rows, dtype=case.dtype) if case.has_counts else None
        rows, cols = device_lists.lists_by_kernels(checked_indices(indices, counts, grid))
        device_order.work_order_by_kernels(grid, 2, rows, cols, None)
    for block_size, length in tiles:
        tokens = BlockGrid(length, length, block_size, False)
        numbers = torch.zeros(8, dtype=torch.int32)
        device_tiles.joined_tiles_by_kernels(BlockLists(numbers, numbers, numbers), tokens, 2)
    for scores, choice in choices:
        budgets = torch.ones(1, 3, dtype=torch.int32) if choice.causal else None
        diagonal = torch.ones(3, dtype=torch.int32) if choice.sinks else None
        device_selection.choose_on_device(scores, budgets, choice, diagonal)
    for plan, given in TABLES:
        table, groups = torch.zeros(3, 5, dtype=torch.int32), torch.zeros(2, 4, dtype=torch.int32)
        arguments = arguments_of(plan, given, table, groups)
        Compiling(table_kernel, capability)[1,](**dict(zip(table_kernel.arg_names, arguments, strict=True)))


if __name__ == "__main__":
    some = 1 if "--some" in sys.argv else None
    main(int(sys.argv[1]), CHOICES[:some], TILES[:some])
