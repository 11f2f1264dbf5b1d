"""Reports removed names in YAML, TOML, JSON, INI and shell files and Dockerfiles, which are never changed."""

from __future__ import annotations

import re

from ..diagnostic import Diagnostic
from ..removed_api import GONE_NAMES, HIERARCHICAL_STRINGS, KEYWORD, PACKAGE

NAMES = "|".join(sorted({*GONE_NAMES, KEYWORD}, key=len, reverse=True)).encode()
VALUES = "|".join(sorted(HIERARCHICAL_STRINGS, key=len, reverse=True)).encode()
KEYS = rb"(?:\w+[_.-])?(?:variants?|pattern_types?|presets?|preset_names?)"
# Names that no other library has.
CERTAIN = re.compile(
    rb"\b(?:BlockSparseHierarchical|create_hierarchical_block_sparse|block_sparse_hierarchical)\b|"
    rb"\bpreset(?:_name)?['\"]?\s*[:=]\s*['\"]?hierarchical_(?:standard|fine|long)\b"
)
# Refers to the package in a project that uses it: `variant: hierarchical`, `"variants": ["base", "hierarchical"]`.
LIKELY = re.compile(
    rb"\b(?:" + NAMES + rb")\b|(?<![\w.-])-{0,2}" + KEYS
    + rb"['\"]?(?:\s*[:=]\s*|\s+)(?:\[[^\]\n]*?[\[\s,])?['\"]?(?:" + VALUES + rb")(?![\w.-])",
)  # fmt: skip
# `values:` and `choices:` below a key belong to that key, as in the sweeps of a tuner.
NESTED = re.compile(rb"^\s*['\"]?(?:values?|choices|options|default)['\"]?\s*:\s*(.*)$")
LIST_BEGINS = re.compile(rb"^(\s*)(?:-\s+)?['\"]?" + KEYS + rb"['\"]?\s*[:=]\s*\[?\s*(?:#.*)?$")
IN_LIST = re.compile(rb"(?<![\w.-])(?:" + VALUES + rb")(?![\w.-])")
ITEM = re.compile(rb"^\s*(?:-\s*)?['\"]?(" + VALUES + rb")['\"]?\s*,?\s*\]?\s*(?:#.*)?$")


def find_mentions(data: bytes, uses_package: bool = False) -> list[Diagnostic]:
    """One diagnostic per line that names the removed API. uses_package: other files of the run import the package."""
    names_package = uses_package or PACKAGE.encode() in data or b"dilated-attention-pytorch" in data
    if not (names_package or CERTAIN.search(data)):
        return []
    found = []
    listed = False  # inside a list of names over several lines
    for number, line in enumerate(data.splitlines(), 1):
        match = CERTAIN.search(line)
        if match is None and names_package:
            match = LIKELY.search(line) or (ITEM.match(line) if listed else None)
        nested = NESTED.match(line) if listed else None
        if match is None and nested is not None and names_package and IN_LIST.search(nested.group(1)):
            match = nested
        if match is not None:
            found.append(Diagnostic("HIER120", match.group().strip().decode(errors="replace"), line=number))
        if LIST_BEGINS.match(line) or nested is not None:
            listed = True
        elif listed:
            item = line.strip().rstrip(b",").rstrip(b"]").strip()
            listed = item.startswith((b"-", b"#")) or re.fullmatch(rb"['\"]?[\w-]*['\"]?", item) is not None
    return found
