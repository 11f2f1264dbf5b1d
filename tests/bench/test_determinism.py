"""Runs compared bit by bit."""

from __future__ import annotations

import pytest
import torch

from attention_bench import cli, determinism

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

    def results(*args: object) -> tuple[torch.Tensor, ...]:
        runs.append(torch.zeros(2, 3))
        changed = torch.zeros(2, 3)
        changed[1, 2] = 0.5 if len(runs) == 3 else 0.0
        return (*(torch.zeros(2, 3) for _ in range(3)), changed, torch.zeros(1))

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
