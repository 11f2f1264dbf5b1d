"""docs/upstream-names.md lists every public name of 0.2.0 once, and what it names here exists."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch

import dilated_attention_pytorch
from migrate_hierarchical import removed_api
from tests.docs.fences import ROOT

PAGE = (ROOT / "docs/upstream-names.md").read_text("utf-8")
# `__all__` of dilated_attention_pytorch 0.2.0
UPSTREAM = [
    "AdaptiveConfig",
    "AdaptiveSparsityTrainer",
    "BlockSparseAdaptive",
    "BlockSparseHierarchical",
    "BlockSparseRingDilatedAttention",
    "BlockSparseRingDistributedDilatedAttention",
    "BlockSparseRingMultiheadDilatedAttention",
    "DilatedAttention",
    "DilatedTransformerDecoderLayer",
    "DilatedTransformerEncoderLayer",
    "DistributedSparseConfig",
    "DistributedSparsePattern",
    "HierarchicalConfig",
    "ImportanceScorer",
    "ImprovedDilatedAttention",
    "ImprovedMultiheadDilatedAttention",
    "LongNet",
    "MultiheadDilatedAttention",
    "PatternConfig",
    "PatternOptimizer",
    "PatternQualityAnalyzer",
    "PatternType",
    "RingAttentionConfig",
    "RingDilatedAttention",
    "RingDilatedAttentionProduction",
    "SparsePatternConfig",
    "SparsePatternGenerator",
    "create_adaptive_block_sparse",
    "create_adaptive_sparse_attention",
    "create_block_sparse_attention",
    "create_dilated_attention",
    "create_hierarchical_attention",
    "create_hierarchical_block_sparse",
    "create_multihead_block_sparse",
    "create_multihead_dilated_attention",
    "create_production_ring_attention",
    "get_block_sparse_preset",
    "get_hierarchical_presets",
]


def rows(heading: str | None = None) -> dict[str, list[str]]:
    """The rows of the tables, of one section or of all: the name, and the other cells."""
    text = PAGE if heading is None else PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return {
        name: cells.split(" | ") for name, cells in re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE)
    }


def test_every_public_name_of_upstream_has_one_row() -> None:
    assert len(UPSTREAM) == 38
    found = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert sorted(found) == sorted(UPSTREAM)


def test_names_carried_over_exist_and_the_others_do_not() -> None:
    carried = rows("Carried over")
    assert len(carried) == 4
    assert set(carried) == set(UPSTREAM) & set(dilated_attention_pytorch.__all__)


def test_hierarchical_names_are_those_of_the_codemod() -> None:
    assert set(rows("Hierarchical: the codemod rewrites them")) == removed_api.REMOVED_NAMES


@pytest.mark.parametrize("name", [name for name in UPSTREAM if name not in rows("Carried over")])
def test_what_a_row_names_exists(name: str) -> None:
    here = rows()[name][-1]
    named = [word for word in re.findall(r"`([A-Za-z_.]+)`", here) if word not in ("block_bias",)]
    for path in named:
        if path in UPSTREAM and path not in dilated_attention_pytorch.__all__:
            assert here == f"as `{path}`", here
            continue
        if path in ("segment_lengths", "dilation_rates"):
            continue
        thing: object = torch if path.startswith("nn.") else dilated_attention_pytorch
        for part in path.split("."):
            assert hasattr(thing, part), path
            thing = getattr(thing, part)
    assert named or "not yet" in here or "no replacement" in here or "to write" in here


def test_names_that_are_gone_say_so() -> None:
    for name in set(UPSTREAM) - set(dilated_attention_pytorch.__all__):
        with pytest.raises(ImportError, match=name):
            exec(f"from dilated_attention_pytorch import {name}")


def test_contents_of_the_migration_guide_are_the_old_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs/_generate")
    importlib.import_module("rules").write(tmp_path, tmp_path)
    headings = re.findall(
        r"^### (.*) \{ #(\w+) \}$", (tmp_path / "rules.md").read_text("utf-8"), re.MULTILINE
    )
    text = " ".join(heading for heading, _ in headings)
    for name in (
        *removed_api.REMOVED_NAMES,
        removed_api.REMOVED_MODULE,
        removed_api.KEYWORD,
        *removed_api.REMOVED_PRESETS,
    ):
        assert f"`{name}`" in text or f"{name}=" in text, name
    assert not re.search(r"HIER\d", text)

    guide = (ROOT / "docs/migrate.md").read_text("utf-8")
    anchors = {anchor for _, anchor in headings}
    assert set(re.findall(r"\(#(hier\d+)\)", guide)) <= anchors
