"""Compile a kernel without a GPU and return what ptxas reports about it; used by both offline_compile scripts."""

from __future__ import annotations

import contextlib
import io
import os
import re
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget

# Triton prints the report of its own call of ptxas, whose version and options change between releases. A kernel taken from
# the cache comes without a report.
os.environ |= {"TRITON_DUMP_PTXAS_LOG": "1", "TRITON_ALWAYS_COMPILE": "1"}


class Report(NamedTuple):
    """The compiled kernel, its registers per thread, the spilled bytes of all functions, and the codes of ptxas warnings."""

    binary: Any
    registers: int
    spills: int
    warnings: list[str]


def compiled_with_report(source: Any, capability: int, options: dict[str, Any]) -> Report:
    """Compile a kernel for a compute capability such as 90."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # if ptxas fails, Triton also prints the whole program
        binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    report = said.getvalue()
    return Report(
        binary,
        max(int(count) for count in re.findall(r"Used (\d+) registers", report)),
        sum(int(count) for count in re.findall(r"(\d+) bytes spill stores", report)),
        sorted(set(re.findall(r"\bC75\d\d\b", report))),
    )
