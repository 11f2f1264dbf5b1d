"""HIER002: the configuration, and the dictionary of configurations."""

from __future__ import annotations

import libcst as cst

from ..analysis.arguments import Arguments
from ..analysis.uses import Use
from ..changes import Changes, Rewrite
from ..context import Context
from ..density import LEVELS, preset_pattern
from ..diagnostic import Diagnostic
from ..edit.build import Style, pattern_config, string
from ..removed_api import PARAMETERS, PATTERN, REMOVED_CONFIG, REMOVED_GET_PRESETS
from .shared.registry import Decision, rewrites

RULE = "HIER002"


@rewrites(RULE, REMOVED_CONFIG, REMOVED_GET_PRESETS)
def decide(context: Context, changes: Changes, use: Use, call: cst.Call, arguments: Arguments) -> Decision:
    style = context.style(call)
    if style is None:
        return Diagnostic("HIER112", "inside nested f-strings")
    function = changes.name(use, PATTERN)
    if use.name == REMOVED_CONFIG:
        misfit = config_misfit(arguments)
        if misfit is not None:
            return misfit
        return Rewrite(
            RULE,
            lambda old: pattern_config(function, context.settings, style, lpar=old.lpar, rpar=old.rpar),
            old=[context.old_pattern(call)],
        )
    assert use.name == REMOVED_GET_PRESETS
    if arguments.named or arguments.stars or arguments.problem:
        return Diagnostic("HIER111", f"{REMOVED_GET_PRESETS} takes no arguments")
    parent = context.source.parents[call]
    if isinstance(parent, cst.Subscript) and parent.value is call:
        return Rewrite(
            RULE,
            lambda old: pattern_config(function, context.settings, style, lpar=old.lpar, rpar=old.rpar),
            old=[context.old_pattern(parent)],
        )
    presets = [preset_pattern(name) for name in LEVELS]
    return Rewrite(RULE, lambda old: every_preset(function, context, style), old=presets)


def config_factory(context: Context, changes: Changes, use: Use) -> Rewrite:
    """`default_factory=HierarchicalConfig` needs a function of its own."""
    function = changes.name(use, PATTERN)
    style = context.style(use.root) or Style(indent=None)
    return Rewrite(
        RULE,
        lambda old: cst.Lambda(cst.Parameters(), pattern_config(function, context.settings, style)),
        old=[context.old_pattern(None)],
    )


def config_misfit(arguments: Arguments) -> Diagnostic | None:
    """Why a call never worked; None if it did."""
    unknown = [name for name in arguments.named if name not in PARAMETERS[REMOVED_CONFIG]]
    if unknown:
        return Diagnostic("HIER111", f"{REMOVED_CONFIG} took no {unknown[0]}")
    return Diagnostic("HIER111", arguments.problem) if arguments.problem else None


def every_preset(function: cst.BaseExpression, context: Context, style: Style) -> cst.BaseExpression:
    """A dictionary with the names of the old presets."""
    names = [
        cst.Element(string(name, style), cst.Comma(whitespace_after=cst.SimpleWhitespace(" ")))
        for name in LEVELS
    ]
    names[-1] = names[-1].with_changes(comma=cst.MaybeSentinel.DEFAULT)
    return cst.DictComp(
        cst.Name("name"),
        pattern_config(function, context.settings, style),
        cst.CompFor(cst.Name("name"), cst.Tuple(names)),
    )
