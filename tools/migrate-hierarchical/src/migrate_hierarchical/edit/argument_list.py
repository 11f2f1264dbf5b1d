"""The list of arguments of a call: names, removes and appends arguments in the layout that the list has."""

from __future__ import annotations

from collections.abc import Sequence

import libcst as cst

from .build import NO_SPACE, without_comments


def named(arg: cst.Arg, keyword: str) -> cst.Arg:
    return arg.with_changes(keyword=cst.Name(keyword), equal=arg.equal if arg.keyword else NO_SPACE)


def without(args: Sequence[cst.Arg], gone: dict[int, str]) -> list[cst.Arg]:
    """The arguments that stay. The last one ends the call as the old last one did, and keeps its own comment."""
    kept = [arg for place, arg in enumerate(args) if place not in gone]
    if kept and len(args) - 1 in gone:
        kept[-1] = ended_like(kept[-1], args[-1])
    return kept


def ended_like(arg: cst.Arg, end: cst.Arg) -> cst.Arg:
    own, last = arg.comma, end.comma
    if isinstance(own, cst.Comma) and isinstance(own.whitespace_after, cst.ParenthesizedWhitespace):
        after = last.whitespace_after if isinstance(last, cst.Comma) else end.whitespace_after_arg
        if isinstance(after, cst.ParenthesizedWhitespace):
            space = own.whitespace_after.with_changes(
                indent=after.indent, last_line=after.last_line, empty_lines=[]
            )
            if isinstance(last, cst.Comma):
                return arg.with_changes(comma=own.with_changes(whitespace_after=space))
            return arg.with_changes(comma=cst.MaybeSentinel.DEFAULT, whitespace_after_arg=space)
        if own.whitespace_after.first_line.comment is not None:  # the comment needs the end of the line
            return arg
    return arg.with_changes(comma=last, whitespace_after_arg=end.whitespace_after_arg)


def between(
    args: Sequence[cst.Arg], space: cst.BaseParenthesizableWhitespace
) -> cst.BaseParenthesizableWhitespace:
    """What separates two arguments: a line end where each has its own line."""
    for arg in args[:-1]:
        if isinstance(arg.comma, cst.Comma):
            return without_comments(arg.comma.whitespace_after)
    if isinstance(space, cst.ParenthesizedWhitespace):
        return without_comments(space)
    return cst.SimpleWhitespace(" ")


def with_comma(arg: cst.Arg, space: cst.BaseParenthesizableWhitespace) -> cst.Arg:
    return arg.with_changes(comma=cst.Comma(whitespace_after=space))


def appended(
    args: Sequence[cst.Arg], new: cst.Arg, space: cst.BaseParenthesizableWhitespace
) -> list[cst.Arg]:
    """The arguments with one more at the end, laid out like them."""
    if not args:
        return [new]
    separator, last = between(args, space), args[-1]
    if isinstance(last.comma, cst.Comma):
        after = last.comma.whitespace_after
        if isinstance(after, cst.ParenthesizedWhitespace) and isinstance(
            separator, cst.ParenthesizedWhitespace
        ):
            # the old last one keeps its comment, the new one ends the call
            own = after.with_changes(indent=separator.indent, last_line=separator.last_line, empty_lines=[])
            end = after.with_changes(first_line=cst.TrailingWhitespace())
            return [
                *args[:-1],
                with_comma(last, own),
                new.with_changes(comma=last.comma.with_changes(whitespace_after=end)),
            ]
        return [*args[:-1], with_comma(last, separator), new.with_changes(comma=last.comma)]
    after = last.whitespace_after_arg
    if not isinstance(after, cst.ParenthesizedWhitespace):
        return [*args[:-1], with_comma(last, separator), new]
    bare = last.with_changes(whitespace_after_arg=cst.SimpleWhitespace(""))
    if after.first_line.comment is not None and not isinstance(separator, cst.ParenthesizedWhitespace):
        separator = without_comments(space)  # the comment needs the end of the line
    if isinstance(separator, cst.ParenthesizedWhitespace):
        separator = after.with_changes(indent=separator.indent, last_line=separator.last_line, empty_lines=[])
    elif after.first_line.comment is not None:
        separator = after
    return [
        *args[:-1],
        with_comma(bare, separator),
        new.with_changes(whitespace_after_arg=without_comments(after)),
    ]
