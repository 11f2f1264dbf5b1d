"""The ids and texts of all rules and reasons, one file per rule; nothing here needs libcst."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from .reasons import REASONS
from .rule import Rule

RULES: tuple[Rule, ...] = tuple(
    import_module(f"{__name__}.{name}").RULE
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__))
    if name.startswith("hier")
)

__all__ = ["REASONS", "RULES", "Rule"]
