"""Files: which are looked at, and that none is ever harmed."""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from migrate_hierarchical import atomic_write, engine
from migrate_hierarchical.cli import main
from migrate_hierarchical.engine import migrate_bytes
from migrate_hierarchical.settings import Settings
from tests.codemod.test_cli import OLD

USE = OLD.encode()


def new_of(data: bytes, path: str = "x.py") -> bytes:
    result = migrate_bytes(path, data, Settings())
    assert result.error is None
    assert result.new is not None
    return result.new


# ---- bytes


@pytest.mark.parametrize(
    ("name", "convert"),
    [
        ("crlf", lambda data: data.replace(b"\n", b"\r\n")),
        ("no newline at the end", lambda data: data.rstrip(b"\n")),
        ("byte order mark", lambda data: b"\xef\xbb\xbf" + data),
        ("form feed", lambda data: b"\x0c\n" + data + b"\x0c\n"),
        ("latin-1", lambda data: "# -*- coding: latin-1 -*-\ns = 'é'\n".encode("latin-1") + data),
        ("cp1252", lambda data: "# vim: fileencoding=cp1252\ns = '€'\n".encode("cp1252") + data),
        ("trailing blanks", lambda data: b"x = 1   \n\t\n" + data + b"\n\n\n"),
    ],
)
def test_bytes_around_a_use_stay(name: str, convert) -> None:
    data = convert(USE)
    new = new_of(data)
    head = data.index(b"from dilated")
    assert new[:head] == data[:head]
    ending = b"\r\n" if b"\r\n" in data else b"\n"
    assert new.count(ending) > 5
    if ending == b"\r\n":
        assert new.count(b"\n") == new.count(b"\r\n")
    tail = data[data.index(b"[1, 2])") + 7 :]
    assert new.endswith(b")" + tail)
    assert migrate_bytes("x.py", new, Settings()).new is None


def test_mixed_newlines_of_other_lines_stay() -> None:
    data = b"a = 1\r\nb = 2\nc = 3\r\n" + USE + b"d = 4\r\n"
    new = new_of(data)
    assert new.startswith(b"a = 1\r\nb = 2\nc = 3\r\nfrom ")
    assert new.endswith(b"d = 4\r\n")


@pytest.mark.parametrize(
    "data",
    [
        b"def f(:\n    hierarchical  # dilated_attention_pytorch\n",
        b"# coding: nonsense\nimport dilated_attention_pytorch  # hierarchical\n",
        b"import dilated_attention_pytorch  # hierarchical \xff\xfe\n",
        b"import dilated_attention_pytorch  # hierarchical\nx = '\x00'\n",
        b"import dilated_attention_pytorch  # hierarchical\nx = " + b"(" * 5000 + b")" * 5000 + b"\n",
        b"import dilated_attention_pytorch  # hierarchical\nx = " + b"[" * 200_000 + b"\n",
        USE + b"if x:\n    pass\n    \x0c    y = BlockSparseHierarchical([64], [1])\n",
    ],
    ids=["syntax", "cookie", "utf-8", "null", "nested", "open brackets", "form feed in an indentation"],
)
def test_what_cannot_be_parsed_is_reported(data: bytes, tmp_path: Path, capsys) -> None:
    (tmp_path / "bad.py").write_bytes(data)
    (tmp_path / "good.py").write_bytes(USE)
    assert main([str(tmp_path)]) == 2
    assert "bad.py: error: " in capsys.readouterr().out
    assert (tmp_path / "bad.py").read_bytes() == data
    assert b'variant="base"' in (tmp_path / "good.py").read_bytes()


def test_long_chains_do_not_crash(tmp_path: Path) -> None:
    data = USE + b"x = " + b" + ".join([b"1"] * 3000) + b"\n"
    (tmp_path / "a.py").write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-m", "migrate_hierarchical", tmp_path], capture_output=True, check=False
    )
    assert done.returncode in (0, 2), done.stderr
    if done.returncode == 2:
        assert b"nested too deeply" in done.stdout
        assert (tmp_path / "a.py").read_bytes() == data


