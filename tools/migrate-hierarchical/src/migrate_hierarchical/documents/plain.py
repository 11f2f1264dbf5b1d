"""YAML, TOML, JSON and shell files: reported, never changed."""

from __future__ import annotations

import re

from ..names import PACKAGE, REMOVED, REMOVED_MODULE, REMOVED_PRESETS
from .result import Entry

NAMES = "|".join(sorted({*REMOVED, REMOVED_MODULE}, key=len, reverse=True))
CERTAIN = re.compile(
    rb"\b(BlockSparseHierarchical|create_hierarchical_block_sparse|block_sparse_hierarchical|"
    + b"|".join(sorted(name.encode() for name in REMOVED_PRESETS))
    + rb")\b"
)
LIKELY = re.compile(
    rb"\b(" + NAMES.encode() + rb")\b|\b(variant|pattern_type|preset)\b['\"]?\s*[:=]\s*['\"]?hierarchical\b"
)


def find_mentions(data: bytes) -> list[Entry]:
    """One entry per line that names the removed API."""
    names_package = PACKAGE.encode() in data or b"dilated-attention-pytorch" in data
    if not (names_package or CERTAIN.search(data)):
        return []
    found = []
    for number, line in enumerate(data.splitlines(), 1):
        match = CERTAIN.search(line) or LIKELY.search(line)
        if match is not None:
            found.append(Entry(number, "HIER120", match.group().decode()))
    return found
