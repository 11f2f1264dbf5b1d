"""Names of a project's modules that lead to a callable of the package: `make = create_block_sparse_attention`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .names import CHOOSE

if TYPE_CHECKING:
    from .module_index import ModuleIndex
    from .project import Project

DEEPEST = 8  # from one name to the next


def leads(project: Project, key: str, name: str, depth: int = 0) -> bool:
    """Whether a name of a module is, wraps or holds a callable that is told a variant, a preset or a pattern."""
    first, _, rest = name.partition(".")
    names = project.api_names(key)
    if first in names and names[first] in (CHOOSE if not rest else ("",)):
        return not rest or rest.rpartition(".")[2] in CHOOSE
    for path in project.stems.get(key, ()) if depth < DEEPEST else ():
        index = project.index.get(path)
        if index is None:
            continue
        if not rest and any(
            leads(project, key, each, depth + 1) for each in index.wraps.get(first, ()) if each != name
        ):
            return True
        for way in index.bindings.get(first, ()):
            if way is None or project.below(path, way.module) is not None:
                continue
            inner = project.resolve(path, joined(way.module, way.name) if way.name else way.module)
            other = project.resolve(path, way.module)
            if rest and inner is not None and inner != key and leads(project, inner, rest, depth + 1):
                return True
            if (
                not rest
                and way.name
                and other not in (None, key)
                and leads(project, other or "", way.name, depth + 1)
            ):
                return True
    return False


def callables(project: Project, path: str) -> frozenset[str]:
    """Those that a file takes from modules of the project: by their dotted paths as the file writes them."""
    index = project.index.get(path)
    found: set[str] = set()
    for each in index.imports if index is not None else ():
        if project.below(path, each.module) is not None:
            continue
        key = project.resolve(path, each.module)
        if each.name == "*":
            names = (
                {name for name in index.names if key is not None and leads(project, key, name)}
                if index
                else set()
            )
            found.update(names)
            continue
        dotted = each.module if not each.name else joined(each.module, each.name)
        if key is not None and each.name and leads(project, key, each.name):
            found.add(dotted)
        inner = project.resolve(path, dotted)
        if inner is not None and index is not None:
            found.update(
                f"{dotted}.{name}"
                for name in members(index, each.local, dotted)
                if leads(project, inner, name)
            )
    return frozenset(found)


def members(index: ModuleIndex, local: str, dotted: str) -> set[str]:
    """The members that a file reads of a module."""
    starts = (local + ".", dotted + ".")
    return {chain[len(start) :] for chain in index.chains for start in starts if chain.startswith(start)}


def joined(module: str, name: str) -> str:
    return module + name if module.endswith(".") else f"{module}.{name}"
