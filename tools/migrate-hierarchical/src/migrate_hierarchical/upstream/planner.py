"""Applies the rules of the group to every use of upstream's API in one file."""

from __future__ import annotations

import os

import libcst as cst

from ..analysis.arguments import string_value
from ..analysis.binding import ImportStatement
from ..analysis.source_index import SourceIndex
from ..analysis.uses import Use
from ..changes import Changes, Edit
from ..context import Context
from ..project_folder import folders_above
from ..removed_api import HIERARCHICAL_STRINGS, KEYWORD, PACKAGE, REMOVED_NAMES
from ..rules import load
from ..rules.up001 import ImportEditor, through_the_package
from ..rules.up002 import Renames
from ..rules.up004 import keywords
from ..rules.up105 import check_value
from ..rules.up106 import check_seventh
from ..rules.up113 import check_members
from ..settings import Settings
from ..silence import Silence
from .calls import OldCall, call_rules
from .names import OldNames
from .old_api import ADAPTIVE, NAMES, OLD_PARAMETERS, RENAMED, WITHOUT_SUCCESSOR

load("up")


def plan(
    module: cst.Module, index: SourceIndex, settings: Settings, is_init: bool, silence: Silence
) -> tuple[Changes, dict[ImportStatement, Edit]]:
    """Decide what happens to the uses and the imports of a file."""
    context = Context(module, index, settings, is_init, silence)
    changes = Changes(context)
    if is_of_the_package(index.path):
        return changes, {}
    names = OldNames(index)
    renames = Renames(context, changes, names)
    others = calls_of_the_other_group(context, names)
    for parent, use in others.items():
        if use.agrees and use.name in OLD_PARAMETERS:
            call = OldCall(context, changes, use, parent, renames_function=False)
            keywords(call)
            call.finish()
    skipped: set[cst.CSTNode] = set(others)
    for use in names:
        if context.is_inside(use.node, skipped):
            continue
        plan_use(context, changes, use, renames)
    check_seventh(context, changes, names)
    check_members(context, changes, names)
    changes.place()
    return changes, ImportEditor(context, changes, renames).edits()


def is_of_the_package(path: str) -> bool:
    """Whether a file lies in a package with our name, whatever a folder around it is called."""
    folders = list(folders_above(os.path.dirname(path)))
    return any(
        os.path.basename(each) == PACKAGE and os.path.isfile(os.path.join(each, "__init__.py"))
        for each in folders
    )


def plan_use(context: Context, changes: Changes, use: Use, renames: Renames) -> None:
    parent = context.source.parents[use.node]
    called = isinstance(parent, cst.Call) and parent.func is use.node
    if use.name in WITHOUT_SUCCESSOR:
        if not renames.is_marked_at_import(use):
            changes.leave(use.node, "UP101", "", f"{use.name} is gone: {WITHOUT_SUCCESSOR[use.name]}")
        return
    if use.is_star and use.name in RENAMED and context.source.stars:
        changes.leave(use.node, "UP107", use.name)
        return
    renamed = renames.rename(use)
    through_the_package(context, changes, use)
    if called and use.name in OLD_PARAMETERS:
        assert isinstance(parent, cst.Call)
        if not use.agrees:
            changes.leave(parent, "UP105", f"{use.root.value} is bound in several ways")
            return
        if use.name == ADAPTIVE and may_be_new(parent):
            changes.leave(parent, "UP105", "positional arguments")
            return
        call = OldCall(context, changes, use, parent, use.name in RENAMED)
        if (use.name in RENAMED and not renamed) or is_placeholder(parent):
            return  # the arguments are those of the old class, which stays, or are left out as in `Name(...)`
        for rule in call_rules(use.name):
            rule(call)
        call.finish()
    elif isinstance(parent, cst.Arg) and isinstance(context.source.parents[parent], cst.ClassDef):
        if use.name in {*RENAMED, ADAPTIVE}:
            changes.leave(use.node, "UP108", f"subclass of {use.name}")
    else:
        check_value(context, changes, use, parent)


def is_placeholder(call: cst.Call) -> bool:
    """Whether a call in a text leaves its arguments out: `Name(...)`."""
    return any(isinstance(arg.value, cst.Ellipsis) for arg in call.args)


def may_be_new(call: cst.Call) -> bool:
    """Whether positional arguments of a class with the same name may be those of its new signature."""
    first = call.args[0] if call.args else None
    return first is not None and first.keyword is None and not isinstance(first.value, cst.List | cst.Tuple)


def calls_of_the_other_group(context: Context, names: OldNames) -> dict[cst.Call, Use]:
    """Calls that the group HIER rewrites, with everything inside them."""
    found: dict[cst.Call, Use] = {}
    for use in (*context.resolver, *names):
        parent = context.source.parents[use.node]
        if not isinstance(parent, cst.Call) or parent.func is not use.node:
            continue
        if use.name in REMOVED_NAMES or (use.name in NAMES and is_hierarchical(parent)):
            found.setdefault(parent, use)
    return found


def is_hierarchical(call: cst.Call) -> bool:
    """Whether a call asks for something hierarchical by name."""
    return any(
        (arg.keyword is not None and arg.keyword.value == KEYWORD)
        or string_value(arg.value) in HIERARCHICAL_STRINGS
        for arg in call.args
    )
