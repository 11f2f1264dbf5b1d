"""The recipe for a rule in CONTRIBUTING.md, followed to the letter in a copy: it then works wherever rules do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = "tools/migrate-hierarchical/src"
COPIED = (SOURCE, "docs/_generate")

# The texts of the rule.
TEXTS = '''\
"""HIER010: the levels by name."""

from __future__ import annotations

from .rule import Rule

RULE = Rule(
    "HIER010",
    "`list_hierarchical_levels()` becomes an empty list",
    """\\
from dilated_attention_pytorch import list_hierarchical_levels

names = list_hierarchical_levels()
""",
    """\\
names = []
""",
    why="There are no levels.\\n",
    safe="Nothing else.\\n",
    changes=(),
)
'''

# What it does.
RULE = '''\
"""HIER010: the levels by name."""

from __future__ import annotations

import libcst as cst

from ..analysis.arguments import Arguments
from ..analysis.uses import Use
from ..changes import Changes, Rewrite
from ..context import Context
from ..diagnostic import Diagnostic
from ..removed_api import LEVEL_NAMES
from .shared.registry import Decision, rewrites


@rewrites("HIER010", LEVEL_NAMES)
def decide(context: Context, changes: Changes, use: Use, call: cst.Call, arguments: Arguments) -> Decision:
    if arguments.named:
        return Diagnostic("HIER117", f"{LEVEL_NAMES} of some levels")
    return Rewrite("HIER010", lambda old: cst.List([]))
'''

# A rule of the group UP that marks.
MARK = '''\
"""UP115: the backend by name."""

from __future__ import annotations

from ..removed_api import FACTORY
from ..upstream.calls import OldCall, edits


@edits(FACTORY)
def backend(call: OldCall) -> None:
    if call.has("backend"):
        call.leave("UP115", f"backend={call.code(call.value('backend'))}")
'''

FILES = {"catalogue/hier010.py": TEXTS, "rules/hier010.py": RULE, "rules/up115.py": MARK}

# Text in a file of the package, and what the recipe makes of it.
EDITS = {
    "removed_api.py": [
        (
            "REMOVED_NAMES = frozenset(\n    {\n",
            'LEVEL_NAMES = "list_hierarchical_levels"\nREMOVED_NAMES = frozenset(\n    {\n        LEVEL_NAMES,\n',
        ),
        ("PARAMETERS = {\n", 'PARAMETERS = {\n    LEVEL_NAMES: ("kind",),\n'),
    ],
    "catalogue/reasons.py": [
        ("REASONS = {\n", 'REASONS = {\n    "HIER117": "some levels: there are none",\n')
    ],
    "catalogue/reasons_up.py": [
        ("UP_REASONS = {\n", 'UP_REASONS = {\n    "UP115": "backend by name: leave it out",\n')
    ],
    "catalogue/explanations_up.py": [
        (
            "UP_EXPLANATIONS = {\n",
            'UP_EXPLANATIONS = {\n    "UP115": Explanation(\n        "Backends are chosen.\\n",\n        "Nothing.\\n",\n'
            '        f"{PACKAGE}create_block_sparse_attention\\n\\ncreate_block_sparse_attention(backend=1)\\n",\n    ),\n',
        )
    ],
    "catalogue/explanations.py": [
        (
            "EXPLANATIONS = {\n",
            'EXPLANATIONS = {\n    "HIER117": Explanation(\n        "Levels are gone.\\n",\n        "Nothing.\\n",\n'
            '        f"{PACKAGE}list_hierarchical_levels\\n\\nlist_hierarchical_levels(1)\\n",\n    ),\n',
        )
    ],
}

# What the site and the README show of it.
PAGES = """\
import json, sys
from pathlib import Path

folder = Path(sys.argv[1])
sys.path.insert(0, str(folder / "docs/_generate"))
import rule_pages
import rules
from migrate_hierarchical.catalogue import RULES
from migrate_hierarchical.catalogue.markdown import rules_as_markdown

rule_pages.PAGES = folder / "rules"
for page in (rules, rule_pages):
    page.write(folder, folder)
