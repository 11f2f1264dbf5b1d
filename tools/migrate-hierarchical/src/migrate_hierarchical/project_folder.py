"""Finds the folders of the project around a run, and those that define the removed names themselves."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

from .discovery import PYTHON, find_files
from .limits import PROJECT_FILES
from .removed_api import NEEDLE, PACKAGE, REMOVED_NAMES
from .settings import Settings

MARKERS = (".git", ".hg", "pyproject.toml", "setup.py", "setup.cfg", ".pre-commit-config.yaml")
DEFINES = re.compile(
    rb"^[ \t]*(?:class|def)[ \t]+(?:" + "|".join(sorted(REMOVED_NAMES)).encode() + rb")\b", re.MULTILINE
)


def stem(path: str) -> str:
    """The path of a module without its suffix, for `__init__` the path of its folder; empty for other files."""
    root, suffix = os.path.splitext(path)
    if suffix not in PYTHON:
        return ""
    return root.replace(os.sep, "/").removesuffix("/__init__")


def fork_of(path: str) -> str | None:
    """The outermost folder around a file that has the package's name."""
    folders = folders_above(os.path.dirname(os.path.abspath(path)))
    named = [folder for folder in folders if os.path.basename(folder) == PACKAGE]
    return named[-1] if named else None


def defines_removed(folder: str) -> bool:
    """Whether a file in a folder defines a removed name: the folder is a fork or a copy of the package."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            if name.endswith(PYTHON):
                data = read(os.path.join(place, name))
                if NEEDLE in data and DEFINES.search(data):
                    return True
    return False


def project_roots(paths: Iterable[str]) -> list[str]:
    """The folders that hold the project of the given files and folders."""
    here = os.path.abspath(os.curdir)
    too_wide = {os.path.abspath(os.sep), os.path.abspath(os.path.expanduser("~"))}
    roots: set[str] = set()
    for path in paths:
        start = os.path.abspath(path)
        if not os.path.isdir(start):
            start = os.path.dirname(start)
        roots.add(root_above(start, here, too_wide))
    return [root for root in sorted(roots) if not any(is_below(root, other) for other in roots)]


def uses_package(paths: Iterable[str], settings: Settings) -> bool:
    """Whether code of the project around the given files and folders names the package."""
    found = find_files(project_roots(paths), Settings(jobs=settings.jobs)).files
    return any(
        path.endswith((*PYTHON, ".ipynb")) and PACKAGE.encode() in read(path)
        for path in found[:PROJECT_FILES]
    )


def read(path: str) -> bytes:
    """The content of a file; empty if it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return b""


def root_above(start: str, here: str, too_wide: set[str]) -> str:
    for folder in folders_above(start):
        if folder in too_wide:
            break
        if any(os.path.exists(os.path.join(folder, name)) for name in MARKERS):
            return folder
    if here not in too_wide and (start == here or is_below(start, here)):
        return here
    folder = start
    while os.path.exists(os.path.join(folder, "__init__.py")) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    return start if folder in too_wide else folder


def folders_above(folder: str) -> Iterator[str]:
    """A folder and all those above it."""
    yield folder
    while os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
        yield folder


def is_below(path: str, folder: str) -> bool:
    return path != folder and path.startswith(folder.rstrip(os.sep) + os.sep)
