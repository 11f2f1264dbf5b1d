"""Finds the strings that a name in another file of the project may hold; files are read, never imported."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from functools import lru_cache

from .limits import CONSTANT_DEPTH, PARSED_BYTES
from .module_index import places_of
from .removed_api import CHOOSE, HIERARCHICAL_STRINGS, NEEDLE, PACKAGE
from .syntax import parse

HIGHEST = 12  # levels above a file at which its project may begin


def imported_strings(path: str, module: str, names: tuple[str, ...]) -> frozenset[str] | None:
    """The strings that `from module import name` in the file at path, or `module.name`, may give; None if not found."""
    found = (strings_of(file, rest, 0) for file, rest in files_of(path, module, names))
    return next((each for each in found if each is not None), None)


def files_of(path: str, module: str, names: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The files that may define the name, each with the names that are left to find in it."""
    for length in range(len(names)):
        below = (
            ".".join([module.rstrip("."), *names[:length]])
            if module.strip(".")
            else (module + ".".join(names[:length]))
        )
        file = find_module(path, below)
        if file is not None:
            yield file, names[length:]


def find_module(path: str, module: str) -> str | None:
    """The file of a module as an import in the file at path would find it, or one beside the project's folders."""
    return _find(os.path.dirname(os.path.abspath(path)), module)


@lru_cache(maxsize=1024)
def _find(folder: str, module: str) -> str | None:
    if not all(part.isidentifier() for part in module.lstrip(".").split(".") if part):
        return None
    files = map(module_file, places_of(module, folder, folders_of_repository(folder)))
    return next((file for file in files if file is not None), None)


def folders_of_repository(folder: str) -> Iterator[str]:
    """A folder and those above it, up to the root of its repository."""
    for _ in range(HIGHEST):
        yield folder
        if os.path.exists(os.path.join(folder, ".git")) or os.path.dirname(folder) == folder:
            return
        folder = os.path.dirname(folder)


def module_file(path: str) -> str | None:
    for file in (path + ".py", os.path.join(path, "__init__.py"), path + ".pyi"):
        if os.path.isfile(file):
            return file
    return None


@lru_cache(maxsize=256)
def read_tree(file: str, changed: int) -> ast.Module | None:
    try:
        if os.path.getsize(file) > PARSED_BYTES:
            return None
        with open(file, "rb") as opened:
            return parse(opened.read())
    except OSError:
        return None


def tree_of(file: str) -> ast.Module | None:
    try:
        return read_tree(file, os.stat(file).st_mtime_ns)
    except OSError:
        return None


def strings_of(file: str, names: tuple[str, ...], depth: int) -> frozenset[str] | None:
    """Every string in the value of a name of a module; for `Class.name`, of a name in the class body."""
    tree = tree_of(file)
    if tree is None or depth > CONSTANT_DEPTH:
        return None
    found = values_in(tree.body, names)
    if found is not None:
        return found
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if names[0] in (alias.asname or alias.name, alias.name) or alias.name == "*":
                    module = "." * node.level + (node.module or "")
                    first = names[0] if alias.name == "*" else alias.name
                    other = find_module(file, module)
                    result = (
                        strings_of(other, (first, *names[1:]), depth + 1)
                        if other not in (None, file)
                        else None
                    )
                    if result is not None:
                        return result
    return None


def values_in(body: list[ast.stmt], names: tuple[str, ...]) -> frozenset[str] | None:
    """The strings that assignments in a block give to a name; None if there are none or they are unknown."""
    values: list[ast.expr] = []
    for node in body:
        if isinstance(node, ast.Assign):
            values += [node.value for each in node.targets if getattr(each, "id", None) == names[0]]
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            values += [node.value] if getattr(node.target, "id", None) == names[0] else []
        elif isinstance(node, ast.ClassDef) and node.name == names[0]:
            return values_in(node.body, names[1:]) if names[1:] else frozenset(all_strings(node))
        elif isinstance(node, ast.If | ast.Try):
            inside = values_in([*node.body, *node.orelse], names)
            if inside is not None:
                return inside
    found = frozenset(text for value in values for text in all_strings(value))
    complete = bool(values) and all(map(is_literal, values))
    return found if complete or found & HIERARCHICAL_STRINGS else None


def is_literal(node: ast.expr) -> bool:
    """Whether an expression can give nothing but the strings in it."""
    plain = (ast.Constant, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.expr_context)
    return all(isinstance(each, plain) for each in ast.walk(node))


def all_strings(node: ast.AST) -> Iterator[str]:
    for each in ast.walk(node):
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield each.value


# ---- files that do not contain the removed name themselves


def takes_constant(path: str, data: bytes) -> bool:
    """Whether a file passes the package a name that another file sets to a removed variant."""
    if PACKAGE.encode() not in data or not any(name.encode() in data for name in CHOOSE):
        return False
    if NEEDLE in data or b"import" not in data:
        return False
    tree = parse(data)
    if tree is None:
        return False
    imports: dict[str, tuple[str, tuple[str, ...]]] = {}
    sinks = {*CHOOSE, "partial"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            if module.split(".")[0] == PACKAGE:
                sinks.update(each.asname for each in node.names if each.name in CHOOSE and each.asname)
            else:
                imports.update({each.asname or each.name: (module, (each.name,)) for each in node.names})
        elif isinstance(node, ast.Import):
            for each in node.names:
                name = each.asname or each.name.split(".")[0]
                imports[name] = (each.name if each.asname else name, ())
    found = (imported_strings(path, module, names) for module, names in read_names(tree, imports, sinks))
    return any(strings and strings & HIERARCHICAL_STRINGS for strings in found)


def read_names(
    tree: ast.Module, imports: dict[str, tuple[str, tuple[str, ...]]], sinks: set[str]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The imported names that are arguments of a call of the package, or are assigned to such an argument."""
    nodes: list[ast.AST] = []
    for call in ast.walk(tree):
        if isinstance(call, ast.Call):
            function = (
                call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            )
            if function in sinks:
                nodes += [*call.args, *call.keywords]
    arguments = {each.id for node in nodes for each in ast.walk(node) if isinstance(each, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and any(
            getattr(each, "id", "") in arguments for each in node.targets
        ):
            nodes.append(node.value)
        elif isinstance(node, ast.For | ast.comprehension) and getattr(node.target, "id", "") in arguments:
            nodes.append(node.iter)
    for node in nodes:
        for each in ast.walk(node):
            names: list[str] = []
            while isinstance(each, ast.Attribute):
                names.insert(0, each.attr)
                each = each.value
            if isinstance(each, ast.Name) and each.id in imports:
                module, first = imports[each.id]
                if first or names:
                    yield module, (*first, *names)
