"""Infers the kind of value that an expression holds from the file itself."""

from __future__ import annotations

import libcst as cst

from ..limits import VALUE_DEPTH
from ..removed_api import (
    PATTERN,
    REMOVED_CLASS,
    REMOVED_CONFIG,
    REMOVED_CREATE_ATTENTION,
    REMOVED_CREATE_BLOCK_SPARSE,
    REMOVED_GET_PRESETS,
)
from .arguments import is_none, string_value
from .binding import Binding, Scope, dotted, last_part, written_path
from .source_index import SourceIndex
from .uses import Resolver

# Kinds: config (HierarchicalConfig), configs (a collection of them), presets (dictionary of them), items
# (its .items()), pattern (SparsePatternConfig), instance (of the removed class), none, other (something else).
CALLS = {
    REMOVED_CONFIG: "config",
    REMOVED_GET_PRESETS: "presets",
    REMOVED_CLASS: "instance",
    REMOVED_CREATE_ATTENTION: "instance",
    REMOVED_CREATE_BLOCK_SPARSE: "instance",
    PATTERN: "pattern",
}
TYPES = {REMOVED_CONFIG: "config", REMOVED_CLASS: "instance", PATTERN: "pattern"}
COPIES = frozenset({"copy.copy", "copy.deepcopy", "copy", "deepcopy"})
# What a container of configurations may hold: patterns if an earlier run, with other rules, wrote them.
CONFIGS = ({"config"}, {"pattern"})


