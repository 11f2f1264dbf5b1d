"""Reports removed names that are looked up by string: getattr, importlib, patches, registries, dotted paths."""

from __future__ import annotations

from collections.abc import Callable

import libcst as cst

from ...analysis.arguments import string_value
from ...analysis.binding import dotted, last_part
from ...analysis.roles import ALL, ARGUMENT, DOCSTRING, KEY, LITERAL, TYPE, leftmost
from ...analysis.text import GAP, text_of
from ...analysis.uses import is_foreign, is_ours
from ...changes import Changes
from ...context import Context
from ...removed_api import CERTAIN_NAMES, GONE_NAMES, PACKAGE, TARGETS, below_package, is_gone
from .members import ATTRIBUTE_FUNCTIONS, GETTERS

# Functions and methods that are given the name of a member.
MEMBER_LOOKUPS = frozenset({*ATTRIBUTE_FUNCTIONS, *GETTERS, "object"})
# Functions that take the path of a module, or of what is in one.
LOADERS = frozenset(
    [
        "import_module",
        "find_spec",
        "__import__",
        "resolve_name",
        "run_module",
        "importorskip",
        "patch",
        "locate",
        "import_string",
        "get_class",
        "get_object",
        "get_method",
        "instantiate",
        "load_object",
        "import_object",
        "import_from_string",
        "find_module",
        "get_loader",
        "find_loader",
    ]
)
# Words in the names of functions and methods that look something up in a registry.
REGISTRIES = frozenset(["build", "create", "make", "register", "registry", "resolve", "lookup"])
# Functions that, without arguments, return the names of the file itself.
OWN_NAMESPACES = frozenset({"globals", "locals", "vars"})


def check_strings(context: Context, changes: Changes) -> None:
    """Report every string that refers to something that is gone."""
    source = context.source
    reflects = context.is_concerned and (
        any(looks_up(context, call) for call in source.calls)
        or any(lists_package(context, node) for node in [*source.calls, *source.attributes])
        or any(each.target == f"{PACKAGE}.__all__" for each in context.import_bindings())
    )
    own = [call for call in source.calls if dotted(call.func) in OWN_NAMESPACES and not call.args]
    seeks = any(reads_unknown(context, call) for call in own)  # it looks up its own names
    for node in (*source.strings, *source.composed):
        value = text_of(node, source, source.scope_of[node])
        if value is None or not may_be_removed_name(value) or changes.is_handled(node):
            continue
        bindings = source.module_scope.lookup(value) if own else []
        text = Text(context, changes, node, value, reflects or (seeks and bool(bindings)))
        if leads_to_removed(text):
            changes.leave(node, "HIER103", repr(value.replace(GAP, "...")))
            changes.kept.update(bindings)


def reads_unknown(context: Context, namespace: cst.Call) -> bool:
    """Whether `globals()[name]` or `globals().get(name)` reads a name that is not a literal."""
    parents = context.source.parents
    parent = parents[namespace]
    if isinstance(parent, cst.Subscript) and parent.value is namespace:
        index = parent.slice[0].slice
        is_read = not isinstance(parents[parent], cst.AssignTarget | cst.Del)
        return is_read and isinstance(index, cst.Index) and not isinstance(index.value, cst.BaseString)
    call = parents[parent] if isinstance(parent, cst.Attribute) and parent.attr.value == "get" else None
    return (
        isinstance(call, cst.Call) and bool(call.args) and not isinstance(call.args[0].value, cst.BaseString)
    )


def may_be_removed_name(value: str) -> bool:
    return PACKAGE in value or value.startswith(".") or any(name in value for name in GONE_NAMES)


class Text:
    """A string, its role and the call that it is passed to."""

    def __init__(
        self, context: Context, changes: Changes, node: cst.BaseExpression, value: str, reflects: bool
    ) -> None:
        self.context, self.changes, self.node, self.value = context, changes, node, value
        self.reflects = reflects  # the file looks up names of the package that are not literals
        self.role = context.roles.of(node)
        self.call = called_with(context, node)
        self.function = last_part(self.call.func) if self.call is not None else ""


def leads_to_removed(text: Text) -> bool:
    """Whether a string refers to something that is gone: a path anywhere, a bare name depending on its role."""
    if text.role in HANDLED_ELSEWHERE:
        return False
    if is_imported(text) or is_loaded(text) or is_removed_path(text.value):
        return True
    if text.value not in GONE_NAMES:
        return False
    if not text.context.is_concerned:
        return text.value in CERTAIN_NAMES and is_target(text.context, text.node)
    return any(leads(text) for leads in LEADS.get(text.role, (is_beside_package, is_sought, is_looked_up)))


