"""The list of names of an import statement: adds, replaces and removes names in the layout that the list has."""

from __future__ import annotations

import libcst as cst

from ..analysis.binding import dotted, import_name, local_name
from .build import without_comments


def names_of(alias: cst.ImportAlias) -> tuple[str, str]:
    return import_name(alias), local_name(alias)


def renamed(alias: cst.ImportAlias, old: str, name: str) -> cst.ImportAlias:
    """`X` -> `New`, `X as X` -> `New as New`, `X as Y` -> `New as Y`; other names stay as aliases."""
    asname = alias.asname
    if asname is not None and dotted(asname.name) == dotted(alias.name) == old:
        asname = asname.with_changes(name=cst.Name(name))
    elif asname is None and dotted(alias.name) != old:
        asname = cst.AsName(cst.ensure_type(alias.name, cst.Name))
    return alias.with_changes(name=cst.Name(name), asname=asname)


def replaced(alias: cst.ImportAlias, name: str, local: str) -> cst.ImportAlias:
    """Another name in the place of one."""
    return alias.with_changes(name=cst.Name(name), asname=as_name(name, local))


def as_name(name: str, local: str) -> cst.AsName | None:
    return None if name == local else cst.AsName(cst.Name(local))


def add(aliases: list[cst.ImportAlias], name: str, local: str) -> None:
    """Append a name, separated from the one before it as the others are."""
    new = cst.ImportAlias(cst.Name(name), as_name(name, local))
    if aliases:
        last, between = aliases[-1].comma, space_between(aliases)
        own: cst.Comma = cst.Comma(whitespace_after=between)
        end = last
        if (
            isinstance(last, cst.Comma)
            and isinstance(after := last.whitespace_after, cst.ParenthesizedWhitespace)
            and isinstance(between, cst.ParenthesizedWhitespace)
        ):
            # the old last name keeps its comment, the new one ends the list
            kept = after.with_changes(last_line=between.last_line, empty_lines=[])
            own = last.with_changes(whitespace_after=kept)
            end = last.with_changes(whitespace_after=after.with_changes(first_line=cst.TrailingWhitespace()))
        aliases[-1] = aliases[-1].with_changes(comma=own)
        new = new.with_changes(comma=end)
    aliases.append(new)


def space_between(aliases: list[cst.ImportAlias]) -> cst.BaseParenthesizableWhitespace:
    """What separates the last two names; a new line after a single one that has a line of its own."""
    space: cst.BaseParenthesizableWhitespace = cst.SimpleWhitespace(" ")
    for earlier in aliases[:-1]:
        if isinstance(earlier.comma, cst.Comma):
            space = without_comments(earlier.comma.whitespace_after)
    last = aliases[-1].comma
    if len(aliases) == 1 and isinstance(last, cst.Comma):
        after = last.whitespace_after
        if isinstance(after, cst.ParenthesizedWhitespace):
            indent = after.last_line.value or "    "
            space = without_comments(after).with_changes(last_line=cst.SimpleWhitespace(indent))
    return space


def closed(statement: cst.ImportFrom, aliases: list[cst.ImportAlias]) -> list[cst.ImportAlias]:
    """The names, ended like the old list; with a trailing comma only inside parentheses."""
    assert not isinstance(statement.names, cst.ImportStar)
    last, end = aliases[-1], statement.names[-1]
    if last.comma is not end.comma:
        last = last_before(last, end)
    if statement.lpar is None and isinstance(last.comma, cst.Comma):
        last = last.with_changes(comma=cst.MaybeSentinel.DEFAULT)
    return [*aliases[:-1], last]


def last_before(alias: cst.ImportAlias, gone: cst.ImportAlias) -> cst.ImportAlias:
    """An alias that becomes the last one: it keeps its comment and gets the line end of the removed one."""
    own, end = alias.comma, gone.comma
    if isinstance(own, cst.Comma) and isinstance(own.whitespace_after, cst.ParenthesizedWhitespace):
        after = end.whitespace_after if isinstance(end, cst.Comma) else None
        last = after.last_line if isinstance(after, cst.ParenthesizedWhitespace) else cst.SimpleWhitespace("")
        space = own.whitespace_after.with_changes(last_line=last, empty_lines=[])
        return alias.with_changes(comma=own.with_changes(whitespace_after=space))
    return alias.with_changes(comma=end)


def without_duplicates(aliases: list[cst.ImportAlias]) -> list[cst.ImportAlias]:
    seen: set[tuple[str | None, str | None]] = set()
    result = []
    for alias in aliases:
        key = dotted(alias.name), dotted(alias.asname.name) if alias.asname else None
        if key not in seen:
            result.append(alias)
        seen.add(key)
    if result and result[-1] is not aliases[-1]:
        result[-1] = result[-1].with_changes(comma=aliases[-1].comma)
    return result
