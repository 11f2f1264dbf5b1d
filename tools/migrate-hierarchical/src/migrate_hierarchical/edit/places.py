"""Finds the new line numbers in a rewritten module."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from ..analysis.source_index import SourceIndex

Top = cst.EmptyLine | cst.SimpleStatementLine | cst.BaseCompoundStatement


class Places:
    """The new lines of nodes of the old module.

    Unchanged statements move as a whole, the others are walked again. known: the code of statements. now: the nodes
    that replaced old ones.
    """

    def __init__(
        self,
        source: SourceIndex,
        old: cst.Module,
        new: cst.Module,
        known: dict[cst.CSTNode, str],
        now: dict[cst.CSTNode, cst.CSTNode],
    ) -> None:
        self.source, self.now = source, now
        self.moved: dict[cst.CSTNode, int] = {}  # unchanged statement -> lines by which it moved down
        self.lines: dict[cst.CSTNode, int] = {}  # of the nodes in other statements
        begins = dict(begins_of(old, known))
        for statement, line in begins_of(new, known):
            if statement in begins:
                self.moved[statement] = line - begins[statement]
            elif isinstance(statement, cst.EmptyLine):
                self.lines[statement] = line
            else:
                again = SourceIndex(source.package, source.path)
                again.line = line
                again.visit(cst.Module([statement]))
                self.lines.update(again.lines)
                self.lines.update((mark, number) for mark, (number, _) in again.marks.items())

    def line(self, node: cst.CSTNode) -> int | None:
        """The line on which a node begins now; None if it is gone."""
        chain = [node]
        while chain[-1] in self.source.parents and not isinstance(self.source.parents[chain[-1]], cst.Module):
            chain.append(self.source.parents[chain[-1]])
        if chain[-1] in self.moved:
            mark = self.source.marks.get(node)
            return (mark[0] if mark else self.source.line_of(node)) + self.moved[chain[-1]]
        for each in chain:
            while each not in self.lines and self.now.get(each, each) is not each:
                each = self.now[each]
            if each in self.lines:
                return self.lines[each]
        return None


def begins_of(module: cst.Module, known: dict[cst.CSTNode, str]) -> Iterator[tuple[Top, int]]:
    """The statements and the empty lines around them, with the lines on which they begin."""
    line = 1
    for each in (*module.header, *module.body, *module.footer):
        yield each, line
        code = known[each]
        line += code.count("\n") if "\n" in code else code.count("\r")
