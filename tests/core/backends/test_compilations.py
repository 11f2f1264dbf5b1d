"""How many kernels calls of many lengths, strides and numbers of heads compile: few, or a first call would take minutes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dilated_attention_pytorch.backends.hopper import REFUSED_TRITON
from tests.core.environment import without_interpreter

SCRIPT = Path(__file__).parents[3] / "tools" / "kernel-checks" / "count_compilations.py"
MOST = 4  # of a kernel, for calls of one head_dim, block_size and type


@pytest.mark.skipif(
    REFUSED_TRITON is not None and "TRITON_INTERPRET" not in REFUSED_TRITON, reason=str(REFUSED_TRITON)
)
def test_calls_of_all_lengths_compile_few_kernels() -> None:
    environment = without_interpreter()
    command = [sys.executable, str(SCRIPT), "--some"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    cases = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(cases) == 3
    for case in cases:
        compilations = case["compilations"]
        assert {name: n for name, n in compilations.items() if n > MOST} == {}, case
        backends = {name.split()[0] for name in compilations}
        assert backends == set(case["calls"]), case  # both were asked
        assert min(compilations.values()) >= 1
        # causal calls and others are kernels of their own, so nothing went unnoticed
        assert all(n >= 2 for name, n in compilations.items() if "forward_kernel" in name), case
    assert {name for case in cases for name in case["calls"]} == {"hopper", "triton"}
