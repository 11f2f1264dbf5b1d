"""The imports of a package, read from its source: which of its modules imports which."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, order=True)
class Import:
    """One module imports another of the same package; names are relative to the package, "" is the package itself."""

    source: str
    target: str
    late: bool = False  # inside a function

    def __str__(self) -> str:
        return f"{self.source or '__init__'} -> {self.target or '__init__'}"


@dataclass(frozen=True)
class Package:
    """The modules of a package and their imports of one another."""

    modules: dict[str, Path]
    imports: frozenset[Import]


def read_package(folder: Path) -> Package:
    """Read every file below the folder of a package. Imports for type checkers only count as well."""
    modules = {module_name(path.relative_to(folder)): path for path in sorted(folder.rglob("*.py"))}
    found = frozenset(
        each for name, path in modules.items() for each in imports_of(name, path, modules, folder.name)
    )
    return Package(modules, found)


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(name: str, path: Path, modules: dict[str, Path], package: str) -> Iterator[Import]:
    """The imports of a module from its own package; importing a.b.c also imports a and a.b, unless the importer is inside."""
    folder = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    folder = [part for part in folder if part]
    tree = ast.parse(path.read_text("utf-8"))
    late = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        for whole, base in named_by(node, folder, package):
            target = whole if whole in modules else base
            for each in {target, *packages_around(target, name)} - {name}:
                yield Import(name, each, id(node) in late)


def named_by(node: ast.AST, folder: list[str], package: str) -> Iterator[tuple[str, str]]:
    """What a statement imports of the package: a name, which may be a module, and the module that it is in."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            if f"{alias.name}.".startswith(f"{package}."):
                inside = alias.name.removeprefix(package).removeprefix(".")
                yield inside, inside
    elif isinstance(node, ast.ImportFrom):
        module = [part for part in (node.module or "").split(".") if part]
        if not node.level and module[0] != package:
            return
        around = folder[: len(folder) - node.level + 1] if node.level else []
        base = around + (module if node.level else module[1:])
        for alias in node.names:
            yield ".".join([*base, alias.name]), ".".join(base)


def packages_around(target: str, importer: str) -> Iterator[str]:
    """The packages that an import of `target` runs besides, because the importer is not in them."""
    parts = target.split(".")
    for length in range(1, len(parts)):
        package = ".".join(parts[:length])
        if not f"{importer}.".startswith(f"{package}."):
            yield package


def circles(modules: Iterable[str], imports: Iterable[Import]) -> list[set[str]]:
    """The sets of modules of which each imports, through others, each."""
    targets: dict[str, set[str]] = {module: set() for module in modules}
    for each in imports:
        targets[each.source].add(each.target)

    def reached_from(start: str) -> set[str]:
        found: set[str] = set()
        todo = [start]
        while todo:
            new = targets[todo.pop()] - found
            found |= new
            todo += new
        return found

    reached = {module: reached_from(module) for module in targets}
    together = {
        frozenset(other for other in reached[module] if module in reached[other])
        for module in targets
        if module in reached[module]
    }
    return [set(circle) for circle in sorted(together, key=sorted)]
