"""HIER009: the imports. New names replace the removed ones in the same statement."""

from __future__ import annotations

from typing import Literal

import libcst as cst

from ..analysis.binding import (
    Binding,
    ImportStatement,
    dotted,
    import_name,
    is_import,
    is_import_from,
    last_part,
    local_name,
)
from ..analysis.comments import is_meant_for_others
from ..analysis.failures import expects_failure
from ..analysis.source_index import SourceIndex
from ..analysis.uses import api_path
from ..catalogue.reasons import AWAITED, EXPORTED, TAKEN
from ..changes import Changes, Edit
from ..context import Context
from ..removed_api import (
    FACTORY,
    GET_PRESET,
    KEPT_NAMES,
    NEW_TYPES,
    PACKAGE,
    PATTERN,
    PIECE,
    REMOVED_CLASS,
    REMOVED_CONFIG,
    REMOVED_GET_PRESETS,
    REMOVED_MODULE,
    REMOVED_NAMES,
    is_gone,
)

RULE = "HIER009"

# What may replace a removed name, best first.
SUCCESSORS = {
    REMOVED_CLASS: (FACTORY, NEW_TYPES[REMOVED_CLASS], PATTERN),
    REMOVED_CONFIG: (PATTERN, FACTORY, NEW_TYPES[REMOVED_CLASS]),
    REMOVED_GET_PRESETS: (PATTERN, FACTORY, NEW_TYPES[REMOVED_CLASS]),
}
ANY = (FACTORY, PATTERN, NEW_TYPES[REMOVED_CLASS])

# Placeholder for a user's own module that imported removed names: its imports are treated like those of a gone module.
OWN_MODULE = "block_sparse_elsewhere"


