"""Nothing in the repository tells anybody to install one of our packages by a name that we do not own."""

from __future__ import annotations

import re

import pytest

from tests.project.installs import DISTRIBUTIONS, find_in_file, find_installs
from tests.project.repository import PACKAGES, ROOT, load_toml, source_files

# Test data that shows what a user's file may hold, with the finds in it.
TEST_DATA = {"tests/codemod/test_documents.py": 1}

BY_NAME = [
    "pip install NAME",
    "pip install -q --upgrade NAME",
    "pip3.11 install -U NAME",
    "python -m pip install --index-url https://example.org/simple NAME",
    "python3 -m pip --isolated install torch NAME",
    'pip install "NAME[plot]"',
    "pip install 'NAME[plot,demo]>=0.3'",
    "pip install NAME==0.3.0",
    "pip install 'NAME ~= 0.3'",
    "pip install torch \\\n    NAME",
    "%pip install NAME",
    "!pip install NAME\n",
    "RUN pip install --no-cache-dir NAME && rm -r cache",
    "pip download NAME",
    "Run `pip install NAME` first.",
    "Install it with pip install\nNAME.",
    "<code>pip install NAME</code>",
    "raise ImportError(\"plot needs it: pip install 'NAME[plot]'\")",
    'text = (\n    "not installed: pip install "\n    "NAME; then"\n)',
    'subprocess.run([sys.executable, "-m", "pip", "install", "-q", "NAME"])',
    'session.run(\n    "pip",\n    "install",\n    "NAME",\n)',
    'session.install("NAME")',
    'pip.main(["install", "NAME"])',
    '{"source": ["!pip install NAME\\n", "import torch"]}',
    "uv pip install NAME",
    "uv add NAME",
    "uv add --dev 'NAME>=0.3'",
    "uv tool install NAME",
    "uv tool run NAME src/",
    "uvx NAME src/",
    "uvx NAME@latest src/",
    "uvx --from NAME command src/",
    "uv run --with NAME python train.py",
    "pipx install NAME",
    "pipx run NAME src/",
    "pipx run --spec NAME==0.3 command src/",
    "pipx run --spec=NAME command src/",
    "pipx inject other NAME",
    "conda install NAME",
    "mamba install -c conda-forge NAME",
    "poetry add NAME",
    "pdm add NAME",
    "pixi add --pypi NAME",
    "torch>=2.6\nNAME\n",
    "NAME>=0.3  # requirements.txt",
    "dependencies:\n  - python\n  - NAME\n",
    'dependencies = ["torch", "NAME"]',
    'dependencies = [\n    "torch>=2.6",\n    "NAME[plot]",\n]',
    'install_requires=["NAME"],',
    '# /// script\n# dependencies = ["NAME"]\n# ///',
    "additional_dependencies: [NAME]",
    '[tool.poetry.dependencies]\nNAME = "^0.3"',
    "[dependency-groups]\nbench = ['torch', 'NAME']",
    "[options]\ninstall_requires =\n    torch\n    NAME\n",
    "[testenv]\ndeps = NAME",
    "pip install `NAME`",
    "pip install **NAME**",
    "See https://pypi.org/project/NAME/",
]
NOT_BY_NAME = [
    "pip install ./packages/NAME",
    "pip install packages/NAME",
    "pip install -e 'packages/NAME[demo]'",
    "pip install -c constraints.txt -e ./tools/NAME",
    "pip install ./packages/NAME ./tools/NAME && NAME --help",
    "pip install ./tools/NAME  # then NAME src/",
    "pip install .\\tools\\NAME",
    "pip install dist/NAME-0.3.0-py3-none-any.whl",
    "pip install 'NAME @ git+ssh://host/repository#subdirectory=tools/NAME'",
    'pip install "git+file:///clone#subdirectory=tools/NAME"',
    "pipx run --spec ./tools/NAME NAME src/",
    'pipx run --spec "git+ssh://host/repository#subdirectory=tools/NAME" NAME src/',
    "pipx install ./tools/NAME",
    "uvx --from ./tools/NAME NAME src/",
    "uv tool run --from ./tools/NAME NAME src/",
    "uv run NAME src/",
    "pip install matplotlib\n\nNAME draws with it.",
    "pip uninstall NAME",
    "`pip install ./tools/NAME`, then NAME rewrites",
    "NAME src/",
    "# NAME",
    "NAME 0.3.0",
    "- [NAME](tools/NAME/README.md)",
    "- id: NAME",
    "additional_dependencies: [./tools/NAME]",
]


def spellings(name: str) -> list[str]:
    """A name as PyPI also reads it."""
    return [name, name.replace("-", "_"), name.title(), name.replace("-", "._-", 1)]


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("text", BY_NAME)
def test_install_by_name_is_found(text: str, name: str) -> None:
    for spelling in spellings(name):
        assert find_installs(text.replace("NAME", spelling)), spelling


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("text", NOT_BY_NAME)
def test_install_from_the_repository_is_not_found(text: str, name: str) -> None:
    for spelling in spellings(name):
        assert not find_installs(text.replace("NAME", spelling)), spelling


def test_all_packages_are_looked_for() -> None:
    assert {load_toml(package / "pyproject.toml")["project"]["name"] for package in PACKAGES} <= set(
        DISTRIBUTIONS
    )


def test_no_file_installs_our_packages_by_name() -> None:
    found = {str(path.relative_to(ROOT)): finds for path in source_files() if (finds := find_in_file(path))}
    assert {name: finds for name, finds in found.items() if len(finds) != TEST_DATA.get(name, 0)} == {}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_no_package_requires_another_one_of_ours(package) -> None:
    project = load_toml(package / "pyproject.toml")["project"]
    extras = project.get("optional-dependencies", {})
    required = [*project["dependencies"], *(name for names in extras.values() for name in names)]
    assert not {re.match(r"[\w.-]+", name)[0].lower().replace("_", "-") for name in required} & set(
        DISTRIBUTIONS
    )
