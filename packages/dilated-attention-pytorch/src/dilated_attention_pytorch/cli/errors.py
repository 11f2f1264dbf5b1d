"""What the user can put right."""

from __future__ import annotations


class CommandError(Exception):
    """Bad input or a missing extra: printed as one line, exit status 2."""
