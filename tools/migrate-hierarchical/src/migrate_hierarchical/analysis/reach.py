"""Decides which strings may reach a call of the package that takes a variant, preset or pattern by name."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import libcst as cst

from ..removed_api import FACTORY, GET_PRESET, HIERARCHICAL_STRINGS, KEPT_NAMES, PACKAGE, PARAMETERS, PATTERN
from .arguments import read_arguments, string_value
from .binding import Scope, last_part
from .choices import UNKNOWN, Chooser, union
from .origins import Origins
from .roles import Roles
from .source_index import SourceIndex
from .uses import Resolver, Use, is_foreign, is_ours

# The parameters that take the name of a variant, preset or pattern.
NAME_PARAMETERS = {FACTORY: ("variant",), GET_PRESET: ("preset_name", "name"), PATTERN: ("pattern_type",)}
COLLECTORS = frozenset({"dict", "update", "setdefault", "OrderedDict"})
OPTIONS = frozenset({"default", "choices", "options", "value"})
COPIERS = ("dataclasses.replace", "replace", "copy.replace")


class Reach:
    def __init__(
        self, source: SourceIndex, resolver: Resolver, origins: Origins, roles: Roles, chooser: Chooser
    ) -> None:
        self.source, self.resolver, self.origins = source, resolver, origins
        self.roles, self.chooser = roles, chooser
        self.parents = source.parents
        self.open_calls = [use for use in self.calls() if self.is_open(use)]

    def calls(self) -> list[Use]:
        return [
            use
            for use in self.resolver
            if use.name in NAME_PARAMETERS and isinstance(self.parents[use.node], cst.Call | cst.Arg)
        ]

    def is_open(self, use: Use) -> bool:
        """Whether the name that a call gets is unknown, or a removed one."""
        call = self.parents[use.node]
        if not isinstance(call, cst.Call) or call.func is not use.node:
            return True  # passed to partial and the like
        arguments = read_arguments(call.args, PARAMETERS[use.name])
        chooser = self.chooser
        given = [arguments.named[name] for name in NAME_PARAMETERS[use.name] if name in arguments.named]
        if any(string_value(value) is not None for value in given):
            return False  # then unpacked arguments cannot contain another one
        parts = [chooser.of(value, use.scope) for value in given if string_value(value) is None]
        parts += [
            chooser.inside(arg.value, use.scope) if arg.star == "**" else UNKNOWN for arg in arguments.stars
        ]
        choices = union(parts)
        return not choices.complete or bool(choices.values & HIERARCHICAL_STRINGS)

    def may_reach(self) -> bool:
        """Whether a name that the file stores may reach the package: unless every call has a known name."""
        return bool(self.open_calls) or not self.calls()

    def is_partial(self, call: cst.Call) -> bool:
        """Whether a callable of the package is passed to a call, as in `partial` and `pytest.raises`."""
        given = (self.resolver.by_node.get(arg.value) for arg in call.args)
        return any(use is not None and use.name in KEPT_NAMES for use in given)

    def reaches(self, call: cst.Call) -> bool:
        """Whether the arguments of a call may reach the package."""
        use = self.resolver.by_node.get(call.func)
        path = self.roles.path(call.func)
        if use is not None or self.is_partial(call) or is_ours(path):
            return True
        if isinstance(call.func, cst.Attribute) and self.is_our_module(call.func.value):
            return True
        function = last_part(call.func)
        if path in COPIERS:
            return not (call.args and is_foreign(self.source, call.args[0].value))
        if function in COLLECTORS and not is_foreign(self.source, call.func):
            return self.may_reach()
        return self.definition(call.func) in self.leading

    def travels(self, node: cst.CSTNode) -> bool:
        """Whether a string may be used in a place that this one does not show."""
        parent = self.parents[node]
        if isinstance(parent, cst.DictElement):
            mapping = self.parents[parent]
            unpacked = self.parents[mapping]
            return not isinstance(unpacked, cst.Arg) or unpacked.star != "**" or self.travels(mapping)
        call = self.parents.get(parent)
        if not isinstance(parent, cst.Arg) or not isinstance(call, cst.Call):
            return True
        keyword = parent.keyword.value if parent.keyword is not None else ""
        if call.func in self.resolver.by_node or keyword == "name":
            return False
        if self.definition(call.func) is not None:
            return self.reaches(call)
        if not is_foreign(self.source, call.func):
            return True
        # for example the default of an option
        return keyword in OPTIONS or isinstance(self.parents[call], cst.Decorator | cst.Param)

    def is_our_module(self, node: cst.BaseExpression) -> bool:
        return self.roles.path(node) == PACKAGE

    @cached_property
    def leading(self) -> set[cst.CSTNode]:
        """The functions and classes of the file that call the package with a name from elsewhere."""
        callers: dict[cst.CSTNode, set[cst.CSTNode]] = {}
        for call in self.source.calls:
            called = self.definition(call.func)
            if called is not None:
                callers.setdefault(called, set()).update(self.around(call))
        found: set[cst.CSTNode] = set()
        pending = [each for use in self.open_calls for each in self.around(use.node)]
        if self.open_calls:
            pending += [each for each in callers if isinstance(each, cst.ClassDef) and self.holds_data(each)]
        while pending:
            each = pending.pop()
            if each not in found:
                found.add(each)
                pending += callers.get(each, ())
        return found

    def around(self, node: cst.CSTNode) -> Iterator[cst.CSTNode]:
        """The functions and classes around a node, innermost first."""
        current = self.parents.get(node)
        while current is not None:
            if isinstance(current, cst.FunctionDef | cst.ClassDef):
                yield current
            current = self.parents.get(current)

    def definition(self, function: cst.BaseExpression) -> cst.FunctionDef | cst.ClassDef | None:
        """The function or class of the file that a name, or a method of self, refers to."""
        scope = self.source.scope_of.get(function)
        if scope is None:
            return None
        if isinstance(function, cst.Attribute):
            owner = self.origins.class_body(self.made(function.value, scope), scope)
            bindings = owner.bindings.get(function.attr.value, []) if owner is not None else []
        else:
            bindings = scope.lookup(function.value) if isinstance(function, cst.Name) else []
        node = bindings[0].node if len(bindings) == 1 else None
        return node if isinstance(node, cst.FunctionDef | cst.ClassDef) else None

    def made(self, node: cst.BaseExpression, scope: Scope) -> cst.BaseExpression:
        """The class of `Class()`, or of a name that is only set to such a call; else the expression itself."""
        if isinstance(node, cst.Name):
            bindings = scope.lookup(node.value)
            if len(bindings) == 1 and isinstance(bindings[0].value, cst.Call):
                node = bindings[0].value
        return node.func if isinstance(node, cst.Call) else node

    def holds_data(self, node: cst.ClassDef) -> bool:
        """Whether a class only declares fields, as a dataclass does."""
        scope = self.source.opens[node.body]
        return not any(each.kind == "def" for bindings in scope.bindings.values() for each in bindings)
