"""Finds the expressions of a file that refer to a name of upstream's API, and how each reaches it."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from ..analysis.binding import Binding, Scope, is_import
from ..analysis.source_index import SourceIndex
from ..analysis.uses import Use, api_path
from ..removed_api import PACKAGE, below_package, strip_source
from .old_api import CARRIED_OVER, NAMES, RENAMED, is_old_module


class OldNames:
    """The uses of upstream's names in one file, in source order."""

    def __init__(self, source: SourceIndex) -> None:
        self.source = source
        self.by_node: dict[cst.CSTNode, Use] = {}
        # attributes of a module that is gone which lead to no known name
        self.unknown: list[tuple[cst.Attribute, str]] = []
        for node in source.names:
            use = self.resolve(node)
            if use is not None:
                self.by_node[use.node] = use

    def __iter__(self) -> Iterator[Use]:
        return iter(self.by_node.values())

    def resolve(self, root: cst.Name) -> Use | None:
        scope = self.source.scope_of[root]
        bindings = scope.lookup(root.value)
        if not bindings:
            return self.unbound(root, scope)
        found = [self.follow(root, binding) for binding in bindings]
        ours = [each for each in found if each is not None]
        if not ours:
            return None
        name, node, base = ours[0]
        agrees = len(ours) == len(found) and all(each[:2] == ours[0][:2] for each in ours)
        agrees = agrees and not any(binding.scope.elsewhere.get(root.value) for binding in bindings)
        return Use(name, node, root, scope, bindings, base, agrees)

    def unbound(self, root: cst.Name, scope: Scope) -> Use | None:
        """A name from a star import of the package, or on a page in a block that does not import it."""
        known = NAMES if self.source.stars else {*RENAMED, *CARRIED_OVER} if self.source.group(root) else ()
        return Use(root.value, root, root, scope, [], None, True) if root.value in known else None

    def follow(
        self, root: cst.Name, binding: Binding
    ) -> tuple[str, cst.Name | cst.Attribute, cst.BaseExpression | None] | None:
        """Follow the attributes of a name as far as its binding leads into our package."""
        target = binding.target if binding.kind == "import" else None
        if target is None or api_path(target) is None or target == "src":
            return None
        node: cst.Name | cst.Attribute = root
        path = strip_source(target)
        base: cst.BaseExpression | None = root if path == PACKAGE or becomes_package(binding) else None
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


def becomes_package(binding: Binding) -> bool:
    """`import package.module as x` is rewritten to `import package as x`: x stays a module."""
    return (
        is_import(binding.statement)
        and binding.alias is not None
        and binding.alias.asname is not None
        and is_old_module(api_path(binding.target) or "")
    )
