"""Applies the changes in one pass and touches nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import libcst as cst

from ..analysis.binding import ImportStatement, is_import, is_import_from
from ..analysis.comments import comments_in
from ..analysis.placement import line_of
from ..changes import Changes, Edit
from ..context import Context
from ..silence import NOQA


class Editor(cst.CSTTransformer):
    def __init__(
        self,
        context: Context,
        changes: Changes,
        imports: dict[ImportStatement, Edit],
        todos: dict[cst.CSTNode, list[str]],
        stale: set[cst.CSTNode],
    ) -> None:
        super().__init__()
        self.context, self.changes, self.imports = context, changes, imports
        self.parents = context.source.parents
        self.above = todos  # statement -> comments to put above it
        self.stale = stale  # outdated marks above imports, to be removed
        self.emptied: set[cst.CSTNode] = set()  # updated lines that have become empty
        self.concerned: set[cst.CSTNode] = set()  # nodes with a change at or below them
        self.now: dict[cst.CSTNode, cst.CSTNode] = {}  # old node -> the node that replaced it
        for changed in (changes.replacements, changes.renames, changes.strings, imports, todos):
            for node in changed:
                self.concern(node)

    def concern(self, node: cst.CSTNode) -> None:
        current: cst.CSTNode | None = node
        while current is not None and current not in self.concerned:
            self.concerned.add(current)
            current = self.parents.get(current)

    def on_visit(self, node: cst.CSTNode) -> bool:
        return node in self.concerned

    def on_leave(self, original_node: Any, updated_node: Any) -> Any:
        if original_node not in self.concerned:
            return original_node
        new = self.changed(original_node, updated_node)
        if isinstance(new, cst.CSTNode):
            self.now[original_node] = new
        return new

    def changed(self, node: Any, updated_node: Any) -> Any:
        new = updated_node
        rewrite = self.changes.replacements.get(node)
        if rewrite is not None:
            new = rewrite.make(updated_node)
            if "#" not in self.context.module.code_for_node(updated_node):
                return new  # cheaper than looking for comments in the tree
            lost = Counter(comments_in(updated_node)) - Counter(comments_in(new))
            for comment in comments_in(updated_node):
                if lost[comment] > 0:
                    lost[comment] -= 1
                    line = line_of(node, self.parents)
                    self.above.setdefault(line, []).append(comment)
            return new
        if node in self.changes.renames:
            return self.changes.renames[node]
        if node in self.changes.strings:
            return updated_node.with_changes(value=self.changes.strings[node])
        if isinstance(node, cst.SimpleStatementLine):
            return self.line(node, updated_node)
        if isinstance(node, cst.SimpleStatementSuite):
            return self.suite(node, updated_node)
        if isinstance(node, cst.Module) and self.stale:
            updated_node = new = new.with_changes(header=self.without_stale(new.header))
        if isinstance(node, cst.IndentedBlock | cst.Module) and self.emptied:
            new = self.without_emptied(updated_node)
        if node in self.above:
            new = self.with_comments(node, new)
        return new

    def with_comments(self, node: cst.CSTNode, updated: Any) -> Any:
        lines = [cst.EmptyLine(comment=cst.Comment(text)) for text in self.above[node]]
        return updated.with_changes(leading_lines=[*updated.leading_lines, *lines])

    def line(
        self, node: cst.SimpleStatementLine, updated: cst.SimpleStatementLine
    ) -> cst.CSTNode | cst.FlattenSentinel[cst.SimpleStatementLine]:
        """A line of small statements, in which imports may change, be split or be removed."""
        if self.stale:
            updated = updated.with_changes(leading_lines=self.without_stale(updated.leading_lines))
        if node in self.above:
            updated = self.with_comments(node, updated)
        if not any(small in self.imports for small in node.body):
            return updated
        body = self.small_statements(node, updated)
        if not body:
            # a placeholder, because libcst would drop an empty line together with the comments above it
            above = [each for each in updated.leading_lines if each not in self.context.source.marks]
            gone = updated.with_changes(body=[cst.Pass()], leading_lines=above)  # without its marks
            self.emptied.add(gone)
            return gone
        if len(node.body) == 1:
            first = updated.with_changes(body=body[:1])
            if len(body) == 1:
                return first
            # its comment belongs to the star import
            if isinstance(getattr(node.body[0], "names", None), cst.ImportStar):
                return cst.FlattenSentinel([first, *(cst.SimpleStatementLine([part]) for part in body[1:])])
            end = updated.trailing_whitespace
            silences = end.comment is not None and NOQA.search(end.comment.value) is not None
            between = end if silences else cst.TrailingWhitespace()
            last = len(body) - 1
            more = [
                cst.SimpleStatementLine([part], trailing_whitespace=end if i == last else between)
                for i, part in enumerate(body[1:], 1)
            ]
            return cst.FlattenSentinel([first.with_changes(trailing_whitespace=between), *more])
        return updated.with_changes(body=self.joined(body))

    def without_stale(self, lines: Sequence[cst.EmptyLine]) -> list[cst.EmptyLine]:
        return [each for each in lines if each not in self.stale]

    def suite(self, node: cst.SimpleStatementSuite, updated: cst.SimpleStatementSuite) -> cst.CSTNode:
        """A line of small statements after a colon, which must stay a single line."""
        if not any(small in self.imports for small in node.body):
            return updated
        return updated.with_changes(body=self.joined(self.small_statements(node, updated)) or [cst.Pass()])

    def small_statements(
        self,
        node: cst.SimpleStatementLine | cst.SimpleStatementSuite,
        updated: cst.SimpleStatementLine | cst.SimpleStatementSuite,
    ) -> list[cst.BaseSmallStatement]:
        """The statements of a line with its imports edited, without semicolons."""
        body: list[cst.BaseSmallStatement] = []
        for small, new in zip(node.body, updated.body):
            edit: list[Any] | None = None
            if is_import(small) or is_import_from(small):
                edit = self.imports.get(small)
            parts = [new] if edit is None else edit
            first = len(body)
            body += [part.with_changes(semicolon=cst.MaybeSentinel.DEFAULT) for part in parts]
            if first < len(body):
                self.now[small] = body[first]
        return body

    def joined(self, body: list[cst.BaseSmallStatement]) -> list[cst.BaseSmallStatement]:
        """Small statements on one line."""
        semicolon = cst.Semicolon(whitespace_after=cst.SimpleWhitespace(" "))
        for i, part in enumerate(body[:-1]):
            body[i] = self.now[part] = part.with_changes(semicolon=semicolon)
        return body

    def without_emptied(self, block: cst.IndentedBlock | cst.Module) -> cst.CSTNode:
        """Drop lines that have become empty; their comments stay, and a block without statements gets `pass`."""
        body: list[Any] = []
        carried: list[cst.EmptyLine] = []
        line: Any
        header: list[cst.EmptyLine] = []
        if isinstance(block, cst.Module):
            header = list(block.header)
            if block.body and block.body[0] in self.emptied:
                header = [each for each in header if each not in self.context.source.marks]
        for line in block.body:
            if line in self.emptied:
                self.emptied.discard(line)
                carried += line.leading_lines
            elif carried:
                own = list(line.leading_lines)
                if own and own[0].comment is None and not any(each.comment for each in carried):
                    carried = []
                body.append(line.with_changes(leading_lines=[*carried, *own]))
                carried = []
            else:
                body.append(line)
        if isinstance(block, cst.Module):
            comments = [each for each in carried if each.comment]
            return block.with_changes(body=body, header=header, footer=[*comments, *block.footer])
        if not body:
            body = [cst.SimpleStatementLine([cst.Pass()], leading_lines=carried)]
            carried = []
        return block.with_changes(
            body=body, footer=[*(each for each in carried if each.comment), *block.footer]
        )
