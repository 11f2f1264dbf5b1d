"""The command line: what it accepts, what it says about bad input, and what it writes."""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig, __version__
from dilated_attention_pytorch.__main__ import build_parser, main
from dilated_attention_pytorch.backends.cpu import CPU as CPU_BACKEND
from dilated_attention_pytorch.cli import demo, doctor
from dilated_attention_pytorch.cli.arguments import int_list, kept_ratio
from dilated_attention_pytorch.cli.measure import Run, measure
from dilated_attention_pytorch.cli.model import KeyValueCache, ModelSettings, make_model
from dilated_attention_pytorch.cli.text import library_files, load_text
from dilated_attention_pytorch.cli.training import even_windows, learning_rate_share
from dilated_attention_pytorch.factory import PRESETS

CPU = torch.device("cpu")
TINY = [
    "--context",
    "256",
    "--layers",
    "2",
    "--dim",
    "32",
    "--heads",
    "2",
    "--block-size",
    "16",
    "--device",
    "cpu",
]
TINY_SETTINGS = ModelSettings(layers=2, dim=32, heads=2, sparsity_ratio=0.1, block_size=16)


@pytest.fixture
def story(tmp_path: Path) -> Path:
    """A file with 12,000 bytes of easy text."""
    file = tmp_path / "story.txt"
    file.write_bytes(b"the quick brown fox jumps over the lazy dog, and " * 245)
    return file


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


def test_parser_offers_the_three_commands() -> None:
    parser = build_parser()
    assert parser.parse_args(["demo", "a.txt", "b.txt"]).files == [Path("a.txt"), Path("b.txt")]
    assert parser.parse_args(["doctor", "--json"]).json
    assert parser.parse_args(["plot", "--seq-len", "512"]).q_len == 512


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"dilated-attention-pytorch {__version__}\n"


