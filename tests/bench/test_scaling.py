"""One sequence over several GPUs: the figures, what the all-gather computes, and the command on processes of the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attention_bench import cli, markdown, scaling, scaling_rows
from attention_bench.all_gather import gathered_layout
from attention_bench.cases import Case
from attention_bench.scaling import Point, group_sizes, needed_bytes, points_of
from attention_bench.scaling_peers import PEERS
from attention_bench.scaling_rows import (
    ALONE,
    CHECK,
    GATHER,
    NO_OVERLAP,
    OURS,
    RING,
    SHARE,
    WHOLE,
    ScalingRow,
)
from dilated_attention_pytorch import SequenceSharding, block_sparse_attention

CASE = Case(4096, 4, 32, 64, 0.1, kv_heads=2, causal=True, pattern_rates=None)
SMALL = ["--tokens", "256", "--densities", "0.2", "--heads", "2", "--kv-heads", "1", "--head-dim", "16"]
SMALL += ["--block", "16", "--device", "cpu", "--rounds", "2"]
WHERE = {
    "device": "2 x GPU",
    "date": "2026-01-01",
    "versions": {"torch": "2"},
    "command": "attention-bench scaling",
}


# ---- figures


def timed(peer: str, active: int | None, forward: float | None, both: float | None) -> ScalingRow:
    return ScalingRow(peer, CASE, 2, active_blocks=active, forward_ms=forward, both_ms=both)


def test_weak_scaling_is_the_rate_of_a_gpu_over_that_of_one_and_strong_scaling_a_time_over_a_time() -> None:
    rows = [
        timed(OURS, 400, 5.0, 20.0), timed(GATHER, 400, 8.0, 24.0), timed(RING, None, 50.0, 200.0),
        timed(SHARE, 100, 2.0, 9.0), timed(WHOLE, 400, 9.0, 36.0),
    ]  # fmt: skip
    scaling_rows.compare(rows)
    ours, gather, ring, share, whole = rows
    assert ours.forward_rate == 400 * 4 / 0.005 / 2
    assert share.forward_rate == 100 * 4 / 0.002
    assert ours.weak_forward == pytest.approx(400 / 5 / 2 / (100 / 2))
    assert ours.weak_both == pytest.approx(400 / 20 / 2 / (100 / 9))
    assert (ours.strong_forward, ours.strong_both) == (9 / 5, 36 / 20)
    assert (gather.strong_forward, gather.strong_both) == (9 / 8, 36 / 24)
    # Nothing is said of dense attention and of what others are compared with.
    for row in (ring, share, whole):
        assert (row.weak_forward, row.strong_forward) == (None, None)


def test_table_has_a_line_per_case_and_says_what_the_brackets_are() -> None:
    rows = [
        timed(OURS, 400, 5.0, 20.0), timed(NO_OVERLAP, 400, 6.0, None), timed(GATHER, 400, 8.0, 24.0),
        timed(SHARE, 100, 2.0, 9.0), timed(WHOLE, 400, 9.0, 36.0), timed(RING, None, None, None),
    ]  # fmt: skip
    rows[0].moved, rows[0].peak_bytes, rows[2].peak_bytes = 0.25, 2**30, 3 * 2**30
    rows[-1].refused = "RuntimeError: no ring"
    scaling_rows.compare(rows)
    alone = [
        ScalingRow(peer, CASE, 1, ALONE, 400, ms, 2 * ms)
        for peer, ms in ((scaling_rows.BASE, 10.0), ("other", 10.4))
    ]
    scaling_rows.compare(alone)
    check = ScalingRow(OURS, CASE, 2, CHECK, error=1.5e-3)
    text = scaling_rows.markdown([check, *alone, *rows], WHERE)
    lines = text.splitlines()
    assert lines[2] == (
        "| 4,096 | 10.00% | 2 | 5 / 20 ms | 6 / - ms (1.20 / - x) | - | 8 / 24 ms (1.60 / 1.20 x) | none | "
        "9 / 36 ms (1.80 / 1.80 x) | 2 / 9 ms (0.80 / 0.90) | 25.0% | 1.0 / 3.0 GiB |"
    )
    assert [line.startswith("|") for line in lines[:4]] == [True, True, True, False]
    assert scaling_rows.DEFINITIONS in text
    assert "4:2 x 32, block 64 causal" in text
    assert "- Largest relative error of the output and the gradients, beside one GPU: ours 1.5e-03." in text
    assert "base module 10 / 20 ms, other 10.4 / 20.8 ms (+4.0% / +4.0%)." in text
    assert "- ring, dense, 4,096 tokens: RuntimeError: no ring." in text


def test_the_first_case_is_that_of_a_million_tokens_per_gpu() -> None:
    tokens = [131072, 2097152, 4194304]
    points = points_of(CASE, tokens, [0.01, 0.001], [4, 2])
    timed_ones = [point for point in points if point.part != ALONE]
    assert [point.n_ranks for point in points if point.part == ALONE] == [1, 1]
    assert [(p.case.seqlen, p.case.density, p.n_ranks) for p in timed_ones[:3]] == [
        (4194304, 0.01, 4), (4194304, 0.001, 4), (131072, 0.01, 4),
    ]  # fmt: skip
    assert [p.case.seqlen for p in timed_ones if p.n_ranks == 2] == [2097152] * 2 + [131072] * 2 + [
        4194304
    ] * 2
    assert [peer.name for peer in Point(CASE, 2).peers(list(PEERS.values()), 4096)] == list(PEERS)
    assert RING not in [peer.name for peer in Point(CASE, 2).peers(list(PEERS.values()), 4095)]


def test_memory_of_a_call_is_that_of_its_tensors() -> None:
    # bfloat16: q has 2**33 bytes, k and v together half of it.
    case = Case(2**20, 32, 128, 128, 0.01, kv_heads=8)
    own = case.seqlen
    forward = needed_bytes(case, own, own, 2 * own, with_backward=False)
    q, lse = 2**33, 2**27
    # q, grad, k, v; out; lse; held keys; the output to compare with.
    assert forward == 2 * q + q // 2 + q + lse + q + q
    both = needed_bytes(case, own, own, 2 * own, with_backward=True)
    # dq, dk, dv; its sums; the gradients of the held keys.
    assert both == forward - q + (q + q // 2 + lse) + q


def test_numbers_of_gpus() -> None:
    parser = scaling.build_parser()
    assert group_sizes(parser.parse_args([]), 1) == []
    assert group_sizes(parser.parse_args([]), 6) == [6, 4, 2]
    assert group_sizes(parser.parse_args(["--gpus", "1", "3"]), 4) == [3]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--tokens", "1000"],
            "--tokens must be multiples of 64, whole blocks of 32 for every rank, got 1000",
        ),
        (["--gpus", "3"], "--gpus must be at most 2, the number of processes, got 3"),
        (["--heads", "3", "--kv-heads", "2"], "kv_heads must divide heads 3, got 2"),
    ],
)
def test_wrong_request_starts_no_process(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling.ranks, "start", lambda *_: pytest.fail("started"))
    assert cli.main(["scaling", "--device", "cpu", *arguments]) == 2
    assert capsys.readouterr().err == f"attention-bench scaling: {said}\n"


# ---- the all-gather


@pytest.mark.parametrize("causal", [False, True])
def test_rows_over_gathered_keys_are_those_of_one_gpu(causal: bool) -> None:
    case = replace(CASE, seqlen=24 * 16, block=16, density=0.3, causal=causal, dtype="float32")
    layout = case.layout("cpu")
    q, k, v = case.inputs("cpu")
    expected = block_sparse_attention(q, k, v, layout, is_causal=causal)
    chunks = [[(0, 3), (15, 20)], [(3, 4), (8, 15)], [(4, 8), (20, 24)]]
    shardings = [SequenceSharding.make(chunks, case.seqlen, 16, rank) for rank in range(3)]
    in_order = torch.cat([sharding.positions() for sharding in shardings])
    for sharding in shardings:
        mine = sharding.positions()
        local = gathered_layout(layout, sharding, causal)
        tail = mine if sharding.rank < 2 else mine[:0]
        held = torch.cat([in_order, tail])
        assert local.kv_len == held.numel()
        found = block_sparse_attention(q[:, mine], k[:, held], v[:, held], local, is_causal=causal)
        torch.testing.assert_close(found, expected[:, mine], rtol=0, atol=1e-6)


# ---- the command


def test_one_rank_beside_the_base_module(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "scaling.json")
    assert cli.main(["scaling", *SMALL, "--processes", "1", "--json", file]) == 0
    rows, where = scaling_rows.read_json(file)
    assert where["ranks"] == 1
    alone = [row for row in rows if row.part == ALONE]
    assert [row.peer for row in alone] == [scaling_rows.BASE, "distributed module"]
    assert alone[1].error == 0.0
    assert all(row.forward_ms and row.both_ms for row in alone)
    assert alone[1].forward_of_base
    assert {row.part for row in rows} == {CHECK, ALONE}
    assert "One rank, 256 tokens, 20.00% kept: base module" in markdown.table(file)
    assert "distributed module" in capsys.readouterr().out
    assert not torch.distributed.is_initialized()


def test_used_up_budget_leaves_cases_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Point, "seconds", lambda *_: 1e9)
    assert cli.main(["scaling", *SMALL, "--processes", "1", "--budget", "100"]) == 0
    printed = capsys.readouterr().out
    assert "left out, the budget of 100 s is used up" in printed
    assert "One rank" not in printed


def test_wrong_peer_is_told_and_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(scaling.TOLERANCE, "float32", -1.0)
    assert cli.main(["scaling", *SMALL, "--processes", "1", "--checks-only", "--peers", OURS]) == 1
    assert "off by" in capsys.readouterr().out


@pytest.mark.processes
def test_command_measures_two_processes(tmp_path: Path) -> None:
    file = tmp_path / "scaling.json"
    command = [
        sys.executable,
        "-m",
        "attention_bench",
        "scaling",
        *SMALL,
        "--processes",
        "2",
        "--json",
        str(file),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    rows, where = scaling_rows.read_json(str(file))
    assert where["ranks"] == 2
    checks = [row for row in rows if row.part == CHECK]
    assert [row.peer for row in checks] == [
        name for name, peer in PEERS.items() if not peer.on_one and name != RING
    ]
    assert all(row.error is not None and row.error < 1e-5 for row in checks)  # float32
    times = {row.peer: row for row in rows if row.part not in (CHECK, ALONE)}
    assert set(times) == set(PEERS) - {RING}
    for row in times.values():
        assert row.refused is None
        assert row.both_ms
        assert row.both_rounds == 2
    for name in (OURS, NO_OVERLAP, GATHER):
        row = times[name]
        assert row.weak_forward
        assert row.weak_both
        assert row.strong_forward
        assert row.strong_both
    assert 0 < times[OURS].moved < 1 == times[GATHER].moved
    assert times[NO_OVERLAP].error == 0.0
    assert "| 256 | 20.00% | 2 |" in done.stdout
