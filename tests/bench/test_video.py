"""Tiles of a video beside dense attention."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attention_bench import cli, markdown, video
from attention_bench.video import SHAPES, Tiles, VideoCase

GRID = ["--grid", "2,4,8", "--heads", "1", "--head-dim", "16", "--device", "cpu", "--rounds", "2"]


def test_command_times_tiles_beside_dense_attention(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "video.json")
    choices = ["--text", "5", "--tiles", "2,4,4", "--windows", "1,1,1", "--densities", "0.5"]
    assert cli.main(["video", *GRID, *choices, "--json", file]) == 0
    rows, where = video.read_json(file)
    assert [row.peer for row in rows] == ["sdpa", "window 1x1x1, tiles 2x4x4", "best 50.00%, tiles 2x4x4"]
    for row in rows:
        assert row.case == VideoCase((2, 4, 8), 1, 16, 5, "float32")
        assert row.refused is None
        assert row.forward_ms
        assert row.both_ms
        assert row.dense_forward_ms == rows[0].forward_ms
        assert row.dense_both_ms == rows[0].both_ms
    # every tile of 32 tokens is a block, and sees itself and the block of text
    assert [row.density for row in rows] == [1.0, 2 / 3, 0.5]
    assert "2x4x8 and 5 of text: 69 tokens, 1 x 16: sdpa, 100.00% kept" in capsys.readouterr().out
    assert markdown.table(file).startswith("| case | attention | blocks kept | forward |")
    assert where["command"].startswith("attention-bench video ")


def test_tile_that_cannot_be_cut_into_blocks_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    choices = ["--tiles", "1,1,1", "--windows", "1,1,1", "--densities", "--forward-only"]
    assert cli.main(["video", *GRID, *choices]) == 1
    assert "window 1x1x1, tiles 1x1x1 measured nothing: ValueError: " in capsys.readouterr().err


def test_backward_that_fails_leaves_the_forward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_large(*args: object) -> None:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(torch.autograd, "grad", too_large)
    file = str(tmp_path / "video.json")
    assert cli.main(["video", *GRID, "--windows", "--densities", "--json", file]) == 0
    (row,), _ = video.read_json(file)
    assert row.forward_ms
    assert row.both_ms is None
    assert "with backward none: backward: RuntimeError: can't allocate memory" in capsys.readouterr().out


@pytest.mark.parametrize("peer", [Tiles((4, 4, 4), window=(5, 5, 5)), Tiles((4, 4, 4), kept=1.0)])
def test_tiles_that_see_all_give_dense_attention(peer: Tiles) -> None:
    case = replace(SHAPES["tiny"], dtype="float32")
    q, k, v, _ = case.inputs("cpu")
    expected = video.Dense().prepare(case)(q, k, v)
    torch.testing.assert_close(peer.prepare(case)(q, k, v), expected, rtol=0, atol=1e-5)


def test_interrupted_backward_keeps_the_forward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds = []

    def interrupted_at_the_second(*args: object) -> list[float]:
        rounds.append(args)
        if len(rounds) == 2:
            raise KeyboardInterrupt
        return [2.0, 1.0]

    monkeypatch.setattr(video, "times_in_turn", interrupted_at_the_second)
    file = str(tmp_path / "video.json")
    choices = ["--tiles", "2,4,4", "--windows", "1,1,1", "--densities", "--json", file]
    assert cli.main(["video", *GRID, *choices]) == 130
    rows, _ = video.read_json(file)
    assert [(row.forward_ms, row.dense_forward_ms, row.both_ms) for row in rows] == [
        (2.0, 2.0, None),
        (1.0, 2.0, None),
    ]
    expected = f"attention-bench video: interrupted; measured 2 rows, written to {file}\n"
    assert capsys.readouterr().err == expected
