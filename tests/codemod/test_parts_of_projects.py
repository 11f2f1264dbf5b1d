"""Small packages of random imports and uses: however a project is cut into runs, it ends where one whole run ends."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import sys
import tempfile
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from unittest import mock

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migrate_hierarchical.catalogue import RULES
from migrate_hierarchical.cli import main
from migrate_hierarchical.documents.result import Result
from migrate_hierarchical.engine import migrate_bytes

PACKAGE = "dilated_attention_pytorch"
OLD = ["BlockSparseHierarchical", "HierarchicalConfig", "create_hierarchical_attention"]
NEW = [
    "create_block_sparse_attention",
    "SparsePatternConfig",
    "BlockSparseAttention",
    "get_block_sparse_preset",
]
# in this order: a module imports from those before it
MODULES = {
    "app/compat.py": "compat",
    "app/layers.py": "layers",
    "app/__init__.py": "",
    "app/model.py": "model",
    "app/sub/__init__.py": "sub",
    "app/sub/deep.py": "sub.deep",
    "use.py": None,
}
LIMIT = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def import_path(path: str, source: str, absolute: bool) -> str:
    """How a file writes the module of another one."""
    below = MODULES[source]
    if MODULES[path] is None or absolute:
        return "app" + (f".{below}" if below else "")
    return "." * (2 if path.startswith("app/sub/") else 1) + below


def uses(local: str, api: str, number: int) -> list[str]:
    if api == "HierarchicalConfig":
        calls = [f"x{number} = {local}()", f"def f{number}(x: {local}):\n    return x\n"]
    elif api == "BlockSparseHierarchical":
        calls = [
            f"x{number} = {local}([2048], [1])",
            f"def f{number}(x):\n    return isinstance(x, {local})\n",
            f"class C{number}({local}):\n    pass\n",
        ]
    elif api == "create_block_sparse_attention":
        calls = [f'x{number} = {local}("hierarchical")', f'x{number} = {local}("base")']
    elif api == "create_hierarchical_attention":
        calls = [f"x{number} = {local}(512, 8, segment_lengths=[2048])", f"x{number} = [{local}]"]
    else:
        calls = [f"x{number} = {local}()"]
    return calls


@st.composite
def project(draw) -> dict[str, str]:
    files: dict[str, str] = {}
    tables: dict[str, dict[str, str]] = {}  # file -> local name -> name of the API
    paths = [path for path in MODULES if draw(st.booleans()) or path in ("app/compat.py", "app/__init__.py")]
    if "app/sub/deep.py" in paths and "app/sub/__init__.py" not in paths:
        paths.insert(paths.index("app/sub/deep.py"), "app/sub/__init__.py")
    for path in paths:
        table: dict[str, str] = {}
        lines: list[str] = []
        for name in draw(st.lists(st.sampled_from([*OLD, *NEW[:2]]), unique=True, max_size=2)):
            local = draw(st.sampled_from([name, name, f"Own{len(name)}"]))
            noqa = draw(st.sampled_from(["", "", "  # noqa: F401"]))
            lines.append(f"from {PACKAGE} import {name}" + (f" as {local}" if local != name else "") + noqa)
            table[local] = name
        sources = [each for each in files if tables[each] and (path != "app/__init__.py" or "/" in each)]
        for source in draw(st.lists(st.sampled_from(sources), unique=True, max_size=2)) if sources else []:
            module = import_path(path, source, draw(st.booleans()))
            if draw(st.integers(0, 4)) == 0 and path != "app/__init__.py":
                lines.append(f"from {module} import *")
                table.update(tables[source])
                continue
            names = draw(st.lists(st.sampled_from(sorted(tables[source])), unique=True, min_size=1))
            free = [name for name in names if name not in table]
            if free:
                lines.append(f"from {module} import {', '.join(free)}")
                table.update((name, tables[source][name]) for name in free)
        body = [
            draw(st.sampled_from(uses(local, api, number)))
            for number, (local, api) in enumerate(sorted(table.items()))
            if draw(st.booleans())
        ]
        files[path] = "\n".join([*lines, "", *body]) + "\n"
        tables[path] = table
    return files


@contextlib.contextmanager
def folder(files: dict[str, str]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for path, text in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        yield root


def migrate_here(tasks: Iterable[tuple], *_: object) -> Iterator[Result]:
    """What the worker processes do, without them: it is hundreds of runs."""
    return (migrate_bytes(*task) for task in tasks)


def run(root: Path, paths: list[str], *options: str) -> int:
    with (
        mock.patch("migrate_hierarchical.workers.migrate_all", migrate_here),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        return main([*options, "--jobs", "1", *(str(root / path) for path in paths)])


def state(root: Path, files: dict[str, str]) -> dict[str, str]:
    return {path: (root / path).read_text() for path in files}


def whole_run(files: dict[str, str]) -> tuple[dict[str, str], int]:
    with folder(files) as root:
        status = run(root, [""])
        new = state(root, files)
        assert run(root, [""]) == status
        assert state(root, files) == new, "the second run changed something"
        return new, status


def stub(names: list[str]) -> types.ModuleType:
    """A package whose names take any argument."""
    module = types.ModuleType(PACKAGE)
    for name in names:
        methods = {"__init__": lambda self, *args, **kwargs: None}
        setattr(module, name, type(name, (), methods))
    return module


def import_all(root: Path, files: dict[str, str], names: list[str]) -> None:
    """Import every file with a package that has these names; raises what a user would see."""
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == PACKAGE}
    sys.modules[PACKAGE] = stub(names)
    sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    try:
        for path in files:
            importlib.import_module(path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    except (ImportError, NameError) as error:
        raise AssertionError(f"{error!r:.200} in {state(root, files)}".replace(str(root), "")) from None
    finally:
        sys.path.remove(str(root))
        for name in list(sys.modules):
            if name.split(".")[0] in ("app", "use", PACKAGE):
                del sys.modules[name]
        sys.modules.update(kept)


def sorted_imports(text: str) -> tuple[list[str], list[str]]:
    """A file as the names that it imports, sorted, and everything else."""
    tree = ast.parse(text)
    found: list[str] = []
    lines = text.splitlines()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found += [f"{module}: {alias.name} as {alias.asname}" for alias in node.names]
            for number in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[number] = ""
    return sorted(set(found)), [line for line in lines if line]


@LIMIT
@given(project(), st.randoms(use_true_random=False))
def test_one_file_at_a_time_in_any_order(files: dict[str, str], random) -> None:
    expected, status = whole_run(files)
    with folder(files) as root:
        import_all(root, files, OLD + NEW)
        for _ in range(len(files) + 1):
            before = state(root, files)
            paths = sorted(files)
            random.shuffle(paths)
            for path in paths:
                once = run(root, [path])
                now = state(root, files)
                assert run(root, [path]) == once
                assert state(root, files) == now, "the second run changed something"
            import_all(root, files, OLD + NEW)
            if state(root, files) == before:
                break
        assert state(root, files) == expected
        assert run(root, [""]) == status
        if status == 0:
            import_all(root, files, NEW)


@LIMIT
@given(
    project(),
    st.lists(
        st.tuples(st.booleans(), st.sets(st.sampled_from([rule.id for rule in RULES]), min_size=1)),
        min_size=1,
        max_size=2,
    ),
    st.randoms(use_true_random=False),
)
def test_any_rules_on_any_files(files: dict[str, str], subsets: list[tuple[bool, set[str]]], random) -> None:
    expected, status = whole_run(files)
    with folder(files) as root:
        for selects, rules in subsets:
            options = ["--select" if selects else "--ignore", ",".join(sorted(rules))]
            paths = random.sample(sorted(files), random.randint(1, len(files)))
            once = run(root, paths, *options)
            now = state(root, files)
            for text in now.values():
                ast.parse(text)
            import_all(root, files, OLD + NEW)
            assert run(root, paths, *options) == once
            assert state(root, files) == now, "the second run changed something"
        assert run(root, [""]) == status
        now = state(root, files)
        assert {path: sorted_imports(text) for path, text in now.items()} == {
            path: sorted_imports(text) for path, text in expected.items()
        }
        if status == 0:
            import_all(root, files, NEW)
