"""Reports members of the removed classes, read as attributes or by name in strings."""

from __future__ import annotations

import libcst as cst

from ...analysis.arguments import string_value
from ...analysis.binding import dotted, import_name, last_part, written_path
from ...analysis.roles import leftmost
from ...analysis.uses import is_foreign, is_ours
from ...changes import Changes
from ...context import Context
from ...facts import LAZY, SEVERAL
from ...removed_api import COMMON_MEMBERS, PACKAGE, REMOVED_MEMBERS, REMOVED_MODULE, REMOVED_NAMES

# Functions that take an object and the name of a member, and functions that take only the name.
ATTRIBUTE_FUNCTIONS = frozenset({"getattr", "hasattr", "setattr", "delattr"})
GETTERS = frozenset({"attrgetter", "methodcaller"})
# Functions that read all fields of a dataclass or replace some, and attributes that hold all of them.
COPIERS = frozenset({"replace", "__replace__"})
FIELDS = frozenset({*COPIERS, "asdict", "astuple", "fields", "vars"})
HOLD_FIELDS = frozenset({"__dict__", "__dataclass_fields__"})


def check_members(context: Context, changes: Changes) -> None:
    """Report members of objects that are, or may be, of a removed class."""
    if not (changes.has_use or any(use.name in REMOVED_NAMES for use in context.resolver)):
        if context.source.facts.kinds:  # a file may only have values from other files
            check_known_members(context, changes)
        return
    for node in context.source.attributes:
        member = node.attr.value
        if may_be_ours(context, node.value, member) or (
            member in HOLD_FIELDS and is_config(context, node.value)
        ):
            changes.leave(node, "HIER102", f".{member}")
    for call in context.source.calls:
        if takes_fields(context, call):
            changes.leave(call, "HIER102", f"fields of a configuration in {dotted(call.func)}")
    for text in context.source.strings:
        name = string_value(text)
        if name in REMOVED_MEMBERS and is_read_by_name(context, text, name):
            changes.leave(text, "HIER102", repr(name))
            changes.reported.add(text)


def check_known_members(context: Context, changes: Changes) -> None:
    """Report members of objects that are certainly of a removed class."""
    for node in context.source.attributes:
        scope = context.source.scope_of.get(leftmost(node.value))
        known = scope is not None and context.origins.kind(node.value, scope) is not None
        if known and may_be_ours(context, node.value, node.attr.value):
            changes.leave(node, "HIER102", f".{node.attr.value}")


def check_unresolved(context: Context, changes: Changes) -> None:
    """Removed names read from something that is our package in a way that imports do not show.

    `d = dilated_attention_pytorch; d.X`, `sys.modules["dilated_attention_pytorch"].X`, `__import__(...).X`,
    `self.X` of a name imported in the body of the class.
    """
    for node in context.source.attributes:
        if (
            node.attr.value in REMOVED_NAMES
            and node not in context.resolver.by_node
            and is_package(context, node)
        ):
            changes.leave(node, "HIER109", f"{node.attr.value} of another name for the package")


def is_package(context: Context, node: cst.Attribute) -> bool:
    if PACKAGE in context.module.code_for_node(node.value):
        return True
    root = leftmost(node.value)
    if not isinstance(root, cst.Name) or root not in context.source.scope_of:
        return False
    scope = context.source.scope_of[root]
    owner = context.origins.class_body(root, scope)
    if owner is not None and node.value is root:
        return any(is_ours(each.target) for each in owner.bindings.get(node.attr.value, []))
    for binding in scope.lookup(root.value):
        if binding.kind == "value" and binding.value is not None:
            value = leftmost(binding.value)
            imported = scope.lookup(value.value) if isinstance(value, cst.Name) else []
            if PACKAGE in context.module.code_for_node(binding.value) or any(
                each.kind == "import" and each.target == PACKAGE for each in imported
            ):
                return True
    return False


def check_modules(context: Context, changes: Changes) -> None:
    """`attention.HierarchicalConfig` if attention is a module of the user's own that imports it."""
    facts = context.source.facts
    if not facts.imported:
        return
    for node in context.source.attributes:
        path = dotted(node.value)
        root = leftmost(node)
        if path is None or root not in context.source.scope_of:
            continue
        name, _, rest = path.partition(".")
        for binding in context.source.scope_of[root].lookup(name):
            module = ".".join(part for part in (written_path(binding), rest) if part)
            api = facts.find(module).get(node.attr.value, "")
            if api in REMOVED_NAMES or api in (SEVERAL, LAZY, REMOVED_MODULE):
                changes.leave(
                    node, "HIER109", f"{path}.{node.attr.value} comes from a module of this project"
                )


def check_own_imports(context: Context, changes: Changes) -> None:
    """Report names that a module of the user's own lacks, binds in several ways, or gives through __getattr__."""
    for alias, what in context.source.unclear:
        if what == SEVERAL:
            changes.leave(alias, "HIER107", f"{import_name(alias)} is bound in several ways there")
        elif what == LAZY:
            changes.leave(alias, "HIER108", f"{import_name(alias)} comes from __getattr__ of that module")
        else:
            changes.leave(alias, "HIER108", f"{import_name(alias)} is not in that module")


def may_be_ours(context: Context, owner: cst.BaseExpression, member: str) -> bool:
    if member not in REMOVED_MEMBERS:
        return False
    scope = context.source.scope_of.get(owner) or context.source.scope_of.get(leftmost(owner))
    kind = context.origins.kind(owner, scope) if scope is not None else None
    if kind is not None:
        return kind in ("instance", "config") or (kind == "pattern" and member in COMMON_MEMBERS)
    return not is_foreign(context.source, owner, through_values=member in COMMON_MEMBERS)


def is_config(context: Context, node: cst.BaseExpression) -> bool:
    scope = context.source.scope_of.get(node) or context.source.scope_of.get(leftmost(node))
    return scope is not None and context.origins.kind(node, scope) == "config"


def takes_fields(context: Context, call: cst.Call) -> bool:
    """`asdict(config)`, `replace(config, level_configs=[])`, `config.__replace__()`: the new class has other fields."""
    path = context.roles.path(call.func) or (
        dotted(call.func) if isinstance(call.func, cst.Attribute) else ""
    )
    module, _, function = (path or "").rpartition(".")
    if function not in FIELDS or (module not in ("", "dataclasses", "copy") and function != "__replace__"):
        return False
    owner = call.func.value if function == "__replace__" and isinstance(call.func, cst.Attribute) else None
    if owner is None and call.args:
        owner = call.args[0].value
    if owner is None:
        return False
    given = [arg.keyword.value for arg in call.args if arg.keyword is not None]
    return is_config(context, owner) or any(may_be_ours(context, owner, name) for name in given)


def is_read_by_name(context: Context, text: cst.SimpleString, name: str) -> bool:
    arg = context.source.parents[text]
    call = context.source.parents.get(arg)
    if not isinstance(arg, cst.Arg) or not isinstance(call, cst.Call):
        return False
    function = last_part(call.func)
    if function in ATTRIBUTE_FUNCTIONS and len(call.args) > 1 and call.args[1] is arg:
        return may_be_ours(context, call.args[0].value, name)
    return function in GETTERS and call.args[0] is arg
