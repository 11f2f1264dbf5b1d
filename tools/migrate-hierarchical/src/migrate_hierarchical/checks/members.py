"""Members of the removed classes, read as attributes or by their names in strings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import libcst as cst

from ..analysis.binding import dotted, import_name, written_path
from ..analysis.roles import leftmost
from ..edit.arguments import string_value
from ..facts import LAZY, SEVERAL
from ..names import COMMON_MEMBERS, MEMBERS, PACKAGE, REMOVED, REMOVED_MODULE

if TYPE_CHECKING:
    from ..plan import Planner

# Functions that take an object and the name of a member; and those that take only the name.
BY_NAME = frozenset({"getattr", "hasattr", "setattr", "delattr"})
GETTERS = frozenset({"attrgetter", "methodcaller"})
# Functions that take the fields of a dataclass as a whole, or new values for some; and what holds them.
COPIERS = frozenset({"replace", "__replace__"})
FIELDS = frozenset({*COPIERS, "asdict", "astuple", "fields", "vars"})
HOLD_FIELDS = frozenset({"__dict__", "__dataclass_fields__"})


def check_members(planner: Planner) -> None:
    """Mark members where the object is of a removed class, or nothing says that it is not."""
    if not (planner.has_use or any(use.name in REMOVED for use in planner.resolver)):
        if planner.walk.facts.kinds:  # a file with no more than values from other files
            check_known_members(planner)
        return
    for node in planner.walk.attributes:
        member = node.attr.value
        if may_be_ours(planner, node.value, member) or (
            member in HOLD_FIELDS and is_config(planner, node.value)
        ):
            planner.leave(node, "HIER102", f".{member}")
    for call in planner.walk.calls:
        if takes_fields(planner, call):
            planner.leave(call, "HIER102", f"fields of a configuration in {dotted(call.func)}")
    for text in planner.walk.strings:
        name = string_value(text)
        if name in MEMBERS and is_read_by_name(planner, text, name):
            planner.leave(text, "HIER102", repr(name))
            planner.spoken.add(text)


def check_known_members(planner: Planner) -> None:
    """Mark members where the object is surely of a removed class."""
    for node in planner.walk.attributes:
        scope = planner.walk.scope_of.get(leftmost(node.value))
        known = scope is not None and planner.origins.kind(node.value, scope) is not None
        if known and may_be_ours(planner, node.value, node.attr.value):
            planner.leave(node, "HIER102", f".{node.attr.value}")


def check_unresolved(planner: Planner) -> None:
    """Removed names read from something that is our package in a way that imports do not show.

    `d = dilated_attention_pytorch; d.X`, `sys.modules["dilated_attention_pytorch"].X`, `__import__(...).X`,
    `self.X` of a name imported in the body of the class.
    """
    for node in planner.walk.attributes:
        if node.attr.value in REMOVED and node not in planner.resolver.by_node and is_package(planner, node):
            planner.leave(node, "HIER109", f"{node.attr.value} of another name for the package")


def is_package(planner: Planner, node: cst.Attribute) -> bool:
    if PACKAGE in planner.module.code_for_node(node.value):
        return True
    root = leftmost(node.value)
    if not isinstance(root, cst.Name) or root not in planner.walk.scope_of:
        return False
    scope = planner.walk.scope_of[root]
    owner = planner.origins.class_body(root, scope)
    if owner is not None and node.value is root:
        return any(planner.is_ours(each.target) for each in owner.bindings.get(node.attr.value, []))
    for binding in scope.lookup(root.value):
        if binding.kind == "value" and binding.value is not None:
            value = leftmost(binding.value)
            imported = scope.lookup(value.value) if isinstance(value, cst.Name) else []
            if PACKAGE in planner.module.code_for_node(binding.value) or any(
                each.kind == "import" and each.target == PACKAGE for each in imported
            ):
                return True
    return False


def check_modules(planner: Planner) -> None:
    """`attention.HierarchicalConfig` where attention is a module of the user's own that imports it."""
    facts = planner.walk.facts
    if not facts.imported:
        return
    for node in planner.walk.attributes:
        path = dotted(node.value)
        root = leftmost(node)
        if path is None or root not in planner.walk.scope_of:
            continue
        name, _, rest = path.partition(".")
        for binding in planner.walk.scope_of[root].lookup(name):
            module = ".".join(part for part in (written_path(binding), rest) if part)
            api = facts.find(module).get(node.attr.value, "")
            if api in REMOVED or api in (SEVERAL, LAZY, REMOVED_MODULE):
                planner.leave(
                    node, "HIER109", f"{path}.{node.attr.value} comes from a module of this project"
                )


def check_own_imports(planner: Planner) -> None:
    """Names that a module of the user's own binds in several ways, gives through __getattr__, or does not have."""
    for alias, what in planner.walk.unclear:
        if what == SEVERAL:
            planner.leave(alias, "HIER107", f"{import_name(alias)} is bound in several ways there")
        elif what == LAZY:
            planner.leave(alias, "HIER108", f"{import_name(alias)} comes from __getattr__ of that module")
        else:
            planner.leave(alias, "HIER108", f"{import_name(alias)} is not in that module")


def may_be_ours(planner: Planner, owner: cst.BaseExpression, member: str) -> bool:
    if member not in MEMBERS:
        return False
    scope = planner.walk.scope_of.get(owner) or planner.walk.scope_of.get(leftmost(owner))
    kind = planner.origins.kind(owner, scope) if scope is not None else None
    if kind is not None:
        return kind in ("instance", "config") or (kind == "pattern" and member in COMMON_MEMBERS)
    return not is_foreign(planner, owner, through_values=member in COMMON_MEMBERS)


def is_config(planner: Planner, node: cst.BaseExpression) -> bool:
    scope = planner.walk.scope_of.get(node) or planner.walk.scope_of.get(leftmost(node))
    return scope is not None and planner.origins.kind(node, scope) == "config"


def takes_fields(planner: Planner, call: cst.Call) -> bool:
    """`asdict(config)`, `replace(config, level_configs=[])`, `config.__replace__()`: the new class has other fields."""
    path = planner.roles.path(call.func) or (
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
    return is_config(planner, owner) or any(may_be_ours(planner, owner, name) for name in given)


def is_read_by_name(planner: Planner, text: cst.SimpleString, name: str) -> bool:
    arg = planner.walk.parents[text]
    call = planner.walk.parents.get(arg)
    if not isinstance(arg, cst.Arg) or not isinstance(call, cst.Call):
        return False
    function = (dotted(call.func) or "").split(".")[-1]
    if function in BY_NAME and len(call.args) > 1 and call.args[1] is arg:
        return may_be_ours(planner, call.args[0].value, name)
    return function in GETTERS and call.args[0] is arg


def is_foreign(planner: Planner, node: cst.BaseExpression, through_values: bool = False) -> bool:
    """Whether an expression begins with a name of another package; or, where asked, with a value of one."""
    root = leftmost(node)
    if not isinstance(root, cst.Name) or root not in planner.walk.scope_of:
        return False
    bindings = planner.walk.scope_of[root].lookup(root.value)
    if through_values and len(bindings) == 1 and bindings[0].kind == "value" and bindings[0].value:
        inner = leftmost(bindings[0].value)
        return inner is not bindings[0].value and is_foreign(planner, inner)
    return bool(bindings) and all(
        b.kind == "import" and not planner.is_ours(b.target) and b.target != PACKAGE for b in bindings
    )
