"""Migrates Python source, from bytes to bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import libcst as cst

from ..analysis.binding import ImportStatement, is_import_from, local_name
from ..analysis.order import ORDERS, VERSION, UnknownSyntax, order_of
from ..analysis.placement import line_of
from ..analysis.source_index import SourceIndex
from ..catalogue.reasons import REASONS
from ..catalogue.reasons_up import UP_REASONS
from ..changes import Changes, Edit
from ..context import Context
from ..diagnostic import Diagnostic
from ..discovery import PROSE
from ..edit.apply import Apply
from ..edit.places import Places
from ..planner import Planner
from ..removed_api import PACKAGE, TODO, below_package, is_gone
from ..rules.hier009 import ImportEditor
from ..settings import UPSTREAM, Settings, group_of, is_reason
from ..silence import Silence
from .code_in_strings import find_code
from .nesting import joined_strings, too_deep


class Unreadable(Exception):
    """A source cannot be read; the message says why. The file is left unchanged."""


class Migrated:
    """What was rewritten in one source, and what was left."""

    def __init__(self) -> None:
        self.rewritten: list[Diagnostic] = []
        self.left: list[Diagnostic] = []


def package_of(path: str) -> tuple[str | None, bool]:
    """The dotted package of a file inside a folder with our package's name, else None; and whether it is `__init__`."""
    parts = path.replace("\\", "/").split("/")
    is_init = parts[-1] in ("__init__.py", "__init__.pyi")
    if PACKAGE not in parts[:-1]:
        return None, is_init
    start = len(parts) - 1 - parts[::-1].index(PACKAGE)
    return ".".join(parts[start:-1]), is_init


def migrate_source(source: bytes, path: str, settings: Settings) -> tuple[bytes, Migrated]:
    """The new source, or the same one if nothing changes, and the report; raises Unreadable."""
    if b"\0" in source:
        raise Unreadable("it contains a null byte")
    why = too_deep(source)
    if why is not None:
        raise Unreadable(why)
    try:
        module = cst.parse_module(source)
    except cst.ParserSyntaxError as error:
        raise Unreadable(
            joined_strings(source)
            or f"line {error.raw_line}: not valid Python to libcst {VERSION}; newer syntax may need a newer libcst"
        ) from None
    except (UnicodeDecodeError, LookupError, SyntaxError) as error:
        raise Unreadable(f"cannot be decoded: {error}") from None
    except RecursionError:
        raise Unreadable(joined_strings(source) or "nested too deeply") from None
    try:
        return migrate_module(module, source, path, settings)
    except RecursionError:
        raise Unreadable(joined_strings(source) or "nested too deeply") from None
    except UnknownSyntax as error:
        raise Unreadable(str(error)) from None
    except UnicodeEncodeError as error:
        raise Unreadable(f"cannot be encoded: {error}") from None


def migrate_module(
    module: cst.Module, source: bytes, path: str, settings: Settings
) -> tuple[bytes, Migrated]:
    package, is_init = package_of(path)
    facts = settings.facts
    if facts is not None and settings.group == UPSTREAM:
        facts = facts.with_upstream()
    index = SourceIndex(package, path, facts)
    ORDERS[cst.Module] = order_of(module)
    index.visit(module)
    silence = Silence(source, bare=not path.endswith(PROSE), is_python=True)
    is_upstream = settings.group == UPSTREAM
    reasons = UP_REASONS if is_upstream else REASONS
    own_home = [] if is_upstream else imports_of_own_init(index, is_init)
    imports: dict[ImportStatement, Edit] = {}
    if is_upstream:
        from ..upstream.planner import plan as plan_upstream

        changes, imports = plan_upstream(module, index, settings, is_init, silence)
    elif own_home:  # the package's own __init__ cannot import from the package
        changes = Changes(Context(module, index, settings, is_init, silence))
        for statement in own_home:
            changes.leave(statement, "HIER114", "by the package's own __init__")
    else:
        changes, imports = plan(module, index, settings, is_init, silence)
    result = Migrated()
    found: list[tuple[Diagnostic, cst.CSTNode]] = []  # the node of each diagnostic
    for node, rewritten in changes.rewritten:
        entry = replace(rewritten, line=index.lines[node])
        result.rewritten.append(entry)
        found.append((entry, node))
    for edited in () if is_upstream else imports:
        result.rewritten.append(Diagnostic("HIER009", line=index.lines[edited]))
        found.append((result.rewritten[-1], edited))
    lines = source.splitlines()
    todos: dict[cst.CSTNode, list[str]] = {}
    seen: set[cst.CSTNode] = set()  # marks of earlier runs that are still valid
    known: set[tuple[int, str, str, str]] = set()
    for node, left in changes.todos:
        entry = replace(left, line=index.line_of(node))
        line = line_of(node, index.parents)
        marks = marks_above(line, module, index, left.rule)
        seen.update(marks)
        if not settings.wants(entry.rule) or silence.covers(entry.line, entry.rule):
            continue
        if (entry.line, entry.rule, entry.detail, entry.text) in known:
            continue
        known.add((entry.line, entry.rule, entry.detail, entry.text))
        result.left.append(entry)
        found.append((entry, node))
        if left.rule == "HIER115":
            continue  # no mark: the reason disappears when the other file is migrated
        if node in index.magics:
            continue  # no line may be added above the first line of a cell
        if changes.whole is not None and (node, left.rule) not in changes.whole.left_nodes:
            continue  # no mark: the rules that are not selected resolve this use, and the mark would remain
        text = mark_text(left, reasons, lines[index.line_of(line) - 1], settings)
        if not marks and text not in todos.get(line, []):
            todos.setdefault(line, []).append(text)
    for edited, edit in imports.items():
        if not edit:
            seen.update(marks_above(index.parents[edited], module, index))
    stale = stale_marks(imports, changes, seen)
    seen.update(stale)
    for mark, (number, reason) in index.marks.items():
        if mark not in seen and reason in reasons:
            result.left.append(Diagnostic(reason, "marked by an earlier run", line=number))
            found.append((result.left[-1], mark))
    for entries in (result.rewritten, result.left):
        entries.sort(key=lambda entry: entry.line)
    if not (imports or todos or changes.replacements or changes.renames or changes.strings):
        return source, result
    apply = Apply(changes.context, changes, imports, todos, stale)
    changed = module.visit(apply)
    codes: dict[cst.CSTNode, str] = {}
    new = render(module, changed, source, codes)
    places = Places(index, module, changed, codes, apply.now | changes.moved)
    for entry, node in found:
        entry.new_line = places.line(node)
    return new, result


