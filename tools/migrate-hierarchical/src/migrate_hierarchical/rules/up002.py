"""UP002: classes that have another name now."""

from __future__ import annotations

import libcst as cst

from ..analysis.binding import WORD, Binding, import_name, is_import_from, local_name
from ..analysis.comments import is_meant_for_others
from ..analysis.failures import expects_failure
from ..analysis.roles import TYPE
from ..analysis.uses import Use, api_path
from ..changes import Changes, bare
from ..context import Context
from ..upstream.names import OldNames
from ..upstream.old_api import RENAMED, WITHOUT_SUCCESSOR

RULE = "UP002"


class Renames:
    """Which imports and uses get the new name, and which keep the old one as `New as Old`."""

    def __init__(self, context: Context, changes: Changes, names: OldNames) -> None:
        self.context, self.changes, self.names, self.source = context, changes, names, context.source
        self.imports: dict[cst.ImportAlias, Binding] = {}  # of renamed classes
        self.keeps: dict[cst.ImportAlias, bool] = {}  # whether the file goes on to use the old name
        self.marked: set[cst.ImportAlias] = set()  # of names without a successor
        for binding in context.import_bindings():
            alias = binding.alias
            if alias is None or not is_import_from(binding.statement) or not self.is_ours(binding):
                continue
            if import_name(alias) in RENAMED and context.wants(RULE, alias):
                self.imports[alias] = binding
            elif import_name(alias) in WITHOUT_SUCCESSOR:
                self.marked.add(alias)
        for alias, binding in self.imports.items():
            self.keeps[alias] = self.keeps_name(alias, binding)

    def is_ours(self, binding: Binding) -> bool:
        """Whether an import from the package itself, by its full name."""
        statement = binding.statement
        return (
            is_import_from(statement)
            and not statement.relative
            and api_path(self.source.absolute(statement)) is not None
            and not expects_failure(statement, self.source.parents, of_name=True)
        )

    def keeps_name(self, alias: cst.ImportAlias, binding: Binding) -> bool:
        """Whether the old name stays in use in the file, or for others that import it from here."""
        old, new = local_name(alias), RENAMED[import_name(alias)]
        if old != import_name(alias) or alias.asname is not None:
            return True
        if binding.scope.kind == "module" and (
            old in self.source.facts.shared or old in self.context.exported or self.context.is_init
        ):
            return True
        nodes = [
            node
            for node in self.source.names
            if node.value == old and binding in self.source.scope_of[node].lookup(old)
        ]
        uses = [self.names.by_node.get(node) for node in nodes]
        if not nodes:
            return not self.source.groups or is_meant_for_others(
                cst.ensure_type(binding.statement, cst.ImportFrom), alias, self.source
            )
        if not all(use is not None and use.agrees for use in uses):
            return True
        if any(not self.context.wants(RULE, node) for node in nodes):
            return True
        if any(each.kind != "import" for each in binding.scope.bindings.get(old, [])):
            return True
        taken = [
            each
            for node in nodes
            for each in self.source.scope_of[node].lookup(new)
            if not self.context.is_name(each, new)
        ]
        return bool(taken) or old in self.written_elsewhere

    @property
    def written_elsewhere(self) -> set[str]:
        """The words of annotations in strings and comments, and of magics."""
        words: set[str] = set()
        for node in self.source.strings:
            if self.context.roles.of(node) == TYPE:
                words.update(WORD.findall(node.value))
        for _, text, _ in self.source.type_comments:
            words.update(WORD.findall(text))
        for found, _ in self.source.magics.values():
            words.update(found)
        return words

    def is_marked_at_import(self, use: Use) -> bool:
        """Whether a mark above its import is enough for a use."""
        return any(binding.alias in self.marked for binding in use.bindings)

    def rename(self, use: Use) -> bool:
        """Write the new name; returns whether the use refers to the new class now."""
        if use.name not in RENAMED or not self.context.wants(RULE, use.node):
            return False
        new = RENAMED[use.name]
        if isinstance(use.node, cst.Attribute):
            if use.base is None:
                return False
            self.changes.renames[use.node] = (
                use.node.with_changes(attr=cst.Name(new))
                if use.node.value is use.base
                else cst.Attribute(bare(use.base), cst.Name(new))
            )
            self.changes.note(use.node, RULE)
            return True
        if any(binding.statement in self.source.again for binding in use.bindings):
            return True  # from a module of the project, which keeps the name
        aliases = [binding.alias for binding in use.bindings if binding.alias in self.imports]
        if not aliases and not use.is_star:
            return False
        if not any(self.keeps[alias] for alias in aliases if alias is not None):
            self.changes.renames[use.node] = use.node.with_changes(value=new)
            self.changes.note(use.node, RULE)
        return True
