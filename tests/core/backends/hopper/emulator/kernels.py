"""The modules of the Hopper backend, imported again so that their kernels are functions of Python."""

from __future__ import annotations

import functools
import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import triton

PACKAGE = "dilated_attention_pytorch.backends.hopper"
NAMES = ("gluon_names", "passes", "launcher", "launch", "tuning", "work_order")


def emulated(release: str | None = None) -> Any:
    """The modules by name (`passes`, `tuning`, ... and `kernels`, with those of the kernels), as for a release of Triton.

    They are apart from the usual ones: what a test replaces here changes nothing else.
    """
    return imported(triton.__version__ if release is None else release)


@functools.lru_cache(maxsize=4)
def imported(release: str) -> Any:
    """`emulated`, once for every release."""
    importlib.import_module("triton.language")
    importlib.import_module("dilated_attention_pytorch.launching.raw_launch")
    package = importlib.import_module(PACKAGE)
    from .language import modules, value_range

    fakes = modules()
    kept_modules = {
        name: module
        for name, module in sys.modules.items()
        if name in fakes or name.startswith(PACKAGE + ".")
    }
    kept_names, version = dict(package.__dict__), triton.__version__
    for name in kept_modules:
        del sys.modules[name]
    try:
        sys.modules.update(fakes)
        triton.__version__ = release
        made = {name: importlib.import_module(f"{PACKAGE}.{name}") for name in NAMES}
        prefix = f"{PACKAGE}.kernels."
        kernels = {
            name.removeprefix(prefix): module
            for name, module in sys.modules.items()
            if name.startswith(prefix)
        }
        others = {
            name.removeprefix(PACKAGE + "."): module
            for name, module in sys.modules.items()
            if name.startswith(PACKAGE + ".") and not name.startswith(PACKAGE + ".kernels")
        }
    finally:
        triton.__version__ = version
        for name in [*fakes, *(name for name in sys.modules if name.startswith(PACKAGE + "."))]:
            sys.modules.pop(name, None)
        sys.modules.update(kept_modules)
        package.__dict__.clear()
        package.__dict__.update(kept_names)
    for module in kernels.values():
        if is_gluon(module):
            module.__dict__["range"] = value_range
    return SimpleNamespace(**{**others, **made, "kernels": SimpleNamespace(**kernels)})


def is_gluon(module: ModuleType) -> bool:
    """Whether a module has kernels of Gluon."""
    from .language import JITFunction

    return any(isinstance(x, JITFunction) for x in module.__dict__.values())
