"""Modules of the user's own that import removed names, from which other files import them again."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

from .names import PACKAGE

FROM_IMPORT = re.compile(rb"^[ \t>.]*from[ \t]+(\.*[\w.]*)[ \t]+import\b", re.MULTILINE)
SUFFIXES = (".py", ".pyi", ".pyw")


def stem(path: str) -> str:
    """The path of a module without its suffix; that of the folder for a package."""
    root, suffix = os.path.splitext(os.path.abspath(path))
    if suffix not in SUFFIXES:
        return ""
    root = root.replace(os.sep, "/")
    return root.removesuffix("/__init__")


@dataclass
class Reexports:
    """Local name -> name of the API, for every module that has removed names."""

    modules: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, path: str, names: dict[str, str]) -> bool:
        """Note the removed names that a module imports; whether that is news."""
        key = stem(path)
        if not (key and names) or self.modules.get(key) == names:
            return False
        self.modules[key] = names
        return True

    def find(self, path: str, module: str) -> dict[str, str]:
        """The names that `from module import ...` in a file can take from a noted module."""
        dots = len(module) - len(module.lstrip("."))
        parts = [part for part in module[dots:].split(".") if part]
        if dots:
            folder = os.path.dirname(os.path.abspath(path)).replace(os.sep, "/").split("/")
            return self.modules.get("/".join([*folder[: len(folder) - dots + 1], *parts]), {})
        tail = "/" + "/".join(parts)
        own = stem(path)
        found = [names for key, names in self.modules.items() if key.endswith(tail) and key != own]
        return found[0] if parts and len(found) == 1 else {}

    def named_in(self, data: bytes) -> bool:
        """Whether a file holds the name of a noted module."""
        return any(key.rsplit("/", 1)[-1].encode() in data for key in self.modules)

    def concern(self, path: str, data: bytes) -> bool:
        """Whether a file seems to import from a noted module."""
        modules = {module.decode() for module in FROM_IMPORT.findall(data)}
        return any(self.find(path, module) for module in modules if PACKAGE not in module.split(".")[:2])
