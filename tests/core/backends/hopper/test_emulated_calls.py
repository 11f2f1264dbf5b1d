"""Calls drawn from all that the Hopper kernels serve, emulated on the CPU, against the definition."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("triton.experimental.gluon")

from tests.core.backends.hopper.drawn_calls import drawn_call, wrong_results

EVERY_SHAPE = os.environ.get("EVERY_SHAPE") == "1"  # `nox -s emulator` sets it
KINDS = ("plain", "moved", "lengths", "padded", "positions", "packed")


@pytest.mark.interpreter
@pytest.mark.parametrize("seed", range(40 if EVERY_SHAPE else 1))
@pytest.mark.parametrize("kind", KINDS)
def test_calls_are_those_of_the_definition(kind: str, seed: int) -> None:
    number = KINDS.index(kind) + len(KINDS) * seed
    release = ("3.6.0", "3.9.0")[number % 2]
    assert wrong_results(drawn_call(number, kind=kind), seed, release=release) == {}
