"""HIER008: removed classes used as types: as values, and in strings that a type checker reads."""

from __future__ import annotations

from typing import Any

import libcst as cst

from ..analysis.arguments import string_value
from ..analysis.binding import WORD
from ..analysis.order import ORDERS, order_of
from ..analysis.roles import ALL, CLASS, TYPE, Roles
from ..analysis.source_index import SourceIndex
from ..analysis.uses import Resolver, Use, is_ours
from ..changes import Changes, Rewrite
from ..context import Context
from ..limits import QUOTE_DEPTH
from ..removed_api import NEW_TYPES, REMOVED_CONFIG, REMOVED_NAMES
from .hier002 import config_factory

RULE = "HIER008"


class Replacer(cst.CSTTransformer):
    """Replaces nodes by others."""

    def __init__(self, new: dict[cst.CSTNode, cst.BaseExpression]) -> None:
        super().__init__()
        self.new = new

    def on_leave(self, original_node: Any, updated_node: Any) -> Any:
        return self.new.get(original_node, updated_node)


def rename_types(context: Context, changes: Changes, node: cst.SimpleString) -> bool:
    """Rename the types in a string annotation; True if the string needs no further check."""
    text = string_value(node)
    if text is None:
        return False
    star = name_of_star(context, node, text)
    if star is not None:
        changes.leave(node, "HIER108", star)
        return True
    if not names_ours(context, node, text):
        return False
    scope = context.source.scope_of[node]
    waits = any(context.waits(scope.lookup(word)) for word in WORD.findall(text))
    if waits or not context.wants(RULE, node):
        for word in WORD.findall(text):
            changes.kept.update(context.source.scope_of[node].lookup(word))
        return True
    new = None
    if not isinstance(context.source.parents[node], cst.ConcatenatedString):
        new = renamed(context, changes, node, text, 0)
    if new is None:
        changes.leave(node, "HIER103", repr(text))
        for word in WORD.findall(text):
            changes.kept.update(context.source.scope_of[node].lookup(word))
    elif new is not node:
        changes.strings[node] = new.value
        changes.note(node, RULE)
    return True


def name_of_star(context: Context, node: cst.SimpleString, text: str) -> str | None:
    """The removed name in a text that comes only from a star import of the user's own module."""
    given, scope = context.source.again_by_star, context.source.scope_of[node]
    words = (
        word for word in WORD.findall(text) if given.get(word) in REMOVED_NAMES and not scope.lookup(word)
    )
    return next(words, None) if given else None


def names_ours(context: Context, node: cst.SimpleString, text: str) -> bool:
    """Whether a word of a text refers to the package, and the text to a removed name."""
    scope = context.source.scope_of[node]
    for word in set(WORD.findall(text)):
        for binding in scope.lookup(word):
            target = binding.target or ""
            if is_ours(target) and target.split(".")[-1] in NEW_TYPES:
                return True
            if binding.kind == "import" and is_ours(target + "."):
                return any(name in text for name in NEW_TYPES)
    return False


def renamed(
    context: Context, changes: Changes, node: cst.SimpleString, text: str, depth: int
) -> cst.SimpleString | None:
    """The string with the removed types renamed, or unchanged if there are none; None if that cannot be decided."""
    source = context.source
    inner = text.strip()
    if node.raw_value != text or depth > QUOTE_DEPTH:
        return None
    try:
        annotation = cst.Annotation(cst.parse_expression(inner))
    except (cst.ParserSyntaxError, RecursionError):
        return None
    below = SourceIndex(source.package, source.path, source.facts)
    below.scopes = [source.scope_of[node]]
    ORDERS.setdefault(cst.Annotation, order_of(annotation))
    below.visit(annotation)
    roles = Roles(below)
    new: dict[cst.CSTNode, cst.BaseExpression] = {}
    for use in Resolver(below):
        if use.name in REMOVED_NAMES and roles.of(use.node) == TYPE:
            if use.name not in NEW_TYPES or not use.agrees or use.is_star:
                return None
            new[use.node] = new_name(context, changes, use, node)
    for string in below.strings:
        value = string_value(string)
        if roles.of(string) == TYPE and value is not None:
            source.scope_of[string], source.lines[string] = source.scope_of[node], source.lines[node]
            changed = renamed(context, changes, string, value, depth + 1)
            if changed is None:
                return None
            if changed is not string:
                new[string] = changed
    if not new:
        return node
    expression = annotation.visit(Replacer(new))
    assert isinstance(expression, cst.Annotation)
    new_text = text.replace(inner, cst.Module([]).code_for_node(expression.annotation), 1)
    return node.with_changes(value=f"{node.prefix}{node.quote}{new_text}{node.quote}")


