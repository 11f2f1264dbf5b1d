"""What the backends make of the versions of triton and numpy that are installed; on any machine."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dilated_attention_pytorch import (
    BlockLayout,
    SparsePatternConfig,
    block_sparse_attention,
    explain_backends,
)
from dilated_attention_pytorch.backends import hopper, registry, triton
from dilated_attention_pytorch.backends.hopper import refused_triton, untested_triton
from dilated_attention_pytorch.backends.triton import broken_interpreter
from dilated_attention_pytorch.launching import installed
from dilated_attention_pytorch.launching.installed import installed_versions, release
from dilated_attention_pytorch.launching.supported_triton import OLDEST_TRITON
from tests.core.backends.hopper.test_choice import PLAIN, problem_of
from tests.core.environment import without_interpreter

TOO_NEW = (
    "triton 3.10.0 is newer than the newest tested, 3.9 (pip install 'triton<3.10', or install a newer release of this "
    "library)"
)


# ---- reading a version


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("3.9.0", (3, 9)), ("3.9", (3, 9)), ("3.10.0", (3, 10)), ("3.9.0+git123", (3, 9)), ("3.9.0a1", (3, 9)),
        ("3.10.0.dev20261101", (3, 10)), ("3.10rc1", (3, 10)), ("4.0.0", (4, 0)), ("2.4.1", (2, 4)), ("3", None), ("", None),
        ("unknown", None), (None, None),
    ],
)  # fmt: skip
def test_release_is_read_from_whatever_a_version_looks_like(
    text: str | None, wanted: tuple[int, int] | None
) -> None:
    assert release(text) == wanted


def package(folder: Path, version: str | None, distribution: str | None = None, metadata: str = "") -> None:
    """A package `carried` in a folder, that sets a version or not, and perhaps the metadata of a distribution."""
    (folder / "carried").mkdir(parents=True)
    line = "" if version is None else f"__version__ = '{version}'\n"
    (folder / "carried/__init__.py").write_text(f"raise AssertionError\n{line}")
    if distribution:
        info = folder / f"{distribution.replace('-', '_')}-{metadata}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {metadata}\n")


@pytest.mark.parametrize(
    ("contents", "wanted"),
    [
        (("3.9.0+git1", "carried", "3.9.0+git1"), ["3.9.0+git1"]),
        (("3.9.0", None), ["3.9.0"]),  # without metadata, as an unpacked archive
        (("3.9.0", "nightly-carried", "3.9.0"), ["3.9.0"]),
        ((None, "nightly-carried", "3.10.0"), ["3.10.0"]),
        (("3.10.0", "carried", "3.6.0"), ["3.6.0", "3.10.0"]),  # a copy that hides another
        ((None, None), []),
    ],
)
def test_version_is_found_without_an_import(
    contents: tuple[Any, ...], wanted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, *contents)
    monkeypatch.syspath_prepend(tmp_path)
    assert installed_versions("carried", "carried", "nightly-carried") == wanted
    assert installed.is_installed("carried")


def test_folder_of_the_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "carried").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not installed.is_installed("carried")
    assert installed_versions("carried") == []


def test_imported_package_says_its_own_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "carried", SimpleNamespace(__version__="3.10.0"))
    assert installed_versions("carried") == ["3.10.0"]


# ---- the Hopper kernels


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize(
    ("versions", "refused", "untested"),
    [
        (["3.6.0"], None, None),
        (["3.9.1+gitabc"], None, None),
        (["3.6.0", "3.9.0"], None, None),
        (["3.5.1"], "triton 3.5.1 is older than 3.6 (pip install 'triton>=3.6')", None),
        (["3.9.0", "3.2.0"], "triton 3.2.0 is older than 3.6 (pip install 'triton>=3.6')", None),
        (["nightly"], "the version of triton is unknown: 'nightly'", None),
        (["3.10.0"], None, TOO_NEW),
        (["3.9.0", "3.10.0"], None, TOO_NEW),
    ],
)
def test_versions_that_are_served_lie_between_the_oldest_and_the_newest_tested(
    versions: list[str], refused: str | None, untested: str | None
) -> None:
    assert (refused_triton(versions), untested_triton(versions)) == (refused, untested)


@pytest.mark.usefixtures("compiling")
def test_missing_triton_and_silent_one_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hopper, "is_installed", lambda name: False)
    assert refused_triton([]) == "triton is not installed (pip install 'triton>=3.6', on Linux)"
    monkeypatch.setattr(hopper, "is_installed", lambda name: True)
    assert refused_triton([]) == "the version of triton is unknown"


def test_interpreter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert refused_triton(["3.9.0"]) == "TRITON_INTERPRET=1 is set, and Triton does not interpret Gluon"


@pytest.fixture
def too_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """An H100 with a triton that is newer than the newest tested."""
    hopper.capability.cache_clear()
    monkeypatch.setattr(hopper, "REFUSED_TRITON", None)
    monkeypatch.setattr(hopper, "UNTESTED_TRITON", TOO_NEW)
    monkeypatch.setattr(hopper, "HAS_GLUON", False)
    monkeypatch.setattr(hopper, "WARNED", [])
    monkeypatch.setattr(triton, "HAS_TRITON", True)
    monkeypatch.setattr(triton, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    yield
    hopper.capability.cache_clear()


@pytest.mark.usefixtures("too_new")
def test_portable_kernels_serve_under_a_triton_that_is_too_new_with_one_warning() -> None:
    problem = problem_of(PLAIN)
    assert registry.reasons(problem)["hopper"] == TOO_NEW
    with pytest.warns(UserWarning, match="newer than") as caught:
        chosen = [registry.choose_backend(problem).name for _ in range(3)]
    assert chosen == ["triton"] * 3
    assert [str(each.message) for each in caught] == [
        f"{TOO_NEW}: the slower kernels of backend 'triton' serve what backend 'hopper' would"
    ]


@pytest.mark.usefixtures("too_new")
def test_no_warning_where_the_hopper_kernels_would_not_serve_or_nobody_asked_them() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert registry.choose_backend(problem_of(PLAIN, torch.float32)).name == "triton"
        assert registry.choose_backend(problem_of(PLAIN), "triton").name == "triton"
        registry.reasons(problem_of(PLAIN))


@pytest.mark.usefixtures("too_new")
def test_request_by_name_says_that_triton_is_too_new() -> None:
    with pytest.raises(ValueError) as error:
        registry.choose_backend(problem_of(PLAIN), "hopper")
    assert str(error.value) == f"backend='hopper' cannot serve this call: {TOO_NEW}"


@pytest.mark.usefixtures("too_new")
def test_compiled_call_warns_too_and_stays_one_graph() -> None:
    def call(x: torch.Tensor) -> torch.Tensor:
        hopper.warn_of_untested_triton()
        return x + 1

    compiled = torch.compile(call, backend="eager", fullgraph=True)
    with pytest.warns(UserWarning, match="newer than the newest tested"):
        assert compiled(torch.zeros(1)).item() == 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled(torch.zeros(2))


@pytest.mark.skipif(
    any((release(text) or (0, 0)) < OLDEST_TRITON for text in hopper.VERSIONS or [""]),
    reason="needs a triton that is served",
)
@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("3.10.0", "triton 3.10.0 is newer"),
        ("3.2.0", "triton 3.2.0 is older"),
        ("whatever", "the version of triton is unknown"),
    ],
)
def test_package_imports_whatever_triton_is_there(version: str, said: str) -> None:
    program = f"""
