"""Index of what a file imports, binds and reads, made without libcst: enough to know who imports what from whom."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import tokenize
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from .limits import CODE_CHARACTERS, NOTEBOOK_BYTES
from .removed_api import below_package
from .syntax import parse

IMPORT = re.compile(
    r"^[ \t>.\"']*(?:lazy[ \t]+)?from[ \t]+(\.*[ \t]*(?:\w[\w.]*)?)[ \t]+import[ \t]*(\((?:[^()#]|#[^\n]*){0,9999}\)|(?:[^\n\\#]|\\\n)*)",
    re.MULTILINE,
)
PLAIN_IMPORT = re.compile(r"^[ \t>.\"']*(?:lazy[ \t]+)?import[ \t]+([\w., \t]+)", re.MULTILINE)
CHAIN = re.compile(r"\b[^\W\d]\w*(?:\.\w+)+")
EXPRESSION = re.compile(r"[\w.\[\],|'\" ]{1,200}")
INNER = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
BINDING = re.compile(r"^(?:class|def|async def)?[ \t]*([^\W\d]\w*)[ \t]*[(:=]", re.MULTILINE)


def places_of(module: str, folder: str, above: Iterable[str]) -> Iterator[str]:
    """The paths, without suffix, at which the module of an import in a folder may be; the nearest first.

    An absolute name is looked for in the folders `above` and in their `src`.
    """
    name = module.lstrip(".")
    dots = len(module) - len(name)
    parts = name.split(".") if name else []
    if dots:
        for _ in range(dots - 1):
            folder = os.path.dirname(folder)
        yield os.path.join(folder, *parts)
    elif parts and below_package(module) is None:
        for start in above:
            yield os.path.join(start, *parts)
            yield os.path.join(start, "src", *parts)


@dataclass(frozen=True)
class Import:
    """One name of an import statement; `name` is empty for `import module` and `*` for a star import."""

    module: str  # as written, with leading dots
    name: str
    local: str
    line: int


@dataclass
class ModuleIndex:
    """The imports, bindings and reads of one file."""

    imports: list[Import] = field(default_factory=list)  # anywhere in the file
    # of module-level names; None: not an import
    bindings: dict[str, list[Import | None]] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)  # modules of the file's own star imports
    chains: set[str] = field(default_factory=set)  # dotted names that are read
    names: set[str] = field(default_factory=set)  # plain names that are read
    texts: set[str] = field(default_factory=set)  # strings, while the file is read
    # "x" or "f()" -> what is called to make it, or its type
    makes: dict[str, str] = field(default_factory=dict)
    # module-level name -> names that its value may be, wrap or hold
    wraps: dict[str, set[str]] = field(default_factory=dict)
    exported: set[str] | None = None  # __all__, where it is literal
    is_open: bool = False  # it may have names that are not visible: __getattr__, or it could not be parsed
    is_too_large: bool = False  # nothing was looked at

    def bind(self, name: str, what: Import | None) -> None:
        self.bindings.setdefault(name, []).append(what)

    def gives(self, name: str) -> bool:
        """Whether a star import of this module takes a name."""
        return name in self.exported if self.exported is not None else not name.startswith("_")


def index_of(path: str, data: bytes) -> ModuleIndex:
    """The index of a Python file, a notebook or a page."""
    text = source_of(path, data) if len(data) <= NOTEBOOK_BYTES else None
    if text is None or len(text) > CODE_CHARACTERS:
        return ModuleIndex(is_open=True, is_too_large=True)
    tree = parse(text)
    return index_of_text(text) if tree is None else index_of_tree(tree)


def source_of(path: str, data: bytes) -> str:
    if path.endswith(".ipynb"):
        try:
            cells = json.loads(data).get("cells", [])
            return "\n".join(
                "".join(cell["source"]) for cell in cells if isinstance(cell, dict) and "source" in cell
            )
        except (ValueError, AttributeError, TypeError, RecursionError):
            return ""
    try:
        encoding = tokenize.detect_encoding(io.BytesIO(data).readline)[0]
        return io.TextIOWrapper(io.BytesIO(data), encoding).read()  # with newlines as ast wants them
    except (SyntaxError, UnicodeDecodeError, LookupError):
        return data.decode("latin-1")


def index_of_tree(tree: ast.Module) -> ModuleIndex:
    index = ModuleIndex()
    inside: list[ast.AST] = []  # functions and classes, which have scopes of their own
    for node in walk(index, [tree], inside):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for each in imports_of(node):
                if each.name == "*":
                    index.stars.append(each.module)
                elif each.name or "." not in each.module or each.local != each.module.split(".")[0]:
                    index.bind(each.local, each)
        elif isinstance(node, ast.Name):
            index.bind(node.id, None)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            index.bind(node.name, None)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            note_all(index, node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            index.bind(node.name, None)
    for node in walk(index, [child for each in inside for child in ast.iter_child_nodes(each)], None):
        if isinstance(node, ast.Global):  # such names may be anything
            for name in node.names:
                index.bind(name, None)
    index.is_open = "__getattr__" in index.bindings
    if any(each.name == "*" for each in index.imports):
        index.names.update(name for text in index.texts for name in names_in(text))
    index.texts.clear()
    index.makes = makes_of(tree.body, "")
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    index.wraps.setdefault(target.id, set()).update(values_in(node.value))
    return index


def makes_of(body: list[ast.stmt], before: str) -> dict[str, str]:
    """What makes the values of a block, where a single call or annotation says so; `Class.x` for a name in a class."""
    found: dict[str, list[str | None]] = {}
    for node in body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    found.setdefault(before + target.id, []).append(called(node.value))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            made = called(node.value) or dotted(node.annotation)
            found.setdefault(before + node.target.id, []).append(made)
        elif isinstance(node, ast.FunctionDef) and not before and not node.decorator_list:
            found.setdefault(f"{node.name}()", []).append(result_of(node))
        elif isinstance(node, ast.ClassDef) and not before:
            found.update((name, [made]) for name, made in makes_of(node.body, node.name + ".").items())
    return {name: made[0] for name, made in found.items() if len(made) == 1 and made[0]}


def values_in(node: ast.AST | None) -> Iterator[str]:
    """The dotted names in an expression that it does not call, including the arguments of calls."""
    name = dotted(node)
    if name is not None:
        yield name
    elif isinstance(node, ast.Call):
        for each in (*node.args, *(keyword.value for keyword in node.keywords)):
            yield from values_in(each)
    elif isinstance(node, ast.IfExp | ast.BoolOp | ast.Tuple | ast.List | ast.Dict | ast.Set | ast.NamedExpr):
        for child in ast.iter_child_nodes(node):
            yield from values_in(child)


def called(node: ast.expr | None) -> str | None:
    return dotted(node.func) if isinstance(node, ast.Call) else None


def result_of(function: ast.FunctionDef) -> str | None:
    """What makes the result of a function: the only call that it returns, or its return annotation."""
    if function.returns is not None:
        return dotted(function.returns)
    made = {key: value for key, value in makes_of(function.body, "").items() if "()" not in key}
    results = {
        made.get(node.value.id) if isinstance(node.value, ast.Name) else called(node.value)
        for node in ast.walk(function)
        if isinstance(node, ast.Return)
    }
    return results.pop() if len(results) == 1 else None


def names_in(text: str) -> Iterator[str]:
    """The names in a string that may be a type: `"X"`, `"dict[str, X] | None"`."""
    if EXPRESSION.fullmatch(text):
        with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):
            tree = ast.parse(text.strip(), mode="eval")
            yield from (node.id for node in ast.walk(tree) if isinstance(node, ast.Name))


def walk(index: ModuleIndex, stack: list[ast.AST], inside: list[ast.AST] | None) -> Iterator[ast.AST]:
    """Record what is imported and read; yield every node that is not an expression, and every name that is bound.

    Three times as fast as ast.walk. With `inside`, functions and classes are appended to it and not walked.
    """
    while stack:
        node = stack.pop()
        kind = node.__class__
        if kind is ast.Name:
            if node.ctx.__class__ is ast.Load:  # type: ignore[attr-defined]
                index.names.add(node.id)  # type: ignore[attr-defined]
            else:
                yield node
            continue
        if kind is ast.Constant:
            if isinstance(node.value, str):  # type: ignore[attr-defined]
                index.texts.add(node.value)  # type: ignore[attr-defined]
            continue
        if isinstance(node, ast.Attribute):
            parts = [node.attr]
            base: ast.AST = node.value
            while isinstance(base, ast.Attribute):
                parts.append(base.attr)
                base = base.value
            if isinstance(base, ast.Name):
                index.names.add(base.id)
                index.chains.add(".".join([base.id, *reversed(parts)]))
            else:
                stack.append(base)
            continue
        if inside is not None and kind in INNER:
            inside.append(node)
            if kind is not ast.Lambda:
                yield node
            continue
        if not isinstance(node, ast.expr):
            yield node
        if isinstance(node, ast.Import | ast.ImportFrom):
            index.imports += imports_of(node)
            continue
        children: list[ast.AST] = []
        for value in node.__dict__.values():
            if value.__class__ is list:
                children += [child for child in value if isinstance(child, ast.AST)]
            elif isinstance(value, ast.AST):
                children.append(value)
        stack += reversed(children)


def note_all(index: ModuleIndex, node: ast.Assign | ast.AnnAssign | ast.AugAssign) -> None:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
        found = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
        index.exported = (index.exported or set()) | {name for name in found if isinstance(name, str)}


def imports_of(node: ast.Import | ast.ImportFrom) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            module = alias.name if alias.asname else alias.name.split(".")[0]
            yield Import(module, "", alias.asname or module, node.lineno)
            if not alias.asname and "." in alias.name:
                yield Import(alias.name, "", module, node.lineno)
        return
    for alias in node.names:
        yield Import(
            "." * node.level + (node.module or ""), alias.name, alias.asname or alias.name, alias.lineno
        )


def index_of_text(text: str) -> ModuleIndex:
    """The index by regular expressions, for pages and for syntax newer than the running Python; may find too much."""
    index = ModuleIndex(is_open=True)
    breaks = [match.start() for match in re.finditer("\n", text)]
    for match in IMPORT.finditer(text):
        line = bisect_left(breaks, match.start()) + 1
        module = re.sub(r"\s", "", match.group(1))
        names = re.sub(r"#[^\n]*|[()\\]|^[ \t>.]+", "", match.group(2), flags=re.MULTILINE)
        for part in names.split(","):
            words = part.split()
            if words:
                local = words[2] if len(words) > 2 and words[1] == "as" else words[0]
                index.imports.append(Import(module, words[0], local, line))
    for match in PLAIN_IMPORT.finditer(text):
        line = bisect_left(breaks, match.start()) + 1
        for part in match.group(1).split(","):
            words = part.split()
            if words:
                local = words[2] if len(words) > 2 and words[1] == "as" else words[0].split(".")[0]
                index.imports.append(Import(words[0], "", local, line))
    for each in index.imports:
        if each.name == "*":
            index.stars.append(each.module)
        else:
            index.bind(each.local, each)
    index.chains.update(CHAIN.findall(text))
    index.names.update(re.findall(r"[^\W\d]\w*", text))
    for name in BINDING.findall(text):
        index.bind(name, None)
    return index


def joined(module: str, name: str) -> str:
    """The path of a name in a module, which may be only dots."""
    return module + name if module.endswith(".") else f"{module}.{name}"


def dotted(node: ast.AST | None) -> str | None:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None