@pytest.mark.parametrize("command", [[], ["demo"], ["doctor"], ["plot"]])
def test_help_explains_every_option(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--help"])
    assert "usage: python -m dilated_attention_pytorch" in capsys.readouterr().out


def test_demo_keeps_a_twentieth_of_a_context_of_4096_unless_told() -> None:
    args = build_parser().parse_args(["demo", "--device", "cpu"])
    plan = demo.make_plan(args)
    assert (plan.context, plan.settings.sparsity_ratio, plan.output) == (4096, 0.05, Path("demo-output"))


def test_kept_ratio_and_int_list() -> None:
    assert kept_ratio("0.01") == 0.01
    assert int_list("1,2, 4") == [1, 2, 4]


# Bad input: exit status 2 and one line on the standard error.

BAD_ARGUMENTS = {
    "": "required: COMMAND",
    "train": "invalid choice: 'train'",
    "demo --context 0": "--context: must be a whole number of at least 1, got '0'",
    "demo --context -5": "--context: must be a whole number of at least 1, got '-5'",
    "demo --steps many": "--steps: must be a whole number of at least 1, got 'many'",
    "demo --sparsity-ratio 1.5": "--sparsity-ratio: must be the fraction of blocks kept",
    "demo --sparsity-ratio nan": "--sparsity-ratio: must be the fraction of blocks kept",
    "demo --block-size 48": "--block-size: must be one of 16, 32, 64, 128, 256, got '48'",
    "demo --seed -1": "--seed: must be a whole number from 0",
    "demo --backend fast": "--backend: invalid choice: 'fast'",
    "demo --device toaster": "--device must be auto, cpu, cuda or cuda:N, got 'toaster'",
    "demo --device cuda:99": "--device cuda:99: torch",
    "demo --device cpu --dim 100 --heads 3": "--dim must be a multiple of 2 * --heads",
    "demo --device cpu --sample-bytes 4096": "--sample-bytes must be less than --context 4096",
    "demo no-such-file.txt": "cannot read no-such-file.txt: No such file or directory",
    "demo .": ". is a folder; give files",
    "plot --q-len 0": "--q-len/--seq-len: must be a whole number of at least 1",
    "plot --dilation-rates 1,x": "--dilation-rates: must be whole numbers of at least 1 separated by commas",
    "plot --window-size 64": "window_size does not apply to pattern_type='dilated_sparse'",
    "plot --pattern-type local_window --global-tokens 64": "global_tokens does not apply",
    "plot --pattern-type hierarchical": "invalid choice: 'hierarchical'",
    "plot --output pattern.bmp": "--output must end in .png, .svg, .pdf, got 'pattern.bmp'",
    "plot --output no-such-folder/pattern.png": "cannot write no-such-folder",
    "plot --hops --q-len 64 --kv-len 128": "--hops needs as many keys as queries, got 64 and 128",
}


@pytest.mark.parametrize("command", BAD_ARGUMENTS)
def test_bad_input_is_one_line_and_exit_status_2(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert BAD_ARGUMENTS[command] in error_of(capsys, *command.split())


def test_too_short_text_says_how_much_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "short.txt"
    file.write_bytes(b"x" * 300)
    message = error_of(capsys, "demo", str(file), *TINY)
    assert "too short" in message
    assert "--context 256 needs 257 to learn from and as many to hold out" in message


def test_empty_prompt_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--prompt must not be empty" in error_of(capsys, "demo", "--prompt", "")


def test_output_that_is_a_file_is_an_error(story: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot write to" in error_of(capsys, "demo", str(story), *TINY, "--output", str(story))
    assert "cannot write to" in error_of(capsys, "demo", str(story), *TINY, "--output", str(story / "folder"))


def test_backend_that_cannot_serve_says_why(
    story: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(type(CPU_BACKEND), "rejects", lambda *args: "it is asleep")
    message = error_of(capsys, "demo", str(story), *TINY, "--backend", "cpu")
    assert "backend='cpu' cannot serve this call: it is asleep" in message


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
        "on request only",
    ):
        assert expected in out


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


def test_plot_hops_tells_how_far_layers_reach(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--seq-len", "1024", "--sparsity-ratio", "0.3", "--output", str(tmp_path / "pattern.png")]
    assert main(["plot", *options, "--hops"]) == 0
    out = capsys.readouterr().out
    layout = BlockLayout.from_config(SparsePatternConfig(sparsity_ratio=0.3), 1024)
    hops = layout.hops_to_full_coverage()
    assert 1 < hops <= 8
    assert f"with {hops} layers" in out
    assert f"{hops} layers        connect 100.0% of the block pairs" in out


# The demo's parts.


def test_library_text_is_the_same_every_time_and_bounded() -> None:
    first, second = load_text([], 4096), load_text([], 4096)
    assert torch.equal(first.train, second.train)
    assert torch.equal(first.held_out, second.held_out)
    assert 2**20 < len(first.train) + len(first.held_out) <= 16 * 2**20
    assert not {"site-packages", "test", "tests"} & {part for file in library_files() for part in file.parts}


def test_last_tenth_of_the_users_text_is_held_out(tmp_path: Path) -> None:
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    files[0].write_bytes(b"a" * 500)
    files[1].write_bytes(b"b" * 500)
    text = load_text(files, 64)
    assert bytes(text.train.tolist()) == b"a" * 500 + b"b" * 400
    assert bytes(text.held_out.tolist()) == b"b" * 100


def test_held_out_windows_do_not_overlap_and_reach_the_end() -> None:
    text = torch.arange(250, dtype=torch.uint8)
    windows = even_windows(text, 32, 8)
    assert windows.shape == (7, 33)
    assert (int(windows[0, 0]), int(windows[-1, -1])) == (0, 249)
    assert all(int(a[-1]) <= int(b[0]) for a, b in itertools.pairwise(windows))


def test_learning_rate_rises_then_falls() -> None:
    shares = [learning_rate_share(step, 100) for step in range(100)]
    assert max(shares) == 1.0
    assert shares.index(1.0) == 4
    assert shares[-1] < 0.06
    assert learning_rate_share(0, 1) == 1.0


@torch.no_grad()
def test_bytes_generated_from_the_cache_see_what_the_full_forward_sees() -> None:
    model = make_model(TINY_SETTINGS, "sparse", 0, CPU)
    tokens = torch.randint(256, (1, 75))
    cache = KeyValueCache(75)
    pieces = [model(part, cache) for part in (tokens[:, :33], tokens[:, 33:34], tokens[:, 34:])]
    # float32 sums in another order: relative error of a few times 2**-24 over some dozen operations in a row
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens), rtol=1e-4, atol=1e-5)


def test_same_seed_gives_the_same_weights_with_either_attention() -> None:
    sparse, dense = (make_model(TINY_SETTINGS, kind, 3, CPU) for kind in ("sparse", "dense"))
    assert all(torch.equal(a, b) for a, b in zip(sparse.parameters(), dense.parameters()))


def test_sample_is_the_same_for_the_same_seed() -> None:
    model = make_model(TINY_SETTINGS, "sparse", 0, CPU)
    first, second, other = (model.generate(b"abc", 20, seed=seed) for seed in (1, 1, 2))
    assert first == second != other
    assert len(first) == 20
    assert model.generate(b"abc", 0) == b""


def test_printed_sample_holds_no_control_characters() -> None:
    report = pytest.importorskip("dilated_attention_pytorch.cli.report")
    assert report.readable(b"a\x1b[31m\tb\r\nc\xff\x00") == "a\ufffd[31m\tb\nc\ufffd\ufffd"


@pytest.mark.parametrize(
    ("program", "reason"), [("no-such-python", "no process: "), ("false", "exit status 1: ")]
)
def test_measuring_that_fails_says_so(program: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", program)
    measured = measure(Run(TINY_SETTINGS, "sparse", 64, 1, 0, "cpu", 1))
    assert measured.tokens_per_second is None
    assert (measured.problem or "").startswith(reason)


# The demo itself.


def test_demo_learns_and_writes_everything(
    story: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    output = tmp_path / "new" / "folder"
    options = ["--steps", "30", "--sample-bytes", "20", "--prompt", "the quick", "--output", str(output)]
    assert main(["demo", str(story), *TINY, *options]) == 0

    out = capsys.readouterr().out
    for expected in ("30/30 steps", "block-sparse (ours)", "dense SDPA", "bits per byte", "MiB"):
        assert expected in out
    assert sorted(file.name for file in output.iterdir()) == [
        "loss.png",
        "pattern.png",
        "sample.txt",
        "summary.json",
    ]
    assert all(file.stat().st_size > 20 for file in output.iterdir())

    summary = json.loads((output / "summary.json").read_text("utf-8"))
    nats, bits = summary["held_out"]["nats_per_byte"], summary["held_out"]["bits_per_byte"]
    assert 5.0 < nats["before"] < 6.0
    assert nats["after"] < nats["before"] - 1.0
    assert math.isclose(bits["after"] * math.log(2), nats["after"])
    assert len(summary["training"]["losses"]) == 30
    assert summary["layout"]["num_available_blocks"] == 16 * 17 // 2
    for kind in ("sparse", "dense"):
        assert summary["measured"][kind]["tokens_per_second"] > 0
        assert summary["measured"][kind]["steps"] == 5
    assert (output / "sample.txt").read_text("utf-8").startswith("the quick")


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
