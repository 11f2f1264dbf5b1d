"""Finds names of a project's modules that lead to a callable of the package: `make = create_block_sparse_attention`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from .module_index import ModuleIndex, joined
from .removed_api import CHOOSE

Names = set[tuple[str, str]]  # (stem of a module, name)


class Modules(Protocol):
    """The part of Project that is needed here."""

    stems: dict[str, list[str]]
    index: dict[str, ModuleIndex]

    def resolve(self, path: str, module: str) -> str | None: ...

    def below(self, path: str, module: str) -> str | None: ...

    def api_names(self, key: str) -> dict[str, str]: ...


def leading(project: Modules, key: str, names: Iterable[str]) -> set[str]:
    """The names of a module that are, wrap or hold a callable that takes a variant, a preset or a pattern by name."""
    others: Names = set()  # known not to lead to one
    found = set()
    for name in names:
        seen: Names = set()
        if leads(project, key, name, seen, others):
            found.add(name)
        else:
            others |= seen
    return found


def leads(project: Modules, key: str, name: str, seen: Names, others: Names) -> bool:
    """Whether a name of a module leads to such a callable; adds every name it looks at to `seen`."""
    pending = [(key, name)]
    while pending:
        each = pending.pop()
        if each in seen or each in others:
            continue
        seen.add(each)
        module, _, rest = each[1].partition(".")
        names = project.api_names(each[0])
        if module in names:
            if (not rest and names[module] in CHOOSE) or (names[module] == "" and last_part(rest) in CHOOSE):
                return True
            continue
        pending += next_names(project, each[0], module, rest)
    return False


def next_names(project: Modules, key: str, name: str, rest: str) -> Iterator[tuple[str, str]]:
    """The names that a name, or a member of it, may be another name for."""
    for path in project.stems.get(key, ()):
        index = project.index.get(path)
        if index is None:
            continue
        if not rest:
            yield from ((key, each) for each in index.wraps.get(name, ()))
        for way in index.bindings.get(name, ()):
            if way is None or project.below(path, way.module) is not None:
                continue
            module = joined(way.module, way.name) if way.name else way.module
            inner, other = project.resolve(path, module), project.resolve(path, way.module)
            if rest and inner is not None:
                yield inner, rest
            if way.name and other is not None:
                yield other, f"{way.name}.{rest}" if rest else way.name


def last_part(path: str) -> str:
    return path.rpartition(".")[2]


def callables(project: Modules, path: str) -> frozenset[str]:
    """The callables that a file takes from modules of the project, as dotted paths the way the file writes them."""
    index = project.index[path]
    found: set[str] = set()
    for each in index.imports:
        if project.below(path, each.module) is not None:
            continue
        key = project.resolve(path, each.module)
        if each.name == "*":
            found.update(leading(project, key, index.names) if key is not None else ())
            continue
        dotted = each.module if not each.name else joined(each.module, each.name)
        if key is not None and each.name and leading(project, key, [each.name]):
            found.add(dotted)
        inner = project.resolve(path, dotted)
        if inner is not None:
            read = members(index, each.local, dotted)
            found.update(f"{dotted}.{name}" for name in leading(project, inner, read))
    return frozenset(found)


def members(index: ModuleIndex, local: str, dotted: str) -> set[str]:
    """The members that a file reads of a module."""
    starts = (local + ".", dotted + ".")
    return {chain[len(start) :] for chain in index.chains for start in starts if chain.startswith(start)}