class ImportEditor:
    def __init__(self, context: Context, changes: Changes) -> None:
        self.context, self.changes, self.source = context, changes, context.source
        self.bindings: dict[cst.ImportAlias, Binding] = {}
        for binding in context.import_bindings():
            if binding.alias is not None:
                self.bindings[binding.alias] = binding
        # if some rules are switched off: unused imports that other files take; a mark would keep them later
        self.waiting: dict[cst.ImportAlias, Binding] = {}
        self.stayed: dict[str, set[str]] = {}  # block of a page -> names that its imports bind
        self.read = self.still_read()
        self.rewritten = {
            binding
            for node in changes.used
            if node in self.source.scope_of
            for binding in self.source.scope_of[node].lookup(node.value)
        }

    def edits(self) -> dict[ImportStatement, Edit]:
        """The replacement of every import statement that changes."""
        result: dict[ImportStatement, Edit] = {}
        for statement in self.source.imports:
            if self.is_meant_to_fail(statement):
                continue
            if is_import(statement):
                new: Edit | None = self.edit_import(statement)
            elif isinstance(statement.names, cst.ImportStar):
                self.check_star(statement)
                new = self.edit_star(statement)
            else:
                new = self.edit_import_from(statement)
            if new is not None:
                result[statement] = new
        return result

    def is_meant_to_fail(self, statement: ImportStatement) -> bool:
        """Whether a test passes only if an import of something removed fails."""
        if not expects_failure(statement, self.source.parents, of_name=True):
            return False
        aliases = [] if isinstance(statement.names, cst.ImportStar) else statement.names
        module = self.source.absolute(statement) if is_import_from(statement) else ""
        below = [api_path(".".join(filter(None, (module, import_name(alias))))) or "" for alias in aliases]
        gone = sorted(path for path in below if is_gone(path) or path.split(".")[-1] in REMOVED_NAMES)
        if gone:
            self.changes.leave(statement, "HIER116", ", ".join(gone))
        return bool(gone)

    # ---- what the file still reads

    def still_read(self) -> set[Binding]:
        """The imports whose names are still read after the changes."""
        read: set[Binding] = set(self.changes.kept)
        for node in self.source.names:
            if node not in self.changes.used:
                read.update(self.source.scope_of[node].lookup(node.value))
        for binding in self.bindings.values():
            local = (binding.alias and binding.alias.evaluated_alias) or (binding.target or "").split(".")[-1]
            # `del X` needs the name too
            if any(isinstance(each.node, cst.Del) for each in binding.scope.bindings.get(local, [])):
                read.add(binding)
        return read

    def is_passed(self, binding: Binding) -> bool:
        """Whether an import is needed by a use that stays because its rule is switched off."""
        passed = self.changes.passed - self.changes.used
        return any(binding in self.source.scope_of[node].lookup(node.value) for node in passed)

    def is_wanted(self, alias: cst.ImportAlias, binding: Binding | None) -> bool:
        """Whether another file still imports the name from this one."""
        wanted = binding is not None and binding.scope.kind == "module"
        return wanted and local_name(alias) in self.source.facts.wanted

    def is_re_export(self, alias: cst.ImportAlias, binding: Binding) -> bool:
        if binding.scope.kind != "module":
            return False
        local = local_name(alias)
        same = alias.asname is not None and dotted(alias.name) == local
        return same or self.context.is_init or local in self.context.exported

    # ---- import package.module as x

    def edit_import(self, statement: cst.Import) -> Edit | None:
        changed, aliases = False, []
        for alias in statement.names:
            path = dotted(alias.name) or ""
            below = api_path(path)
            wanted = self.context.wants(RULE, alias) and not self.is_passed(self.bindings[alias])
            wanted = wanted or statement in self.changes.to_root
            if below and is_gone(below) and wanted:
                changed = True
                root = cst.Name(PACKAGE)
                if alias.asname is None and path.startswith("src."):
                    root = cst.Attribute(cst.Name("src"), cst.Name(PACKAGE))  # type: ignore[assignment]
                unread = alias.asname is not None and self.bindings[alias] not in self.read
                unread = unread and not self.is_wanted(alias, self.bindings[alias])
                unread = unread and not is_tried(statement, self.source)
                if unread and statement not in self.changes.to_root:
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
        """Report other members of a module that is gone."""
        binding = self.bindings[alias]
        named = is_import_from(self.source.parents[alias]) or alias.asname is not None
        for node in self.source.names:
            if node in self.changes.used or binding not in self.source.scope_of[node].lookup(node.value):
                continue
            parent = self.source.parents[node]
            if not isinstance(parent, cst.Attribute):
                continue
            if named:
                gone = parent.attr.value not in REMOVED_NAMES | KEPT_NAMES
            else:
                above = self.source.parents[parent]
                kept = isinstance(above, cst.Attribute) and above.attr.value in REMOVED_NAMES | KEPT_NAMES
                gone = is_gone(parent.attr.value) and not kept
            if gone:
                self.changes.leave(node, "HIER114", f"{dotted(alias.name)} is used")

    # ---- from package.module import x

    def check_star(self, statement: cst.ImportFrom) -> None:
        below = api_path(self.source.absolute(statement))
        if below and below.split(".")[-1] == REMOVED_MODULE:
            self.changes.leave(statement, "HIER108", f"* of {REMOVED_MODULE}")
        elif below and is_gone(below) and not statement.relative:
            self.changes.leave(statement, "HIER114", f"* of {PACKAGE}.{below}")

    def edit_star(self, statement: cst.ImportFrom) -> Edit | None:
        """Add the new names next to a star import from a module of the user's own."""
        aliases: list[cst.ImportAlias] = []
        for name, local in self.changes.needs.get(statement, {}).items():
            self.add(aliases, name, local)
        if not aliases:
            return None
        return [statement, cst.ImportFrom(cst.Name(PACKAGE), aliases)]

    def check_gone(self, statement: cst.ImportFrom, below: str, aliases: list[cst.ImportAlias]) -> None:
        """Report names of a module that is gone which the package no longer has."""
        silence = self.context.silence
        others = [
            name
            for alias in aliases
            if (name := import_name(alias)) not in REMOVED_NAMES | KEPT_NAMES
            and not (alias in self.source.lines and silence.covers(self.source.lines[alias], "HIER114"))
        ]
        if not others or below == OWN_MODULE or not below or not is_gone(below):
            return
        if below.split(".")[-1] == REMOVED_MODULE or not statement.relative:
            self.changes.leave(statement, "HIER114", f"{', '.join(others)} of {PACKAGE}.{below}")

    def edit_import_from(self, statement: cst.ImportFrom) -> Edit | None:
        assert not isinstance(statement.names, cst.ImportStar)
        module = self.source.absolute(statement)
        below = OWN_MODULE if statement in self.source.again else api_path(module) if module else None
        if below is None:
            return None
        needed = dict(self.changes.needs.get(statement, {}))
        aliases: list[cst.ImportAlias] = []
        for alias in statement.names:
            binding = self.bindings.get(alias)
            imported = self.api_name(statement, alias)
            is_module = not below and is_gone(imported)
            rewritten = binding in self.rewritten
            wanted = self.context.wants(RULE, alias)
            finished = (imported == GET_PRESET and rewritten) or (is_module and (rewritten or wanted))
            if is_module and finished:
                self.check_members(alias)
            if binding is None or not (finished or imported in REMOVED_NAMES | {REMOVED_MODULE}):
                aliases.append(alias)
                continue
            what = self.fate(statement, alias, binding, imported)
            if what == "renamed":
                aliases.append(self.renamed(alias, imported, NEW_TYPES[imported]))
                if needed.get(NEW_TYPES[imported]) == local_name(aliases[-1]):
                    del needed[NEW_TYPES[imported]]
            elif what == "kept":
                aliases.append(alias)
                if is_module and not self.is_passed(binding):
                    self.changes.leave(alias, "HIER114", imported)
            else:
                successor = next((n for n in SUCCESSORS.get(imported, ANY) if n in needed), None)
                if successor is not None:
                    aliases.append(self.replaced(alias, successor, needed.pop(successor)))
                elif len(statement.names) == 1 and not needed and self.must_stay(statement, imported):
                    successor = SUCCESSORS.get(imported, ANY)[0]
                    aliases.append(self.replaced(alias, successor, successor))
                elif alias is statement.names[-1] and aliases:
                    aliases[-1] = last_before(aliases[-1], alias)
                elif alias is statement.names[-1] and not needed and self.must_stay(statement, imported):
                    successor = SUCCESSORS.get(imported, ANY)[0]
                    aliases.append(self.replaced(alias, successor, successor))
        have = {(dotted(a.name), dotted(a.asname.name) if a.asname else None) for a in aliases}
        for name, local in needed.items():
            if (name, None if name == local else local) not in have:
                self.add(aliases, name, local)
        aliases = without_duplicates(aliases)
        return self.statements(statement, aliases, below)

    def fate(
        self, statement: cst.ImportFrom, alias: cst.ImportAlias, binding: Binding, imported: str
    ) -> Literal["renamed", "kept", "gone"]:
        """Decide what happens to the import of a removed name."""
        wants, detail, text = self.context.wants, "", ""
        in_use = binding in self.read
        rivals = [each for each in binding.scope.bindings.get(local_name(alias), []) if each.kind != "import"]
        if not in_use and rivals:  # `except ImportError: X = None`: other files may test it
            self.changes.leave(alias, "HIER107", f"{local_name(alias)} is bound in several ways")
            return "kept"
        awaited = self.source.facts.awaited.get(local_name(alias)) if binding.scope.kind == "module" else None
        if not in_use and awaited is not None:
            self.changes.leave(alias, "HIER115", f"{awaited} imports {local_name(alias)} from here", AWAITED)
            return "kept"
        if not in_use and self.is_wanted(alias, binding):
            detail, text = self.source.facts.taken(local_name(alias)), TAKEN
            if binding in self.rewritten and is_meant_for_others(statement, alias, self.source):
                self.waiting[alias] = binding
        elif self.is_re_export(alias, binding) or (
            not in_use
            and binding not in self.rewritten
            and is_meant_for_others(statement, alias, self.source)
        ):
            if imported in NEW_TYPES and not in_use:
                return "renamed" if wants("HIER008", alias) else "kept"
            detail = "" if in_use or imported == GET_PRESET else f"{imported} is exported"
            text = EXPORTED
        elif not in_use:
            return "gone" if binding in self.rewritten or wants(RULE, alias) else "kept"
        is_quiet = local_name(alias) in self.source.facts.quiet and not self.is_re_export(alias, binding)
        if detail and self.context.settings.wants_all and not is_quiet:
            self.changes.leave(alias, "HIER109", detail, text)
        return "kept"

    def must_stay(self, statement: cst.ImportFrom, imported: str) -> bool:
        """Whether an import must stay even without its names: it tests for the package, or a block has nothing else."""
        if is_tried(statement, self.source):
            return True
        group = self.source.group(statement)
        if not group or not self.has_only_imports(statement):
            return False
        successor = SUCCESSORS.get(imported, ANY)[0]
        given = self.stayed.setdefault(group, set())
        for other in self.source.imports:
            if other is not statement and self.source.group(other) == group:
                given.update(self.given_by(other))
        if successor in given:
            return False
        given.add(successor)
        return True

    def given_by(self, statement: ImportStatement) -> set[str]:
        """The names of the package that a statement imports, before or after the changes."""
        given = set(self.changes.needs.get(statement, {}))
        if is_import_from(statement) and not isinstance(statement.names, cst.ImportStar):
            given.update(map(import_name, statement.names))
        return given

    def has_only_imports(self, statement: cst.ImportFrom) -> bool:
        """Whether the block of a page that contains a statement has only imports."""
        block = self.context.block(statement)
        header = list(block.header) if isinstance(block, cst.Module) else []
        group = ""
        for line in getattr(block, "body", ()):
            for above in [*header, *getattr(line, "leading_lines", ())]:
                if above.comment is not None and above.comment.value.startswith(PIECE):
                    group = above.comment.value.split(" ")[-1]
            header = []
            small = line.body if isinstance(line, cst.SimpleStatementLine) else (line,)
            only_imports = all(is_import(each) or is_import_from(each) for each in small)
            if group == self.source.group(statement) and not only_imports:
                return False
        return True

    def api_name(self, statement: cst.ImportFrom, alias: cst.ImportAlias) -> str:
        """What an alias imports of the package; empty for other names of a module of the user's own."""
        again = self.source.again.get(statement)
        return import_name(alias) if again is None else again.get(import_name(alias), "")

    def statements(
        self, statement: cst.ImportFrom, aliases: list[cst.ImportAlias], below: str
    ) -> Edit | None:
        """The edited import; names of modules that are gone are imported from the package root if it has them."""
        assert not isinstance(statement.names, cst.ImportStar)
        here, root = aliases, []
        foreign_root = not statement.relative and (dotted(statement.module) or "").startswith("src.")
        touched = self.context.wants(RULE, statement) or list(aliases) != list(statement.names)
        if ((below and is_gone(below)) or foreign_root) and touched:
            old = set() if below != OWN_MODULE else {names_of(alias) for alias in statement.names}
            root = [
                alias for alias in aliases if import_name(alias) in KEPT_NAMES and names_of(alias) not in old
            ]
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

    def rooted(self, statement: cst.ImportFrom, aliases: list[cst.ImportAlias]) -> cst.ImportFrom:
        if statement in self.source.again:
            return statement.with_changes(
                module=cst.Name(PACKAGE),
                relative=(),
                names=aliases,
                whitespace_after_from=cst.SimpleWhitespace(" "),
                whitespace_before_import=cst.SimpleWhitespace(" "),
            )
        if not statement.relative:
            return statement.with_changes(module=cst.Name(PACKAGE), names=aliases)
        parts = (self.source.package or "").split(".")
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
    def renamed(alias: cst.ImportAlias, old: str, name: str) -> cst.ImportAlias:
        """`X` -> `New`, `X as X` -> `New as New`, `X as Y` -> `New as Y`; other names stay as aliases."""
        asname = alias.asname
        if asname is not None and dotted(asname.name) == dotted(alias.name) == old:
            asname = asname.with_changes(name=cst.Name(name))
        elif asname is None and dotted(alias.name) != old:
            asname = cst.AsName(cst.ensure_type(alias.name, cst.Name))
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
        """The names, ended like the old list; with a trailing comma only inside parentheses."""
        assert not isinstance(statement.names, cst.ImportStar)
        if aliases[-1] in statement.names[:-1]:
            aliases = [*aliases[:-1], last_before(aliases[-1], statement.names[-1])]
        if statement.lpar is None and isinstance(aliases[-1].comma, cst.Comma):
            aliases = [*aliases[:-1], aliases[-1].with_changes(comma=cst.MaybeSentinel.DEFAULT)]
        return aliases


