"""The import editor: removed names give way to the new ones in the statement that had them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import libcst as cst

from ..analysis.binding import Binding, ImportStatement, dotted, import_name, is_import, is_import_from
from ..analysis.roles import ALL
from ..analysis.uses import api_path
from ..names import (
    CLASS,
    CONFIG,
    FACTORY,
    KEPT,
    PACKAGE,
    PATTERN,
    PRESET,
    PRESETS,
    REMOVED,
    REMOVED_MODULE,
    TYPES,
    is_gone,
)
from .arguments import string_value

if TYPE_CHECKING:
    from ..plan import Planner

# What a removed name turns into, best first.
SUCCESSORS = {
    CLASS: (FACTORY, TYPES[CLASS], PATTERN),
    CONFIG: (PATTERN, FACTORY, TYPES[CLASS]),
    PRESETS: (PATTERN, FACTORY, TYPES[CLASS]),
}
ANY = (FACTORY, PATTERN, TYPES[CLASS])

# Stands for a module of the user's own that imported removed names: it is left as one that is gone is.
OWN_MODULE = "block_sparse_elsewhere"

# New statements in place of one import statement; empty: it goes.
Edit = list[cst.Import | cst.ImportFrom]


class ImportEditor:
    def __init__(self, planner: Planner) -> None:
        self.planner, self.walk = planner, planner.walk
        self.bindings: dict[cst.ImportAlias, Binding] = {}
        for binding in planner.import_bindings():
            if binding.alias is not None:
                self.bindings[binding.alias] = binding
        self.exported = set(self.names_in_all())
        self.read = self.still_read()
        self.rewritten = {
            binding
            for node in planner.used
            if node in self.walk.scope_of
            for binding in self.walk.scope_of[node].lookup(node.value)
        }

    def edits(self) -> dict[ImportStatement, Edit]:
        """For every import statement that changes, what takes its place."""
        result: dict[ImportStatement, Edit] = {}
        for statement in self.walk.imports:
            if is_import(statement):
                new: Edit | None = self.edit_import(statement)
            elif isinstance(statement.names, cst.ImportStar):
                self.check_star(statement)
                new = None
            else:
                new = self.edit_import_from(statement)
            if new is not None:
                result[statement] = new
        return result

    # ---- what the file still reads

    def still_read(self) -> set[Binding]:
        """Import bindings whose names are read by something that stays."""
        read: set[Binding] = set(self.planner.kept)
        for node in self.walk.names:
            if node not in self.planner.used:
                read.update(self.walk.scope_of[node].lookup(node.value))
        for binding in self.bindings.values():
            local = (binding.alias and binding.alias.evaluated_alias) or (binding.target or "").split(".")[-1]
            # `del X` needs the name too
            if any(isinstance(each.node, cst.Del) for each in binding.scope.bindings.get(local, [])):
                read.add(binding)
        return read

    def names_in_all(self) -> Iterator[str]:
        for node in self.walk.strings:
            if self.planner.roles.of(node) == ALL:
                yield string_value(node) or ""

    def is_re_export(self, alias: cst.ImportAlias, binding: Binding) -> bool:
        if binding.scope.kind != "module":
            return False
        local = dotted(alias.asname.name) if alias.asname else dotted(alias.name)
        same = alias.asname is not None and dotted(alias.name) == local
        return same or self.planner.is_init or local in self.exported

    # ---- import package.module as x

    def edit_import(self, statement: cst.Import) -> Edit | None:
        changed, aliases = False, []
        for alias in statement.names:
            path = dotted(alias.name) or ""
            below = api_path(path)
            wanted = statement in self.planner.to_root or path.endswith("." + REMOVED_MODULE)
            if below and is_gone(below) and wanted:
                changed = True
                root = cst.Name(PACKAGE)
                if alias.asname is None and path.startswith("src."):
                    root = cst.Attribute(cst.Name("src"), cst.Name(PACKAGE))  # type: ignore[assignment]
                unread = alias.asname is not None and self.bindings[alias] not in self.read
                if unread and statement not in self.planner.to_root:
                    continue
                self.check_members(alias)
                alias = alias.with_changes(name=root)
            aliases.append(alias)
        if not changed:
            return None
        if not aliases:
            return []
        aliases[-1] = aliases[-1].with_changes(comma=cst.MaybeSentinel.DEFAULT)
        return [statement.with_changes(names=aliases)]

    def check_members(self, alias: cst.ImportAlias) -> None:
        """Other members of a module that is gone."""
        binding = self.bindings[alias]
        named = is_import_from(self.walk.parents[alias]) or alias.asname is not None
        for node in self.walk.names:
            if node in self.planner.used or binding not in self.walk.scope_of[node].lookup(node.value):
                continue
            parent = self.walk.parents[node]
            if isinstance(parent, cst.Attribute) and (named or is_gone(parent.attr.value)):
                self.planner.leave(node, "HIER114", f"{dotted(alias.name)} is used")

    # ---- from package.module import x

    def check_star(self, statement: cst.ImportFrom) -> None:
        below = api_path(self.walk.absolute(statement))
        if below and below.split(".")[-1] == REMOVED_MODULE:
            self.planner.leave(statement, "HIER108", f"* of {REMOVED_MODULE}")
        elif below and is_gone(below) and not statement.relative and self.is_file_concerned():
            self.planner.leave(statement, "HIER114", f"* of {below}")

    def check_gone(self, statement: cst.ImportFrom, below: str, aliases: list[cst.ImportAlias]) -> None:
        """Names that a module which is gone does not leave behind."""
        others = [name for name in map(import_name, aliases) if name not in REMOVED | KEPT]
        if not others or below == OWN_MODULE or not below or not is_gone(below):
            return
        removed = below.split(".")[-1] == REMOVED_MODULE
        if removed or (not statement.relative and self.is_file_concerned()):
            self.planner.leave(statement, "HIER114", ", ".join(others))

    def edit_import_from(self, statement: cst.ImportFrom) -> Edit | None:
        assert not isinstance(statement.names, cst.ImportStar)
        module = self.walk.absolute(statement)
        below = OWN_MODULE if statement in self.walk.again else api_path(module) if module else None
        if below is None:
            return None
        needed = dict(self.planner.needs.get(statement, {}))
        aliases: list[cst.ImportAlias] = []
        for alias in statement.names:
            binding = self.bindings.get(alias)
            imported = self.api_name(statement, alias)
            is_module = not below and is_gone(imported)
            finished = (imported == PRESET or is_module) and binding in self.rewritten
            if is_module and finished:
                self.check_members(alias)
            if binding is None or not (finished or imported in REMOVED | {REMOVED_MODULE}):
                aliases.append(alias)
                continue
            re_export = self.is_re_export(alias, binding)
            if re_export and imported in TYPES:
                aliases.append(self.renamed(alias, TYPES[imported]))
                needed.pop(TYPES[imported], None)
            elif re_export or binding in self.read:
                if re_export and binding not in self.read and imported != PRESET:
                    self.planner.leave(alias, "HIER109", f"{imported} is exported")
                aliases.append(alias)
            else:
                successor = next((n for n in SUCCESSORS.get(imported, ANY) if n in needed), None)
                if successor is not None:
                    aliases.append(self.replaced(alias, successor, needed.pop(successor)))
                elif alias is statement.names[-1] and aliases:
                    aliases[-1] = last_before(aliases[-1], alias)
                elif self.walk.group(statement) and len(statement.names) == 1 and not needed:
                    successor = SUCCESSORS.get(imported, ANY)[0]  # rather than a block without code
                    aliases.append(self.replaced(alias, successor, successor))
        have = {(dotted(a.name), dotted(a.asname.name) if a.asname else None) for a in aliases}
        for name, local in needed.items():
            if (name, None if name == local else local) not in have:
                self.add(aliases, name, local)
        aliases = without_duplicates(aliases)
        return self.statements(statement, aliases, below)

    def api_name(self, statement: cst.ImportFrom, alias: cst.ImportAlias) -> str:
        """What an alias imports of the package; empty for other names of a module of the user's own."""
        again = self.walk.again.get(statement)
        return import_name(alias) if again is None else again.get(import_name(alias), "")

    def statements(
        self, statement: cst.ImportFrom, aliases: list[cst.ImportAlias], below: str
    ) -> Edit | None:
        """The edited import; names that live in the package root move there from modules that are gone."""
        assert not isinstance(statement.names, cst.ImportStar)
        here, root = aliases, []
        foreign_root = not statement.relative and (dotted(statement.module) or "").startswith("src.")
        removed = below.split(".")[-1] == REMOVED_MODULE
        touched = removed or list(aliases) != list(statement.names) or self.is_file_changed()
        if ((below and is_gone(below)) or foreign_root) and touched:
            old = set() if below != OWN_MODULE else {id(alias) for alias in statement.names}
            root = [alias for alias in aliases if import_name(alias) in KEPT and id(alias) not in old]
            here = [alias for alias in aliases if alias not in root]
            if foreign_root and not below and here:
                here, root = aliases, []
        self.check_gone(statement, below, here)
        if not root and list(here) == list(statement.names):
            return None
        result: Edit = []
        if here:
            result.append(statement.with_changes(names=self.closed(statement, here)))
        if root:
            result.append(self.rooted(statement, self.closed(statement, root)))
        return result

    def is_file_changed(self) -> bool:
        return bool(self.planner.replacements or self.planner.renames or self.planner.strings)

    def is_file_concerned(self) -> bool:
        return self.is_file_changed() or bool(self.planner.todos)

    def rooted(self, statement: cst.ImportFrom, aliases: list[cst.ImportAlias]) -> cst.ImportFrom:
        if statement in self.walk.again:
            return statement.with_changes(
                module=cst.Name(PACKAGE),
                relative=(),
                names=aliases,
                whitespace_after_from=cst.SimpleWhitespace(" "),
                whitespace_before_import=cst.SimpleWhitespace(" "),
            )
        if not statement.relative:
            return statement.with_changes(module=cst.Name(PACKAGE), names=aliases)
        parts = (self.walk.package or "").split(".")
        dots = len(parts) - parts.index(PACKAGE)
        space = cst.SimpleWhitespace(" ")
        return statement.with_changes(
            module=None,
            relative=[cst.Dot()] * dots,
            names=aliases,
            whitespace_before_import=space,
            whitespace_after_from=statement.whitespace_after_from,
        )

    @staticmethod
    def renamed(alias: cst.ImportAlias, name: str) -> cst.ImportAlias:
        """`X` -> `New`, `X as X` -> `New as New`, `X as Y` -> `New as Y`."""
        asname = alias.asname
        if asname is not None and dotted(asname.name) == dotted(alias.name):
            asname = asname.with_changes(name=cst.Name(name))
        return alias.with_changes(name=cst.Name(name), asname=asname)

    @staticmethod
    def replaced(alias: cst.ImportAlias, name: str, local: str) -> cst.ImportAlias:
        asname = None if name == local else cst.AsName(cst.Name(local))
        return alias.with_changes(name=cst.Name(name), asname=asname)

    @staticmethod
    def add(aliases: list[cst.ImportAlias], name: str, local: str) -> None:
        """Append a name in the style of the statement."""
        asname = None if name == local else cst.AsName(cst.Name(local))
        new = cst.ImportAlias(cst.Name(name), asname)
        if aliases:
            new = new.with_changes(comma=aliases[-1].comma)
            between: cst.BaseParenthesizableWhitespace = cst.SimpleWhitespace(" ")
            for earlier in aliases[:-1]:
                if isinstance(earlier.comma, cst.Comma):
                    between = plain(earlier.comma.whitespace_after)
            last = aliases[-1].comma
            if len(aliases) == 1 and isinstance(last, cst.Comma):
                after = last.whitespace_after
                if isinstance(after, cst.ParenthesizedWhitespace):
                    indent = after.last_line.value or "    "
                    between = plain(after).with_changes(last_line=cst.SimpleWhitespace(indent))
            if isinstance(last, cst.Comma) and isinstance(last.whitespace_after, cst.ParenthesizedWhitespace):
                # the old last name keeps its comment, the new one ends the list
                end = last.whitespace_after
                if isinstance(between, cst.ParenthesizedWhitespace):
                    kept = end.with_changes(last_line=between.last_line, empty_lines=[])
                    aliases[-1] = aliases[-1].with_changes(comma=last.with_changes(whitespace_after=kept))
                    new = new.with_changes(
                        comma=last.with_changes(
                            whitespace_after=end.with_changes(first_line=cst.TrailingWhitespace())
                        )
                    )
                    aliases.append(new)
                    return
            aliases[-1] = aliases[-1].with_changes(comma=cst.Comma(whitespace_after=between))
        aliases.append(new)

    @staticmethod
    def closed(statement: cst.ImportFrom, aliases: list[cst.ImportAlias]) -> list[cst.ImportAlias]:
        """The last name ends the list as the old one did; a comma after it only inside parentheses."""
        assert not isinstance(statement.names, cst.ImportStar)
        if aliases[-1] in statement.names[:-1]:
            aliases = [*aliases[:-1], last_before(aliases[-1], statement.names[-1])]
        if statement.lpar is None and isinstance(aliases[-1].comma, cst.Comma):
            aliases = [*aliases[:-1], aliases[-1].with_changes(comma=cst.MaybeSentinel.DEFAULT)]
        return aliases


def last_before(alias: cst.ImportAlias, gone: cst.ImportAlias) -> cst.ImportAlias:
    """An alias that becomes the last one: with its own comment, and the end of the line of the one that goes."""
    own, end = alias.comma, gone.comma
    if isinstance(own, cst.Comma) and isinstance(own.whitespace_after, cst.ParenthesizedWhitespace):
        after = end.whitespace_after if isinstance(end, cst.Comma) else None
        last = after.last_line if isinstance(after, cst.ParenthesizedWhitespace) else cst.SimpleWhitespace("")
        space = own.whitespace_after.with_changes(last_line=last, empty_lines=[])
        return alias.with_changes(comma=own.with_changes(whitespace_after=space))
    return alias.with_changes(comma=end)


def plain(space: cst.BaseParenthesizableWhitespace) -> cst.BaseParenthesizableWhitespace:
    """White space without the comment in it."""
    if isinstance(space, cst.ParenthesizedWhitespace):
        return space.with_changes(first_line=cst.TrailingWhitespace(), empty_lines=[])
    return space


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
