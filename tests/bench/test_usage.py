"""What the benchmark says about bad usage and interruptions, and what it leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from attention_bench import cli, host, large, measure, report, run
from attention_bench.cases import Case
from attention_bench.measure import Row
from attention_bench.peers import PEERS

SMALL = ["--seqlen", "64", "--heads", "1", "--head-dim", "16", "--block", "16", "--density", "0.5"]
SMALL += ["--dtype", "float32", "--device", "cpu", "--repeat-ms", "1"]


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail as bad usage does; returns its one line."""
    try:
        status = cli.main(list(arguments))
    except SystemExit as stopped:
        status = stopped.code  # type: ignore[assignment]
    printed = capsys.readouterr()
    assert status == 2
    assert printed.err.count("\n") == 1, printed.err
    assert printed.err.startswith("attention-bench")
    assert printed.out == ""
    return printed.err


BAD_USAGE = {
    "--heads 3 --kv-heads 2 --device cpu": "kv_heads must divide heads 3, got 2",
    "--block 48": "--block: must be one of 16, 32, 64, 128, 256, got '48'",
    "--density 0": "--density: must be the fraction of blocks kept, 0 < ratio <= 1, got '0'",
    "--density nan": "--density: must be the fraction of blocks kept",
    "--repeat-ms 0": "--repeat-ms: must be a number of milliseconds above 0, got '0'",
    "--repeat-ms -5": "--repeat-ms: must be a number of milliseconds above 0, got '-5'",
    "--repeat-ms inf": "--repeat-ms: must be a number of milliseconds above 0, got 'inf'",
    "--window 64 --pattern random_topk --device cpu": "--window is of --pattern local_window, got --pattern random_topk",
    "--preset topk --device cpu": "--preset topk has sizes for a GPU; on a CPU choose from cpu, cpu-small, cpu-shapes, cpu-decode, quick, or give --seqlen",
    "--preset cpu goals --causal --device cpu": "--preset goals has sizes for a GPU",
    "--budget 0": "--budget: must be a number of seconds above 0, got '0'",
    "--pattern random": "--pattern: invalid choice: 'random'; did you mean 'random_topk'?",
    "long --pattern random_topk": "--pattern: invalid choice: 'random_topk'",
    "calls --features sink": "--features: invalid choice: 'sink'; did you mean 'sinks'?",
    "calls --backend hoper": "--backend: invalid choice: 'hoper'; did you mean 'hopper'?",
    "short --calls 0": "--calls: must be a whole number of at least 1",
    "determinism --every --heads 2": "--every has its own cases; leave the options of a case out",
    "--rounds 0": "--rounds: must be a whole number of at least 1, got '0'",
    "--threads 0": "--threads: must be a whole number of at least 1, got '0'",
    "--threads 1000000": "--threads: must be at most 1,024, got '1000000'",
    "--dilation-rates 1,x": "--dilation-rates: must be whole numbers of at least 1 separated by commas",
    "--dilation-rates 0,1": "--dilation-rates: must be whole numbers of at least 1 separated by commas",
    "--peers ours flx": "--peers: invalid choice: 'flx'; did you mean 'flex'? (choose from ours, ",
    "--preset kernel": "--preset: invalid choice: 'kernel'; did you mean 'kernels'?",
    "--pattern local-window": "--pattern: invalid choice: 'local-window'; did you mean 'local_window'?",
    "--dtype bf16": "--dtype: invalid choice: 'bf16'; did you mean 'bfloat16'?",
    "--device gpu": "--device: invalid choice: 'gpu' (choose from cuda, cpu)",
    "--foward-only": "unrecognized arguments: --foward-only; did you mean '--forward-only'?",
    "hots": "unknown command 'hots'; did you mean 'host'? (choose from run, ",
    "run quick": "unrecognized arguments: quick",
    "plot missing.json": "cannot read missing.json: No such file",
    "breakeven missing.json": "cannot read missing.json: No such file",
    "markdown missing.json": "attention-bench markdown: cannot read missing.json: No such file",
    "markdown .": "cannot read .: Is a directory",
    "long --density 2": "--density: must be the fraction of blocks kept",
    "long --repeats 0": "--repeats: must be a whole number of at least 1",
    "long --backend tritn": "--backend: invalid choice: 'tritn'; did you mean 'triton'?",
    "host --segment-lengths 64 --device cpu": "--segment-lengths and --token-rates go together, --token-rates is not given",
    "--token-rates 2 --device cpu": "--segment-lengths and --token-rates go together, --segment-lengths is not given",
    "decode --rounds 0": "--rounds: must be a whole number of at least 1",
    "decode --peers ours-decod": "--peers: invalid choice: 'ours-decod'; did you mean 'ours-decode'?",
    "selection --pattern local_window": "unrecognized arguments: --pattern local_window",
    "selection --heads 3 --kv-heads 2 --device cpu": "attention-bench selection: kv_heads must divide heads 3",
    "video --tiles 4,4": "--tiles: must be three whole numbers of at least 1 separated by commas, such as 4,4,4, got '4,4'",
    "video --shapes wan-480": "--shapes: invalid choice: 'wan-480'; did you mean 'wan-480p'?",
    "video --heads 4 --device cpu": "attention-bench video: --heads needs --grid",
    "video --grid 2,4,8 --shapes tiny": "--shapes: not allowed with argument --grid",
    "plan --ranks 8 --seqlen 512": "attention-bench plan: seq_len 512 has 4 blocks of block_size 128, too few for 8",
    "plan --seqlen 4T": "--seqlen: must be a whole number of at least 1, got '4T'",
    "plan --seqlen 1.5e0": "--seqlen: must be a whole number of at least 1, such as 4M or 1e9, got '1.5e0'",
    "plan --seqlen 4G": "attention-bench plan: q_len must be a positive number of tokens below 2**31, got 4294967296",
    "plan --head-dim 96": "no rate was measured for head_dim 96, block 128 and bfloat16; give --tflops FORWARD BACKWARD",
    "plan --near 0": "--near: must be a number above 0, got '0'",
    "plan --preset scaling --ranks 4": "--preset scaling has its own cases and ranks",
    "plan --sample 100 --ranks 8": "--sample must be at most the number of ranks, 8, got 100; leave it out to count all",
    "plan --preset scaling --sample 1025": "--sample must be at most the number of ranks, 1024, got 1025",
    "plan --pattern local_window --dilation-rates 1,2": "--dilation-rates are of --pattern dilated_sparse, got --pattern local_window",
    "--pattern global_local --dilation-rates 1,2 --device cpu": "--dilation-rates are of --pattern dilated_sparse",
    "plan --balance equal": "--balance: invalid choice: 'equal' (choose from cost, zigzag, contiguous)",
    "models": "the following arguments are required: {train,generate}",
    "models trian": "invalid choice: 'trian'; did you mean 'train'? (choose from train, generate)",
    "models train --peers ours-65": "--peers: invalid choice: 'ours-65'; did you mean 'ours-64'?",
    "models generate --new 1": "--new: must be at least 2, got '1'",
    "models generate --caches statc": "--caches: invalid choice: 'statc'; did you mean 'static'?",
    "host --calls 0": "--calls: must be a whole number of at least 1",
    "determinism --runs 1": "--runs: must be at least 2, got '1': a single run cannot be compared",
    "determinism --runs 0": "--runs: must be a whole number of at least 1",
    "tune --backend hoper": "--backend: invalid choice: 'hoper'; did you mean 'hopper'?",
    "tune --kernels forwrd": "--kernels: invalid choice: 'forwrd'; did you mean 'forward'?",
    "tune --backend hopper --kernels rows": "--kernels: invalid choice: 'rows'",
    "tune --processes -1": "--processes: must be a whole number of at least 1",
    "tune --head-dim 0": "--head-dim: must be a whole number of at least 1",
}


