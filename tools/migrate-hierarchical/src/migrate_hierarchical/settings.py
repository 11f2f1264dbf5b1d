"""The options of a run: defaults, `[tool.migrate-hierarchical]` in pyproject.toml, the command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from .facts import Facts

# Groups of rules, in the order in which they run. The ids of a group begin with its name.
UPSTREAM = "UP"  # opt-in: it changes calls that are valid in both versions
HIERARCHICAL_GROUP = "HIER"
GROUPS = (UPSTREAM, HIERARCHICAL_GROUP)


class UsageError(ValueError):
    """An option has a bad value; the message names the option, the value and what is allowed."""


@dataclass(frozen=True)
class Settings:
    """Every option of a run; pyproject.toml spells them with hyphens."""

    sparsity_ratio: float = 0.01
    dilation_rates: tuple[int, ...] = (1, 2, 4, 8)
    explain: bool = False
    seq_len: int = 16_384
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    jobs: int = 0
    time_limit: float = 15.0  # seconds of CPU time for one file; 0: no limit
    line_length: int = 0  # maximum for TODO lines; 0: that of the project's ruff or black, if any
    # not options: found during a run
    facts: Facts | None = None  # about the file, from the others of its project
    uses_package: bool = False  # a Python file of the run names the package
    group: str = HIERARCHICAL_GROUP  # of the rules that run now

    def check(self) -> Settings:
        """Returns the settings; raises UsageError if a value is out of range."""
        if not 0 < self.sparsity_ratio <= 1:
            raise UsageError(f"--sparsity-ratio must be above 0 and at most 1, got {self.sparsity_ratio:g}")
        if not self.dilation_rates or any(rate < 1 for rate in self.dilation_rates):
            rates = ",".join(map(str, self.dilation_rates))
            raise UsageError(
                f"--dilation-rates must be integers of at least 1, such as 1,2,4,8, got {rates!r}"
            )
        if self.seq_len < 64:
            raise UsageError(f"--seq-len must be at least 64, got {self.seq_len}")
        if self.jobs < 0:
            raise UsageError(f"--jobs must be at least 0 (0: one per core), got {self.jobs}")
        if not 0 <= self.time_limit < float("inf"):
            raise UsageError(f"--time-limit must be at least 0 seconds (0: none), got {self.time_limit:g}")
        if self.line_length < 0:
            raise UsageError(
                f"--line-length must be at least 0 (0: that of ruff or black), got {self.line_length}"
            )
        return self

    def with_ids(self, known: Sequence[str]) -> Settings:
        """The settings with every prefix in --select and --ignore expanded; raises UsageError."""
        select = tuple(rule for given in self.select for rule in expanded(given, known, "select"))
        ignore = tuple(rule for given in self.ignore for rule in expanded(given, known, "ignore"))
        return replace(self, select=select, ignore=ignore)

    def wants(self, rule: str) -> bool:
        """Whether a rule rewrites, or a reason is reported.

        --select with only rules leaves every report on: what a rule cannot rewrite is always reported.
        """
        if rule in self.ignore:
            return False
        group = group_of(rule)
        if not self.select:
            return group == HIERARCHICAL_GROUP
        selected = [each for each in self.select if group_of(each) == group]
        if not selected or rule in selected:
            return bool(selected)
        return is_reason(rule) and not any(is_reason(each) for each in selected)

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that run, in their order."""
        if not self.select:
            return (HIERARCHICAL_GROUP,)
        selected = set(map(group_of, self.select))
        return tuple(group for group in GROUPS if group in selected)

    def of_group(self, group: str) -> Settings:
        """The settings for a run of one group only."""
        from .catalogue import RULES

        select = tuple(each for each in self.select if group_of(each) == group)
        if (
            len(self.groups) > 1
            and group == HIERARCHICAL_GROUP
            and {rule.id for rule in RULES} <= set(select)
        ):
            select = ()  # all of them, as without --select
        return replace(self, select=select, group=group)

    @property
    def wants_all(self) -> bool:
        """Whether every rule that rewrites is selected."""
        return not self.select and all(is_reason(rule) for rule in self.ignore)


