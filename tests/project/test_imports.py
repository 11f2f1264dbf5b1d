"""What a part of the code may import, and how a function may look; docs/how-it-is-built.md says why.

Everything is read from the source: no package needs to be installed.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

from tests.project.imports import Import, Package, circles, read_package
from tests.project.pending import PENDING
from tests.project.repository import ROOT, source_files

LIBRARY = ROOT / "packages/dilated-attention-pytorch/src/dilated_attention_pytorch"
PACKAGES = {
    "core": read_package(LIBRARY),
    "codemod": read_package(ROOT / "tools/migrate-hierarchical/src/migrate_hierarchical"),
    "bench": read_package(ROOT / "tools/attention-bench/src/attention_bench"),
}

# The library from the bottom to the top: a part imports from its own line and from those before it. The entrance is every
# file that stands in no other line: functional.py, ops.py and what they share.
LAYERS = (
    (
        "values",
        "environment_settings",
        "samples",
        "removed",
        "upstream",
        "config_warnings",
        "_torch_internals",
    ),
    ("config", "adaptive_config", "caching", "grid", "op_library", "sequences"),
    ("launching",),
    ("patterns",),
    ("layout",),
    ("backends",),
    ("the entrance",),
    ("modules",),
    ("distributed",),
    ("factory",),
    ("integrations",),
    ("__init__",),
    ("cli",),
    ("demo",),
    ("__main__",),
)
# What a backend may import of backends/; nothing of another backend.
FOR_EVERY_BACKEND = (
    "problem",
    "decode_problem",
    "dropout",
    "compile_only",
    "compile_workers",
    "compile_worker",
    "gap_kernel",
    "gaps",
)

# The modules that import others of their package inside a function, and why.
LATE = {
    "core": {
        "backends.hopper": "launch.py needs triton",
        "backends.triton": "launch.py needs triton",
        "distributed.exchange": "device_exchange.py needs triton",
        "sequence_tables": "sequence_launch.py needs triton",
        "layout.from_indices": "device_lists.py needs triton",
        "layout.selection": "device_selection.py needs triton",
        "layout.layout": "plot.py needs matplotlib, block_mask.py flex_attention",
        "cli.warm": "compile_only.py needs triton",
        "demo.command": "report.py needs matplotlib",
        "demo.files": "report.py needs matplotlib",
    },
    "codemod": {
        "__main__": "Ctrl-C during the imports",
        "cli": "--help and --version without libcst",
        "documents.python": "a run without --select UP needs none of its rules",
        "engine": "files without a removed name need no libcst",
        "report": "a run without a finding needs no texts of rules",
        "rounds": "a project without name lookups needs no libcst",
        "runner": "a tree without a use needs neither",
        "settings": "a run without --select needs no texts of rules",
        "workers": "imported before the fork, so that all workers share them",
    },
    "bench": {"__main__": "says in one line that torch is missing"},
}

MOST_PARAMETERS = 12
# Functions with more parameters, or that read a tuple by number, for good, and why.
FOR_GOOD = {
    "backends/hopper/kernels/softmax.py of_32": "gl.map_elementwise passes every number on its own",
    "backends/hopper/kernels/softmax.py of_64": "gl.map_elementwise passes every number on its own",
}


def check(rule: str, found: set[str]) -> None:
    """Fails for what breaks a rule and is not pending, and for what is pending and does not break it any more."""
    pending = PENDING.get(rule, set())
    assert not found - pending, "\n".join([f"not allowed ({rule}):", *sorted(found - pending)])
    assert not pending - found, "\n".join(
        [f"holds, take it out of PENDING ({rule}):", *sorted(pending - found)]
    )


def edges_on_circles(package: Package, imports: frozenset[Import]) -> set[str]:
    found = circles(package.modules, imports)
    return {str(each) for each in imports for circle in found if {each.source, each.target} <= circle}


@pytest.mark.parametrize("name", PACKAGES)
def test_modules_do_not_import_in_circles(name: str) -> None:
    package, rule = PACKAGES[name], f"circles of {name}"
    pending = PENDING.get(rule, set())
    others = frozenset(each for each in package.imports if str(each) not in pending)
    found = edges_on_circles(package, others)
    check(rule, found | pending & edges_on_circles(package, package.imports))


@pytest.mark.parametrize("name", PACKAGES)
def test_imports_inside_functions_have_a_reason(name: str) -> None:
    found = {each.source for each in PACKAGES[name].imports if each.late}
    assert found == set(LATE[name])


def layer_of(module: str) -> int:
    part = module.split(".")[0] or "__init__"
    of_entrance = next(i for i, parts in enumerate(LAYERS) if "the entrance" in parts)
    return next((i for i, parts in enumerate(LAYERS) if part in parts), of_entrance)


def test_every_part_of_the_layers_exists() -> None:
    parts = {module.split(".")[0] or "__init__" for module in PACKAGES["core"].modules}
    check("parts", {part for layer in LAYERS for part in layer} - parts - {"the entrance"})


def test_data_flows_one_way() -> None:
    imports = PACKAGES["core"].imports
    upwards = {str(each) for each in imports if layer_of(each.target) > layer_of(each.source)}
    of_patterns = {
        str(each)
        for each in imports
        if each.source.startswith("backends.") and each.target.split(".")[0] == "patterns"
    }
    check("layers", upwards | of_patterns)


def test_backends_import_nothing_of_one_another() -> None:
    found = set()
    for each in PACKAGES["core"].imports:
        source, target = each.source.split("."), each.target.split(".")
        if source[0] != "backends" or target[0] != "backends" or each.source == "backends.registry":
            continue
        if len(target) > 1 and target[1] not in (*FOR_EVERY_BACKEND, *source[1:2]):
            found.add(str(each))
    check("backends", found)


def test_only_the_registry_knows_the_name_of_a_backend_of_one_vendor() -> None:
    files = {
        path.relative_to(LIBRARY).as_posix()
        for path in LIBRARY.rglob("*.py")
        if "hopper" in path.read_text("utf-8").lower()
    }
    check(
        "hopper",
        {file for file in files if not file.startswith("backends/hopper/")} - {"backends/registry.py"},
    )


Function = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def functions() -> list[tuple[str, Function]]:
    """Every function of the repository, with its name as the tables here have it."""
    found: list[tuple[str, Function]] = []
    for path in source_files():
        name = path.relative_to(ROOT).as_posix()
        if path.suffix == ".py" and not name.startswith(("tests/codemod/fixtures/", "tests/codemod/cases/")):
            short = name.removeprefix(f"{LIBRARY.relative_to(ROOT).as_posix()}/")
            nodes = ast.walk(ast.parse(path.read_text("utf-8")))
            found += [(f"{short} {node.name}", node) for node in nodes if isinstance(node, Function)]
    return found


def is_device_code(function: Function) -> bool:
    decorators = (each.func if isinstance(each, ast.Call) else each for each in function.decorator_list)
    return any(ast.unparse(each) in ("gluon.jit", "triton.jit") for each in decorators)


def is_number(node: ast.expr | None) -> bool:
    try:
        return node is not None and isinstance(ast.literal_eval(node), int)
    except ValueError:
        return False


def reads_by_number(node: ast.AST) -> bool:
    """Whether this is x[3] or x[:8], where x is no shape. Tensors of kernels take None and : only, so x is a tuple."""
    if not isinstance(node, ast.Subscript) or (
        isinstance(node.value, ast.Attribute) and node.value.attr == "shape"
    ):
        return False
    bounds = [node.slice.lower, node.slice.upper] if isinstance(node.slice, ast.Slice) else [node.slice]
    return any(map(is_number, bounds))


def with_many_parameters() -> set[str]:
    """Functions with more than 12 positional parameters, except kernels, which a launch gives all that they take."""
    return {
        name
        for name, function in functions()
        if len(function.args.posonlyargs + function.args.args) > MOST_PARAMETERS
        and not (is_device_code(function) and function.name.endswith("_kernel"))
    }


def with_tuples_by_number() -> set[str]:
    return {
        name
        for name, function in functions()
        if is_device_code(function) and any(map(reads_by_number, ast.walk(function)))
    }


def test_functions_have_few_positional_parameters() -> None:
    check("parameters", with_many_parameters() - set(FOR_GOOD))


def test_kernels_read_no_tuple_by_number() -> None:
    check("tuples", with_tuples_by_number() - set(FOR_GOOD))


def test_exceptions_for_good_are_still_needed() -> None:
    assert set(FOR_GOOD) <= with_many_parameters() | with_tuples_by_number()


def package_of(folder: Path, files: dict[str, str]) -> Package:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    return read_package(folder)


@pytest.mark.parametrize(
    "back",
    [
        "from .a import x",
        "from . import a",
        "def f():\n    from .a import x",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .a import x",
        "import package.a",
        "from package.a import x",
        "from .room.inside import x",  # which runs room/__init__.py, which imports a
    ],
)
def test_a_circle_is_found(tmp_path: Path, back: str) -> None:
    package = package_of(
        tmp_path / "package",
        {
            "__init__.py": "from .a import x",
            "a.py": "from .b import y",
            "b.py": back,
            "c.py": "from .b import y",
            "room/__init__.py": "from ..a import x",
            "room/inside.py": "from ..values import z",
            "values.py": "",
        },
    )
    (circle,) = circles(package.modules, package.imports)
    assert {"a", "b"} <= circle <= {"a", "b", "room"}


def test_what_runs_one_way_is_no_circle(tmp_path: Path) -> None:
    files = {
        "__init__.py": "from .a import x",
        "a.py": "from .room import y",
        "room/__init__.py": "from .b import y",
        "room/b.py": "",
    }
    package = package_of(tmp_path, files)
    assert circles(package.modules, package.imports) == []


@pytest.mark.parametrize(
    ("code", "by_number"),
    [
        ("t[0]", True),
        ("t[-1]", True),
        ("t[:8]", True),
        ("t[2:]", True),
        ("t[i]", False),
        ("x.shape[0]", False),
        ("x[:, None]", False),
        ("ring[0].shape[1]", True),
    ],
)
def test_tuples_read_by_number_are_found(code: str, by_number: bool) -> None:
    assert any(map(reads_by_number, ast.walk(ast.parse(code)))) == by_number
