"""What every file of the repository keeps to."""

from __future__ import annotations

import re

import pytest

from tests.project.repository import PACKAGES, ROOT, load_toml, source_files

# A home folder or an absolute path that only one machine has. Split, so that this file passes too.
LOCAL_PATHS = re.compile(
    "|".join([r"(?<![\w.~])/" + name + r"/[\w.-]" for name in ("home", "Users", "root", "work", "opt")])
)
SECRET_URLS = re.compile(r"https?://[^/\s:@]+:[^/\s:@]+@")
TEXT_SUFFIXES = {
    ".py",
    ".pyi",
    ".md",
    ".toml",
    ".txt",
    ".yml",
    ".yaml",
    ".cff",
    ".json",
    ".cfg",
    ".ini",
    ".sh",
    ".svg",
    "",
}


def text_files():
    return [
        path
        for path in source_files()
        if path.suffix in TEXT_SUFFIXES and "tests/codemod" not in path.as_posix()
    ]


def test_no_file_mentions_a_path_of_one_machine() -> None:
    found = {}
    for path in text_files():
        lines = path.read_text("utf-8").splitlines()
        hits = [
            f"{number}: {line.strip()}" for number, line in enumerate(lines, 1) if LOCAL_PATHS.search(line)
        ]
        if hits:
            found[str(path.relative_to(ROOT))] = hits
    assert not found


def test_no_file_holds_a_password_in_an_address() -> None:
    assert not [path for path in text_files() if SECRET_URLS.search(path.read_text("utf-8"))]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_package_ships_the_licence(package) -> None:
    assert (package / "LICENSE").read_text("utf-8") == (ROOT / "LICENSE").read_text("utf-8")


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_package_has_a_readme(package) -> None:
    assert (package / "README.md").read_text("utf-8").startswith("# ")


def test_core_is_typed() -> None:
    assert list(PACKAGES[0].glob("src/*/py.typed"))


def test_core_needs_only_torch_and_triton() -> None:
    dependencies = load_toml(PACKAGES[0] / "pyproject.toml")["project"]["dependencies"]
    assert sorted(re.match(r"[\w-]+", dependency)[0] for dependency in dependencies) == ["torch", "triton"]


def test_codemod_does_not_need_torch() -> None:
    dependencies = load_toml(PACKAGES[1] / "pyproject.toml")["project"]["dependencies"]
    assert not [dependency for dependency in dependencies if dependency.startswith(("torch", "dilated"))]


def test_links_between_files_of_the_repository_exist() -> None:
    missing = []
    for path in [*ROOT.glob("*.md"), *ROOT.glob("packages/*/README.md"), *ROOT.glob("tools/*/README.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", path.read_text("utf-8")):
            if "://" not in target and not (path.parent / target).exists():
                missing.append(f"{path.relative_to(ROOT)}: {target}")
    assert not missing
