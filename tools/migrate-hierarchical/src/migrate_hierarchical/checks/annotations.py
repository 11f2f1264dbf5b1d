"""Strings that a type checker reads, and the entries of __all__: the removed classes in them are renamed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import libcst as cst

from ..analysis.order import ORDERS, order_of
from ..analysis.roles import ALL, TYPE, Roles
from ..analysis.scopes import Walk
from ..analysis.uses import Resolver, Use
from ..edit.arguments import string_value
from ..names import PACKAGE, REMOVED, TYPES

if TYPE_CHECKING:
    from ..plan import Planner

WORD = re.compile(r"[A-Za-z_]\w*")
DEEPEST = 4  # strings in strings


class Replace(cst.CSTTransformer):
    """Puts new nodes in place of old ones."""

    def __init__(self, new: dict[cst.CSTNode, cst.BaseExpression]) -> None:
        super().__init__()
        self.new = new

    def on_leave(self, original_node: Any, updated_node: Any) -> Any:
        return self.new.get(original_node, updated_node)


def rename_types(planner: Planner, node: cst.SimpleString) -> bool:
    """Rename in a string that is a type; True if the string needs nothing more."""
    text = string_value(node)
    if text is None:
        return False
    star = name_of_star(planner, node, text)
    if star is not None:
        planner.leave(node, "HIER108", star)
        return True
    if not names_ours(planner, node, text):
        return False
    scope = planner.walk.scope_of[node]
    waits = any(planner.waits(scope.lookup(word)) for word in WORD.findall(text))
    if waits or not planner.wants("HIER008", node):
        for word in WORD.findall(text):
            planner.kept.update(planner.walk.scope_of[node].lookup(word))
        return True
    new = None
    if not isinstance(planner.walk.parents[node], cst.ConcatenatedString):
        new = renamed(planner, node, text, 0)
    if new is None:
        planner.leave(node, "HIER103", repr(text))
        for word in WORD.findall(text):
            planner.kept.update(planner.walk.scope_of[node].lookup(word))
    elif new is not node:
        planner.strings[node] = new.value
        planner.note(node, "HIER008")
    return True


def name_of_star(planner: Planner, node: cst.SimpleString, text: str) -> str | None:
    """The removed name in a text that only the star of a module of the user's own gives."""
    given, scope = planner.walk.again_by_star, planner.walk.scope_of[node]
    words = (word for word in WORD.findall(text) if given.get(word) in REMOVED and not scope.lookup(word))
    return next(words, None) if given else None


def names_ours(planner: Planner, node: cst.SimpleString, text: str) -> bool:
    """Whether a word of a text leads to the package, and the text to a removed name."""
    scope = planner.walk.scope_of[node]
    for word in set(WORD.findall(text)):
        for binding in scope.lookup(word):
            target = binding.target or ""
            if planner.is_ours(target) and target.split(".")[-1] in TYPES:
                return True
            if binding.kind == "import" and planner.is_ours(target + "."):
                return any(name in text for name in TYPES)
    return False


def renamed(planner: Planner, node: cst.SimpleString, text: str, depth: int) -> cst.SimpleString | None:
    """The string with the removed types renamed, itself if there are none; None if that cannot be said."""
    walk = planner.walk
    inner = text.strip()
    if node.raw_value != text or depth > DEEPEST:
        return None
    try:
        annotation = cst.Annotation(cst.parse_expression(inner))
    except (cst.ParserSyntaxError, RecursionError):
        return None
    below = Walk(walk.package, walk.path, walk.facts)
    below.scopes = [walk.scope_of[node]]
    ORDERS.setdefault(cst.Annotation, order_of(annotation))
    below.visit(annotation)
    roles = Roles(below)
    new: dict[cst.CSTNode, cst.BaseExpression] = {}
    for use in Resolver(below):
        if use.name in REMOVED and roles.of(use.node) == TYPE:
            if use.name not in TYPES or not use.agrees or use.is_star:
                return None
            new[use.node] = new_name(planner, use, node)
    for string in below.strings:
        value = string_value(string)
        if roles.of(string) == TYPE and value is not None:
            walk.scope_of[string], walk.lines[string] = walk.scope_of[node], walk.lines[node]
            changed = renamed(planner, string, value, depth + 1)
            if changed is None:
                return None
            if changed is not string:
                new[string] = changed
    if not new:
        return node
    expression = annotation.visit(Replace(new))
    assert isinstance(expression, cst.Annotation)
    source = text.replace(inner, cst.Module([]).code_for_node(expression.annotation), 1)
    return node.with_changes(value=f"{node.prefix}{node.quote}{source}{node.quote}")


def new_name(planner: Planner, use: Use, string: cst.SimpleString) -> cst.BaseExpression:
    planner.walk.lines[use.root] = planner.walk.lines[string]  # a name that stands only in the string
    return planner.name(use, TYPES[use.name])


def rename_export(planner: Planner, node: cst.SimpleString) -> None:
    """Rename an entry of __all__."""
    name = string_value(node)
    if name is None:
        return
    bindings = planner.walk.scope_of[node].lookup(name)
    if planner.waits(bindings) or not planner.wants("HIER008", node):
        planner.kept.update(bindings)
        return
    if name in planner.walk.facts.wanted:
        return  # other files go on importing it from here
    scope = planner.walk.scope_of[node]
    ours = [(b.target or "").split(".")[-1] for b in bindings if planner.is_ours(b.target)]
    if not set(ours) & REMOVED:
        return
    if len(set(ours)) == 1 and len(ours) == len(bindings) and ours[0] in TYPES and node.raw_value == name:
        if name != ours[0]:  # the import keeps its alias
            return
        root = cst.Name(name)
        new_name(planner, Use(ours[0], root, root, scope, bindings, None, True), node)
        planner.strings[node] = f"{node.prefix}{node.quote}{TYPES[ours[0]]}{node.quote}"
        planner.note(node, "HIER008")
    else:
        planner.leave(node, "HIER109", f"{name} is exported")


def check_types(planner: Planner) -> None:
    """Rename in every string that is a type or an export; the rest is the other checks'."""
    for node in planner.walk.strings:
        role = planner.roles.of(node)
        if role == ALL:
            rename_export(planner, node)
        elif role == TYPE and rename_types(planner, node):
            planner.spoken.add(node)


def check_type_comments(planner: Planner) -> None:
    """`# type: HierarchicalConfig`, which nothing rewrites."""
    for node, text, scope in planner.walk.type_comments:
        for word in WORD.findall(text):
            bindings = scope.lookup(word)
            targets = [each.target or "" for each in bindings]
            if any(planner.is_ours(target) and target.split(".")[-1] in REMOVED for target in targets) or (
                PACKAGE in targets and any(name in text for name in REMOVED)
            ):
                planner.leave(node, "HIER103", f"type comment {text}")
                planner.kept.update(bindings)
                break
