"""Whatever a file, a stream or a signal does: one line, no traceback, and the other files are migrated."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from migrate_hierarchical import atomic_write, discovery, runner, workers
from migrate_hierarchical.cli import main
from migrate_hierarchical.discovery import find_files
from migrate_hierarchical.documents.nesting import DEEPEST_TREE
from migrate_hierarchical.engine import migrate_bytes
from migrate_hierarchical.limits import CODE_CHARACTERS
from migrate_hierarchical.module_index import index_of
from migrate_hierarchical.settings import Settings
from tests.codemod.test_cli import LEFT, OLD, run

USE = OLD.encode()
COMMAND = [sys.executable, "-m", "migrate_hierarchical"]
N_KILLS = int(os.environ.get("CODEMOD_KILLS", "3"))  # of each kind; 50 take minutes


def shell(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in which $M is the command."""
    environment = {**os.environ, "M": f"{sys.executable} -m migrate_hierarchical"}
    return subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# ---- files and folders


@pytest.mark.skipif(os.name != "posix", reason="links and sockets of POSIX")
def test_odd_entries_of_a_folder_cost_only_themselves(tmp_path: Path, capsys) -> None:
    (tmp_path / "a.py").symlink_to("b.py")
    (tmp_path / "b.py").symlink_to("a.py")
    (tmp_path / "nowhere.py").symlink_to("nothing")
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "to_folder.py").symlink_to("folder.py")
    (tmp_path / ".gitignore").symlink_to(".gitignore")
    socket.socket(socket.AF_UNIX).bind(os.path.relpath(tmp_path / "s.py"))
    for name in ("z.py", "folder.py/in.py"):
        (tmp_path / name).write_bytes(USE)
    assert main([str(tmp_path)]) == 2
    out = capsys.readouterr().out
    assert out.count(": error: ") == 2
    assert "a.py: error: Too many levels of symbolic links" in out
    assert all(b"variant=" in (tmp_path / name).read_bytes() for name in ("z.py", "folder.py/in.py"))
    assert main([str(tmp_path / "a.py"), str(tmp_path / ("x" * 5000))]) == 2
    out = capsys.readouterr().out
    assert "a.py: error: a link that leads nowhere, or in a circle" in out
    assert "no such file or folder" in out


def test_folders_deeper_than_the_stack(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(1100):
        os.mkdir("d")
        os.chdir("d")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.py").write_bytes(USE)
    try:
        main(["."])
    finally:
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)
    assert "1 changed" in capsys.readouterr().out


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "z.py").write_bytes(USE)
    scandir = os.scandir

    def refuse(path: str):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(discovery.os, "scandir", refuse)
    assert main([str(tmp_path)]) == 2
    assert "locked: error: Permission denied" in capsys.readouterr().out
    assert b"variant=" in (tmp_path / "z.py").read_bytes()


def test_a_file_that_vanishes(tmp_path: Path, monkeypatch, capsys) -> None:
    for name in ("a.py", "b.py", "z.py"):
        (tmp_path / name).write_bytes(USE)
    read = runner.read_file

    def vanish(path: str) -> bytes:
        (tmp_path / "a.py").unlink(missing_ok=True)
        return read(path)

    def vanish_later(path: str, data: bytes) -> None:
        (tmp_path / "b.py").unlink(missing_ok=True)
        write(path, data)

    write = atomic_write.write_atomically
    monkeypatch.setattr(runner, "read_file", vanish)
    monkeypatch.setattr(atomic_write, "write_atomically", vanish_later)
    assert main([str(tmp_path)]) == 2
    out = capsys.readouterr().out
    assert "a.py: error: No such file or directory" in out
    assert "b.py: error: cannot be written: No such file or directory" in out
    assert [path.name for path in tmp_path.iterdir()] == ["z.py"]
    assert b"variant=" in (tmp_path / "z.py").read_bytes()


