"""Budgets: what does not fit any more is left out and said."""

from __future__ import annotations

from pathlib import Path

import pytest

from attention_bench import budget, cli, report, run
from attention_bench.budget import Budget
from attention_bench.cases import Case
from attention_bench.measure import Row
from attention_bench.peers import Peer


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(budget, "time", made)
    return made


def test_piece_fits_by_the_time_that_it_took(clock: Clock) -> None:
    given = Budget(11.0)
    for seconds in (5.0, 2.0):
        assert given.fits("a")
        with given.spent_on("a"):
            clock.now += seconds
    assert given.left == 4.0
    assert given.fits("a")  # 2 s, its quickest run
    clock.now += 2.5
    assert not given.fits("a")
    assert given.fits("new")
    clock.now += 1.5
    assert not given.fits("new")


def test_without_seconds_everything_fits(clock: Clock) -> None:
    given = Budget(None)
    clock.now = 1e9
    assert given.left is None
    assert given.fits("a")


def test_run_stops_cleanly_and_says_what_it_left_out(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [Case(tokens, 1, 16, 16, 0.5, dtype="float32") for tokens in (64, 128, 192)]
    seen: list[int] = []

    def measured(peers: list[Peer], case: Case, *_: object) -> list[Row]:
        seen.append(case.seqlen)
        clock.now += 4.0
        return [Row(peer.name, case, forward_ms=1.0, backward_ms=2.0) for peer in peers]

    monkeypatch.setattr(run.measure, "measure_in_turn", measured)
    monkeypatch.setitem(run.PRESETS, "cpu", cases)
    file = tmp_path / "figures.json"
    options = ["--device", "cpu", "--peers", "ours", "--rounds", "3", "--budget", "7", "--json", str(file)]
    assert cli.main(options) == 0
    assert seen == [64, 128]
    rows, where = report.read_json(str(file))
    assert [row.case for row in rows] == cases[:2]
    assert where["left_out"] == [cases[2].label]
    printed = capsys.readouterr().out
    assert f"left out, the budget of 7 s was used up: {cases[2].label}\n" in printed
    assert [f"{case.label} ...\n" in printed for case in cases] == [True, True, False]  # as each begins
    assert f"Left out for lack of time: {cases[2].label}." in report.markdown(rows, where)


def test_peers_that_were_left_out_are_named() -> None:
    case, other = (Case(tokens, 1, 16, 16, 0.5, dtype="float32") for tokens in (64, 128))
    found = {(case, name): [Row(name, case)] for name in ("ours", "fa4")} | {
        (other, "ours"): [Row("ours", other)]
    }
    assert run.left_out(found, [case, other], ["ours", "fa4"]) == [f"{other.label}: fa4"]
