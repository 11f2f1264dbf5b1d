"""Settings of the core tests: Triton's interpreter where there is no GPU, and one thread per worker."""

from __future__ import annotations

import os

import pytest
import torch

from tests.core import interpreter

HAS_CUDA = torch.cuda.is_available()

# Triton reads this when kernels are defined, so set it before anything imports them.
if not HAS_CUDA:
    os.environ["TRITON_INTERPRET"] = "1"
    interpreter.shorten()

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need a GPU where there is none, and tests of the interpreter where there is one."""
    for item in items:
        if item.get_closest_marker("gpu") and not HAS_CUDA:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("interpreter") and HAS_CUDA:
            item.add_marker(pytest.mark.skip(reason="Triton's interpreter is off where there is a GPU"))


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Every test starts from the same random numbers."""
    torch.manual_seed(0)
