"""Runs the migration: reads the files, migrates those with a use in worker processes, and writes the changes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from .discovery import PLAIN
from .documents.result import Result
from .engine import is_too_large, may_hand_on, may_hold_use, migrate_script, names_package, read_file
from .facts import Facts
from .limits import DATA_BYTES
from .line_length import LineLengths
from .settings import Settings

TOO_LARGE = f"larger than {DATA_BYTES >> 20} MiB: not searched for removed names"
Watch = Callable[[Iterator[Result], int], Iterable[Result]]


@dataclass
class SearchedFiles:
    """What was found in the files of a run."""

    hits: list[tuple[str, bytes]] = field(default_factory=list)  # files with a use
    results: list[Result] = field(default_factory=list)  # of scripts, which are only reported
    errors: list[tuple[str, str]] = field(default_factory=list)  # files that cannot be read, and why
    notes: list[tuple[str, str]] = field(default_factory=list)  # data files that are not searched, and why
    uses_package: bool = False
    hands_on: bool = False  # a file without a use may pass names of the package to another file


def read_files(files: list[str], scripts: set[str], settings: Settings) -> SearchedFiles:
    """Read every file once, and keep the content of those with a use."""
    found = SearchedFiles()
    for path in files:
        try:
            data = read_file(path)
        except OSError as error:
            found.errors.append((path, error.strerror or str(error)))
            continue
        found.uses_package = found.uses_package or names_package(path, data)
        if path in scripts:
            if may_hold_use(path, data):
                found.results.append(migrate_script(path, data, settings))
            elif not found.hands_on and may_hand_on(path, data):
                found.hands_on = True
        elif may_hold_use(path, data, settings.groups):
            found.hits.append((path, data))
        elif is_too_large(path, data):
            found.notes.append((path, TOO_LARGE))
        elif not found.hands_on and may_hand_on(path, data):
            found.hands_on = True
    return found


def migrate_hits(
    paths: list[str],
    files: list[str],
    hits: list[tuple[str, bytes]],
    settings: Settings,
    watch: Watch,
    contents: dict[str, bytes] | None = None,
    hands_on: bool = False,
) -> tuple[list[Result], list[tuple[str, str]]]:
    """The results of the files with a use and of those that take names from them, and the notes of migrate_project.

    paths: what the run was given. files: what was found there. watch: passes the results on as they are made.
    """
    from .project_folder import project_roots, uses_package

    if not hits and not hands_on and set(project_roots(paths)) <= set(map(os.path.abspath, paths)):
        return [], []  # no file of the project mentions the package
    from .rounds import migrate_project

    # the meaning of a configuration must not depend on which files are given with it
    if not settings.uses_package and any(path.endswith(PLAIN) for path, _ in hits):
        settings = replace(settings, uses_package=uses_package(paths, settings))

    def migrate(some: list[tuple[str, bytes]], facts: dict[str, Facts]) -> Iterable[Result]:
        return watch(migrate_all(some, settings, facts), len(some))

    return migrate_project(paths, files, hits, contents or dict(hits), settings, migrate)


def write_all(results: list[Result]) -> None:
    """Write the changed files, each after those that import from it.

    If an importer cannot be written, the module stays as it is: without the name that the importer takes, a later run
    could not know what that name meant.
    """
    by_path = {result.path: result for result in results}
    seen: set[str] = set()
    for first in results:
        pending = [(first, False)]
        while pending:
            result, are_takers_written = pending.pop()
            if are_takers_written:
                failed = [path for path in result.takers if path in by_path and by_path[path].error]
                if failed:
                    leave(result, f"left as it is: {failed[0]} imports from it and cannot be changed")
                else:
                    write(result)
            elif result.path not in seen and result.new is not None:
                seen.add(result.path)
                pending.append((result, True))
                pending += [(by_path[path], False) for path in result.takers if path in by_path]


def write(result: Result) -> None:
    from .atomic_write import write_atomically

    assert result.new is not None
    try:
        if read_file(result.path) != result.old:
            raise OSError("it changed during the run; run again")
        write_atomically(result.path, result.new)
    except OSError as error:
        leave(result, f"cannot be written: {error.strerror or error}")


def leave(result: Result, why: str) -> None:
    """Leave a file unchanged and record why."""
    result.error, result.new = why, None
    for entry in (*result.rewritten, *result.left):
        entry.new_line = None


def migrate_all(
    hits: list[tuple[str, bytes]], settings: Settings, facts: dict[str, Facts]
) -> Iterator[Result]:
    """The results in the order of the files, made in worker processes."""
    if not hits:
        return
    from . import workers

    lengths = LineLengths()
    tasks = [
        (
            path,
            data,
            replace(settings, facts=facts[path], line_length=settings.line_length or lengths.of(path)),
        )
        for path, data in hits
    ]
    yield from workers.migrate_all(tasks, settings.jobs or available_cores(), settings.time_limit)


def available_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
