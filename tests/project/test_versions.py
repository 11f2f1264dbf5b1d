"""All packages carry one version, that of the changelog."""

from __future__ import annotations

import re

import pytest

from tests.project.repository import PACKAGES, ROOT, load_toml


def newest_release() -> str:
    """The newest heading of the changelog that has a date."""
    headings = re.findall(
        r"^## \[(\d[^\]]*)\] - \d{4}-\d{2}-\d{2}$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M
    )
    return headings[0]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_package_has_the_version_of_the_changelog(package) -> None:
    assert load_toml(package / "pyproject.toml")["project"]["version"] == newest_release()


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_version_written_in_sources_is_the_version_of_the_changelog(package) -> None:
    pattern = re.compile(r"""^\s*(?:__version__|VERSION)(?:\s*:\s*\w+)?\s*=\s*["']([^"']+)["']""", re.M)
    written = {path.name: pattern.findall(path.read_text("utf-8")) for path in package.glob("src/**/*.py")}
    assert {version for versions in written.values() for version in versions} <= {newest_release()}


def test_citation_has_the_version_and_date_of_the_changelog() -> None:
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    version = re.search(r"^version: (\S+)$", citation, re.M)[1]
    date = re.search(r"^date-released: (\S+)$", citation, re.M)[1]
    assert version == newest_release()
    assert f"## [{version}] - {date}" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_changelog_starts_with_unreleased() -> None:
    headings = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert headings[0] == "Unreleased"


def test_changelog_uses_the_headings_of_keep_a_changelog() -> None:
    headings = set(re.findall(r"^### (.+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M))
    assert headings <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
