"""The table of the sequences of a call on a GPU, by one kernel; the definition is in sequences.py."""

from __future__ import annotations

import functools
from types import ModuleType

import torch
from torch import Tensor

from .launching.installed import HAS_TRITON
from .sequence_plans import Given, TablePlan
from .sequences import Sequences


@functools.cache
def launches() -> ModuleType:
    """sequence_launch.py, imported late because it needs triton."""
    from . import sequence_launch

    return sequence_launch


def serves(given: Given, q: Tensor) -> bool:
    """Whether the kernel makes the table, in plain eager mode."""
    return (
        HAS_TRITON
        and q.is_cuda
        and all(x is None or (type(x) is Tensor and x.device == q.device) for x in given)
    )


def table_by_kernel(plan: TablePlan, given: Given, device: torch.device) -> Sequences:
    """The table of a plan, by the kernel."""
    table, groups = launches().make_table(plan, given, device)
    return Sequences(table, plan.max_q_len, plan.max_kv_len, plan.is_packed, plan.only_lengths, groups)
