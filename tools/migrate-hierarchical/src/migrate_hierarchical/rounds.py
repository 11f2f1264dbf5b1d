"""Migrates files that import from one another: in rounds until nothing changes, then holds back what has to wait."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace

from .callables import callables
from .carriers import carried
from .diagnostic import Diagnostic
from .discovery import PROSE, PYTHON
from .documents.result import Result
from .facts import MISSING, Facts
from .limits import PROJECT_FILES, ROUNDS
from .module_index import ModuleIndex, index_of
from .project import Project
from .project_folder import fork_of, stem
from .removed_api import NEEDLE, SKIP_FILE
from .settings import UPSTREAM, Settings, is_reason
from .silence import Silence

FORK = "defines the removed names itself, so it is left unchanged"
TOO_LARGE = "too large to see what it imports from the other files, and what they import from it"
TOO_MANY = f"has more than {PROJECT_FILES:,} files, so files that import from those of this run were not searched for"

Migrate = Callable[[list[tuple[str, bytes]], dict[str, Facts]], Iterable[Result]]


def migrate_project(
    paths: Iterable[str],
    files: Iterable[str],
    hits: list[tuple[str, bytes]],
    contents: dict[str, bytes],
    settings: Settings,
    migrate: Migrate,
) -> tuple[list[Result], list[tuple[str, str]]]:
    """The results of a run, and notes: the folders that are left alone or not searched, and why.

    paths: what the run was given. files: what was found there. hits: those of them with a use. contents: the files
    already read. migrate: returns the results for some files.
    """
    project = Project(paths, {os.path.abspath(path): data for path, data in contents.items()}, settings)
    rounds = Rounds(project, {os.path.abspath(path): path for path in files}, migrate, settings)
    forks: set[str] = set()
    for path, data in hits:
        full = os.path.abspath(path)
        if project.is_fork(full):
            forks.add(fork_of(full) or full)
        else:
            rounds.add(full, data)
    forks.update(project.copies(map(os.path.abspath, files)))
    rounds.run()
    rounds.hold_back()
    notes = [(path, FORK) for path in sorted(map(shown_from_here, forks))]
    notes += [(shown_from_here(root), TOO_MANY) for root in project.too_large]
    notes += [(rounds.shown(path), TOO_LARGE) for path, index in project.index.items() if index.is_too_large]
    return rounds.results(), notes


def shown_from_here(path: str) -> str:
    """A path, relative to the current folder if it lies inside."""
    relative = os.path.relpath(path)
    return path if relative.startswith(os.pardir) else relative


class Rounds:
    def __init__(self, project: Project, given: dict[str, str], migrate: Migrate, settings: Settings) -> None:
        self.project, self.migrate, self.settings = project, migrate, settings
        self.given = given  # absolute path -> path as shown to the user
        self.source: dict[str, bytes] = {}  # of every file that is migrated, given or not
        self.done: dict[str, Result] = {}
        self.facts: dict[str, Facts] = {}
        self.imported: dict[str, dict[str, dict[str, str]]] = {}
        self.lookups: dict[str, dict[str, list[str]]] | None = None
        self.kinds: dict[str, dict[str, str]] = {}
        self.carried: dict[str, frozenset[str]] = {}
        self.callables: dict[str, frozenset[str]] = {}
        self.silenced: dict[str, bool] = {}
        self.shared: frozenset[str] = frozenset()
        self.upstream: dict[str, dict[str, dict[str, str]]] = {}
        if UPSTREAM in settings.groups:
            from .upstream.sharing import TakenNames, shared_names

            self.shared = shared_names(project.files, project.read)
            taken = TakenNames(project)
            self.upstream = {path: found for path in taken.index if (found := taken.by(path))}
        self.before = dict(project.index)
        self.after = dict(project.index)

    def add(self, path: str, data: bytes) -> None:
        self.source[path] = data

    def shown(self, path: str) -> str:
        return self.given.get(path) or shown_from_here(path)

    def run(self) -> None:
        """Migrate in memory until no file's imports from the others change any more."""
        for path in self.project.index:
            if path in self.given and path not in self.source and self.takes_names(path):
                self.add(path, self.project.data[path])
        for path in self.upstream:
            if path in self.given and path not in self.source:
                self.add(path, self.project.read(path))
        self.add_importers()
        self.carried = carried(
            self.project, [path for path in self.project.index if path in self.given or path in self.source]
        )
        for path in self.carried:
            self.add(path, self.project.data[path])
        for path in self.source:
            self.imported[path], self.kinds[path] = self.project.imported(path), self.project.kinds(path)
            if NEEDLE in self.source[path] and path in self.project.index:
                self.callables[path] = callables(self.project, path)
        for _ in range(ROUNDS):
            facts = self.current_facts()
            news = [path for path in self.source if path not in self.done or facts[path] != self.facts[path]]
            if not news:
                break
            self.facts = facts
            files = [(self.shown(path), self.source[path]) for path in news]
            given = {self.shown(path): facts[path] for path in news}
            for path, result in zip(news, self.migrate(files, given)):
                self.done[path] = result
                if path in self.before:
                    self.after[path] = self.before[path] if result.new is None else index_of(path, result.new)

    def takes_names(self, path: str) -> bool:
        """Whether a file that does not mention the package gets something of it from a module of the project."""
        if SKIP_FILE in self.project.data[path]:
            return False
        if self.project.imported(path) or self.project.kinds(path):
            return True
        return NEEDLE in self.project.data[path] and bool(callables(self.project, path))

    def add_importers(self) -> None:
        """Add the files, given or not, that take an API name from one that is migrated."""
        news = list(self.source)
        importers = self.project.importers(self.before)
        while news:
            keys = {stem(path) for path in news} - {""}
            news = []
            for key in keys:
                names = self.project.api_names(key) if key in self.project.stems else {}
                for name, paths in importers.get(key, {}).items():
                    for path in paths if name in names else ():
                        data = self.project.data[path]
                        if path not in self.source and SKIP_FILE not in data:
                            self.add(path, data)
                            news.append(path)

    def current_facts(self) -> dict[str, Facts]:
        """The facts for every file, with the project as it is after the last round."""
        importers = self.project.importers(self.after, self.looked_up()) if self.done else {}
        static = self.project.importers(self.after) if self.done and self.lookups else importers
        facts = {}
        for path in self.source:
            taken = importers.get(stem(path), {})
            names = self.project.api_names(stem(path)) if taken else {}
            wanted = {name: shown_from_here(min(taken[name])) for name in sorted(taken) if name in names}
            quiet = frozenset(name for name in wanted if all(map(self.is_quiet, taken[name])))
            by_name = frozenset(name for name in wanted if name not in static.get(stem(path), {}))
            facts[path] = Facts(
                self.imported[path],
                wanted,
                self.kinds[path],
                carried=self.carried.get(path, frozenset()),
                callables=self.callables.get(path, frozenset()),
                looked_up=by_name,
                quiet=quiet,
                shared=self.shared,
                upstream=self.upstream.get(path, {}),
            )
        return facts

    def looked_up(self) -> dict[str, dict[str, list[str]]]:
        """The names of migrated modules that other files look up at run time."""
        if self.lookups is None:
            from .lookups import looked_up

            self.lookups = looked_up(self.project, sorted({stem(path) for path in self.source}))
        return self.lookups

    def is_quiet(self, path: str) -> bool:
        """Whether a comment in a file silences a rule, so that a use stays."""
        if path not in self.silenced:
            data = self.project.data.get(path) or self.project.read(path)
            rules = Silence(data, bare=False, is_python=False).rules
            self.silenced[path] = any(not is_reason(rule) for rule in set().union(*rules.values()))
        return self.silenced[path]

    # ---- what has to wait

    def hold_back(self) -> None:
        """Do not change a module while a file outside this run imports a name from it that the change would remove."""
        held: set[str] = set()
        parted: set[str] = set()
        while True:
            written = {
                path: self.after[path] if path in self.given and path not in held else self.before[path]
                for path in self.before
            }
            waits = self.waits(written)
            news = [path for path in waits if path in self.done and path in self.given and path not in held]
            if not news:
                return
            for path in news:
                if path not in parted and self.migrate_in_part(path, written):
                    parted.add(path)
                    continue
                held.add(path)
                result = self.done[path]
                result.new, result.rewritten, result.left = None, [], self.heard(path, waits[path])

    def migrate_in_part(self, path: str, written: dict[str, ModuleIndex]) -> bool:
        """Migrate a file except for the imports that other files take, if those files in turn wait for this one.

        Returns False if they do not. Otherwise files that take names from one another could only be migrated together.
        """
        takers = self.takers(written)[path]
        others = {other for paths in takers.values() for other in paths}
        if not others or not self.all_wait_for(others, path):
            return False
        names = {name: shown_from_here(min(paths)) for name, paths in takers.items()}
        facts = replace(self.facts[path], awaited=names)
        shown = self.shown(path)
        for result in self.migrate([(shown, self.source[path])], {shown: facts}):
            self.done[path] = result
            self.after[path] = self.before[path] if result.new is None else index_of(path, result.new)
        return True

    def takers(self, state: dict[str, ModuleIndex]) -> dict[str, dict[str, list[str]]]:
        """For every migrated file: the names that its migration removes, and for each the files that import it."""
        old, new = self.project.seen_as(self.before), self.project.seen_as(self.after)
        importers = old.importers(state)
        found = {}
        for path in self.done:
            key = stem(path)
            found[path] = {
                name: paths
                for name, paths in importers.get(key, {}).items()
                if old.of_module(key, name) not in (None, MISSING, new.of_module(key, name))
            }
        return found

    def all_wait_for(self, paths: Iterable[str], other: str) -> bool:
        """Whether each of these files must wait for `other`, directly or through further files."""
        takers = self.takers(self.before)
        return all(waits_for(path, other, takers) for path in paths)

    def heard(self, path: str, left: list[Diagnostic]) -> list[Diagnostic]:
        """The diagnostics that neither the settings nor a comment on the import silence."""
        silence = Silence(self.source[path], bare=not path.endswith(PROSE), is_python=path.endswith(PYTHON))
        return [
            entry
            for entry in left
            if self.settings.wants(entry.rule) and not silence.covers(entry.line, entry.rule)
        ]

    def waits(self, written: dict[str, ModuleIndex]) -> dict[str, list[Diagnostic]]:
        """By changed module: a diagnostic for every name whose meaning changed and that a file still imports."""
        old, new = self.project.seen_as(self.before), self.project.seen_as(written)
        found: dict[str, list[Diagnostic]] = {}
        for key, taken in sorted(new.importers(written).items()):
            for name in sorted(taken):
                api = old.of_module(key, name)
                if api in (None, MISSING) or api == new.of_module(key, name):
                    continue
                other = shown_from_here(min(taken[name]))
                for path in self.project.stems[key]:
                    if path not in written or written[path] is self.before[path]:
                        continue
                    ways = [way for way in self.before[path].bindings.get(name, []) if way is not None]
                    line = ways[0].line if ways else 1
                    entry = Diagnostic("HIER115", f"{other} imports {name} from here", line=line)
                    found.setdefault(path, []).append(entry)
        return found

    def results(self) -> list[Result]:
        """The results of the given files, in their order, each with the files that must be written before it."""
        for path, names in self.takers(self.before).items():
            files = {other for paths in names.values() for other in paths}
            self.done[path].takers = sorted(self.given[other] for other in files if other in self.given)
        return [self.done[path] for path in self.given if path in self.done]


def waits_for(path: str, other: str, takers: dict[str, dict[str, list[str]]]) -> bool:
    """Whether a file must wait for `other`, directly or through further files."""
    seen: set[str] = set()
    pending = [path]
    while pending:
        each = pending.pop()
        if each not in seen and each in takers:
            seen.add(each)
            pending += [taker for paths in takers[each].values() for taker in paths]
    return other in seen - {path}
