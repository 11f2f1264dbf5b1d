"""The command line: what it accepts, what it says about bad input, and what it writes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig, __version__
from dilated_attention_pytorch.__main__ import build_parser, main
from dilated_attention_pytorch.cli import doctor, plot
from dilated_attention_pytorch.cli.arguments import int_list, kept_ratio
from dilated_attention_pytorch.environment_settings import COMPILE_WORKERS, PREFIX, SPLIT_ROWS
from dilated_attention_pytorch.factory import PRESETS


def error_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run a command that must fail as bad input does; returns its one line."""
    try:
        status = main(argv)
    except SystemExit as stop:
        status = stop.code
    printed = capsys.readouterr()
    assert status == 2
    assert printed.err.count("\n") == 1
    assert ": error: " in printed.err
    return printed.err


# Parser.


def test_parser_offers_the_commands() -> None:
    parser = build_parser()
    assert parser.parse_args(["demo", "a.txt", "b.txt"]).files == [Path("a.txt"), Path("b.txt")]
    assert parser.parse_args(["doctor", "--json"]).json
    assert parser.parse_args(["plot", "--seq-len", "512"]).q_len == 512
    assert parser.parse_args(["warm", "--arch", "90"]).arch == (9, 0)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"dilated-attention-pytorch {__version__}\n"


