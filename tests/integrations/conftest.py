"""Settings of the tests of integrations: no network, one thread per worker, and a fixed seed."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

# they need Python 3.11
collect_ignore = [name for name in ("diffusers", "transformers") if importlib.util.find_spec(name) is None]

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Every test starts from the same random numbers."""
    torch.manual_seed(0)
