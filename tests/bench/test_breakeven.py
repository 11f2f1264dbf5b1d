"""The density at which dense attention is as fast."""

from __future__ import annotations

from pathlib import Path

import pytest

from attention_bench import cli, report
from attention_bench.breakeven import crossing, lines
from attention_bench.cases import Case
from attention_bench.measure import Row


def rows(times: dict[float, tuple[float, float | None]], dense: float = 4.0) -> list[Row]:
    made = []
    for density, (forward_ms, backward_ms) in times.items():
        case = Case(16384, 16, 128, 128, density)
        made.append(Row("ours", case, forward_ms=forward_ms, backward_ms=backward_ms))
        made.append(Row("cudnn", case, dense=True, forward_ms=dense, backward_ms=2 * dense))
    return made


def test_crossing_is_between_the_measured_densities() -> None:
    assert crossing([(0.2, 1.0), (0.6, 3.0), (1.0, 5.0)], 4.0) == pytest.approx(0.8)
    assert crossing([(0.2, 1.0), (0.6, 3.0)], 4.0) is None
    assert crossing([(0.2, 5.0), (0.6, 6.0)], 4.0) == 0.2


def test_line_has_forward_and_the_sum_with_backward() -> None:
    found = lines(rows({0.5: (2.0, 4.0), 1.0: (6.0, 10.0), 0.1: (0.5, 1.0)}), "ours", "cudnn")
    assert found == [
        "- 16,384 tokens, 16 x 128, block 128: ours takes less time than dense cudnn: forward up to 75% of the "
        "blocks (cudnn: 4 to 4 ms, median 4); forward and backward up to 80% of the blocks (cudnn: 12 to 12 ms, median 12)."
    ]


def test_line_without_a_crossing_says_so() -> None:
    assert (
        "forward at every density up to 100% (cudnn: 4 to 4 ms, median 4)."
        in lines(rows({0.1: (1.0, None), 1.0: (3.0, None)}), "ours", "cudnn")[0]
    )
    assert (
        "forward not even at 10% of the blocks (cudnn: 4 to 4 ms, median 4)."
        in lines(rows({0.1: (5.0, None), 1.0: (6.0, None)}), "ours", "cudnn")[0]
    )


def test_command_reads_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "run.json")
    report.write_json(file, rows({0.1: (1.0, 2.0), 1.0: (5.0, 10.0)}), {})
    assert cli.main(["breakeven", file]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert cli.main(["breakeven", file, "--dense", "cuddn"]) == 2
    assert "no peer 'cuddn'; did you mean 'cudnn'? (its peers: ours, cudnn)" in capsys.readouterr().err
    report.write_json(file, rows({0.1: (1.0, 2.0)}), {})
    assert cli.main(["breakeven", file]) == 2
    assert "no case at several densities with the peers ours, cudnn" in capsys.readouterr().err
