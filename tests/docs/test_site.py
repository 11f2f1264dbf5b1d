"""The built site: nothing comes from another host. `nox -s docs` builds it first."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / os.environ.get("SITE_DIR", "site")  # set by `nox -s docs_zensical`
LOADED = re.compile(
    r"""<(?:script|img|iframe|source|video)\b[^>]*\bsrc\s*=\s*["']?(?:https?:)?//[^\s"'>]+"""
    r"""|<link\b(?![^>]*\brel=["']?(?:canonical|prev|next|alternate))[^>]*\bhref\s*=\s*["']?(?:https?:)?//[^\s"'>]+""",
    re.IGNORECASE,
)

pytestmark = pytest.mark.skipif(not (SITE / "index.html").exists(), reason="no site/: run `nox -s docs`")


def test_pages_load_nothing_from_other_hosts() -> None:
    pages = list(SITE.rglob("*.html"))
    assert len(pages) >= 8
    loads = {str(page.relative_to(SITE)): LOADED.findall(page.read_text(encoding="utf-8")) for page in pages}
    assert not {page: found for page, found in loads.items() if found}


def sources() -> list[Path]:
    """The Markdown files that are pages, relative to docs/."""
    pages = (path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md"))
    return [path for path in pages if path.parts[0] != "generated"]


def test_every_page_is_built() -> None:
    for source in sources():
        built = SITE / ("index.html" if source.stem == "index" else source.with_suffix("") / "index.html")
        assert built.exists(), source


def first_heading(html: str) -> str:
    """The text of the first heading of a page."""
    heading = re.search(r"<h1[^>]*>(.*?)</h1>", html, re.DOTALL)[1]
    return unescape(re.sub(r"<a [^>]*headerlink.*?</a>|<[^>]+>", "", heading, flags=re.DOTALL)).strip()


def test_every_page_shows_its_title() -> None:
    for source in sources():
        text = (ROOT / "docs" / source).read_text("utf-8")
        for snippet in re.findall(r'^--8<-- "([^"]+)"$', text, re.MULTILINE):
            text += (ROOT / snippet).read_text("utf-8")
        title = re.search(r"^# (.+)$", text, re.MULTILINE)[1]
        built = SITE / ("index.html" if source.stem == "index" else source.with_suffix("") / "index.html")
        assert first_heading(built.read_text("utf-8")) == title.replace("`", ""), source


def test_the_import_error_names_a_page_of_the_site() -> None:
    from dilated_attention_pytorch.removed import raise_removed_name

    with pytest.raises(ImportError) as error:
        raise_removed_name("HierarchicalConfig")
    guide = re.search(r"docs/(\S+)\.md", str(error.value))[1]
    assert (SITE / guide / "index.html").exists()


def test_every_public_name_is_in_the_reference() -> None:
    import dilated_attention_pytorch

    page = (SITE / "reference/index.html").read_text("utf-8")
    names = set(dilated_attention_pytorch.__all__) - {"__version__"}
    missing = {name for name in names if f'id="dilated_attention_pytorch.{name}"' not in page}
    assert not missing


def test_every_command_is_documented() -> None:
    page = (SITE / "commands/index.html").read_text("utf-8")
    for command in ("demo", "doctor", "plot", "migrate-hierarchical", "attention-bench"):
        assert command in page
    assert "--sparsity-ratio" in page


@pytest.mark.parametrize("old", ["migration", "hierarchical", "api"])
def test_old_addresses_redirect(old: str) -> None:
    assert 'http-equiv="refresh"' in (SITE / old / "index.html").read_text("utf-8")


def test_llms_txt_lists_the_pages() -> None:
    text = (SITE / "llms.txt").read_text("utf-8")
    assert "Migrate" in text
    assert "Benchmarks" in text


def test_search_index_finds_the_removed_names() -> None:
    index = SITE / "search/search_index.json"
    if index.exists():
        entries = json.loads(index.read_text("utf-8"))["docs"]
    else:  # as Zensical writes it
        entries = json.loads((SITE / "search.json").read_text("utf-8"))["items"]
    for word in ("BlockSparseHierarchical", "HierarchicalConfig", "hierarchical"):
        assert any(word in entry["text"] and entry["location"].startswith("migrate/") for entry in entries)


def test_links_of_the_built_site_lead_somewhere() -> None:
    command = [
        sys.executable,
        "-m",
        "linkcheck",
        "--no-status",
        "--no-warnings",
        "--ignore-url",
        "^https?://",
        str(SITE),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_explorer_shows_what_the_library_computes() -> None:
    from dilated_attention_pytorch import BlockLayout, SparsePatternConfig

    layouts = json.loads((SITE / "assets/generated/layouts.json").read_text("utf-8"))
    entry = layouts["dilated_sparse|0.01|64|16384|0"]
    assert (
        entry["blocks"]
        == BlockLayout.from_config(SparsePatternConfig(sparsity_ratio=0.01), 16_384).num_active_blocks
    )
    assert len(layouts) == 3 * 5 * 2 * 2 * 2


@pytest.mark.parametrize("pattern", ["dilated_sparse", "local_window", "global_local"])
@pytest.mark.parametrize("ratio", [0.01, 0.1])
@pytest.mark.parametrize("causal", [False, True])
def test_the_explorer_says_density_floor_and_layers(pattern: str, ratio: float, causal: bool) -> None:
    from dilated_attention_pytorch import BlockLayout, SparsePatternConfig

    layouts = json.loads((SITE / "assets/generated/layouts.json").read_text("utf-8"))
    entry = layouts[f"{pattern}|{ratio}|64|4096|{int(causal)}"]
    layout = BlockLayout.from_config(SparsePatternConfig(pattern, sparsity_ratio=ratio), 4096, causal=causal)
    assert (entry["asked"], entry["density"]) == (ratio, layout.density)
    assert entry["floor"] == layout.stats().rows_at_floor
    assert entry["reach"] == layout.stats().reach
    assert entry["hops"] == layout.hops_to_full_coverage()
    if pattern == "dilated_sparse":
        assert entry["hops"] is not None
