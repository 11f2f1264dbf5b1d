"""The Triton kernels that choose blocks and make lists, work orders and tables of sequences compile, with no GPU present."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dilated_attention_pytorch.launching.installed import installed_versions, release
from tests.core.environment import EVERY_SHAPE, without_interpreter

VERSION = release(next(iter(installed_versions("triton")), "0.0")) or (0, 0)
pytestmark = pytest.mark.skipif(
    VERSION < (3, 6), reason="needs a triton that says what ptxas reports, 3.6 or newer"
)

SCRIPT = Path(__file__).parents[3] / "tools" / "kernel-checks" / "lists_offline_compile.py"
LISTS = {
    "mark_kernel",
    "transpose_kernel",
    "rows_kernel",
    "columns_kernel",
    "order_kernel",
    "merge_kernel",
    "entries_kernel",
    "tiles_kernel",
    "lists_kernel",
    "table_kernel",
}
# Rows of 16,384 columns leave a thread 128 registers; a few numbers are kept elsewhere.
MOST_SPILLS = {"16384": 64}
# Four programs of 128 threads to a multiprocessor, at the least; select_kernel holds a row and may take all.
MOST_REGISTERS = {**dict.fromkeys(LISTS, 128), "select_kernel": 255}


def test_kernels_compile_and_spill_nothing() -> None:
    environment = without_interpreter()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "90", *([] if EVERY_SHAPE else ["--some"])],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {kernel["kernel"] for kernel in found} == set(MOST_REGISTERS)
    for kernel in found:
        assert kernel["spills"] <= MOST_SPILLS.get(kernel.get("BLOCK"), 0), kernel
        assert kernel["registers"] <= MOST_REGISTERS[kernel["kernel"]], kernel
