"""HIER005: the factory, asked for the hierarchical variant or given a hierarchical_config."""

from __future__ import annotations

import libcst as cst

from ..analysis.arguments import Arguments, is_none, read_arguments
from ..analysis.uses import Use
from ..changes import Changes, Rewrite
from ..context import Context
from ..diagnostic import Diagnostic
from ..edit.build import Item
from ..edit.build import call as new_call
from ..removed_api import FACTORY, FACTORY_PARAMETERS, HIERARCHICAL, KEYWORD
from .shared.module_call import OldForm, module_call
from .shared.registry import Decision, rewrites

RULE = "HIER005"

IGNORED = {
    name: f"{name} had no effect on the hierarchical variant and is removed"
    for name in ("embed_dim", "num_heads", "adaptive_config", "distributed_config")
}
OLD = OldForm(RULE, FACTORY_PARAMETERS, IGNORED, has_shorthands=True, dropped=("variant",))


@rewrites(RULE, FACTORY)
def decide(context: Context, changes: Changes, use: Use, call: cst.Call, arguments: Arguments) -> Decision:
    named = arguments.named
    variant = arguments.literal("variant") if "variant" in named else "auto"
    if variant == HIERARCHICAL:
        return module_call(context, changes, use, call, arguments, OLD)
    given = "hierarchical_config" in named
    if variant is None:
        code = context.module.code_for_node(named["variant"])
        may_be = given or context.may_be_hierarchical(named["variant"], use.scope)
        return Diagnostic("HIER105", f"variant={code}") if may_be else None
    if not given:
        if (
            arguments.stars
            and variant == "auto"
            and context.may_hold_hierarchical(arguments.stars, use.scope)
        ):
            return Diagnostic("HIER104", context.module.code_for_node(arguments.stars[0].value))
        return None
    if arguments.problem:
        return Diagnostic("HIER111", arguments.problem)
    if variant == "auto" and arguments.stars:
        return Diagnostic("HIER104", context.module.code_for_node(arguments.stars[0].value))
    if variant == "auto" and not is_none(named["hierarchical_config"]):
        others = {name for name in named if not is_none(named[name])}
        if (
            not others & {"distributed_config", "adaptive_config"}
            and not {"embed_dim", "num_heads"} <= others
        ):
            return module_call(context, changes, use, call, arguments, OLD)
    return without_keyword(context, changes, use, call, arguments, RULE, f"variant {variant!r}")


def without_keyword(
    context: Context, changes: Changes, use: Use, call: cst.Call, arguments: Arguments, rule: str, form: str
) -> Decision:
    """Other variants never read hierarchical_config: only the argument is removed."""
    keeps_name = isinstance(use.node, cst.Name)
    # a member of a module, which may be a module that is gone
    function = call.func if keeps_name else changes.name(use, use.name)
    notes = [f"hierarchical_config had no effect on {form} and is removed"]
    positional = [arg for arg in call.args if arg.keyword is None and not arg.star]
    if len(positional) > FACTORY_PARAMETERS.index("hierarchical_config"):
        style = context.style(call)
        if style is None or arguments.stars:
            return Diagnostic("HIER112", "hierarchical_config is a positional argument")

        def renamed(updated: cst.Call) -> cst.BaseExpression:
            now = read_arguments(updated.args, FACTORY_PARAMETERS).named
            items = [
                Item(name, value)
                for name, value in now.items()
                if name != "hierarchical_config" and not is_none(value)
            ]
            return new_call(function, items, style, updated.lpar, updated.rpar)

        return Rewrite(rule, renamed, notes, keeps_name=keeps_name)

    places = [i for i, arg in enumerate(call.args) if arg.keyword and arg.keyword.value == KEYWORD]
    if not places:  # an item of `**{...}`: reported as a string
        return None
    place = places[0]

    def make(updated: cst.Call) -> cst.BaseExpression:
        args = list(updated.args)
        gone = args.pop(place)
        if place == len(args) and args:  # it was the last one, so the one before it ends the call now
            args[-1] = args[-1].with_changes(comma=gone.comma)
        return updated.with_changes(func=function, args=args)

    value = arguments.named["hierarchical_config"]
    absorbs: list[cst.CSTNode] = [value] if isinstance(value, cst.Call | cst.Subscript) else []
    return Rewrite(rule, make, notes, absorbs=absorbs, keeps_name=keeps_name)
