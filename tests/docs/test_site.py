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
CONFIG = ROOT / "mkdocs.yml"
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


def test_every_column_of_a_table_has_a_heading() -> None:
    """A screen reader reads it with every cell, and a phone shows it there."""
    pages = {path.relative_to(SITE): path.read_text("utf-8") for path in SITE.rglob("*.html")}
    assert not [page for page, html in pages.items() if re.search(r"<th[^>]*>\s*</th>", html)]


def test_no_table_shows_an_escaped_bar() -> None:
    r"""A bar in the code of a cell is written &#124; in <code>: the site shows \| as it stands."""
    pages = {path.relative_to(SITE): path.read_text("utf-8") for path in SITE.rglob("*.html")}
    assert not [page for page, html in pages.items() if re.search(r"<td[^>]*>(?:(?!</td>).)*\\\|", html)]


def sources() -> list[Path]:
    """The Markdown files that are pages, relative to docs/."""
    pages = (path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md"))
    return [path for path in pages if path.parts[0] != "generated"]


def test_every_page_is_built() -> None:
    for source in sources():
        assert built_file(source).exists(), source


def first_heading(html: str) -> str:
    """The text of the first heading of a page."""
    heading = re.search(r"<h1[^>]*>(.*?)</h1>", html, re.DOTALL)[1]
    return unescape(re.sub(r"<a [^>]*headerlink.*?</a>|<[^>]+>", "", heading, flags=re.DOTALL)).strip()


def test_every_page_shows_its_title() -> None:
    for source in sources():
        text = (ROOT / "docs" / source).read_text("utf-8")
        for snippet in re.findall(r'^--8<-- "([^":]+)(?::\w+)?"$', text, re.MULTILINE):
            text += (ROOT / snippet).read_text("utf-8")
        title = re.search(r"^# (.+)$", text, re.MULTILINE)[1]
        assert first_heading(built_page(source)) == title.replace("`", ""), source


def built_page(source: Path) -> str:
    """The HTML of a page."""
    return built_file(source).read_text("utf-8")


def built_file(source: Path) -> Path:
    return SITE / (
        source.with_suffix("") / "index.html" if source.stem != "index" else source.with_suffix(".html")
    )


def address_of_repository() -> str:
    """The default in mkdocs.yml, unless it is named when the site is built."""
    default = re.search(
        r"^repo_url: !ENV \[DOCS_REPO_URL, \"([^\"]+)\"\]$", CONFIG.read_text("utf-8"), re.MULTILINE
    )[1]
    return os.environ.get("DOCS_REPO_URL", default)


def test_every_page_has_the_version_and_a_link_to_the_repository() -> None:
    import dilated_attention_pytorch

    version = dilated_attention_pytorch.__version__
    for source in sources():
        page = built_page(source)
        header, footer = (
            re.search(rf"<{tag}[ >].*?</{tag}>", page, re.DOTALL)[0] for tag in ("header", "footer")
        )
        assert f'href="{address_of_repository()}"' in header, source
        assert re.search(rf'md-source__version">\s*{re.escape(version)}\s*<', header), source
        assert f"version {version} " in footer, source


def test_a_wrong_address_shows_pages_to_start_from() -> None:
    html = (SITE / "404.html").read_text("utf-8")
    content = re.search(r"<article.*?</article>", html, re.DOTALL)[0]
    links = re.findall(r'href="/([\w-]+)/"', content)
    assert {"get-started", "migrate"} <= set(links)
    assert all((SITE / link / "index.html").exists() for link in links)


def test_no_script_asks_the_host_of_the_repository_for_figures() -> None:
    """Material's does so for the link that carries this attribute."""
    assert not any('data-md-component="source"' in built_page(source) for source in sources())


def test_every_page_links_to_the_file_that_it_is_made_of() -> None:
    for source in sources():
        links = re.findall(r'<a href="([^"]+)"[^>]*rel="?edit', built_page(source))
        assert len(links) == 1, source
        file = links[0].removeprefix(f"{address_of_repository()}/edit/main/")
        assert (ROOT / file).is_file(), (source, file)
        tracked = subprocess.run(["git", "check-ignore", "-q", file], cwd=ROOT, check=False).returncode
        assert tracked != 0, f"{source}: the link leads to {file}, which is generated"


def test_every_example_of_the_reference_is_code() -> None:
    page = (SITE / "reference/index.html").read_text("utf-8")
    examples = re.findall(
        r"Examples:</span>\s*</p>(.*?)(?=<p>|<h\d|</div>\s*</div>\s*<div class=\"doc doc-object)",
        page,
        re.DOTALL,
    )
    assert len(examples) >= 6
    assert all(
        "<code>" in example and "&gt;&gt;&gt;" in re.sub(r"<[^>]+>", "", example) for example in examples
    )
    assert not re.search(r"<p>[^<]*&gt;&gt;&gt;", page), "an example is prose"
    assert not re.search(r'class="admonition example', page), "Example: is an admonition; write Examples:"


def test_every_parameter_of_the_reference_has_a_type() -> None:
    page = (SITE / "reference/index.html").read_text("utf-8")
    tables = [
        table
        for table in re.findall(r"<table>.*?</table>", page, re.DOTALL)
        if re.search(r"<th>Name</th>\s*<th>Type</th>", table)
    ]
    rows = [
        row
        for table in tables
        for row in re.findall(r"<tr class=\"doc-section-item\">(.*?)</tr>", table, re.DOTALL)
    ]
    assert len(rows) >= 60
    for row in rows:
        name, kind = (
            re.sub(r"<[^>]+>", "", cell).strip() for cell in re.findall(r"<td>(.*?)</td>", row, re.DOTALL)[:2]
        )
        assert re.fullmatch(r"\**\w+", name), f"one parameter a row, got {name}"
        assert kind, name


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