@pytest.mark.parametrize("table", ["tool = 1\n", "[tool]\nmigrate-hierarchical = 1\n", "a = " + "[" * 5000])
def test_settings_that_are_none(table: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "pyproject.toml").write_text("# migrate-hierarchical\n" + table)
    assert main([str(tmp_path)]) in (0, 2)
    assert "please report" not in capsys.readouterr().err


def test_patterns_that_git_passes_over(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("!\n\\\n[\nignored.py\n/\n")
    for name in ("a.py", "ignored.py"):
        (tmp_path / name).write_bytes(USE)
    assert main([str(tmp_path)]) == 0
    assert b"variant=" in (tmp_path / "a.py").read_bytes()
    assert (tmp_path / "ignored.py").read_bytes() == USE


def test_a_working_folder_that_is_gone(tmp_path: Path) -> None:
    done = shell("mkdir gone; cd gone; rmdir ../gone; $M .; echo rc=$?", tmp_path)
    assert "rc=2" in done.stdout
    assert done.stderr.count("\n") <= 1
    assert "Traceback" not in done.stderr


# ---- which folders


def test_only_folders_of_tools_are_skipped_and_packages_among_them_are_named(tmp_path: Path, capsys) -> None:
    names = [
        "lib/dist/a.py",
        "lib/venv/a.py",
        "lib/env/a.py",
        "lib/site-packages/a.py",
        "target/a.py",
        "out/a.py",
    ]
    skipped = ["lib/build/a.py", "plain/build/a.py", "lib/anything/x.py", "conda/x.py", ".tox/a.py"]
    for name in names + skipped:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(USE)
    (tmp_path / "lib/anything/pyvenv.cfg").touch()
    (tmp_path / "conda/conda-meta").mkdir()
    (tmp_path / "lib/build/__init__.py").touch()
    assert main([str(tmp_path)]) == 0
    assert {name for name in names + skipped if b"variant=" in (tmp_path / name).read_bytes()} == set(names)
    notes = [line for line in capsys.readouterr().out.splitlines() if ": note: skipped" in line]
    assert [line.split(":")[0] for line in notes] == [str(tmp_path / "lib/build")]
    assert main([str(tmp_path / "lib/build")]) == 0
    assert b"variant=" in (tmp_path / "lib/build/a.py").read_bytes()


@pytest.mark.parametrize("line", ["#!/usr/bin/env python3", "#!/usr/bin/python", "#! /opt/python3.12 -u"])
def test_scripts_without_a_suffix_are_reported_and_rewritten_when_named(
    line: str, tmp_path: Path, capsys
) -> None:
    script = tmp_path / "run"
    script.write_bytes(line.encode() + b"\n" + USE)
    assert main([str(tmp_path)]) == 2
    assert "run:2: HIER120" in capsys.readouterr().out
    assert script.read_bytes().endswith(USE)
    assert main([str(script)]) == 0
    assert b"variant=" in script.read_bytes()


@pytest.mark.parametrize("head", [b"", b"#!/bin/sh\n", b"\x7fELF python", b"# python\n"])
def test_other_files_without_a_suffix_are_not_read(head: bytes, tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_bytes(head + USE)
    assert find_files([str(tmp_path)], Settings()).files == []


# ---- streams


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full")
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("$M - <&-", "stdin is closed"),
        ("$M z.py > /dev/full", "stdout cannot be written: No space left on device"),
        ("$M --diff z.py > /dev/full", "stdout cannot be written: No space left on device"),
        ("$M --help > /dev/full", "stdout cannot be written: No space left on device"),
        ("$M --list-rules > /dev/full", "stdout cannot be written: No space left on device"),
        ("$M - < z.py > /dev/full", "stdout cannot be written: No space left on device"),
        ("$M z.py >&-", "stdout is closed: nothing can be printed there"),
        (
            "$M --report /dev/full z.py > /dev/null",
            "/dev/full: the report cannot be written: No space left on device",
        ),
        ("$M z.py 2>&- >&-", ""),
        ("$M - < z.py 2>&- > /dev/null", ""),
        ("$M nothing 2> /dev/full", ""),
    ],
)
def test_streams_that_are_closed_or_full(script: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "z.py").write_bytes(USE)
    done = shell(f"({script}); echo rc=$?", tmp_path)
    assert done.stdout.endswith("rc=2\n")
    assert done.stderr == (f"migrate-hierarchical: {message}\n" if message else "")
    is_written = "z.py" in script and "--diff" not in script and "- <" not in script
    assert (b"variant=" in (tmp_path / "z.py").read_bytes()) == is_written