def names_of(alias: cst.ImportAlias) -> tuple[str, str]:
    return import_name(alias), local_name(alias)


def is_tried(statement: ImportStatement, source: SourceIndex) -> bool:
    """Whether an import decides which code runs: `try: ... except ImportError`, `suppress(ImportError)`."""
    child: cst.CSTNode = statement
    parent = source.parents.get(child)
    while parent is not None and not isinstance(parent, cst.FunctionDef | cst.ClassDef | cst.Module):
        if isinstance(parent, cst.Try | cst.TryStar) and child is parent.body:
            return True
        if isinstance(parent, cst.With) and any(
            last_part(item.item.func) == "suppress"
            for item in parent.items
            if isinstance(item.item, cst.Call)
        ):
            return True
        child, parent = parent, source.parents.get(parent)
    return False


def last_before(alias: cst.ImportAlias, gone: cst.ImportAlias) -> cst.ImportAlias:
    """An alias that becomes the last one: it keeps its comment and gets the line end of the removed one."""
    own, end = alias.comma, gone.comma
    if isinstance(own, cst.Comma) and isinstance(own.whitespace_after, cst.ParenthesizedWhitespace):
        after = end.whitespace_after if isinstance(end, cst.Comma) else None
        last = after.last_line if isinstance(after, cst.ParenthesizedWhitespace) else cst.SimpleWhitespace("")
        space = own.whitespace_after.with_changes(last_line=last, empty_lines=[])
        return alias.with_changes(comma=own.with_changes(whitespace_after=space))
    return alias.with_changes(comma=end)


def plain(space: cst.BaseParenthesizableWhitespace) -> cst.BaseParenthesizableWhitespace:
    """Whitespace without its comment."""
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
