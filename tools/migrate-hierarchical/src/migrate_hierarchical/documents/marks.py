"""Reports what was decided about one source, and says which marks are written above its statements, and which go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import libcst as cst

from ..analysis.binding import ImportStatement
from ..analysis.placement import line_of
from ..analysis.source_index import SourceIndex
from ..catalogue.reasons import REASONS
from ..catalogue.reasons_up import UP_REASONS
from ..changes import Changes, Edit
from ..diagnostic import Diagnostic
from ..removed_api import TODO
from ..settings import UPSTREAM, Settings, group_of
from ..silence import Silence
from .result import SourceReport


class Marks:
    """The report on one source, and the marks above its statements."""

    def __init__(
        self,
        source: bytes,
        settings: Settings,
        silence: Silence,
        changes: Changes,
        imports: dict[ImportStatement, Edit],
    ) -> None:
        self.settings, self.silence, self.changes, self.imports = settings, silence, changes, imports
        self.module, self.index = changes.context.module, changes.context.source
        self.is_upstream = settings.group == UPSTREAM
        self.reasons = UP_REASONS if self.is_upstream else REASONS
        self.lines = source.splitlines()
        self.result = SourceReport()
        self.nodes: list[tuple[Diagnostic, cst.CSTNode]] = []  # the node of each diagnostic
        self.above: dict[cst.CSTNode, list[str]] = {}  # statement -> marks to write above it
        self.valid: set[cst.CSTNode] = set()  # marks of earlier runs that are still true, or are dealt with

    def note(self, entries: list[Diagnostic], entry: Diagnostic, node: cst.CSTNode) -> None:
        entries.append(entry)
        self.nodes.append((entry, node))

    def note_rewritten(self) -> None:
        for node, rewritten in self.changes.rewritten:
            self.note(self.result.rewritten, replace(rewritten, line=self.index.lines[node]), node)
        for edited in () if self.is_upstream else self.imports:
            self.note(self.result.rewritten, Diagnostic("HIER009", line=self.index.lines[edited]), edited)

    def note_left(self) -> None:
        """Report each use that is left once, with a mark above its statement."""
        known: set[tuple[int, str, str, str]] = set()
        for node, left in self.changes.todos:
            entry = replace(left, line=self.index.line_of(node))
            statement = line_of(node, self.index.parents)
            earlier = marks_above(statement, self.module, self.index, left.rule)
            self.valid.update(earlier)
            if not self.settings.wants(entry.rule) or self.silence.covers(entry.line, entry.rule):
                continue
            key = (entry.line, entry.rule, entry.detail, entry.text)
            if key in known:
                continue
            known.add(key)
            self.note(self.result.left, entry, node)
            if not earlier and self.is_marked(node, left):
                above = self.lines[self.index.line_of(statement) - 1]
                text = mark_text(left, self.reasons, above, self.settings)
                if text not in self.above.get(statement, []):
                    self.above.setdefault(statement, []).append(text)

    def is_marked(self, node: cst.CSTNode, left: Diagnostic) -> bool:
        """Whether a use that is left gets a mark."""
        if left.rule == "HIER115":
            return False  # the reason disappears when the other file is migrated
        if node in self.index.magics:
            return False  # no line may be added above the first line of a cell
        # otherwise the rules that are not selected resolve this use, and the mark would remain
        return self.changes.whole is None or (node, left.rule) in self.changes.whole.left_nodes

    def stale(self) -> set[cst.CSTNode]:
        """The outdated marks above changed imports: the file that took the name from here no longer does."""
        for edited, edit in self.imports.items():
            if not edit:
                self.valid.update(marks_above(self.index.parents[edited], self.module, self.index))
        held = set(self.valid)
        for node, left in self.changes.whole.todos if self.changes.whole is not None else ():
            held.update(marks_above(line_of(node, self.index.parents), self.module, self.index, left.rule))
        found = {
            mark
            for each in self.imports
            for mark in marks_above(self.index.parents[each], self.module, self.index)
        } - held
        return {mark for mark in found if can_be_stale(self.index.marks[mark][1], self.settings.group)}

    def note_earlier(self, stale: set[cst.CSTNode]) -> None:
        """Report the marks of earlier runs at which nothing was found now."""
        for mark, (number, reason) in self.index.marks.items():
            if mark not in self.valid and mark not in stale and reason in self.reasons:
                self.note(self.result.left, Diagnostic(reason, "marked by an earlier run", line=number), mark)


def can_be_stale(reason: str, group: str) -> bool:
    """Whether a mark on an import may be outdated: one of this group, or on a module that the group UP knows."""
    return group_of(reason) == group or (group == UPSTREAM and reason == "HIER114")


def mark_text(left: Diagnostic, reasons: Mapping[str, str], line: bytes, settings: Settings) -> str:
    """The mark for a statement that begins on a line, shortened if the project's line length requires it."""
    reason = left.rule
    text = f"{TODO}{reason} {left.text or reasons[reason]}"
    if not settings.line_length:
        return text
    room = settings.line_length - (len(line) - len(line.lstrip()))
    ways = (text, text.rpartition(": ")[0], f"{TODO}{reason}")
    return next((way for way in ways if reason in way and len(way) <= room), ways[-1])


def marks_above(
    line: cst.CSTNode, module: cst.Module, index: SourceIndex, reason: str | None = None
) -> list[cst.CSTNode]:
    """The marks for a reason, or for any, that an earlier run put above the statement."""
    above = list(getattr(line, "leading_lines", ()))
    if module.body and module.body[0] is line:
        above += module.header
    return [each for each in above if each in index.marks and reason in (None, index.marks[each][1])]
