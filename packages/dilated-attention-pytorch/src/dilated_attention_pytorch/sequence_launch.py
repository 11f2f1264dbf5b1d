"""Launches of the kernel that makes the table of the sequences of a call.

Every call with positions makes a table, so the compiled kernel is kept, and launched by Triton's own launcher function where
raw_launch.py knows it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from . import _torch_internals
from .backends.installed import release
from .caching import BoundedCache
from .sequence_kernel import table_kernel
from .sequence_plans import Given, TablePlan
from .sequences import COLUMNS

BLOCK = 128  # sequences of a program
WARPS = {"num_warps": 4}
# the releases that raw_launch.py knows, and no interpreter
HAS_RAW_LAUNCH = isinstance(table_kernel, triton.JITFunction) and (3, 6) <= (
    release(triton.__version__) or (0, 0)
) <= (3, 9)
if HAS_RAW_LAUNCH:
    from .backends import raw_launch

LAUNCHES = BoundedCache(64)  # by device, what is given in which type, and the constants of the kernel


def arguments_of(plan: TablePlan, given: Given, table: Tensor) -> dict[str, Any]:
    """Every argument of the kernel, in order."""
    steps = [0 if x is None else x.stride(0) for x in given]
    names = ("stride_cu_q", "stride_cu_k", "stride_offset", "stride_lengths", "stride_starts")
    return {
        "Table": table, "CuSeqlensQ": given.cu_seqlens_q, "CuSeqlensK": given.cu_seqlens_k, "QOffset": given.q_offset,
        "KvLengths": given.kv_lengths, "KvStarts": given.kv_starts, **dict(zip(names, steps, strict=True)),
        "n_sequences": plan.n_sequences, "q_tokens": plan.q_tokens, "kv_tokens": plan.kv_tokens,
        "max_q_len": plan.max_q_len, "max_kv_len": plan.max_kv_len, "first": plan.first, "q_end": plan.q_end,
        "kv_end": plan.kv_end, "POSITION": plan.position, "CUT": plan.is_cut, "BLOCK": BLOCK,
    }  # fmt: skip


def make_table(plan: TablePlan, given: Given, device: torch.device) -> Tensor:
    """The table of a plan, int32 (n_sequences, 5), on the device of the tensors."""
    index = device.index
    if HAS_RAW_LAUNCH and index != _torch_internals.current_device():
        with torch.cuda.device(index):
            return make_table(plan, given, device)
    n, step = plan.n_sequences, len(COLUMNS)
    table = torch.empty_strided((n, step), (step, 1), dtype=torch.int32, device=device)
    if n == 0:
        return table
    if not HAS_RAW_LAUNCH or raw_launch.is_hooked():
        table_kernel[-(-n // BLOCK),](**arguments_of(plan, given, table), **WARPS)
        return table
    cu_q, cu_k, offset, lengths, starts = given
    key = (
        index, plan.position, plan.is_cut, None if cu_q is None else cu_q.dtype, None if cu_k is None else cu_k.dtype,
        None if offset is None else offset.dtype, None if lengths is None else lengths.dtype,
        None if starts is None else starts.dtype,
    )  # fmt: skip
    launch: TableLaunch = LAUNCHES.get(key) or LAUNCHES.keep(
        key, TableLaunch(arguments_of(plan, given, table))
    )
    launch.run(index, table, plan, given)
    return table


class TableLaunch:
    """The compiled kernel for some kinds of arguments."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        compiled = table_kernel.warmup(grid=(1,), **arguments, **WARPS)
        self.compiled = compiled.result() if hasattr(compiled, "result") else compiled
        launcher = self.compiled.run  # loads the binary
        self.launcher = launcher
        self.function = self.compiled.function
        self.raw_launch, _ = raw_launch.unwrapped(launcher, 0)
        self.options = raw_launch.launch_options(launcher, self.compiled.packed_metadata)
        self.constants = arguments["POSITION"], arguments["CUT"], arguments["BLOCK"]

    def run(self, index: int, table: Tensor, plan: TablePlan, given: Given) -> None:
        """Launch on the current stream of device `index`, which is the current one."""
        stream = _torch_internals.current_raw_stream(index)
        cu_q, cu_k, offset, lengths, starts = given
        p, n = plan, plan.n_sequences
        made = (
            table.data_ptr(), *(None if x is None else x.data_ptr() for x in given),
            0 if cu_q is None else cu_q.stride(0), 0 if cu_k is None else cu_k.stride(0),
            0 if offset is None else offset.stride(0), 0 if lengths is None else lengths.stride(0),
            0 if starts is None else starts.stride(0),
            n, p.q_tokens, p.kv_tokens, p.max_q_len, p.max_kv_len, p.first, p.q_end, p.kv_end, *self.constants,
        )  # fmt: skip
        grid = -(-n // BLOCK)
        if self.raw_launch is None:
            table_kernel[grid,](**arguments_of(plan, given, table), **WARPS)
        elif raw_launch.ARGUMENTS_APART:
            self.raw_launch(grid, 1, 1, stream, self.function, *self.options, *made)
        else:
            self.raw_launch(grid, 1, 1, stream, self.function, *self.options, made)