@pytest.mark.parametrize("arguments", BAD_USAGE)
def test_bad_usage_is_one_line_and_status_2(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert BAD_USAGE[arguments] in error_of(capsys, *arguments.split())


def test_help_names_every_other_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    listed = capsys.readouterr().out.split("other commands:")[1]
    for name in cli.COMMANDS.keys() - {"run"}:
        assert re.search(rf"\b{name}\b", listed), name


@pytest.mark.parametrize("command", [["tune"], ["tune", "--backend", "hopper"], ["--device", "cuda"]])
def test_a_gpu_that_is_not_there_is_told(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert "GPU" in error_of(capsys, *command)


@pytest.mark.parametrize("option", ["--seqlen", "--batch", "--heads", "--kv-heads", "--head-dim"])
@pytest.mark.parametrize("number", ["0", "-5", "x"])
def test_sizes_of_a_case_are_at_least_one(
    option: str, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = f"argument {option}: must be a whole number of at least 1, got '{number}'"
    assert expected in error_of(capsys, option, number)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "3",
        '{"rows": [], "environment": {}}',
        '{"rows": [{}], "environment": {}}',
        "[" * 100_000,
    ],
)
@pytest.mark.parametrize("command", ["plot", "markdown", "breakeven"])
def test_another_file_is_one_line(
    command: str, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "other.json"
    file.write_text(content)
    assert "cannot read" in error_of(capsys, command, str(file))


# ---- files


@pytest.mark.parametrize("command", [[], ["host"], ["long"], ["tune"]])
def test_json_makes_no_folder_and_names_the_missing_one(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "a" / "b"
    message = error_of(capsys, *command, "--json", str(missing / "c.json"))
    assert f"the folder {missing} does not exist" in message
    assert list(tmp_path.iterdir()) == []


def test_json_that_is_no_file_is_told_before_measuring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "it is a folder" in error_of(capsys, "--json", str(tmp_path))
    assert "it is not a regular file" in error_of(capsys, "--json", os.devnull)
    assert "cannot write ''" in error_of(capsys, "--json", "")
    assert "File name too long" in error_of(capsys, "--json", str(tmp_path / ("x" * 300)))
    (tmp_path / "file").touch()
    assert "Not a directory" in error_of(capsys, "--json", str(tmp_path / "file" / "x.json"))


def test_file_that_fails_to_be_written_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    file.write_text("before")

    def full(*args: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert cli.main([*SMALL, "--peers", "ours", "--json", str(file)]) == 2
    assert capsys.readouterr().err == "attention-bench: no space left on device\n"
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


def test_command_in_the_file_has_no_folders(tmp_path: Path) -> None:
    for given in (["--json", str(tmp_path / "x.json")], [f"--json={tmp_path / 'x.json'}"]):
        assert cli.main([*SMALL, "--forward-only", "--peers", "ours", *given]) == 0
        _, where = report.read_json(str(tmp_path / "x.json"))
        assert str(tmp_path) not in where["command"]
        assert "x.json" in where["command"]


def test_plot_without_a_time_and_without_a_parent_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, case = str(tmp_path / "run.json"), Case(64, 1, 16, 16, 0.5)
    report.write_json(file, [Row("fa4", case, refused="not installed")], {})
    output = ["--output", str(tmp_path / "a" / "b")]
    assert "no times to draw" in error_of(capsys, "plot", file, *output)
    where = {"device": "a GPU", "versions": {"torch": "2"}, "date": "today"}
    report.write_json(file, [Row("ours", case, forward_ms=1.0)], where)
    assert "cannot write to" in error_of(capsys, "plot", file, *output)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


# ---- peers of which nothing was measured


def test_peers_that_measured_nothing_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*SMALL, "--forward-only", "--peers", "ours", "cudnn", "ours-hopper"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors[0] == "attention-bench: cudnn measured nothing: needs a CUDA device"
    assert errors[1].startswith(
        "attention-bench: ours-hopper measured nothing: ValueError: backend='hopper' cannot"
    )
    assert len(errors) == 2


def test_a_peer_with_one_figure_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [Case(64, 1, 16, 16, density, dtype="float32") for density in (0.5, 1.0)]
    monkeypatch.setitem(run.PRESETS, "quick", cases)
    monkeypatch.setattr(
        type(PEERS["flex"]), "rejects", lambda peer, case, device: "no" if case.density == 1.0 else None
    )
    assert cli.main(["--preset", "quick", "--device", "cpu", "--repeat-ms", "1", "--peers", "flex"]) == 0


def test_default_peer_that_is_not_there_is_left_out_aloud(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(run.DEFAULT_PEERS, "cpu", ["ours", "fa4"])
    assert cli.main([*SMALL, "--forward-only"]) == 0
    assert "fa4 is left out: needs a CUDA device" in capsys.readouterr().out


def test_case_that_cannot_be_built_is_refused_for_every_peer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_large(*args: object) -> None:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(measure, "build", too_large)
    assert cli.main([*SMALL, "--peers", "ours", "sdpa"]) == 1
    assert capsys.readouterr().err.count("measured nothing: RuntimeError: can't allocate memory") == 2


# ---- interruptions

TURNS = measure.turns


def interrupted_in_the_backward(*args: object) -> list[float]:
    monkeypatched.append(None)
    if len(monkeypatched) % 2 == 0:
        raise KeyboardInterrupt
    return TURNS(*args)  # type: ignore[arg-type]


monkeypatched: list[None] = []


def test_interrupted_run_keeps_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatched.clear()
    monkeypatch.setattr(measure, "turns", interrupted_in_the_backward)
    file = str(tmp_path / "figures.json")
    assert cli.main([*SMALL, "--peers", "ours", "sdpa", "fa4", "--json", file]) == 130
    rows, _ = report.read_json(file)
    assert [row.peer for row in rows] == ["ours", "sdpa"]
    assert all(row.forward_ms and row.backward_ms is None for row in rows)
    assert capsys.readouterr().err == f"attention-bench: interrupted; measured 2 rows, written to {file}\n"


def interrupt(*args: object) -> None:
    raise KeyboardInterrupt


def test_run_interrupted_at_its_start_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "build", interrupt)
    assert cli.main([*SMALL, "--json", str(tmp_path / "figures.json")]) == 130
    assert capsys.readouterr().err == "attention-bench: interrupted; nothing was measured\n"
    assert list(tmp_path.iterdir()) == []


def test_interrupted_host_keeps_the_peers_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(PEERS["sdpa"]), "prepare", interrupt)
    file = str(tmp_path / "host.json")
    arguments = [
        "--device",
        "cpu",
        "--calls",
        "2",
        "--repeats",
        "1",
        "--peers",
        "ours",
        "sdpa",
        "--json",
        file,
    ]
    assert cli.main(["host", *arguments]) == 130
    assert [row.peer for row in host.read_json(file)[0]] == ["ours"]


def test_interrupted_long_keeps_the_forward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "measure_both", interrupt)
    file = str(tmp_path / "long.json")
    small = SMALL[: SMALL.index("--repeat-ms")]
    assert cli.main(["long", *small, "--repeats", "1", "--json", file]) == 130
    (row,), _ = large.read_json(file)
    assert row.forward_ms
    assert row.both_ms is None


@pytest.mark.parametrize("command", ["determinism", "host"])
def test_interruption_is_one_line(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Case, "inputs", interrupt)
    assert cli.main([command, "--device", "cpu"]) == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"attention-bench {command}: interrupted")


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals of POSIX")
def test_ctrl_c_of_the_process_leaves_a_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "attention_bench", *SMALL, "--peers", "ours", "--rounds", "1000000"]
    process = subprocess.Popen(
        [*command, "--json", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wait_for(file.exists)
    errors = interrupted(process)
    assert process.returncode == 130
    assert errors.endswith(f"interrupted; measured 1 row, written to {file}\n")
    assert json.loads(file.read_text())["rows"][0]["forward_ms"]
    assert list(tmp_path.iterdir()) == [file]


def interrupted(process: subprocess.Popen[str]) -> str:
    """Press Ctrl-C until the process ends; returns what it wrote to stderr."""
    for _ in range(6):  # Python loses a KeyboardInterrupt that is raised in the callback of a weak reference
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=20)[1]
    process.kill()
    raise AssertionError("Ctrl-C did not end the process")


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "nothing was written"
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform == "win32", reason="needs pipes of POSIX")
def test_closed_output_is_no_traceback() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "attention_bench", *SMALL, "--forward-only", "--peers", "ours"]
    finished = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True)
    os.close(write_end)
    assert (finished.returncode, finished.stderr) == (141, "")
