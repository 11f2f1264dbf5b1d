"""The benchmark tool: cases, peers, figures and files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from attention_bench import cli, plots, report
from attention_bench.cases import PRESETS, Case
from attention_bench.measure import Row, build, measure
from attention_bench.peers import PEERS

SMALL = ["--seqlen", "256", "--heads", "2", "--head-dim", "16", "--block", "16", "--density", "0.2"]
SMALL += ["--dtype", "float32", "--device", "cpu", "--repeat-ms", "1"]


def test_case_counts_active_pairs_by_hand() -> None:
    case = Case(256, 2, 16, 64, 1.0, causal=True)
    layout = case.layout("cpu")
    assert case.token_pairs(layout) == case.dense_pairs() == 256 * 257 // 2
    assert case.flops(10) == 4 * 2 * 10 * 16


def test_presets_have_the_cases_of_the_kernel_table() -> None:
    shapes = {
        (case.seqlen, case.heads, case.head_dim, case.block, case.density) for case in PRESETS["kernels"]
    }
    assert (131072, 16, 128, 128, 0.05) in shapes
    assert (16384, 16, 128, 128, 0.01) in shapes
    assert len(shapes) >= 9


def test_bad_case_names_the_argument() -> None:
    with pytest.raises(ValueError, match="kv_heads must divide heads 4, got 3"):
        Case(256, 4, 16, 64, 0.1, kv_heads=3)


def test_run_writes_rows_that_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    peers = ["--peers", "ours", "ours-cpu", "ours-reference", "sdpa", "fa4"]
    assert cli.main([*SMALL, *peers, "--json", str(file)]) == 0
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
    assert rows[4].refused == "needs a CUDA device"
    assert where["versions"]["torch"] == torch.__version__
    assert "refused" in capsys.readouterr().out
    written = plots.plot(rows, where, str(tmp_path / "plots"))
    assert [path.name for path in written] == ["forward.png", "backward.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


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


def test_flex_agrees_with_ours_on_the_same_mask() -> None:
    case = Case(256, 2, 16, 128, 0.5, dtype="float32", causal=True)
    layout, layout_ms = build(case, "cpu")
    _, expected = measure(PEERS["ours"], case, layout, layout_ms, "cpu", None, 1.0, False)
    row, _ = measure(PEERS["flex"], case, layout, layout_ms, "cpu", expected, 1.0, False)
    assert row.refused is None, row.refused
    assert row.error is not None
    assert row.error < 1e-5


def test_json_is_read_back_as_written(tmp_path: Path) -> None:
    rows = [Row("ours", Case(256, 2, 16, 64, 0.1), forward_ms=1.5, refused=None)]
    file = tmp_path / "a" / "b.json"
    report.write_json(str(file), rows, {"device": "x"})
    assert report.read_json(str(file)) == (rows, {"device": "x"})
    assert json.loads(file.read_text())["rows"][0]["case"]["seqlen"] == 256


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--heads", "3", "--kv-heads", "2", "--device", "cpu"], "kv_heads must divide heads 3, got 2"),
        (["--block", "48", "--device", "cpu"], "block_size must be one of"),
        (["plot", "missing.json"], "cannot read missing.json"),
        (["tune"], "needs a CUDA GPU"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments == ["tune"] and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err
