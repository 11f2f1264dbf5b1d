"""Patterns: config and lengths -> pairs of blocks. Index arithmetic only."""

from importlib import import_module

from ..config import PATTERN_TYPES

for name in PATTERN_TYPES:
    import_module(f".{name}", __name__)  # the file of a pattern bears its name and registers it
