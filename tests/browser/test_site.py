"""Every page, light and dark, wide and narrow: nothing breaks, nothing leaves this machine, axe finds nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.browser.conftest import ROOT, SITE

PAGES = sorted(
    str(path.parent.relative_to(SITE)) + "/" if path.parent != SITE else ""
    for path in SITE.rglob("index.html")
    if 'http-equiv="refresh"' not in path.read_text("utf-8")
)
SHOWN = {"": "home", "migrate/": "migrate", "patterns/": "patterns", "benchmarks/": "benchmarks"}
SHOTS = ROOT / "site-screenshots"


def open_page(browser, address: str, page: str, scheme: str, width: int):
    """The page, and what went wrong on the way: console errors and requests to other hosts."""
    wrong: list[str] = []
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
    tab = context.new_page()
    tab.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on(
        "request",
        lambda request: (
            None if request.url.startswith((address, "data:", "blob:")) else wrong.append(request.url)
        ),
    )
    tab.goto(address + page, wait_until="networkidle")
    return context, tab, wrong


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_page(browser, address: str, page: str, scheme: str, width: int) -> None:
    context, tab, wrong = open_page(browser, address, page, scheme, width)
    try:
        assert not wrong
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
        result = Axe().run(tab)
        found = [
            (
                violation["id"],
                [node["target"] for node in violation["nodes"]][:4],
                violation["nodes"][0]["failureSummary"][:300],
            )
            for violation in result.response["violations"]
        ]
        assert not found, json.dumps(found, indent=1)
        if page in SHOWN:
            SHOTS.mkdir(exist_ok=True)
            tab.screenshot(path=str(SHOTS / f"{SHOWN[page]}-{scheme}-{width}.png"), full_page=width == 1280)
    finally:
        context.close()


@pytest.mark.parametrize(
    "word", ["migration", "BlockSparseHierarchical", "HierarchicalConfig", "hierarchical"]
)
def test_search_finds_the_migration_guide(browser, address: str, word: str) -> None:
    context, tab, wrong = open_page(browser, address, "", "light", 1280)
    try:
        tab.locator(".md-search__input").click()
        tab.wait_for_selector(".md-search__input:focus")
        tab.keyboard.type(word, delay=20)
        tab.wait_for_selector(".md-search-result__item a")
        links = tab.locator(".md-search-result__item a").evaluate_all("links => links.map(link => link.href)")
        assert any("/migrate/" in link for link in links)
        assert not wrong
    finally:
        context.close()


def test_explorer_reacts(browser, address: str) -> None:
    context, tab, wrong = open_page(browser, address, "patterns/", "light", 1280)
    try:
        said = tab.locator("#explorer output")
        first = said.inner_text()
        picture = tab.locator("#explorer canvas").evaluate("canvas => canvas.toDataURL()")
        tab.locator("#explorer select[name=ratio]").select_option("0.01")
        tab.locator("#explorer select[name=tokens]").select_option("16384")
        assert said.inner_text() != first
        assert re.match(r"655 active blocks", said.inner_text())
        assert tab.locator("#explorer canvas").evaluate("canvas => canvas.toDataURL()") != picture
        assert "asked for 1.00 %, 0 of 256 rows at the floor" in said.inner_text()
        assert "Layers to full coverage: 47." in said.inner_text()
        tab.locator("#explorer input[name=causal]").check()
        assert "asked for 1.00 %, 256 of 256 rows at the floor" in said.inner_text()
        tab.locator("#explorer select[name=pattern]").select_option("global_local")
        assert "Layers to full coverage: never" in said.inner_text()
        assert not wrong
    finally:
        context.close()


def test_colours_can_be_switched(browser, address: str) -> None:
    context, tab, _ = open_page(browser, address, "", "light", 1280)
    try:
        before = tab.evaluate("document.body.getAttribute('data-md-color-scheme')")
        tab.locator("label[for=__palette_1]").click()
        assert tab.evaluate("document.body.getAttribute('data-md-color-scheme')") != before
    finally:
        context.close()


def test_four_clicks_reach_everything(browser, address: str) -> None:
    """Install, first example, migration, 128K tokens and its cost: all linked from the home page."""
    context, tab, _ = open_page(browser, address, "", "light", 1280)
    try:
        links = set(tab.locator(".md-content a").evaluate_all("links => links.map(link => link.pathname)"))
        wanted = {"get-started", "migrate", "patterns", "guides/long-sequences", "benchmarks"}
        assert wanted <= {link.strip("/") for link in links}
    finally:
        context.close()


def test_pages_are_found() -> None:
    assert len(PAGES) >= 15
    assert set(SHOWN) <= set(PAGES)
    assert Path(SITE / "assets/explorer.js").exists()