def is_imported(text: Text) -> bool:
    """`__import__("dilated_attention_pytorch", fromlist=["X"])`."""
    return (
        text.call is not None
        and text.function == "__import__"
        and text.value in GONE_NAMES
        and PACKAGE in text.context.module.code_for_node(text.call)
    )


def is_loaded(text: Text) -> bool:
    """`import_module("dilated_attention_pytorch.X")`, `patch("dilated_attention_pytorch.X")`."""
    return text.function in LOADERS and leads_to_gone(text.value, package_given(text.context, text.call))


def is_removed_path(value: str) -> bool:
    """A dotted path of the package with a removed name in it, wherever it stands."""
    return is_path(value) and PACKAGE in value and any(name in value for name in GONE_NAMES)


def is_type(text: Text) -> bool:
    """An annotation with a name that leads to the package; its import stays."""
    source = text.context.source
    bindings = source.scope_of[text.node].lookup(text.value)
    text.changes.kept.update(bindings)
    if bindings:
        return any(is_ours(each.target) for each in bindings)
    return bool(source.stars or source.group(text.node))


def is_beside_package(text: Text) -> bool:
    return beside_package(text.context, text.node)


def is_key(text: Text) -> bool:
    return in_namespace(text.context, text.node)


def is_looked_up(text: Text) -> bool:
    """`getattr(package, "X")`, or a name that a registry, or a lookup elsewhere in the file, may use."""
    if text.call is not None and text.function in MEMBER_LOOKUPS:
        owner = text.call.args[0].value
        return means_package(text.context, owner) or not is_foreign(text.context.source, owner)
    return text.reflects or names_class(text.context, text.node, text.function)


def is_path(value: str) -> bool:
    return all(part.isidentifier() for part in value.replace(":", ".").split("."))


def leads_to_gone(value: str, package: str) -> bool:
    """Whether a module path, relative to a package or not, leads to a module or a name that is gone."""
    name = value.lstrip(".")
    if not is_path(name.replace(GAP, "_")):
        return False
    last = name.replace(":", ".").split(".")[-1]
    if value.startswith(".") and not package:
        return last in GONE_NAMES
    path = f"{package}.{name}" if value.startswith(".") else name
    below = below_package(path.replace(":", "."))
    if below is None:
        return GAP in name.split(".")[0] and last in GONE_NAMES
    return is_gone(below) or below.split(".")[-1] in GONE_NAMES


def package_given(context: Context, call: cst.Call | None) -> str:
    """The package to which a call of import_module resolves a relative path."""
    source = context.source
    for position, arg in enumerate(call.args if call is not None else ()):
        if (arg.keyword is None and position == 1) or (arg.keyword and arg.keyword.value == "package"):
            if dotted(arg.value) in ("__package__", "__name__", "__spec__.parent"):
                return source.package or ""
            if isinstance(arg.value, cst.Attribute) and arg.value.attr.value in ("__name__", "__package__"):
                return context.roles.path(arg.value.value) or ""
            return text_of(arg.value, source, source.module_scope) or ""
    return ""


def called_with(context: Context, node: cst.BaseExpression) -> cst.Call | None:
    """The call to which an expression is passed, also inside a list of names."""
    parents = context.source.parents
    parent = parents[node]
    while isinstance(
        parent, cst.Element | cst.List | cst.Tuple | cst.BinaryOperation | cst.ConcatenatedString
    ):
        parent = parents[parent]
    call = parents.get(parent)
    return call if isinstance(parent, cst.Arg) and isinstance(call, cst.Call) else None


def looks_up(context: Context, call: cst.Call) -> bool:
    """Whether a call reads a member of the package, or a module, whose name is not a literal."""
    function = last_part(call.func)
    if function in ATTRIBUTE_FUNCTIONS and len(call.args) > 1:
        name = text_of(call.args[1].value, context.source, context.source.scope_of[call])
        owner = call.args[0].value
        return (name is None or GAP in name) and (
            means_package(context, owner) or is_set_to_package(context, owner)
        )
    return False


def means_package(context: Context, node: cst.BaseExpression) -> bool:
    return context.roles.path(node) == PACKAGE or PACKAGE in context.module.code_for_node(node)


def is_set_to_package(context: Context, node: cst.BaseExpression) -> bool:
    """Whether a name is set to the package: `d = import_module("dilated_attention_pytorch")`."""
    bindings = context.source.scope_of[node].lookup(node.value) if isinstance(node, cst.Name) else []
    return any(each.value is not None and means_package(context, each.value) for each in bindings)


