"""The removed variant, pattern, presets and hierarchical_config, passed on by name where they may reach the package."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import libcst as cst

from ..analysis.binding import Scope, dotted
from ..analysis.choices import UNKNOWN, key_of, union
from ..analysis.roles import DOCSTRING, LITERAL
from ..analysis.uses import Use
from ..edit.arguments import read_arguments, string_value
from ..names import (
    FACTORY,
    HIERARCHICAL_STRINGS,
    KEPT,
    KEYWORD,
    PACKAGE,
    PARAMETERS,
    PATTERN,
    PRESET,
    REMOVED,
    REMOVED_PRESETS,
)
from .members import is_foreign

if TYPE_CHECKING:
    from ..plan import Planner

NAMED_BY = frozenset({"variant", "pattern_type", "preset", "preset_name"})
CHOSEN_BY = {FACTORY: ("variant",), PRESET: ("preset_name", "name"), PATTERN: ("pattern_type",)}
COLLECTORS = frozenset({"dict", "update", "setdefault", "OrderedDict"})
OPTIONS = frozenset({"default", "choices", "options", "value"})
COPIERS = ("dataclasses.replace", "replace", "copy.replace")


class ByName:
    def __init__(self, planner: Planner) -> None:
        self.planner, self.walk = planner, planner.walk
        self.parents = planner.walk.parents
        self.open_calls = [use for use in self.calls() if self.is_open(use)]

    # ---- calls that may be given the name from elsewhere

    def calls(self) -> list[Use]:
        return [
            use
            for use in self.planner.resolver
            if use.name in CHOSEN_BY and isinstance(self.parents[use.node], cst.Call | cst.Arg)
        ]

    def is_open(self, use: Use) -> bool:
        """Whether a call takes its name, or arguments by name, from somewhere else."""
        call = self.parents[use.node]
        if not isinstance(call, cst.Call) or call.func is not use.node:
            return True  # given to partial and the like
        arguments = read_arguments(call.args, PARAMETERS[use.name])
        chooser = self.planner.chooser
        given = [arguments.named[name] for name in CHOSEN_BY[use.name] if name in arguments.named]
        if any(string_value(value) is not None for value in given):
            return False  # nor can what is unpacked beside it hold another
        parts = [chooser.of(value, use.scope) for value in given if string_value(value) is None]
        parts += [
            chooser.inside(arg.value, use.scope) if arg.star == "**" else UNKNOWN for arg in arguments.stars
        ]
        choices = union(parts)
        return not choices.complete or bool(choices.values & HIERARCHICAL_STRINGS)

    def may_reach(self) -> bool:
        """Whether a name that the file keeps somewhere may reach the package: no call says where all come from."""
        return bool(self.open_calls) or not self.calls()

    # ---- strings

    def check(self) -> None:
        for node in self.walk.strings:
            value = string_value(node)
            if value not in HIERARCHICAL_STRINGS and value != KEYWORD:
                continue
            if self.planner.is_spoken(node) or self.planner.roles.of(node) in (DOCSTRING, LITERAL):
                continue
            found = self.is_key(node) if value == KEYWORD else self.is_given(node, value)
            if found:
                self.planner.leave(node, "HIER113", repr(value))
        self.check_keywords()

    def is_given(self, node: cst.SimpleString, value: str) -> bool:
        """`build(variant="hierarchical")`, `{"variant": ...}`, `config.pattern_type = ...`."""
        names = NAMED_BY | {"name"} if value in REMOVED_PRESETS else NAMED_BY
        parent = self.parents[node]
        if isinstance(parent, cst.Arg):
            call = self.parents[parent]
            if not isinstance(call, cst.Call):
                return False
            if self.is_partial(call):
                return True
            return parent.keyword is not None and parent.keyword.value in names and self.reaches(call)
        if isinstance(parent, cst.Element):  # map(create_block_sparse_attention, ["hierarchical"])
            arg = self.parents[self.parents[parent]]
            outer = self.parents.get(arg)
            return isinstance(arg, cst.Arg) and isinstance(outer, cst.Call) and self.is_partial(outer)
        if isinstance(parent, cst.DictElement) and parent.value is node:
            return string_value(parent.key) in names and self.mapping_reaches(self.parents[parent])
        if isinstance(parent, cst.Assign):
            return any(self.is_set(each.target, names) for each in parent.targets)
        return False

    def is_set(self, target: cst.BaseExpression, names: frozenset[str]) -> bool:
        """Whether an attribute or an item that is assigned may reach the package."""
        if isinstance(target, cst.Subscript):
            return key_of(target) in names and self.may_reach()
        if not isinstance(target, cst.Attribute) or target.attr.value not in names:
            return False
        kind = self.planner.origins.kind(target.value, self.walk.scope_of[target])
        if kind is not None:
            return kind == "pattern"
        # other libraries have variants too
        may_reach = target.attr.value == "pattern_type" or self.may_reach()
        return may_reach and not is_foreign(self.planner, target, through_values=True)

    def mapping_reaches(self, mapping: cst.CSTNode) -> bool:
        """Whether a dictionary may be the arguments of a call of the package."""
        parent = self.parents[mapping]
        call = self.parents.get(parent)
        if isinstance(parent, cst.Arg) and isinstance(call, cst.Call) and dotted(call.func) != "dict":
            return self.reaches(call)
        return self.may_reach()

    # ---- calls

    def is_partial(self, call: cst.Call) -> bool:
        """Whether a call is given a callable of the package, as `partial` and `pytest.raises` are."""
        given = (self.planner.resolver.by_node.get(arg.value) for arg in call.args)
        return any(use is not None and use.name in KEPT for use in given)

    def reaches(self, call: cst.Call) -> bool:
        """Whether what a call is given may reach the package."""
        use = self.planner.resolver.by_node.get(call.func)
        path = self.planner.roles.path(call.func)
        if use is not None or self.is_partial(call) or self.planner.is_ours(path):
            return True
        if isinstance(call.func, cst.Attribute) and self.is_our_module(call.func.value):
            return True
        function = (dotted(call.func) or "").split(".")[-1]
        if path in COPIERS:
            return not (call.args and is_foreign(self.planner, call.args[0].value))
        if function in COLLECTORS and not is_foreign(self.planner, call.func):
            return self.may_reach()
        return self.definition(call.func) in self.leading

    def travels(self, node: cst.CSTNode) -> bool:
        """Whether a string may come out again where its place does not show it."""
        parent = self.parents[node]
        if isinstance(parent, cst.DictElement):
            mapping = self.parents[parent]
            unpacked = self.parents[mapping]
            return not isinstance(unpacked, cst.Arg) or unpacked.star != "**" or self.travels(mapping)
        call = self.parents.get(parent)
        if not isinstance(parent, cst.Arg) or not isinstance(call, cst.Call):
            return True
        keyword = parent.keyword.value if parent.keyword is not None else ""
        if call.func in self.planner.resolver.by_node or keyword == "name":
            return False
        if self.definition(call.func) is not None:
            return self.reaches(call)
        if not is_foreign(self.planner, call.func):
            return True
        # the default of an option, say
        return keyword in OPTIONS or isinstance(self.parents[call], cst.Decorator | cst.Param)

    def is_our_module(self, node: cst.BaseExpression) -> bool:
        return self.planner.roles.path(node) == PACKAGE

    @cached_property
    def leading(self) -> set[cst.CSTNode]:
        """The functions and classes of the file that call the package with a name from elsewhere."""
        callers: dict[cst.CSTNode, set[cst.CSTNode]] = {}
        for call in self.walk.calls:
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
        """The functions and classes that a node stands in."""
        current = self.parents.get(node)
        while current is not None:
            if isinstance(current, cst.FunctionDef | cst.ClassDef):
                yield current
            current = self.parents.get(current)

    def definition(self, function: cst.BaseExpression) -> cst.FunctionDef | cst.ClassDef | None:
        """What a name, or a method of self, means in the file."""
        scope = self.walk.scope_of.get(function)
        if scope is None:
            return None
        if isinstance(function, cst.Attribute):
            owner = self.planner.origins.class_body(self.made(function.value, scope), scope)
            bindings = owner.bindings.get(function.attr.value, []) if owner is not None else []
        else:
            bindings = scope.lookup(function.value) if isinstance(function, cst.Name) else []
        node = bindings[0].node if len(bindings) == 1 else None
        return node if isinstance(node, cst.FunctionDef | cst.ClassDef) else None

    def made(self, node: cst.BaseExpression, scope: Scope) -> cst.BaseExpression:
        """The class of `Class()`, or of a name that is set to that once; else the expression itself."""
        if isinstance(node, cst.Name):
            bindings = scope.lookup(node.value)
            if len(bindings) == 1 and isinstance(bindings[0].value, cst.Call):
                node = bindings[0].value
        return node.func if isinstance(node, cst.Call) else node

    def holds_data(self, node: cst.ClassDef) -> bool:
        """Whether a class only declares fields, as a dataclass does."""
        scope = self.walk.opens[node.body]
        return not any(each.kind == "def" for bindings in scope.bindings.values() for each in bindings)

    # ---- hierarchical_config as a key of arguments

    def check_keywords(self) -> None:
        """`dict(hierarchical_config=...)` and `partial(create_block_sparse_attention, hierarchical_config=...)`."""
        for arg in self.walk.keywords:
            call = self.parents[arg]
            if not isinstance(call, cst.Call):
                continue
            function = (dotted(call.func) or "").split(".")[-1]
            collects = function in ("dict", "update") and self.is_collected(arg.value)
            if (collects or self.is_partial(call)) and not self.planner.is_spoken(arg):
                self.planner.leave(arg.value, "HIER113", KEYWORD)

    def is_key(self, node: cst.SimpleString) -> bool:
        """`{"hierarchical_config": ...}` and `arguments["hierarchical_config"] = ...` where they may reach the factory."""
        parent = self.parents[node]
        if isinstance(parent, cst.DictElement) and parent.key is node:
            return self.is_collected(parent.value)
        if not isinstance(parent, cst.Index):
            return False
        target = self.parents[self.parents[self.parents[parent]]]
        assign = self.parents.get(target)
        if not isinstance(target, cst.AssignTarget) or not isinstance(assign, cst.Assign):
            return False
        return self.is_collected(assign.value)

    def is_collected(self, value: cst.BaseExpression) -> bool:
        """Whether a value that has this key is an old configuration, or the file unpacks arguments into the factory."""
        use = self.planner.resolver.by_node.get(value.func) if isinstance(value, cst.Call) else None
        if use is not None and use.name in REMOVED:
            return True
        # what is rewritten becomes a call of the factory
        calls = (
            call
            for use in self.planner.resolver
            if (call := self.parents[use.node]) in self.planner.replacements or use.name in (FACTORY, PRESET)
        )
        return any(isinstance(call, cst.Call) and any(arg.star for arg in call.args) for call in calls)
