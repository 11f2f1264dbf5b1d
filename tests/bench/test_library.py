"""The command refuses to start without the library of this repository."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from attention_bench.__main__ import library_problem, main

LIBRARY = "dilated_attention_pytorch"


def test_the_library_of_this_repository_is_taken() -> None:
    assert library_problem() is None


def test_missing_library_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, LIBRARY, None)
    assert main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("attention-bench: dilated_attention_pytorch is not installed")
    assert "pip install ./packages/dilated-attention-pytorch" in line


def test_another_project_of_the_same_name_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stranger = ModuleType(LIBRARY)
    stranger.__file__ = "site-packages/stranger.py"
    monkeypatch.setitem(sys.modules, LIBRARY, stranger)
    assert main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "site-packages/stranger.py has no BlockLayout and no block_sparse_attention" in line
    assert "pip install ./packages/dilated-attention-pytorch" in line


def test_library_that_cannot_be_imported_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.partition(".")[0] == LIBRARY]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError, match="torch"):
        library_problem()