@pytest.mark.parametrize(
    "source",
    [
        "match x:\n    case {'a': 1, **rest}:\n        pass\n",
        "try:\n    pass\nexcept* ValueError:\n    pass\n",
        "type Pair[T] = tuple[T, T]\n",
        "def f[T: int](x: T) -> T:\n    return x\n",
        "class A[T]:\n    pass\n",
        "with (open('a') as a, open('b') as b):\n    pass\n",
        "def f(a, /, b, *, c):\n    return (y := a)\n",
        'x = f"{a["b"]!r:>{width}}"\n',
        "async def f():\n    async for x in y:\n        yield x\n",
    ],
)
def test_syntax_of_every_python(source: str) -> None:
    data = source.encode() + USE
    new = new_of(data)
    assert new.startswith(source.encode() + b"from dilated_attention_pytorch import create_")


# ---- which files


def test_gitignore_and_usual_folders_are_honoured(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".gitignore").write_text("/generated/\n*.gen.py\n!keep.gen.py\n")
    names = [
        "a.py",
        "generated/b.py",
        "x.gen.py",
        "keep.gen.py",
        ".venv/c.py",
        ".tox/c.py",
        ".nox/c.py",
        "node_modules/d.py",
        "build/e.py",
        "sub/f.py",
        "sub/local/g.py",
    ]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(USE)
    (tmp_path / "sub/.gitignore").write_text("local\n")
    assert main([str(tmp_path)]) == 0
    changed = {name for name in names if b"variant" in (tmp_path / name).read_bytes()}
    assert changed == {"a.py", "keep.gen.py", "sub/f.py"}


def test_gitignore_above_the_given_folder_counts(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".gitignore").write_text("src/ignored.py\n")
    (tmp_path / "src").mkdir()
    for name in ("ignored.py", "seen.py"):
        (tmp_path / "src" / name).write_bytes(USE)
    assert main([str(tmp_path / "src")]) == 0
    assert (tmp_path / "src/ignored.py").read_bytes() == USE
    assert (tmp_path / "src/seen.py").read_bytes() != USE


def test_an_ignored_folder_that_is_named_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".gitignore").write_text("/vendored/\n")
    (tmp_path / "vendored/lib").mkdir(parents=True)
    path = tmp_path / "vendored/lib/a.py"
    path.write_bytes(USE)
    assert main([str(tmp_path)]) == 0
    assert path.read_bytes() == USE
    assert main([str(tmp_path / "vendored/lib")]) == 0
    assert path.read_bytes() != USE


