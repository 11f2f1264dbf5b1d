"""Finds the strings that an expression may evaluate to, for a variant or preset that is not a literal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import libcst as cst

from ..constants import files_of, imported_strings
from ..limits import CHOICE_BINDINGS, CHOICE_STEPS, VALUE_DEPTH
from .arguments import literal_mapping, string_value
from .binding import Binding, Scope, dotted, import_name, is_import_from
from .origins import Origins, item_of
from .roles import Roles
from .source_index import SourceIndex
from .text import GAP, text_of


@dataclass(frozen=True)
class Choices:
    """The strings that a value may be, and whether there can be no others."""

    values: frozenset[str] = frozenset()
    complete: bool = True
    # names through which other files may set other values: `variant`, `build()` for a call, "" for none
    names: frozenset[str] = frozenset()


NOTHING = Choices()  # no string
UNKNOWN = Choices(complete=False)


def union(parts: Iterable[Choices]) -> Choices:
    listed = list(parts)
    return Choices(
        frozenset().union(*(each.values for each in listed)),
        all(each.complete for each in listed),
        frozenset().union(*(each.names for each in listed)),
    )


class Chooser:
    """Follows values through the file, and constants into other files of the project."""

    def __init__(self, source: SourceIndex, origins: Origins, roles: Roles) -> None:
        self.source, self.origins, self.roles = source, origins, roles
        self.steps = 0  # taken for the current question
        self.calls: dict[cst.FunctionDef, list[tuple[cst.Call, Scope]]] = {}

    def goes_on(self, depth: int) -> bool:
        """False once the depth or the number of steps exceeds its limit."""
        self.steps = 0 if depth <= 1 else self.steps + 1
        return depth <= VALUE_DEPTH and self.steps <= CHOICE_STEPS

    def of(self, node: cst.BaseExpression | None, scope: Scope, depth: int = 0) -> Choices:
        found = self.find(node, scope, depth)
        return found if found.complete or found.names else replace(found, names=frozenset(names_of(node)))

    def find(self, node: cst.BaseExpression | None, scope: Scope, depth: int) -> Choices:
        if node is None or not self.goes_on(depth):
            return UNKNOWN
        if (value := string_value(node)) is not None:
            return Choices(frozenset({value}))
        depth += 1
        if isinstance(node, cst.BaseNumber) or (
            isinstance(node, cst.Name) and node.value in ("None", "True", "False")
        ):
            return NOTHING
        if isinstance(node, cst.IfExp):
            return union(self.of(part, scope, depth) for part in (node.body, node.orelse))
        if isinstance(node, cst.BooleanOperation):
            return union(self.of(part, scope, depth) for part in (node.left, node.right))
        if isinstance(node, cst.NamedExpr):
            return self.of(node.value, scope, depth)
        if isinstance(node, cst.Name):
            return self.of_bindings(scope.lookup(node.value), node.value, depth)
        if isinstance(node, cst.Attribute):
            return self.of_attribute(node, scope, depth)
        if isinstance(node, cst.Subscript):
            return self.inside(node.value, scope, depth, key_of(node))
        if isinstance(node, cst.Call):
            return self.of_call(node, scope, depth)
        text = text_of(node, self.source, scope)
        if text is None:
            return UNKNOWN
        # f"hierarchical_{size}", whatever the size is
        return Choices(frozenset({text.split(GAP)[0].rstrip("_")} - {""}), GAP not in text)

    def of_bindings(self, bindings: list[Binding], name: str, depth: int) -> Choices:
        if not bindings or len(bindings) > CHOICE_BINDINGS:
            return UNKNOWN
        return union(self.of_binding(binding, name, depth) for binding in bindings)

    def of_binding(self, binding: Binding, name: str, depth: int) -> Choices:
        scope = binding.scope
        if binding.kind == "import":
            return self.imported(binding)
        if binding.annotation is not None:
            declared = self.declared(binding.annotation)
            if declared is not None:
                return declared
        if binding.kind == "value":
            return self.of(binding.value, scope, depth)
        if binding.kind == "loop" and binding.value is not None:
            return self.inside(binding.value, scope, depth, None, binding.index)
        if binding.kind == "parameter":
            return self.of_parameter(binding, name, depth)
        return UNKNOWN

    def declared(self, annotation: cst.BaseExpression) -> Choices | None:
        """The values of a `Literal[...]` annotation."""
        if not isinstance(annotation, cst.Subscript) or self.roles.typing_name(annotation.value) != "Literal":
            return None
        values = [
            string_value(element.slice.value) if isinstance(element.slice, cst.Index) else None
            for element in annotation.slice
        ]
        return Choices(frozenset(value for value in values if value is not None))

    def of_parameter(self, binding: Binding, name: str, depth: int) -> Choices:
        """What the calls of a function in the file pass, if the file does nothing but call it."""
        function, param = binding.scope.node, binding.node
        if not isinstance(function, cst.FunctionDef) or not isinstance(param, cst.Param):
            return UNKNOWN
        known = [] if param.default is None else [self.of(param.default, binding.scope, depth)]
        names = [each.name.value for each in (*function.params.posonly_params, *function.params.params)]
        calls = self.calls_of(function)
        called = Choices(names=frozenset({called_name(function, binding.scope)}))
        if not calls or function.decorators:
            return union([*known, called, Choices(complete=False, names=frozenset({name}))])
        parts = [*known, called]
        for call, scope in calls:
            given = [arg.value for arg in call.args if arg.keyword and arg.keyword.value == name]
            place = names.index(name) if name in names else len(call.args)
            if names[:1] in (["self"], ["cls"]):
                place -= 1
            positional = call.args[: place + 1]
            if not given and len(positional) > place and not any(a.keyword or a.star for a in positional):
                given = [call.args[place].value]
            if given:
                parts.append(self.of(given[0], scope, depth))
            elif any(arg.star for arg in call.args) or param.default is None:
                parts.append(UNKNOWN)
        return union(parts)

    def calls_of(self, function: cst.FunctionDef) -> list[tuple[cst.Call, Scope]]:
        """The calls of a function of the file; none if it is, or may be, used in any other way."""
        if function in self.calls:
            return self.calls[function]
        calls: list[tuple[cst.Call, Scope]] = []
        self.calls[function] = []
        for node in self.source.names:
            if node.value != function.name.value:
                continue
            scope = self.source.scope_of[node]
            bindings = scope.lookup(node.value)
            if [each.node for each in bindings] != [function]:
                continue
            parent = self.source.parents[node]
            if not isinstance(parent, cst.Call) or parent.func is not node:
                return []
            calls.append((parent, scope))
        self.calls[function] = calls
        return calls

    def of_attribute(self, node: cst.Attribute, scope: Scope, depth: int) -> Choices:
        if node.attr.value in ("value", "name") and isinstance(node.value, cst.Attribute):
            member = self.of(node.value, scope, depth)  # of an enumeration
            if member.complete or member.values:
                return member
        parts = [
            self.of(value, where, depth) for value, where in self.source.members.get(dotted(node) or "", [])
        ]
        owner = self.origins.class_body(node.value, scope)
        if owner is not None:
            bindings = owner.bindings.get(node.attr.value, [])
            parts += [self.of_bindings(bindings, node.attr.value, depth)] if bindings else []
        if parts:
            return union(parts)
        root, _, rest = (dotted(node) or "").partition(".")
        imports = [each for each in scope.lookup(root) if each.kind == "import"] if root else []
        return self.imported(imports[0], rest) if len(imports) == 1 else UNKNOWN

    def imported(self, binding: Binding, rest: str = "") -> Choices:
        """The value of a constant of another file, if it can be found."""
        statement, alias = binding.statement, binding.alias
        if alias is None:
            return UNKNOWN
        if is_import_from(statement):
            module = "." * len(statement.relative) + (
                dotted(statement.module) or "" if statement.module else ""
            )
            names = [import_name(alias), *rest.split(".")] if rest else [import_name(alias)]
        else:
            module = import_name(alias) if alias.asname is not None else (binding.target or "")
            names = rest.split(".") if rest else []
        found = imported_strings(self.source.path, module, tuple(names)) if names else None
        if found is not None:
            return Choices(found)
        # a value from another package is unrelated to files of the project that use the same name
        is_own = any(True for _ in files_of(self.source.path, module, tuple(names)))
        return Choices(complete=False, names=frozenset({names[-1] if names and is_own else ""}))

    def of_call(self, node: cst.Call, scope: Scope, depth: int) -> Choices:
        first = node.args[0].value if node.args else None
        if isinstance(node.func, cst.Attribute):
            method = node.func.attr.value
            if method in ("lower", "strip", "casefold"):
                found = self.of(node.func.value, scope, depth)
                return Choices(frozenset(value.lower().strip() for value in found.values), found.complete)
            if method in ("get", "pop") and first is not None:
                default = self.of(node.args[1].value, scope, depth) if len(node.args) > 1 else NOTHING
                return union([self.inside(node.func.value, scope, depth, string_value(first)), default])
            if method == "choice" and first is not None:
                return self.inside(first, scope, depth)
            return UNKNOWN
        if not isinstance(node.func, cst.Name):
            return UNKNOWN
        bindings = scope.lookup(node.func.value)
        if node.func.value == "str" and not bindings and first is not None:
            return self.of(first, scope, depth)
        function = bindings[0].node if len(bindings) == 1 else None
        if isinstance(function, cst.FunctionDef):
            given = self.source.given.get(self.source.opens[function.body], [])
            return union(self.of(value, where, depth) for value, where in given) if given else UNKNOWN
        return UNKNOWN

    def inside(
        self,
        node: cst.BaseExpression,
        scope: Scope,
        depth: int = 0,
        key: str | None = None,
        index: int | None = None,
    ) -> Choices:
        """The values in a container: that of a key, or all; `index` is the position in `for a, b in`."""
        depth += 1
        if not self.goes_on(depth):
            return UNKNOWN
        if isinstance(node, cst.Dict) or (isinstance(node, cst.Call) and dotted(node.func) == "dict"):
            items = literal_mapping(node)
            if items is None:
                values = [each.value for each in node.elements] if isinstance(node, cst.Dict) else []
                return union([self.of(each, scope, depth) for each in values] or [UNKNOWN])
            chosen = [items[key]] if key is not None and key in items else list(items.values())
            return union(self.of(each, scope, depth) for each in chosen)
        if isinstance(node, cst.List | cst.Tuple | cst.Set):
            found = [item_of(element.value, index) for element in node.elements]
            return union(self.of(each, scope, depth) for each in found)
        if isinstance(node, cst.Name):
            bindings = scope.lookup(node.value)
            if len(bindings) != 1:
                return UNKNOWN
            binding = bindings[0]
            if binding.kind == "import":
                return self.imported(binding)
            if binding.kind == "value" and binding.value is not None:
                held = self.inside(binding.value, binding.scope, depth, key, index)
            elif binding.kind == "loop" and binding.value is not None:
                held = self.each_inside(binding, depth, key)
            else:
                return UNKNOWN
            fills = self.source.filled.get(node.value, [])[:CHOICE_BINDINGS]
            return union([held, *(self.of(value, where, depth) for value, where in fills)])
        if isinstance(node, cst.Call) and node.args:
            function = dotted(node.func)
            if function in ("list", "tuple", "sorted", "reversed", "set", "iter"):
                return self.inside(node.args[0].value, scope, depth, key, index)
            if function == "enumerate" and index == 1:
                return self.inside(node.args[0].value, scope, depth, key)
            return UNKNOWN
        if isinstance(node, cst.Call) and isinstance(node.func, cst.Attribute):
            listed = node.func.attr.value in ("items", "values", "keys")
            return self.keys_or_values(node.func, scope, depth, index) if listed else UNKNOWN
        return UNKNOWN

    def keys_or_values(self, node: cst.Attribute, scope: Scope, depth: int, index: int | None) -> Choices:
        keys = node.attr.value == "keys" or (node.attr.value == "items" and index == 0)
        if not keys:
            return self.inside(node.value, scope, depth)
        bindings = scope.lookup(node.value.value) if isinstance(node.value, cst.Name) else []
        mapping = node.value if isinstance(node.value, cst.Dict) else bindings[0].value if bindings else None
        if not isinstance(mapping, cst.Dict) or len(bindings) > 1:
            return UNKNOWN
        return union(
            self.of(each.key, scope, depth) if isinstance(each, cst.DictElement) else UNKNOWN
            for each in mapping.elements
        )

    def each_inside(self, binding: Binding, depth: int, key: str | None) -> Choices:
        """`x["key"]` if x loops over dictionaries."""
        over = binding.value
        if isinstance(over, cst.Name):
            bindings = binding.scope.lookup(over.value)
            over = bindings[0].value if len(bindings) == 1 else None
        if not isinstance(over, cst.List | cst.Tuple):
            return UNKNOWN
        items = [item_of(element.value, binding.index) for element in over.elements]
        return union(
            UNKNOWN if item is None else self.inside(item, binding.scope, depth, key) for item in items
        )


def key_of(node: cst.Subscript) -> str | None:
    """The literal key of `x["key"]`."""
    index = node.slice[0].slice if len(node.slice) == 1 else None
    return string_value(index.value) if isinstance(index, cst.Index) else None


def names_of(node: cst.BaseExpression | None) -> Iterator[str]:
    """The names from which an expression gets its value: a member, a key, an option or a function."""
    if isinstance(node, cst.Name):
        yield node.value
    elif isinstance(node, cst.Attribute):
        yield node.attr.value
    elif isinstance(node, cst.Subscript):
        yield key_of(node) or ""
    elif isinstance(node, cst.Call):
        yield f"{(dotted(node.func) or '').rpartition('.')[2]}()"
        yield from (string_value(arg.value) or "" for arg in node.args)


def called_name(function: cst.FunctionDef, scope: Scope) -> str:
    """The name by which a function is called: its own, or that of its class."""
    owner = scope.parent.node if scope.parent is not None else None
    if function.name.value == "__init__" and isinstance(owner, cst.ClassDef):
        return f"{owner.name.value}()"
    return f"{function.name.value}()"
