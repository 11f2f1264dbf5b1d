"""Decides, for every use of the removed API in one file, what happens to it; changes nothing itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import libcst as cst

from .analysis.binding import Binding, ImportStatement, Scope, is_import, is_import_from
from .analysis.choices import UNKNOWN, Choices, Chooser, union
from .analysis.context import fstring_quotes
from .analysis.failures import expects_failure
from .analysis.nones import Nones
from .analysis.origins import Origins
from .analysis.roles import ALL, CLASS, DOCSTRING, KEY, TYPE, Roles
from .analysis.scopes import Walk
from .analysis.uses import Resolver, Use, api_path
from .checks.aliases import check_aliases
from .checks.annotations import check_type_comments, check_types
from .checks.branches import Branches, repeats, without_repeats
from .checks.by_name import ByName
from .checks.magics import check_magics
from .checks.members import check_members, check_modules, check_own_imports, check_unresolved
from .checks.strings import check_strings
from .density import LEVELS, Comparison, levels_of
from .edit.arguments import is_none, read_arguments, string_value
from .edit.build import Style
from .edit.imports import is_meant_for_others
from .names import (
    CONFIG,
    FACTORY,
    HIERARCHICAL,
    HIERARCHICAL_STRINGS,
    KEPT,
    PACKAGE,
    PARAMETERS,
    PRESET,
    PRESETS,
    REMOVED,
    REMOVED_MODULE,
    TYPES,
)
from .rules import DECIDERS, RULE_OF
from .rules.base import Left, OldPattern, Rewrite, default_pattern, preset_pattern
from .rules.hier002 import config_factory
from .settings import Settings
from .silence import Silence

UNPACKED = Choices(complete=False, names=frozenset({"variant", "pattern_type", "preset_name"}))
EFFECT = re.compile(r":=|\bawait\b|\byield\b")  # what a call may hold beside its arguments


@dataclass
class Outcome:
    """One entry of the report."""

    node: cst.CSTNode
    rule: str
    detail: str = ""
    patterns: tuple[Comparison, ...] = ()


@dataclass
class Demand:
    """A name of the package that a new expression needs."""

    use: Use
    name: str
    local: str
    statements: list[ImportStatement]  # what the use was imported by

    def order(self, planner: Planner) -> tuple[bool, int]:
        """Imports of the module first, from top to bottom."""
        first = self.statements[0]
        return not isinstance(planner.block(first), cst.Module), planner.walk.lines[first]


class Planner:
    """The plan for one file.

    With a part of the rules, `whole` is the plan that all of them would give: an import is put where that has it, so
    that what one rule leaves is what the others expect, in whatever order they are run.
    """

    def __init__(
        self,
        module: cst.Module,
        walk: Walk,
        settings: Settings,
        is_init: bool,
        silence: Silence | None = None,
        whole: Planner | None = None,
    ) -> None:
        self.module, self.walk, self.settings, self.is_init = module, walk, settings, is_init
        self.silence = silence or Silence(b"", bare=False, is_python=True)
        self.whole = whole
        self.waiting: set[Binding] = set()  # imports whose uses wait for the rest of the project
        self.resolver = Resolver(walk)
        self.origins = Origins(walk, self.resolver)
        self.roles = Roles(walk)
        self.chooser = Chooser(walk, self.origins, self.roles)
        self.nones = Nones(walk, self.origins.class_body)
        self.replacements: dict[cst.CSTNode, Rewrite] = {}
        self.renames: dict[cst.CSTNode, cst.BaseExpression] = {}
        self.strings: dict[cst.CSTNode, str] = {}  # string literal -> its new source
        self.moved: dict[
            cst.CSTNode, cst.CSTNode
        ] = {}  # node of a rewritten argument -> the same, indented anew
        self.demands: list[Demand] = []
        self.needs: dict[ImportStatement, dict[str, str]] = {}  # what an import has to give, and as what
        self.to_root: set[ImportStatement] = set()  # import statements of modules that become the package
        self.used: set[cst.Name] = set()  # leftmost names of uses that go
        self.passed: set[cst.Name] = set()  # of uses that stay, because a rule is not wanted there
        self.todos: list[tuple[cst.CSTNode, Left]] = []
        self.read_names = {node.value for node in walk.names}
        self.importing: dict[tuple[Scope, str], list[tuple[str, list[Binding]]]] = {}
        self.rewritten: list[Outcome] = []
        self.explained: set[cst.CSTNode] = set()  # calls whose strings need nothing more
        self.kept: set[Binding] = set()  # imports that a string or a comment left to a person needs
        self.spoken: set[cst.CSTNode] = set()  # strings that were reported

    # ---- questions of the rules

    def wants(self, rule: str, node: cst.CSTNode) -> bool:
        """Whether a rule rewrites a node: the settings want it, and no comment there names it."""
        return self.settings.wants(rule) and not (
            self.silence.rules and any(self.silence.names(line, rule) for line in self.lines_of(node))
        )

    def waits(self, bindings: list[Binding]) -> bool:
        """Whether what an import gives stays as it is, because other files still take it from here."""
        return bool(self.waiting.intersection(bindings))

    def lines_of(self, node: cst.CSTNode) -> tuple[int, ...]:
        """First and last line of a node, and of the call that it is the function of."""
        first = self.walk.line_of(node)
        parent = self.walk.parents.get(node)
        whole = parent if isinstance(parent, cst.Call) and parent.func is node else node
        return first, first + self.module.code_for_node(whole).count("\n")

    def style(self, node: cst.CSTNode) -> Style | None:
        """Layout of a new call in place of a node; None if it cannot be written there."""
        quotes = fstring_quotes(node, self.walk.parents)
        if quotes is not None:
            free = [quote for quote in ('"', "'") if quote not in quotes]
            return Style(quote=free[0], indent=None) if free else None
        from_block, indent = self.walk.indents.get(node, (True, ""))
        return Style(indent=indent, from_block=from_block, unit=self.module.default_indent)

    def name(self, use: Use, name: str) -> cst.BaseExpression:
        """How a name of the package is written where `use` stands; notes what must be imported for it."""
        if use.base is not None:
            for binding in use.bindings:
                if binding.statement is not None:
                    self.to_root.add(binding.statement)
            return cst.Attribute(bare(use.base), cst.Name(name))
        if use.is_star and (self.walk.stars or use.root.value not in self.walk.star_of):
            return cst.Name(name)
        statements = [binding.statement for binding in use.bindings if binding.statement is not None]
        if use.is_star:  # of a module of the user's own, which need not have the name
            statements = [self.walk.star_of[use.root.value]]
        if self.walk.groups:  # a block of a page stays complete
            group = self.walk.group(use.root)
            statements = [each for each in statements if self.walk.group(each) == group] or statements
        there = self.visible(use, name, statements)
        if there is not None:
            return cst.Name(there)
        taken = [b for b in use.scope.lookup(name) if not self.is_name(b, name)]
        local = f"dilated_{name}" if taken else name
        if statements:
            self.demands.append(Demand(use, name, local, statements))
        return cst.Name(local)

    def place(self) -> None:
        """Put what is needed into import statements, once where one serves several uses."""
        planned = self.whole.needs if self.whole is not None else {}
        for demand in sorted(self.demands, key=lambda each: each.order(self)):
            there = self.served(demand, planned) or self.served(demand, self.needs)
            for statement in [there] if there is not None else demand.statements:
                self.needs.setdefault(self.home(statement), {})[demand.name] = demand.local

    def served(self, demand: Demand, needs: dict[ImportStatement, dict[str, str]]) -> ImportStatement | None:
        """The statement among those with needs that gives a use what it needs."""
        for statement, names in needs.items():
            same_block = all(self.block(each) is self.block(statement) for each in demand.statements)
            if (
                names.get(demand.name) == demand.local
                and (same_block or isinstance(self.block(statement), cst.Module))
                and self.runs_before(statement, demand.use, demand.statements)
            ):
                return statement
        return None

    def home(self, statement: ImportStatement) -> ImportStatement:
        """Where new names go that a star cannot give: an import from the package below it, if there is one."""
        if is_import(statement) or not isinstance(statement.names, cst.ImportStar):
            return statement
        line = self.walk.parents[statement]
        body = getattr(self.walk.parents[line], "body", ())
        if not isinstance(line, cst.SimpleStatementLine) or not isinstance(body, Sequence):
            return statement
        place = next(i for i, each in enumerate(body) if each is line)
        after = body[place + 1] if place + 1 < len(body) else None
        found = after.body[0] if isinstance(after, cst.SimpleStatementLine) else None
        if not is_import_from(found) or isinstance(found.names, cst.ImportStar):
            return statement
        is_root = api_path(self.walk.absolute(found)) == ""
        return found if is_root and self.walk.group(found) == self.walk.group(statement) else statement

    def visible(self, use: Use, name: str, statements: list[ImportStatement]) -> str | None:
        """The local name of an import that surely runs before the use."""
        for scope in use.scope.ancestors():
            for local, bindings in self.imported_as(scope, name):
                if use.scope.lookup(local) is not bindings or (
                    local != name and self.is_for_others(local, bindings)
                ):
                    continue
                if any(self.runs_before(b.statement, use, statements) for b in bindings):
                    return local
        return None

    def is_for_others(self, local: str, bindings: list[Binding]) -> bool:
        """Whether an import that nothing here reads is there for other files; it may be a removed one, renamed."""
        if local in self.read_names:
            return False
        return self.is_init or any(
            is_import_from(each.statement)
            and each.alias is not None
            and (is_meant_for_others(each.statement, each.alias, self.walk) or local in self.exported)
            for each in bindings
        )

    @cached_property
    def exported(self) -> set[str]:
        """The names in `__all__`."""
        return {string_value(node) or "" for node in self.walk.strings if self.roles.of(node) == ALL}

    def imported_as(self, scope: Scope, name: str) -> list[tuple[str, list[Binding]]]:
        """The local names of a scope that are nothing but imports of a name of the package."""
        if (scope, name) not in self.importing:
            found = [
                (local, bindings)
                for local, bindings in scope.bindings.items()
                if all(self.is_name(b, name) for b in bindings)
            ]
            self.importing[scope, name] = sorted(
                found, key=lambda each: each[0] != name
            )  # its own name first
        return self.importing[scope, name]

    def is_name(self, binding: Binding, name: str) -> bool:
        """Whether a binding imports a name of the package."""
        target = binding.target or ""
        return binding.kind == "import" and self.is_ours(target) and target.endswith("." + name)

    @staticmethod
    def is_ours(target: str | None) -> bool:
        return (target or "").removeprefix("src.").startswith(PACKAGE + ".")

    def runs_before(
        self, statement: ImportStatement | None, use: Use, statements: list[ImportStatement]
    ) -> bool:
        """Whether an import stands above a use, in a block that surely runs: the module or that of the old import."""
        if statement is None or self.walk.lines[statement] > self.walk.lines[use.root]:
            return False
        if self.walk.groups and self.walk.group(statement) not in map(self.walk.group, statements):
            return False
        blocks = [self.block(each) for each in statements]
        return isinstance(self.block(statement), cst.Module) or self.block(statement) in blocks

    def block(self, node: cst.CSTNode) -> cst.CSTNode:
        line = self.walk.parents[node]
        return self.walk.parents[line]

    def old_pattern(self, node: cst.BaseExpression | None) -> OldPattern:
        """What an expression configured: a call, an entry of the presets, or nothing."""
        use = self.resolver.by_node.get(node.func) if isinstance(node, cst.Call) else None
        if isinstance(node, cst.Call) and use is not None and use.name == CONFIG:
            given = read_arguments(node.args, PARAMETERS[CONFIG])
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
        """Whether an expression is None on one of its ways."""
        return self.nones.may_be_none(node, scope)

    def is_presets_call(self, node: cst.CSTNode) -> bool:
        use = self.resolver.by_node.get(node.func) if isinstance(node, cst.Call) else None
        return use is not None and use.name == PRESETS and use.agrees

    def may_be_hierarchical(self, node: cst.BaseExpression, scope: Scope) -> bool:
        """Whether a name that is no literal may be that of a removed variant or preset."""
        return self.is_hierarchical(self.chooser.of(node, scope))

    def may_hold_hierarchical(self, stars: Sequence[cst.Arg], scope: Scope) -> bool:
        """Whether unpacked arguments may hold one."""
        held = [self.chooser.inside(arg.value, scope) if arg.star == "**" else UNKNOWN for arg in stars]
        named = [UNPACKED for each in held if not each.complete]
        return self.is_hierarchical(union([*held, *named]))

    def is_hierarchical(self, choices: Choices) -> bool:
        if choices.values & HIERARCHICAL_STRINGS:
            return True
        if self.walk.facts.carried.intersection(map(str.lower, choices.names)):
            return True
        return not choices.complete and self.mentions_hierarchical

    @cached_property
    def mentions_hierarchical(self) -> bool:
        """Whether the file holds the name of a removed variant or preset that may go to a call of the package."""
        return any(
            string_value(node) in HIERARCHICAL_STRINGS and self.may_travel(node) for node in self.walk.strings
        )

    def may_travel(self, node: cst.SimpleString) -> bool:
        """Whether a string may be used in another place than its own."""
        if self.roles.of(node) in (DOCSTRING, ALL, KEY):
            return False
        parent = self.walk.parents[node]
        if isinstance(parent, cst.DictElement) and string_value(parent.key) == "name":
            return string_value(node) != HIERARCHICAL
        return self.by_name.travels(node)

    @cached_property
    def branches(self) -> Branches:
        return Branches(self)

    @cached_property
    def by_name(self) -> ByName:
        return ByName(self)

    # ---- the plan

    def run(self) -> None:
        absorbed: set[cst.CSTNode] = set()  # parts of rewritten calls that go
        for use in self.resolver:  # in source order: a call before the calls inside it
            if self.climb(use.node, absorbed):
                self.used.add(use.root)
                if use.name in REMOVED:
                    self.note(use.node, "HIER002")
                continue
            n_demands, to_root = len(self.demands), set(self.to_root)
            decision = self.decide(use)
            if decision is None:
                if use.node not in self.renames:
                    del self.demands[n_demands:]
                    self.to_root = to_root
                continue
            self.apply(use, *decision)
            absorbed.update(decision[1].absorbs)
        self.move_to_root(absorbed)
        check_members(self)
        check_modules(self)
        check_own_imports(self)
        check_unresolved(self)
        check_types(self)
        if self.is_concerned or self.walk.facts.callables:
            check_aliases(self)
        if self.is_concerned:
            self.by_name.check()
        check_strings(self)
        check_magics(self)
        check_type_comments(self)
        self.place()

    def move_to_root(self, absorbed: set[cst.CSTNode]) -> None:
        """What the package kept, where it is reached through a module that is gone."""
        for use in self.resolver:
            through_module = isinstance(use.node, cst.Attribute) and use.node.value is not use.base
            if use.name not in KEPT or not through_module or not use.agrees or use.is_star:
                continue
            if self.climb(use.node, absorbed) or self.walk.parents[use.node] in self.replacements:
                continue
            statements = [each.statement for each in use.bindings if each.statement is not None]
            if not all(self.wants("HIER009", each) for each in (use.node, *statements)):
                continue
            self.renames[use.node] = self.name(use, use.name)
            self.used.add(use.root)

    def decide(self, use: Use) -> tuple[cst.CSTNode, Rewrite] | None:
        """The node to replace and how; None if nothing changes here."""
        parents = self.walk.parents
        parent = parents[use.node]
        if isinstance(parent, cst.Del) or use.name == REMOVED_MODULE:
            if use.name == REMOVED_MODULE:
                self.leave(use.node, "HIER109", f"{REMOVED_MODULE} is used as a value")
            return None
        called = isinstance(parent, cst.Call) and parent.func is use.node
        if use.name in REMOVED and expects_failure(use.node, parents, of_name=True):
            self.leave(use.node, "HIER116", use.name)
            return None
        stays = self.waits(use.bindings) or not self.wants(RULE_OF.get(use.name, ""), use.node)
        if called and use.name in RULE_OF and stays:
            self.explained.add(parent)
            self.passed.add(use.root)
            return None
        if use.name in REMOVED:
            if not use.agrees:
                self.leave(use.node, "HIER107", f"{use.root.value} is bound in several ways")
                return None
            if use.is_star:
                self.leave(use.node, "HIER108", use.name)
                return None
        if called and use.name in DECIDERS:
            assert isinstance(parent, cst.Call)
            return self.decide_call(use, parent)
        return self.decide_value(use, parent) if use.name in REMOVED else None

    def decide_call(self, use: Use, call: cst.Call) -> tuple[cst.CSTNode, Rewrite] | None:
        arguments = read_arguments(call.args, PARAMETERS[use.name])
        decision = DECIDERS[use.name](self, use, call, arguments)
        if decision is None:
            return None
        if isinstance(decision, Left):
            self.leave(call, decision.reason, decision.detail)
            self.explained.add(call)
            return None
        if use.name in KEPT and expects_failure(call, self.walk.parents, of_name=False):
            self.leave(call, "HIER116", f"{use.name} of what is gone")
            self.explained.add(call)
            return None
        if not use.agrees:
            self.leave(call, "HIER107", f"{use.root.value} is bound in several ways")
            return None
        if use.is_star and not self.walk.stars and use.root.value not in self.walk.star_of:
            self.leave(call, "HIER108", use.name)
            self.explained.add(call)
            return None
        if EFFECT.search(self.module.code_for_node(call)) and loses_effect(call, decision):
            self.leave(call, "HIER112", "an argument that goes binds a name or awaits")
            self.explained.add(call)
            return None
        if use.name in (FACTORY, PRESET):
            self.origins.instances.add(call)
        target: cst.CSTNode = call
        if use.name == PRESETS:
            parent = self.walk.parents[call]
            if isinstance(parent, cst.Subscript) and parent.value is call:
                target = parent
        return target, decision

    def decide_value(self, use: Use, parent: cst.CSTNode) -> tuple[cst.CSTNode, Rewrite] | None:
        """A removed name that is not called: a type, a base class, or a value."""
        parents = self.walk.parents
        if isinstance(parent, cst.Arg) and isinstance(parents[parent], cst.ClassDef):
            self.leave(use.node, "HIER101", f"subclass of {use.name}")
        elif isinstance(parent, cst.Attribute) and parent.value is use.node:
            self.leave(use.node, "HIER102", f"{use.name}.{parent.attr.value}")
        elif use.name in TYPES and self.roles.of(use.node) in (TYPE, CLASS):
            wanted = self.wants("HIER008", use.node) and not self.waits(use.bindings)
            if wanted and self.branches.are_told_apart(use):
                new = TYPES[use.name]
                self.leave(use.node, "HIER109", f"{use.name} and {new} are told apart, and become one class")
            elif wanted:
                if self.roles.of(use.node) == CLASS and (classes := repeats(self, use)) is not None:
                    self.replacements[classes] = Rewrite("HIER008", without_repeats)
                self.renames[use.node] = self.name(use, TYPES[use.name])
                self.used.add(use.root)
                self.note(use.node, "HIER008")
            else:
                self.passed.add(use.root)
        elif use.name == CONFIG and is_keyword(parent, "default_factory"):
            if self.wants("HIER002", use.node) and not self.waits(use.bindings):
                return use.node, config_factory(self, use)
            self.passed.add(use.root)
        else:
            self.leave(use.node, "HIER109", f"{use.name} is used as a value")
        return None

    def apply(self, use: Use, target: cst.CSTNode, rewrite: Rewrite) -> None:
        self.replacements[target] = rewrite
        if not rewrite.keeps_name:
            self.used.add(use.root)
        self.explained.add(target)
        self.note(use.node, rewrite.rule, "; ".join(rewrite.notes), self.comparisons(rewrite))
        if rewrite.todo is not None:
            self.leave(target, rewrite.todo.reason, rewrite.todo.detail)

    def comparisons(self, rewrite: Rewrite) -> tuple[Comparison, ...]:
        """The patterns that a rewrite writes, beside those that they replace."""
        sizes = rewrite.block_sizes
        ratio = float(self.settings.sparsity_ratio if rewrite.ratio is None else rewrite.ratio)
        unknown = () if sizes.literal else ("block_size",)
        return tuple(
            Comparison(
                old.name,
                old.levels,
                sizes.old,
                ratio,
                self.settings.dilation_rates,
                sizes.new,
                old.guessed + unknown,
            )
            for old in rewrite.old
        )

    def note(
        self, node: cst.CSTNode, rule: str, detail: str = "", patterns: tuple[Comparison, ...] = ()
    ) -> None:
        self.rewritten.append(Outcome(node, rule, detail, patterns))

    def leave(self, node: cst.CSTNode, reason: str, detail: str, text: str = "") -> None:
        self.todos.append((node, Left(reason, detail, text)))

    def is_spoken(self, node: cst.CSTNode) -> bool:
        """Whether a call that is rewritten or reported holds a node."""
        return node in self.spoken or self.climb(node, self.explained)

    def climb(self, node: cst.CSTNode, targets: set[cst.CSTNode]) -> bool:
        """Whether a node is one of the targets or inside one."""
        current: cst.CSTNode | None = node if targets else None
        while current is not None:
            if current in targets:
                return True
            current = self.walk.parents.get(current)
        return False

    @cached_property
    def is_concerned(self) -> bool:
        """Whether the file reaches the package at all."""
        if any(self.is_ours(b.target) or b.target == PACKAGE for b in self.import_bindings()):
            return True
        return bool(self.walk.stars) or any(string_value(node) == PACKAGE for node in self.walk.strings)

    @cached_property
    def left_nodes(self) -> set[tuple[cst.CSTNode, str]]:
        """What is left to a person, by node and reason, once the plan is complete."""
        return {(node, left.reason) for node, left in self.todos}

    @property
    def has_use(self) -> bool:
        return bool(self.replacements or self.renames or self.todos)

    def import_bindings(self) -> list[Binding]:
        seen: list[Binding] = []
        for scope in {*self.walk.scope_of.values(), *self.walk.scopes}:
            for bindings in scope.bindings.values():
                seen.extend(binding for binding in bindings if binding.kind == "import")
        return seen


def is_keyword(node: cst.CSTNode, name: str) -> bool:
    return isinstance(node, cst.Arg) and node.keyword is not None and node.keyword.value == name


def loses_effect(call: cst.Call, rewrite: Rewrite) -> bool:
    """Whether something that other code may rely on would go with an argument."""
    old = n_effects(call)
    return old > 0 and n_effects(rewrite.make(call)) < old


def n_effects(node: cst.CSTNode) -> int:
    """How many walruses, awaits and yields an expression holds."""
    own = isinstance(node, cst.NamedExpr | cst.Await | cst.Yield)
    return own + sum(n_effects(child) for child in node.children)


def bare(node: cst.BaseExpression) -> cst.BaseExpression:
    return node.deep_clone()
