"""What the rules of test_imports.py say and the code does not do yet. An entry that holds must go from here."""

from __future__ import annotations

PENDING: dict[str, set[str]] = {}
