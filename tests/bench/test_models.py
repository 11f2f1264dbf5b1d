"""Language models of transformers, with dense attention and with ours."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from attention_bench import cli, generation, markdown, training
from attention_bench.model import PEERS, SIZES, ModelCase, make_model

SMALL = ["--device", "cpu", "--tokens", "64", "--rounds", "1"]
CASE = ModelCase("tiny", 64, 0.25, "float32")


def test_without_transformers_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "dilated_attention_pytorch.integrations.transformers", raising=False)
    monkeypatch.setitem(sys.modules, "transformers", None)
    for task in ("train", "generate"):
        assert cli.main(["models", task, *SMALL]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("attention-bench models: models needs transformers 5: ")
        assert "pip install './tools/attention-bench[transformers]'" in line


def test_help_needs_no_transformers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SystemExit, match="0"):
        cli.main(["models", "train", "--help"])
    assert "--mask" in capsys.readouterr().out


def test_train_times_every_attention(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    file = str(tmp_path / "train.json")
    arguments = [*SMALL, "--mask", "--peers", "sdpa", "ours-16", "--json", file]
    assert cli.main(["models", "train", *arguments]) == 0
    rows, where = training.read_json(file)
    assert [row.peer for row in rows] == ["sdpa", "ours-16"]
    for row in rows:
        assert row.refused is None
        assert row.ms
        assert row.tokens_per_s == 64 / row.ms * 1000
        assert row.dense_ms == rows[0].ms
    assert rows[0].loss != rows[1].loss
    assert "tiny, 64 tokens, 10.00%, attention_mask: ours-16" in capsys.readouterr().out
    assert markdown.table(file).startswith("| model | attention | step | tokens/s |")
    assert where["versions"]["transformers"]
    assert where["command"].startswith("attention-bench models train ")


def test_generate_times_every_attention_with_every_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    file = str(tmp_path / "generate.json")
    arguments = [*SMALL, "--new", "3", "--peers", "sdpa", "ours-16", "--json", file]
    assert cli.main(["models", "generate", *arguments]) == 0
    rows, where = generation.read_json(file)
    assert [(row.peer, row.case.cache) for row in rows] == [
        (peer, cache) for cache in ("dynamic", "static") for peer in ("sdpa", "ours-16")
    ]
    for row in rows:
        assert row.refused is None
        assert row.ms
        assert row.first_ms
        assert row.first_call_s
    assert rows[1].dense_ms == rows[0].ms
    assert rows[3].dense_ms == rows[2].ms
    assert "tiny, 64 tokens and 3 new, static cache, 10.00%: ours-16" in capsys.readouterr().out
    assert markdown.table(file).startswith("| model | attention | time per token |")
    assert where["command"].startswith("attention-bench models generate ")


def test_every_step_of_training_does_the_same() -> None:
    pytest.importorskip("transformers")
    train = training.Training(CASE, "cpu")
    losses = [float(train.step("sdpa")) for _ in range(2)]
    assert losses[0] == losses[1]


def test_attentions_get_the_same_weights() -> None:
    pytest.importorskip("transformers")
    dense, ours = (make_model(CASE, peer, "cpu").state_dict() for peer in ("sdpa", "ours-16"))
    assert dense.keys() == ours.keys()
    for name in dense:
        torch.testing.assert_close(ours[name], dense[name], rtol=0, atol=0)


def test_attention_that_fails_is_a_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    step = training.Training.step

    def only_dense(self: training.Training, attention: str) -> torch.Tensor:
        if attention != "sdpa":
            raise RuntimeError("can't allocate memory")
        return step(self, attention)

    monkeypatch.setattr(training.Training, "step", only_dense)
    assert cli.main(["models", "train", *SMALL, "--peers", "sdpa", "ours-16"]) == 1
    printed = capsys.readouterr()
    assert "ours-16 none: RuntimeError: can't allocate memory" in printed.out
    assert printed.err.endswith("ours-16 measured nothing: RuntimeError: can't allocate memory\n")


def test_sizes_are_those_of_a_llama_of_one_billion() -> None:
    sizes = SIZES["llama-1b"]
    hidden, kv = sizes["hidden_size"], sizes["num_key_value_heads"] * sizes["head_dim"]
    layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * sizes["intermediate_size"] + 2 * hidden
    n_weights = sizes["vocab_size"] * hidden + sizes["num_hidden_layers"] * layer + hidden
    assert n_weights == 1_235_814_400  # of Llama 3.2 1B
    assert "ours-64" in PEERS
