"""Which of upstream's names the files of a project take from one another."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from ..discovery import PYTHON
from ..limits import NAME_CHANGES
from ..module_index import Import, ModuleIndex, index_of
from ..project import Project
from ..project_folder import stem
from ..removed_api import PACKAGE
from .old_api import ADAPTIVE, CREATE_ADAPTIVE, CREATE_MULTIHEAD, RENAMED

NAMES = "|".join(sorted(RENAMED)).encode()
NAME = re.compile(rb"\b(" + NAMES + rb")\b")
MEMBER = re.compile(rb"\w\.(" + NAMES + rb")\b")
IMPORT = re.compile(rb"^[ \t]*from[ \t]+([\w.]+)[ \t]+import[ \t]*(\([^)]*\)|[^\n]*)", re.MULTILINE)
OURS = re.compile(rf"(?:src\.)?{PACKAGE}(?:\.|$)".encode())


def shared_names(paths: Iterable[str], read: Callable[[str], bytes]) -> frozenset[str]:
    """The names that a file imports from a module of the project, or reads there: they have to stay importable."""
    found: set[bytes] = set()
    for path in paths:
        data = read(path)
        if NAME.search(data) is None:
            continue
        if PACKAGE.encode() not in data:
            found.update(MEMBER.findall(data))
        for module, imported in IMPORT.findall(data):
            if not OURS.match(module):
                found.update(NAME.findall(imported))
    return frozenset(name.decode() for name in found)


# Names that are followed through modules of the project; the group HIER follows the others.
FOLLOWED = frozenset({*RENAMED, ADAPTIVE, CREATE_ADAPTIVE, CREATE_MULTIHEAD})


class TakenNames:
    """The names of upstream that files import from modules of the user's own, where those import them."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.index = {path: index for path, index in project.index.items() if path.endswith(PYTHON)}
        self.given: dict[str, dict[str, str]] = {}  # module -> name there -> name of upstream
        for _ in range(NAME_CHANGES):
            size = sum(map(len, self.given.values()))
            self.add_files()
            for path, index in self.index.items():
                self.given.setdefault(stem(path), {}).update(self.bound(path, index))
            if size == sum(map(len, self.given.values())):
                break

    def bound(self, path: str, index: ModuleIndex) -> Iterator[tuple[str, str]]:
        """The module-level names of a file that are only ever imports of a name of upstream."""
        for name, ways in index.bindings.items():
            origins = {None if way is None else self.of_way(path, way) for way in ways}
            origin = origins.pop()
            if origin is not None and not origins:
                yield name, origin

    def of_way(self, path: str, way: Import) -> str | None:
        """The name of upstream that an import binds; `New as Old` is what an earlier run wrote."""
        if RENAMED.get(way.local) == way.name and self.project.below(path, way.module) is not None:
            return way.local
        return self.origin(path, way.module, way.name)

    def origin(self, path: str, module: str, name: str) -> str | None:
        """The name of upstream that `from module import name` gives."""
        if self.project.below(path, module) is not None:
            return name if name in FOLLOWED else None
        key = self.project.resolve(path, module) if name else None
        return None if key is None else self.given.get(key, {}).get(name)

    def add_files(self) -> None:
        """Index the files that contain a name from one of the modules known so far."""
        names = {name.encode() for given in self.given.values() for name in given}
        for path in self.project.files if names else ():
            if path in self.index or not path.endswith(PYTHON) or self.project.is_fork(path):
                continue
            data = self.project.read(path)
            if b"import" in data and any(name in data for name in names):
                self.index[path] = index_of(path, data)

    def by(self, path: str) -> dict[str, dict[str, str]]:
        """What a file takes from modules of the user's own: module as written -> name there -> name of upstream."""
        found: dict[str, dict[str, str]] = {}
        index = self.index.get(path)
        for each in index.imports if index is not None else ():
            if self.project.below(path, each.module) is None:
                origin = self.origin(path, each.module, each.name)
                if origin is not None:
                    found.setdefault(each.module, {})[each.name] = origin
        return found
