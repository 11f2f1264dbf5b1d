"""Writes the report of a run in one of four formats."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import __version__
from .diagnostic import Diagnostic
from .documents.result import Result
from .settings import HIERARCHICAL_GROUP, group_of, is_reason

if TYPE_CHECKING:
    from .density import Comparison

EXTRA_REASONS = {"HIER190": "cannot be read, parsed or written"}


@dataclass
class Run:
    """All results of a run; `wrote` says whether changes were written."""

    results: list[Result] = field(default_factory=list)
    scanned: int = 0
    errors: list[tuple[str, str]] = field(default_factory=list)  # of paths without a result
    wrote: bool = True
    seq_len: int = 16_384
    notes: list[tuple[str, str]] = field(default_factory=list)  # folders that were left unchanged, and why
    groups: tuple[str, ...] = (HIERARCHICAL_GROUP,)  # of the rules that ran

    @property
    def changed(self) -> list[Result]:
        return [result for result in self.results if result.new is not None]

    @property
    def problems(self) -> list[tuple[str, str]]:
        """Files that could not be read, parsed or written."""
        return [*self.errors, *((result.path, result.error) for result in self.results if result.error)]

    def line(self, entry: Diagnostic) -> int:
        """The line on which a use is now."""
        return entry.new_line if self.wrote and entry.new_line is not None else entry.line

    def left(self) -> Iterator[tuple[str, Diagnostic]]:
        for result in self.results:
            for entry in result.left:
                yield result.path, entry

    def rewritten(self) -> Iterator[tuple[str, Diagnostic]]:
        for result in self.results:
            for entry in result.rewritten:
                yield result.path, entry

    def patterns(self) -> dict[Comparison, list[tuple[str, int]]]:
        """The paths and lines of every pattern that is written, by comparison with what it replaces."""
        places: dict[Comparison, list[tuple[str, int]]] = {}
        for path, entry in self.rewritten():
            for pattern in entry.patterns:
                places.setdefault(pattern, []).append((path, self.line(entry)))
        return places

    @property
    def status(self) -> int:
        """0: nothing left to do. 1: there are changes to write. 2: something needs a person."""
        if self.problems or any(True for _ in self.left()):
            return 2
        return 1 if self.changed and not self.wrote else 0


def summaries() -> dict[str, str]:
    """One line for every id."""
    from .catalogue import REASONS, RULES, UP_REASONS, UP_RULES

    return {
        **{rule.id: rule.summary for rule in RULES},
        **REASONS,
        **EXTRA_REASONS,
        **{rule.id: rule.summary for rule in UP_RULES},
        **UP_REASONS,
    }


def message(entry: Diagnostic, lines: dict[str, str]) -> str:
    detail = f" ({entry.detail})" if entry.detail else ""
    return f"{entry.text or lines.get(entry.rule, '')}{detail}"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def shown(path: str) -> str:
    """A path on one line."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in path)


def reference(path: str) -> str:
    """A path with slashes, relative to the folder of the run if it lies inside, as services expect it."""
    relative = os.path.relpath(path)
    return (os.path.abspath(path) if relative.startswith(os.pardir) else relative).replace(os.sep, "/")


def uri(path: str) -> str:
    """A path as a URI."""
    from urllib.parse import quote  # imported late: it takes longer than searching a clean tree

    place = reference(path)
    return ("file://" if place.startswith("/") else "") + quote(os.fsencode(place))


def as_text(run: Run) -> str:
    """The report for people."""
    verb = "rewrote" if run.wrote else "would rewrite"
    out = [f"{verb} {shown(result.path)}" for result in run.changed]
    lines = summaries() if run.results else {}
    for path, entry in run.rewritten():
        if entry.detail:
            out.append(f"{shown(path)}:{run.line(entry)}: {entry.rule} note: {entry.detail}")
    out += [
        f"{shown(path)}:{run.line(entry)}: {entry.rule} {message(entry, lines)}" for path, entry in run.left()
    ]
    out += [f"{shown(path)}: note: {text}" for path, text in run.notes]
    out += [f"{shown(path)}: error: {error}" for path, error in run.problems]
    patterns = run.patterns()
    if patterns:
        out.append(f"blocks kept at {run.seq_len:,} tokens, before -> now:")
    for pattern, places in patterns.items():
        path, line = places[0]
        others = f" and {plural(len(places) - 1, 'other place')}" if len(places) > 1 else ""
        out.append(f"  {pattern.summary(run.seq_len)}")
        out.append(f"    {shown(path)}:{line}{others}: {pattern.written}")
        out += [f"    {text}" for text in pattern.lines(run.seq_len)]
    rules = Counter(entry.rule for _, entry in run.rewritten())
    out += [f"{rule} {plural(count, 'use')}: {lines[rule]}" for rule, count in sorted(rules.items())]
    return "\n".join([*out, summary(run)]) + "\n"


def summary(run: Run) -> str:
    """A summary of the run in one line."""
    n_left = sum(1 for _ in run.left())
    text = f"{plural(run.scanned, 'file')} scanned, {len(run.changed)} {'changed' if run.wrote else 'to change'}, "
    text += f"{n_left} left to a person"
    return text + (f", {plural(len(run.problems), 'error')}" if run.problems else "")


