"""Every Python example of the docs and the READMEs runs."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from migrate_hierarchical.engine import migrate_bytes
from migrate_hierarchical.settings import Settings
from tests.docs.fences import PAGES, ROOT, Fence, find_python_fences

OLD_CODE = "Before"  # the title of a fence that uses the removed API
OLDER_CODE = "Before, for 0.2.0"  # test_up_rule_pages.py has these

WITH_EXAMPLES = [page for page in PAGES if find_python_fences(page)]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def old_fences() -> list[Fence]:
    return [fence for page in PAGES for fence in find_python_fences(page) if fence.title == OLD_CODE]


def before_and_after() -> list[tuple[Fence, Fence]]:
    """Every fence of old code with the one that follows it."""
    pairs = []
    for page in PAGES:
        fences = find_python_fences(page)
        pairs += [(fence, after) for fence, after in itertools.pairwise(fences) if fence.title == OLD_CODE]
    return pairs


def test_examples_are_found() -> None:
    count = sum(len(find_python_fences(page)) for page in PAGES)
    print(f"{count} Python fences on {len(WITH_EXAMPLES)} pages")
    assert count >= 40
    assert {"README.md", "docs/index.md", "docs/get-started.md", "docs/migrate.md"} <= set(
        map(name, WITH_EXAMPLES)
    )


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=name)
def test_examples_of_page_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for fence in find_python_fences(page):
        if fence.title not in (OLD_CODE, OLDER_CODE):
            fence.run(namespace)


@pytest.mark.parametrize("fence", old_fences(), ids=lambda fence: f"{name(fence.path)}:{fence.line}")
def test_old_code_says_what_replaces_it(fence: Fence) -> None:
    with pytest.raises((ImportError, ValueError), match="removed"):
        fence.run({"__name__": "__main__"})


@pytest.mark.parametrize(
    ("before", "after"), before_and_after(), ids=lambda fence: f"{name(fence.path)}:{fence.line}"
)
def test_codemod_turns_before_into_after(before: Fence, after: Fence) -> None:
    assert after.title == "After"
    result = migrate_bytes("page.py", before.code.encode(), Settings())
    assert result.new is not None
    assert result.new.decode() == after.code


def test_every_old_fence_has_its_new_one() -> None:
    assert len(before_and_after()) == len(old_fences()) >= 9
