"""The demo: the task, the training, the comparison, and what it writes."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dilated_attention_pytorch.__main__ import build_parser, main
from dilated_attention_pytorch.backends.cpu import CPU as CPU_BACKEND
from dilated_attention_pytorch.demo import command
from dilated_attention_pytorch.demo.memory import Run, median_peaks
from dilated_attention_pytorch.demo.model import (
    KINDS,
    KeyValueCache,
    ModelSettings,
    isolated_rows_allowed,
    load_model,
    make_model,
)
from dilated_attention_pytorch.demo.plan import make_layouts, make_plan
from dilated_attention_pytorch.demo.task import (
    FIRST_PASSKEY,
    PASSKEYS,
    QUESTION,
    make_batch,
    readable,
    to_tokens,
)
from dilated_attention_pytorch.demo.text import library_files, load_text
from dilated_attention_pytorch.demo.training import TimeLeft, context_lengths, learning_rate_share
from tests.core.cli.test_cli import error_of

CPU = torch.device("cpu")
TINY = [
    "--context",
    "256",
    "--layers",
    "2",
    "--dim",
    "16",
    "--heads",
    "2",
    "--block-size",
    "16",
    "--min-blocks",
    "3",
    "--device",
    "cpu",
]
TINY_SETTINGS = ModelSettings(layers=2, dim=16, heads=2, block_size=16, min_blocks=3)
FILES = ["loss.png", "losses.json", "model.pt", "pattern.png", "sample.txt", "summary.json", "table.md"]


@pytest.fixture
def story(tmp_path: Path) -> Path:
    """A file with 12,000 bytes of easy text."""
    file = tmp_path / "story.txt"
    file.write_bytes(b"the quick brown fox jumps over the lazy dog, and " * 245)
    return file


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No processes that measure memory, which take seconds."""
    monkeypatch.setattr(command, "median_peaks", lambda runs: [2**20 * (1 + i) for i in range(len(runs))])


def some_batch(context: int = 256, batch_size: int = 3, seed: int = 0):
    text = torch.arange(5000).remainder(90).add(32).to(torch.uint8)
    return make_batch(text, context, batch_size, torch.Generator().manual_seed(seed))


# The text.


def test_library_text_is_the_same_every_time_and_bounded() -> None:
    first, second = load_text([], 4096), load_text([], 4096)
    assert torch.equal(first.train, second.train)
    assert torch.equal(first.held_out, second.held_out)
    assert 2**20 < len(first.train) + len(first.held_out) <= 16 * 2**20
    assert not {"site-packages", "test", "tests"} & {part for file in library_files() for part in file.parts}


def test_last_tenth_of_the_users_text_is_held_out(tmp_path: Path) -> None:
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    files[0].write_bytes(b"a" * 500)
    files[1].write_bytes(b"b" * 500)
    text = load_text(files, 64)
    assert bytes(text.train.tolist()) == b"a" * 500 + b"b" * 400
    assert bytes(text.held_out.tolist()) == b"b" * 100


def test_too_short_text_says_how_much_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "short.txt"
    file.write_bytes(b"x" * 300)
    message = error_of(capsys, "demo", str(file), *TINY)
    assert "too short" in message
    assert "--context 256 needs 257 to train on and as many to hold out" in message


# The task.


def test_context_holds_one_passkey_and_a_question_in_sixteen_tokens() -> None:
    tokens = some_batch().tokens
    is_passkey = (tokens >= FIRST_PASSKEY) & (tokens < QUESTION)
    assert is_passkey.sum(1).tolist() == [1, 1, 1]
    assert not is_passkey[:, 64:].any()
    assert (tokens == QUESTION).sum(1).tolist() == [16, 16, 16]
    assert not (tokens[:, :64] == QUESTION).any()


def test_answers_are_the_passkeys_letter_and_all_else_is_text() -> None:
    batch = some_batch()
    assert torch.equal(batch.is_answer, batch.tokens == QUESTION)
    passkeys = batch.tokens[(batch.tokens >= FIRST_PASSKEY) & (batch.tokens < QUESTION)]
    letters = torch.tensor([ord(PASSKEYS[token - FIRST_PASSKEY]) for token in passkeys.tolist()])
    assert torch.equal(batch.targets[batch.is_answer], letters.repeat_interleave(16))
    is_text = (batch.tokens < FIRST_PASSKEY)[:, 1:] & ~batch.is_answer[:, :-1]
    assert torch.equal(batch.targets[:, :-1][is_text], batch.tokens[:, 1:][is_text])


