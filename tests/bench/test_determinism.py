"""Runs compared bit by bit."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterable, Iterator

import pytest
import torch

from attention_bench import cli, determinism, load
from attention_bench.cases import Case
from attention_bench.features import FEATURES, FeatureCall

SMALL = [
    "--seqlen",
    "64",
    "--heads",
    "1",
    "--head-dim",
    "16",
    "--block",
    "16",
    "--device",
    "cpu",
    "--runs",
    "3",
]


def test_equal_runs_are_ok(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["determinism", *SMALL, "--causal"]) == 0
    assert "ok, out, lse, dq, dk, dv of 3 runs are bit-identical" in capsys.readouterr().out


def test_first_difference_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = []

    def results(*args: object) -> dict[str, torch.Tensor]:
        runs.append(torch.zeros(2, 3))
        changed = torch.zeros(2, 3)
        changed[1, 2] = 0.5 if len(runs) == 3 else 0.0
        return {"out": torch.zeros(2, 3), "dk": changed, "dv": torch.zeros(1)}

    monkeypatch.setattr(determinism, "results", results)
    assert cli.main(["determinism", *SMALL]) == 1
    assert (
        "run 3 of 3: dk differs in 1 of 6 elements, first at [1, 2]: 0.0 and 0.5" in capsys.readouterr().out
    )


def test_bits_count_not_values() -> None:
    nan = torch.tensor([float("nan")])
    assert determinism.first_difference("out", nan, nan.clone()) is None
    assert determinism.first_difference("out", torch.tensor([0.0]), torch.tensor([-0.0])) is not None


def test_backend_that_cannot_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["determinism", *SMALL, "--backend", "hopper"]) == 2
    assert "backend='hopper' cannot serve this call" in capsys.readouterr().err


def test_load_runs_beside_the_calls_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    before = threading.active_count()
    assert cli.main(["determinism", *SMALL, "--load"]) == 0
    assert "of 3 runs under load are bit-identical" in capsys.readouterr().out
    assert threading.active_count() == before
    with load.Load("cpu", is_on=True) as running:
        running.add()
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_every_kernel_is_repeated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[FeatureCall] = []

    def compare(call: FeatureCall, device: str, runs: int, backend: str | None, has_load: bool) -> str:
        seen.append(call)
        if len(seen) == 2:
            raise determinism.Different("run 2 of 2: dq differs")
        if len(seen) == 3:
            raise ValueError("backend='hopper' cannot serve this call: why")
        return "ok"

    monkeypatch.setattr(determinism, "compare", compare)
    small = Case(512, 2, 32, 64, 0.5, dtype="float32")
    monkeypatch.setitem(determinism.BASE, "cpu", small)
    assert cli.main(["determinism", "--every", "--device", "cpu", "--runs", "2"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(seen) >= 15 + len(FEATURES)
    assert lines[1].endswith(": run 2 of 2: dq differs")
    assert lines[2].endswith("cannot serve this call: why")
    # blocks, head_dim, token dilation, causal
    kinds = {
        (call.layout.block_size, call.inputs["q"].shape[-1], "segment_lengths" in call.options)
        for call in seen
    }
    assert kinds >= {
        (block, dim, dilated) for block in (32, 64) for dim in (16, 32) for dilated in (False, True)
    }
    assert {call.layout.block_size for call in seen} == {16, 32, 64, 256}


def test_budget_leaves_calls_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["determinism", *SMALL, "--budget", "1e-9"]) == 0
    assert "left out, the budget of 1e-09 s was used up: 64 tokens" in capsys.readouterr().out


def test_what_is_repeated_can_be_sent_to_a_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def sent(function: Callable[[int], object], work: Iterable[int], processes: int) -> Iterator[object]:
        assert processes == 2
        yield from map(pickle.loads(pickle.dumps(function)), work)

    monkeypatch.setattr(determinism, "in_processes", sent)
    arguments = ["determinism", "--every", "--device", "cpu", "--runs", "2", "--processes", "2"]
    assert cli.main([*arguments, "--budget", "1e-9"]) == 0
    left_out = capsys.readouterr().out.strip().partition("was used up: ")[2].split("; ")
    assert left_out == [subject.label for subject in determinism.every_subject("cpu")]


def test_processes_are_for_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["determinism", *SMALL, "--processes", "2"]) == 2
    assert "--processes shares the cases of --every; give both, or neither" in capsys.readouterr().err
