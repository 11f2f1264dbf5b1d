"""Every feature of a call beside the plain call."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from attention_bench import budget, calls, cli, markdown
from attention_bench.cases import Case
from attention_bench.features import FEATURES, Feature, FeatureCall, made

CASE = Case(256, 4, 16, 32, 0.2, dtype="float32")
OPTIONS = ["--seqlen", "256", "--heads", "4", "--head-dim", "16", "--block", "32", "--density", "0.2"]
OPTIONS += ["--device", "cpu", "--rounds", "1"]
# With masks that depend on the tokens, the active blocks that the call needs not compute still count.
NOT_BY_THE_MASK = ("padding-right", "padding-left", "block_bias", "dropout")


def test_command_times_features_beside_the_plain_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "calls.json")
    names = ["packed-uneven", "q_offset", "head_dim-192-128", "sinks"]
    assert cli.main(["calls", *OPTIONS, "--features", *names, "--json", file]) == 0
    rows, where = calls.read_json(file)
    assert [row.peer for row in rows] == names
    for row in rows:
        assert row.refused is None
        assert row.backend == "cpu"
        assert row.error is not None
        assert row.error < 1e-5
        assert row.grad_error is not None
        assert row.grad_error < 1e-5
        assert row.forward_of_plain
        assert row.backward_of_plain
    assert rows[1].base == "causal"
    assert rows[2].forward_of_dense
    assert rows[0].forward_of_dense is None
    assert where["command"].startswith("attention-bench calls ")
    shown = markdown.table(file)
    assert shown.startswith("| call | compared with | backend |")
    assert f"The plain call: {CASE.label}." in shown
    printed = capsys.readouterr().out
    assert "packed-uneven (cpu): forward " in printed
    assert "*" not in printed
    assert "ratio: time per pair in the active blocks" in printed  # the table at the end


def seen_blocks(call: FeatureCall) -> int:
    """Active blocks by definition: with v as one key after another, those of which a query sees a pair."""
    size = call.layout.block_size
    inputs = dict(call.inputs)
    q, k = inputs["q"], inputs["k"]
    n_keys = k.shape[-3]
    inputs["q"], inputs["k"] = torch.zeros_like(q), torch.zeros_like(k)
    eye = torch.eye(n_keys).view(n_keys, 1, n_keys).expand(n_keys, k.shape[-2], n_keys)
    inputs["v"] = eye if call.packed is not None else eye[None].expand(k.shape[0], -1, -1, -1)
    weights = call.attend("reference", inputs)[0].unsqueeze(0) if call.packed is not None else None
    if weights is None:
        weights = call.attend("reference", inputs)[0]
        weights = weights.view(-1, *weights.shape[-3:])
    total = 0
    for sees in weights != 0:  # (queries, heads, keys)
        query, head, key = sees.nonzero(as_tuple=True)
        if call.packed is None:
            offset, start = call.options.get("q_offset", 0), call.options.get("kv_starts")
            shift = 0 if start is None else int(start[0])
            query, key = query + offset - shift, key - shift
            sequence = torch.zeros_like(query)
        else:
            starts = call.packed[0]
            sequence = torch.searchsorted(starts, query, right=True) - 1
            query, key = query - starts[sequence], key - starts[sequence]
        blocks = torch.stack([sequence, head, query // size, key // size])
        total += blocks.unique(dim=1).shape[1]
    return total


@pytest.mark.parametrize("name", [name for name in FEATURES if name not in NOT_BY_THE_MASK])
def test_active_blocks_are_those_that_queries_see(name: str) -> None:
    call = FEATURES[name].make(CASE, "cpu")
    assert call.blocks == seen_blocks(call)
    assert call.pairs == call.blocks * call.layout.block_size**2


@pytest.mark.parametrize("name", NOT_BY_THE_MASK)
def test_hidden_blocks_count(name: str) -> None:
    assert FEATURES[name].make(CASE, "cpu").blocks == FEATURES["plain"].make(CASE, "cpu").blocks


def test_every_feature_of_a_call_has_a_row() -> None:
    names = (
        "kv_lengths packed-uneven packed-whole exact-window padding-right padding-left q_offset block_bias"
    )
    names += " block_bias-gradient head_dim-96 head_dim-192 head_dim-256 head_dim-192-128 block-256 block-32"
    names += " block-16 kv_starts softcap alibi sinks dropout grouped-heads random-64"
    assert FEATURES.keys() >= set(names.split())
    assert all(feature.base in FEATURES for feature in FEATURES.values())


def row_of(**figures: float) -> calls.CallRow:
    return calls.CallRow("sinks", CASE, "plain", "hopper", 100, 1.0, 2.0, **figures)  # type: ignore[arg-type]


def test_what_is_slow_is_said() -> None:
    row = row_of(forward_of_plain=1.11, backward_of_plain=1.09)
    assert calls.cells(row)[3:5] == ["1 ms, 1.11 (slow)", "2 ms, 1.09"]
    assert calls.line(row) == (
        "sinks (hopper): forward 1 ms, 1.11 of plain, slow; backward 2 ms, 1.09 of plain; errors: output -, gradients -"
    )
    # at another head_dim dense attention is slower, too
    row = row_of(forward_of_plain=2.1, backward_of_plain=2.3, forward_of_dense=2.0, backward_of_dense=2.0)
    assert calls.cells(row)[3:5] == ["1 ms, 2.10 (dense 2.00)", "2 ms, 2.30 (dense 2.00, slow)"]
    assert "Slow: more than 10% slower" in calls.markdown([row], {"device": "x", "date": "y", "versions": {}, "command": ""})  # fmt: skip


def test_feature_that_fails_or_is_wrong_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(case: Case, device: str) -> FeatureCall:
        raise RuntimeError("no such kernel\nand more")

    (row,) = calls.measured(Feature("failing", fails), CASE, "cpu", 1, None)
    assert row.refused == "RuntimeError: no such kernel"
    assert calls.line(row) == "failing (no backend): refused: RuntimeError: no such kernel"
    assert not row.has_figures

    def wrong(case: Case, device: str) -> FeatureCall:
        call = made(case, case.layout(device))
        original = call.attend

        def attend(backend: str | None, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
            out, lse = original(backend, inputs)
            return (out if backend == "reference" else 2 * out), lse

        call.attend = attend  # type: ignore[method-assign]
        return call

    (row,) = calls.measured(Feature("wrong", wrong), CASE, "cpu", 1, None)
    assert str(row.refused).startswith(
        "Disagreement: its output differs from that of backend='reference' by 1.0e+00"
    )
    assert row.forward_ms is None


def test_budget_leaves_features_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = itertools.count()
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    file = str(tmp_path / "calls.json")
    names = ["sinks", "softcap", "alibi"]
    given = ["calls", *OPTIONS, "--features", *names, "--budget", "1.5", "--json", file]
    assert cli.main(given) == 0
    rows, where = calls.read_json(file)  # the first began in time
    assert [row.peer for row in rows] == ["sinks"]
    assert where["left_out"] == ["softcap", "alibi"]
    assert "left out, the budget of 1.5 s was used up: softcap; alibi\n" in capsys.readouterr().out
