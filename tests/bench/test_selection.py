"""Blocks chosen from the content: every part of a call is timed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from attention_bench import cli, markdown, selection
from attention_bench.cases import Case
from dilated_attention_pytorch import BlockLayout

SMALL = ["--seqlen", "128", "--heads", "2", "--head-dim", "16", "--block", "16", "--device", "cpu"]
SMALL += ["--rounds", "2"]


def test_command_times_every_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "selection.json")
    assert cli.main(["selection", *SMALL, "--density", "0.25", "--causal", "--json", file]) == 0
    rows, where = selection.read_json(file)
    assert tuple(row.peer for row in rows) == selection.PARTS
    for row in rows:
        assert row.refused is None
        assert row.ms
        assert row.host_us
        assert row.of_attention
        assert row.case.causal
    assert next(row for row in rows if row.peer == "attention").of_attention == 1.0
    assert "128 tokens, 2 x 16, block 16, 25.00% causal: select_blocks" in capsys.readouterr().out
    assert markdown.table(file).startswith("| case | part | time | of attention |")
    assert where["command"].startswith("attention-bench selection ")


@pytest.mark.parametrize("causal", [False, True])
def test_together_is_the_parts_one_after_the_other(causal: bool) -> None:
    case = Case(128, 2, 16, 16, 0.25, dtype="float32", causal=causal)
    parts = selection.Parts(case, "cpu")
    calls = parts.calls()
    assert set(calls) == set(selection.PARTS)
    layout = calls["from_indices"]()
    assert isinstance(layout, BlockLayout)
    n_rows = 128 // 16
    kept = [min(2, row + 1) if causal else 2 for row in range(n_rows)]
    assert [len(row) for row in layout.rows()] == kept
    torch.testing.assert_close(calls["together"](), calls["attention"](), rtol=0, atol=0)


def test_density_is_rounded_down_as_it_is_written() -> None:
    assert Case(100 * 64, 1, 64, 64, 0.29).blocks_per_row == 29  # 0.29 * 100 < 29 in binary
    assert Case(64, 1, 64, 64, 0.1).blocks_per_row == 1


def test_part_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def too_large(*args: object, **options: object) -> None:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(selection, "block_scores", too_large)
    assert cli.main(["selection", *SMALL]) == 1
    printed = capsys.readouterr()
    assert printed.err.count("measured nothing: RuntimeError: can't allocate memory") == 5
