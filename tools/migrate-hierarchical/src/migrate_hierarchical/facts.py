"""What the other files of a project say about one file."""

from __future__ import annotations

from dataclasses import dataclass, field

# Instead of a name of the API: what an import from a module of the user's own gets.
SEVERAL = "?"  # something that is bound in several ways there
MISSING = "!"  # nothing: a removed name that the module does not have
LAZY = "~"  # what `__getattr__` of a module gives that names the package


@dataclass(frozen=True)
class Facts:
    """Plain data, so that it can be sent to worker processes."""

    # module as the file writes it -> name there -> name of the API, "" for the package itself, or one of the above
    imported: dict[str, dict[str, str]] = field(default_factory=dict)
    # name of the file's own module -> a file that imports it from here and goes on doing so
    wanted: dict[str, str] = field(default_factory=dict)
    # dotted path as the file writes it, "()" after it for the result of a call -> what it holds, as Origins has it
    kinds: dict[str, str] = field(default_factory=dict)
    # names by which other files keep a removed variant or pass it on, as carriers.py has them
    carried: frozenset[str] = frozenset()
    # dotted paths as the file writes them, or names that a star gives, that lead to callables of the package
    callables: frozenset[str] = frozenset()
    # names in `wanted` that no file imports but one looks up at run time
    looked_up: frozenset[str] = frozenset()
    # names in `wanted` that are needed only by files where a comment silences the rule
    quiet: frozenset[str] = frozenset()

    # name of the file's own module -> a file that still imports it and is migrated after this one
    awaited: dict[str, str] = field(default_factory=dict)

    def taken(self, name: str) -> str:
        """Who takes a wanted name from the file, and how."""
        how = f"looks {name} up here" if name in self.looked_up else f"imports {name} from here"
        return f"{self.wanted[name]} {how}"

    def find(self, module: str) -> dict[str, str]:
        """The names of the API that can be taken from a module of the user's own."""
        return self.imported.get(module, {})
