"""Reports calls of a kept function of the package under another name: `make = create_block_sparse_attention`."""

from __future__ import annotations

import libcst as cst

from ...analysis.arguments import string_value
from ...analysis.binding import Binding, Scope, dotted, written_path
from ...changes import Changes
from ...context import Context
from ...limits import ALIAS_DEPTH
from ...removed_api import CHOOSE, HIERARCHICAL_STRINGS, KEYWORD


def check_aliases(context: Context, changes: Changes) -> None:
    """Report removed names in the arguments of such a call."""
    aliases = Aliases(context)
    if not aliases.are_made:
        return
    for call in context.source.calls:
        scope = context.source.scope_of[call]
        found = [(arg.value, reason) for arg in call.args if (reason := reason_of(context, arg, scope))]
        if not found or call.func in context.resolver.by_node or not aliases.lead(call.func, scope):
            continue
        for value, reason in found:
            if not changes.is_handled(value):
                changes.leave(value, reason, context.module.code_for_node(value))
                changes.reported.add(value)


def reason_of(context: Context, arg: cst.Arg, scope: Scope) -> str | None:
    """Why an argument may ask for something removed; None if it does not."""
    if arg.keyword is not None and arg.keyword.value == KEYWORD:
        return "HIER113"
    if (text := string_value(arg.value)) is not None:
        return "HIER113" if text in HIERARCHICAL_STRINGS else None
    chooser = context.chooser
    choices = chooser.inside(arg.value, scope) if arg.star else chooser.of(arg.value, scope)
    return "HIER105" if choices.values & HIERARCHICAL_STRINGS else None


class Aliases:
    def __init__(self, context: Context) -> None:
        self.context, self.source = context, context.source
        parents = context.source.parents
        self.of_project = context.source.facts.callables
        self.are_made = bool(self.of_project) or any(
            use.name in CHOOSE
            and not (isinstance(call := parents[use.node], cst.Call) and call.func is use.node)
            for use in context.resolver
        )

    def lead(self, node: cst.CSTNode | None, scope: Scope, depth: int = 0) -> bool:
        """Whether an expression may be, wrap or hold a callable of the package."""
        use = self.context.resolver.by_node.get(node) if node is not None else None
        if use is not None or depth > ALIAS_DEPTH:
            return use is not None and use.name in CHOOSE
        if self.of_project and self.comes_from_project(node, scope):
            return True
        if isinstance(node, cst.Name):
            return any(self.bound(each, depth + 1) for each in scope.lookup(node.value))
        if isinstance(node, cst.Attribute):
            owner = self.context.origins.class_body(node.value, scope)
            bindings = owner.bindings.get(node.attr.value, []) if owner is not None else []
            set_to = self.source.members.get(dotted(node) or "", [])
            return (
                any(self.bound(each, depth + 1) for each in bindings)
                or any(self.lead(value, where, depth + 1) for value, where in set_to)
                or (isinstance(node.value, cst.Call) and self.lead(self.member(node), scope, depth + 1))
            )
        return any(self.lead(part, scope, depth + 1) for part in parts_of(node)) or (
            isinstance(node, cst.Call) and self.returned(node, scope, depth + 1)
        )

    def comes_from_project(self, node: cst.CSTNode | None, scope: Scope) -> bool:
        """Whether a name, or a member of a module, comes from another file."""
        root, _, rest = (dotted(node) or "").partition(".")
        bindings = scope.lookup(root) if root else []
        paths = [
            ".".join(filter(None, (written_path(each), rest))) for each in bindings if each.kind == "import"
        ]
        return bool(self.of_project.intersection(paths if bindings else [root]))

    def member(self, node: cst.Attribute) -> cst.Attribute | None:
        """`Class.make` for `Class().make`."""
        return node.with_changes(value=node.value.func) if isinstance(node.value, cst.Call) else None

    def bound(self, binding: Binding, depth: int) -> bool:
        if isinstance(binding.node, cst.Param):
            function = binding.scope.node
            given = self.context.chooser.calls_of(function) if isinstance(function, cst.FunctionDef) else []
            return self.lead(binding.node.default, binding.scope, depth) or any(
                self.lead(arg.value, where, depth) for call, where in given for arg in call.args
            )
        return binding.kind != "import" and self.lead(binding.value, binding.scope, depth)

    def returned(self, call: cst.Call, scope: Scope, depth: int) -> bool:
        """Whether a function of the file returns such a callable."""
        bindings = scope.lookup(call.func.value) if isinstance(call.func, cst.Name) else []
        for function in (each.node for each in bindings):
            if isinstance(function, cst.FunctionDef):
                given = self.source.given.get(self.source.opens[function.body], [])
                if any(self.lead(value, where, depth) for value, where in given):
                    return True
        return False


def parts_of(node: cst.CSTNode | None) -> list[cst.BaseExpression]:
    """The expressions that an expression may return, or wraps."""
    if isinstance(node, cst.Call):
        return [arg.value for arg in node.args]  # partial(make), staticmethod(make)
    if isinstance(node, cst.IfExp):
        return [node.body, node.orelse]
    if isinstance(node, cst.BooleanOperation):
        return [node.left, node.right]
    if isinstance(node, cst.NamedExpr | cst.Subscript):
        return [node.value]
    if isinstance(node, cst.List | cst.Tuple | cst.Set | cst.Dict):
        return [element.value for element in node.elements]
    return []
