"""Finds the names under which the files of a project store a removed variant, pattern or preset, or pass it on.

A variant that is not a literal may come from such a name: `create_block_sparse_attention(config.variant)` where another
file has `variant: str = "hierarchical"`, or `def build(variant)` that another file calls with it. Names are compared in
lower case, because command line options and environment variables are spelt differently; `build()` stands for a call.
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Iterable, Iterator

from .discovery import NOTEBOOK, PYTHON
from .module_index import Import, dotted, index_of, joined, source_of
from .project import Project
from .removed_api import CHOOSE, HIERARCHICAL, HIERARCHICAL_STRINGS, PACKAGE, SKIP_FILE
from .syntax import parse

NAME_KEYWORDS = frozenset({"variant", "preset_name", "pattern_type"})
OPEN = re.compile(rb"(?:" + "|".join(sorted(CHOOSE)).encode() + rb")\b")
# Functions of other packages that take the name of an option or a member together with its value.
OPTIONS = frozenset(
    ["get", "getenv", "getattr", "setattr", "setdefault", "pop", "add_argument", "option", "Option"]
)
LOCAL_ROUNDS = 3  # assignments followed from one name to the next within a file


def carried(project: Project, paths: Iterable[str]) -> dict[str, frozenset[str]]:
    """The names under which other files store a removed one, for each file that passes a variant, preset or pattern on."""
    asking = [path for path in paths if path.endswith(PYTHON + NOTEBOOK) and asks(path, project.data[path])]
    if not asking:
        return {}
    holders: dict[str, set[str]] = {}
    for path in project.files:
        if path.endswith(PYTHON + NOTEBOOK) and HIERARCHICAL.encode() in (data := project.read(path)):
            if PACKAGE in path and project.is_fork(path):
                continue
            for name in Carriers(project, path, data).names:
                holders.setdefault(name, set()).add(path)
    found = {path: frozenset(name for name, files in holders.items() if files - {path}) for path in asking}
    return {path: names for path, names in found.items() if names}


def asks(path: str, data: bytes) -> bool:
    """Whether a file may call the package with a variant, preset or pattern that is not a literal."""
    tree = parse(source_of(path, data)) if OPEN.search(data) and SKIP_FILE not in data else None
    if tree is None:
        return False
    functions = set(CHOOSE)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            functions.update(each.asname for each in node.names if each.name in CHOOSE and each.asname)
    return any(
        isinstance(node, ast.Call) and last_part(node.func) in functions and is_open(node)
        for node in ast.walk(tree)
    )


def is_open(call: ast.Call) -> bool:
    named = [each.value for each in call.keywords if each.arg is None or each.arg in NAME_KEYWORDS]
    return not all(isinstance(value, ast.Constant) for value in (*call.args[:1], *named))


def first_part(node: ast.expr) -> str:
    return (dotted(node) or "").partition(".")[0]


def last_part(node: ast.expr) -> str:
    return str(dotted(node) or getattr(node, "attr", "")).rpartition(".")[2]


class Carriers:
    """The names under which one file stores a removed variant, pattern or preset."""

    def __init__(self, project: Project, path: str, data: bytes) -> None:
        self.project, self.path = project, path
        self.names: set[str] = set()
        self.ways: dict[str, list[Import]] = {}  # local name -> its imports
        tree = parse(source_of(path, data))
        if tree is None:
            return
        imports = (project.index.get(path) or index_of(path, data)).imports
        for each in imports:
            self.ways.setdefault(each.local, []).append(each)
        self.is_connected = any(map(self.of_project, imports))
        with contextlib.suppress(RecursionError):
            for _ in range(LOCAL_ROUNDS):
                size = len(self.names)
                self.look(tree, "")
                if size == len(self.names):
                    break

    def of_project(self, way: Import) -> bool:
        modules = [way.module, joined(way.module, way.name)] if way.name else [way.module]
        return any(self.project.resolve(self.path, each) for each in modules)

    def add(self, *names: str) -> None:
        self.names.update(name.lower() for name in names if name and name != "name")

    def holds(self, node: ast.AST | None) -> bool:
        """Whether an expression contains a removed name, or a name of the file that stores one."""
        if isinstance(node, ast.Constant):
            return is_removed(node)
        if isinstance(node, ast.Name):
            return node.id.lower() in self.names
        if isinstance(node, ast.Attribute):
            return node.attr.lower() in self.names
        # `field(default="hierarchical")`, `os.environ.get("VARIANT", "hierarchical")`
        if isinstance(node, ast.Call):
            gives = last_part(node.func) in OPTIONS or self.is_foreign(node)
            given = [*node.args, *(each.value for each in node.keywords)]
            return gives and not self.is_ours(node) and any(map(is_removed, given))
        if node is None or isinstance(node, ast.Lambda):
            return False
        return any(self.holds(child) for child in ast.iter_child_nodes(node))

    def is_ours(self, call: ast.Call) -> bool:
        """Whether a call is one of the package, which is rewritten or reported itself."""
        tables = self.project.tables or {}
        return any(
            self.project.of_import(self.path, each.module, each.name, tables) is not None
            for each in self.ways.get(first_part(call.func), ())
        )

    def is_foreign(self, call: ast.Call) -> bool:
        """Whether a call is one of another package, or a local one in a file that imports nothing from the project."""
        ways = self.ways.get(first_part(call.func), ())
        return not (any(map(self.of_project, ways)) if ways else self.is_connected)

    def look(self, node: ast.AST, inside: str) -> None:
        """Record what a node and those below it store; `inside` is the function around them."""
        if isinstance(node, ast.Call):
            if self.is_ours(node):
                return
            self.look_at_call(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if self.holds(node.value) or (isinstance(node, ast.AnnAssign) and self.holds(node.annotation)):
                self.add(*(name for each in targets for name in names_of(each)))
        elif isinstance(node, ast.For | ast.AsyncFor | ast.comprehension) and self.holds(node.iter):
            self.add(*names_of(node.target))
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values):
                if isinstance(key, ast.Constant) and self.holds(value):
                    self.add(str(key.value))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inside = node.name
            for name, default in parameters(node.args):
                if self.holds(default):
                    self.add(name)
        elif isinstance(node, ast.Return) and inside and self.holds(node.value):
            self.add(inside + "()")
        elif isinstance(node, ast.ClassDef) and node.bases and self.holds_member(node):
            self.add(node.name)  # an enumeration
        for child in ast.iter_child_nodes(node):
            self.look(child, inside)

    def holds_member(self, node: ast.ClassDef) -> bool:
        return any(isinstance(each, ast.Assign) and self.holds(each.value) for each in node.body)

    def look_at_call(self, call: ast.Call) -> None:
        keywords = [each.arg for each in call.keywords if each.arg and self.holds(each.value)]
        if not keywords and not any(map(self.holds, call.args)):
            return
        foreign, function = self.is_foreign(call), last_part(call.func)
        if not foreign:
            self.add(*keywords, "" if function in OPTIONS else function + "()")
        texts = [each.value for each in call.args if isinstance(each, ast.Constant)]
        for text in (text for text in texts if isinstance(text, str) and text not in HIERARCHICAL_STRINGS):
            if not foreign or function in OPTIONS or text.startswith("--"):
                self.add(text.lstrip("-").replace("-", "_"))


def is_removed(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in HIERARCHICAL_STRINGS
    )


def names_of(target: ast.expr) -> Iterator[str]:
    if isinstance(target, ast.Name):
        yield target.id
    elif isinstance(target, ast.Attribute):
        yield target.attr
    elif isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant):
        yield str(target.slice.value)
    elif isinstance(target, ast.Tuple | ast.List):
        for each in target.elts:
            yield from names_of(each)


def parameters(args: ast.arguments) -> Iterator[tuple[str, ast.AST | None]]:
    """The parameters of a function with their defaults, and again with their annotations."""
    plain = [*args.posonlyargs, *args.args]
    yield from zip([each.arg for each in plain[len(plain) - len(args.defaults) :]], args.defaults)
    yield from zip([each.arg for each in args.kwonlyargs], args.kw_defaults)
    yield from ((each.arg, each.annotation) for each in (*plain, *args.kwonlyargs))
