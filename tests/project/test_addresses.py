"""One file holds the address of the project, which leads nowhere yet; nothing else sends a reader there."""

from __future__ import annotations

import re

from tests.project.installs import NAME
from tests.project.repository import ROOT, load_toml, source_files

HOLDER = "mkdocs.yml"
# An address with the name of one of our packages in it, also as git and ssh write it, and hosts of the old ones.
ADDRESS = re.compile(
    rf"(?:https?|ssh|git)(?:\+\w+)?://[^\s\"'`)>]*{NAME}[^\s\"'`)>]*"
    rf"|git@[\w.-]+:[^\s\"'`)>]*{NAME}"
    rf"|{NAME}\.(?:invalid|readthedocs\.io|github\.io|org|dev|com)\b"
    r"|dilated-attention\.github\.io|\b(?:github|gitlab)\.(?:com|io)/dilated-attention",
    re.IGNORECASE,
)


def addresses(text: str) -> list[str]:
    """The addresses of the project in a text."""
    return [match[0] for match in ADDRESS.finditer(text) if "file://" not in match[0]]


def test_addresses_are_found() -> None:
    name = load_toml(ROOT / "packages/dilated-attention-pytorch/pyproject.toml")["project"]["name"]
    organisation = "github.com/" + name.removesuffix("-pytorch")
    for address in (
        f"https://{organisation}/{name}/issues",
        f"see {organisation}",
        f"git+https://host/someone/{name.replace('-', '_')}.git",
        f"git@host.org:someone/{name}.git",
        f"https://{name.removesuffix('-pytorch')}.github.io/page/",
        f"{name}.readthedocs.io",
    ):
        assert addresses(address), address
    assert not addresses("https://arxiv.org/abs/2307.02486 git+file:///clone ./packages/" + name)


def test_one_file_holds_the_address_of_the_site_and_below_it_that_of_the_repository() -> None:
    found = {
        str(path.relative_to(ROOT)): finds
        for path in source_files()
        if b"\0" not in (data := path.read_bytes()) and (finds := addresses(data.decode("utf-8", "replace")))
    }
    assert list(found) == [HOLDER]
    site, repository = found[HOLDER]
    assert repository == f"{site}repository"


def test_the_address_is_one_that_nobody_can_register() -> None:
    site, _ = addresses((ROOT / HOLDER).read_text("utf-8"))
    assert re.fullmatch(r"https://[\w-]+\.invalid/", site)


def test_packages_carry_no_address() -> None:
    for path in source_files():
        if path.name == "pyproject.toml":
            assert "urls" not in load_toml(path)["project"], path
