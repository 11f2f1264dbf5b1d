"""docs/upstream-names.md has every public name of 0.2.0 and every argument, and what it says of this library holds."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import dilated_attention_pytorch
from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
from dilated_attention_pytorch.upstream.keywords import OLD_KEYWORDS
from dilated_attention_pytorch.upstream.modules import OLD_MODULES
from dilated_attention_pytorch.upstream.names import OLD_NAMES
from migrate_hierarchical import removed_api
from migrate_hierarchical.upstream import old_api
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


CARRIED_OVER = [
    "AdaptiveConfig",
    "BlockSparseAdaptive",
    "DistributedSparseConfig",
    "SparsePatternConfig",
    "create_adaptive_block_sparse",
    "create_block_sparse_attention",
    "create_multihead_block_sparse",
    "get_block_sparse_preset",
]
REQUIRED = "required"
# The arguments of 0.2.0 and their defaults; "forward" is the call of the class before it.
THERE: dict[str, dict[str, object]] = {
    "SparsePatternConfig": {
        "pattern_type": "local_window",
        "block_size": 64,
        "sparsity_ratio": 0.1,
        "window_size": 256,
        "global_tokens": 1,
        "dilation_rates": None,
    },
    "create_block_sparse_attention": {
        "variant": "auto",
        "segment_lengths": None,
        "dilation_rates": None,
        "sparse_config": None,
        "sparsity_ratio": None,
        "block_size": None,
        "hierarchical_config": None,
        "adaptive_config": None,
        "distributed_config": None,
        "embed_dim": None,
        "num_heads": None,
    },
    "get_block_sparse_preset": {"preset_name": REQUIRED},
    "create_multihead_block_sparse": {"embed_dim": REQUIRED, "num_heads": REQUIRED, "sparsity_ratio": 0.1},
    "AdaptiveConfig": {
        "base_sparsity": 0.9,
        "temperature": 1.0,
        "learnable_temperature": True,
        "min_temperature": 0.1,
        "hidden_dim": 128,
        "num_layers": 2,
        "share_across_heads": False,
        "sparsity_reg_weight": 0.01,
        "hard_sparsity": False,
    },
    "BlockSparseAdaptive": {
        "segment_lengths": REQUIRED,
        "dilation_rates": REQUIRED,
        "num_heads": REQUIRED,
        "head_dim": REQUIRED,
        "adaptive_config": None,
    },
    "create_adaptive_block_sparse": {"base_sparsity": 0.9},
    "DistributedSparseConfig": {
        "pattern_type": "hierarchical",
        "sparsity_ratio": 0.25,
        "block_size": 128,
        "local_sparsity": 0.4,
        "global_sparsity": 0.1,
        "inter_node_sparsity": 0.05,
        "compression_ratio": 0.1,
        "load_balance_threshold": 0.15,
        "adaptive_sparsity_rate": 0.05,
        "enable_async_communication": True,
        "enable_gradient_compression": True,
        "enable_load_balancing": True,
        "enable_memory_pool": True,
        "enable_pinned_memory": True,
        "gradient_bucket_size_mb": 25.0,
        "gradient_bucket_count": 32,
    },
    "BlockSparseAttention": {
        "segment_lengths": REQUIRED,
        "dilation_rates": REQUIRED,
        "sparse_config": None,
        "enable_batched_ops": True,
        "pattern_cache_size": 100,
        "dropout": 0.0,
        "sparsity_ratio": None,
    },
    "BlockSparseAttention.forward": {
        "q": REQUIRED,
        "k": REQUIRED,
        "v": REQUIRED,
        "is_causal": False,
        "return_attention_weights": False,
    },
    "BlockSparseDistributedAttention": {
        "embed_dim": REQUIRED,
        "num_heads": REQUIRED,
        "segment_lengths": REQUIRED,
        "dilation_rates": REQUIRED,
        "distributed_config": None,
        "enable_deepspeed_integration": True,
        "enable_apex_optimization": True,
        "monitoring_interval": 100,
    },
    "BlockSparseDistributedAttention.forward": {
        "q": REQUIRED,
        "k": REQUIRED,
        "v": REQUIRED,
        "is_causal": False,
        "return_attention_weights": False,
    },
    "BlockSparseMultiheadAttention": {
        "embed_dim": REQUIRED,
        "num_heads": REQUIRED,
        "segment_lengths": REQUIRED,
        "dilation_rates": REQUIRED,
        "dropout": 0.0,
        "bias": True,
        "sparse_config": None,
        "batch_first": True,
        "device": None,
        "dtype": None,
        "sparsity_ratio": None,
    },
    "BlockSparseMultiheadAttention.forward": {
        "query": REQUIRED,
        "key": REQUIRED,
        "value": REQUIRED,
        "key_padding_mask": None,
        "need_weights": False,
        "attn_mask": None,
        "is_causal": False,
        "average_attn_weights": True,
    },
}
HEADINGS = {
    "BlockSparseAttention": ("## The class for q, k and v", "constructor"),
    "BlockSparseAttention.forward": ("## The class for q, k and v", "call"),
    "BlockSparseDistributedAttention": ("## The class for several GPUs", "constructor"),
    "BlockSparseDistributedAttention.forward": ("## The class for several GPUs", "call"),
    "BlockSparseMultiheadAttention": ("## The multi-head class", "constructor"),
    "BlockSparseMultiheadAttention.forward": ("## The multi-head class", "call"),
}


def section(heading: str) -> str:
    """The text under a heading, up to the next of its level or a higher one."""
    level = heading.split(" ")[0]
    return re.split(rf"^#{{2,{len(level)}}} ", PAGE.split(f"\n{heading}\n")[1], flags=re.MULTILINE)[0]


def rows(text: str) -> dict[str, list[str]]:
    """The rows of the tables of a text that begin with a name: the name, and the other cells."""
    found = re.findall(r"^\| `(\w+)` \|(.*)\|$", text, re.MULTILINE)
    assert len(found) == len({name for name, _ in found}), "two rows with the same name"
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in found}


GONE = rows(section("## Names that were not carried over"))


def test_every_public_name_of_upstream_is_carried_over_or_has_one_row() -> None:
    assert len(UPSTREAM) == 38
    assert sorted([*CARRIED_OVER, *GONE]) == sorted(UPSTREAM)


def test_names_carried_over_exist_and_the_others_do_not() -> None:
    headings = re.findall(r"^### `(\w+)`$", PAGE, re.MULTILINE)
    assert sorted(headings) == CARRIED_OVER
    assert set(CARRIED_OVER) == set(UPSTREAM) & set(dilated_attention_pytorch.__all__)


def test_hierarchical_names_are_those_of_the_codemod() -> None:
    assert set(rows(section("### Hierarchical: the codemod rewrites them"))) == removed_api.REMOVED_NAMES


@pytest.mark.parametrize("name", GONE)
def test_what_a_row_names_exists(name: str) -> None:
    here = GONE[name][-1]
    for path in re.findall(r"`([A-Za-z_.]+)`", here):
        if path in GONE:
            assert here == f"as `{path}`", here
            continue
        if path in ("segment_lengths", "dilation_rates"):
            continue
        thing: object = dilated_attention_pytorch
        for part in path.split("."):
            assert hasattr(thing, part), path
            thing = getattr(thing, part)
    assert "`" in here or "not yet" in here or "no replacement" in here


def test_names_that_are_gone_say_so() -> None:
    assert set(GONE) == set(OLD_NAMES) & set(UPSTREAM) | removed_api.REMOVED_NAMES
    for name in GONE:
        with pytest.raises(ImportError, match=f"`dilated_attention_pytorch.{name}`"):
            exec(f"from dilated_attention_pytorch import {name}")


# ---- arguments


def arguments_here(path: str) -> dict[str, object]:
    """The arguments of ours and their defaults; those of the factory are not those of the variants."""
    thing: Any = dilated_attention_pytorch
    for part in path.split("."):
        thing = getattr(thing, part)
    parameters = [
        each
        for each in inspect.signature(thing).parameters.values()
        if each.name != "self" and each.kind is not each.VAR_KEYWORD
    ]
    return {each.name: REQUIRED if each.default is each.empty else each.default for each in parameters}


def cell(value: object) -> str:
    """A default as it stands in a table."""
    if value == REQUIRED:
        return REQUIRED
    return f'`"{value}"`' if isinstance(value, str) else f"`{value!r}`"


@pytest.mark.parametrize("path", THERE)
def test_table_has_every_argument_with_its_defaults_there_and_here(path: str) -> None:
    heading, table = HEADINGS.get(path, (f"### `{path}`", "argument"))
    (text,) = re.findall(rf"^\| {table} \|.*\n\|[-|]+\n((?:\|.*\n)+)", section(heading), re.MULTILINE)
    there, here, found = THERE[path], arguments_here(path), rows(text)
    assert set(found) == {*there, *here}
    for name, cells in found.items():
        assert cells[0] == (cell(there[name]) if name in there else "–"), name
        assert cells[1] == (cell(here[name]) if name in here else "–"), name
        differs = name not in there or name not in here or there[name] != here[name]
        assert not (name in there and differs) or cells[2], f"{name} says nothing of what is different"


def test_table_of_keywords_is_that_of_the_errors() -> None:
    groups: dict[str, list[str]] = {}
    for name, what in OLD_KEYWORDS.items():
        groups.setdefault(what, []).append(f"`{name}`")
    expected = [f"| {', '.join(names)} | {what} |" for what, names in groups.items()]
    found = re.findall(r"^\| `.*\|$", section("## Keywords that mean nothing now"), re.MULTILINE)
    assert found == expected


# ---- what changes without an error


def window_of_upstream(n_blocks: int, window_blocks: int) -> set[tuple[int, int]]:
    """The pairs of `_create_local_window_indices`: half of the window on each side, whole blocks."""
    half = window_blocks // 2
    return {(i, j) for i in range(n_blocks) for j in range(max(0, i - half), min(n_blocks, i + half + 1))}


def test_old_default_can_be_asked_for() -> None:
    """The same blocks, for lengths that upstream took; `is_causal` used them, too."""
    config = SparsePatternConfig("local_window", window_size=256)
    for n_blocks in (1, 3, 17):
        layout = BlockLayout.from_config(config, 64 * n_blocks)
        found = {(i, j) for i, row in enumerate(layout.rows()) for j in row}
        assert found == window_of_upstream(n_blocks, 256 // 64)
    assert len(window_of_upstream(2048, 4)) == 10_234


def test_figures_of_the_old_patterns() -> None:
    """Blocks at 131,072 tokens, counted from the rules of 0.2.0."""
    rows_of_dilated = [1 + sum((i + r < 2048) + (i - r >= 0) for r in (1, 2, 4)) for i in range(2048)]
    assert sum(rows_of_dilated) == 14_322
    assert max(rows_of_dilated) == 7
    now = BlockLayout.from_config(SparsePatternConfig(), 131_072).num_active_blocks
    assert now == 419_430
    assert round(now / 10_234) == 41
    for figure in ("10,234", "419,430", "14,322", "209,817", "41 times"):
        assert figure in section("## What changes without an error")


@pytest.mark.parametrize("path", re.findall(r"\]\(([\w/.-]+\.md)", PAGE))
def test_pages_that_are_linked_exist(path: str) -> None:
    assert (ROOT / "docs" / path).exists()


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


def test_codemod_knows_no_more_than_the_errors() -> None:
    assert {*old_api.REMOVED_KEYWORDS, *old_api.RENAMED_KEYWORDS} <= set(OLD_KEYWORDS)
    assert {*old_api.WITHOUT_SUCCESSOR, *old_api.RENAMED} <= set(OLD_NAMES)
    assert set(OLD_MODULES) >= old_api.MODULES