def test_a_reader_that_leaves(tmp_path: Path) -> None:
    for i in range(300):
        (tmp_path / f"f{i}.yaml").write_text("BlockSparseHierarchical\n" * 50)
    done = shell("$M . | head -1; echo ${PIPESTATUS[0]}", tmp_path)
    assert (done.stdout.splitlines()[-1], done.stderr) == ("2", "")


# ---- bounded time


CHAINS = {
    "sum": "1 + " * 9000 + "1",
    "sum over lines": "(" + "1 +\n" * 9000 + "1)",
    "and": "a and " * 9000 + "a",
    "attributes": "a" + ".b" * 9000,
    "calls": "a" + ".b()" * 9000,
    "subscripts": "a" + "[0]" * 9000,
    "strings": "(" + "'a'\n" * 9000 + ")",
    "not": "not " * 9000 + "a",
    "lambda": "lambda: " * 9000 + "a",
    "elif": "0\nif a:\n    pass\n" + "elif a:\n    pass\n" * 9000,
    "brackets": "(" * 9000 + ")" * 9000,
}


@pytest.mark.parametrize("name", CHAINS)
def test_chains_are_refused_at_once(name: str) -> None:
    begin = time.process_time()
    result = migrate_bytes("x.py", USE + b"x = " + CHAINS[name].encode() + b"\n", Settings())
    assert time.process_time() - begin < 5
    assert result.new is None
    assert ("more than 500 strings" if name == "strings" else "nested too deeply") in (result.error or "")


@pytest.mark.parametrize("text", ["'a'\n", "f'{a}'  # why\n", "b'a' "])
def test_strings_beside_one_another_are_named_as_the_cause(text: str) -> None:
    for count in (600, 9000):
        result = migrate_bytes("x.py", USE + b"x = (" + text.encode() * count + b")\n", Settings())
        assert re.match(r"line \d+: more than 500 strings", result.error or "")
    assert migrate_bytes("x.py", USE + b"x = (" + text.encode() * 300 + b")\n", Settings()).new


