"""Steps of decoding: peers in turn, and the bandwidth that they reach."""

from __future__ import annotations

from pathlib import Path

import pytest

from attention_bench import cli, decode, markdown
from attention_bench.cases import Case
from attention_bench.peers import PEERS
from attention_bench.presets import PRESETS

CASE = Case(192, 4, 16, 16, 0.3, 2, 2, causal=True, dtype="float32", pattern_rates=None, decode=True)
OPTIONS = [
    "--seqlen",
    "192",
    "--heads",
    "4",
    "--kv-heads",
    "2",
    "--head-dim",
    "16",
    "--block",
    "16",
    "--density",
    "0.3",
]
OPTIONS += ["--dtype", "float32", "--device", "cpu", "--rounds", "3"]


def test_command_times_the_peers_of_one_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "decode.json")
    peers = ["ours-decode", "ours-decode-paged", "ours", "sdpa", "cudnn"]
    assert cli.main(["decode", *OPTIONS, "--peers", *peers, "--json", file]) == 1  # cudnn measured nothing
    rows, where = decode.read_json(file)
    assert [row.peer for row in rows] == peers
    for row in rows[:4]:
        assert row.refused is None
        assert row.ms
        assert row.host_us
        assert row.of_copy
    for row in rows[:3]:
        assert row.error is not None
        assert row.error < 1e-6  # float32, weights that sum to 1
    assert rows[4].refused == "needs a CUDA device"
    shown = capsys.readouterr().out
    assert "1 query, 192 keys, 4:2 x 16, block 16, 30.00%" in shown
    assert markdown.table(file).startswith("| case | library | step |")
    assert where["command"].startswith("attention-bench decode ")


def test_bytes_are_those_of_the_keys_and_values_that_count() -> None:
    layout = CASE.layout("cpu")
    n_blocks = layout.num_active_blocks
    assert decode.read_bytes(CASE, layout, dense=False) == 2 * 2 * n_blocks * 16 * 2 * 16 * 4
    assert decode.read_bytes(CASE, layout, dense=True) == 2 * 2 * 192 * 2 * 16 * 4


def test_bandwidth_is_compared_with_that_of_a_copy() -> None:
    row = decode.DecodeRow("ours-decode", CASE, ms=0.5, read_bytes=10**9, copy_gb_per_s=2500.0)
    assert row.gb_per_s == 2000.0
    assert row.of_copy == 0.8
    assert decode.cells(row)[2:] == ["0.5 ms", "2,000 GB/s", "80%", "-"]


def test_peers_take_turns_in_both_orders() -> None:
    order: list[str] = []
    calls = [lambda name=name: order.append(name) for name in "abc"]  # type: ignore[misc]
    decode.times_in_turn(calls, "cpu", rounds=2)
    assert "".join(order) == "abc" + "abc" + "cba"


def test_peers_of_decoding_refuse_what_is_none() -> None:
    other = Case(192, 4, 16, 16, 0.3)
    assert PEERS["ours-decode"].rejects(other, "cpu") == "not a step of decoding"
    odd = Case(100, 4, 16, 16, 0.3, causal=True, decode=True)
    assert PEERS["ours-decode-paged"].rejects(odd, "cpu") == "seqlen is no multiple of the pages of 64"
    assert PEERS["ours-decode"].rejects(odd, "cpu") is None


def test_preset_has_the_sizes_that_are_promised() -> None:
    sizes = {(case.batch, case.seqlen) for case in PRESETS["decode"]}
    assert sizes >= {(8, 8192), (1, 32768), (32, 32768)}
    assert all(
        case.decode and (case.heads, case.num_kv_heads, case.head_dim) == (32, 8, 128)
        for case in PRESETS["decode"]
    )
