"""IPython's magics and shell lines: what they name stays imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..names import (
    FACTORY,
    HIERARCHICAL_STRINGS,
    PATTERN,
    PRESET,
    REMOVED,
    REMOVED_MODULE,
    below_package,
    is_gone,
)

if TYPE_CHECKING:
    from ..analysis.binding import Binding
    from ..plan import Planner

TAKE_STRINGS = frozenset({FACTORY, PRESET, PATTERN})


def check_magics(planner: Planner) -> None:
    for node, (words, scope) in planner.walk.magics.items():
        reached = {api for word in words for api in reached_by(planner, scope.lookup(word))}
        if words & (REMOVED | {REMOVED_MODULE}):
            continue  # reported with the text of the line
        if reached & (REMOVED | {REMOVED_MODULE}):
            removed = [word for word in words if reached_by(planner, scope.lookup(word)) - TAKE_STRINGS]
            planner.leave(node, "HIER103", f"{min(removed)} in a magic or a shell line")
        elif (reached | words) & TAKE_STRINGS and words & HIERARCHICAL_STRINGS:
            planner.leave(
                node, "HIER103", f"{min(words & HIERARCHICAL_STRINGS)!r} in a magic or a shell line"
            )


def reached_by(planner: Planner, bindings: list[Binding]) -> set[str]:
    """What of the API a word leads to; its import stays."""
    reached = set()
    for binding in bindings:
        below = (
            below_package((binding.target or "").removeprefix("src.")) if binding.kind == "import" else None
        )
        last = (below or "").split(".")[-1]
        if last in REMOVED | TAKE_STRINGS or is_gone(below or ""):
            planner.kept.add(binding)
            reached.add(last)
    return reached
