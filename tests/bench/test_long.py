"""One long problem without peers, at a size for a CPU."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from attention_bench import cli, large, markdown, spot_check, timing
from attention_bench.cases import Case
from dilated_attention_pytorch import block_sparse_attention

SMALL = ["--seqlen", "1000", "--heads", "4", "--head-dim", "16", "--block", "32", "--density", "0.2"]
SMALL += ["--device", "cpu", "--repeats", "1"]


def test_command_measures_checks_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "long.json")
    assert cli.main(["long", *SMALL, "--json", file]) == 0
    (row,), where = large.read_json(file)
    assert row.forward_ms
    assert row.both_ms
    assert row.layout_ms
    assert row.layout_bytes
    assert row.gradients_finite is True
    assert row.forward_total_bytes is None  # a CPU does not count
    assert {(query.position, query.head) for query in row.queries} == {
        (position, head) for position in (0, 333, 666, 999) for head in (0, 3)
    }
    assert row.largest_error is not None
    assert row.largest_error < 1e-5
    assert row.case.pattern_rates is None
    assert where["command"].endswith("--json long.json")
    assert "gradients: finite" in capsys.readouterr().out
    assert "| 1,000 tokens, 4 x 16, block 32, 20.00%, rates 1 2 4 ... |" in markdown.table(file)


def test_forward_only_has_no_gradients(tmp_path: Path) -> None:
    file = str(tmp_path / "long.json")
    assert cli.main(["long", *SMALL, "--forward-only", "--dilation-rates", "1,2,4,8", "--json", file]) == 0
    (row,), _ = large.read_json(file)
    assert row.both_ms is None
    assert row.gradients_finite is None
    assert row.case.pattern_rates == (1, 2, 4, 8)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dilation", [{}, {"segment_lengths": (64, 128), "dilation_rates": (1, 4)}])
def test_expected_output_is_that_of_the_reference(causal: bool, dilation: dict) -> None:
    case = Case(300, 4, 16, 32, 0.4, kv_heads=2, causal=causal, dtype="float32", **dilation)
    layout = case.layout("cpu")
    q, k, v = case.inputs("cpu")
    out = block_sparse_attention(q, k, v, layout, is_causal=causal, backend="reference", **dilation)
    for query in spot_check.query_errors(case, layout, q, k, v, out):
        assert query.error < 1e-5, query


def test_wrong_output_and_infinite_gradients_fail() -> None:
    case = Case(300, 2, 16, 32, 0.4, dtype="float32")
    layout, row = large.prepare(case, "cpu")
    q, k, v = case.inputs("cpu")
    row.queries = spot_check.query_errors(case, layout, q, k, v, q)
    assert row.failure() is not None
    assert "out is off by" in str(row.failure())
    row.queries = [spot_check.QueryError(0, 0, math.nan)]
    assert "out is off by nan" in str(row.failure())
    row.queries = []
    assert row.failure() is None
    row.gradients_finite = False
    assert row.failure() == "a gradient is not finite"


def test_all_finite_looks_at_every_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spot_check, "PIECE", 8)
    x = torch.zeros(1, 5, 2, 2)
    assert spot_check.all_finite(x)
    x[0, 4, 1, 1] = torch.inf
    assert not spot_check.all_finite(x)


def test_no_two_results_of_a_timed_call_are_there_at_once() -> None:
    class Result:
        alive = 0

        def __init__(self) -> None:
            Result.alive += 1
            assert Result.alive == 1

        def __del__(self) -> None:
            Result.alive -= 1

    result, figures = timing.timed(Result, "cpu", repeats=3)
    assert isinstance(result, Result)
    assert figures.ms >= 0


def test_failure_keeps_what_was_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def out_of_memory(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(large, "measure_both", out_of_memory)
    file = str(tmp_path / "long.json")
    assert cli.main(["long", *SMALL, "--json", file]) == 1
    (row,), _ = large.read_json(file)
    assert row.forward_ms
    assert row.refused == "backward: OutOfMemoryError: CUDA out of memory"
