"""Reports the removed variant, pattern, presets and hierarchical_config where they are passed by name."""

from __future__ import annotations

import libcst as cst

from ...analysis.arguments import string_value
from ...analysis.binding import dotted, last_part
from ...analysis.choices import key_of
from ...analysis.roles import DOCSTRING, LITERAL
from ...analysis.uses import is_foreign
from ...changes import Changes
from ...context import Context
from ...removed_api import FACTORY, GET_PRESET, HIERARCHICAL_STRINGS, KEYWORD, REMOVED_NAMES, REMOVED_PRESETS

NAMED_BY = frozenset({"variant", "pattern_type", "preset", "preset_name"})


def check_by_name(context: Context, changes: Changes) -> None:
    ByName(context, changes).check()


class ByName:
    def __init__(self, context: Context, changes: Changes) -> None:
        self.context, self.changes, self.source = context, changes, context.source
        self.parents, self.reach = context.source.parents, context.reach

    def check(self) -> None:
        for node in self.source.strings:
            value = string_value(node)
            if value not in HIERARCHICAL_STRINGS and value != KEYWORD:
                continue
            if self.changes.is_handled(node) or self.context.roles.of(node) in (DOCSTRING, LITERAL):
                continue
            found = self.is_key(node) if value == KEYWORD else self.is_given(node, value)
            if found:
                self.changes.leave(node, "HIER113", repr(value))
        self.check_keywords()

    def is_given(self, node: cst.SimpleString, value: str) -> bool:
        """`build(variant="hierarchical")`, `{"variant": ...}`, `config.pattern_type = ...`."""
        names = NAMED_BY | {"name"} if value in REMOVED_PRESETS else NAMED_BY
        parent = self.parents[node]
        if isinstance(parent, cst.Arg):
            call = self.parents[parent]
            if not isinstance(call, cst.Call):
                return False
            if self.reach.is_partial(call):
                return True
            return parent.keyword is not None and parent.keyword.value in names and self.reach.reaches(call)
        if isinstance(parent, cst.Element):  # map(create_block_sparse_attention, ["hierarchical"])
            arg = self.parents[self.parents[parent]]
            outer = self.parents.get(arg)
            return isinstance(arg, cst.Arg) and isinstance(outer, cst.Call) and self.reach.is_partial(outer)
        if isinstance(parent, cst.DictElement) and parent.value is node:
            return string_value(parent.key) in names and self.mapping_reaches(self.parents[parent])
        if isinstance(parent, cst.Assign):
            return any(self.is_set(each.target, names) for each in parent.targets)
        return False

    def is_set(self, target: cst.BaseExpression, names: frozenset[str]) -> bool:
        """Whether an assigned attribute or item may reach the package."""
        if isinstance(target, cst.Subscript):
            return key_of(target) in names and self.reach.may_reach()
        if not isinstance(target, cst.Attribute) or target.attr.value not in names:
            return False
        kind = self.context.origins.kind(target.value, self.source.scope_of[target])
        if kind is not None:
            return kind == "pattern"
        # other libraries have variants too
        may_reach = target.attr.value == "pattern_type" or self.reach.may_reach()
        return may_reach and not is_foreign(self.source, target, through_values=True)

    def mapping_reaches(self, mapping: cst.CSTNode) -> bool:
        """Whether a dictionary may become the arguments of a call of the package."""
        parent = self.parents[mapping]
        call = self.parents.get(parent)
        if isinstance(parent, cst.Arg) and isinstance(call, cst.Call) and dotted(call.func) != "dict":
            return self.reach.reaches(call)
        return self.reach.may_reach()

    def check_keywords(self) -> None:
        """`dict(hierarchical_config=...)` and `partial(create_block_sparse_attention, hierarchical_config=...)`."""
        for arg in self.source.keywords:
            call = self.parents[arg]
            if not isinstance(call, cst.Call):
                continue
            function = last_part(call.func)
            collects = function in ("dict", "update") and self.is_collected(arg.value)
            if (collects or self.reach.is_partial(call)) and not self.changes.is_handled(arg):
                self.changes.leave(arg.value, "HIER113", KEYWORD)

    def is_key(self, node: cst.SimpleString) -> bool:
        """`{"hierarchical_config": ...}` and `arguments["hierarchical_config"] = ...` if they may reach the factory."""
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
        use = self.context.resolver.by_node.get(value.func) if isinstance(value, cst.Call) else None
        if use is not None and use.name in REMOVED_NAMES:
            return True
        # what is rewritten becomes a call of the factory
        calls = (
            call
            for use in self.context.resolver
            if (call := self.parents[use.node]) in self.changes.replacements
            or use.name in (FACTORY, GET_PRESET)
        )
        return any(isinstance(call, cst.Call) and any(arg.star for arg in call.args) for call in calls)
