"""What CONTRIBUTING.md and docs/how-it-is-built.md say of the code is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.project.pending import PENDING
from tests.project.repository import ROOT, source_files
from tests.project.test_imports import LAYERS, PACKAGES

PAGE = ROOT / "docs/how-it-is-built.md"
PAGES = [PAGE, ROOT / "CONTRIBUTING.md"]
# Where a path on these pages may begin.
STARTS = [ROOT, ROOT / "tools/kernel-checks", *(package.modules[""].parent for package in PACKAGES.values())]
PATH = re.compile(r"`([\w./-]+(?:/|\.(?:py|md|toml|yml)))`")


def paths_on(page: Path) -> set[str]:
    found = set(PATH.findall(page.read_text("utf-8")))
    of_recipes = {path for path in found if "NAME" in path or "NNN" in path}
    return found - of_recipes - {f"{part}.py" for part in PENDING.get("parts", ())}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_exists(page: Path) -> None:
    found = paths_on(page)
    assert len(found) > 20
    assert not [path for path in sorted(found) if not any((start / path).exists() for start in STARTS)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_package_and_tool_is_a_room(page: Path) -> None:
    text = page.read_text("utf-8")
    folders = {
        "/".join(path.relative_to(ROOT).parts[:2])
        for path in source_files()
        if path.relative_to(ROOT).parts[0] in ("packages", "tools")
    }
    assert "tools/kernel-checks" in folders
    assert not [folder for folder in sorted(folders) if not re.search(rf"`{folder}/?`", text)]


def test_rooms_stand_in_the_order_of_their_imports() -> None:
    table = PAGE.read_text("utf-8").partition("| room | what it does |")[2].partition("\n\n")[0]
    rows = [row.split(" | ")[0] for row in table.splitlines() if "`" in row]
    rooms = [re.findall(r"`(\w+)(?:\.py|/)`", row) for row in rows]
    entrance = next(i for i, layer in enumerate(LAYERS) if "the entrance" in layer)
    assert "the entrance" in rows[entrance]
    listed = [set(names) for i, names in enumerate(rooms) if i != entrance]
    assert listed == [set(parts) for i, parts in enumerate(LAYERS) if i != entrance]


def test_page_has_the_table_of_contributing() -> None:
    assert '\n--8<-- "CONTRIBUTING.md:where"\n' in PAGE.read_text("utf-8")
    table = (
        (ROOT / "CONTRIBUTING.md")
        .read_text("utf-8")
        .partition("[start:where]")[2]
        .partition("[end:where]")[0]
    )
    assert table.count("\n| ") > 8