class Origins:
    def __init__(self, source: SourceIndex, resolver: Resolver) -> None:
        self.source, self.resolver = source, resolver
        self.asked: list[list[Binding]] = []  # bindings of the names that are being looked up
        self.unset: dict[tuple[Scope, str], bool] = {}
        # Further calls that created an instance of the removed class.
        self.instances: set[cst.CSTNode] = set()

    def kind(self, node: cst.BaseExpression, scope: Scope, depth: int = 0) -> str | None:
        """One of the kinds above; None if it is unknown."""
        if depth > VALUE_DEPTH:
            return None
        known = self.of_project(node, scope)
        if known is not None:
            return known
        if isinstance(node, cst.Name):
            return "none" if node.value == "None" else self.of_name(node.value, scope, depth)
        if isinstance(node, cst.Call):
            return self.of_call(node, scope, depth)
        if isinstance(node, cst.Subscript):
            inside = self.kind(node.value, scope, depth + 1)
            return "config" if inside in ("presets", "configs") else None
        if isinstance(node, cst.IfExp):
            return self.of_ways((node.body, node.orelse), scope, depth)
        if isinstance(node, cst.BooleanOperation):
            return self.of_ways((node.left, node.right), scope, depth)
        if isinstance(node, cst.NamedExpr):
            return self.kind(node.value, scope, depth + 1)
        if isinstance(node, cst.Dict):
            parts = [self.kind(element.value, scope, depth + 1) for element in node.elements]
            return "presets" if parts and set(parts) in CONFIGS else "other"
        if isinstance(node, cst.List | cst.Tuple):
            parts = [self.kind(element.value, scope, depth + 1) for element in node.elements]
            return "configs" if parts and set(parts) in CONFIGS else "other"
        if isinstance(node, cst.DictComp):
            return (
                "presets"
                if {self.kind(node.value, self.inner(node, scope), depth + 1)} in CONFIGS
                else "other"
            )
        if isinstance(node, cst.ListComp):
            return (
                "configs" if {self.kind(node.elt, self.inner(node, scope), depth + 1)} in CONFIGS else "other"
            )
        if isinstance(node, cst.Attribute):
            return self.of_attribute(node, scope, depth)
        if isinstance(node, cst.BaseNumber | cst.BaseString):
            return "other"
        return None

    def of_project(self, node: cst.BaseExpression, scope: Scope) -> str | None:
        """The kind that another file gives to a name, a member of a module or a class, or the result of a call."""
        known = self.source.facts.kinds
        call = isinstance(node, cst.Call)
        path = dotted(node.func if isinstance(node, cst.Call) else node) if known else None
        if path is None:
            return None
        name, _, rest = path.partition(".")
        bindings = scope.lookup(name)
        if len(bindings) != 1 or bindings[0].kind != "import":
            return None
        whole = ".".join(part for part in (written_path(bindings[0]), rest) if part)
        return known.get(whole + "()" if call else whole)

    def of_ways(self, ways: tuple[cst.BaseExpression, ...], scope: Scope, depth: int) -> str | None:
        """The kind that all alternatives share; in `config or HierarchicalConfig()` the second one decides."""
        return agreed(
            ["none" if self.is_unset(way, scope) else self.kind(way, scope, depth + 1) for way in ways]
        )

    def is_unset(self, node: cst.BaseExpression | None, scope: Scope) -> bool:
        """Whether an expression is a parameter with the default None, of which nothing else is known."""
        if not isinstance(node, cst.Name):
            return False
        key = (scope, node.value)
        if key not in self.unset:
            self.unset[key] = any(map(is_none_by_default, scope.lookup(node.value)))
        return self.unset[key]

    def of_attribute(self, node: cst.Attribute, scope: Scope, depth: int) -> str | None:
        """The kind by every assignment to `self.x` in the file, and by the body of the class."""
        values = self.source.members.get(dotted(node) or "", [])
        several = len(values) > 1
        kinds = [
            "none" if several and self.is_unset(value, where) else self.kind(value, where, depth + 1)
            for value, where in values
        ]
        owner = self.class_body(node.value, scope)
        if owner is not None:
            kinds += [self.of_binding(each, depth + 1) for each in owner.bindings.get(node.attr.value, [])]
        return agreed(kinds)

    def class_body(self, node: cst.BaseExpression, scope: Scope) -> Scope | None:
        """The body of the class that `self`, `cls` or the name of a class in the file refers to."""
        if not isinstance(node, cst.Name):
            return None
        if node.value in ("self", "cls"):
            return next((each for each in scope.ancestors() if each.kind == "class"), None)
        bindings = scope.lookup(node.value)
        if len(bindings) == 1 and isinstance(bindings[0].node, cst.ClassDef):
            return self.source.opens.get(bindings[0].node.body)
        return None

    def inner(self, node: cst.BaseExpression, scope: Scope) -> Scope:
        return self.source.opens.get(node, scope)

    def of_call(self, node: cst.Call, scope: Scope, depth: int) -> str | None:
        if node in self.instances:
            return "instance"
        use = self.resolver.by_node.get(node.func)
        if use is not None:
            return CALLS.get(use.name) if use.agrees else None
        if dotted(node.func) in COPIES and node.args:
            return self.kind(node.args[0].value, scope, depth + 1)
        if isinstance(node.func, cst.Attribute):
            owner = self.kind(node.func.value, scope, depth + 1)
            if owner == "presets":
                results = {
                    "get": "config",
                    "pop": "config",
                    "values": "configs",
                    "items": "items",
                    "copy": "presets",
                }
                return results.get(node.func.attr.value)
            if owner == "instance" and node.func.attr.value in (
                "to",
                "cuda",
                "cpu",
                "half",
                "eval",
                "train",
                "bfloat16",
            ):
                return "instance"
            return None
        if isinstance(node.func, cst.Name):
            bindings = scope.lookup(node.func.value)
            if len(bindings) == 1 and bindings[0].kind == "def":
                function = bindings[0].node
                assert isinstance(function, cst.FunctionDef)
                return self.of_function(function, scope, depth)
            if bindings and all(binding.kind == "class" for binding in bindings):
                return "other"
        return None

    def of_function(self, function: cst.FunctionDef, scope: Scope, depth: int) -> str | None:
        """The kind by the annotation, or else by what is returned or yielded."""
        if function.returns is not None:
            return self.of_annotation(function.returns.annotation, scope)
        given = self.source.given.get(self.source.opens[function.body], [])
        return agreed([self.kind(value, where, depth + 1) for value, where in given])

    def of_name(self, name: str, scope: Scope, depth: int) -> str | None:
        bindings = scope.lookup(name)
        if any(bindings is each for each in self.asked):
            return "same"  # `config = config or ...`
        self.asked.append(bindings)
        try:
            return self.of_bindings(name, bindings, depth)
        finally:
            self.asked.pop()

    def of_bindings(self, name: str, bindings: list[Binding], depth: int) -> str | None:
        if len(bindings) == 1 and is_empty(bindings[0].value) and name in self.source.filled:
            kinds = {self.kind(value, where, depth + 1) for value, where in self.source.filled[name]}
            if kinds in CONFIGS:
                return "configs" if isinstance(bindings[0].value, cst.List) else "presets"
        several = len(bindings) > 1
        kinds_of_bindings = [
            "none"
            if several and (is_none_by_default(each) or self.is_unset(each.value, each.scope))
            else self.of_binding(each, depth, name)
            for each in bindings
        ]
        kind = agreed(kinds_of_bindings)
        return None if kind == "none" and any(map(is_none_by_default, bindings)) else kind

    def of_binding(self, binding: Binding, depth: int, name: str = "") -> str | None:
        if binding.kind == "import":
            return None if binding.target is None or binding.target.startswith("?") else "other"
        if binding.annotation is not None:
            declared = self.of_annotation(binding.annotation, binding.scope)
            if declared is not None:
                return declared
        if isinstance(binding.node, cst.Param) and binding.node.default is not None:
            # callers pass the kind of the default; a default of None says nothing
            default = self.kind(binding.node.default, binding.scope, depth + 1)
            return default if default != "none" else None
        if binding.kind == "value" and binding.value is not None:
            return self.kind(binding.value, binding.scope, depth + 1)
        if binding.kind == "loop" and binding.value is not None:
            return self.of_element(binding.value, binding.index, binding.scope, depth + 1)
        if binding.kind == "parameter" and isinstance(binding.scope.node, cst.FunctionDef):
            return self.of_test_parameter(name, binding.scope.node, binding.scope, depth)
        return "other" if binding.kind in ("class", "def") else None

    def of_element(self, node: cst.BaseExpression, index: int | None, scope: Scope, depth: int) -> str | None:
        """The kind of the elements of an expression; `index` is the position of the name in `for a, b in`."""
        if isinstance(node, cst.Call) and node.args:
            function, first = dotted(node.func), node.args[0].value
            if function == "enumerate":
                return self.of_element(first, None, scope, depth + 1) if index == 1 else "other"
            if function == "zip" and index is not None and index < len(node.args):
                return self.of_element(node.args[index].value, None, scope, depth + 1)
            if function in ("list", "tuple", "sorted", "reversed"):
                return self.of_element(first, index, scope, depth + 1)
        if isinstance(node, cst.List | cst.Tuple | cst.Set):
            items = [item_of(element.value, index) for element in node.elements]
            return agreed([None if item is None else self.kind(item, scope, depth + 1) for item in items])
        over = self.kind(node, scope, depth + 1)
        if (over == "configs" and index is None) or (over == "items" and index == 1):
            return "config"
        return "other" if over in ("items", "presets") else None

    def of_test_parameter(self, name: str, function: cst.FunctionDef, scope: Scope, depth: int) -> str | None:
        """The kind of what pytest passes: a value of `parametrize`, or a fixture of the file."""
        for decorator in function.decorators:
            call = decorator.decorator
            if not isinstance(call, cst.Call) or not (dotted(call.func) or "").endswith("mark.parametrize"):
                continue
            names = string_value(call.args[0].value) if len(call.args) > 1 else None
            listed = [part.strip() for part in (names or "").split(",")]
            if name in listed:
                index = listed.index(name) if len(listed) > 1 else None
                return self.of_element(call.args[1].value, index, scope, depth + 1)
        for binding in scope.parent.lookup(name) if scope.parent is not None else []:
            fixture = binding.node
            if isinstance(fixture, cst.FunctionDef) and any(map(is_fixture, fixture.decorators)):
                return self.of_function(fixture, binding.scope, depth)
        return None

    def of_annotation(self, node: cst.BaseExpression, scope: Scope) -> str | None:
        """The kind by an annotation, such as `Optional[HierarchicalConfig]` or `"HierarchicalConfig | None"`."""
        if isinstance(node, cst.SimpleString):
            text = node.evaluated_value
            words = (
                set()
                if isinstance(text, bytes)
                else set(text.replace("[", " ").replace("]", " ").replace("|", " ").split())
            )
            for word in words:
                for binding in scope.lookup(word.split(".")[0]):
                    last = (binding.target or "").split(".")[-1] if binding.kind == "import" else ""
                    if (word.split(".")[-1] if "." in word else last) in TYPES:
                        return TYPES[word.split(".")[-1] if "." in word else last]
            return None
        use = self.resolver.by_node.get(node)
        if use is not None:
            return TYPES.get(use.name)
        if isinstance(node, cst.Subscript) and dotted(node.value) in (
            "Optional",
            "typing.Optional",
            "t.Optional",
        ):
            parts = [element.slice for element in node.slice]
            return agreed(
                [self.of_annotation(part.value, scope) for part in parts if isinstance(part, cst.Index)]
            )
        if isinstance(node, cst.BinaryOperation) and isinstance(node.operator, cst.BitOr):
            sides = [
                self.of_annotation(side, scope) for side in (node.left, node.right) if dotted(side) != "None"
            ]
            return agreed(sides)
        return None