def stale_marks(
    imports: dict[ImportStatement, Edit], changes: Changes, seen: set[cst.CSTNode]
) -> set[cst.CSTNode]:
    """The outdated marks above changed imports: the file that took the name from here no longer does."""
    module, index = changes.context.module, changes.context.source
    held = set(seen)
    for node, left in changes.whole.todos if changes.whole is not None else ():
        held.update(marks_above(line_of(node, index.parents), module, index, left.rule))
    found = {mark for each in imports for mark in marks_above(index.parents[each], module, index)} - held
    return {mark for mark in found if can_be_stale(index.marks[mark][1], changes.context.settings.group)}


def can_be_stale(reason: str, group: str) -> bool:
    """Whether a mark on an import may be outdated: one of this group, or on a module that the group UP knows."""
    return group_of(reason) == group or (group == UPSTREAM and reason == "HIER114")


def plan(
    module: cst.Module, index: SourceIndex, settings: Settings, is_init: bool, silence: Silence
) -> tuple[Changes, dict[ImportStatement, Edit]]:
    """Decide what happens to the uses and the imports of a file."""

    def run(changes: Changes) -> tuple[ImportEditor, dict[ImportStatement, Edit]]:
        context = changes.context
        Planner(context, changes).run()
        for code in find_code(context, changes, lambda text: has_use(text, index.path, settings)):
            changes.leave(code, "HIER103", "code in a string")
        editor = ImportEditor(context, changes)
        return editor, editor.edits()

    whole: Changes | None = None
    if not settings.wants_all:
        everything = replace(settings, select=(), ignore=tuple(filter(is_reason, settings.ignore)))
        whole = Changes(Context(module, index, everything, is_init, silence))
        run(whole)
    changes = Changes(Context(module, index, settings, is_init, silence), whole)
    editor, imports = run(changes)
    if editor.waiting and whole is not None:
        waiting = list(editor.waiting.values())
        changes = Changes(Context(module, index, settings, is_init, silence, waiting), whole)
        _, imports = run(changes)
        for alias in editor.waiting:
            changes.leave(alias, "HIER115", index.facts.taken(local_name(alias)))
    return changes, imports


def has_use(source: str, path: str, settings: Settings) -> bool:
    """Whether a source, on its own, uses the removed API."""
    try:
        report = migrate_source(source.encode(), path, Settings(facts=settings.facts))[1]
    except (Unreadable, UnicodeEncodeError):
        return False
    return bool(report.rewritten or report.left)


def imports_of_own_init(index: SourceIndex, is_init: bool) -> list[cst.ImportFrom]:
    """The imports from removed modules in the `__init__` of a package with our name."""
    if not (is_init and index.package == PACKAGE):
        return []
    return [
        statement
        for statement in index.imports
        if is_import_from(statement)
        and statement.relative
        and is_gone(below_package(index.absolute(statement) or "") or "")
    ]


def render(old: cst.Module, new: cst.Module, source: bytes, known: dict[cst.CSTNode, str]) -> bytes:
    """The bytes of the changed module; raises Unreadable unless the old module renders to exactly the source.

    Unchanged statements are rendered only once; `known` caches the code of every statement.
    """
    if whole(old, known) != source:
        raise Unreadable("the parser does not give back the same bytes")
    return whole(new, known)


def whole(module: cst.Module, known: dict[cst.CSTNode, str]) -> bytes:
    """`module.bytes`, with the code of statements from a cache."""
    parts = (*module.header, *module.body, *module.footer)
    for part in parts:
        if part not in known:
            known[part] = module.code_for_node(part)
    if not module.has_trailing_newline or not module.body:
        return module.bytes
    return "".join([known[part] for part in parts]).encode(module.encoding)


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
