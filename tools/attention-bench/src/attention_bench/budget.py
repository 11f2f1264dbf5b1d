"""Budget: the seconds that a run may take, and what was left out for lack of them."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager


class Budget:
    """Tells before each piece of work whether it still fits, by the time that the same piece took before.

    A piece that has not run yet fits as long as there is any time left, so a run may end one piece late. Without a number of
    seconds everything fits.
    """

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._begin = time.monotonic()
        self._taken: dict[Hashable, float] = {}

    @property
    def left(self) -> float | None:
        """Seconds that are left; None if there is no limit."""
        return None if self.seconds is None else self.seconds - (time.monotonic() - self._begin)

    def left_out(self) -> str:
        """Why something was not measured."""
        return f"left out, the budget of {self.seconds:g} s was used up"

    def fits(self, piece: Hashable) -> bool:
        """Whether there is time for a piece; a repeated one is expected to take as long as its quickest run."""
        left = self.left
        return left is None or left > self._taken.get(piece, 0.0)

    @contextmanager
    def spent_on(self, piece: Hashable) -> Iterator[None]:
        """Take the time of a piece."""
        begin = time.monotonic()
        yield
        taken = time.monotonic() - begin
        self._taken[piece] = min(taken, self._taken.get(piece, taken))
