"""Finds the files to search: folders are walked with scandir, and .gitignore is honoured."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import TYPE_CHECKING

from .settings import Settings

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

# Folders of version control, environments and tools, which are not searched. Caches of tools contain a .gitignore.
SKIPPED = frozenset(
    {".git", ".hg", ".svn", ".venv", ".tox", ".nox", ".eggs", "node_modules", "build", "__pycache__"}
)
ENVIRONMENT = frozenset({"pyvenv.cfg", "conda-meta"})  # contained in every virtual environment
PYTHON = (".py", ".pyi", ".pyw")
NOTEBOOK = (".ipynb",)
PROSE = (".md", ".markdown", ".rst")
PLAIN = (
    ".yaml",
    ".yml",
    ".toml",
    ".json",
    ".sh",
    ".bash",
    ".cfg",
    ".ini",
    "Dockerfile",
    ".dockerfile",
    "Containerfile",
)
SUFFIXES = PYTHON + NOTEBOOK + PROSE + PLAIN


@dataclass
class FoundFiles:
    """Files in the order of the walk, what could not be searched, and packages that were skipped on purpose."""

    files: list[str] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    scripts: set[str] = field(default_factory=set)  # files without a suffix that were found in folders


@dataclass(frozen=True)
class IgnoreFile:
    """The .gitignore of one folder."""

    folder: str
    spec: GitIgnoreSpec

    def verdict(self, path: str, is_folder: bool) -> bool | None:
        """True: ignored, False: included again, None: no pattern matches."""
        relative = os.path.relpath(path, self.folder).replace(os.sep, "/")
        result = self.spec.check_file(relative + ("/" if is_folder else ""))
        return result.include


def read_ignore(folder: str, name: str = ".gitignore") -> IgnoreFile | None:
    try:
        with open(os.path.join(folder, name), encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return None
    from pathspec import GitIgnoreSpec

    try:
        spec = GitIgnoreSpec.from_lines(lines)
    except ValueError:  # git skips lines that are not patterns
        spec = GitIgnoreSpec.from_lines(line for line in lines if is_pattern(line))
    return IgnoreFile(folder, spec)


def is_pattern(line: str) -> bool:
    from pathspec import GitIgnoreSpec

    try:
        GitIgnoreSpec.from_lines([line])
    except ValueError:
        return False
    return True


def outer_ignores(folder: str) -> list[IgnoreFile]:
    """The .gitignore files above a folder, up to the root of its repository."""
    chain: list[str] = []
    current = os.path.abspath(folder)
    while True:
        chain.append(current)
        if os.path.exists(os.path.join(current, ".git")):
            break
        parent = os.path.dirname(current)
        if parent == current:
            return []  # outside of a repository only .gitignore files inside the folder count
        current = parent
    found = [read_ignore(chain[-1], os.path.join(".git", "info", "exclude"))]
    found += [read_ignore(each) for each in reversed(chain[1:])]
    ignores = [each for each in found if each is not None]
    # an ignored folder is searched if it is named on the command line
    return [] if any(is_ignored(each, True, ignores) for each in chain[:-1]) else ignores


def is_ignored(path: str, is_folder: bool, ignores: list[IgnoreFile]) -> bool:
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


def find_files(paths: list[str], settings: Settings) -> FoundFiles:
    """Every file below the paths that may contain a use; a path that is a file is always included."""
    found = FoundFiles()
    seen: set[str] = set()
    roots = [os.path.realpath(path) for path in paths]
    for path in paths:
        if os.path.isdir(path):
            for file in Walker(path, settings, roots, found).files():
                add(file, found, seen)
        elif os.path.isfile(path):
            add(path, found, seen)
        elif os.path.exists(path):
            found.errors.append((path, "neither a file nor a folder"))
        elif os.path.islink(path):
            found.errors.append((path, "a link that leads nowhere, or in a circle"))
        else:
            found.errors.append((path, "no such file or folder"))
    return found


def add(path: str, found: FoundFiles, seen: set[str]) -> None:
    real = os.path.realpath(path) if os.path.islink(path) else os.path.abspath(path)
    if real not in seen:
        seen.add(real)
        found.files.append(path)


class Walker:
    """The walk through one folder; whatever cannot be read is recorded and skipped."""

    def __init__(self, root: str, settings: Settings, roots: list[str], found: FoundFiles) -> None:
        self.root, self.settings, self.roots, self.found = root, settings, roots, found

    def files(self) -> Iterator[str]:
        """The files, in the order of their names; folders may be nested to any depth."""
        stack = [self.listed(self.root, outer_ignores(self.root))]
        while stack:
            entries, ignores = stack[-1]
            entry = next(entries, None)
            if entry is None:
                stack.pop()
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    if self.wants_folder(entry, ignores):
                        stack.append(self.listed(entry.path, ignores))
                elif self.wants_file(entry, ignores):
                    yield entry.path
            except OSError as error:
                self.found.errors.append((entry.path, error.strerror or str(error)))

    def listed(
        self, folder: str, ignores: list[IgnoreFile]
    ) -> tuple[Iterator[os.DirEntry[str]], list[IgnoreFile]]:
        """The entries of a folder, and the .gitignore files that apply there."""
        try:
            with os.scandir(folder) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            self.found.errors.append((folder, error.strerror or str(error)))
            return iter(()), ignores
        names = {entry.name for entry in listed}
        if folder != self.root and names & ENVIRONMENT:
            return iter(()), ignores
        own = read_ignore(folder) if ".gitignore" in names else None
        return iter(listed), ignores if own is None else [*ignores, own]

    def wants_folder(self, entry: os.DirEntry[str], ignores: list[IgnoreFile]) -> bool:
        is_skipped = entry.name in SKIPPED
        if is_skipped and not os.path.exists(os.path.join(entry.path, "__init__.py")):
            return False
        if ignores and is_ignored(entry.path, True, ignores):
            return False
        if self.settings.exclude and matches(entry.path, self.root, self.settings.exclude):
            return False
        if is_skipped:
            self.found.skipped.append(entry.path)
        return not is_skipped

    def wants_file(self, entry: os.DirEntry[str], ignores: list[IgnoreFile]) -> bool:
        if not entry.name.endswith(SUFFIXES) and "." in entry.name:
            return False
        if not entry.is_file() or (entry.is_symlink() and not inside_roots(entry.path, self.roots)):
            return False
        if ignores and is_ignored(entry.path, False, ignores):
            return False
        if self.settings.exclude and matches(entry.path, self.root, self.settings.exclude):
            return False
        if self.settings.include and not matches(entry.path, self.root, self.settings.include):
            return False
        if entry.name.endswith(SUFFIXES):
            return True
        is_script = names_python(entry.path)
        if is_script:
            self.found.scripts.add(entry.path)
        return is_script


def names_python(path: str) -> bool:
    """Whether the first line of a file starts Python; raises OSError."""
    with open(path, "rb", buffering=0) as file:
        head = file.read(128)
    return head.startswith(b"#!") and b"python" in head.split(b"\n", 1)[0]


def inside_roots(link: str, roots: list[str]) -> bool:
    """Whether a link leads to a file inside the given paths."""
    target = os.path.realpath(link)
    return any(target == root or target.startswith(root + os.sep) for root in roots)