import importlib.metadata
real = importlib.metadata.version
importlib.metadata.version = lambda name: {version!r} if name == "triton" else real(name)
from dilated_attention_pytorch.backends import hopper
print(hopper.REFUSED_TRITON or hopper.UNTESTED_TRITON)
"""
    environment = without_interpreter()
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(said)


# ---- Triton's interpreter


@pytest.mark.parametrize(
    ("tritons", "numpys", "reason"),
    [
        (["3.6.0"], ["2.3.5"], None),
        (["3.7.1"], ["2.4.1"], None),
        (["3.10.0"], ["3.0.0"], None),
        ([], ["2.4.1"], None),  # a triton that does not say its version is a new one
        (
            ["3.6.0"], ["2.4.1"],
            "numpy 2.4.1 breaks the interpreter of triton 3.6.0; install numpy<2.4 or triton>=3.7",
        ),
        (
            ["3.2.0"], ["3.0.0rc1"],
            "numpy 3.0.0rc1 breaks the interpreter of triton 3.2.0; install numpy<2.4 or triton>=3.7",
        ),
        (["3.9.0"], [], "numpy is not installed, which Triton's interpreter needs (pip install numpy)"),
    ],
)  # fmt: skip
def test_pairs_that_do_not_go_together_in_the_interpreter_are_named(
    tritons: list[str], numpys: list[str], reason: str | None
) -> None:
    assert broken_interpreter(tritons, numpys) == reason


def test_call_is_refused_by_name_where_numpy_breaks_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = broken_interpreter(["3.6.0"], ["2.4.1"])
    monkeypatch.setattr(triton, "BROKEN_INTERPRETER", reason)
    monkeypatch.setattr(triton, "HAS_TRITON", True)
    monkeypatch.setattr(triton, "INTERPRETED", True)
    q = torch.zeros(1, 64, 2, 16)
    layout = BlockLayout.from_config(SparsePatternConfig(block_size=16), 64)
    assert explain_backends(q, q, q, layout)["triton"] == reason
    with pytest.raises(ValueError) as error:
        block_sparse_attention(q, q, q, layout, backend="triton")
    assert str(error.value) == f"backend='triton' cannot serve this call: {reason}"
    monkeypatch.setattr(triton, "INTERPRETED", False)  # compiled kernels need no numpy
    assert explain_backends(q, q, q, layout)["triton"] != reason
