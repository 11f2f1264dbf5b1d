"""Which lines two versions share, and the diff that is made of it."""

from __future__ import annotations

import subprocess
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate_hierarchical.engine import migrate_bytes
from migrate_hierarchical.lines import opcodes, unified_diff
from migrate_hierarchical.settings import Settings

TEXTS = st.lists(st.sampled_from([b"a\n", b"b\n", b"c\n", b"d\n", b"\n"]), max_size=30)


@given(TEXTS, TEXTS)
def test_opcodes_rebuild_the_new_lines(old: list[bytes], new: list[bytes]) -> None:
    rebuilt: list[bytes] = []
    at = (0, 0)
    for tag, begin, end, new_begin, new_end in opcodes(old, new):
        assert at == (begin, new_begin)
        at = (end, new_end)
        if tag == "equal":
            assert old[begin:end] == new[new_begin:new_end]
        assert (tag == "insert", tag == "delete") == (begin == end, new_begin == new_end)
        rebuilt += old[begin:end] if tag == "equal" else new[new_begin:new_end]
    assert at == (len(old), len(new))
    assert rebuilt == new


def test_an_edit_between_equal_lines_is_found() -> None:
    old = [b"x"] * 50 + [b"old"] + [b"x"] * 50
    new = [b"x"] * 50 + [b"new", b"more"] + [b"x"] * 50
    assert opcodes(old, new)[1] == ("replace", 50, 51, 50, 52)


@pytest.mark.parametrize("old", [b"", b"a", b"a\n", b"a\nb\nc\n" * 30, b"a\r\nb\r\n" * 9])
@pytest.mark.parametrize(
    "edit", [lambda d: d + b"z\n", lambda d: b"z" + d, lambda d: d.replace(b"b", b"", 1)]
)
def test_diff_is_taken_by_git(old: bytes, edit, tmp_path) -> None:
    new = edit(old)
    if old in (b"", new):
        pytest.skip("no edit, or a new file")
    (tmp_path / "f").write_bytes(old)
    (tmp_path / "d").write_bytes(unified_diff(old, new, b"f"))
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "apply", "--whitespace=nowarn", "d"], cwd=tmp_path, check=True)
    assert (tmp_path / "f").read_bytes() == new


IMPORT = b"from dilated_attention_pytorch import HierarchicalConfig\n"
QUOTES = b'"""'


@pytest.mark.parametrize("table", [b"0 0 0\n", b"a\nb\n", b"\n"])
def test_equal_lines_take_no_time(table: bytes) -> None:
    """200,000 lines; difflib needs hours."""
    data = IMPORT + b"T = " + QUOTES + b"\n" + table * 200_000 + QUOTES + b"\nc = HierarchicalConfig()\n"
    begin = time.process_time()
    result = migrate_bytes("x.py", data, Settings())
    assert result.new is not None
    unified_diff(data, result.new, b"x.py")
    assert time.process_time() - begin < 10
    line = result.rewritten[-1].new_line
    assert line is not None
    assert b"SparsePatternConfig(" in result.new.splitlines()[line - 1]
