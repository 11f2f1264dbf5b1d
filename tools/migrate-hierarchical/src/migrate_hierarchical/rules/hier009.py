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
    local_name,
)
from ..analysis.comments import is_meant_for_others
from ..analysis.failures import expects_failure, is_tried
from ..analysis.uses import api_path
from ..catalogue.reasons import AWAITED, EXPORTED, TAKEN
from ..changes import Changes, Edit
from ..context import Context
from ..edit.import_names import add, closed, last_before, names_of, renamed, replaced, without_duplicates
from ..removed_api import (
    FACTORY,
    GET_PRESET,
    KEPT_NAMES,
    NEW_TYPES,
    PACKAGE,
    PATTERN,
    REMOVED_CLASS,
    REMOVED_CONFIG,
    REMOVED_GET_PRESETS,
    REMOVED_MODULE,
    REMOVED_NAMES,
    is_gone,
)
from .shared.needed_imports import NeededImports

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
    """The new import statements of one file."""

    def __init__(self, context: Context, changes: Changes) -> None:
        self.context, self.changes, self.source = context, changes, context.source
        self.imports = NeededImports(context, changes)
        self.bindings = self.imports.bindings
        # if some rules are switched off: unused imports that other files take; a mark would keep them later
        self.waiting: dict[cst.ImportAlias, Binding] = {}

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

    # ---- import package.module as x

    def edit_import(self, statement: cst.Import) -> Edit | None:
        changed, aliases = False, []
        for alias in statement.names:
            path = dotted(alias.name) or ""
            below = api_path(path)
            wanted = self.context.wants(RULE, alias) and not self.imports.is_passed(self.bindings[alias])
            wanted = wanted or statement in self.changes.to_root
            if below and is_gone(below) and wanted:
                changed = True
                root = cst.Name(PACKAGE)
                if alias.asname is None and path.startswith("src."):
                    root = cst.Attribute(cst.Name("src"), cst.Name(PACKAGE))  # type: ignore[assignment]
                unread = alias.asname is not None and self.bindings[alias] not in self.imports.read
                unread = unread and not self.imports.is_wanted(alias, self.bindings[alias])
                unread = unread and not is_tried(statement, self.source.parents)
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
            add(aliases, name, local)
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
            rewritten = binding in self.imports.rewritten
            wanted = self.context.wants(RULE, alias)
            finished = (imported == GET_PRESET and rewritten) or (is_module and (rewritten or wanted))
            if is_module and finished:
                self.check_members(alias)
            if binding is None or not (finished or imported in REMOVED_NAMES | {REMOVED_MODULE}):
                aliases.append(alias)
                continue
            what = self.fate(statement, alias, binding, imported)
            if what == "renamed":
                aliases.append(renamed(alias, imported, NEW_TYPES[imported]))
                if needed.get(NEW_TYPES[imported]) == local_name(aliases[-1]):
                    del needed[NEW_TYPES[imported]]
            elif what == "kept":
                aliases.append(alias)
                if is_module and not self.imports.is_passed(binding):
                    self.changes.leave(alias, "HIER114", imported)
            else:
                self.replace(statement, alias, imported, aliases, needed)
        have = {(dotted(a.name), dotted(a.asname.name) if a.asname else None) for a in aliases}
        for name, local in needed.items():
            if (name, None if name == local else local) not in have:
                add(aliases, name, local)
        aliases = without_duplicates(aliases)
        return self.statements(statement, aliases, below)

    def replace(
        self,
        statement: cst.ImportFrom,
        alias: cst.ImportAlias,
        imported: str,
        aliases: list[cst.ImportAlias],
        needed: dict[str, str],
    ) -> None:
        """Put a needed name in the place of a removed one, or a successor where the statement has to stay."""
        assert not isinstance(statement.names, cst.ImportStar)
        successors, is_last = SUCCESSORS.get(imported, ANY), alias is statement.names[-1]
        found = next((name for name in successors if name in needed), None)
        if found is not None:
            aliases.append(replaced(alias, found, needed.pop(found)))
        elif is_last and aliases:
            aliases[-1] = last_before(aliases[-1], alias)
        elif is_last and not needed and self.imports.must_stay(statement, successors[0]):
            aliases.append(replaced(alias, successors[0], successors[0]))

    def fate(
        self, statement: cst.ImportFrom, alias: cst.ImportAlias, binding: Binding, imported: str
    ) -> Literal["renamed", "kept", "gone"]:
        """Decide what happens to the import of a removed name."""
        wants, detail, text = self.context.wants, "", ""
        in_use = binding in self.imports.read
        rivals = [each for each in binding.scope.bindings.get(local_name(alias), []) if each.kind != "import"]
        if not in_use and rivals:  # `except ImportError: X = None`: other files may test it
            self.changes.leave(alias, "HIER107", f"{local_name(alias)} is bound in several ways")
            return "kept"
        awaited = self.source.facts.awaited.get(local_name(alias)) if binding.scope.kind == "module" else None
        if not in_use and awaited is not None:
            self.changes.leave(alias, "HIER115", f"{awaited} imports {local_name(alias)} from here", AWAITED)
            return "kept"
        if not in_use and self.imports.is_wanted(alias, binding):
            detail, text = self.source.facts.taken(local_name(alias)), TAKEN
            if binding in self.imports.rewritten and is_meant_for_others(statement, alias, self.source):
                self.waiting[alias] = binding
        elif self.imports.is_re_export(alias, binding) or (
            not in_use
            and binding not in self.imports.rewritten
            and is_meant_for_others(statement, alias, self.source)
        ):
            if imported in NEW_TYPES and not in_use:
                return "renamed" if wants("HIER008", alias) else "kept"
            detail = "" if in_use or imported == GET_PRESET else f"{imported} is exported"
            text = EXPORTED
        elif not in_use:
            return "gone" if binding in self.imports.rewritten or wants(RULE, alias) else "kept"
        is_quiet = local_name(alias) in self.source.facts.quiet and not self.imports.is_re_export(
            alias, binding
        )
        if detail and self.context.settings.wants_all and not is_quiet:
            self.changes.leave(alias, "HIER109", detail, text)
        return "kept"

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
            result.append(statement.with_changes(names=closed(statement, here)))
        if root:
            result.append(self.rooted(statement, closed(statement, root)))
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
