"""Migrates Python source, from bytes to bytes."""

from __future__ import annotations

from dataclasses import replace

import libcst as cst

from ..analysis.binding import ImportStatement, is_import_from, local_name
from ..analysis.order import ORDERS, VERSION, UnknownSyntax, order_of
from ..analysis.source_index import SourceIndex
from ..changes import Changes, Edit
from ..context import Context
from ..discovery import PROSE
from ..edit.apply import Editor
from ..edit.places import Places
from ..lines import opcodes
from ..planner import Planner
from ..removed_api import PACKAGE, below_package, is_gone
from ..rules.hier009 import ImportEditor
from ..settings import UPSTREAM, Settings, is_reason
from ..silence import Silence
from .code_in_strings import find_code
from .marks import Marks
from .nesting import joined_strings, too_deep
from .result import SourceReport


class Unreadable(Exception):
    """A source cannot be read; the message says why. The file is left unchanged."""


def package_of(path: str) -> tuple[str | None, bool]:
    """The dotted package of a file inside a folder with our package's name, else None; and whether it is `__init__`."""
    parts = path.replace("\\", "/").split("/")
    is_init = parts[-1] in ("__init__.py", "__init__.pyi")
    if PACKAGE not in parts[:-1]:
        return None, is_init
    start = len(parts) - 1 - parts[::-1].index(PACKAGE)
    return ".".join(parts[start:-1]), is_init


def migrate_source(source: bytes, path: str, settings: Settings) -> tuple[bytes, SourceReport]:
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
        bare = without_form_feeds(source, module) if b"\f" in source else source
        if bare == source:
            return migrate_module(module, source, path, settings)
        new, report = migrate_module(cst.parse_module(bare), bare, path, settings)
        return with_form_feeds(new, bare, source), report
    except RecursionError:
        raise Unreadable(joined_strings(source) or "nested too deeply") from None
    except UnknownSyntax as error:
        raise Unreadable(str(error)) from None
    except UnicodeEncodeError as error:
        raise Unreadable(f"cannot be encoded: {error}") from None


def without_form_feeds(source: bytes, module: cst.Module) -> bytes:
    """The source without the form feeds that libcst loses: those that begin a line of code."""
    given, kept = source.splitlines(keepends=True), module.bytes.splitlines(keepends=True)
    if len(given) != len(kept):
        return source
    return b"".join(new if old.lstrip(b"\f") == new else old for old, new in zip(given, kept))


def with_form_feeds(new: bytes, bare: bytes, source: bytes) -> bytes:
    """The new source with those form feeds at the begin of their lines, or of the first line that replaced one."""
    lines = new.splitlines(keepends=True)
    old, given = (text.splitlines(keepends=True) for text in (bare, source))
    for _, begin, end, new_begin, new_end in opcodes(old, lines):
        for i in range(begin, end):
            lost = len(given[i]) - len(old[i])
            if lost and new_begin < new_end:
                place = min(new_begin + i - begin, new_end - 1)
                lines[place] = b"\f" * lost + lines[place]
    return b"".join(lines)


def migrate_module(
    module: cst.Module, source: bytes, path: str, settings: Settings
) -> tuple[bytes, SourceReport]:
    package, is_init = package_of(path)
    facts = settings.facts
    if facts is not None and settings.group == UPSTREAM:
        facts = facts.with_upstream()
    index = SourceIndex(package, path, facts)
    ORDERS[cst.Module] = order_of(module)
    index.visit(module)
    silence = Silence(source, bare=not path.endswith(PROSE), is_python=True)
    changes, imports = decide(module, index, settings, is_init, silence)
    marks = Marks(source, settings, silence, changes, imports)
    marks.note_rewritten()
    marks.note_left()
    stale = marks.stale()
    marks.note_earlier(stale)
    result = marks.result
    for entries in (result.rewritten, result.left):
        entries.sort(key=lambda entry: entry.line)
    if not (imports or marks.above or changes.replacements or changes.renames or changes.strings):
        return source, result
    editor = Editor(changes.context, changes, imports, marks.above, stale)
    changed = module.visit(editor)
    codes: dict[cst.CSTNode, str] = {}
    new = render(module, changed, source, codes)
    places = Places(index, module, changed, codes, editor.now | changes.moved)
    for entry, node in marks.nodes:
        entry.new_line = places.line(node)
    return new, result


def decide(
    module: cst.Module, index: SourceIndex, settings: Settings, is_init: bool, silence: Silence
) -> tuple[Changes, dict[ImportStatement, Edit]]:
    """Decide what happens to the uses and the imports of a file."""
    if settings.group == UPSTREAM:
        from ..upstream.planner import plan as plan_upstream

        return plan_upstream(module, index, settings, is_init, silence)
    own_home = imports_of_own_init(index, is_init)
    if not own_home:
        return plan(module, index, settings, is_init, silence)
    # the package's own __init__ cannot import from the package
    changes = Changes(Context(module, index, settings, is_init, silence))
    for statement in own_home:
        changes.leave(statement, "HIER114", "by the package's own __init__")
    return changes, {}


def plan(
    module: cst.Module, index: SourceIndex, settings: Settings, is_init: bool, silence: Silence
) -> tuple[Changes, dict[ImportStatement, Edit]]:
    """Decide by the rules of the group HIER."""

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
    given = whole(old, known)
    if given != source:
        pairs = zip(source.splitlines(), given.splitlines())
        number = next((i for i, (mine, its) in enumerate(pairs, 1) if mine != its), source.count(b"\n"))
        raise Unreadable(
            f"line {number}: the parser does not give back the same bytes; "
            "remove form feeds from indentations, and use the same newline everywhere"
        )
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
