"""Short sequences: eager calls and replays of CUDA graphs."""

from __future__ import annotations

from pathlib import Path

import pytest

from attention_bench import cli, markdown, short
from attention_bench.cases import Case
from attention_bench.presets import PRESETS

OPTIONS = ["--seqlen", "64", "--heads", "1", "--head-dim", "16", "--block", "16", "--device", "cpu"]
OPTIONS += ["--rounds", "2", "--calls", "2"]
CASE = Case(64, 1, 16, 16, 0.5, dtype="float32")


def test_command_times_eager_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "short.json")
    peers = ["--peers", "ours", "sdpa", "cudnn"]
    assert cli.main(["short", *OPTIONS, *peers, "--json", file]) == 1  # cudnn measured nothing
    rows, where = short.read_json(file)
    assert [row.peer for row in rows] == ["ours", "sdpa", "cudnn"]
    for row in rows[:2]:
        assert row.refused is None
        assert row.eager_us
        assert row.eager_both_us
        assert row.graph_us is None  # no graphs on a CPU
    assert rows[1].dense
    assert rows[2].refused == "needs a CUDA device"
    printed = capsys.readouterr().out
    assert "ours eager" in printed
    assert "microseconds per call" in printed  # the table at the end
    assert markdown.table(file).startswith("| case | library | forward | in a graph |")
    assert where["command"].startswith("attention-bench short ")


def test_default_peers_are_those_that_serve_a_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(short.DEFAULT_PEERS["cpu"]) == {"ours", "flex", "sdpa"}
    monkeypatch.setitem(short.DEFAULT_PEERS, "cpu", ("ours", "fa4"))  # flex would be compiled
    file = str(tmp_path / "short.json")
    assert cli.main(["short", *OPTIONS, "--json", file]) == 0
    assert {row.peer for row in short.read_json(file)[0]} == {"ours"}
    assert "fa4 is left out: needs a CUDA device" in capsys.readouterr().out


def test_every_pattern_of_the_main_command_is_served(tmp_path: Path) -> None:
    file = str(tmp_path / "short.json")
    for more in (["--window", "40", "--causal"], ["--pattern", "random_topk"]):
        assert cli.main(["short", *OPTIONS, *more, "--peers", "ours", "--json", file]) == 0
        ((row,), _) = short.read_json(file)
        assert row.case.window == (40 if "--window" in more else None)
        assert row.case.pattern == ("local_window" if "--window" in more else "random_topk")


def test_calls_follow_one_another_and_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    calls = [lambda name=name: seen.append(name) for name in "ab"]  # type: ignore[misc]
    short.in_turns(calls, "cpu", rounds=2, n_calls=3)
    assert "".join(seen) == "aaabbb" + "bbbaaa"
    clock = iter([0.0, 6e-6])
    monkeypatch.setattr(short.time, "perf_counter", lambda: next(clock))
    assert short.per_call_us(calls[0], "cpu", 3) == pytest.approx(2.0)


def test_what_is_ahead_of_ours_is_bold() -> None:
    ours = short.ShortRow("ours", CASE, eager_us=20.0, eager_both_us=60.0)
    other = short.ShortRow("fa4", CASE, eager_us=19.0, eager_both_us=61.0)
    shown = short.markdown([ours, other], {"device": "x", "date": "y", "versions": {}, "command": ""})
    assert "| fa4 | **19.0 us** | none | 61.0 us | none |" in shown
    assert "| ours | 20.0 us | none | 60.0 us | none |" in shown
    assert "Bold: less time than `ours`." in shown


def test_kind_that_fails_leaves_the_others() -> None:
    layout = CASE.layout("cpu")

    class Halfway:
        name, heads_first, dense = "halfway", False, False

        def rejects(self, case: Case, device: str) -> None:
            return None

        def prepare(self, case: Case, layout: object) -> object:
            def attend(q, k, v):  # type: ignore[no-untyped-def]
                if q.requires_grad:
                    raise NotImplementedError("it has no backward")
                return q

            return attend

    _, call, _ = short.measure.prepared(Halfway(), CASE, layout, 0.0, "cpu", None)  # type: ignore[arg-type]
    assert call is not None
    row = short.ShortRow("halfway", CASE)
    assert list(short.kinds(row, call, "cpu")) == ["eager_us"]
    assert row.refused == "eager both: NotImplementedError: it has no backward"


def test_preset_has_the_sizes_that_are_promised() -> None:
    sizes = {(case.seqlen, case.heads) for case in PRESETS["short"]}
    assert sizes == {(tokens, heads) for tokens in (2048, 4096, 8192, 16384) for heads in (4, 8, 16, 32)}
