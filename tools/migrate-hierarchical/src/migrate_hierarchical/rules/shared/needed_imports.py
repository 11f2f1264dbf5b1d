"""Which imports are needed after the changes: by the file itself, by other files, or by the block of a page."""

from __future__ import annotations

import libcst as cst

from ...analysis.binding import (
    Binding,
    ImportStatement,
    dotted,
    import_name,
    is_import,
    is_import_from,
    local_name,
)
from ...analysis.failures import is_tried
from ...changes import Changes
from ...context import Context
from ...removed_api import PIECE


class NeededImports:
    def __init__(self, context: Context, changes: Changes) -> None:
        self.context, self.changes, self.source = context, changes, context.source
        self.bindings: dict[cst.ImportAlias, Binding] = {}
        for binding in context.import_bindings():
            if binding.alias is not None:
                self.bindings[binding.alias] = binding
        self.given: dict[str, set[str]] = {}  # block of a page -> names that its imports bind
        self.read = self.still_read()
        self.rewritten = {
            binding
            for node in changes.used
            if node in self.source.scope_of
            for binding in self.source.scope_of[node].lookup(node.value)
        }

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

    def must_stay(self, statement: cst.ImportFrom, successor: str) -> bool:
        """Whether an import must stay even without its names: it tests for the package, or a block has nothing else.

        It then imports a successor.
        """
        if is_tried(statement, self.source.parents):
            return True
        group = self.source.group(statement)
        if not group or not self.has_only_imports(statement):
            return False
        given = self.given.setdefault(group, set())
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
