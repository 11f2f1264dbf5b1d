"""Cases and presets of the benchmark."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from attention_bench import files, report
from attention_bench.cases import RANDOM, Case
from attention_bench.measure import Row
from attention_bench.presets import PRESETS

# (tokens, heads, head_dim, block, density): the cases for which there are goals, in order.
GOALS = [
    (131072, 16, 128, 128, 0.05),
    (131072, 16, 128, 128, 0.01),
    (131072, 16, 128, 64, 0.05),
    (131072, 16, 128, 64, 0.01),
    (131072, 32, 64, 128, 0.05),
    (131072, 32, 64, 128, 0.01),
    (131072, 32, 64, 64, 0.05),
    (16384, 16, 128, 128, 0.05),
    (16384, 16, 128, 128, 0.01),
]


def test_case_counts_active_pairs_by_hand() -> None:
    case = Case(256, 2, 16, 64, 1.0, causal=True)
    layout = case.layout("cpu")
    assert case.token_pairs(layout) == case.dense_pairs() == 256 * 257 // 2
    assert case.flops(10) == 4 * 2 * 10 * 16


def test_random_rows_keep_as_many_blocks_and_their_diagonal() -> None:
    case = Case(640, 4, 16, 64, 0.35, kv_heads=2, pattern=RANDOM)
    layout = case.layout("cpu")
    assert layout.num_heads == 2
    rows = [layout.rows(head) for head in range(2)]
    assert rows[0] != rows[1]
    for head in rows:
        assert all(len(row) == 3 and i in row for i, row in enumerate(head))
    assert case.token_pairs(layout) == 10 * 3 * 64**2
    assert layout.rows() == case.layout("cpu").rows()  # the same in every round
    causal = replace(case, causal=True).layout("cpu")
    assert all(row[-1] == i and len(row) == min(3, i + 1) for i, row in enumerate(causal.rows(1)))


def test_exact_window_counts_what_it_shows() -> None:
    case = Case(256, 2, 16, 64, 1.0, pattern="local_window", causal=True, window=100)
    assert case.token_pairs(case.layout("cpu")) == 100 * 101 // 2 + 156 * 100
    assert case.token_pairs(replace(case, window=None).layout("cpu")) == case.dense_pairs()


def test_v_of_another_head_dim_counts_by_hand() -> None:
    case = Case(256, 2, 16, 64, 1.0, v_head_dim=8)
    assert case.flops(10) == 2 * 2 * 10 * (16 + 8)
    q, k, v = case.inputs("cpu")
    assert (q.shape[-1], k.shape[-1], v.shape[-1], case.grad_out("cpu").shape[-1]) == (16, 16, 8, 8)


def test_token_dilation_counts_whole_blocks() -> None:
    case = Case(256, 2, 16, 64, 0.5)
    dilated = replace(case, segment_lengths=(64, 128), dilation_rates=(1, 4))
    assert dilated.token_pairs(dilated.layout("cpu")) == case.token_pairs(case.layout("cpu"))


@pytest.mark.parametrize(
    ("case", "label"),
    [
        (Case(4096, 4, 64, 64, 0.05, causal=True), "4,096 tokens, 4 x 64, block 64, 5.00% causal"),
        (Case(4096, 4, 64, 64, 0.05, kv_heads=2, batch=3), "3 x 4,096 tokens, 4:2 x 64, block 64, 5.00%"),
        (Case(4096, 4, 64, 64, 1.0, pattern="global_local"), "4,096 tokens, 4 x 64, block 64, 100.00%, global_local"),
        (Case(4096, 4, 64, 64, 0.1, pattern_rates=(2, 3)), "4,096 tokens, 4 x 64, block 64, 10.00%, rates 2 3"),
        (
            Case(4096, 4, 64, 64, 0.1, segment_lengths=(64, 128), dilation_rates=(1, 2)),
            "4,096 tokens, 4 x 64, block 64, 10.00%, token dilation 64:1 128:2",
        ),
        (Case(4096, 4, 64, 64, 0.1, pattern=RANDOM), "4,096 tokens, 4 x 64, block 64, 10.00%, random"),
        (
            Case(4096, 4, 64, 64, 1.0, pattern="local_window", causal=True, window=1000),
            "4,096 tokens, 4 x 64, block 64, window 1,000 causal",
        ),
        (Case(4096, 4, 192, 64, 0.1, v_head_dim=128), "4,096 tokens, 4 x 192 (v 128), block 64, 10.00%"),
    ],
)  # fmt: skip
def test_label_names_what_is_special(case: Case, label: str) -> None:
    assert case.label == label


def test_bad_case_names_the_argument() -> None:
    with pytest.raises(ValueError, match="kv_heads must divide heads 4, got 3"):
        Case(256, 4, 16, 64, 0.1, kv_heads=3)
    with pytest.raises(ValueError, match="window needs pattern 'local_window', got 'dilated_sparse'"):
        Case(256, 4, 16, 64, 0.1, window=64)
    with pytest.raises(ValueError, match="got 'random_topk'"):
        Case(256, 4, 16, 64, 0.1, causal=True, decode=True, pattern=RANDOM)
    with pytest.raises(ValueError, match="dilation_rates must divide block_size 64, got 3"):
        Case(256, 4, 16, 64, 0.1, segment_lengths=(64, 128), dilation_rates=(1, 3))


def test_case_is_read_back_from_json(tmp_path: Path) -> None:
    case = Case(256, 2, 16, 64, 0.1, segment_lengths=(64, 128), dilation_rates=(1, 4), pattern_rates=None)
    rows = [Row("ours", case, forward_ms=1.5)]
    file = str(tmp_path / "rows.json")
    report.write_json(file, rows, {"device": "x"})
    assert report.read_json(file) == (rows, {"device": "x"})
    assert len({case, report.read_json(file)[0][0].case}) == 1


def test_file_of_before_token_dilation_is_read(tmp_path: Path) -> None:
    case = {"seqlen": 256, "heads": 2, "head_dim": 16, "block": 64, "density": 0.1, "causal": True}
    file = tmp_path / "old.json"
    file.write_text(json.dumps({"environment": {}, "rows": [{"peer": "ours", "case": case}]}))
    rows, _ = report.read_json(str(file))
    assert rows == [Row("ours", Case(256, 2, 16, 64, 0.1, causal=True))]


def test_file_of_another_command_is_refused(tmp_path: Path) -> None:
    file = str(tmp_path / "host.json")
    files.write(file, "host", [], {})
    with pytest.raises(ValueError, match="kind 'host', expected 'run'"):
        report.read_json(file)


def test_presets_have_the_cases_of_the_goals_in_order() -> None:
    def shapes(name: str) -> list[tuple[int, int, int, int, float]]:
        return [(case.seqlen, case.heads, case.head_dim, case.block, case.density) for case in PRESETS[name]]

    assert shapes("goals") == GOALS
    assert set(shapes("kernels")) > set(GOALS)
    assert len({case.label for case in PRESETS["breakeven"]}) == len(PRESETS["breakeven"]) == 16


def test_presets_have_the_sizes_that_are_promised() -> None:
    def sizes(name: str) -> set[tuple[int, int, int, float]]:
        cases = PRESETS[name]
        assert all(case.pattern == RANDOM for case in cases)
        return {(case.seqlen, case.heads, case.block, case.density) for case in cases}

    long, short = (131072, 16), (32768, 16)
    assert sizes("topk") == {
        *((*long, 128, density) for density in (0.05, 0.1)),
        *((*long, 64, density) for density in (0.01, 0.05, 0.1)),
        *((*short, 64, density) for density in (0.05, 0.1)),
    }
    assert sizes("video") == {(92160, 40, 128, 0.1), (92160, 40, 64, 0.1), (40768, 16, 64, 0.1)}
    practical = {(case.batch, case.seqlen, case.density) for case in PRESETS["practical"]}
    assert practical >= {(8, 2048, 0.25), (4, 4096, 0.25), (1, 32768, 0.05)}
    assert all(
        case.causal and (case.heads, case.kv_heads, case.head_dim) == (32, 8, 128)
        for case in PRESETS["practical"]
    )


def test_every_feature_stands_beside_the_case_without_it() -> None:
    cases = PRESETS["features"]
    plain = {"causal": False, "kv_heads": None, "pattern": "dilated_sparse", "segment_lengths": None}
    special = [case for case in cases if any(getattr(case, name) != value for name, value in plain.items())]
    assert len(special) == 5
    for case in special:
        assert replace(case, **plain, dilation_rates=None) in cases


def test_token_dilation_is_timed_mostly_where_it_acts() -> None:
    case = next(case for case in PRESETS["features"] if case.segment_lengths is not None)
    _, rows, cols = case.layout("cpu").coo()
    assert float(((rows - cols).abs() * case.block >= 2048).double().mean()) > 0.9
