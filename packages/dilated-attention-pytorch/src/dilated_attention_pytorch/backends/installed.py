"""Which versions of Triton and NumPy an import would find, without importing them."""

from __future__ import annotations

import importlib.util
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# Distributions that contain the package `triton`: nightly builds of torch, builds for ROCm and Windows.
TRITON_DISTRIBUTIONS = ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-rocm", "triton-windows")


def release(text: str | None) -> tuple[int, int] | None:
    """(3, 10) of "3.10.0", "3.10", "3.10.0a1" and "3.10.0+git123"; None where nothing such is said."""
    found = re.match(r"v?(\d+)\.(\d+)", text or "")
    return (int(found[1]), int(found[2])) if found else None


def installed_version(name: str, *distributions: str) -> str | None:
    """The version of the package `name` that an import would find; "" where it does not say, None where there is none.

    Asked in this order, because one package may hide another of another version (on PYTHONPATH, say): the imported
    package, its source, then the metadata of `distributions`.
    """
    said = getattr(sys.modules.get(name), "__version__", None)
    if isinstance(said, str):
        return said
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a module put into sys.modules by hand
        return ""
    if spec is None or not spec.origin:  # not there, or a folder of that name
        return None
    try:
        found = re.search(
            r"^__version__\s*=\s*['\"]([^'\"]+)", Path(spec.origin).read_text("utf-8"), re.MULTILINE
        )
    except (OSError, UnicodeDecodeError):  # out of an archive
        found = None
    if found:
        return found[1]
    for distribution in distributions or (name,):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return ""


TRITON = installed_version("triton", *TRITON_DISTRIBUTIONS)
