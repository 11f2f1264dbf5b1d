"""The benchmark tool: peers, figures and files."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from attention_bench import cli, plots, report, run
from attention_bench.cases import Case
from attention_bench.measure import Row, build, measure, median_row, turns
from attention_bench.peers import PEERS, Peer

SMALL = ["--seqlen", "256", "--heads", "2", "--head-dim", "16", "--block", "16", "--density", "0.2"]
SMALL += ["--dtype", "float32", "--device", "cpu", "--repeat-ms", "1"]


def test_run_writes_rows_that_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    peers = ["--peers", "ours", "ours-cpu", "ours-reference", "sdpa", "fa4"]
    assert cli.main([*SMALL, *peers, "--json", str(file)]) == 1  # fa4 measured nothing
    rows, where = report.read_json(str(file))
    assert [row.peer for row in rows] == ["ours", "ours-cpu", "ours-reference", "sdpa", "fa4"]
    for row in rows[:3]:
        assert row.refused is None
        assert row.error is not None
        assert row.error < 1e-5
        assert row.forward_ms
        assert row.backward_ms
        assert row.forward_tflops
        assert row.mask_ms
    assert rows[3].dense
    assert rows[3].error is None
    assert rows[4].refused is not None
    assert rows[4].refused.startswith("needs a CUDA device")
    assert where["versions"]["torch"] == torch.__version__
    printed = capsys.readouterr()
    assert "refused" in printed.out
    assert printed.err == f"attention-bench: fa4 measured nothing: {rows[4].refused}\n"
    written = plots.plot(rows, where, str(tmp_path / "plots"))
    assert [path.name for path in written] == ["forward.png", "backward.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_rounds_are_one_row_of_medians_per_case_and_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([5.0, 50.0, 10.0, 1.0, 2.0, 20.0])  # in the second round the other peer is first

    def measured(peers: list[Peer], case: Case, *_: object) -> list[Row]:
        found = [(peer, next(times)) for peer in peers]
        return [
            Row(peer.name, case, forward_ms=ms, backward_ms=2 * ms, forward_tflops=1 / ms)
            for peer, ms in found
        ]

    monkeypatch.setattr(run.measure, "measure_in_turn", measured)
    file = tmp_path / "figures.json"
    arguments = [*SMALL, "--peers", "ours", "ours-reference", "--rounds", "3", "--json", str(file)]
    assert cli.main(arguments) == 0
    rows, where = report.read_json(str(file))
    assert [(row.peer, row.forward_ms, row.backward_ms) for row in rows] == [
        ("ours", 2.0, 4.0), ("ours-reference", 20.0, 40.0),
    ]  # fmt: skip
    assert "--rounds 3" in where["command"]
    with pytest.raises(SystemExit):
        cli.main([*SMALL, "--rounds", "0"])


def test_calls_on_a_cpu_take_turns() -> None:
    seen: list[str] = []
    times = turns([lambda: seen.append("a"), lambda: (seen.append("b"), time.sleep(0.002))], 0.0)
    assert seen == ["a", "b"] * 7
    assert times[0] < 2.0 <= times[1]


def test_second_round_of_flex_follows_the_mask(tmp_path: Path) -> None:
    """After the first its backward has failed, and dynamo would run the dense version."""
    file = tmp_path / "figures.json"
    assert cli.main([*SMALL, "--peers", "ours", "flex", "--rounds", "2", "--json", str(file)]) == 0
    _, flex = report.read_json(str(file))[0]
    assert flex.refused is not None
    assert flex.error is not None
    assert flex.error < 1e-5


def test_medians_of_rounds() -> None:
    case = Case(64, 1, 16, 16, 0.5, dtype="float32")
    rows = [
        Row("ours", case, False, 3.0, 30.0, 1.0, 0.1, 5, 1.0, 0.5),
        Row("ours", case, False, 1.0, 10.0, 3.0, 0.3, 7, 3.0, 0.25),
        Row("ours", case, False, 2.0, None, 1.5, None, None, None, None, "backward: out of memory"),
    ]
    merged = Row("ours", case, False, 2.0, 20.0, 1.5, 0.2, 7, 2.0, 0.5, "backward: out of memory")
    assert median_row(rows) == merged
    assert median_row(rows[:1]) == rows[0]


def test_peer_that_fails_is_a_row_with_its_reason() -> None:
    class Failing:
        name, heads_first, dense = "failing", False, False

        def rejects(self, case: Case, device: str) -> None:
            return None

        def prepare(self, case: Case, layout: object) -> object:
            raise RuntimeError("no such kernel\nand more")

    case = Case(64, 1, 16, 16, 0.5, dtype="float32")
    layout, layout_ms = build(case, "cpu")
    row, _ = measure(Failing(), case, layout, layout_ms, "cpu", None, 1.0, True)  # type: ignore[arg-type]
    assert row.refused == "RuntimeError: no such kernel"


def test_backward_that_fails_keeps_the_forward_and_says_why() -> None:
    class Halfway:
        name, heads_first, dense = "halfway", False, False

        def rejects(self, case: Case, device: str) -> None:
            return None

        def prepare(self, case: Case, layout: object) -> object:
            def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
                if q.requires_grad:
                    raise NotImplementedError("block size 128 only, see /some/folder/kernel.py")
                return q

            return attend

    case = Case(64, 1, 16, 16, 0.5, dtype="float32")
    layout, layout_ms = build(case, "cpu")
    row, _ = measure(Halfway(), case, layout, layout_ms, "cpu", None, 1.0, True)  # type: ignore[arg-type]
    assert row.refused == "backward: NotImplementedError: block size 128 only, see kernel.py"
    assert row.forward_ms
    assert row.backward_ms is None


def test_peers_without_token_dilation_say_so(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    dilation = ["--segment-lengths", "32,64", "--token-rates", "1,4", "--forward-only"]
    peers = ["--peers", "ours", "ours-reference", "flex"]
    assert cli.main([*SMALL, *dilation, *peers, "--json", str(file)]) == 1  # flex measured nothing
    rows, _ = report.read_json(str(file))
    assert rows[1].error is not None
    assert rows[1].error < 1e-5
    assert rows[2].refused == "no token dilation: its lists hold whole blocks"
    assert PEERS["fa4"].rejects(rows[0].case, "cuda") == rows[2].refused
    assert rows[0].case.label.endswith(", token dilation 32:1 64:4")


def test_flex_agrees_with_ours_on_the_same_mask() -> None:
    case = Case(256, 2, 16, 128, 0.5, dtype="float32", causal=True)
    layout, layout_ms = build(case, "cpu")
    _, expected = measure(PEERS["ours"], case, layout, layout_ms, "cpu", None, 1.0, False)
    row, _ = measure(PEERS["flex"], case, layout, layout_ms, "cpu", expected, 1.0, False)
    assert row.refused is None, row.refused
    assert row.error is not None
    assert row.error < 1e-5


def test_what_is_ahead_of_ours_is_bold() -> None:
    case = Case(256, 2, 16, 64, 0.1)
    rows = [
        Row("ours", case, forward_ms=2.0, backward_ms=4.0, forward_tflops=20.0, backward_tflops=25.0),
        Row("bsa", case, forward_ms=1.0, backward_ms=4.5, forward_tflops=40.0, backward_tflops=22.0),
        Row("ours-unordered", case, forward_ms=1.9, forward_tflops=21.0),  # ours, too
    ]
    where = {"device": "x", "date": "y", "versions": {}, "command": ""}
    shown = report.markdown(rows, where)
    assert "| 2 ms (20) / 4 ms (25) | **1 ms (40)** / 4.5 ms (22) | 1.9 ms (21) / none |" in shown
    assert "Bold: less time than `ours`." in shown
    assert "**" not in report.markdown(rows[:1], where)


def test_json_is_read_back_as_written(tmp_path: Path) -> None:
    rows = [Row("ours", Case(256, 2, 16, 64, 0.1), forward_ms=1.5, refused=None)]
    file = tmp_path / "b.json"
    report.write_json(str(file), rows, {"device": "x"})
    assert report.read_json(str(file)) == (rows, {"device": "x"})
    assert json.loads(file.read_text())["rows"][0]["case"]["seqlen"] == 256


def test_every_command_explains_itself() -> None:
    for command, parser in cli.parsers().items():
        assert parser.format_help().startswith(f"usage: {command} ")
