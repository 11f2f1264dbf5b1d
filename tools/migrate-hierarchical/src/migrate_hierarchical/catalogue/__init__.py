"""The ids and texts of all rules and reasons, one file per rule; nothing here needs libcst."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from .reasons import REASONS
from .reasons_up import UP_REASONS
from .rule import Rule


def rules_of(prefix: str) -> tuple[Rule, ...]:
    """The rules of one group."""
    return tuple(
        import_module(f"{__name__}.{name}").RULE
        for name in sorted(module.name for module in pkgutil.iter_modules(__path__))
        if name.startswith(prefix)
    )


RULES = rules_of("hier")
UP_RULES = rules_of("up")  # opt-in

__all__ = ["REASONS", "RULES", "UP_REASONS", "UP_RULES", "Rule"]