def new_name(context: Context, changes: Changes, use: Use, string: cst.SimpleString) -> cst.BaseExpression:
    context.source.lines[use.root] = context.source.lines[string]  # a name that is only in the string
    return changes.name(use, NEW_TYPES[use.name])


def rename_export(context: Context, changes: Changes, node: cst.SimpleString) -> None:
    """Rename an entry of __all__."""
    name = string_value(node)
    if name is None:
        return
    bindings = context.source.scope_of[node].lookup(name)
    if context.waits(bindings) or not context.wants(RULE, node):
        changes.kept.update(bindings)
        return
    if name in context.source.facts.wanted:
        return  # other files continue to import it from here
    scope = context.source.scope_of[node]
    ours = [(b.target or "").split(".")[-1] for b in bindings if is_ours(b.target)]
    if not set(ours) & REMOVED_NAMES:
        return
    if len(set(ours)) == 1 and len(ours) == len(bindings) and ours[0] in NEW_TYPES and node.raw_value == name:
        if name != ours[0]:  # the import keeps its alias
            return
        root = cst.Name(name)
        new_name(context, changes, Use(ours[0], root, root, scope, bindings, None, True), node)
        changes.strings[node] = f"{node.prefix}{node.quote}{NEW_TYPES[ours[0]]}{node.quote}"
        changes.note(node, RULE)
    else:
        changes.leave(node, "HIER109", f"{name} is exported")


def check_types(context: Context, changes: Changes) -> None:
    """Rename in every string that is an annotation or an entry of `__all__`; other checks handle the rest."""
    for node in context.source.strings:
        role = context.roles.of(node)
        if role == ALL:
            rename_export(context, changes, node)
        elif role == TYPE and rename_types(context, changes, node):
            changes.reported.add(node)


def decide_value(
    context: Context, changes: Changes, use: Use, parent: cst.CSTNode
) -> tuple[cst.CSTNode, Rewrite] | None:
    """A removed name that is not called: a type, a base class, or a value."""
    parents = context.source.parents
    if isinstance(parent, cst.Arg) and isinstance(parents[parent], cst.ClassDef):
        changes.leave(use.node, "HIER101", f"subclass of {use.name}")
    elif isinstance(parent, cst.Attribute) and parent.value is use.node:
        changes.leave(use.node, "HIER102", f"{use.name}.{parent.attr.value}")
    elif use.name in NEW_TYPES and context.roles.of(use.node) in (TYPE, CLASS):
        wanted = context.wants(RULE, use.node) and not context.waits(use.bindings)
        if wanted and context.branches.are_told_apart(use):
            new = NEW_TYPES[use.name]
            changes.leave(
                use.node, "HIER109", f"{use.name} and {new} are distinguished here, but become one class"
            )
        elif wanted:
            if context.roles.of(use.node) == CLASS and (classes := repeats(context, use)) is not None:
                changes.replacements[classes] = Rewrite(RULE, without_repeats)
            changes.renames[use.node] = changes.name(use, NEW_TYPES[use.name])
            changes.used.add(use.root)
            changes.note(use.node, RULE)
        else:
            changes.passed.add(use.root)
    elif use.name == REMOVED_CONFIG and is_keyword(parent, "default_factory"):
        if context.wants("HIER002", use.node) and not context.waits(use.bindings):
            return use.node, config_factory(context, changes, use)
        changes.passed.add(use.root)
    else:
        changes.leave(use.node, "HIER109", f"{use.name} is used as a value")
    return None


def is_keyword(node: cst.CSTNode, name: str) -> bool:
    return isinstance(node, cst.Arg) and node.keyword is not None and node.keyword.value == name


def repeats(context: Context, use: Use) -> cst.Tuple | None:
    """The tuple around a removed class, if it also contains its successor."""
    container = context.source.parents[context.source.parents[use.node]]
    if not isinstance(container, cst.Tuple):
        return None
    others = [context.resolver.by_node.get(each.value) for each in container.elements]
    names = [NEW_TYPES.get(other.name, other.name) for other in others if other is not None]
    return container if names.count(NEW_TYPES[use.name]) > 1 else None


def without_repeats(classes: cst.Tuple) -> cst.BaseExpression:
    """The tuple without repeated classes; the class itself if only one remains."""
    kept: dict[str, cst.BaseElement] = {}
    for element in classes.elements:
        kept.setdefault(cst.Module([]).code_for_node(element.value), element)
    elements = list(kept.values())
    if len(elements) == 1:
        return elements[0].value
    elements[-1] = elements[-1].with_changes(comma=classes.elements[-1].comma)
    return classes.with_changes(elements=elements)