def test_a_file_that_is_named_is_always_looked_at(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("*\n")
    path = tmp_path / "a.py"
    path.write_bytes(USE)
    assert main([str(path)]) == 0
    assert path.read_bytes() != USE


def test_links_lead_only_to_files_inside(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    outside, inside = tmp_path / "outside.py", tmp_path / "src/inside.py"
    for path in (outside, inside):
        path.write_bytes(USE)
    (tmp_path / "src/to_outside.py").symlink_to(outside)
    (tmp_path / "src/to_inside.py").symlink_to(inside)
    (tmp_path / "src/loop").symlink_to(tmp_path / "src")
    assert main([str(tmp_path / "src")]) == 0
    assert outside.read_bytes() == USE
    assert inside.read_bytes() != USE
    assert (tmp_path / "src/to_inside.py").is_symlink()


# ---- writing


def test_mode_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_bytes(b"#!/usr/bin/env python\n" + USE)
    path.chmod(0o755)
    assert main([str(path)]) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert [file.name for file in tmp_path.iterdir()] == ["script.py"]


def test_file_without_a_use_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("x = 1\n")
    os.utime(path, ns=(1, 1))
    assert main([str(tmp_path)]) == 0
    assert path.stat().st_mtime_ns == 1


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch, capsys) -> None:
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_bytes(USE)
    replace = os.replace

    def refuse(source: str, target: str) -> None:
        if str(target).endswith("a.py"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(atomic_write.os, "replace", refuse)
    assert main([str(tmp_path)]) == 2
    assert "a.py: error: cannot be written: No space left on device" in capsys.readouterr().out
    assert (tmp_path / "a.py").read_bytes() == USE
    assert (tmp_path / "b.py").read_bytes() != USE
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.py", "b.py"]


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_killed_at_any_moment_every_file_is_old_or_new(tmp_path: Path) -> None:
    """24 runs, each killed at another moment: every file is whole."""
    old = OLD.encode() + b"# " + b"x" * 4000 + b"\n"
    new = new_of(old)
    rng = random.Random(0)
    command = [sys.executable, "-m", "migrate_hierarchical", "--jobs", "1", str(tmp_path)]
    paths = [tmp_path / f"f{i:02}.py" for i in range(20)]
    for path in paths:
        path.write_bytes(old)
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    whole_run = time.perf_counter() - start
    partly = 0
    for attempt in range(24):
        for path in paths:
            path.write_bytes(old)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if attempt % 3 == 2:  # at any moment of the run
            time.sleep(rng.uniform(0.0, whole_run))
        else:  # in the middle of the writing
            while process.poll() is None and paths[0].stat().st_size == len(old):
                time.sleep(0.001)
            time.sleep(rng.uniform(0.0, 0.03))
        process.send_signal(signal.SIGINT if attempt % 5 == 0 else signal.SIGKILL)
        process.wait()
        contents = [path.read_bytes() for path in paths]
        assert set(contents) <= {old, new}
        partly += 0 < contents.count(new) < len(paths)
        for left in tmp_path.glob(".migrate-hierarchical-*"):
            left.unlink()
    assert partly, "no run was caught in the middle: the test would not see a half-written file"


# ---- real code


def test_a_large_real_tree_is_untouched(capsys) -> None:
    """All Python files of an installed package: no change, no crash, nothing to say."""
    package = pytest.importorskip("torch")
    folder = Path(package.__file__).parent
    assert main(["--check", str(folder)]) == 0
    scanned = int(capsys.readouterr().out.split(" files scanned")[0].split("\n")[-1].replace(",", ""))
    assert scanned >= 2000


def test_the_standard_library_survives_the_whole_analysis() -> None:
    """Real modules with a use appended: all of their own bytes stay."""
    folder = Path(os.__file__).parent
    for name in (
        "argparse.py",
        "dataclasses.py",
        "typing.py",
        "asyncio/base_events.py",
    ):
        path = folder / name
        if not path.exists():
            continue
        data = path.read_bytes()
        new = new_of(data + b"\n" + USE)
        assert new.startswith(data + b"\n")


# ---- names and kinds of files


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_pipes_and_broken_links_are_passed_over(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "broken.py").symlink_to("nowhere")
    (tmp_path / "a.py").write_bytes(USE)
    assert main(["--jobs", "1", str(tmp_path)]) == 0
    assert (tmp_path / "a.py").read_bytes() != USE
    assert main([str(tmp_path / "pipe.py")]) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
@pytest.mark.parametrize("encoding", ["ascii", "utf-8:strict"])
@pytest.mark.parametrize("form", ["text", "json", "sarif", "github"])
def test_names_that_cannot_be_printed(form: str, encoding: str, tmp_path: Path) -> None:
    for name in (b"\xff.py", b"a\nb.py", "é.py".encode()):
        (tmp_path / os.fsdecode(name)).write_bytes(USE + b"class A(BlockSparseHierarchical): pass\n")
    command = [sys.executable, "-m", "migrate_hierarchical", "--check", "--output-format", form, "."]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (2, b"")
    assert done.stdout.count(b"HIER101") >= 3
    assert b"a\nb.py" not in done.stdout


def test_an_error_of_the_tool_does_not_stop_the_other_files(tmp_path: Path, monkeypatch, capsys) -> None:
    from migrate_hierarchical.planner import Planner

    for name in ("a.py", "b.py"):
        (tmp_path / name).write_bytes(USE if name == "b.py" else b"# first\n" + USE)
    run = Planner.run

    def fail(self: Planner) -> None:
        if self.context.module.header:
            raise KeyError("something unforeseen")
        run(self)

    monkeypatch.setattr(Planner, "run", fail)
    assert main([str(tmp_path)]) == 2
    assert "a.py: error: left alone after an error of this tool" in capsys.readouterr().out
    assert (tmp_path / "a.py").read_bytes() == b"# first\n" + USE
    assert (tmp_path / "b.py").read_bytes() != USE


def test_large_data_file_is_named_and_not_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine, "DATA_BYTES", 1000)
    (tmp_path / "words.json").write_text(json.dumps(["hierarchical"] * 100))
    (tmp_path / "other.json").write_text(json.dumps(["words"] * 1000))
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "words.json: note: larger than 10 MiB: not searched for removed names" in out
    assert "other.json" not in out
