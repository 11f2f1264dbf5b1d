"""What the other files of a project say about one file."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

# In place of an API name, for an import from a module of the user's own:
SEVERAL = "?"  # a name that is bound in several ways there
MISSING = "!"  # a removed name that the module does not have
LAZY = "~"  # a name from the `__getattr__` of a module that mentions the package


@dataclass(frozen=True)
class Facts:
    """Plain data, so that it can be sent to worker processes."""

    # module as the file writes it -> name there -> API name, "" for the package itself, or one of the above
    imported: dict[str, dict[str, str]] = field(default_factory=dict)
    # name of the file's own module -> a file that continues to import it from here
    wanted: dict[str, str] = field(default_factory=dict)
    # dotted path as the file writes it, with "()" for the result of a call -> its kind, as in Origins
    kinds: dict[str, str] = field(default_factory=dict)
    # names under which other files store a removed variant or pass it on, as found by carriers.py
    carried: frozenset[str] = frozenset()
    # dotted paths as the file writes them, or names from a star import, that lead to callables of the package
    callables: frozenset[str] = frozenset()
    # names in `wanted` that no file imports but one looks up at run time
    looked_up: frozenset[str] = frozenset()
    # names in `wanted` that are needed only by files where a comment silences the rule
    quiet: frozenset[str] = frozenset()
    # names of upstream's classes that files of the project import from other modules than the package's
    shared: frozenset[str] = frozenset()
    # like `imported`, for names of upstream that the group HIER does not follow
    upstream: dict[str, dict[str, str]] = field(default_factory=dict)
    # name of the file's own module -> a file that still imports it and is migrated after this one
    awaited: dict[str, str] = field(default_factory=dict)

    def with_upstream(self) -> Facts:
        """The same with the names of upstream among those that are imported."""
        modules = {*self.imported, *self.upstream}
        both = {each: {**self.imported.get(each, {}), **self.upstream.get(each, {})} for each in modules}
        return replace(self, imported=both)

    def taken(self, name: str) -> str:
        """Who takes a wanted name from the file, and how."""
        how = f"looks {name} up here" if name in self.looked_up else f"imports {name} from here"
        return f"{self.wanted[name]} {how}"

    def find(self, module: str) -> dict[str, str]:
        """The API names that can be imported from a module of the user's own."""
        return self.imported.get(module, {})
