"""Python time of a call."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from attention_bench import cli, files, host, host_overhead, markdown
from attention_bench.cases import Case
from attention_bench.peers import PEERS
from dilated_attention_pytorch import BlockLayout

RESULTS = Path(__file__).parents[2] / "tools/attention-bench/results"
SMALL = ["--seqlen", "64", "--heads", "1", "--head-dim", "16", "--block", "16", "--device", "cpu"]
SMALL += ["--calls", "2", "--repeats", "3"]


def test_command_times_three_kinds_of_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "host.json")
    # fa4 measured nothing.
    assert cli.main(["host", *SMALL, "--peers", "ours", "sdpa", "fa4", "--json", file]) == 1
    rows, where = host.read_json(file)
    assert [row.peer for row in rows] == ["ours", "sdpa", "fa4"]
    for row in rows[:2]:
        assert row.refused is None
        assert row.forward_us
        assert row.forward_grad_us
        assert row.backward_us
        assert (row.calls, row.repeats) == (2, 3)
    for row in rows:
        # No backend `hopper` on a CPU.
        assert (row.forward_floor_us, row.forward_grad_floor_us) == (None, None)
    assert rows[0].case.dtype == "float32"
    assert rows[2].refused is not None
    assert rows[2].refused.startswith("needs a CUDA device")
    shown = capsys.readouterr().out
    assert "refused: needs a CUDA device" in shown
    assert "of Python" not in shown
    assert where["command"].startswith("attention-bench host ")
    assert markdown.table(file).startswith("| case | library |")


def test_call_us_is_the_median_per_call(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 1_000, 10_000, 40_000, 100_000, 102_000])
    monkeypatch.setattr(host.time, "perf_counter_ns", lambda: next(clock))
    calls: list[None] = []
    assert host.call_us(lambda: calls.append(None), "cpu", calls=2, repeats=3) == 1.0
    assert len(calls) == 2 + 3 * 2


# ---- how much of it is Python

CASE = Case(64, 1, 16, 16, 0.5, dtype="float32")
MEASURED = host.HostRow("ours", CASE, 1000, 5, 20.0, 33.5, 120.0, 9.25, 21.5)
WHERE = {"device": "a GPU", "date": "today", "versions": {}, "command": "attention-bench host"}


def test_python_is_what_the_total_has_above_the_floor() -> None:
    assert MEASURED.forward_python_us == 10.75
    assert MEASURED.forward_grad_python_us == 12.0
    for missing in ("forward_us", "forward_floor_us"):
        row = dataclasses.replace(MEASURED, **{missing: None})
        assert row.forward_python_us is None
        assert row.forward_grad_python_us == 12.0


def test_python_is_shown_beside_the_total() -> None:
    assert host.line(MEASURED) == (
        f"{CASE.label}: ours forward 20.0 us (10.8 us of Python), with gradients 33.5 us (12.0 us of Python), "
        "backward 120.0 us a call"
    )
    without = dataclasses.replace(MEASURED, peer="sdpa", forward_floor_us=None, forward_grad_floor_us=None)
    assert host.markdown([MEASURED, without], WHERE).splitlines()[2:4] == [
        f"| {CASE.label} | ours | 20.0 us (10.8 us of Python) | 33.5 us (12.0 us of Python) | 120.0 us |",
        f"| {CASE.label} | sdpa | 20.0 us | 33.5 us | 120.0 us |",
    ]


def test_floors_are_kept_in_the_file(tmp_path: Path) -> None:
    file = str(tmp_path / "host.json")
    files.write(file, host.KIND, [MEASURED], WHERE)
    assert host.read_json(file) == ([MEASURED], WHERE)


def test_files_of_before_have_no_floors(tmp_path: Path) -> None:
    content = json.loads((RESULTS / "h200-host.json").read_text())
    for row in content["rows"]:
        row.pop("forward_floor_us", None)
        row.pop("forward_grad_floor_us", None)
    file = tmp_path / "before.json"
    file.write_text(json.dumps(content))
    (row,), _ = host.read_json(str(file))
    assert row.forward_us == content["rows"][0]["forward_us"]
    assert row.forward_python_us is None
    assert "of Python" not in markdown.table(str(file))


def test_floor_is_measured_of_ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Case] = []
    with_grad: list[bool] = []  # of every call of the bare forward

    def prepare(case: Case, layout: BlockLayout, *inputs: torch.Tensor) -> host_overhead.Forward:
        asked.append(case)

        def bare() -> tuple[torch.Tensor, torch.Tensor]:
            with_grad.append(any(x.requires_grad for x in inputs))
            return torch.empty(1), torch.empty(1)

        return bare

    monkeypatch.setattr(host.host_overhead, "prepare", prepare)
    row = host.measure(PEERS["ours"], CASE, "cpu", 2, 3)
    assert row.refused is None
    assert row.forward_floor_us
    assert row.forward_grad_floor_us
    assert with_grad == [False] * (2 + 3 * 2) + [True] * (2 + 3 * 2)
    for other in ("ours-cpu", "sdpa"):
        row = host.measure(PEERS[other], CASE, "cpu", 2, 3)
        assert row.refused is None
        assert (row.forward_floor_us, row.forward_grad_floor_us) == (None, None)
    assert asked == [CASE]
