"""Applies the rules to every use of the removed API in one file, in a fixed order."""

from __future__ import annotations

import re

import libcst as cst

from .analysis.arguments import read_arguments
from .analysis.failures import expects_failure
from .analysis.uses import Use
from .changes import Changes, Rewrite
from .context import Context
from .diagnostic import Diagnostic
from .removed_api import (
    FACTORY,
    GET_PRESET,
    KEPT_NAMES,
    PARAMETERS,
    REMOVED_GET_PRESETS,
    REMOVED_MODULE,
    REMOVED_NAMES,
)
from .rules import load
from .rules.checks.aliases import check_aliases
from .rules.checks.by_name import check_by_name
from .rules.checks.magics import check_magics
from .rules.checks.members import check_members, check_modules, check_own_imports, check_unresolved
from .rules.checks.strings import check_strings
from .rules.checks.type_comments import check_type_comments
from .rules.hier008 import check_types, decide_value
from .rules.shared.registry import DECIDERS, RULE_OF

load("hier")

EFFECT = re.compile(r":=|\bawait\b|\byield\b")  # side effects that an argument may have


class Planner:
    """The loop over the uses of one file, and the checks after it."""

    def __init__(self, context: Context, changes: Changes) -> None:
        self.context, self.changes = context, changes

    def run(self) -> None:
        context, changes = self.context, self.changes
        absorbed: set[cst.CSTNode] = set()  # parts of rewritten calls that are removed
        for use in context.resolver:  # in source order: a call before the calls inside it
            if context.is_inside(use.node, absorbed):
                changes.used.add(use.root)
                if use.name in REMOVED_NAMES:
                    changes.note(use.node, "HIER002")
                continue
            n_demands, to_root = len(changes.demands), set(changes.to_root)
            decision = self.decide(use)
            if decision is None:
                if use.node not in changes.renames:
                    del changes.demands[n_demands:]
                    changes.to_root = to_root
                continue
            changes.apply(use, *decision)
            absorbed.update(decision[1].absorbs)
        self.move_to_root(absorbed)
        check_members(context, changes)
        check_modules(context, changes)
        check_own_imports(context, changes)
        check_unresolved(context, changes)
        check_types(context, changes)
        if context.is_concerned or context.source.facts.callables:
            check_aliases(context, changes)
        if context.is_concerned:
            check_by_name(context, changes)
        check_strings(context, changes)
        check_magics(context, changes)
        check_type_comments(context, changes)
        changes.place()

    def move_to_root(self, absorbed: set[cst.CSTNode]) -> None:
        """Rewrite names that still exist in the package but are reached through a module that is gone."""
        context, changes = self.context, self.changes
        for use in context.resolver:
            through_module = isinstance(use.node, cst.Attribute) and use.node.value is not use.base
            if use.name not in KEPT_NAMES or not through_module or not use.agrees or use.is_star:
                continue
            if (
                context.is_inside(use.node, absorbed)
                or context.source.parents[use.node] in changes.replacements
            ):
                continue
            statements = [each.statement for each in use.bindings if each.statement is not None]
            if not all(context.wants("HIER009", each) for each in (use.node, *statements)):
                continue
            changes.renames[use.node] = changes.name(use, use.name)
            changes.used.add(use.root)

    def decide(self, use: Use) -> tuple[cst.CSTNode, Rewrite] | None:
        """The node to replace and its rewrite; None if nothing changes here."""
        context, changes = self.context, self.changes
        parents = context.source.parents
        parent = parents[use.node]
        if isinstance(parent, cst.Del) or use.name == REMOVED_MODULE:
            if use.name == REMOVED_MODULE:
                changes.leave(use.node, "HIER109", f"{REMOVED_MODULE} is used as a value")
            return None
        called = isinstance(parent, cst.Call) and parent.func is use.node
        if use.name in REMOVED_NAMES and expects_failure(use.node, parents, of_name=True):
            changes.leave(use.node, "HIER116", use.name)
            return None
        stays = context.waits(use.bindings) or not context.wants(RULE_OF.get(use.name, ""), use.node)
        if called and use.name in RULE_OF and stays:
            changes.handled.add(parent)
            changes.passed.add(use.root)
            return None
        if use.name in REMOVED_NAMES:
            if not use.agrees:
                changes.leave(use.node, "HIER107", f"{use.root.value} is bound in several ways")
                return None
            if use.is_star:
                changes.leave(use.node, "HIER108", use.name)
                return None
        if called and use.name in DECIDERS:
            assert isinstance(parent, cst.Call)
            return self.decide_call(use, parent)
        return decide_value(context, changes, use, parent) if use.name in REMOVED_NAMES else None

    def decide_call(self, use: Use, call: cst.Call) -> tuple[cst.CSTNode, Rewrite] | None:
        context, changes = self.context, self.changes
        arguments = read_arguments(call.args, PARAMETERS[use.name])
        decision = DECIDERS[use.name](context, changes, use, call, arguments)
        if decision is None:
            return None
        if isinstance(decision, Diagnostic):
            changes.leave(call, decision.rule, decision.detail)
            changes.handled.add(call)
            return None
        if use.name in KEPT_NAMES and expects_failure(call, context.source.parents, of_name=False):
            changes.leave(call, "HIER116", f"{use.name} of what is gone")
            changes.handled.add(call)
            return None
        if not use.agrees:
            changes.leave(call, "HIER107", f"{use.root.value} is bound in several ways")
            return None
        if use.is_star and not context.source.stars and use.root.value not in context.source.star_of:
            changes.leave(call, "HIER108", use.name)
            changes.handled.add(call)
            return None
        if EFFECT.search(context.module.code_for_node(call)) and loses_effect(call, decision):
            changes.leave(call, "HIER112", "an argument that is removed binds a name or awaits")
            changes.handled.add(call)
            return None
        if use.name in (FACTORY, GET_PRESET):
            context.origins.instances.add(call)
        target: cst.CSTNode = call
        if use.name == REMOVED_GET_PRESETS:
            parent = context.source.parents[call]
            if isinstance(parent, cst.Subscript) and parent.value is call:
                target = parent
        return target, decision


def loses_effect(call: cst.Call, rewrite: Rewrite) -> bool:
    """Whether a rewrite loses a side effect of an argument."""
    old = n_effects(call)
    return old > 0 and n_effects(rewrite.make(call)) < old


def n_effects(node: cst.CSTNode) -> int:
    """The number of walruses, awaits and yields in an expression."""
    own = isinstance(node, cst.NamedExpr | cst.Await | cst.Yield)
    return own + sum(n_effects(child) for child in node.children)
