"""Versions of installed packages (Triton, NumPy), found without importing them."""

from __future__ import annotations

import importlib.util
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# Distributions that provide the package `triton`: releases, torch nightlies, builds for ROCm and Windows.
TRITON_DISTRIBUTIONS = ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-rocm", "triton-windows")


def release(text: str | None) -> tuple[int, int] | None:
    """Major and minor version: (3, 10) for "3.10.0", "3.10", "3.10.0a1" or "3.10.0+git123"; None if there is none."""
    found = re.match(r"v?(\d+)\.(\d+)", text or "")
    return (int(found[1]), int(found[2])) if found else None


def is_installed(name: str) -> bool:
    """Whether an import would find the package; a folder without __init__.py does not count."""
    if name in sys.modules:
        return sys.modules[name] is not None
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


HAS_TRITON = is_installed("triton")


def installed_versions(name: str, *distributions: str) -> list[str]:
    """The distinct versions that the metadata and the package itself state.

    Usually one. Two if a copy on PYTHONPATH hides an installed package, none if the package is not installed or states
    no version.

    Args:
        name: name of the package.
        distributions: names of the distributions that may provide it. Default: `name`.
    """
    if not is_installed(name):
        return []
    stated = [metadata_version(*distributions or (name,)), package_version(name)]
    return list(dict.fromkeys(text for text in stated if text))


def metadata_version(*distributions: str) -> str | None:
    """The version of the first distribution that is installed."""
    for distribution in distributions:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None


def package_version(name: str) -> str | None:
    """`__version__` of the package: the attribute if it is imported already, otherwise read from its source."""
    if name in sys.modules:
        stated = getattr(sys.modules[name], "__version__", None)
        return stated if isinstance(stated, str) else None
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return None
    try:
        source = Path(spec.origin).read_text("utf-8")
    except (OSError, UnicodeDecodeError):  # inside an archive, or compiled
        return None
    found = re.search(r"""^__version__\s*=\s*["']([^"']+)""", source, re.MULTILINE)
    return found[1] if found else None