def group_of(rule: str) -> str:
    """The group of an id."""
    return rule.rstrip("0123456789")


def is_reason(rule: str) -> bool:
    """Whether an id is that of a report (HIER1xx, UP1xx), not of a rule that rewrites."""
    return rule.startswith(tuple(f"{group}1" for group in GROUPS))


def expanded(given: str, known: Sequence[str], option: str) -> list[str]:
    """The ids that a word stands for: itself, or all that begin with it (HIER1, HIER1xx); raises UsageError."""
    word = given.upper()
    start = word.rstrip("X")
    group = next((each for each in GROUPS if start.startswith(each)), None)
    found = [] if group is None else [rule for rule in known if rule.startswith(start)]
    if not found or (len(word) > len(f"{group}000") and word not in known):
        raise UsageError(
            f"--{option} must name rules of --list-rules, such as HIER001 or HIER113, "
            f"got {given!r}{suggestion(word, known)}"
        )
    return found


def suggestion(word: str, known: Iterable[str]) -> str:
    """A suggestion of the closest known word, as the end of a sentence; empty if none is close."""
    from difflib import get_close_matches

    near = get_close_matches(word, list(known), 1, 0.6)
    return f"; did you mean {near[0]}?" if near else ""


FOUND = {"facts", "uses_package", "group"}
LISTS = {"select", "ignore", "include", "exclude", "dilation_rates"}


def find_pyproject(start: str) -> str | None:
    """The nearest pyproject.toml at or above a folder."""
    folder = os.path.abspath(start)
    while True:
        path = os.path.join(folder, "pyproject.toml")
        if os.path.isfile(path):
            return path
        if os.path.dirname(folder) == folder:
            return None
        folder = os.path.dirname(folder)


def read_pyproject(path: str) -> dict[str, Any]:
    """The tool's table in a pyproject.toml, as fields of Settings; raises UsageError."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    if b"migrate-hierarchical" not in data:
        return {}
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        tool = tomllib.loads(data.decode()).get("tool", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    table = tool.get("migrate-hierarchical", {}) if isinstance(tool, dict) else {}
    if not isinstance(table, dict):
        raise UsageError(f"{path}: [tool.migrate-hierarchical] must be a table, got {table!r}")
    return {checked_name(key, path): checked_value(key, value, path) for key, value in table.items()}


def checked_name(key: str, path: str) -> str:
    name = key.replace("-", "_")
    options = [field.name for field in fields(Settings) if field.name not in FOUND]
    if name not in options:
        known = [option.replace("_", "-") for option in options]
        raise UsageError(
            f"{path}: [tool.migrate-hierarchical] has no {key!r}; it knows {', '.join(known)}"
            f"{suggestion(key, known)}"
        )
    return name


def checked_value(key: str, value: object, path: str) -> object:
    name = key.replace("-", "_")
    wrong = UsageError(f"{path}: {key} of [tool.migrate-hierarchical] cannot be {value!r}")
    if name in LISTS:
        kind = int if name == "dilation_rates" else str
        if not isinstance(value, list) or not all(type(item) is kind for item in value):
            raise wrong
        return tuple(value)
    default = getattr(Settings, name)
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if type(value) is not type(default):
        raise wrong
    return value


def load(paths: list[str], given: dict[str, Any]) -> Settings:
    """The settings: those of the first path's pyproject.toml, overridden by the command line."""
    start = paths[0] if paths and paths[0] != "-" else os.curdir
    pyproject = find_pyproject(start if os.path.isdir(start) else os.path.dirname(start))
    settings = replace(Settings(), **(read_pyproject(pyproject) if pyproject else {}))
    return replace(settings, **given)
