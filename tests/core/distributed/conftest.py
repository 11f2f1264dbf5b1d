"""Two processes for all tests of this folder: their start takes longer than what most tests do with them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.core.distributed.gloo_processes import GlooProcesses


@pytest.fixture(scope="session")
def two() -> Iterator[GlooProcesses]:
    """A gloo group of two; tests of failures, which end processes, have others."""
    with GlooProcesses(2) as processes:
        yield processes