def is_none_by_default(binding: Binding) -> bool:
    """Whether a binding is a parameter without annotation and with the default None."""
    node = binding.node
    return isinstance(node, cst.Param) and binding.annotation is None and is_none(node.default)


def is_empty(node: cst.BaseExpression | None) -> bool:
    """Whether an expression is `{}` or `[]`."""
    return isinstance(node, cst.Dict | cst.List) and not node.elements


def is_fixture(decorator: cst.Decorator) -> bool:
    node = decorator.decorator
    return last_part(node.func if isinstance(node, cst.Call) else node) == "fixture"


def item_of(node: cst.BaseExpression, index: int | None) -> cst.BaseExpression | None:
    """An item of a literal tuple or of `pytest.param(...)`; the node itself without an index."""
    if isinstance(node, cst.Call) and last_part(node.func) == "param":
        values = [arg.value for arg in node.args if arg.keyword is None]
        return values[index or 0] if (index or 0) < len(values) else None
    if index is None:
        return node
    if isinstance(node, cst.Tuple | cst.List) and index < len(node.elements):
        return node.elements[index].value
    return None


def agreed(kinds: list[str | None]) -> str | None:
    """The kind that all have, except for None; "none" if all are None."""
    kinds_seen = set(kinds) - {"same"}
    if not kinds_seen or None in kinds_seen:
        return None
    kinds_seen.discard("none")
    if not kinds_seen:
        return "none"
    return kinds_seen.pop() if len(kinds_seen) == 1 else None