def test_distances_from_passkey_to_question_cover_the_context() -> None:
    tokens = some_batch(1024, 200).tokens
    place = ((tokens >= FIRST_PASSKEY) & (tokens < QUESTION)).nonzero()[:, 1]
    row, question = (tokens == QUESTION).nonzero(as_tuple=True)
    distances = question - place[row]
    # 12,800 distances: each of the 31 bins of 32 tokens (the last one is rare) has its share
    assert (torch.histc(distances.float(), 31, 0, 992) > 20).all()


def test_marks_can_be_written_and_read() -> None:
    tokens = [*b"a ", FIRST_PASSKEY + 7, *b" b ", QUESTION, *"ü".encode()]
    assert readable(tokens) == "a <key=H> b <key?>ü"
    assert to_tokens("a <key=H> b <key?>ü") == tokens


def test_printed_text_holds_no_control_characters() -> None:
    assert readable([*b"a\x1b[31m\tb\r\nc\xff\x00"]) == "a\ufffd[31m\tb\nc\ufffd\ufffd"


# The training.


def test_learning_rate_rises_stays_and_falls() -> None:
    shares = [learning_rate_share(step, 100) for step in range(100)]
    assert shares.index(1.0) == 4
    assert shares[60] == 1.0
    assert shares[-1] < shares[80] < 0.6
    assert learning_rate_share(0, 1) == 1.0


@pytest.mark.parametrize(("context", "steps"), [(64, 3), (100, 5), (200, 10), (1024, 500), (5000, 1)])
def test_contexts_double_up_to_the_whole(context: int, steps: int) -> None:
    lengths = context_lengths(context, steps)
    assert len(lengths) == steps
    assert lengths == sorted(lengths)
    assert min(lengths) >= 64
    assert steps == 1 or lengths[-1] == context


def test_contexts_of_the_default_run() -> None:
    lengths = context_lengths(1024, 500)
    assert {length: lengths.count(length) for length in lengths} == {
        64: 75,
        128: 67,
        256: 67,
        512: 66,
        1024: 225,
    }


def test_time_left_weighs_each_kind_of_work_by_what_it_took() -> None:
    time_left = TimeLeft(["short"] * 10 + ["long"] * 10 + ["held out"])
    for kind, seconds in (("short", 1.0), ("long", 5.0), ("held out", 7.0)):
        time_left.tried(kind, seconds)
    assert time_left.left() == 10 + 50 + 7
    for _ in range(10):
        time_left.done("short", 1.0)
    assert time_left.left() == 57
    time_left.done("long", 7.0)
    assert time_left.left() == 9 * 6.0 + 7
    for _ in range(9):
        time_left.done("long", 6.0)
    time_left.done("held out", 7.0)
    assert time_left.left() == 0


# The model.


def test_same_seed_gives_the_same_weights_with_every_attention() -> None:
    first, *others = (make_model(TINY_SETTINGS, kind, 3, CPU) for kind in KINDS)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters()))


@torch.no_grad()
def test_bytes_generated_from_the_cache_see_what_the_full_forward_sees() -> None:
    model = make_model(TINY_SETTINGS, "dilated_sparse", 0, CPU)
    tokens = torch.randint(256, (1, 75))
    cache = KeyValueCache(75)
    pieces = [model(part, cache) for part in (tokens[:, :33], tokens[:, 33:34], tokens[:, 34:])]
    # float32 sums in another order: relative error of a few times 2**-24 over some dozen operations in a row
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_positions_of_the_tokens_may_be_given() -> None:
    model = make_model(TINY_SETTINGS, "dilated_sparse", 0, CPU)
    tokens, positions = torch.randint(256, (1, 40)), torch.arange(40)
    assert torch.equal(model(tokens, positions=positions), model(tokens))
    apart = torch.cat([positions[:20], positions[20:] + 100])
    out = model(tokens, positions=apart)
    assert torch.equal(out[:, :20], model(tokens)[:, :20])
    assert not torch.allclose(out[:, 20:], model(tokens)[:, 20:], rtol=1e-3)


