"""What the pages, pictures and docstrings say of density and coverage is so."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

import dilated_attention_pytorch
from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
from migrate_hierarchical.density import LEVELS, old_blocks
from tests.docs.fences import ROOT

PUBLIC = [getattr(dilated_attention_pytorch, name) for name in dilated_attention_pytorch.__all__]
DOCUMENTED = [thing for thing in PUBLIC if inspect.isclass(thing) or inspect.isfunction(thing)]


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch):
    """Import a module of docs/_generate."""
    monkeypatch.syspath_prepend(ROOT / "docs/_generate")
    return importlib.import_module


def distances(layout: BlockLayout) -> set[int]:
    _, rows, cols = layout.coo()
    return set((rows - cols).abs().tolist())


# ---- docstrings


@pytest.mark.parametrize("thing", DOCUMENTED, ids=lambda thing: thing.__name__)
def test_examples_of_docstrings_run(thing: object) -> None:
    names = {**vars(dilated_attention_pytorch), "torch": torch}
    for test in doctest.DocTestFinder().find(thing, globs=names):
        failed, _ = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test)
        assert not failed, test.name


def test_docstrings_have_examples() -> None:
    finder = doctest.DocTestFinder()
    assert sum(bool(test.examples) for thing in DOCUMENTED for test in finder.find(thing)) >= 4


@pytest.mark.parametrize("ratio", [0.001, 0.01, 0.1])
def test_default_rates_up_to_half_a_causal_sequence_all_occur(ratio: float) -> None:
    """As the docstring of `SparsePatternConfig` says."""
    config = SparsePatternConfig(sparsity_ratio=ratio)
    for n in [*range(1, 140), 255, 256, 257, 511, 512, 513, 1024]:
        layout = BlockLayout.from_config(config, n * 64, causal=True)
        rates = {2**power for power in range(n.bit_length()) if 2 * 2**power <= n}
        assert rates <= distances(layout), n


# ---- pictures


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_picture_of_the_readme_is_what_the_library_computes(generator, scheme: str) -> None:
    readme = generator("readme")
    assert readme.PICTURES[scheme].read_text("utf-8") == readme.svg(scheme)


def test_text_beside_the_picture_says_what_it_shows(generator) -> None:
    """The diagonal, its neighbours, single blocks at 2, 4, 8 and 16; 20 % kept."""
    for layout in generator("readme").layouts().values():
        assert {0, 1, 2, 4, 8, 16} <= distances(layout)
        assert layout.density == pytest.approx(0.2, abs=1 / 500)
        for number, row in enumerate(layout.rows()):
            assert number in row


def test_titles_of_the_gallery_give_density_floor_and_coverage(generator) -> None:
    gallery = generator("gallery")
    config = SparsePatternConfig("local_window", sparsity_ratio=0.01)
    layout = BlockLayout.from_config(config, 4096, causal=True)
    title = gallery.title(config, layout)
    assert title.splitlines()[1:] == [
        "asked 1.0%, kept 6.1%",
        "64 of 64 rows at the floor",
        "full coverage: 63 layers",
    ]
    never = SparsePatternConfig("global_local", sparsity_ratio=0.01)
    assert "full coverage: never" in gallery.title(never, BlockLayout.from_config(never, 4096, causal=True))


# ---- tables


def test_old_configurations_have_the_blocks_that_the_codemod_counts(generator) -> None:
    reach = generator("reach")
    for levels in LEVELS.values():
        assert reach.old_layout(levels, 4096, False).num_active_blocks == old_blocks(levels, 4096)


@pytest.mark.parametrize(("causal", "name"), [(True, "causal"), (False, "all")])
def test_tables_of_ratios_give_density_and_layers(
    generator, tmp_path: Path, monkeypatch, causal: bool, name: str
) -> None:
    reach: ModuleType = generator("reach")
    monkeypatch.setattr(reach, "LENGTHS", (4096,))
    monkeypatch.setattr(reach, "COMPARED_LENGTHS", (4096,))
    reach.write(tmp_path, tmp_path)
    (row,) = (tmp_path / f"coverage-{name}.md").read_text("utf-8").splitlines()[2:]
    cells = row.strip("| ").split(" | ")
    assert cells[0] == "4,096"
    for ratio, cell in zip((0.01, 0.02, 0.05, 0.1), cells[1:], strict=True):
        density, layers, given = re.fullmatch(r"([\d.]+)%: (\d+) \((\d+)\)", cell).groups()
        config = SparsePatternConfig(sparsity_ratio=ratio)
        layout = BlockLayout.from_config(config, 4096, causal=causal)
        assert float(density) == pytest.approx(100 * layout.density, abs=0.051)
        assert int(layers) == layout.hops_to_full_coverage()
        config = SparsePatternConfig(sparsity_ratio=ratio, dilation_rates=[1, 2, 4, 8])
        assert int(given) == BlockLayout.from_config(config, 4096, causal=causal).hops_to_full_coverage()


def test_sentences_about_what_the_removed_default_covered(generator) -> None:
    """Of docs/why-removed.md, which has the same figures for 16,384 tokens in its example."""
    reach = generator("reach")
    for seq_len, old_share, layers_of_few in ((16_384, 0.0894, 47), (32_768, 0.076, 12)):
        old = reach.old_layout(LEVELS["standard"], seq_len, False)
        old_causal = reach.old_layout(LEVELS["standard"], seq_len, True)
        assert old.hops_to_full_coverage() == old_causal.hops_to_full_coverage() == 5
        assert reach.rows_that_see_far(old) == 1 / 16

        as_many = reach.new_layout(old_share, seq_len, False)
        assert as_many.num_active_blocks == pytest.approx(old.num_active_blocks, rel=1e-3)
        assert as_many.hops_to_full_coverage() == 4
        assert reach.rows_that_see_far(as_many) == 1
        causal = reach.new_layout(round(old_causal.density, 4), seq_len, True)
        assert causal.num_active_blocks == pytest.approx(old_causal.num_active_blocks, rel=1e-3)
        assert causal.hops_to_full_coverage() in (9, 10)
        assert reach.rows_that_see_far(causal) > 0.75

        fewer = reach.new_layout(0.05, seq_len, False)
        assert fewer.hops_to_full_coverage() == 5
        assert 1 / 2 < fewer.num_active_blocks / old.num_active_blocks < 2 / 3
        more = reach.new_layout(0.25, seq_len, True)
        assert more.hops_to_full_coverage() == 5
        assert more.num_active_blocks / old_causal.num_active_blocks == pytest.approx(3, abs=0.3)

        few = reach.new_layout(0.01, seq_len, False)
        few_causal = reach.new_layout(0.01, seq_len, True)
        assert few.hops_to_full_coverage() == layers_of_few
        assert 12 <= few_causal.hops_to_full_coverage() <= 47
        shares = (few.density / old.density, few_causal.density / old_causal.density)
        assert all(0.1 < share < 0.27 for share in shares)


# ---- no sentence about coverage without a test of it

CLAIM = re.compile(
    r"\b(near and far|multi-?scale|every scale|all scales|full coverage|connects? (?:every|all)|layers connect)",
    re.IGNORECASE,
)
CHECKED = re.compile(r"assert .*(hops_to_full_coverage|distances|coverage\(|layers\(|back ==|set\(\(rows)")


def test_pages_that_speak_of_coverage_assert_it() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docs/guides/*.md")]
    pages += [*ROOT.glob("packages/*/README.md"), *ROOT.glob("tools/*/README.md")]
    # Its report is that of tests/codemod/test_density.py.
    pages.remove(ROOT / "tools/migrate-hierarchical/README.md")
    speaking = [
        page for page in pages if CLAIM.search(page.read_text("utf-8")) and page.name != "CHANGELOG.md"
    ]
    assert len(speaking) >= 6
    assert not [page for page in speaking if not CHECKED.search(page.read_text("utf-8"))]


def test_the_library_speaks_of_multi_scale_coverage_in_the_fixed_message_only() -> None:
    """Its wording is that of the notice; docs/migrate.md says when it holds."""
    found = [
        (path.name, line.strip())
        for path in (ROOT / "packages").rglob("*.py")
        for line in path.read_text("utf-8").splitlines()
        if re.search(r"multi-?scale", line, re.IGNORECASE)
    ]
    assert found == [("removed.py", '"for better multi-scale coverage."')]