@pytest.mark.parametrize(
    "text",
    ["from a import (b\n", "from a import b, c\n", "from " + "." * 200_000 + "\n", " \n", "a.", "(\n"],
)
def test_files_beside_are_looked_at_in_bounded_time(text: str) -> None:
    begin = time.process_time()
    index = index_of("page.md", b"dilated_attention_pytorch (\n" + text.encode() * (10**6 // len(text)))
    assert index.is_open
    assert time.process_time() - begin < 5


def test_files_too_large_to_look_at_are_named(tmp_path: Path, capsys) -> None:
    (tmp_path / "use.py").write_bytes(USE)
    (tmp_path / "table.py").write_bytes(
        b"import dilated_attention_pytorch\n" + b"# row\n" * (CODE_CHARACTERS // 5)
    )
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "table.py: note: too large to see what it imports" in out
    assert b"variant=" in (tmp_path / "use.py").read_bytes()


def test_names_are_followed_through_any_number_of_modules(tmp_path: Path, capsys) -> None:
    name = "BlockSparseHierarchical"
    (tmp_path / "m0.py").write_text(f"from dilated_attention_pytorch import {name}\n")
    for i in range(1, 60):
        (tmp_path / f"m{i}.py").write_text(f"from m{i - 1} import {name}\n")
    (tmp_path / "use.py").write_text(f"from m59 import {name}\nx = {name}([2048], [1])\n")
    assert main(["--jobs", "1", str(tmp_path)]) == 0
    assert not any(name in path.read_text() for path in tmp_path.iterdir())
    capsys.readouterr()
    assert main(["--check", str(tmp_path)]) == 0


def test_chains_of_usual_length_are_read() -> None:
    source = USE + b"x = (" + b"1 +\n" * 100 + b"1)\n" + b"y = a" + b".b()" * 50 + b"\n"
    assert migrate_bytes("x.py", source, Settings()).new is not None
    assert DEEPEST_TREE > 100


def test_a_file_that_takes_too_long_is_left_alone(tmp_path: Path, monkeypatch, capsys) -> None:
    for i in range(12):
        (tmp_path / f"f{i:02}.py").write_bytes(USE + b"# %d\n" % i)

    def hang(path: str, data: bytes, settings: Settings):
        while path.endswith(("f03.py", "f11.py")):
            sum(range(10_000_000))  # in native code, as a parser is
        return migrate_bytes(path, data, settings)

    monkeypatch.setattr(workers, "migrate_bytes", hang)
    monkeypatch.setattr(workers, "METHOD", "fork")
    assert main(["--time-limit", "0.3", "--jobs", "2", str(tmp_path)]) == 2
    out = capsys.readouterr().out
    assert out.count("took more than 0.3 s and was left alone") == 2
    changed = {path.name for path in tmp_path.iterdir() if b"variant=" in path.read_bytes()}
    assert changed == {f"f{i:02}.py" for i in range(12)} - {"f03.py", "f11.py"}


def test_a_process_that_ends_costs_one_file(tmp_path: Path, monkeypatch, capsys) -> None:
    for name in ("a.py", "b.py", "c.py"):
        (tmp_path / name).write_bytes(USE)

    def crash(path: str, data: bytes, settings: Settings):
        if path.endswith("a.py"):
            os.kill(os.getpid(), signal.SIGKILL)
        if path.endswith("b.py"):
            raise SystemExit("a panic of the parser is no Exception either")
        return migrate_bytes(path, data, settings)

    monkeypatch.setattr(workers, "migrate_bytes", crash)
    monkeypatch.setattr(workers, "METHOD", "fork")
    assert main([str(tmp_path)]) == 2
    out = capsys.readouterr().out
    assert "a.py: error: left alone: the process that read it ended with signal 9" in out
    assert "b.py: error: left alone after an error of this tool" in out
    assert b"variant=" in (tmp_path / "c.py").read_bytes()


def test_processes_that_are_spawned_give_the_same(monkeypatch) -> None:
    """As on systems without a safe fork."""
    monkeypatch.setattr(workers, "METHOD", "spawn")
    [result] = workers.migrate_all([("x.py", USE, Settings())], 1, 15)
    assert result.new == migrate_bytes("x.py", USE, Settings()).new


# ---- signals


def group_is_gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_its_parent(number: int, tmp_path: Path) -> None:
    """Killed at any moment, also while its processes are in the parser; every file is whole."""
    old = USE + b"".join(b"m%d = BlockSparseHierarchical([2048], [1])\n" % i for i in range(40))
    new = migrate_bytes("x.py", old, Settings()).new
    paths = [tmp_path / f"f{i:02}.py" for i in range(30)]
    rng = random.Random(number)
    caught = 0
    for _ in range(N_KILLS):
        for path in paths:
            path.write_bytes(old)
        process = subprocess.Popen(
            [*COMMAND, "--jobs", "2", "."],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        time.sleep(rng.uniform(0.5, 2.5))
        process.send_signal(number)
        out, err = process.communicate(timeout=20)  # returns: no other process holds the pipes
        deadline = time.monotonic() + 10
        while not group_is_gone(process.pid):
            assert time.monotonic() < deadline, "a process is left"
            time.sleep(0.01)
        caught += process.returncode in (-number, 128 + number)
        assert b"Traceback" not in out + err
        assert {path.read_bytes() for path in paths} <= {old, new}
        assert len(list(tmp_path.iterdir())) == len(paths), "a temporary file is left"
    assert caught, "every run had ended before"


def test_uses_are_left_as_they_are_by_a_run_that_is_stopped(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "a.py").write_text(LEFT)

    def stop(path: str, data: bytes) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)

    monkeypatch.setattr(atomic_write, "write_atomically", stop)
    assert main([str(tmp_path)]) == 128 + signal.SIGTERM
    assert "interrupted; every file is whole" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert run("--check", tmp_path).returncode == 2


@pytest.mark.parametrize("nameless", [True, False])
def test_nothing_is_left_of_a_write_that_fails(nameless: bool, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.py"
    path.write_bytes(b"old")
    if not nameless:
        monkeypatch.setattr(atomic_write, "write_nameless", lambda *_: False)
    atomic_write.write_atomically(str(path), b"new")
    assert path.read_bytes() == b"new"
    monkeypatch.setattr(atomic_write.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        atomic_write.write_atomically(str(path), b"newer")
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("a.py", b"new")]


IMPORT = b"from dilated_attention_pytorch import BlockSparseHierarchical\n"


def test_dockerfiles_are_searched_and_not_changed(tmp_path: Path, capsys) -> None:
    text = "FROM base\nRUN python -c 'from dilated_attention_pytorch import BlockSparseHierarchical'\n"
    names = ("Dockerfile", "gpu.Dockerfile", "gpu.dockerfile", "Containerfile")
    for name in names:
        (tmp_path / name).write_text(text)
    assert main([str(tmp_path)]) == 2
    out = capsys.readouterr().out
    for name in names:
        assert f"{tmp_path / name}:2: HIER120" in out
        assert (tmp_path / name).read_text() == text


def test_report_says_which_segment_length_is_written_instead() -> None:
    result = migrate_bytes("x.py", IMPORT + b"m = BlockSparseHierarchical([1], [1])\n", Settings())
    details = [entry.detail for entry in result.rewritten]
    assert "segment length 1 is no multiple of the block size 64: 64 is written instead" in details


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_form_feeds_before_code_stay(newline: bytes) -> None:
    text = b"%s" + IMPORT + b'\nx = 1\n%sm = %s\n%sdef f():\n    """a\n\f b"""\n%s    return 1\n\f'
    source, bare = (
        (text % (feed, feed, b"BlockSparseHierarchical([2048], [1])", feed, feed)).replace(b"\n", newline)
        for feed in (b"\f", b"")
    )
    result, plain = (migrate_bytes("x.py", each, Settings()) for each in (source, bare))
    assert result.error is None
    assert result.new is not None
    assert plain.new is not None
    assert b"\fm = create_block_sparse_attention(" in result.new
    assert result.new.replace(b"\f", b"") == plain.new.replace(b"\f", b"")
    assert result.new.count(b"\f") == source.count(b"\f")
    for line in (b"\fdef f():", b"\f    return 1", b"\f b"):
        assert newline + line in result.new
    assert migrate_bytes("x.py", result.new, Settings()).new is None


def test_carriage_returns_alone_end_lines() -> None:
    source = IMPORT + b"m = BlockSparseHierarchical([2048], [1])\nclass A(BlockSparseHierarchical): ...\n"
    result, plain = (
        migrate_bytes("x.py", each, Settings()) for each in (source.replace(b"\n", b"\r"), source)
    )
    assert result.new is not None
    assert plain.new is not None
    assert result.new == plain.new.replace(b"\n", b"\r")
    assert [(entry.line, entry.rule) for entry in result.left] == [(3, "HIER101")]


def test_what_the_parser_loses_is_named_with_its_line_and_a_remedy() -> None:
    source = IMPORT + b"def f():\n    pass\n    \f    m = BlockSparseHierarchical([2048], [1])\n"
    result = migrate_bytes("x.py", source, Settings())
    assert result.new is None
    assert result.error is not None
    assert result.error.startswith("line 4: ")
    assert "remove form feeds" in result.error
