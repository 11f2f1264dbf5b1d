"""Every Python example of the docs and the READMEs runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.docs.fences import PAGES, ROOT, Fence, find_python_fences

OLD_CODE = "Before"  # the title of a fence that uses the removed API

WITH_EXAMPLES = [page for page in PAGES if find_python_fences(page)]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def old_fences() -> list[Fence]:
    return [fence for page in PAGES for fence in find_python_fences(page) if fence.title == OLD_CODE]


def test_examples_are_found() -> None:
    assert sum(len(find_python_fences(page)) for page in PAGES) >= 20
    assert {"README.md", "docs/index.md", "docs/get-started.md", "docs/migrate.md"} <= set(
        map(name, WITH_EXAMPLES)
    )


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=name)
def test_examples_of_page_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for fence in find_python_fences(page):
        if fence.title != OLD_CODE:
            fence.run(namespace)


@pytest.mark.parametrize("fence", old_fences(), ids=lambda fence: f"{name(fence.path)}:{fence.line}")
def test_old_code_says_what_replaces_it(fence: Fence) -> None:
    with pytest.raises((ImportError, ValueError), match="removed"):
        fence.run({"__name__": "__main__"})
