"""The README's commands are complete, and CI runs exactly its test command."""

from __future__ import annotations

import ast
import os
import re

import pytest

from tests.project.repository import PACKAGES, ROOT, bash_fences, load_toml

DEMO_COMMAND = (
    "python3 -m venv .venv && "
    '.venv/bin/pip install -c constraints.txt -e "packages/dilated-attention-pytorch[demo]" && '
    ".venv/bin/python -m dilated_attention_pytorch demo"
)
TEST_COMMAND = "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt nox && .venv/bin/nox"


def nox_sessions() -> dict[str, ast.FunctionDef]:
    """The functions of noxfile.py that are sessions, by name."""
    tree = ast.parse((ROOT / "noxfile.py").read_text("utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {
        function.name: function
        for function in functions
        if any("nox.session" in ast.unparse(decorator) for decorator in function.decorator_list)
    }


@pytest.mark.parametrize("command", [DEMO_COMMAND, TEST_COMMAND])
def test_readme_gives_the_command(command: str) -> None:
    assert command in bash_fences(ROOT / "README.md")


def test_ci_runs_the_test_command_of_the_readme() -> None:
    lines = [line.strip() for line in (ROOT / ".ci/run").read_text("utf-8").splitlines()]
    assert TEST_COMMAND in lines


def test_ci_script_is_executable_and_strict() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text("utf-8")


def test_every_nox_session_explains_itself_in_one_line() -> None:
    for name, function in nox_sessions().items():
        assert len((ast.get_docstring(function) or "").splitlines()) == 1, name


def test_default_sessions_are_the_documented_ones() -> None:
    default = {
        name
        for name, function in nox_sessions().items()
        if not any("default=False" in ast.unparse(decorator) for decorator in function.decorator_list)
    }
    assert default == {"lint", "versions", "typecheck", "tests", "codemod", "docs", "wheels"}


@pytest.mark.parametrize("name", ["tests", "minimums", "newest"])
def test_sessions_on_any_cpu_leave_out_what_has_a_session_of_its_own(name: str) -> None:
    """A test with a marker that names its session is not run by those that anybody can run."""
    markers = load_toml(ROOT / "pyproject.toml")["tool"]["pytest"]["ini_options"]["markers"]
    own = [marker.split(":")[0] for marker in markers if re.search(r"`nox -s \w+` runs these", marker)]
    assert "processes" in own
    (given,) = re.findall(r'^QUICK = "(.*)"', (ROOT / "noxfile.py").read_text("utf-8"), re.MULTILINE)
    assert given == " and ".join(f"not {marker}" for marker in own)
    assert "'-m', QUICK" in ast.unparse(nox_sessions()[name])


def test_release_sends_nothing_to_a_name_that_is_not_owned() -> None:
    session = nox_sessions()["release"]
    said = [node.value for node in ast.walk(session) if isinstance(node, ast.Constant)]
    text = "\n".join(word for word in said if isinstance(word, str))
    assert "docs/release.md" in text
    assert "Upload nothing to PyPI" in text
    assert "twine upload" not in text


def test_release_page_names_every_package() -> None:
    page = (ROOT / "docs/release.md").read_text("utf-8")
    for package in PACKAGES:
        assert f"| `{package.name}` |" in page


def test_nox_compiles_with_every_triton_that_the_hopper_kernels_serve() -> None:
    package = ROOT / "packages/dilated-attention-pytorch/src/dilated_attention_pytorch"
    source = (package / "launching/supported_triton.py").read_text("utf-8")
    (oldest, newest) = (
        ast.literal_eval(re.search(rf"^{name} = (\(.*?\))", source, re.MULTILINE)[1])
        for name in ("OLDEST_TRITON", "NEWEST_TRITON")
    )
    line = re.search(r"^TRITONS = (\(.*?\))", (ROOT / "noxfile.py").read_text("utf-8"), re.MULTILINE)[1]
    releases = [tuple(map(int, version.split(".")[:2])) for version in ast.literal_eval(line)]
    assert releases == [(oldest[0], minor) for minor in range(oldest[1], newest[1] + 1)]
    served = f"Triton {oldest[0]}.{oldest[1]} to {newest[0]}.{newest[1]}"
    for page in ("README.md", "CONTRIBUTING.md", "packages/dilated-attention-pytorch/README.md"):
        assert served in (ROOT / page).read_text("utf-8"), page


def test_pinned_tools_of_pre_commit_are_those_of_the_constraints() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
    hook_version = re.search(r"ruff-pre-commit\n\s+rev: v(\S+)", hooks)[1]
    assert f"ruff=={hook_version}" in (ROOT / "constraints.txt").read_text("utf-8").splitlines()


def test_dependency_groups_are_used_or_for_developers() -> None:
    groups = set(load_toml(ROOT / "pyproject.toml")["dependency-groups"])
    used = set(re.findall(r'(?:group|shared_env)\([^)]*?"(\w+)"\)', (ROOT / "noxfile.py").read_text("utf-8")))
    assert groups - {"dev"} == used
