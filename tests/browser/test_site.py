"""Every page, light and dark, wide and narrow: nothing breaks, nothing leaves this machine, axe finds nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.browser.conftest import ROOT, SITE

EVERY_PAGE = sorted(
    str(path.parent.relative_to(SITE)) + "/" if path.parent != SITE else ""
    for path in SITE.rglob("index.html")
    if 'http-equiv="refresh"' not in path.read_text("utf-8")
)
# The pages of the codemod's rules are of two kinds; one of each stands for the others where a test takes long.
PAGES = [page for page in EVERY_PAGE if not re.fullmatch(r"rules/HIER(?!001|101)\d+/", page)]
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
    tab.wait_for_selector(".md-search[aria-label]", state="attached")  # the scripts of the site have run
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


@pytest.fixture(scope="module")
def tab(browser):
    """One tab for tests that only look."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield context.new_page()
    context.close()


OPEN_EVERYTHING = """
for (const block of document.querySelectorAll(".tabbed-block")) block.style.display = "block";
for (const details of document.querySelectorAll("details")) details.open = true;
"""


@pytest.mark.parametrize("page", EVERY_PAGE)
def test_no_code_is_cut_off_on_a_wide_screen(tab, address: str, page: str) -> None:
    tab.set_viewport_size({"width": 1280, "height": 900})
    tab.goto(address + page, wait_until="load")
    tab.evaluate(OPEN_EVERYTHING)
    clipped = tab.locator(".md-typeset pre > code").evaluate_all(
        "blocks => blocks.filter(block => block.scrollWidth > block.clientWidth)"
        ".map(block => block.innerText.split('\\n').sort((a, b) => b.length - a.length)[0])"
    )
    assert not clipped, "these lines are too long"


@pytest.mark.parametrize("page", EVERY_PAGE)
def test_tables_and_bars_fit_a_phone(tab, address: str, page: str) -> None:
    """No page and no table scrolls sideways; no text of a bar is smaller than that of a table."""
    tab.set_viewport_size({"width": 390, "height": 800})
    tab.goto(address + page, wait_until="load")
    tab.evaluate(OPEN_EVERYTHING)
    tab.evaluate("new Promise(requestAnimationFrame)")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    wide = tab.locator(".md-typeset__scrollwrap, .bars").evaluate_all(
        "places => places.filter(place => place.scrollWidth > place.clientWidth).map(place => place.innerText.slice(0, 80))"
    )
    assert not wide, "these tables are wider than a phone"
    sizes = tab.locator(".md-typeset table td, .md-typeset table th").evaluate_all(
        "cells => cells.filter(cell => cell.offsetWidth).map(cell => parseFloat(getComputedStyle(cell).fontSize))"
    )
    assert min(sizes, default=16) >= 12


def test_pictures_have_a_dark_form(browser, address: str) -> None:
    """Nothing white or nearly so in a picture of a dark page, and one form of each picture is shown."""
    for scheme in ("light", "dark"):
        context, tab, _ = open_page(browser, address, "", scheme, 1280)
        try:
            shown = tab.locator(".md-content img:visible").evaluate_all(
                "images => images.map(image => image.src)"
            )
            assert [Path(source.split("#")[0]).name for source in shown] == [
                "pattern-dark.svg" if scheme == "dark" else "pattern.svg"
            ]
        finally:
            context.close()
    dark = (ROOT / "docs/assets/pattern-dark.svg").read_text("utf-8")
    fills = set(re.findall(r'<rect[^>]*fill="#([0-9a-f]{6})"', dark))
    assert fills
    assert all(max(bytes.fromhex(colour)) < 0x60 for colour in fills)


# What people look for, and the page that has to come first.
SEARCHES = {
    "hugging face": "guides/transformers/",
    "huggingface": "guides/transformers/",
    "transformers": "guides/transformers/",
    "multihead": "guides/multihead/",
    "varlen": "guides/sequences/",
    "packed sequences": "guides/sequences/",
    "cu_seqlens": "guides/sequences/",
    "chunked prefill": "guides/sequences/",
    "long sequences": "guides/long-sequences/",
    "kv cache": "guides/decoding/",
    "decoding": "guides/decoding/",
    "paged cache": "guides/decoding/",
    "speculative decoding": "guides/decoding/",
    "padding": "guides/sequences/",
    "left padding": "guides/sequences/",
    "document mask": "guides/masks/",
    "sliding window": "guides/masks/",
    "attn_mask": "guides/masks/",
    "BlockMask": "guides/masks/",
    "mask_mod": "guides/masks/",
    "dynamic shapes": "guides/sequences/",
    "alibi": "guides/scores/",
    "softcap": "guides/scores/",
    "attention sinks": "guides/scores/",
    "top-k": "guides/from-data/",
    "select blocks": "guides/from-data/",
    "rope": "guides/scores/",
    "distributed": "guides/distributed/",
    "several gpus": "guides/distributed/",
    "install": "get-started/",
    "nan": "troubleshooting/",
    "faq": "troubleshooting/",
    "troubleshooting": "troubleshooting/",
    "recompile": "guides/sequences/",
    "BlockSparseHierarchical": "migrate/",
    "migration": "migrate/",
}


@pytest.mark.parametrize(("words", "page"), SEARCHES.items(), ids=str)
def test_search_finds_the_page_first(browser, address: str, words: str, page: str) -> None:
    context, tab, wrong = open_page(browser, address, "", "light", 1280)
    try:
        assert found(tab, address, words)[:1] == [page]
        assert not wrong
    finally:
        context.close()


def found(tab, address: str, words: str) -> list[str]:
    """The pages that the search lists, the best first."""
    tab.locator(".md-search__input").click()
    tab.wait_for_selector(".md-search__input:focus")
    tab.keyboard.type(words, delay=20)
    tab.wait_for_selector(".md-search-result__item a")
    tab.wait_for_timeout(300)  # the list follows the words as they are typed
    links = tab.locator(".md-search-result__item > a").evaluate_all("links => links.map(link => link.href)")
    return [re.sub(r"[?#].*", "", link.removeprefix(address)) for link in links]


@pytest.mark.parametrize(
    "word", ["migration", "BlockSparseHierarchical", "HierarchicalConfig", "hierarchical"]
)
def test_search_finds_the_migration_guide(browser, address: str, word: str) -> None:
    context, tab, wrong = open_page(browser, address, "", "light", 1280)
    try:
        assert "migrate/" in found(tab, address, word)
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
