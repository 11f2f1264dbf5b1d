"""Calls drawn from all that the Hopper kernels serve, emulated on the CPU, against the definition."""

from __future__ import annotations

import pytest

pytest.importorskip("triton.experimental.gluon")

from tests.core.backends.hopper.drawn_calls import drawn_call, wrong_results
from tests.core.environment import EVERY_SHAPE

KINDS = ("plain", "moved", "lengths", "padded", "positions", "packed")


@pytest.mark.interpreter
@pytest.mark.parametrize("seed", range(40 if EVERY_SHAPE else 1))
@pytest.mark.parametrize("kind", KINDS)
def test_calls_are_those_of_the_definition(kind: str, seed: int) -> None:
    number = KINDS.index(kind) + len(KINDS) * seed
    release = ("3.6.0", "3.9.0")[number % 2]
    assert wrong_results(drawn_call(number, kind=kind), seed, release=release) == {}


# Of q and k, and of v; how the positions are, and what beside products is in the scores.
TWO_TILES = (
    (192, 128, "lengths", ()),
    (192, 192, "packed", ("dropout",)),
    (128, 192, "padded", ("masks", "bias")),
    (160, 136, "positions", ("softcap", "sinks")),
)


@pytest.mark.interpreter
@pytest.mark.parametrize("seed", range(20 if EVERY_SHAPE else 1))
@pytest.mark.parametrize(
    ("head_dim", "v_head_dim", "kind", "features"), TWO_TILES if EVERY_SHAPE else TWO_TILES[:2]
)
def test_head_dims_whose_tiles_are_two(
    head_dim: int, v_head_dim: int, kind: str, features: tuple[str, ...], seed: int
) -> None:
    call = drawn_call(seed, features, kind, head_dim=head_dim, v_head_dim=v_head_dim)
    assert wrong_results(call, seed) == {}
