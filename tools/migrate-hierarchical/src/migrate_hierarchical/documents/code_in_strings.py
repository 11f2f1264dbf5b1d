"""Finds code in strings that exec, `python -c`, timeit or doctest would run. It is reported, never changed."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator

import libcst as cst

from ..analysis.binding import dotted, last_part
from ..analysis.roles import DOCSTRING
from ..analysis.text import GAP, text_of
from ..analysis.uses import is_ours
from ..changes import Changes
from ..context import Context
from ..removed_api import NEEDLE, PACKAGE, REMOVED_NAMES

# Functions that run a string, which sees the names of the calling file.
RUNS = frozenset({"exec", "eval", "compile", "timeit", "repeat", "Timer", "runctx", "run"})
PROMPT = re.compile(r"^\s*(?:>>>|\.\.\.) ?(.*)$", re.MULTILINE)
COMMAND = re.compile(r"""-c\s+(?P<quote>["'])(?P<code>.*?)(?<!\\)(?P=quote)""", re.DOTALL)
PLACEHOLDER = re.compile(r"%\(\w+\)[sdrfi]|%[sdrfi]|\$\{?\w+\}?|\0")


def find_code(
    context: Context, changes: Changes, has_use: Callable[[str], bool]
) -> Iterator[cst.BaseExpression]:
    """The strings whose code uses the removed API; `has_use` decides for a source that imports the package."""
    source = context.source
    found: set[cst.CSTNode] = set()
    runs_any = any(map(runs, source.calls))
    run = names_that_run(context)
    for node in (*source.composed, *source.strings):
        text = text_of(node, source, source.scope_of[node])
        if text is None or not (runs_any or NEEDLE.decode() in text):
            continue
        if changes.is_handled(node) or context.is_inside(node, found):
            continue
        imports = NEEDLE.decode() in text and context.roles.of(node) != DOCSTRING
        if (imports and any(has_use(source) for source in sources(text))) or (
            runs_any and is_run(context, node, run) and uses_name(context, changes, node, text)
        ):
            found.add(node)
            yield node


def sources(text: str) -> Iterator[str]:
    """The parts of a text that are valid Python and import the package."""
    if PACKAGE not in text or "import" not in text:
        return
    text = textwrap.dedent(text.strip("\n"))
    candidates = [text, *(match["code"].replace('\\"', '"') for match in COMMAND.finditer(text))]
    if ">>>" in text:
        candidates.append("\n".join(PROMPT.findall(text)))
    parsed = False
    for each in candidates:
        for source in (each, PLACEHOLDER.sub("_", each)):
            if parse(source) is not None:
                parsed = True
                yield source
                break
    if not parsed:  # a template, or a here-document of a shell
        lines = [line for line in text.split("\n") if line.startswith(("from ", "import "))]
        yield "\n".join(line for line in lines if parse(line) is not None)


def parse(source: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def runs(call: cst.Call) -> bool:
    return last_part(call.func) in RUNS


def names_that_run(context: Context) -> set[str]:
    """The variables that are passed to a call that runs strings."""
    return {
        arg.value.value
        for call in context.source.calls
        if runs(call)
        for arg in call.args
        if isinstance(arg.value, cst.Name)
    }


def is_run(context: Context, node: cst.BaseExpression, names: set[str]) -> bool:
    parents = context.source.parents
    current = parents[node]
    while not isinstance(current, cst.BaseSmallStatement | cst.BaseCompoundStatement | cst.Module):
        if isinstance(current, cst.Call) and runs(current):
            return True
        current = parents[current]
    return isinstance(current, cst.Assign) and any(dotted(each.target) in names for each in current.targets)


def uses_name(context: Context, changes: Changes, node: cst.BaseExpression, text: str) -> bool:
    """Whether code without imports uses a removed name that the surrounding file imports."""
    tree = parse(textwrap.dedent(text.strip("\n")).replace(GAP, "_").strip())
    if tree is None:
        return False
    scope = context.source.scope_of[node]
    for each in ast.walk(tree):
        if isinstance(each, ast.Name):
            bindings = scope.lookup(each.id)
            targets = [binding.target or "" for binding in bindings]
            if any(is_ours(target) and target.split(".")[-1] in REMOVED_NAMES for target in targets):
                changes.kept.update(bindings)
                return True
            if not targets and each.id in REMOVED_NAMES and context.is_concerned:
                return True
        elif isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name):
            targets = [binding.target or "" for binding in scope.lookup(each.value.id)]
            if each.attr in REMOVED_NAMES and PACKAGE in targets:
                return True
    return False
