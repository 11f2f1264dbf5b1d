"""Which Triton and NumPy are installed, without importing them."""

from __future__ import annotations

import importlib.util
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# Distributions that contain the package `triton`: releases, nightly builds of torch, builds for ROCm and Windows.
TRITON_DISTRIBUTIONS = ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-rocm", "triton-windows")


def release(text: str | None) -> tuple[int, int] | None:
    """(3, 10) of "3.10.0", "3.10", "3.10.0a1" and "3.10.0+git123"; None for any other text."""
    found = re.match(r"v?(\d+)\.(\d+)", text or "")
    return (int(found[1]), int(found[2])) if found else None


def is_installed(name: str) -> bool:
    """Whether the package can be imported; a namespace folder of that name does not count."""
    if name in sys.modules:
        return sys.modules[name] is not None
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


def installed_versions(name: str, *distributions: str) -> list[str]:
    """The versions that the metadata and the package itself give; usually one and the same.

    Two where a copy on PYTHONPATH hides an installed one. None where it is not installed, or does not say.

    Args:
        name: of the package.
        distributions: that may contain it, if not one of the same name.
    """
    if not is_installed(name):
        return []
    said = [by_metadata(*distributions or (name,)), by_package(name)]
    return list(dict.fromkeys(text for text in said if text))


def by_metadata(*distributions: str) -> str | None:
    """The version of the first of the distributions that is installed."""
    for distribution in distributions:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None


def by_package(name: str) -> str | None:
    """`__version__` of an imported package, or the one that its source sets."""
    if name in sys.modules:
        said = getattr(sys.modules[name], "__version__", None)
        return said if isinstance(said, str) else None
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return None
    try:
        source = Path(spec.origin).read_text("utf-8")
    except (OSError, UnicodeDecodeError):  # in an archive, or compiled
        return None
    found = re.search(r"""^__version__\s*=\s*["']([^"']+)""", source, re.MULTILINE)
    return found[1] if found else None