def beside_package(context: Context, node: cst.BaseExpression) -> bool:
    """A registry: `{"X": "dilated_attention_pytorch"}`, `("dilated_attention_pytorch", "X")`, `{"dil...": ["X"]}`."""
    source, scope = context.source, context.source.scope_of[node]

    def is_ours(other: cst.BaseExpression) -> bool:
        if isinstance(other, cst.Tuple | cst.List | cst.Set):
            return any(is_ours(each.value) for each in other.elements)
        path = text_of(other, source, scope)
        return path is not None and below_package(path) is not None

    child, parent = node, source.parents[node]
    while True:
        if isinstance(parent, cst.DictElement):
            return is_ours(parent.key if parent.value is child else parent.value)
        if not isinstance(parent, cst.Element):
            return False
        container = source.parents[parent]
        assert isinstance(container, cst.Tuple | cst.List | cst.Set)
        if is_ours(container):
            return True
        child, parent = container, source.parents[container]


def in_namespace(context: Context, node: cst.BaseExpression) -> bool:
    """`globals()["X"]`, `vars(package)["X"]`, `package.__dict__["X"]`."""
    parents = context.source.parents
    index = parents[node]
    if not isinstance(index, cst.Index):
        return False
    subscript = parents[parents[index]]
    assert isinstance(subscript, cst.Subscript)
    return is_namespace(subscript.value)


def is_namespace(node: cst.BaseExpression) -> bool:
    if isinstance(node, cst.Call):
        return dotted(node.func) in ("globals", "locals", "vars", "dir")
    return isinstance(node, cst.Attribute) and node.attr.value in ("__dict__", "__all__")


def is_sought(text: Text) -> bool:
    """`"X" in globals()`, `locals().get("X")`."""
    call = text.call
    if call is not None and isinstance(call.func, cst.Attribute) and is_namespace(call.func.value):
        return True
    comparison = text.context.source.parents[text.node]
    return isinstance(comparison, cst.Comparison) and any(
        isinstance(each.operator, cst.In | cst.NotIn) and is_namespace(each.comparator)
        for each in comparison.comparisons
    )


def lists_package(context: Context, node: cst.BaseExpression) -> bool:
    """`dir(package)`, `package.__all__` and the like, if the names that are looked for are not literals."""
    if isinstance(node, cst.Attribute):
        lists = node.attr.value in ("__all__", "__dict__") and means_package(context, node.value)
    else:
        lists = (
            isinstance(node, cst.Call)
            and dotted(node.func) in ("dir", "vars", "getmembers", "inspect.getmembers")
            and bool(node.args)
            and means_package(context, node.args[0].value)
        )
    if not lists:
        return False
    parent = context.source.parents[node]
    if isinstance(parent, cst.ComparisonTarget):
        comparison = context.source.parents[parent]
        return not (isinstance(comparison, cst.Comparison) and isinstance(comparison.left, cst.BaseString))
    is_asked = isinstance(parent, cst.Attribute) and parent.attr.value in ("get", "pop", "index", "count")
    return not is_asked and not (isinstance(parent, cst.Subscript) and parent.value is node)


def names_class(context: Context, node: cst.BaseExpression, function: str) -> bool:
    """`build("X")`, `registry.get("X")`, and what is_target finds."""
    parent = context.source.parents[node]
    if is_target(context, node):
        return True
    if context.roles.of(node) != ARGUMENT or not isinstance(parent, cst.Arg):
        return False
    call = context.source.parents[parent]
    assert isinstance(call, cst.Call)
    words = set(function.lower().split("_"))
    if words & REGISTRIES:
        return True
    owner = leftmost(call.func)
    return function in ("get", "get_model") and "registry" in (getattr(owner, "value", "") or "").lower()


def is_target(context: Context, node: cst.BaseExpression) -> bool:
    """`{"type": "X"}`, `dict(_target_="X")`."""
    parent = context.source.parents[node]
    if isinstance(parent, cst.DictElement):
        return parent.value is node and string_value(parent.key) in TARGETS
    return isinstance(parent, cst.Arg) and parent.keyword is not None and parent.keyword.value in TARGETS


# Roles of strings that other rules check.
HANDLED_ELSEWHERE = frozenset({DOCSTRING, ALL})
# Role -> the tests for whether a bare name refers to something removed; other roles use those of leads_to_removed.
LEADS: dict[str, tuple[Callable[[Text], bool], ...]] = {
    LITERAL: (),
    TYPE: (is_type,),
    KEY: (is_beside_package, is_key),
}
