"""The rules: `hierNNN.py` and `upNNN.py` each hold the one of that name.

Reasons without a file are given by several: HIER1xx by the rules that do not rewrite a use and by `checks/`; UP101, UP107
and UP108 by UP001 and `upstream/planner.py`; UP109 and UP110 by the rules that cannot write what they would.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module


def load(group: str) -> None:
    """Import the files of a group, which registers its rules."""
    for module in pkgutil.iter_modules(__path__):
        if module.name.startswith(group):
            import_module(f"{__name__}.{module.name}")
