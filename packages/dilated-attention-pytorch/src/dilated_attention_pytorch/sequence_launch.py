"""Launches of the kernel that makes the table of the sequences of a call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .launching.kept_kernel import KeptKernel
from .sequence_kernel import table_kernel
from .sequence_plans import Given, TablePlan
from .sequences import COLUMNS

BLOCK, LARGE_BLOCK = 128, 1024  # sequences that are taken at once
KERNEL = KeptKernel(table_kernel)


def arguments_of(plan: TablePlan, given: Given, table: Tensor, groups: Tensor) -> tuple[Any, ...]:
    """Every argument of the kernel, in order."""
    cu_q, cu_k, q_offset, lengths, starts = given
    p = plan
    return (
        table, groups, cu_q, cu_k, q_offset, lengths, starts, *(0 if x is None else x.stride(0) for x in given),
        p.n_sequences, p.q_tokens, p.kv_tokens, p.max_q_len, p.max_kv_len, p.first, p.q_end, p.kv_end, p.first_position,
        p.position, p.is_cut, BLOCK if p.n_sequences <= BLOCK else LARGE_BLOCK,
    )  # fmt: skip


def make_table(plan: TablePlan, given: Given, device: torch.device) -> tuple[Tensor, Tensor]:
    """The table of a plan, int32 (n_sequences, 5), and the groups, see `Sequences`, on the device of the tensors."""
    n, step = plan.n_sequences, len(COLUMNS)
    table = torch.empty_strided((n, step), (step, 1), dtype=torch.int32, device=device)
    groups = torch.empty_strided((2, n + 1), (n + 1, 1), dtype=torch.int32, device=device)
    KERNEL.run(device, 1, arguments_of(plan, given, table, groups))
    return table, groups
