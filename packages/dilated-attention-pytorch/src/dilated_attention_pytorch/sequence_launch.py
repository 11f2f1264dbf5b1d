"""Launches of the kernel that makes the table of the sequences of a call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .backends.kept_kernel import KeptKernel
from .sequence_kernel import table_kernel
from .sequence_plans import Given, TablePlan
from .sequences import COLUMNS

BLOCK = 128  # sequences of a program
KERNEL = KeptKernel(table_kernel)


def arguments_of(plan: TablePlan, given: Given, table: Tensor) -> tuple[Any, ...]:
    """Every argument of the kernel, in order."""
    cu_q, cu_k, q_offset, lengths, starts = given
    p = plan
    return (
        table, cu_q, cu_k, q_offset, lengths, starts, *(0 if x is None else x.stride(0) for x in given), p.n_sequences,
        p.q_tokens, p.kv_tokens, p.max_q_len, p.max_kv_len, p.first, p.q_end, p.kv_end, p.position, p.is_cut, BLOCK,
    )  # fmt: skip


def make_table(plan: TablePlan, given: Given, device: torch.device) -> Tensor:
    """The table of a plan, int32 (n_sequences, 5), on the device of the tensors."""
    n, step = plan.n_sequences, len(COLUMNS)
    table = torch.empty_strided((n, step), (step, 1), dtype=torch.int32, device=device)
    KERNEL.run(device, -(-n // BLOCK), arguments_of(plan, given, table))
    return table