def as_dict(run: Run) -> dict[str, Any]:
    lines = summaries()

    def listed(entries: Iterator[tuple[str, Diagnostic]]) -> list[dict[str, Any]]:
        return [
            {"path": path, "line": run.line(entry), "rule": entry.rule, "message": message(entry, lines)}
            for path, entry in entries
        ]

    return {
        "version": __version__,
        "status": run.status,
        "files_scanned": run.scanned,
        "files_changed": [result.path for result in run.changed],
        "written": run.wrote,
        "rewritten": listed(run.rewritten()),
        "left": listed(run.left()),
        "errors": [{"path": path, "message": error} for path, error in run.problems],
        "notes": [{"path": path, "message": text} for path, text in run.notes],
        "densities": densities(run),
    }


def densities(run: Run) -> dict[str, Any]:
    """The figures of the patterns, before and after."""
    found = run.patterns()
    return {
        "seq_len": run.seq_len,
        "configurations": [
            {
                **pattern.as_dict(run.seq_len),
                "places": [{"path": path, "line": line} for path, line in places],
            }
            for pattern, places in found.items()
        ],
    }


def as_json(run: Run) -> str:
    """The report for programs."""
    import json

    return json.dumps(as_dict(run), indent=2) + "\n"


def sarif_rule(rule: str, summary: str) -> dict[str, Any]:
    """A rule or a reason in the form that code scanning expects."""
    what, _, instead = summary.partition(": ")
    if rule == "HIER190":
        instead = "the message says why; --exclude leaves a file out"
    if is_reason(rule):
        text = " ".join(sentence(part) for part in (what, instead) if part)
        silenced = f"A comment `# noqa: {rule}` on the line silences it, and so does `--ignore {rule}`."
    else:
        what, text = summary, f"{sentence(summary)} `--diff` shows how."
        silenced = f"`--ignore {rule}` leaves such uses as they are."
    return {
        "id": rule,
        "shortDescription": {"text": sentence(what)},
        "fullDescription": {"text": text},
        "help": {"text": f"{text} {silenced}", "markdown": f"{text}\n\n{silenced}"},
        "defaultConfiguration": {"level": "warning" if is_reason(rule) else "note"},
    }


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:].removesuffix(".") + "."


def as_sarif(run: Run) -> str:
    """SARIF 2.1.0, for code scanning."""
    import json

    lines = {
        rule: text
        for rule, text in summaries().items()
        if group_of(rule) in (*run.groups, HIERARCHICAL_GROUP)
    }

    def found(path: str, entry: Diagnostic, level: str) -> dict[str, Any]:
        place = {
            "artifactLocation": {"uri": uri(path)},
            "region": {"startLine": max(1, run.line(entry))},
        }
        return {
            "ruleId": entry.rule,
            "level": level,
            "message": {"text": message(entry, lines)},
            "locations": [{"physicalLocation": place}],
        }

    results = [found(path, entry, "warning") for path, entry in run.left()]
    results += [found(path, Diagnostic("HIER190", error), "error") for path, error in run.problems]
    if not run.wrote:
        results += [found(path, entry, "note") for path, entry in run.rewritten()]
    driver = {
        "name": "migrate-hierarchical",
        "version": __version__,
        "rules": [sarif_rule(rule, text) for rule, text in lines.items()],
    }
    places = {rule: number for number, rule in enumerate(lines)}
    for result in results:
        result["ruleIndex"] = places[result["ruleId"]]
    notifications = [
        {"level": "note", "message": {"text": f"{reference(path)}: {text}"}} for path, text in run.notes
    ]
    invocation = {"executionSuccessful": not run.problems, "toolExecutionNotifications": notifications}
    document = {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": driver},
                "invocations": [invocation],
                "results": results,
                "properties": {"densities": densities(run)},
            }
        ],
    }
    return json.dumps(document, indent=2) + "\n"


def escaped(text: str, is_property: bool = False) -> str:
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return text.replace(":", "%3A").replace(",", "%2C") if is_property else text


def as_github(run: Run) -> str:
    """Workflow commands of GitHub Actions."""
    lines = summaries()

    def command(level: str, path: str, entry: Diagnostic) -> str:
        place = f"file={escaped(reference(path), True)},line={max(1, run.line(entry))},title={entry.rule}"
        texts = [message(entry, lines)]
        for pattern in entry.patterns:
            texts += [pattern.summary(run.seq_len), *pattern.lines(run.seq_len)]
        return f"::{level} {place}::{escaped(chr(10).join(texts))}"

    out = [command("warning", path, entry) for path, entry in run.left()]
    out += [command("error", path, Diagnostic("HIER190", error)) for path, error in run.problems]
    if not run.wrote:
        out += [command("notice", path, entry) for path, entry in run.rewritten()]
    out += [f"::notice file={escaped(reference(path), True)}::{escaped(text)}" for path, text in run.notes]
    return "".join(line + "\n" for line in out)


FORMATS: dict[str, Callable[[Run], str]] = {
    "text": as_text,
    "json": as_json,
    "sarif": as_sarif,
    "github": as_github,
}
