"""Which files to look at: folders walked with scandir, .gitignore honoured, files without a use skipped unread."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import TYPE_CHECKING

from .settings import Settings

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

SKIPPED = frozenset(
    {
        ".git",
        ".hg",
        ".svn",
        ".venv",
        "venv",
        ".tox",
        ".nox",
        "node_modules",
        "build",
        "dist",
        "__pycache__",
        ".mypy_cache",
        ".ruff_cache",
        ".pytest_cache",
        ".eggs",
    }
)
PYTHON = (".py", ".pyi", ".pyw")
NOTEBOOK = (".ipynb",)
PROSE = (".md", ".markdown", ".rst")
PLAIN = (".yaml", ".yml", ".toml", ".json", ".sh", ".bash", ".cfg", ".ini")
SUFFIXES = PYTHON + NOTEBOOK + PROSE + PLAIN


@dataclass
class Found:
    """Files in the order of the walk, and what could not be looked at."""

    files: list[str] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Ignored:
    """The .gitignore of one folder."""

    folder: str
    spec: GitIgnoreSpec

    def verdict(self, path: str, is_folder: bool) -> bool | None:
        """True: ignored, False: included again, None: it says nothing."""
        relative = os.path.relpath(path, self.folder).replace(os.sep, "/")
        result = self.spec.check_file(relative + ("/" if is_folder else ""))
        return result.include


def read_ignore(folder: str, name: str = ".gitignore") -> Ignored | None:
    try:
        with open(os.path.join(folder, name), encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return None
    from pathspec import GitIgnoreSpec

    return Ignored(folder, GitIgnoreSpec.from_lines(lines))


def outer_ignores(folder: str) -> list[Ignored]:
    """The .gitignore files above a folder, as far as its repository goes."""
    chain: list[str] = []
    current = os.path.abspath(folder)
    while True:
        chain.append(current)
        if os.path.exists(os.path.join(current, ".git")):
            break
        parent = os.path.dirname(current)
        if parent == current:
            return []  # in no repository: only what lies inside the folder counts
        current = parent
    found = [read_ignore(chain[-1], os.path.join(".git", "info", "exclude"))]
    found += [read_ignore(each) for each in reversed(chain[1:])]
    ignores = [each for each in found if each is not None]
    # a folder that is named although it is ignored is looked at
    return [] if any(is_ignored(each, True, ignores) for each in chain[:-1]) else ignores


def is_ignored(path: str, is_folder: bool, ignores: list[Ignored]) -> bool:
    for ignore in reversed(ignores):
        verdict = ignore.verdict(path, is_folder)
        if verdict is not None:
            return verdict
    return False


def matches(path: str, root: str, patterns: tuple[str, ...]) -> bool:
    """Whether a path below a root, its name, or a folder of it matches a glob."""
    relative = os.path.relpath(path, root).replace(os.sep, "/")
    parts = relative.split("/")
    heads = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    return any(
        fnmatch(head, pattern.rstrip("/")) or fnmatch(part, pattern.rstrip("/"))
        for pattern in patterns
        for head, part in zip(heads, parts)
    )


def find_files(paths: list[str], settings: Settings) -> Found:
    """Every file below the paths that may hold a use; a path that is a file is always looked at."""
    found = Found()
    seen: set[str] = set()
    roots = [os.path.realpath(path) for path in paths]
    for path in paths:
        if os.path.isdir(path):
            for file in walk(path, path, settings, outer_ignores(path), roots, found):
                add(file, found, seen)
        elif os.path.isfile(path):
            add(path, found, seen)
        elif os.path.exists(path):
            found.errors.append((path, "neither a file nor a folder"))
        else:
            found.errors.append((path, "no such file or folder"))
    return found


def add(path: str, found: Found, seen: set[str]) -> None:
    real = os.path.realpath(path) if os.path.islink(path) else os.path.abspath(path)
    if real not in seen:
        seen.add(real)
        found.files.append(path)


def walk(
    folder: str, root: str, settings: Settings, ignores: list[Ignored], roots: list[str], found: Found
) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        found.errors.append((folder, error.strerror or str(error)))
        return
    if any(entry.name == ".gitignore" for entry in listed):
        own = read_ignore(folder)
        ignores = [*ignores, own] if own is not None else ignores
    for entry in listed:
        if entry.is_dir(follow_symlinks=False):
            if entry.name in SKIPPED or is_environment(entry):
                continue
            if ignores and is_ignored(entry.path, True, ignores):
                continue
            if settings.exclude and matches(entry.path, root, settings.exclude):
                continue
            yield from walk(entry.path, root, settings, ignores, roots, found)
        elif entry.name.endswith(SUFFIXES):
            if not entry.is_file() or (entry.is_symlink() and not inside_roots(entry.path, roots)):
                continue
            if ignores and is_ignored(entry.path, False, ignores):
                continue
            if settings.exclude and matches(entry.path, root, settings.exclude):
                continue
            if settings.include and not matches(entry.path, root, settings.include):
                continue
            yield entry.path


def is_environment(entry: os.DirEntry[str]) -> bool:
    """A virtual environment, whatever its name."""
    return entry.name in ("env", ".env") and os.path.exists(os.path.join(entry.path, "pyvenv.cfg"))


def inside_roots(link: str, roots: list[str]) -> bool:
    """Whether a link leads to a file inside the given paths."""
    target = os.path.realpath(link)
    return any(target == root or target.startswith(root + os.sep) for root in roots)
