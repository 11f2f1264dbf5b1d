"""Errors that the user can fix."""

from __future__ import annotations


class CommandError(Exception):
    """Bad input or a missing package: printed in one line, exit status 2."""
