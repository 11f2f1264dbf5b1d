"""Collects the changes to one file and what the report says about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import libcst as cst

from .analysis.binding import Binding, ImportStatement, is_import, is_import_from
from .analysis.uses import Use, api_path
from .context import Context
from .density import Comparison, OldPattern
from .diagnostic import Diagnostic

# The statements that replace an import statement; empty if it is removed.
Edit = list[cst.Import | cst.ImportFrom]


@dataclass(frozen=True)
class BlockSizes:
    """Tokens per block, before and after."""

    old: int = 64
    new: int = 64
    literal: bool = True  # False: unknown, the default is assumed


@dataclass
class Rewrite:
    """A use that is rewritten. `make` is given the call with its arguments already rewritten."""

    rule: str
    make: Callable[[Any], cst.BaseExpression]
    notes: list[str] = field(default_factory=list)
    # calls inside it that are not rewritten on their own
    absorbs: list[cst.CSTNode] = field(default_factory=list)
    old: Sequence[OldPattern] = ()  # the configurations that the written patterns replace
    block_sizes: BlockSizes = BlockSizes()
    ratio: float | None = None  # of the new pattern; None: that of the settings
    keeps_name: bool = False  # the new call is one of the same function
    todo: Diagnostic | None = None  # what is left to a person after the rewrite


@dataclass
class Demand:
    """A name of the package that a new expression needs."""

    use: Use
    name: str
    local: str
    statements: list[ImportStatement]  # that import the use

    def order(self, context: Context) -> tuple[bool, int]:
        """Sort key: imports at module level first, from top to bottom."""
        first = self.statements[0]
        return not isinstance(context.block(first), cst.Module), context.source.lines[first]


class Changes:
    """The changes decided so far for one file.

    If only some rules are selected, `whole` holds the changes of all rules. Imports are placed as in `whole`, so that
    rules that run one by one, in any order, give the same file.
    """

    def __init__(self, context: Context, whole: Changes | None = None) -> None:
        self.context, self.whole = context, whole
        self.replacements: dict[cst.CSTNode, Rewrite] = {}
        self.renames: dict[cst.CSTNode, cst.BaseExpression] = {}
        self.strings: dict[cst.CSTNode, str] = {}  # string literal -> its new source
        # node of a rewritten argument -> the same node with its new indentation
        self.moved: dict[cst.CSTNode, cst.CSTNode] = {}
        self.demands: list[Demand] = []
        # statement -> name that it has to import -> its local name
        self.needs: dict[ImportStatement, dict[str, str]] = {}
        self.to_root: set[ImportStatement] = set()  # imports of modules that become imports of the package
        self.used: set[cst.Name] = set()  # leftmost names of uses that are removed
        self.passed: set[cst.Name] = set()  # those of uses that stay, because a rule is switched off there
        self.todos: list[tuple[cst.CSTNode, Diagnostic]] = []
        self.rewritten: list[tuple[cst.CSTNode, Diagnostic]] = []
        self.handled: set[cst.CSTNode] = set()  # calls whose strings need no further check
        self.kept: set[Binding] = set()  # imports needed by a string or a comment that is left to a person
        self.reported: set[cst.CSTNode] = set()  # strings that were reported

    def name(self, use: Use, name: str) -> cst.BaseExpression:
        """The expression for a name of the package where `use` is; records the import that it needs."""
        if use.base is not None:
            for binding in use.bindings:
                if binding.statement is not None:
                    self.to_root.add(binding.statement)
            return cst.Attribute(bare(use.base), cst.Name(name))
        if use.is_star and (self.context.source.stars or use.root.value not in self.context.source.star_of):
            return cst.Name(name)
        statements = [binding.statement for binding in use.bindings if binding.statement is not None]
        if use.is_star:  # from a module of the user's own, which may lack the name
            statements = [self.context.source.star_of[use.root.value]]
        if self.context.source.groups:  # a block of a page has to contain its own imports
            group = self.context.source.group(use.root)
            statements = [
                each for each in statements if self.context.source.group(each) == group
            ] or statements
        there = self.visible(use, name, statements)
        if there is not None:
            return cst.Name(there)
        taken = [b for b in use.scope.lookup(name) if not self.context.is_name(b, name)]
        local = f"dilated_{name}" if taken else name
        if statements:
            self.demands.append(Demand(use, name, local, statements))
        return cst.Name(local)

    def place(self) -> None:
        """Assign the needed names to import statements, and to a single one where it serves several uses."""
        planned = self.whole.needs if self.whole is not None else {}
        for demand in sorted(self.demands, key=lambda each: each.order(self.context)):
            there = self.served(demand, planned) or self.served(demand, self.needs)
            for statement in [there] if there is not None else demand.statements:
                self.needs.setdefault(self.home(statement), {})[demand.name] = demand.local

    def served(self, demand: Demand, needs: dict[ImportStatement, dict[str, str]]) -> ImportStatement | None:
        """The import statement, among those that get new names, that serves a use; None if there is none."""
        for statement, names in needs.items():
            same_block = all(
                self.context.block(each) is self.context.block(statement) for each in demand.statements
            )
            if (
                names.get(demand.name) == demand.local
                and (same_block or isinstance(self.context.block(statement), cst.Module))
                and self.context.runs_before(statement, demand.use, demand.statements)
            ):
                return statement
        return None

    def home(self, statement: ImportStatement) -> ImportStatement:
        """The statement for new names: for a star import, the import from the package on the next line, if any."""
        if is_import(statement) or not isinstance(statement.names, cst.ImportStar):
            return statement
        line = self.context.source.parents[statement]
        body = getattr(self.context.source.parents[line], "body", ())
        if not isinstance(line, cst.SimpleStatementLine) or not isinstance(body, Sequence):
            return statement
        place = next(i for i, each in enumerate(body) if each is line)
        after = body[place + 1] if place + 1 < len(body) else None
        found = after.body[0] if isinstance(after, cst.SimpleStatementLine) else None
        if not is_import_from(found) or isinstance(found.names, cst.ImportStar):
            return statement
        is_root = api_path(self.context.source.absolute(found)) == ""
        return (
            found
            if is_root and self.context.source.group(found) == self.context.source.group(statement)
            else statement
        )

    def visible(self, use: Use, name: str, statements: list[ImportStatement]) -> str | None:
        """The local name of an import of `name` that is certain to run before the use; None if there is none."""
        for scope in use.scope.ancestors():
            for local, bindings in self.context.imported_as(scope, name):
                if use.scope.lookup(local) is not bindings or (
                    local != name and self.context.is_for_others(local, bindings)
                ):
                    continue
                if any(self.context.runs_before(b.statement, use, statements) for b in bindings):
                    return local
        return None

    def apply(self, use: Use, target: cst.CSTNode, rewrite: Rewrite) -> None:
        self.replacements[target] = rewrite
        if not rewrite.keeps_name:
            self.used.add(use.root)
        self.handled.add(target)
        self.note(use.node, rewrite.rule, "; ".join(rewrite.notes), self.comparisons(rewrite))
        if rewrite.todo is not None:
            self.leave(target, rewrite.todo.rule, rewrite.todo.detail)

    def comparisons(self, rewrite: Rewrite) -> tuple[Comparison, ...]:
        """The patterns that a rewrite writes, each with the configuration that it replaces."""
        sizes = rewrite.block_sizes
        ratio = float(self.context.settings.sparsity_ratio if rewrite.ratio is None else rewrite.ratio)
        unknown = () if sizes.literal else ("block_size",)
        return tuple(
            Comparison(
                old.name,
                old.levels,
                sizes.old,
                ratio,
                self.context.settings.dilation_rates,
                sizes.new,
                old.guessed + unknown,
            )
            for old in rewrite.old
        )

    def note(
        self, node: cst.CSTNode, rule: str, detail: str = "", patterns: tuple[Comparison, ...] = ()
    ) -> None:
        self.rewritten.append((node, Diagnostic(rule, detail, patterns=patterns)))

    def leave(self, node: cst.CSTNode, reason: str, detail: str, text: str = "") -> None:
        self.todos.append((node, Diagnostic(reason, detail, text)))

    def is_handled(self, node: cst.CSTNode) -> bool:
        """Whether a node is part of something already rewritten or reported."""
        return node in self.reported or self.context.is_inside(node, self.handled)

    @cached_property
    def left_nodes(self) -> set[tuple[cst.CSTNode, str]]:
        """The uses that are left to a person, as (node, reason); complete once all rules have run."""
        return {(node, left.rule) for node, left in self.todos}

    @property
    def has_use(self) -> bool:
        return bool(self.replacements or self.renames or self.todos)


def bare(node: cst.BaseExpression) -> cst.BaseExpression:
    return node.deep_clone()
