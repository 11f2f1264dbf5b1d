"""`warm`: what it accepts, and that what it compiles is there for the next process."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from dilated_attention_pytorch.__main__ import build_parser, main
from dilated_attention_pytorch.backends.triton import TRITON
from dilated_attention_pytorch.cli import warm
from dilated_attention_pytorch.cli.warm_calls import (
    FEATURES,
    NOT_PACKED,
    Case,
    SmallCall,
    Wanted,
    large_calls,
    small_calls,
)
from dilated_attention_pytorch.launching.installed import installed_versions, release
from tests.core.environment import without_interpreter

CASE = Case(16, 16, 16, "float16", True)
SMALLEST = ["--arch", "80", "--head-dim", "16", "--block-size", "16", "--dtype", "float16"]


def warmed(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """What a process of its own compiles."""
    environment = without_interpreter()
    environment["TRITON_CACHE_DIR"] = str(folder)
    command = [sys.executable, "-m", "dilated_attention_pytorch", "warm", "--json", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


says_what_it_compiles = pytest.mark.skipif(
    (release(next(iter(installed_versions("triton")), "0.0")) or (0, 0)) < (3, 6),
    reason="needs triton 3.6 or newer",
)


@says_what_it_compiles
def test_second_run_finds_everything_on_the_disk(tmp_path: Path) -> None:
    arguments = [*SMALLEST, "--mask", "none", "--forward-only"]
    first, second = (warmed(tmp_path, *arguments) for _ in range(2))
    assert [made["from_disk"] for made in first] == [False]
    assert [made["from_disk"] for made in second] == [True]
    for made in (*first, *second):
        assert (made["backend"], made["kernel"], made["head_dim"], made["is_causal"]) == (
            "triton",
            "forward_kernel",
            16,
            False,
        )
    assert list(tmp_path.rglob("*.cubin"))


@says_what_it_compiles
def test_two_runs_at_a_time_compile_every_kernel_once(tmp_path: Path) -> None:
    arguments = [*SMALLEST, "--mask", "both", "--forward-only", "--jobs", "1"]
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda _: warmed(tmp_path, *arguments), range(2)))
    for is_causal in (True, False):
        made = [each["from_disk"] for run in runs for each in run if each["is_causal"] is is_causal]
        assert sorted(made) == [False, True]


BAD_ARGUMENTS = {
    "--arch 9": "must be one of 80 (A100), 86 (A10), 89 (L4), 90 (H100), 100 (B200), 120 (RTX 5090), got '9'",
    "--arch 91": "must be one of 80 (A100), 86 (A10), 89 (L4), 90 (H100), 100 (B200), 120 (RTX 5090), got '91'",
    "--arch sm_90": "got 'sm_90'",
    "--head-dim 512": "--head-dim: must be at most 256, got 512",
    "--v-head-dim 512": "--v-head-dim: must be at most 256, got 512",
    "--block-size 48": "must be one of",
    "--features softcp": "unknown feature 'softcp'; did you mean 'softcap'?",
    "--features packed,padding": "packed sequences take no padding",
    "--mask causl": "did you mean 'causal'?",
    "--dtype float64": "invalid choice: 'float64'",
}


@pytest.mark.parametrize("arguments", BAD_ARGUMENTS)
def test_bad_arguments_are_told(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["warm", *arguments.split()])
    assert BAD_ARGUMENTS[arguments] in capsys.readouterr().err


def test_without_gpu_and_architecture_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(warm, "is_installed", lambda name: True)
    monkeypatch.setattr(warm, "installed_versions", lambda *names: [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["warm"]) == 2
    assert "finds no usable GPU; give --arch, such as --arch 90" in capsys.readouterr().err


def test_interpreted_kernels_are_not_compiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(warm, "is_installed", lambda name: True)
    assert main(["warm", "--arch", "90"]) == 2
    assert "TRITON_INTERPRET=1 is set" in capsys.readouterr().err


def test_old_triton_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(warm, "is_installed", lambda name: True)
    monkeypatch.setattr(warm, "installed_versions", lambda *names: ["3.3.1"])
    assert main(["warm", "--arch", "90"]) == 2
    assert "triton 3.3.1 does not say what it compiles; needs 3.6" in capsys.readouterr().err


def test_without_triton_there_is_nothing_to_compile(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(warm, "is_installed", lambda name: False)
    assert main(["warm", "--arch", "90"]) == 2
    assert "triton is not installed" in capsys.readouterr().err


def test_what_does_not_compile_is_told_and_the_rest_is_compiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("triton")
    called = []

    def compile_kernels(call: SmallCall, wanted: Wanted) -> None:
        called.append((call.q.shape[3], call.features))
        if call.features and call.q.shape[3] == 16:
            try:
                raise TypeError("cannot\nadd them")
            except TypeError as error:
                raise RuntimeError("at 3:4:\n  p = s + alibi\n      ^") from error

    monkeypatch.setattr(warm, "check_installation", lambda arch: None)
    monkeypatch.setattr(warm, "compile_kernels", compile_kernels)
    options = "--arch 90 --head-dim 16,32 --block-size 16 --mask causal --features alibi,sinks --jobs 1"
    assert main(["warm", *options.split()]) == 1
    printed = capsys.readouterr()
    case = "head_dim 16, block_size 16, bfloat16, causal"
    assert printed.err == f"does not compile: {case}, alibi, sinks: TypeError: add them\n"
    assert printed.out.startswith(f"{case}\n{case.replace('16', '32', 1)}\n0 kernels in")
    assert called == [(dim, names) for dim in (16, 32) for names in [(), ("alibi", "sinks")] * 6]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("ptxas failed\nout of registers\nRepro command: ptxas a.ptx\n"), "out of registers"),
        (RuntimeError(""), None),
    ],
)
def test_last_line_of_the_compiler(error: Exception, expected: str | None) -> None:
    assert warm.last_line(error) == (f"RuntimeError: {expected}" if expected else "RuntimeError")


def test_kernel_of_two_cases_counts_once() -> None:
    compile_only = pytest.importorskip("dilated_attention_pytorch.backends.compile_only")
    found = [
        compile_only.Compilation("forward_kernel", key, "module", from_disk, 1.0)
        for key, from_disk in (("a", True), ("b", False), ("b", False), ("c", False), ("c", True))
    ]
    assert warm.summary(found, 2.0, "here") == "3 kernels in 2.0 s: 2 compiled, 1 were there (here)"


def test_head_dim_of_v_is_that_of_q_or_is_given() -> None:
    def sizes(*options: str) -> list[tuple[int, int]]:
        args = build_parser().parse_args(["warm", "--mask", "none", "--head-dim", "32,48", *options])
        return [(case.head_dim, case.v_head_dim) for case in warm.cases_of(args)]

    assert sizes() == [(32, 32), (48, 48)]
    assert sizes("--v-head-dim", "16,48") == [(32, 16), (32, 48), (48, 16), (48, 48)]
    case = CASE._replace(v_head_dim=32)
    assert str(case) == "head_dim 16, v_head_dim 32, block_size 16, float16, causal"
    for names in ((), ("packed",)):
        for call in small_calls(case, Wanted((9, 0), "auto", names, True)):
            assert (call.problem().head_dim, call.problem().v_head_dim) == (16, 32)


def test_calls_that_are_not_deterministic_are_plain_ones_beside_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    wanted = Wanted((9, 0), "auto", ("softcap",), True)
    known = list(small_calls(CASE, wanted))
    calls = list(small_calls(CASE, wanted._replace(deterministic=False)))
    more = [call for call in calls if not call.problem().deterministic]
    assert [call.features for call in more] == [()] * 6
    assert len(calls) == len(known) + len(more)
    assert not any("deterministic" in call.options for call in known)
    assert build_parser().parse_args(["warm"]).deterministic is True
    assert main(["warm", "--arch", "90", "--no-deterministic", "--forward-only"]) == 2
    assert (
        "--no-deterministic is for the backward, which --forward-only leaves out" in capsys.readouterr().err
    )


def test_calls_that_are_not_deterministic_have_the_single_pass_compiled() -> None:
    pytest.importorskip("triton.experimental.gluon")
    from dilated_attention_pytorch.backends.compile_only import replaced
    from dilated_attention_pytorch.backends.hopper import HOPPER
    from dilated_attention_pytorch.backends.hopper.adding import Adding, Limits
    from dilated_attention_pytorch.backends.hopper.single_pass import SINGLE_PASS

    case = Case(128, 128, 128, "bfloat16", False)
    for call in small_calls(case, Wanted((9, 0), "auto", (), True, deterministic=False)):
        problem = call.problem().prepared_by(HOPPER, call.layout)
        with replaced(SINGLE_PASS, limits=Limits(any_order_blocks=0)):  # as when they are compiled
            assert isinstance(SINGLE_PASS.choice(problem), Adding) is not problem.deterministic


def test_large_calls_run_where_their_backward_differs() -> None:
    pytest.importorskip("triton.experimental.gluon")
    from dilated_attention_pytorch.backends.hopper import HOPPER
    from dilated_attention_pytorch.backends.hopper.adding import Adding, Limits, row_ranges
    from dilated_attention_pytorch.backends.hopper.single_pass import SINGLE_PASS

    here = Wanted(None, "auto", (), True)
    for head_dim, block_size, is_causal in (
        (64, 128, True), (128, 128, True), (64, 64, True), (128, 64, True), (64, 128, False), (128, 128, False),
    ):  # fmt: skip
        case = Case(head_dim, head_dim, block_size, "bfloat16", is_causal)
        for wanted in (here, here._replace(deterministic=False)):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Wanted, "device", "cpu")
                assert not list(large_calls(case, wanted._replace(has_backward=False)))
                assert not list(large_calls(case, wanted._replace(capability=(9, 0))))
                calls = list(large_calls(case, wanted))
            lengths = list(dict.fromkeys(call.q.shape[1] for call in calls))
            assert {length % 128 == 0 for length in lengths} == ({True, False} if lengths else set())
            problems = [call.problem().prepared_by(HOPPER, call.layout) for call in calls]
            ranges = [
                row_ranges(p, Limits()) for p in problems if not p.deterministic and p.block_size == 128
            ]
            assert ranges == ([] if wanted.deterministic or block_size == 64 else [1, 1 + head_dim // 64] * 2)
            assert {p.deterministic for p in problems} == {
                *([True] if block_size == 128 else []), *([False] if not wanted.deterministic else [])
            }  # fmt: skip
            for p in problems:
                is_windowed = p.deterministic and p.q.shape[1] >= 2**16
                has_turns = is_windowed and head_dim == 128
                expected = not p.deterministic or (head_dim == 64 and not is_windowed) or has_turns
                assert isinstance(SINGLE_PASS.choice(p), Adding) is expected
                assert (SINGLE_PASS.choice(p) is Adding.TURNS) is has_turns
    assert not list(large_calls(Case(64, 64, 32, "bfloat16", True), here._replace(deterministic=False)))


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("name", FEATURES)
def test_every_feature_makes_calls_of_its_own(name: str, is_causal: bool) -> None:
    plain, given = (
        [
            call.problem()
            for call in small_calls(CASE._replace(is_causal=is_causal), Wanted((9, 0), "auto", names, True))
        ]
        for names in ((), (name,))
    )
    assert len(plain) == 6
    assert len(given) == 2 * len(plain)
    unlike = {
        "packed": "sequences",
        "masks": "block_masks",
        "kv-lengths": "sequences",
        "positions": "sequences",
    }
    fields = {
        "padding": "key_padding_mask",
        "alibi": "alibi_slopes",
        "block-bias": "block_bias",
        "dropout": "dropout_p",
    }
    field = {**unlike, **fields}.get(name, name)
    for one, other in zip(given[::2], given[1::2], strict=True):
        assert not getattr(one, field)
        found = getattr(other, field)
        assert found is not None
        assert isinstance(found, (torch.Tensor, tuple)) or found
    assert {p.num_heads // p.num_kv_heads for p in plain} == {1, 2}
    assert {p.kv_len % CASE.block_size == 0 for p in plain} == {True, False}
    assert any(p.q_offset % CASE.block_size for p in plain) is is_causal


@pytest.mark.interpreter
def test_all_features_together_can_be_called() -> None:
    wanted = Wanted(
        None, "triton", tuple(name for name in FEATURES if name not in ("packed", *NOT_PACKED)), True
    )
    calls = [*small_calls(CASE, wanted._replace(capability=(9, 0)))]
    if TRITON.rejects(calls[1].problem()) is None:
        calls[1].run("triton", True)


@pytest.mark.parametrize("text", ["90", "9.0"])
def test_architecture_is_written_as_torch_or_as_nvidia_write_it(text: str) -> None:
    assert warm.architecture(text) == (9, 0)
