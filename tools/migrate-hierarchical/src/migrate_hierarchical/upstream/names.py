"""Finds the expressions of a file that refer to a name of upstream's API, and how each reaches it."""

from __future__ import annotations

import libcst as cst

from ..analysis.binding import Binding, Scope
from ..analysis.uses import Found, NameUses, Use, api_path
from ..removed_api import PACKAGE, below_package, strip_source
from .old_api import CARRIED_OVER, NAMES, RENAMED, is_old_module


class OldNames(NameUses):
    """The uses of upstream's names in one file, in source order."""

    is_module_gone = staticmethod(is_old_module)

    def unbound(self, root: cst.Name, scope: Scope) -> Use | None:
        """A name from a star import of the package, or on a page in a block that does not import it."""
        known = NAMES if self.source.stars else {*RENAMED, *CARRIED_OVER} if self.source.group(root) else ()
        return Use(root.value, root, root, scope, [], None, True) if root.value in known else None

    def follow(self, root: cst.Name, binding: Binding) -> Found | None:
        target = binding.target if binding.kind == "import" else None
        if target is None or api_path(target) is None or target == "src":
            return None
        node: cst.Name | cst.Attribute = root
        path = strip_source(target)
        base: cst.BaseExpression | None = root if path == PACKAGE or self.becomes_package(binding) else None
        while True:
            below = below_package(path) or ""
            last = below.split(".")[-1]
            if last in NAMES:
                return last, node, base
            parent = self.source.parents.get(node)
            if not isinstance(parent, cst.Attribute) or parent.value is not node:
                return None
            step = f"{below}.{parent.attr.value}".lstrip(".")
            if parent.attr.value not in NAMES and not is_old_module(step):
                return None
            path, node = f"{path}.{parent.attr.value}", parent
