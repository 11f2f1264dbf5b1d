"""Python time of a call."""

from __future__ import annotations

from pathlib import Path

import pytest

from attention_bench import cli, documents, host

SMALL = ["--seqlen", "64", "--heads", "1", "--head-dim", "16", "--block", "16", "--device", "cpu"]
SMALL += ["--calls", "2", "--repeats", "3"]


def test_command_times_three_kinds_of_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "host.json")
    assert cli.main(["host", *SMALL, "--peers", "ours", "sdpa", "fa4", "--json", file]) == 0
    rows, where = host.read_json(file)
    assert [row.peer for row in rows] == ["ours", "sdpa", "fa4"]
    for row in rows[:2]:
        assert row.refused is None
        assert row.forward_us
        assert row.forward_grad_us
        assert row.backward_us
        assert (row.calls, row.repeats) == (2, 3)
    assert rows[0].case.dtype == "float32"
    assert rows[2].refused == "needs a CUDA device"
    assert "refused: needs a CUDA device" in capsys.readouterr().out
    assert where["command"].startswith("attention-bench host ")
    assert documents.markdown(file).startswith("| case | library |")


def test_call_us_is_the_median_per_call(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 1_000, 10_000, 40_000, 100_000, 102_000])
    monkeypatch.setattr(host.time, "perf_counter_ns", lambda: next(clock))
    calls: list[None] = []
    assert host.call_us(lambda: calls.append(None), "cpu", calls=2, repeats=3) == 1.0
    assert len(calls) == 2 + 3 * 2
