"""The rules, one per file. Importing this package registers all of them."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from .base import DECIDERS, RULE_OF

for _module in pkgutil.iter_modules(__path__):
    if _module.name.startswith("hier"):
        import_module(f"{__name__}.{_module.name}")

__all__ = ["DECIDERS", "RULE_OF"]
