"""Files that take removed names from another file of the same project."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
from pathlib import Path

import pytest

from migrate_hierarchical.catalogue import RULES
from migrate_hierarchical.cli import main
from migrate_hierarchical.engine import migrate_bytes
from migrate_hierarchical.removed_api import KEPT_NAMES, REMOVED_NAMES
from migrate_hierarchical.settings import Settings
from tests.codemod.cases import CASES, Case
from tests.codemod.trees import make

BASE = "from dilated_attention_pytorch import BlockSparseHierarchical, HierarchicalConfig\n"
USE = "model = BlockSparseHierarchical([2048, 4096], [1, 2], hierarchical_config=HierarchicalConfig())\n"
NEW_IMPORT = "from dilated_attention_pytorch import create_block_sparse_attention, SparsePatternConfig\n"


@pytest.mark.parametrize(
    ("exporter", "consumer", "line"),
    [
        ("app/attention.py", "app/model.py", "from app.attention import {}"),
        ("app/attention.py", "app/model.py", "from .attention import {}"),
        ("app/attention.py", "app/deep/er/model.py", "from ...attention import {}"),
        ("src/app/attention/__init__.py", "tests/test_model.py", "from app.attention import {}"),
        ("attention.py", "model.py", "from attention import {}"),
    ],
)
def test_importers_are_moved_to_the_package(
    exporter: str, consumer: str, line: str, tmp_path: Path, capsys
) -> None:
    text = line.format("BlockSparseHierarchical, HierarchicalConfig") + "\n" + USE
    make(tmp_path, {exporter: BASE, consumer: text, "unrelated.py": "# BlockSparseHierarchical\n"})
    assert main([str(tmp_path)]) == 0
    new = (tmp_path / consumer).read_text()
    assert new.startswith(NEW_IMPORT + "model = create_block_sparse_attention(\n")
    assert "ierarchical" not in new
    assert main(["--check", str(tmp_path)]) == 0


def test_other_names_of_the_module_stay_where_they_are(tmp_path: Path) -> None:
    text = (
        "from .attention import helper, HierarchicalConfig  # both\nconfig = helper(HierarchicalConfig())\n"
    )
    make(tmp_path, {"app/attention.py": BASE + "\n\ndef helper(x):\n    return x\n", "app/model.py": text})
    assert main([str(tmp_path)]) == 0
    new = (tmp_path / "app/model.py").read_text()
    assert new.startswith(
        "from .attention import helper\nfrom dilated_attention_pytorch import SparsePatternConfig  # both\n"
    )


def test_chain_of_modules(tmp_path: Path) -> None:
    files = {
        "app/low.py": BASE,
        "app/__init__.py": "from .low import BlockSparseHierarchical, HierarchicalConfig\n",
        "use.py": "from app import BlockSparseHierarchical, HierarchicalConfig\n" + USE,
    }
    make(tmp_path, files)
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "use.py").read_text().startswith(NEW_IMPORT)
    assert (tmp_path / "app/__init__.py").read_text() == (
        "from dilated_attention_pytorch import BlockSparseAttention, SparsePatternConfig\n"
    )


def test_module_with_a_class_of_that_name_is_none_of_ours(tmp_path: Path) -> None:
    own = "class HierarchicalConfig:\n    pass\n"
    files = {
        "app/attention.py": "from dilated_attention_pytorch import BlockSparseHierarchical\n" + own,
        "app/model.py": "from .attention import HierarchicalConfig\nconfig = HierarchicalConfig()\n",
    }
    make(tmp_path, files)
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "app/model.py").read_text() == files["app/model.py"]


def test_two_modules_of_one_name_are_told_apart(tmp_path: Path) -> None:
    files = {
        "one/attention.py": BASE,
        "two/attention.py": "class HierarchicalConfig:\n    pass\n",
        "one/use.py": "from .attention import HierarchicalConfig\nconfig = HierarchicalConfig()\n",
        "two/use.py": "from .attention import HierarchicalConfig\nconfig = HierarchicalConfig()\n",
    }
    make(tmp_path, files)
    assert main([str(tmp_path)]) == 0
    assert "SparsePatternConfig" in (tmp_path / "one/use.py").read_text()
    assert (tmp_path / "two/use.py").read_text() == files["two/use.py"]


def test_uses_that_stay_are_reported(tmp_path: Path, capsys) -> None:
    text = (
        "from .attention import BlockSparseHierarchical\n\n\nclass Own(BlockSparseHierarchical):\n    pass\n"
    )
    make(tmp_path, {"app/attention.py": BASE, "app/model.py": text})
    assert main([str(tmp_path)]) == 2
    assert "model.py:5: HIER101" in capsys.readouterr().out
    assert main([str(tmp_path)]) == 2, "the mark is still there"


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("import app.attention", "app.attention"),
        ("import app.attention as a", "a"),
        ("from app import attention", "attention"),
        ("from . import attention", "attention"),
    ],
)
def test_uses_through_the_module_are_reported(line: str, name: str, tmp_path: Path, capsys) -> None:
    make(tmp_path, {"app/attention.py": BASE, "app/model.py": f"{line}\nx = {name}.HierarchicalConfig()\n"})
    assert main([str(tmp_path)]) == 2
    assert "model.py:3: HIER109" in capsys.readouterr().out


def test_migrated_project_runs(tmp_path: Path) -> None:
    pytest.importorskip("dilated_attention_pytorch")
    files = {
        "app/__init__.py": "",
        "app/attention.py": BASE + "__all__ = ['BlockSparseHierarchical', 'HierarchicalConfig']\n",
        "app/model.py": "from .attention import BlockSparseHierarchical, HierarchicalConfig\n" + USE,
        "run.py": "import app.attention, app.model\nprint(type(app.model.model).__name__)\n",
    }
    make(tmp_path, files)
    assert main([str(tmp_path)]) == 0
    done = subprocess.run(
        [sys.executable, "run.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("BlockSparseAttention\n", 0), done.stderr


# ---- runs on a part of a project

CONFIG = "from dilated_attention_pytorch import HierarchicalConfig\n"


def state(folder: Path, files: dict[str, str]) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in files}


@pytest.mark.parametrize(
    ("exporter", "consumer"),
    [
        (
            CONFIG[:-1] + "  # noqa: F401\n",
            "from .compat import HierarchicalConfig\nc = HierarchicalConfig()\n",
        ),
        (CONFIG, "from app.compat import HierarchicalConfig as HC\nc = HC()\n"),
        (CONFIG[:-1] + " as HC\n", "from .compat import HC\nc = HC()\n"),
        (CONFIG[:-1] + " as HC\nd = HC()\n", "from .compat import HC, d\nc = HC()\n"),
        (
            CONFIG + "__all__ = ['HierarchicalConfig']\n",
            "from .compat import HierarchicalConfig as C\nc = C()\n",
        ),
        (
            "import dilated_attention_pytorch.block_sparse_hierarchical as old\nHC = old.HierarchicalConfig\n"
            + CONFIG,
            "from .compat import HierarchicalConfig\nc = HierarchicalConfig()\n",
        ),
    ],
)
def test_a_module_waits_for_its_importers(exporter: str, consumer: str, tmp_path: Path, capsys) -> None:
    files = {"app/__init__.py": "", "app/compat.py": exporter, "app/model.py": consumer}
    make(tmp_path, files)
    assert main([str(tmp_path / "app/compat.py")]) == 2
    assert "app/model.py imports H" in capsys.readouterr().out
    assert state(tmp_path, files) == files
    main([str(tmp_path / "app/model.py")])
    main([str(tmp_path / "app/compat.py")])
    one_by_one = state(tmp_path, files)
    make(tmp_path, files)
    main([str(tmp_path)])
    assert state(tmp_path, files) == one_by_one
    assert "= SparsePatternConfig(\n" in one_by_one["app/model.py"]
    assert "compat import H" not in one_by_one["app/model.py"]


def test_the_message_is_the_same_for_stdin(tmp_path: Path, monkeypatch, capsysbinary) -> None:
    files = {"app/compat.py": CONFIG, "app/model.py": "from app.compat import HierarchicalConfig\n"}
    make(tmp_path, files)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(CONFIG.encode())))
    assert main(["-", "--stdin-filename", "app/compat.py"]) == 2
    out, err = capsysbinary.readouterr()
    assert out == CONFIG.encode()
    assert b"HIER115" in err


@pytest.mark.parametrize(
    "consumer",
    [
        "from app.compat import *\n\nconfig = HierarchicalConfig()\n",
        "from .compat import *\n\nconfig = HierarchicalConfig()\n",
        "from app import *\n\nconfig = HierarchicalConfig()\n",
    ],
)
def test_stars_of_own_modules(consumer: str, tmp_path: Path, capsys) -> None:
    files = {"app/__init__.py": "from .compat import *\n", "app/compat.py": CONFIG, "app/use.py": consumer}
    make(tmp_path, files)
    assert main([str(tmp_path)]) == 2
    new = state(tmp_path, files)
    assert "# TODO(migrate-hierarchical): HIER108" in new["app/use.py"]
    assert new["app/compat.py"].endswith(CONFIG)
    assert main([str(tmp_path)]) == 2
    assert state(tmp_path, files) == new
    fixed = "from app.compat import HierarchicalConfig\n\nconfig = HierarchicalConfig()\n"
    (tmp_path / "app/use.py").write_text(fixed)
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "app/compat.py").read_text().strip() == "", "the mark goes with the import"


def test_star_that_does_not_take_the_name(tmp_path: Path) -> None:
    compat = CONFIG + "__all__ = ['other']\nother = HierarchicalConfig()\n"
    use = "from app.compat import *\n\nHierarchicalConfig = 1\nprint(HierarchicalConfig, other)\n"
    make(tmp_path, {"app/compat.py": compat, "use.py": use})
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "use.py").read_text() == use


def test_the_package_and_its_factory_through_own_modules(tmp_path: Path) -> None:
    files = {
        "app/compat.py": "import dilated_attention_pytorch as dap\n"
        "from dilated_attention_pytorch import create_block_sparse_attention as make\n",
        "app/one.py": "from .compat import dap\nmodel = dap.BlockSparseHierarchical([2048], [1])\n",
        "app/two.py": "from .compat import make\nmodel = make('hierarchical', segment_lengths=[2048])\n",
    }
    make(tmp_path, files)
    assert main([str(tmp_path)]) == 0
    new = state(tmp_path, files)
    assert new["app/compat.py"] == files["app/compat.py"]
    assert "sparse_config=dap.SparsePatternConfig(" in new["app/one.py"]
    assert "from dilated_attention_pytorch import " in new["app/two.py"]
    assert "ierarchical" not in new["app/two.py"]


def test_optional_dependency_of_an_own_module_is_left(tmp_path: Path) -> None:
    compat = (
        "try:\n    from dilated_attention_pytorch import BlockSparseHierarchical\n"
        "except ImportError:\n    BlockSparseHierarchical = None\n"
    )
    use = (
        "from .compat import BlockSparseHierarchical\n\nif BlockSparseHierarchical is not None:\n"
        "    model = BlockSparseHierarchical([2048], [1])\n"
    )
    files = {"app/compat.py": compat, "app/use.py": use}
    make(tmp_path, files)
    assert main([str(tmp_path)]) == 2
    for text in state(tmp_path, files).values():
        assert "HIER107" in text
        assert "create_block_sparse_attention(" not in text


def test_name_that_is_no_longer_in_the_own_module(tmp_path: Path) -> None:
    make(
        tmp_path,
        {"app/compat.py": '"""Nothing."""\n', "app/use.py": "from .compat import HierarchicalConfig\n"},
    )
    assert main([str(tmp_path)]) == 2
    assert "HIER108" in (tmp_path / "app/use.py").read_text()


def test_file_that_is_skipped_still_imports(tmp_path: Path) -> None:
    skipped = "# migrate-hierarchical: skip-file\nfrom .compat import HierarchicalConfig\n"
    make(tmp_path, {"app/compat.py": CONFIG, "app/use.py": skipped})
    assert main([str(tmp_path)]) == 2
    assert (tmp_path / "app/compat.py").read_text().endswith(CONFIG)
    assert (tmp_path / "app/use.py").read_text() == skipped


# ---- forks and copies of the package

FORK = {
    "__init__.py": "from .block_sparse_hierarchical import HierarchicalConfig\n\n__all__ = ['HierarchicalConfig']\n",
    "block_sparse_hierarchical.py": "class HierarchicalConfig:\n    pass\n",
    "factory.py": "from dilated_attention_pytorch import HierarchicalConfig\n\nx = HierarchicalConfig()\n",
    "deep/er.py": "from ..block_sparse_hierarchical import HierarchicalConfig\n\nx = HierarchicalConfig()\n",
}


@pytest.mark.parametrize("place", ["", "src/", "app/vendor/", "app/_vendor/", "third_party/"])
@pytest.mark.parametrize("given", ["", "factory.py", "__init__.py", "deep"])
def test_fork_is_left_alone_and_reported_once(place: str, given: str, tmp_path: Path, capsys) -> None:
    files = {f"{place}dilated_attention_pytorch/{name}": text for name, text in FORK.items()}
    make(tmp_path, files)
    target = tmp_path / place / "dilated_attention_pytorch" / given
    assert main([str(target if given else tmp_path)]) == 0
    assert capsys.readouterr().out.count("note: defines the removed names itself") == 1
    assert state(tmp_path, files) == files


def test_scripts_beside_a_fork_are_migrated(tmp_path: Path) -> None:
    fork = {f"src/dilated_attention_pytorch/{name}": text for name, text in FORK.items()}
    vendored = (
        "from app.vendor.dilated_attention_pytorch import HierarchicalConfig\nx = HierarchicalConfig()\n"
    )
    files = {
        **fork,
        "app/vendor/dilated_attention_pytorch/__init__.py": FORK["block_sparse_hierarchical.py"],
        "app/own.py": vendored,
        "tests/test_it.py": CONFIG + "config = HierarchicalConfig()\n",
        "scripts/run.py": CONFIG.replace("from ", "from src.") + "config = HierarchicalConfig()\n",
    }
    make(tmp_path, files)
    assert main([str(tmp_path)]) == 0
    new = state(tmp_path, files)
    changed = {name for name in files if new[name] != files[name]}
    assert changed == {"tests/test_it.py", "scripts/run.py"}


# ---- some of the rules


@pytest.mark.parametrize("selects", [True, False])
@pytest.mark.parametrize("case", [case for case in CASES if case.path.endswith(".py")], ids=str)
def test_some_of_the_rules(case: Case, selects: bool) -> None:
    """Every case with one rule, or without it: names stay bound, and a second run changes nothing."""
    rule = RULES[sum(case.name.encode()) % len(RULES)].id
    settings = Settings(select=(rule,)) if selects else Settings(ignore=(rule,))
    new = migrate_bytes(case.path, case.before.encode(), settings).new or case.before.encode()
    again = migrate_bytes(case.path, new, settings)
    assert again.new is None, "the second run changed something"
    assert unbound(new) <= unbound(case.before.encode())


def unbound(source: bytes) -> set[str]:
    """Names of the package that are read and nowhere bound."""
    tree = ast.parse(source)
    bound = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        for alias in getattr(node, "names", ())
        if isinstance(alias, ast.alias)
    }
    nodes = list(ast.walk(tree))
    given = [node.target for node in nodes if isinstance(node, (ast.For, ast.comprehension))]
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            given += node.targets
    bound |= {node.id for node in given if isinstance(node, ast.Name)}
    bound |= {node.name for node in nodes if isinstance(node, ast.ClassDef)}
    read = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return set() if "*" in bound else (read & (REMOVED_NAMES | KEPT_NAMES)) - bound


def whole_and_parts(files: dict[str, str], folder: Path, runs: list[tuple[str, list[str]]]) -> None:
    """One run with all rules, and the same after runs with some of them, each twice."""
    make(folder / "whole", files)
    assert main([str(folder / "whole")]) == 0
    make(folder / "parts", files)
    for path, options in runs:
        main([*options, str(folder / "parts" / path)])
        once = state(folder / "parts", files)
        main([*options, str(folder / "parts" / path)])
        assert state(folder / "parts", files) == once
        assert not any("TODO" in text for text in once.values())
    assert main([str(folder / "parts")]) == 0
    assert state(folder / "parts", files) == state(folder / "whole", files)


@pytest.mark.parametrize("rule", ["HIER001", "HIER005", "HIER009"])
@pytest.mark.parametrize("option", ["--select", "--ignore"])
def test_some_rules_where_a_star_gives_the_factory(option: str, rule: str, tmp_path: Path) -> None:
    files = {
        "app/__init__.py": "",
        "app/layers.py": "from dilated_attention_pytorch import create_block_sparse_attention\n",
        "app/compat.py": "from dilated_attention_pytorch import BlockSparseHierarchical\n",
        "use.py": "from app.layers import *\nfrom app.compat import BlockSparseHierarchical\n\n"
        "x0 = BlockSparseHierarchical([2048], [1])\nx1 = create_block_sparse_attention('hierarchical')\n",
    }
    whole_and_parts(files, tmp_path, [("", [option, rule])])
    assert (
        "import create_block_sparse_attention, SparsePatternConfig\n"
        in state(tmp_path / "parts", files)["use.py"]
    )


@pytest.mark.parametrize("comment", ["# noqa: F401", "# noqa", "# pylint: disable=unused-import"])
@pytest.mark.parametrize("path", ["app/compat.py", ""])
def test_some_rules_where_a_comment_keeps_an_import(path: str, comment: str, tmp_path: Path) -> None:
    files = {
        "app/__init__.py": "from .compat import BlockSparseHierarchical\n",
        "app/compat.py": f"from dilated_attention_pytorch import BlockSparseHierarchical  {comment}\n"
        "x0 = BlockSparseHierarchical([2048], [1])\n",
    }
    whole_and_parts(files, tmp_path, [(path, ["--select", "HIER001"])])


@pytest.mark.parametrize("rule", ["HIER001", "HIER002", "HIER008"])
@pytest.mark.parametrize("option", ["--select", "--ignore"])
def test_some_rules_where_two_imports_need_the_same_name(option: str, rule: str, tmp_path: Path) -> None:
    files = {
        "use.py": "from dilated_attention_pytorch import BlockSparseHierarchical\n"
        "from dilated_attention_pytorch import HierarchicalConfig\n\n"
        "def f(x: HierarchicalConfig):\n    return BlockSparseHierarchical([2048], [1])\n\n"
        "x = HierarchicalConfig()\n",
    }
    whole_and_parts(files, tmp_path, [("", [option, rule])])


def test_names_beside_a_star_leave_its_comment(tmp_path: Path) -> None:
    files = {
        "app/__init__.py": "",
        "app/layers.py": "from dilated_attention_pytorch import create_block_sparse_attention\n",
        "use.py": "from app.layers import *  # noqa: F403\n\nx = create_block_sparse_attention('hierarchical')\n",
    }
    make(tmp_path, files)
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "use.py").read_text().splitlines()[:3] == [
        "from app.layers import *  # noqa: F403",
        "from dilated_attention_pytorch import create_block_sparse_attention, SparsePatternConfig",
        "",
    ]


def test_project_that_is_too_large_is_said(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("migrate_hierarchical.project.PROJECT_FILES", 2)
    files = {f"{name}.py": CONFIG + "x = HierarchicalConfig()\n" for name in "abc"}
    make(tmp_path, {"pyproject.toml": "", **files})
    assert main([str(tmp_path / "a.py")]) == 0
    out = capsys.readouterr().out
    assert out.count(f"{tmp_path}: note: has more than") == 1
    assert state(tmp_path, files)["b.py"] == files["b.py"]


@pytest.mark.parametrize(
    "use",
    [
        'def f(x: "HierarchicalConfig") -> None: ...\n',
        'def f() -> "list[HierarchicalConfig] | None": ...\n',
        'from typing import cast\n\nx = cast("HierarchicalConfig", 1)\n',
    ],
)
def test_string_types_count_as_uses_of_a_star(use: str, tmp_path: Path, capsys) -> None:
    shared = "from dilated_attention_pytorch import HierarchicalConfig\n"
    make(tmp_path, {"lib/__init__.py": "", "lib/a.py": shared, "lib/b.py": "from lib.a import *\n" + use})
    assert main([str(tmp_path)]) == 2
    report = capsys.readouterr().out
    assert "b.py imports HierarchicalConfig from here" in report
    assert "HIER108" in report
    assert shared in (tmp_path / "lib/a.py").read_text()
    assert main(["--check", str(tmp_path)]) == 2
    assert "HIER108" in capsys.readouterr().out


CIRCLES = [
    {
        "kit/one.py": "from dilated_attention_pytorch import HierarchicalConfig\n\n\ndef f():\n"
        "    from kit.two import build\n\n    return build('long_range')\n\n\nx = HierarchicalConfig()\n",
        "kit/two.py": "from dilated_attention_pytorch import create_hierarchical_block_sparse as build\n\n\n"
        "def g():\n    from kit.one import HierarchicalConfig\n\n    return HierarchicalConfig()\n",
    },
    {
        "kit/one.py": "from dilated_attention_pytorch import HierarchicalConfig\n\n\ndef f():\n"
        "    from .two import BlockSparseHierarchical as B\n\n    return B([2048], [1])\n",
        "kit/two.py": "from dilated_attention_pytorch import BlockSparseHierarchical\n\n\n"
        "def g():\n    from .three import get_hierarchical_presets\n\n    return get_hierarchical_presets()\n",
        "kit/three.py": "from dilated_attention_pytorch import get_hierarchical_presets\n\n\n"
        "def h():\n    from .one import HierarchicalConfig\n\n    return HierarchicalConfig()\n",
    },
]


@pytest.mark.parametrize("files", CIRCLES)
@pytest.mark.parametrize("backwards", [False, True])
def test_files_that_wait_for_one_another(
    files: dict[str, str], backwards: bool, tmp_path: Path, capsys
) -> None:
    whole, single = tmp_path / "whole", tmp_path / "single"
    for folder in (whole, single):
        make(folder, {"setup.cfg": "", "kit/__init__.py": "", **files})
    assert main([str(whole)]) == 0
    order = sorted(files, reverse=backwards)
    assert main([str(single / order[0])]) == 2
    assert "HIER115" in capsys.readouterr().out
    for path in [*order[1:], *order, *order]:
        main([str(single / path)])
    assert state(single, files) == state(whole, files)
    assert main([str(single)]) == 0


def test_copy_of_the_module_in_another_package_is_reported_once(tmp_path: Path, capsys) -> None:
    files = {
        "kit/vendored/__init__.py": "from .block_sparse_hierarchical import HierarchicalConfig\n",
        "kit/vendored/block_sparse_hierarchical.py": "class HierarchicalConfig:\n    num_levels = 3\n",
        "kit/use.py": "from .vendored import HierarchicalConfig\n\nprint(HierarchicalConfig().num_levels)\n",
    }
    make(tmp_path, files)
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("vendored: note: defines the removed names itself") == 1
    assert state(tmp_path, files) == files
