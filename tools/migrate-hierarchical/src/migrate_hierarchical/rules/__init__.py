"""The rules: `hierNNN.py` and `upNNN.py` each hold the one of that name.

UP101, UP107 and UP108 depend on how a name is reached, and stand in `upstream/planner.py`. The reasons HIER101 to HIER116
are given by the rules that do not rewrite a use, and by `checks/`.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module


def load(group: str) -> None:
    """Import the files of a group, which registers its rules."""
    for module in pkgutil.iter_modules(__path__):
        if module.name.startswith(group):
            import_module(f"{__name__}.{module.name}")
