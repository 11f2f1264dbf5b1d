"""What is known about one file: answers the questions of the rules and changes nothing."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from functools import cached_property

import libcst as cst

from .analysis.arguments import is_none, read_arguments, string_value
from .analysis.binding import Binding, ImportStatement, Scope, is_import_from
from .analysis.branches import Branches
from .analysis.choices import UNKNOWN, Choices, Chooser, union
from .analysis.comments import is_meant_for_others
from .analysis.nones import Nones
from .analysis.origins import Origins
from .analysis.placement import fstring_quotes
from .analysis.reach import Reach
from .analysis.roles import ALL, DOCSTRING, KEY, Roles
from .analysis.source_index import SourceIndex
from .analysis.uses import Resolver, Use, is_ours
from .density import LEVELS, OldPattern, default_pattern, levels_of, preset_pattern
from .edit.build import Style
from .removed_api import (
    HIERARCHICAL,
    HIERARCHICAL_STRINGS,
    PACKAGE,
    PARAMETERS,
    REMOVED_CONFIG,
    REMOVED_GET_PRESETS,
)
from .settings import Settings
from .silence import Silence

UNPACKED = Choices(complete=False, names=frozenset({"variant", "pattern_type", "preset_name"}))


class Context:
    """One file as the rules see it."""

    def __init__(
        self,
        module: cst.Module,
        source: SourceIndex,
        settings: Settings,
        is_init: bool,
        silence: Silence | None = None,
        waiting: Sequence[Binding] = (),
    ) -> None:
        self.module, self.source, self.settings, self.is_init = module, source, settings, is_init
        self.silence = silence or Silence(b"", bare=False, is_python=True)
        self.waiting = set(waiting)  # imports whose uses wait for the rest of the project
        self.resolver = Resolver(source)
        self.origins = Origins(source, self.resolver)
        self.roles = Roles(source)
        self.chooser = Chooser(source, self.origins, self.roles)
        self.nones = Nones(source, self.origins.class_body)
        self.read_names = {node.value for node in source.names}
        self.importing: dict[tuple[Scope, str], list[tuple[str, list[Binding]]]] = {}

    @cached_property
    def branches(self) -> Branches:
        return Branches(self.module, self.source, self.resolver, self.roles)

    @cached_property
    def reach(self) -> Reach:
        return Reach(self.source, self.resolver, self.origins, self.roles, self.chooser)

    def wants(self, rule: str, node: cst.CSTNode) -> bool:
        """Whether a rule may rewrite a node: it is selected, and no comment there silences it."""
        return self.settings.wants(rule) and not self.is_silenced(rule, node)

    def is_silenced(self, rule: str, node: cst.CSTNode) -> bool:
        """Whether a comment keeps a rule from a node."""
        rules = self.silence.rules
        return bool(rules) and any(self.silence.names(line, rule) for line in self.lines_of(node))

    def waits(self, bindings: list[Binding]) -> bool:
        """Whether the uses of an import have to stay because other files still import it from here."""
        return bool(self.waiting.intersection(bindings))

    def lines_of(self, node: cst.CSTNode) -> tuple[int, ...]:
        """First and last line of a node, or of the call if the node is its function."""
        first = self.source.line_of(node)
        parent = self.source.parents.get(node)
        whole = parent if isinstance(parent, cst.Call) and parent.func is node else node
        return first, first + self.module.code_for_node(whole).count("\n")

    def style(self, node: cst.CSTNode) -> Style | None:
        """The layout of a new call that replaces a node; None if it cannot be written there."""
        quotes = fstring_quotes(node, self.source.parents)
        if quotes is not None:
            free = [quote for quote in ('"', "'") if quote not in quotes]
            return Style(quote=free[0], indent=None) if free else None
        from_block, indent = self.source.indents.get(node, (True, ""))
        return Style(indent=indent, from_block=from_block, unit=self.module.default_indent)

    def is_inside(self, node: cst.CSTNode, targets: set[cst.CSTNode]) -> bool:
        """Whether a node is one of the targets or inside one."""
        current: cst.CSTNode | None = node if targets else None
        while current is not None:
            if current in targets:
                return True
            current = self.source.parents.get(current)
        return False

    def block(self, node: cst.CSTNode) -> cst.CSTNode:
        line = self.source.parents[node]
        return self.source.parents[line]

    def runs_before(
        self, statement: ImportStatement | None, use: Use, statements: list[ImportStatement]
    ) -> bool:
        """Whether an import precedes a use in a block that is certain to run: the module, or that of the old import."""
        if statement is None or self.source.lines[statement] > self.source.lines[use.root]:
            return False
        if self.source.groups and self.source.group(statement) not in map(self.source.group, statements):
            return False
        blocks = [self.block(each) for each in statements]
        return isinstance(self.block(statement), cst.Module) or self.block(statement) in blocks

    def is_for_others(self, local: str, bindings: list[Binding]) -> bool:
        """Whether an import that this file does not read, perhaps under another name, exists for other files."""
        if local in self.read_names:
            return False
        return self.is_init or any(
            is_import_from(each.statement)
            and each.alias is not None
            and (is_meant_for_others(each.statement, each.alias, self.source) or local in self.exported)
            for each in bindings
        )

    @cached_property
    def exported(self) -> set[str]:
        """The names in `__all__`."""
        return {string_value(node) or "" for node in self.source.strings if self.roles.of(node) == ALL}

    def imported_as(self, scope: Scope, name: str) -> list[tuple[str, list[Binding]]]:
        """The local names in a scope that are only ever imports of a name of the package."""
        if (scope, name) not in self.importing:
            found = [
                (local, bindings)
                for local, bindings in scope.bindings.items()
                if all(self.is_name(b, name) for b in bindings)
            ]
            # its own name first
            self.importing[scope, name] = sorted(found, key=lambda each: each[0] != name)
        return self.importing[scope, name]

    def is_name(self, binding: Binding, name: str) -> bool:
        """Whether a binding imports a name of the package."""
        target = binding.target or ""
        return binding.kind == "import" and is_ours(target) and target.endswith("." + name)

    def import_bindings(self) -> list[Binding]:
        seen: list[Binding] = []
        for scope in {*self.source.scope_of.values(), *self.source.scopes}:
            for bindings in scope.bindings.values():
                seen.extend(binding for binding in bindings if binding.kind == "import")
        return seen

    @cached_property
    def is_concerned(self) -> bool:
        """Whether the file refers to the package at all."""
        if any(is_ours(b.target) or b.target == PACKAGE for b in self.import_bindings()):
            return True
        return bool(self.source.stars) or any(string_value(node) == PACKAGE for node in self.source.strings)

    def old_pattern(self, node: cst.BaseExpression | None) -> OldPattern:
        """The old configuration of an expression: that of a call, a preset, or the default."""
        use = self.resolver.by_node.get(node.func) if isinstance(node, cst.Call) else None
        if isinstance(node, cst.Call) and use is not None and use.name == REMOVED_CONFIG:
            given = read_arguments(node.args, PARAMETERS[REMOVED_CONFIG])
            levels = given.named.get("level_configs")
            if given.stars:
                return default_pattern("level_configs")
            return default_pattern() if levels is None or is_none(levels) else self.custom_pattern(levels)
        if isinstance(node, cst.Subscript) and self.is_presets_call(node.value):
            index = node.slice[0].slice
            name = string_value(index.value) if isinstance(index, cst.Index) else None
            return preset_pattern(name) if name in LEVELS else default_pattern("name of the preset")
        return default_pattern()

    def custom_pattern(self, node: cst.BaseExpression) -> OldPattern:
        try:
            value = ast.literal_eval(self.module.code_for_node(node).strip())
            levels = levels_of(value)
        except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError):
            return default_pattern("level_configs")
        if not all(type(number) is int for level in levels for number in level):
            return default_pattern("level_configs")
        return OldPattern("custom", levels)

    def may_be_none(self, node: cst.BaseExpression, scope: Scope) -> bool:
        """Whether an expression may be None."""
        return self.nones.may_be_none(node, scope)

    def is_presets_call(self, node: cst.CSTNode) -> bool:
        use = self.resolver.by_node.get(node.func) if isinstance(node, cst.Call) else None
        return use is not None and use.name == REMOVED_GET_PRESETS and use.agrees

    def may_be_hierarchical(self, node: cst.BaseExpression, scope: Scope) -> bool:
        """Whether an expression that is not a literal may name a removed variant or preset."""
        return self.is_hierarchical(self.chooser.of(node, scope))

    def may_hold_hierarchical(self, stars: Sequence[cst.Arg], scope: Scope) -> bool:
        """Whether unpacked arguments may contain the name of a removed variant or preset."""
        held = [self.chooser.inside(arg.value, scope) if arg.star == "**" else UNKNOWN for arg in stars]
        named = [UNPACKED for each in held if not each.complete]
        return self.is_hierarchical(union([*held, *named]))

    def is_hierarchical(self, choices: Choices) -> bool:
        if choices.values & HIERARCHICAL_STRINGS:
            return True
        if self.source.facts.carried.intersection(map(str.lower, choices.names)):
            return True
        return not choices.complete and self.mentions_hierarchical

    @cached_property
    def mentions_hierarchical(self) -> bool:
        """Whether the file contains the name of a removed variant or preset that may reach a call of the package."""
        return any(
            string_value(node) in HIERARCHICAL_STRINGS and self.may_travel(node)
            for node in self.source.strings
        )

    def may_travel(self, node: cst.SimpleString) -> bool:
        """Whether a string may be used in another place than its own."""
        if self.roles.of(node) in (DOCSTRING, ALL, KEY):
            return False
        parent = self.source.parents[node]
        if isinstance(parent, cst.DictElement) and string_value(parent.key) == "name":
            return string_value(node) != HIERARCHICAL
        return self.reach.travels(node)