def test_sample_is_the_same_for_the_same_seed() -> None:
    model = make_model(TINY_SETTINGS, "dilated_sparse", 0, CPU)
    first, second, other = (model.generate([*b"abc"], 20, seed=seed) for seed in (1, 1, 2))
    assert first == second != other
    assert len(first) == 20
    assert max(first) < 256


def test_saved_model_is_the_same_model(tmp_path: Path) -> None:
    model = make_model(TINY_SETTINGS, "local_window", 5, CPU)
    model.save("local_window", tmp_path / "model.pt")
    loaded = load_model(tmp_path / "model.pt", CPU)
    assert loaded.settings == model.settings
    tokens = torch.randint(256, (1, 100))
    assert torch.equal(loaded(tokens), model(tokens))


@pytest.mark.parametrize("content", [b"", b"no model", None])
def test_file_that_is_no_model_is_one_line(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "model.pt"
    torch.save({"weights": 1}, file) if content is None else file.write_bytes(content)
    assert "is not a model of this demo" in error_of(
        capsys, "demo", "--generate", str(file), "--device", "cpu"
    )


def test_window_has_as_many_blocks_as_ours_and_own_blocks_are_the_diagonal() -> None:
    plan = make_plan(build_parser().parse_args(["demo", "--device", "cpu"]))
    with isolated_rows_allowed():
        layouts = make_layouts(plan)
    assert layouts["local_window"].num_active_blocks == layouts["dilated_sparse"].num_active_blocks
    assert layouts["own_block"].rows() == [[row] for row in range(64)]


def test_what_the_introduction_says_of_the_default_run_holds() -> None:
    plan = make_plan(build_parser().parse_args(["demo", "--device", "cpu"]))
    with isolated_rows_allowed():
        layouts = make_layouts(plan)
    ours, window = layouts["dilated_sparse"], layouts["local_window"]
    assert ours.hops_to_full_coverage() <= plan.settings.layers + 1
    assert ours.coverage(plan.settings.layers) > 0.98
    assert window.coverage(plan.settings.layers) < 0.6


# Memory.


def test_memory_is_the_median_of_rounds_taken_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    measured, peaks = [], iter([5, 50, 1, 10, 3, 30])

    def measure(run: Run) -> int:
        measured.append(run.kind)
        return next(peaks)

    monkeypatch.setattr("dilated_attention_pytorch.demo.memory.measure", measure)
    runs = [Run(TINY_SETTINGS, kind, 64, 1, "cpu", 1) for kind in KINDS[:2]]
    assert median_peaks(runs, 3) == [3, 30]
    assert measured == [*KINDS[:2]] * 3


@pytest.mark.skipif(sys.platform == "win32", reason="the system does not tell")
def test_memory_grows_with_the_context() -> None:
    run = Run(TINY_SETTINGS, "own_block", 64, 1, "cpu", 1)
    few, many = median_peaks([run, replace(run, context=4096)], 1)
    assert few is not None
    assert many is not None
    assert many - few > 2**22  # half of the logits and their gradients: 2 * 4 * 273 * 4,032 bytes


# The run.


def test_every_attention_has_the_same_steps_batches_and_weights(
    story: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_memory: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("rich")
    seen: dict[int, list[tuple[int, ...]]] = {}
    started: list[float] = []

    class Watched(command.Learner):
        def __init__(self, model, steps: int) -> None:
            super().__init__(model, steps)
            started.append(float(sum(weight.double().sum() for weight in model.parameters()).detach()))

        def step(self, batch):
            seen.setdefault(id(self), []).append(tuple(batch.tokens.flatten().tolist()))
            return super().step(batch)

    monkeypatch.setattr(command, "Learner", Watched)
    monkeypatch.setattr(command, "try_out", lambda *args: None)
    monkeypatch.setattr(command.TimeLeft, "left", lambda self: 0.0)
    options = ["--steps", "6", "--seeds", "1", "--sample-bytes", "5", "--output", str(tmp_path)]
    assert main(["demo", str(story), *TINY, *options]) == 0
    first, *others = seen.values()
    assert len(first) == 6
    assert others == [first] * 3
    assert len(set(started)) == 1
    assert "tokens, 1 seed." in " ".join(capsys.readouterr().out.split())


def test_demo_learns_and_writes_everything(
    story: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_memory: None
) -> None:
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    output = tmp_path / "new" / "folder"
    options = ["--steps", "30", "--seeds", "2", "--sample-bytes", "20", "--prompt", "quick"]
    assert main(["demo", str(story), *TINY, *options, "--output", str(output)]) == 0

    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    (heading,) = (line for line in out.splitlines() if "tokens/s" in line)
    assert heading.split("  ")[0].strip() == "attention"
    for name in ("kept", "answers' loss", "right", "text loss", "tokens/s", "memory"):
        assert name in heading
    for row in ("dense  ", "dilated_sparse  ", "own block only  ", "local window  "):
        assert sum(line.strip().startswith(row.strip()) and "±" in line for line in out.splitlines()) == 1
    assert "step 60 of 60, 0:00 left" in out
    assert out.count("answers' loss: dense ") == 2
    assert "model answers " in " ".join(out.split())
    assert sorted(file.name for file in output.iterdir()) == FILES

    summary = json.loads((output / "summary.json").read_text("utf-8"))
    assert list(summary["results"]) == list(KINDS)
    for i_kind, result in enumerate(summary["results"].values(), start=1):
        assert len(result["held_out"]) == 2
        assert all(0 < losses["text"] < math.log(273) for losses in result["held_out"])
        assert result["tokens_per_second"] > 0
        assert result["peak_bytes"] == i_kind * 2**20
    losses = json.loads((output / "losses.json").read_text("utf-8"))
    assert [len(seed) for kind in KINDS for seed in losses[kind]] == [30] * 8
    assert len((output / "table.md").read_text("utf-8").splitlines()) == 6

    generate = ["--generate", str(output / "model.pt"), "--device", "cpu", "--sample-bytes", "7"]
    assert main(["demo", *generate, "--prompt", "the <key=B> quick <key?>"]) == 0
    assert capsys.readouterr().out.startswith("the <key=B> quick <key?>")


@pytest.mark.parametrize(("after", "files"), [(3, ["model.pt", "pattern.png", "sample.txt"]), (7, FILES)])
def test_interrupted_run_writes_what_there_is(
    after: int,
    files: list[str],
    story: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    no_memory: None,
) -> None:
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    make_step_batch, calls = command.step_batch, []

    def interrupted(*args):
        calls.append(None)
        if len(calls) > after + 6:  # six to try out three lengths
            raise KeyboardInterrupt
        return make_step_batch(*args)

    monkeypatch.setattr(command, "step_batch", interrupted)
    options = ["--steps", "5", "--seeds", "2", "--sample-bytes", "5", "--output", str(tmp_path / "out")]
    assert main(["demo", str(story), *TINY, *options]) == 130
    out = capsys.readouterr().out
    assert "interrupted" in out
    assert ("own block only" in out.splitlines()[-12:].__str__()) == (after == 7)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == files
    assert load_model(tmp_path / "out" / "model.pt", CPU).generate([65], 3, seed=0)


def test_ours_is_ahead_only_if_the_gap_is_more_than_the_spread() -> None:
    report = pytest.importorskip("dilated_attention_pytorch.demo.report")

    def result(*losses: float):
        return report.Result(0.1, 4, [{"text": 2.0, "answer": loss, "right": 0.5} for loss in losses])

    results = {
        "dilated_sparse": result(0.1, 0.3),
        "own_block": result(2.7, 2.8),
        "local_window": result(0.3, 0.35),
    }
    own, window = report.verdicts(results)
    assert (
        own
        == "dilated_sparse is 2.55 nats ahead of own block only, more than the spread over the seeds (0.20)"
    )
    assert (
        window
        == "dilated_sparse is 0.12 nats ahead of local window, no more than the spread over the seeds (0.20)"
    )


# Bad input.


def test_empty_prompt_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--prompt must not be empty" in error_of(capsys, "demo", "--prompt", "")


def test_output_that_is_a_file_is_an_error(story: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot write to" in error_of(capsys, "demo", str(story), *TINY, "--output", str(story))
    assert "cannot write to" in error_of(capsys, "demo", str(story), *TINY, "--output", str(story / "folder"))


def test_backend_that_cannot_serve_says_why(
    story: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(type(CPU_BACKEND), "rejects", lambda *args: "it is asleep")
    message = error_of(capsys, "demo", str(story), *TINY, "--backend", "cpu")
    assert "backend='cpu' cannot serve this call: it is asleep" in message
