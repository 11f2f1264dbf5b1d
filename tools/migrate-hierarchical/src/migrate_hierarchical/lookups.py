"""Finds names of the project's modules that are looked up at run time: by strings in code, and in configurations."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from .discovery import PLAIN, PROSE
from .limits import LOOKUP_BYTES
from .module_index import ModuleIndex, dotted, index_of, joined, source_of
from .project import Project
from .project_folder import stem
from .syntax import parse

# A file without any of these looks no name up in other modules; globals() holds those of its own.
DYNAMIC = re.compile(
    rb"getattr|setattr|hasattr|attrgetter|methodcaller|import_module|__import__|__dict__|\bvars\("
    rb"|sys\.modules|\battach|\blazy|\bpatch|resolve_name|\blocate\(|import_string|import_from_string|load_object"
)
# Functions that go through all modules of a folder.
WALKS = re.compile(rb"iter_modules|walk_packages|listdir|\br?glob\b|iterdir|scandir")
ATTRIBUTE_OF = frozenset({"getattr", "hasattr", "setattr", "delattr", "object"})
PATH = re.compile(r"[^\W\d]\w*(?:[.:][^\W\d]\w*)+")
WORD = re.compile(r"[^\W\d]\w*")
TEXT = re.compile(r"""["']([\w.:]+)["']""")
MEMBER = re.compile(r"\.\s*([^\W\d]\w*)")


@dataclass
class Lookups:
    """What one file may look up."""

    strings: set[str] = field(default_factory=set)
    members: set[str] = field(default_factory=set)  # attributes of anything
    owned: set[tuple[str, str]] = field(default_factory=set)  # getattr(owner, "name") with a dotted owner


def lookups_of(text: str) -> Lookups:
    found, tree = Lookups(), parse(text)
    try:
        if tree is not None:
            collect(tree, found)
    except RecursionError:
        tree = None
    if tree is None:
        found.strings.update(TEXT.findall(text))
        found.members.update(MEMBER.findall(text))
    return found


def collect(node: ast.AST, found: Lookups) -> None:
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            found.strings.add(node.value.strip())
        return
    if isinstance(node, ast.Attribute):
        found.members.add(node.attr)
    skipped: list[ast.AST | None] = [getattr(node, "annotation", None), getattr(node, "returns", None)]
    if isinstance(node, ast.Subscript) and is_own_namespace(node.value):
        skipped.append(node.slice)
    if isinstance(node, ast.Call) and is_own_namespace(getattr(node.func, "value", None)):
        skipped += node.args  # globals().get("name")
    if isinstance(node, ast.Call) and len(node.args) > 1:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner, member = dotted(node.args[0]), node.args[1]
        if name in ATTRIBUTE_OF and owner and isinstance(member, ast.Constant):
            found.owned.add((owner, str(member.value)))
            skipped.append(member)
    for child in ast.iter_child_nodes(node):
        if child not in skipped:
            collect(child, found)


def is_own_namespace(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Call) and dotted(node.func) == "globals"


def looked_up(project: Project, keys: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """For these modules, by stem: their API names that other files look up, and which files."""
    tables = {key: set(project.api_names(key)) for key in keys if key}
    words = {name.encode() for names in tables.values() for name in names}
    found: dict[str, dict[str, list[str]]] = {}
    if not words:
        return found
    for path in (*project.files, *project.plain):
        if path.endswith(PROSE):
            continue
        data = project.read(path)
        if len(data) > LOOKUP_BYTES or not any(word in data for word in words):
            continue
        if path.endswith(PLAIN):
            pairs = in_plain_file(project, path, data, tables)
        elif DYNAMIC.search(data):
            pairs = in_code(project, path, data, tables)
        else:
            continue
        for key, name in pairs:
            files = found.setdefault(key, {}).setdefault(name, [])
            if path not in files and key != stem(path):
                files.append(path)
    return {key: {name: files for name, files in names.items() if files} for key, names in found.items()}


def in_plain_file(
    project: Project, path: str, data: bytes, tables: dict[str, set[str]]
) -> Iterator[tuple[str, str]]:
    """`app.compat.X`, `app.compat:X`, and any name in a file that also has the path of a module."""
    text = data.decode("utf-8", "replace")
    words = set(WORD.findall(text))
    last = {key.rsplit("/", 1)[-1] for key in tables}
    for each in {each for each in PATH.findall(text) if last.intersection(each.replace(":", ".").split("."))}:
        yield from of_path(project, path, each, tables)
        for key in modules_of(project, path, each, tables):
            yield from ((key, name) for name in tables[key] & words)


def in_code(
    project: Project, path: str, data: bytes, tables: dict[str, set[str]]
) -> Iterator[tuple[str, str]]:
    text = source_of(path, data)
    lookups, index = lookups_of(text), project.index.get(path) or index_of(path, data)
    for owner, name in lookups.owned:
        owners = owners_of(project, path, owner, index)
        if owners is None:
            lookups.strings.add(name)
        else:
            yield from ((key, name) for key in owners if name in tables.get(key, ()))
    named = {key for each in lookups.strings for key in modules_of(project, path, each, tables)}
    imported = {
        key
        for each in index.imports
        for key in (project.resolve(path, joined(each.module, each.name) if each.name else each.module),)
        if key is not None
    }
    if WALKS.search(data):
        folder = os.path.dirname(path).replace(os.sep, "/")
        imported.update(key for key in tables if key.startswith(folder + "/"))
    for each in lookups.strings:
        yield from of_path(project, path, each, tables)
    for key, names in tables.items():
        if key in named:
            yield from ((key, name) for name in names & (lookups.members | lookups.strings))
        elif key in imported:
            yield from ((key, name) for name in names & lookups.strings)


def owners_of(project: Project, path: str, owner: str, index: ModuleIndex) -> set[str] | None:
    """The modules of the project that a dotted name refers to; None if it is not a module that the file imports."""
    root, _, rest = owner.partition(".")
    ways = index.bindings.get(root) or [each for each in index.imports if each.local == root]
    if not ways or None in ways:
        return None
    found = set()
    for way in ways:
        assert way is not None
        module = joined(way.module, way.name) if way.name else way.module
        key = project.resolve(path, f"{module}.{rest}" if rest else module)
        if key is not None:
            found.add(key)
        elif project.below(path, module) is None and project.resolve(path, way.module) is not None:
            return None  # a member of a module of the project
    return found


def of_path(project: Project, path: str, text: str, tables: dict[str, set[str]]) -> Iterator[tuple[str, str]]:
    """The names that `package.module.name` and `package.module:name` refer to, as (stem, name)."""
    parts = text.replace(":", ".").lstrip(".").split(".")
    dots = text[: len(text) - len(text.lstrip("."))]
    for place in range(1, len(parts)):
        for key in modules_of(project, path, dots + ".".join(parts[:place]), tables):
            if parts[place] in tables[key]:
                yield key, parts[place]


def modules_of(project: Project, path: str, text: str, tables: dict[str, set[str]]) -> set[str]:
    """The modules that a string may name: resolved like an import, relative to the file, or by its last parts."""
    name = text.lstrip(".").replace(":", ".")
    if not name or not all(part.isidentifier() for part in name.split(".")):
        return set()
    key = project.resolve(path, text.replace(":", ".")) or project.resolve(path, "." + name)
    if key is not None:
        return {key} & tables.keys()
    tail = "/" + name.replace(".", "/")
    return {each for each in tables if each.endswith(tail)}
