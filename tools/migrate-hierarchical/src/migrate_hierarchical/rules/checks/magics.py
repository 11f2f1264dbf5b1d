"""Reports removed names in IPython magics and shell lines, and keeps the imports that these refer to."""

from __future__ import annotations

import libcst as cst

from ...analysis.binding import Binding
from ...changes import Changes
from ...context import Context
from ...removed_api import (
    CHOOSE,
    GONE_NAMES,
    HIERARCHICAL_STRINGS,
    below_package,
    is_gone,
)


def check_magics(context: Context, changes: Changes) -> None:
    for node, (words, scope) in context.source.magics.items():
        reached = {word: reached_by(context, changes, node, scope.lookup(word)) for word in words}
        apis = words.union(*reached.values())
        removed = [word for word, found in reached.items() if found - CHOOSE]
        if words & GONE_NAMES:
            continue  # already reported with the text of the line
        if removed:
            changes.leave(node, "HIER103", f"{min(removed)} in a magic or a shell line")
        elif apis & CHOOSE and words & HIERARCHICAL_STRINGS:
            changes.leave(
                node, "HIER103", f"{min(words & HIERARCHICAL_STRINGS)!r} in a magic or a shell line"
            )


def reached_by(context: Context, changes: Changes, node: cst.CSTNode, bindings: list[Binding]) -> set[str]:
    """The API names that a word refers to; their imports stay, in a page those of the same block if there are any."""
    found: dict[Binding, str] = {}
    for binding in bindings:
        below = (
            below_package((binding.target or "").removeprefix("src.")) if binding.kind == "import" else None
        )
        last = (below or "").split(".")[-1]
        if last in GONE_NAMES | CHOOSE or is_gone(below or ""):
            found[binding] = last
    source = context.source
    here = [each for each in found if each.statement and source.group(each.statement) == source.group(node)]
    changes.kept.update(here or found)
    return {last for last in found.values() if last in GONE_NAMES | CHOOSE}
