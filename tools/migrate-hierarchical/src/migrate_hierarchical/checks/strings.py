"""Removed names in strings and keywords: annotations and __all__ are renamed, the rest is left to a person."""

from __future__ import annotations

from typing import TYPE_CHECKING

import libcst as cst

from ..analysis.binding import Scope, dotted
from ..analysis.context import annotation_name_edit, in_all, in_annotation, in_type_call, is_docstring
from ..analysis.uses import Use
from ..edit.arguments import string_value
from ..names import (
    FACTORY,
    HIERARCHICAL_STRINGS,
    KEPT,
    KEYWORD,
    PACKAGE,
    PRESET,
    REMOVED,
    REMOVED_MODULE,
    TYPES,
)
from .members import is_foreign

if TYPE_CHECKING:
    from ..plan import Planner

NAMED_BY = ("variant", "pattern_type", "preset", "preset_name", "name")


def check_strings(planner: Planner) -> None:
    walk = planner.walk
    ours = any(planner.is_ours(b.target) or b.target == PACKAGE for b in planner.import_bindings())
    ours = ours or bool(walk.stars) or any(string_value(node) == PACKAGE for node in walk.strings)
    if ours:
        check_keywords(planner)
    for node in walk.strings:
        value = string_value(node)
        if value is None or planner.is_spoken(node) or is_docstring(node, walk.parents):
            continue
        if value in HIERARCHICAL_STRINGS:
            if ours and given_by_name(planner, node):
                planner.leave(node, "HIER113", repr(value))
        elif value == KEYWORD:
            if ours and is_key_of_arguments(planner, node):
                planner.leave(node, "HIER113", repr(value))
        elif not rename_in_string(planner, node) and is_removed_name(planner, node, value, ours):
            planner.leave(node, "HIER103", repr(value))


def is_removed_name(planner: Planner, node: cst.SimpleString, value: str, ours: bool) -> bool:
    """Whether a string is a removed name, or a dotted path to one."""
    if value in (*REMOVED, REMOVED_MODULE):
        return ours and not in_all(node, planner.walk.parents)
    if PACKAGE not in value or not any(name in value for name in (*REMOVED, REMOVED_MODULE)):
        return False
    return all(part.isidentifier() for part in value.replace(":", ".").split("."))


# ---- "hierarchical" by name


def given_by_name(planner: Planner, node: cst.SimpleString) -> bool:
    """`variant="hierarchical"` in a call that is none of ours, `{"variant": ...}`, `config.pattern_type = ...`."""
    parent = planner.walk.parents[node]
    if isinstance(parent, cst.Arg) and parent.keyword is not None:
        return parent.keyword.value in NAMED_BY and not is_plain_call(planner, parent)
    if isinstance(parent, cst.Arg):
        return is_partial(planner, parent)
    if isinstance(parent, cst.DictElement) and parent.value is node:
        return string_value(parent.key) in NAMED_BY
    if isinstance(parent, cst.Assign):
        targets = [assigned.target for assigned in parent.targets]
        return any(
            (isinstance(target, cst.Attribute) and target.attr.value in NAMED_BY)
            or key_of(target) in NAMED_BY
            for target in targets
        )
    return False


def key_of(target: cst.BaseExpression) -> str | None:
    """The literal key of `x["key"]`."""
    if isinstance(target, cst.Subscript) and len(target.slice) == 1:
        index = target.slice[0].slice
        return string_value(index.value) if isinstance(index, cst.Index) else None
    return None


def is_plain_call(planner: Planner, arg: cst.Arg) -> bool:
    """Whether an argument goes to a class or function of the file or of another package."""
    call = planner.walk.parents[arg]
    if not isinstance(call, cst.Call) or is_partial(planner, arg):
        return False
    return is_foreign(planner, call.func) and dotted(call.func) not in ("dataclasses.replace", "replace")


def is_partial(planner: Planner, arg: cst.Arg) -> bool:
    call = planner.walk.parents[arg]
    if not isinstance(call, cst.Call) or not call.args:
        return False
    first = planner.resolver.by_node.get(call.args[0].value)
    return first is not None and first.name in KEPT


# ---- hierarchical_config as a key of arguments


def check_keywords(planner: Planner) -> None:
    """`dict(hierarchical_config=...)` and `partial(create_block_sparse_attention, hierarchical_config=...)`."""
    for arg in planner.walk.keywords:
        call = planner.walk.parents[arg]
        if not isinstance(call, cst.Call):
            continue
        function = (dotted(call.func) or "").split(".")[-1]
        collects = function in ("dict", "update") and is_collected(planner, arg.value)
        if (collects or is_partial(planner, arg)) and not planner.is_spoken(arg):
            planner.leave(arg.value, "HIER113", KEYWORD)


def is_key_of_arguments(planner: Planner, node: cst.SimpleString) -> bool:
    """`{"hierarchical_config": ...}` and `arguments["hierarchical_config"] = ...` where they may reach the factory."""
    parents = planner.walk.parents
    parent = parents[node]
    if isinstance(parent, cst.DictElement) and parent.key is node:
        return is_collected(planner, parent.value)
    if not isinstance(parent, cst.Index):
        return False
    subscript = parents[parents[parent]]
    target = parents[subscript]
    assign = parents.get(target)
    if not isinstance(target, cst.AssignTarget) or not isinstance(assign, cst.Assign):
        return False
    return is_collected(planner, assign.value)


def is_collected(planner: Planner, value: cst.BaseExpression) -> bool:
    """Whether a value that has this key is an old configuration, or the file unpacks arguments into the factory."""
    use = planner.resolver.by_node.get(value.func) if isinstance(value, cst.Call) else None
    if use is not None and use.name in REMOVED:
        return True
    calls = (planner.walk.parents[use.node] for use in planner.resolver if use.name in (FACTORY, PRESET))
    return any(isinstance(call, cst.Call) and any(arg.star for arg in call.args) for call in calls)


# ---- annotations and __all__


def rename_in_string(planner: Planner, node: cst.SimpleString) -> bool:
    """A string annotation, or an entry of __all__; True if the string needs nothing more."""
    parents = planner.walk.parents
    exported = in_all(node, parents)
    if not (exported or in_annotation(node, parents) or in_type_call(node, parents, first_of_cast=True)):
        return False
    if not planner.settings.wants("HIER008"):
        return True
    scope = planner.walk.scope_of[node]
    source, names = annotation_name_edit(node, scope, lambda name, where: text_use(planner, name, where))
    if not names:
        bindings = scope.lookup(string_value(node) or "")
        if exported and any(
            planner.is_ours(b.target) and (b.target or "").split(".")[-1] in REMOVED for b in bindings
        ):
            planner.leave(node, "HIER109", f"{string_value(node)} is exported")
        return exported
    for use, new in names:
        planner.walk.lines[use.root] = planner.walk.lines[node]  # a name that stands only in the string
        planner.name(use, new)
    planner.strings[node] = source
    planner.note(node, "HIER008")
    return True


def text_use(planner: Planner, name: str, scope: Scope) -> Use | None:
    """The use that a name in a string would be."""
    bindings = scope.lookup(name)
    targets = {
        (binding.target or "").split(".")[-1] for binding in bindings if planner.is_ours(binding.target)
    }
    if len(targets) != 1 or any(not planner.is_ours(binding.target) for binding in bindings):
        return None
    target = targets.pop()
    if target not in TYPES:
        return None
    root = cst.Name(name)
    return Use(target, root, root, scope, bindings, None, True)
