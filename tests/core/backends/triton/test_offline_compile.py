"""The Triton kernels compile for every supported architecture, with no GPU present, and keep to registers."""

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

SCRIPT = Path(__file__).parents[4] / "tools" / "kernel-checks" / "offline_compile.py"
# KiB of shared memory a program may use.
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
# Bytes spilled per thread over a whole kernel; a spilled accumulator would be 256 and more.
MOST_SPILLS = {80: 48, 86: 64, 89: 64, 90: 160, 100: 24, 120: 64}


def compiled(*arguments: str) -> list[dict[str, object]]:
    environment = without_interpreter()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


ARCHITECTURES = SHARED.keys() if EVERY_SHAPE else {80}


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES - {90}))  # 90 has them among every option
def test_default_shapes_fit_the_architecture(arch: int) -> None:
    found = compiled(str(arch), *([] if EVERY_SHAPE else ["--some"]))
    assert len(found) == 4 * (4 if EVERY_SHAPE else 2)  # kernels, shapes
    for kernel in found:
        assert kernel["shared"] <= SHARED[arch] * 1024, kernel
        assert kernel["spills"] <= MOST_SPILLS[arch], kernel
        assert kernel["faults"] == [], kernel


def test_options_compile_for_hopper() -> None:
    found = compiled("90", "--other" if EVERY_SHAPE else "--some")
    assert len(found) == 4 * (4 + 14 if EVERY_SHAPE else 2 + 4)  # kernels, default shapes and others
    assert {kernel["kernel"] for kernel in found} == {
        "forward_kernel",
        "delta_kernel",
        "dq_kernel",
        "dkdv_kernel",
    }
    assert all(kernel["shared"] <= SHARED[90] * 1024 for kernel in found)
    assert [kernel for kernel in found if kernel["faults"]] == []
    fast = [
        kernel for kernel in found if kernel["dtype"] == "torch.bfloat16"
    ]  # float32 and head_dim 256 do spill
    assert {(kernel["head_dim"], kernel["block_size"]) for kernel in fast} >= {
        (64, 64),
        (128, 64),
        (128, 128),
    }
    assert [kernel for kernel in fast if kernel["spills"] > MOST_SPILLS[90]] == []
