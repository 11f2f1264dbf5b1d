"""What ptxas says of a kernel that Triton compiles with no GPU present: for the scripts of the offline compile."""

from __future__ import annotations

import contextlib
import io
import os
import re
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget

# Triton prints what its own call of ptxas reports: from version to version it takes another ptxas and other options. A kernel
# out of its cache would come without.
os.environ |= {"TRITON_DUMP_PTXAS_LOG": "1", "TRITON_ALWAYS_COMPILE": "1"}


class Report(NamedTuple):
    """The compiled kernel; registers per thread, spilled bytes of all functions, the codes of what ptxas complains of."""

    binary: Any
    registers: int
    spills: int
    warnings: list[str]


def compiled_with_report(source: Any, capability: int, options: dict[str, Any]) -> Report:
    """Compile a kernel for a compute capability such as 90."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # where ptxas fails, Triton prints the whole program too
        binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    report = said.getvalue()
    return Report(
        binary,
        max(int(count) for count in re.findall(r"Used (\d+) registers", report)),
        sum(int(count) for count in re.findall(r"(\d+) bytes spill stores", report)),
        sorted(set(re.findall(r"\bC75\d\d\b", report))),
    )
