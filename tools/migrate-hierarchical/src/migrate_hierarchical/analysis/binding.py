"""Bindings, which give names their values, and the scopes in which names are looked up."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import libcst as cst

if TYPE_CHECKING:
    from typing_extensions import TypeIs

ImportStatement = cst.Import | cst.ImportFrom
WORD = re.compile(r"[A-Za-z_]\w*")  # a name, where a text may hold several


def syntax(*names: str) -> tuple[type, ...]:
    """The node types with these names; an older libcst lacks some of them."""
    return tuple(getattr(cst, name) for name in names if hasattr(cst, name))


# A lazy import has one field more than an ordinary one.
IMPORTS = syntax("Import", "LazyImport")
IMPORTS_FROM = syntax("ImportFrom", "LazyImportFrom")


def is_import(node: object) -> TypeIs[cst.Import]:
    return isinstance(node, IMPORTS)


def is_import_from(node: object) -> TypeIs[cst.ImportFrom]:
    return isinstance(node, IMPORTS_FROM)


@dataclass(eq=False)
class Binding:
    """One place that gives a name its value."""

    kind: str  # import, value, parameter, loop, def, class, other
    scope: Scope
    node: cst.CSTNode
    target: str | None = None  # import: the dotted path that the name stands for
    statement: ImportStatement | None = None
    alias: cst.ImportAlias | None = None
    value: cst.BaseExpression | None = None  # value: the expression; loop: the iterable
    index: int | None = None  # loop: position in the tuple of targets
    annotation: cst.BaseExpression | None = None
    at: int = 0  # number of names that the file reads above it

    @property
    def is_declaration(self) -> bool:
        """Whether it is an annotation without a value."""
        return isinstance(self.node, cst.AnnAssign) and self.value is None


@dataclass(eq=False)
class Scope:
    kind: str  # module, class, function, comprehension
    parent: Scope | None
    node: cst.CSTNode
    bindings: dict[str, list[Binding]] = field(default_factory=dict)
    elsewhere: dict[str, str] = field(default_factory=dict)  # name -> global or nonlocal

    def ancestors(self) -> Iterator[Scope]:
        scope: Scope | None = self
        while scope is not None:
            yield scope
            scope = scope.parent

    @property
    def module(self) -> Scope:
        return list(self.ancestors())[-1]

    def lookup(self, name: str) -> list[Binding]:
        """The bindings that a name read in this scope may have; empty if nothing in the file binds it."""
        for scope in self.ancestors():
            if scope.kind == "class" and scope is not self:
                continue  # methods do not see the names of their class
            if scope.elsewhere.get(name) == "global":
                return self.module.bindings.get(name, [])
            found = scope.bindings.get(name)
            if found is None:
                continue
            if scope.kind != "class":
                return found
            if any(each.is_declaration for each in found):  # which do not bind the name of a class attribute
                found = [each for each in found if not each.is_declaration]
            if found:
                return found
        return []


def dotted(node: cst.CSTNode | None) -> str | None:
    """`a.b.c` for a chain of names; None for anything else."""
    if isinstance(node, cst.Name):
        return node.value
    if isinstance(node, cst.Attribute):
        base = dotted(node.value)
        return None if base is None else f"{base}.{node.attr.value}"
    return None


def last_part(node: cst.CSTNode | None) -> str:
    """`c` for `a.b.c`; empty for anything that is not a chain of names."""
    return (dotted(node) or "").split(".")[-1]


def import_name(alias: cst.ImportAlias) -> str:
    return dotted(alias.name) or ""


def local_name(alias: cst.ImportAlias) -> str:
    return (dotted(alias.asname.name) if alias.asname else dotted(alias.name)) or ""


def target_names(target: cst.CSTNode) -> Iterator[tuple[cst.Name, int | None]]:
    """The plain names that an assignment target binds, each with its index in the outer tuple."""
    if isinstance(target, cst.Name):
        yield target, None
    elif isinstance(target, cst.Tuple | cst.List):
        for index, element in enumerate(target.elements):
            for name, _ in target_names(element.value):
                yield name, index
    elif isinstance(target, cst.StarredElement):
        yield from target_names(target.value)


def written_path(binding: Binding) -> str:
    """The dotted path that a name imports, with the dots of a relative import."""
    statement = binding.statement
    if is_import_from(statement) and statement.relative and binding.alias is not None:
        module = dotted(statement.module) if statement.module else ""
        dots = "." * len(statement.relative)
        return dots + ".".join(part for part in (module, dotted(binding.alias.name)) if part)
    if is_import_from(statement) and binding.alias is not None:
        return f"{dotted(statement.module)}.{dotted(binding.alias.name)}"
    return binding.target or "?"