@pytest.mark.parametrize("command", [[], ["demo"], ["doctor"], ["plot"], ["warm"]])
def test_help_explains_every_option(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--help"])
    assert "usage: python -m dilated_attention_pytorch" in capsys.readouterr().out


def test_kept_ratio_and_int_list() -> None:
    assert kept_ratio("0.01") == 0.01
    assert int_list("1,2, 4") == [1, 2, 4]


# Bad input: exit status 2 and one line on the standard error.

BAD_ARGUMENTS = {
    "": "required: COMMAND",
    "train": "invalid choice: 'train'",
    "plt": "invalid choice: 'plt'; did you mean 'plot'? (choose from demo, doctor, plot, warm)",
    "doctor --jsn": "doctor: error: unrecognized arguments: --jsn; did you mean '--json'?",
    "plot --outptu=x.png": "plot: error: unrecognized arguments: --outptu=x.png; did you mean '--output'?",
    "plot --pattern-type dilated-sparse": "'dilated-sparse'; did you mean 'dilated_sparse'?",
    "plot -o pattern.pgn": "--output must end in .png, .svg, .pdf, got 'pattern.pgn'; did you mean '.png'?",
    "plot -o .png": "--output must end in .png, .svg, .pdf, got '.png'",
    "plot --seq-len 1048576 --block-size 16": "plot draws at most 8,388,608 of each",
    "plot --seq-len 99999999999999999999": "--seq-len: must be at most 2**63 - 1",
    "plot --q-len 64 --kv-len 9000000000000000000 --sparsity-ratio 1e-18": "plot draws at most",
    "plot --seq-len 1048576 --sparsity-ratio 0.01 --hops": "--hops works up to 1,073,741,824 rows times blocks",
    "plot --pattern-type local_window --window-size 500000 --seq-len 1048576": "plot draws at most",
    "demo --backend cpuu": "--backend: invalid choice: 'cpuu'; did you mean 'cpu'?",
    "demo --device cudda": "got 'cudda'; did you mean 'cuda'?",
    "demo --threads 99999": "--threads: must be at most 1,024, got '99999'",
    "demo --seeds 1000000000": "--seeds must be at most 1,000, got 1,000,000,000",
    "demo --layers 1000000000": "weights, 12 * --layers * --dim**2, must be at most 8,589,934,592",
    "demo --batch-size 10000000000": "--context times --batch-size must be at most",
    "demo --output /dev/null/x": "cannot write to /dev/null/x: Not a directory",
    "demo --context 0": "--context: must be a whole number of at least 1, got '0'",
    "demo --context -5": "--context: must be a whole number of at least 1, got '-5'",
    "demo --steps many": "--steps: must be a whole number of at least 1, got 'many'",
    "demo --sparsity-ratio 1.5": "--sparsity-ratio: must be the fraction of blocks kept",
    "demo --sparsity-ratio nan": "--sparsity-ratio: must be the fraction of blocks kept",
    "demo --block-size 48": "--block-size: must be one of 16, 32, 64, 128, 256, got '48'",
    "demo --context 32 --device cpu": "--context must be at least 64, got 32",
    "demo --seeds 0": "--seeds: must be a whole number of at least 1, got '0'",
    "demo --sample-bytes 0": "--sample-bytes: must be a whole number of at least 1, got '0'",
    "demo --generate no-such-model.pt": "cannot read no-such-model.pt: No such file or directory",
    "demo --min-blocks 0": "--min-blocks: must be a whole number of at least 1, got '0'",
    "demo --seed -1": "--seed: must be a whole number from 0",
    "demo --backend fast": "--backend: invalid choice: 'fast'",
    "demo --device toaster": "--device must be auto, cpu, cuda or cuda:N, got 'toaster'",
    "demo --device cuda:99": "--device cuda:99: torch",
    "demo --device cpu --dim 100 --heads 3": "--dim must be a multiple of 2 * --heads",
    "demo no-such-file.txt": "cannot read no-such-file.txt: No such file or directory",
    "demo .": ". is a folder; give files",
    "plot --q-len 0": "--q-len/--seq-len: must be a whole number of at least 1",
    "plot --dilation-rates 1,x": "--dilation-rates: must be whole numbers of at least 1 separated by commas",
    "plot --window-size 64": "window_size does not apply to pattern_type='dilated_sparse'",
    "plot --pattern-type local_window --global-tokens 64": "global_tokens does not apply",
    "plot --pattern-type local_window --exact": "exact=True needs window_size, got None",
    "plot --pattern-type hierarchical": "invalid choice: 'hierarchical'",
    "plot --output pattern.bmp": "--output must end in .png, .svg, .pdf, got 'pattern.bmp'",
    "plot --output no-such-folder/pattern.png": "cannot write no-such-folder",
    "plot --hops --q-len 64 --kv-len 128": "--hops needs as many keys as queries, got 64 queries and 128 keys",
}


@pytest.mark.parametrize("command", BAD_ARGUMENTS)
def test_bad_input_is_one_line_and_exit_status_2(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert BAD_ARGUMENTS[command] in error_of(capsys, *command.split())


@pytest.mark.parametrize(
    ("command", "module", "packages"),
    [
        ("demo", "rich", "rich matplotlib"),
        ("demo", "matplotlib", "rich matplotlib"),
        ("plot", "matplotlib.figure", "matplotlib"),
    ],
)
def test_missing_extra_is_named(
    command: str,
    module: str,
    packages: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    message = error_of(capsys, command)
    assert f"needs {module.partition('.')[0]}: pip install {packages}" in message


def test_running_out_of_memory_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_large(*args: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")

    monkeypatch.setattr("dilated_attention_pytorch.cli.plot.make_layout", too_large)
    assert "out of memory" in error_of(capsys, "plot")


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("dilated_attention_pytorch.cli.plot.make_layout", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["plot"])


# Doctor.


def test_doctor_tells_versions_devices_and_backends(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for expected in (
        __version__,
        torch.__version__,
        "threads",
        "float32 q, k, v of shape",
        "only on request",
    ):
        assert expected in out


def test_doctor_tells_which_settings_are_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    assert doctor.examine_settings() == {}
    monkeypatch.setenv(COMPILE_WORKERS.name, "")
    monkeypatch.setenv(SPLIT_ROWS.name, "yes")
    monkeypatch.setenv(f"{PREFIX}SPLIT_ROW", "1")
    assert main(["doctor"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for expected in (
        f"{COMPILE_WORKERS.name} empty, so the default",
        f"{SPLIT_ROWS.name} yes, wrong: {SPLIT_ROWS.name} must be 0 or 1, got 'yes'",
        f"{PREFIX}SPLIT_ROW 1, wrong: no setting has this name",
    ):
        assert expected in text


def test_doctor_tells_what_the_presets_keep_and_reach(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for name, config in PRESETS.items():
        layout = BlockLayout.from_config(config, 16384, causal=True)
        hops = layout.hops_to_full_coverage()
        assert re.search(
            rf"{name} +{layout.density:.1%} of the blocks, reach {layout.stats().reach:,} tokens, full coverage "
            rf"with {hops} layers",
            out,
        )


def test_doctor_says_never_where_a_sequence_is_not_connected() -> None:
    line = doctor.describe_pattern({"density": 0.004, "reach": 0, "layers_to_full_coverage": None})
    assert line == "0.4% of the blocks, reach 0 tokens, full coverage never, however many layers"


def test_doctor_json_says_which_backend_serves_and_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    call = findings["calls"][0]
    assert (call["device"], call["dtype"], call["backends"]["cpu"]) == ("cpu", "float32", None)
    assert call["chosen"] == "cpu"
    assert list(call["backends"])[-1] == "reference"
    assert all(why_not is None or len(why_not) > 10 for why_not in call["backends"].values())
    assert findings["versions"]["torch"] == torch.__version__


def test_doctor_survives_a_broken_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    findings = doctor.examine()
    assert findings["optional"]["rich"]["version"] is None
    assert "for the demo" in doctor.as_text(findings)


def test_doctor_describes_gpus() -> None:
    gpu = {
        "device": "cuda:0",
        "name": "Card",
        "capability": "9.0",
        "memory_bytes": 2**31,
        "free_memory_bytes": 2**30,
    }
    assert doctor.describe_device(gpu) == "Card, compute capability 9.0, 2.0 GiB, 1.0 GiB free"
    assert doctor.describe_device({"device": "cuda:1", "problem": "busy"}) == "not usable: busy"


# Plot.


@pytest.mark.parametrize("name", ["pattern.png", "pattern.svg", "pattern.PDF"])
def test_plot_writes_a_picture(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / name
    assert main(["plot", "--output", str(file), "--seq-len", "1024"]) == 0
    assert file.stat().st_size > 1000
    assert f"wrote {file}" in capsys.readouterr().out


def test_plot_says_what_a_pixel_stands_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pattern.png"
    assert main(["plot", "-o", str(file), "--seq-len", "131072", "--sparsity-ratio", "0.01"]) == 0
    assert f"wrote {file}; one pixel shows 4 x 4 blocks" in capsys.readouterr().out
    assert main(["plot", "-o", str(file), "--seq-len", "32768", "--sparsity-ratio", "0.01"]) == 0
    assert capsys.readouterr().out.endswith(f"wrote {file}\n")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("q_len", [100, 4096])
@pytest.mark.parametrize(
    "config",
    [
        SparsePatternConfig(sparsity_ratio=0.2),
        SparsePatternConfig(sparsity_ratio=0.001),
        SparsePatternConfig("local_window", window_size=300),
        SparsePatternConfig("global_local", sparsity_ratio=0.01, global_tokens=200),
        SparsePatternConfig("global_local", window_size=300, global_tokens=200),
    ],
)
def test_plot_expects_about_as_many_blocks_as_there_are(
    config: SparsePatternConfig, q_len: int, causal: bool
) -> None:
    n_blocks = BlockLayout.from_config(config, q_len, causal=causal).num_active_blocks
    assert n_blocks * 0.9 <= plot.expected_blocks(config, q_len, q_len, causal) <= 3 * n_blocks


def test_plot_leaves_the_picture_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    file = tmp_path / "pattern.png"
    file.write_text("before")
    monkeypatch.setattr("os.replace", interrupted)
    assert main(["plot", "-o", str(file), "--seq-len", "256"]) == 130
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


def test_plot_prints_the_figures_of_the_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = str(tmp_path / "pattern.png")
    assert main(["plot", "--q-len", "16384", "--sparsity-ratio", "0.01", "--output", picture]) == 0
    out = capsys.readouterr().out
    assert "16,384 queries, 16,384 keys, 64 a block\n" in out
    assert "655 of 65,536 kept (0.999%, asked 1.000%)" in out
    assert "reach           8,192 tokens in one layer" in out
    assert "full coverage" not in out


def test_plot_takes_every_option_of_a_pattern(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = ["--output", str(tmp_path / "pattern.png")]
    layout = BlockLayout.from_config(
        SparsePatternConfig(block_size=32, sparsity_ratio=0.2, dilation_rates=[1, 3]), 512, 1024, causal=True
    )
    options = "--block-size 32 --sparsity-ratio 0.2 --dilation-rates 1,3 --q-len 512 --kv-len 1024 --causal"
    assert main(["plot", *options.split(), *picture]) == 0
    assert f"{layout.num_active_blocks:,} of " in capsys.readouterr().out
    options = "--sparsity-ratio 0.01 --min-blocks 5 --seq-len 4096 --causal"
    assert main(["plot", *options.split(), *picture]) == 0
    assert "1 to 5, 4.84 on average; 64 rows at the floor" in capsys.readouterr().out
    options = "--pattern-type global_local --global-tokens 64 --window-size 256 --seq-len 1024"
    assert main(["plot", *options.split(), *picture]) == 0
    options = "--pattern-type local_window --window-size 100 --exact --causal --seq-len 1024"
    capsys.readouterr()
    assert main(["plot", *options.split(), *picture]) == 0
    n_pairs = 99 * 100 // 2 + (1024 - 99) * 100
    assert f"pairs           {n_pairs:,} of tokens" in capsys.readouterr().out


def test_plot_hops_tells_how_far_layers_reach(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--seq-len", "1024", "--sparsity-ratio", "0.3", "--output", str(tmp_path / "pattern.png")]
    assert main(["plot", *options, "--hops"]) == 0
    out = capsys.readouterr().out
    layout = BlockLayout.from_config(SparsePatternConfig(sparsity_ratio=0.3), 1024)
    hops = layout.hops_to_full_coverage()
    assert 1 < hops <= 8
    assert f"with {hops} layers" in out
    assert f"{hops} layers        connect 100.0% of the block pairs" in out


# The command line itself.


def test_command_line_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "dilated_attention_pytorch", "plot", "--q-len", "0"]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 2
    assert finished.stderr.splitlines() == [
        "python -m dilated_attention_pytorch plot: error: "
        "argument --q-len/--seq-len: must be a whole number of at least 1, got '0'"
    ]


def test_interrupting_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dilated_attention_pytorch.cli.plot.make_layout", interrupted)
    assert main(["plot"]) == 130
    assert "interrupted" in capsys.readouterr().err
