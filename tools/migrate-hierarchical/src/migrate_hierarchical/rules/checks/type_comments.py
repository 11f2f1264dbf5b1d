"""Reports removed names in type comments."""

from __future__ import annotations

from ...analysis.binding import WORD
from ...analysis.uses import is_ours
from ...changes import Changes
from ...context import Context
from ...removed_api import PACKAGE, REMOVED_NAMES


def check_type_comments(context: Context, changes: Changes) -> None:
    """`# type: HierarchicalConfig`, which nothing rewrites."""
    for node, text, scope in context.source.type_comments:
        for word in WORD.findall(text):
            bindings = scope.lookup(word)
            targets = [each.target or "" for each in bindings]
            if any(is_ours(target) and target.split(".")[-1] in REMOVED_NAMES for target in targets) or (
                PACKAGE in targets and any(name in text for name in REMOVED_NAMES)
            ):
                changes.leave(node, "HIER103", f"type comment {text}")
                changes.kept.update(bindings)
                break
