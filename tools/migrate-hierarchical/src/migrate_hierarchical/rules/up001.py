"""UP001: imports from modules that are gone; writes the new names of UP002 too."""

from __future__ import annotations

import libcst as cst

from ..analysis.binding import ImportStatement, dotted, import_name, is_import, local_name
from ..analysis.failures import expects_failure
from ..analysis.uses import Use, api_path
from ..changes import Changes, Edit, bare
from ..context import Context
from ..edit.import_names import add, closed, names_of, replaced, without_duplicates
from ..removed_api import PACKAGE, REMOVED_MODULE
from ..upstream.old_api import AT_THE_ROOT, NAMES, RENAMED, WITHOUT_SUCCESSOR, is_old_module
from .up002 import Renames

RULE = "UP001"


def through_the_package(context: Context, changes: Changes, use: Use) -> None:
    """`package.module.name` becomes `package.name`."""
    if (
        isinstance(use.node, cst.Attribute)
        and use.base is not None
        and use.node.value is not use.base
        and use.name in AT_THE_ROOT
        and use.node not in changes.renames
        and context.wants(RULE, use.node)
    ):
        changes.renames[use.node] = cst.Attribute(bare(use.base), cst.Name(use.name))
        changes.note(use.node, RULE)


class ImportEditor:
    """The new import statements of one file."""

    def __init__(self, context: Context, changes: Changes, renames: Renames) -> None:
        self.context, self.changes, self.renames = context, changes, renames
        self.source = context.source

    def edits(self) -> dict[ImportStatement, Edit]:
        result: dict[ImportStatement, Edit] = {}
        for statement in self.source.imports:
            if expects_failure(statement, self.source.parents, of_name=True):
                continue  # a test that passes only if the import fails
            if is_import(statement):
                new = self.edit_import(statement)
            elif statement.relative or api_path(self.source.absolute(statement)) is None:
                new = self.beside(statement)
            else:
                new = self.edit_import_from(statement)
            if new is not None:
                result[statement] = new
        return result

    def beside(self, statement: cst.ImportFrom) -> Edit | None:
        """An import from a module of the user's own, and one from the package for what new code needs."""
        aliases: list[cst.ImportAlias] = []
        for name, local in self.changes.needs.get(statement, {}).items():
            add(aliases, name, local)
        return [statement, cst.ImportFrom(cst.Name(PACKAGE), aliases)] if aliases else None

    # ---- import package.module

    def edit_import(self, statement: cst.Import) -> Edit | None:
        aliases, changed = [], False
        for alias in statement.names:
            below = api_path(dotted(alias.name)) or ""
            if below and is_old_module(below) and not (dotted(alias.name) or "").startswith("src."):
                if not self.all_known(alias, below):
                    self.changes.leave(statement, "UP101", "", f"the module {below} is gone")
                elif self.context.wants(RULE, alias):
                    alias, changed = alias.with_changes(name=cst.Name(PACKAGE)), True
            aliases.append(alias)
        if not changed:
            return None
        self.changes.note(statement, RULE)
        unique: list[cst.ImportAlias] = []
        for alias in aliases:
            if names_of(alias) not in map(names_of, unique):
                unique.append(alias)
        unique[-1] = unique[-1].with_changes(comma=cst.MaybeSentinel.DEFAULT)
        return [statement.with_changes(names=unique)]

    def all_known(self, alias: cst.ImportAlias, below: str) -> bool:
        """Whether everything that the file reads of a module can be read from the package."""
        for binding in self.context.import_bindings():
            if binding.alias is not alias:
                continue
            name = local_name(alias).split(".")[0]
            for node in self.source.names:
                if node.value != name or binding not in self.source.scope_of[node].lookup(name):
                    continue
                if alias.asname is not None:
                    use = self.use_of(node)
                    if use is None or use.name not in AT_THE_ROOT:
                        return False
                elif self.path_of(node).startswith(f"{PACKAGE}.{below}") and (
                    (use := self.use_of(node)) is None or use.name not in AT_THE_ROOT
                ):
                    return False
        return True

    def use_of(self, node: cst.Name) -> Use | None:
        return next((use for use in self.renames.names if use.root is node), None)

    def path_of(self, node: cst.Name) -> str:
        """The longest chain of attributes that begins with a name."""
        current: cst.CSTNode = node
        while True:
            parent = self.source.parents.get(current)
            if not isinstance(parent, cst.Attribute) or parent.value is not current:
                return dotted(current) or ""
            current = parent

    # ---- from package.module import name

    def edit_import_from(self, statement: cst.ImportFrom) -> Edit | None:
        below = api_path(self.source.absolute(statement))
        if below is None or below.split(".")[-1] == REMOVED_MODULE:
            return None
        is_old = bool(below) and is_old_module(below)
        if below and not is_old:
            return None
        if isinstance(statement.names, cst.ImportStar):
            if is_old:
                self.changes.leave(statement, "UP107", f"* of {below}")
            return self.with_needed(statement, [], [])
        moves = is_old and self.context.wants(RULE, statement)
        here: list[cst.ImportAlias] = []
        root: list[cst.ImportAlias] = []
        gone: list[str] = []
        for alias in statement.names:
            name = import_name(alias)
            known = name in AT_THE_ROOT if is_old else not is_old_module(name) or name in NAMES
            known = known and name not in WITHOUT_SUCCESSOR
            if not known:
                gone.append(name)
            new = alias
            if alias in self.renames.imports:
                new = self.renamed(alias, RENAMED[name])
            (root if moves and known else here).append(new)
        if gone:
            self.mark(statement, gone)
        if moves and root:
            self.changes.note(statement, RULE)
        return self.with_needed(statement, here, root)

    def mark(self, statement: cst.ImportFrom, gone: list[str]) -> None:
        known = [name for name in gone if name in WITHOUT_SUCCESSOR]
        if len(gone) == 1 and known:
            text = f"{gone[0]} is gone: {WITHOUT_SUCCESSOR[gone[0]]}"
        else:
            text = f"{', '.join(gone)} {'is' if len(gone) == 1 else 'are'} gone"
        self.changes.leave(statement, "UP101", "", text)

    def renamed(self, alias: cst.ImportAlias, new: str) -> cst.ImportAlias:
        """`Old` -> `New` or `New as Old`, `Old as X` -> `New as X`."""
        if alias.asname is not None:
            return alias.with_changes(name=cst.Name(new))
        return replaced(alias, new, import_name(alias) if self.renames.keeps[alias] else new)

    def with_needed(
        self, statement: cst.ImportFrom, here: list[cst.ImportAlias], root: list[cst.ImportAlias]
    ) -> Edit | None:
        """The statements for the names that stay and those that come from the package itself."""
        needed = self.changes.needs.get(statement, {})
        into = root if root or api_path(self.source.absolute(statement)) else here
        have = set(map(names_of, (*here, *root)))
        for name, local in needed.items():
            if (name, local) not in have:
                add(into, name, local)
        if isinstance(statement.names, cst.ImportStar):
            new = [*here, *root]
            return [statement, cst.ImportFrom(cst.Name(PACKAGE), new)] if new else None
        if not root and list(here) == list(statement.names):
            return None
        result: Edit = []
        if here:
            result.append(statement.with_changes(names=closed(statement, without_duplicates(here))))
        if root:
            names = closed(statement, without_duplicates(root))
            result.append(statement.with_changes(module=cst.Name(PACKAGE), names=names))
        return result
