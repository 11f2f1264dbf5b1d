"""The project around the files of a run: who imports which names of the API from whom.

A run may be given only a part of a project. The files around it are read but never changed, so that the result for a
file depends neither on which other files are given nor on the order of the runs:

- An API name that a file imports from a module of the project is followed to its origin, also through chains, star
  imports and aliases; the file then imports it from the package itself.
- A module keeps a name as long as a file imports it from there. If that file would be migrated too, but is not given,
  the whole module is left unchanged and reported (HIER115). If that file continues to import the name (it needs a
  person), everything else in the module is migrated. The same holds if a file looks the name up at run time (`getattr`,
  `import_module`, `patch`, a path in a configuration): the import stays and is reported.
- Files that import names from one another would all wait. If one of them is migrated alone, it keeps the imports that
  the others take from it, unmarked, and loses them in the next run after theirs.
- A name that is neither used in the file nor imported by a file of the project is removed. `__all__`, `import x as x`,
  `# noqa: F401` and `__init__` mark it as meant for other files, perhaps unseen ones: it stays under its new name.

So every file is either unchanged or as a run on the whole project leaves it, except for those imports.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from copy import copy

from .callables import leading
from .discovery import PLAIN, PROSE, PYTHON, find_files
from .facts import LAZY, MISSING, SEVERAL
from .limits import NAME_CHANGES, PROJECT_FILES
from .module_index import ModuleIndex, index_of, joined, places_of
from .project_folder import DEFINES, defines_removed, folders_above, fork_of, project_roots, read, stem
from .removed_api import (
    FACTORY,
    GET_PRESET,
    KEPT_NAMES,
    KEYWORD,
    MODULE,
    NEEDLE,
    PACKAGE,
    PATTERN,
    REMOVED_CLASS,
    REMOVED_CONFIG,
    REMOVED_CREATE_ATTENTION,
    REMOVED_CREATE_BLOCK_SPARSE,
    REMOVED_GET_PRESETS,
    REMOVED_MEMBERS,
    REMOVED_MODULE,
    REMOVED_NAMES,
    below_package,
    strip_source,
)
from .settings import Settings

API = REMOVED_NAMES | KEPT_NAMES | {REMOVED_MODULE}
KINDS = {
    REMOVED_CONFIG: "config",
    PATTERN: "pattern",
    REMOVED_GET_PRESETS: "presets",
    **dict.fromkeys(
        (REMOVED_CLASS, REMOVED_CREATE_ATTENTION, REMOVED_CREATE_BLOCK_SPARSE, FACTORY, GET_PRESET, MODULE),
        "instance",
    ),
}
READS = re.compile("|".join(sorted(REMOVED_MEMBERS | {KEYWORD})).encode())
NAMES = re.compile("|".join(sorted(REMOVED_NAMES)).encode())


class Project:
    """All files that may import from one another, by absolute path; `given` holds those that the run was given."""

    def __init__(self, paths: Iterable[str], given: dict[str, bytes], settings: Settings) -> None:
        self.given = given
        self.too_large: list[str] = []  # roots with more files than PROJECT_FILES
        self.roots = project_roots(paths)
        self.plain: list[str] = []  # those that are only searched, such as YAML
        self.files = self.find(settings)
        self.stems: dict[str, list[str]] = {}
        self.tails: dict[str, list[str]] = {}  # last part of a stem -> stems
        for path in self.files:
            key = stem(path)
            if key:
                self.stems.setdefault(key, []).append(path)
        for key in self.stems:
            self.tails.setdefault(key.rsplit("/", 1)[-1], []).append(key)
        self.index: dict[str, ModuleIndex] = {}  # of the files related to the package
        self.data: dict[str, bytes] = {}
        self.found: dict[tuple[str, str], str | None] = {}
        self.homes: dict[str, bool] = {}
        self.tables: dict[str, dict[str, str]] | None = None  # module -> its names of the API
        self.dependents: dict[str, set[str]] = {}  # module -> those that import from it
        self.search()

    def seen_as(self, index: dict[str, ModuleIndex]) -> Project:
        """The same project with other file contents."""
        other = copy(self)
        other.index, other.tables, other.dependents = index, None, {}
        return other

    def find(self, settings: Settings) -> list[str]:
        everywhere = Settings(jobs=settings.jobs)
        found = find_files(self.roots, everywhere).files
        if len(found) > PROJECT_FILES:
            self.too_large, found = self.roots, []
        paths = {os.path.abspath(path) for path in found}
        paths |= self.given.keys()
        self.plain = sorted(path for path in paths if path.endswith(PLAIN))
        return sorted(path for path in paths if path.endswith((*PYTHON, ".ipynb", *PROSE)))

    def read(self, path: str) -> bytes:
        return self.given[path] if path in self.given else read(path)

    def is_fork(self, path: str) -> bool:
        """Whether a file lies in a package that defines the removed names itself."""
        folder = fork_of(path)
        if folder is None:
            return False
        if folder not in self.homes:
            self.homes[folder] = defines_removed(folder)
        return self.homes[folder]

    def copies(self, paths: Iterable[str]) -> Iterator[str]:
        """The folders of copies of the removed module in packages of other names."""
        for path in paths:
            is_copy = stem(path).endswith("/" + REMOVED_MODULE) and fork_of(path) is None
            if is_copy and DEFINES.search(self.read(path)):
                yield os.path.dirname(path)

    # ---- which files are related to the package

    def search(self) -> None:
        """Index the files that import from the package, and those that import from these."""
        rest: list[str] = []
        new: list[str] = []
        package = PACKAGE.encode()
        for path in self.files:
            data = self.read(path)
            if PACKAGE in path and self.is_fork(path):
                continue
            if package in data or (NEEDLE in data and NAMES.search(data)):
                self.data[path] = data
                self.index[path] = index_of(path, data)
                new.append(path)
            elif b"import" in data:
                rest.append(path)
                if NEEDLE in data:
                    self.data[path] = data
        while new:
            names, modules, tops = self.handed_on(self.extend_tables(new))
            new = []
            if not names:
                break
            for path in rest:
                known = self.data.get(path)
                data = self.read(path) if known is None else known
                if b"import *" not in data and not any(name in data for name in names):
                    continue
                if not any(module in data for module in modules) and not any(
                    path.startswith(top) for top in tops
                ):
                    continue
                self.data[path] = data
                self.index[path] = index_of(path, data)
                new.append(path)
            taken = set(new)
            rest = [path for path in rest if path not in taken]

    def handed_on(self, paths: list[str]) -> tuple[set[bytes], set[bytes], set[str]]:
        """What other files may import from these: names, last parts of module names, package folders."""
        names: set[bytes] = set()
        modules: set[bytes] = set()
        tops: set[str] = set()
        for path in paths:
            key = stem(path)
            gives = self.gives(path) if key else set()
            if not gives:
                continue
            names.update(name.encode() for name in gives)
            modules.add(os.fsencode(key.rsplit("/", 1)[-1]))
            if key == os.path.dirname(path).replace(os.sep, "/"):
                tops.add(os.path.dirname(path) + os.sep)
        return names, modules, tops

    def gives(self, path: str) -> set[str]:
        """The names that a file binds to API names or to their values; "*" if a star import may give more."""
        key, index = stem(path), self.index[path]
        is_open = any(self.below(path, each) is not None or self.resolve(path, each) for each in index.stars)
        made = {name.rstrip("()").split(".")[0] for name in index.makes if self.kind_of(key, name)}
        made |= {name for name in index.bindings if self.kind_of(key, name) or self.kind_of(key, name + "()")}
        made |= leading(self, key, index.bindings)
        return set(self.api_names(key)) | made | ({"*"} if is_open else set())

    # ---- what a name refers to

    def resolve(self, path: str, module: str) -> str | None:
        """The stem of the project's module that an import in a file refers to; None if it is not of the project."""
        key = (path, module)
        if key not in self.found:
            self.found[key] = self.look_up(path, module)
        return self.found[key]

    def look_up(self, path: str, module: str) -> str | None:
        own = stem(path)
        folder = os.path.dirname(path)
        for place in places_of(module, folder, folders_above(folder)):
            wanted = place.replace(os.sep, "/")
            if wanted in self.stems and (wanted != own or module.startswith(".")):
                return wanted
        if module.startswith(".") or below_package(module) is not None:
            return None
        tail = module.replace(".", "/")
        last = tail.rsplit("/", 1)[-1]
        found = [key for key in self.tails.get(last, ()) if key.endswith("/" + tail) and key != own]
        return found[0] if len(found) == 1 else None

    def of_import(self, path: str, module: str, name: str, tables: dict[str, dict[str, str]]) -> str | None:
        """The API name that an import binds, "" for the package itself; None for anything else."""
        below = self.below(path, module)
        if below is not None:
            return api_name(below, name)
        key = self.resolve(path, module) if name else None
        return None if key is None else tables.get(key, {}).get(name)

    def below(self, path: str, module: str) -> str | None:
        """The module path of an import relative to our package; None if it is not of our package."""
        if not module.startswith("."):
            return below_package(strip_source(module))
        parts = path.replace(os.sep, "/").split("/")
        if PACKAGE not in parts[:-1]:
            return None
        start = len(parts) - 1 - parts[::-1].index(PACKAGE)
        package = parts[start:-1]
        dots = len(module) - len(module.lstrip("."))
        if dots > len(package):
            return None
        return ".".join([*package[1 : len(package) - dots + 1], *filter(None, module.lstrip(".").split("."))])

    def of_module(self, key: str, name: str) -> str | None:
        """What `from module import name` gives: an API name, SEVERAL, MISSING, or None for anything else."""
        found = self.api_names(key).get(name)
        if found is not None or name not in REMOVED_NAMES or f"{key}/{name}" in self.stems:
            return found
        bound = any(name in self.index[path].bindings for path in self.stems[key] if path in self.index)
        return MISSING if not bound and self.is_closed(key) else None

    def is_closed(self, key: str) -> bool:
        """Whether all names of a module are visible in its source: no star import, no `__getattr__`."""
        for path in self.stems[key]:
            index = self.index.get(path)
            if index is None:
                data = self.read(path)
                index = index_of(path, data)
                if any(name in index.bindings for name in REMOVED_NAMES):
                    return False
            if index.is_open or index.stars:
                return False
        return True

    def api_names(self, key: str) -> dict[str, str]:
        """The API names that the names of a module refer to; SEVERAL where its bindings disagree."""
        if self.tables is None:
            self.extend_tables(self.index)
        return (self.tables or {}).get(key, {})

    def extend_tables(self, paths: Iterable[str]) -> list[str]:
        """Find the API names of these modules, and again of those that import from a changed one.

        Returns the files whose names changed.
        """
        tables = self.tables = {} if self.tables is None else self.tables
        waiting = dict.fromkeys(map(stem, paths))
        for path in paths:
            index = self.index[path]
            ways = [way for each in index.bindings.values() for way in each if way is not None and way.name]
            for module in {*index.stars, *(way.module for way in ways)}:
                key = self.resolve(path, module) if self.below(path, module) is None else None
                if key is not None:
                    self.dependents.setdefault(key, set()).add(stem(path))
        visits: Counter[str] = Counter()
        changed: dict[str, None] = dict.fromkeys(waiting)
        while waiting:
            key = next(iter(waiting))
            del waiting[key]
            table = self.table(key, tables)
            if table == tables.get(key, {}) or visits[key] > NAME_CHANGES:
                continue
            visits[key] += 1
            tables[key] = table
            changed[key] = None
            waiting.update(dict.fromkeys(sorted(self.dependents.get(key, ()))))
        return [path for key in changed for path in self.stems.get(key, ()) if path in self.index]

    def table(self, key: str, tables: dict[str, dict[str, str]]) -> dict[str, str]:
        """The API names of one module, given what is known of the others."""
        found: dict[str, str] = {}
        for path in self.stems.get(key, ()):
            index = self.index.get(path)
            if index is None:
                continue
            for module in index.stars:
                below, inner = self.below(path, module), self.resolve(path, module)
                if below is not None:
                    found.update(
                        (name, name)
                        for name in REMOVED_NAMES | KEPT_NAMES
                        if api_name(below, name) is not None
                    )
                elif inner is not None and inner != key:
                    found.update(self.given_by_star(inner, tables.get(inner, {})))
            for name, ways in index.bindings.items():
                targets = {
                    None if way is None else self.of_import(path, way.module, way.name, tables)
                    for way in ways
                }
                found.pop(name, None)
                if targets != {None}:
                    found[name] = (targets.pop() or "") if len(targets) == 1 else SEVERAL
            found.update((name, LAZY) for name in self.given_late(key, path) if name not in found)
        return found

    def given_late(self, key: str, path: str) -> set[str]:
        """The removed names that `__getattr__` of a module may give: those in its text, or all if it has none."""
        index, data = self.index[path], self.data[path]
        if "__getattr__" not in index.bindings or PACKAGE.encode() not in data:
            return set()
        named = {name for name in REMOVED_NAMES if name.encode() in data} or REMOVED_NAMES
        own = {
            name for other in self.index.values() for name in named if None in other.bindings.get(name, ())
        }
        return {
            name for name in named - own if name not in index.bindings and f"{key}/{name}" not in self.stems
        }

    def given_by_star(self, key: str, names: dict[str, str]) -> dict[str, str]:
        """The API names of a module that a star import takes."""
        known = [self.index[path] for path in self.stems[key] if path in self.index]
        return {
            name: api
            for name, api in names.items()
            if all(index.gives(name) and (api != LAZY or index.exported) for index in known)
        }

    # ---- what the rounds ask about a file

    def imported(self, path: str) -> dict[str, dict[str, str]]:
        """The API names in every module of the project that a file imports from."""
        found: dict[str, dict[str, str]] = {}
        index = self.index.get(path)
        if index is None:
            return found
        for each in index.imports:
            if self.below(path, each.module) is not None:
                continue
            key = self.resolve(path, each.module)
            if each.name and each.name != "*":
                api = None if key is None else self.of_module(key, each.name)
                if api is not None:
                    found.setdefault(each.module, {})[each.name] = api
                inner = joined(each.module, each.name)
                if self.resolve(path, inner) is not None:
                    self.add_module(path, inner, found)
            elif key is not None:
                self.add_module(path, each.module, found, is_star=each.name == "*")
        return {module: names for module, names in found.items() if names}

    def add_module(
        self, path: str, module: str, found: dict[str, dict[str, str]], is_star: bool = False
    ) -> None:
        key = self.resolve(path, module)
        if key is None or key == stem(path):
            return
        names = self.api_names(key)
        if is_star:
            names = self.given_by_star(key, names)
        found.setdefault(module, {}).update(names)

    def kinds(self, path: str) -> dict[str, str]:
        """The kinds of the values that a file imports from the project; empty if it reads none of their members."""
        found: dict[str, str] = {}
        index, data = self.index.get(path), self.data.get(path, b"")
        if index is None or not path.endswith(PYTHON) or not READS.search(data):
            return found
        for each in index.imports:
            key = self.resolve(path, each.module)
            inner = self.resolve(path, joined(each.module, each.name)) if each.name else key
            if key is not None and each.name:
                names = {each.name, each.name + "()", *self.made_below(key, each.name + ".")}
                made = {joined(each.module, name): self.kind_of(key, name) for name in names}
                found.update((name, kind) for name, kind in made.items() if kind is not None)
            if inner is not None:
                module = joined(each.module, each.name) if each.name else each.module
                made = {f"{module}.{name}": self.kind_of(inner, name) for name in self.made_below(inner, "")}
                found.update((name, kind) for name, kind in made.items() if kind is not None)
        return found

    def made_below(self, key: str, start: str) -> set[str]:
        indexes = [self.index[path] for path in self.stems[key] if path in self.index]
        return {name for index in indexes for name in index.makes if name.startswith(start)}

    def kind_of(self, key: str, name: str, depth: int = 0) -> str | None:
        """The kind of a value in a module: of which old or new class it is; None if unknown."""
        if depth > NAME_CHANGES:
            return None
        names = self.api_names(key)
        for path in self.stems.get(key, ()):
            index = self.index.get(path)
            if index is None:
                continue
            made = index.makes.get(name)
            ways = index.bindings.get(name.removesuffix("()").split(".")[0], [])
            if len(ways) != 1:
                continue
            if made is None:
                way = ways[0]
                other = self.resolve(path, way.module) if way is not None and way.name else None
                if way is None or other is None or other == key:
                    continue
                return self.kind_of(other, way.name + name[len(way.local) :], depth + 1)
            first, _, last = made.rpartition(".")
            api = names.get(made) if not first else last if names.get(first) == "" else None
            return KINDS.get(api) if api else self.kind_of(key, made + "()", depth + 1)
        return None

    def takes(self, path: str, index: ModuleIndex) -> Iterator[tuple[str, str, int]]:
        """The names that a file takes from modules of the project, as (stem, name, line)."""
        for each in index.imports:
            if self.below(path, each.module) is not None:
                continue
            key = self.resolve(path, each.module)
            modules = [] if key is None or each.name else [(each.local, key)]
            if each.name == "*":
                if key is not None:
                    read = index.names | (index.exported or set())
                    taken = set(index.bindings)
                    given = self.given_by_star(key, self.api_names(key))
                    yield from ((key, name, each.line) for name in given if name in read - taken)
                    yield key, "*", each.line
                continue
            if each.name:
                if key is not None:
                    yield key, each.name, each.line
                inner = self.resolve(path, joined(each.module, each.name))
                if inner is not None:
                    modules.append((each.local, inner))
            for local, key in modules:
                starts = {local + ".", each.module + "."} if not each.name else {local + "."}
                for chain in index.chains:
                    for start in starts:
                        if chain.startswith(start):
                            yield key, chain[len(start) :].split(".")[0], each.line

    def importers(
        self, state: dict[str, ModuleIndex], also: dict[str, dict[str, list[str]]] | None = None
    ) -> dict[str, dict[str, list[str]]]:
        """For every module, by stem: the names that other files take from it, and which files; includes `also`."""
        found = {
            key: {name: list(paths) for name, paths in names.items()} for key, names in (also or {}).items()
        }
        stars: dict[str, list[str]] = {}
        for path in self.index:
            for key, name, _ in self.takes(path, state[path]):
                if key == stem(path):
                    continue
                if name == "*":
                    stars.setdefault(key, []).append(path)
                else:
                    found.setdefault(key, {}).setdefault(name, []).append(path)
        # a name that a module gets from a star import counts as taken from the star's source
        for _ in range(NAME_CHANGES):
            size = sum(len(names) for names in found.values())
            for key, paths in stars.items():
                for path in paths:
                    for name, others in list(found.get(stem(path), {}).items()):
                        if name not in state[path].bindings:
                            known = found.setdefault(key, {}).setdefault(name, [])
                            known += [other for other in others if other not in known]
            if size == sum(len(names) for names in found.values()):
                break
        return found


def api_name(below: str, name: str) -> str | None:
    """The API name that `from package.below import name` gives; "" for the package itself."""
    path = ".".join(part for part in (below, name) if part)
    if not path:
        return ""
    last = path.split(".")[-1]
    return last if last in API else None
