"""What environment variables say to the tests, and the environment of processes that they start."""

from __future__ import annotations

import os

EVERY_SHAPE = os.environ.get("EVERY_SHAPE") == "1"  # `nox -s triton` and `nox -s emulator` set it


def without_interpreter() -> dict[str, str]:
    """The environment of a process that compiles kernels: under TRITON_INTERPRET they are Python functions."""
    return {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
