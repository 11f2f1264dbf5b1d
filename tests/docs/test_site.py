"""The built site: nothing comes from another host. `nox -s docs` builds it first."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "site"
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


def test_every_page_is_built() -> None:
    for source in (ROOT / "docs").glob("*.md"):
        built = SITE / ("index.html" if source.stem == "index" else f"{source.stem}/index.html")
        assert built.exists(), source.name
