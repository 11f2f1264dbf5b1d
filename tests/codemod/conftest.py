"""Settings of the codemod's tests: property tests try the same examples in every run."""

from __future__ import annotations

from hypothesis import settings

# Others, at random: nox -s codemod -- --hypothesis-profile=default
settings.register_profile("same-each-time", derandomize=True)
settings.load_profile("same-each-time")
