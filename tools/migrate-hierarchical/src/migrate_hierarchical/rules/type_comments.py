"""Removed names in type comments."""

from __future__ import annotations

import re

from ..analysis.uses import is_ours
from ..changes import Changes
from ..context import Context
from ..names import PACKAGE, REMOVED

WORD = re.compile(r"[A-Za-z_]\w*")


def check_type_comments(context: Context, changes: Changes) -> None:
    """`# type: HierarchicalConfig`, which nothing rewrites."""
    for node, text, scope in context.walk.type_comments:
        for word in WORD.findall(text):
            bindings = scope.lookup(word)
            targets = [each.target or "" for each in bindings]
            if any(is_ours(target) and target.split(".")[-1] in REMOVED for target in targets) or (
                PACKAGE in targets and any(name in text for name in REMOVED)
            ):
                changes.leave(node, "HIER103", f"type comment {text}")
                changes.kept.update(bindings)
                break
