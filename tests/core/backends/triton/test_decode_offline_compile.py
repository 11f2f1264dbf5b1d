"""The decoding kernels compile with no GPU present, and keep to registers."""

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
SCRIPT = Path(__file__).parents[4] / "tools" / "kernel-checks" / "decode_offline_compile.py"
KIB_OF_A_MULTIPROCESSOR = {80: 164, 90: 228}


@pytest.mark.parametrize("arch", [80, 90] if EVERY_SHAPE else [90])
def test_decoding_kernels_keep_to_registers_and_share_a_multiprocessor(arch: int) -> None:
    environment = without_interpreter()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(arch)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 10  # 5 shapes, 2 kernels
    for kernel in found:
        assert kernel["spills"] == 0, kernel
        assert kernel["faults"] == [], kernel
        # two programs of 128 threads at a time, which hide each other's loads
        assert 2 * (kernel["shared"] + 1024) <= KIB_OF_A_MULTIPROCESSOR[arch] * 1024, kernel
