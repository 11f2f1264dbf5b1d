"""Finds the expressions of a file that refer to a name of the package, and how each reaches it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import libcst as cst

from ..removed_api import (
    KEPT_NAMES,
    PACKAGE,
    REMOVED_MODULE,
    REMOVED_NAMES,
    below_package,
    is_gone,
    strip_source,
)
from .binding import Binding, Scope, is_import
from .roles import leftmost
from .source_index import SourceIndex


@dataclass(eq=False)
class Use:
    """An expression that refers to a name of the package."""

    name: str  # of the package's API, or REMOVED_MODULE for the module itself
    # the whole expression: `BlockSparseHierarchical`, `dap.BlockSparseHierarchical`
    node: cst.Name | cst.Attribute
    root: cst.Name  # its leftmost name
    scope: Scope
    bindings: list[Binding]  # of the leftmost name; empty: a star import, or a page that does not import it
    # the expression for the package itself, from which new names can be taken
    base: cst.BaseExpression | None
    agrees: bool  # every binding of the leftmost name refers to the same thing

    @property
    def is_star(self) -> bool:
        return not self.bindings


def api_path(target: str | None) -> str | None:
    """The part of a dotted path below our package, "" for the package itself; None for anything else."""
    if target is None:
        return None
    return "" if target == "src" else below_package(strip_source(target))


def is_ours(target: str | None) -> bool:
    """Whether a dotted path leads below our package."""
    return (target or "").removeprefix("src.").startswith(PACKAGE + ".")


Found = tuple[str, cst.Name | cst.Attribute, cst.BaseExpression | None]  # name, node and base of a Use


class NameUses(ABC):
    """The uses of names of an API in one file, in source order, through its bindings."""

    def __init__(self, source: SourceIndex) -> None:
        self.source = source
        self.by_node: dict[cst.CSTNode, Use] = {}
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
        name, node, base = self.first_of(ours)
        agrees = len(ours) == len(found) and all(each[:2] == ours[0][:2] for each in ours)
        # an import under `global` cannot bind another name
        agrees = agrees and not any(binding.scope.elsewhere.get(root.value) for binding in bindings)
        return Use(name, node, root, scope, bindings, base, agrees)

    def first_of(self, ours: list[Found]) -> Found:
        """The one to take where bindings lead to several."""
        return ours[0]

    @abstractmethod
    def unbound(self, root: cst.Name, scope: Scope) -> Use | None:
        """The use of a name that nothing in the file binds."""

    @abstractmethod
    def follow(self, root: cst.Name, binding: Binding) -> Found | None:
        """Follow the attributes of a name as far as its binding leads into our package."""

    @staticmethod
    @abstractmethod
    def is_module_gone(path: str, /) -> bool:
        """Whether a path below the package was a module."""

    def becomes_package(self, binding: Binding) -> bool:
        """`import package.submodule as x` is rewritten to `import package as x`: x stays a module."""
        return (
            is_import(binding.statement)
            and binding.alias is not None
            and binding.alias.asname is not None
            and self.is_module_gone(api_path(binding.target) or "")
        )


class Resolver(NameUses):
    """The uses of the names that were removed with the hierarchical variant, and of those around them."""

    is_module_gone = staticmethod(is_gone)

    def unbound(self, root: cst.Name, scope: Scope) -> Use | None:
        """A name from a star import of the package, or on a page in a block that does not import it."""
        if root.value in REMOVED_NAMES | KEPT_NAMES and (self.source.stars or self.source.group(root)):
            return Use(root.value, root, root, scope, [], None, True)
        api = self.source.again_by_star.get(root.value, "")
        return Use(api, root, root, scope, [], None, True) if api in REMOVED_NAMES | KEPT_NAMES else None

    def first_of(self, ours: list[Found]) -> Found:
        return next((each for each in ours if each[0] in REMOVED_NAMES), ours[0])

    def follow(self, root: cst.Name, binding: Binding) -> Found | None:
        target = binding.target if binding.kind == "import" else None
        if target is None or (target != "src" and api_path(target) is None):
            return None
        node: cst.Name | cst.Attribute = root
        path = strip_source(target)
        base: cst.BaseExpression | None = root if path == PACKAGE or self.becomes_package(binding) else None
        while True:
            below = None if path == "src" else below_package(path)
            last = "" if below is None else below.split(".")[-1]
            if last in REMOVED_NAMES | KEPT_NAMES:
                return last, node, base
            parent = self.source.parents.get(node)
            if not isinstance(parent, cst.Attribute) or parent.value is not node:
                return (REMOVED_MODULE, node, base) if last == REMOVED_MODULE else None
            step = parent.attr.value
            if path == "src":
                if step != PACKAGE:
                    return None
                path = PACKAGE
            elif (
                step in REMOVED_NAMES | KEPT_NAMES or below is None or is_gone(f"{below}.{step}".lstrip("."))
            ):
                path = f"{path}.{step}"
            else:
                return (REMOVED_MODULE, node, base) if last == REMOVED_MODULE else None
            node = parent
            if path == PACKAGE:
                base = node


def is_foreign(source: SourceIndex, node: cst.BaseExpression, through_values: bool = False) -> bool:
    """Whether an expression begins with a name of another package or, if asked, with a value from one."""
    root = leftmost(node)
    if not isinstance(root, cst.Name) or root not in source.scope_of:
        return False
    bindings = source.scope_of[root].lookup(root.value)
    if through_values and len(bindings) == 1 and bindings[0].kind == "value" and bindings[0].value:
        inner = leftmost(bindings[0].value)
        return inner is not bindings[0].value and is_foreign(source, inner)
    return bool(bindings) and all(
        b.kind == "import" and not is_ours(b.target) and b.target != PACKAGE for b in bindings
    )
