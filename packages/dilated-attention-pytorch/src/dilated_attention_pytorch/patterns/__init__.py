"""Patterns: from a config and lengths to the active block pairs, with index arithmetic only."""

from importlib import import_module

from ..config import PATTERN_TYPES

for name in PATTERN_TYPES:
    import_module(f".{name}", __name__)  # a pattern's file has its name, and registers it