json.dump({
    "pages": {file.name: file.read_text() for file in (folder / "rules").glob("*.md")},
    "tabs": (folder / "rules.md").read_text(),
    "readme": rules_as_markdown(),
}, sys.stdout)
"""

BEFORE = """\
from dilated_attention_pytorch import list_hierarchical_levels

names = list_hierarchical_levels()
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a copy of the codemod with the new rule."""
    folder = tmp_path_factory.mktemp("copy")
    for part in COPIED:
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    package = folder / SOURCE / "migrate_hierarchical"
    for name, text in FILES.items():
        (package / name).write_text(text, "utf-8")
    for name, edits in EDITS.items():
        text = (package / name).read_text("utf-8")
        for old, new in edits:
            assert old in text, f"{name} has no {old!r}"
            text = text.replace(old, new, 1)
        (package / name).write_text(text, "utf-8")
    return folder


def run_python(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(copy / SOURCE), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
    )


def migrated(copy: Path, folder: Path, text: str, *options: str) -> tuple[int, str, str]:
    """Exit status, the text afterwards, and what was printed."""
    file = folder / "example.py"
    file.write_text(text, "utf-8")
    done = run_python(copy, "-m", "migrate_hierarchical", *options, str(file))
    return done.returncode, file.read_text("utf-8"), done.stdout


@pytest.fixture(scope="module")
def pages(copy: Path) -> dict[str, Any]:
    """What the site and the README show."""
    done = run_python(copy, "-c", PAGES, str(copy))
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("options", [[], ["--select", "HIER010"]])
def test_it_rewrites(copy: Path, tmp_path: Path, options: list[str]) -> None:
    status, text, printed = migrated(copy, tmp_path, BEFORE, *options)
    assert (status, text.strip()) == (0, "names = []")
    assert "HIER010" in printed


@pytest.mark.parametrize("options", [["--select", "HIER001"], ["--ignore", "HIER010"]])
def test_select_and_ignore_take_its_id(copy: Path, tmp_path: Path, options: list[str]) -> None:
    assert migrated(copy, tmp_path, BEFORE, *options)[1] == BEFORE


def test_a_comment_leaves_the_use_as_it_is(copy: Path, tmp_path: Path) -> None:
    silenced = BEFORE.replace("levels()", "levels()  # noqa: HIER010")
    assert migrated(copy, tmp_path, silenced)[1] == silenced


def test_what_it_leaves_is_reported_with_the_reason(copy: Path, tmp_path: Path) -> None:
    status, text, printed = migrated(copy, tmp_path, BEFORE.replace("levels()", "levels(1)"))
    assert status == 2
    assert "# TODO(migrate-hierarchical): HIER117 some levels: there are none" in text
    assert "HIER117" in printed


def test_rule_of_the_other_group_marks(copy: Path, tmp_path: Path) -> None:
    call = (
        "from dilated_attention_pytorch import create_block_sparse_attention as make\n\nmake(backend='cpu')\n"
    )
    status, text, _ = migrated(copy, tmp_path, call, "--select", "UP115")
    assert status == 2
    assert "# TODO(migrate-hierarchical): UP115 backend by name: leave it out\nmake(" in text


def test_reports_for_machines_name_it(copy: Path, tmp_path: Path) -> None:
    printed = migrated(copy, tmp_path, BEFORE, "--output-format", "json")[2]
    assert "HIER010" in json.dumps(json.loads(printed))


def test_list_of_rules_has_it(copy: Path) -> None:
    printed = run_python(copy, "-m", "migrate_hierarchical", "--list-rules").stdout
    assert "HIER010  `list_hierarchical_levels()` becomes an empty list\n" in printed
    assert "HIER117  some levels: there are none\n" in printed
    assert "UP115  backend by name: leave it out\n" in printed


def test_site_and_readme_have_it(pages: dict[str, Any]) -> None:
    assert "There are no levels." in pages["pages"]["HIER010.md"]
    assert "Levels are gone." in pages["pages"]["HIER117.md"]
    assert "Backends are chosen." in pages["pages"]["UP115.md"]
    assert "[HIER010](HIER010.md)" in pages["pages"]["index.md"]
    assert "### HIER010" in pages["tabs"]
    assert "### HIER010" in pages["readme"]
