"""Aggregates of kernel values: fields by place or by name, constants wrapped, anything else refused."""

from __future__ import annotations

import pytest

pytest.importorskip("triton.experimental.gluon")
from triton.experimental.gluon import language as gl

from dilated_attention_pytorch.backends.hopper.gluon_names import aggregate


@aggregate
class Pair:
    """Two constants, under annotations that are strings."""

    first: gl.constexpr
    second: gl.constexpr


@pytest.mark.parametrize(
    "pair", [lambda: Pair(1, 2), lambda: Pair(1, second=2), lambda: Pair(second=2, first=1)]
)
def test_fields_are_given_by_place_or_by_name(pair) -> None:  # type: ignore[no-untyped-def]
    made = pair()
    assert (made.first, made.second) == (gl.constexpr(1), gl.constexpr(2))
    assert isinstance(made.first, gl.constexpr)


@pytest.mark.parametrize(
    "pair", [lambda: Pair(1), lambda: Pair(1, 2, 3), lambda: Pair(1, 2, third=3), lambda: Pair(1, first=1)]
)
def test_fields_that_do_not_fit_are_refused(pair) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TypeError):
        pair()


def test_fields_have_the_kind_of_their_annotation() -> None:
    @aggregate
    class Place:
        """A value of the kernel, which a constant is not."""

        it: gl.tensor

    with pytest.raises(TypeError, match="it"):
        Place(1)
