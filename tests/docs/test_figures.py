"""The figures in sentences and hand-made tables are those of the committed runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain

import pytest

from attention_bench import calls, decode, generation, report, selection
from attention_bench.cases import Case
from attention_bench.measure import Row
from tests.docs.fences import ROOT

RESULTS = ROOT / "tools/attention-bench/results"
NOTES = "tools/attention-bench/NOTES.md"
BSA = ("bsa", "bsa-one-bucket", "bsa-2-splits", "bsa-auto-splits")


def words(page: str) -> str:
    """A page without its line breaks."""
    return " ".join((ROOT / page).read_text("utf-8").split())


class Run:
    """Times of a run by case, peer and direction."""

    def __init__(self, name: str) -> None:
        rows, _ = report.read_json(str(RESULTS / name))
        self.rows: dict[tuple[Case, str], Row] = {(row.case, row.peer): row for row in rows}
        self.cases = list(dict.fromkeys(row.case for row in rows))

    def ms(self, case: Case, peer: str, direction: str) -> float | None:
        row = self.rows.get((case, peer))
        return None if row is None else getattr(row, f"{direction}_ms")

    def best(self, case: Case, peers: Iterable[str], direction: str) -> float | None:
        times = [ms for peer in peers if (ms := self.ms(case, peer, direction)) is not None]
        return min(times, default=None)

    def gains(
        self, peers: Iterable[str], direction: str, cases: Iterable[Case], of: str = "ours"
    ) -> list[float]:
        """By how many percent `of` is faster than the best of `peers`, in every case that both have."""
        pairs = [(self.best(case, peers, direction), self.ms(case, of, direction)) for case in cases]
        return [100 * (theirs / ours - 1) for theirs, ours in pairs if theirs and ours]

    def losses(
        self, peers: Iterable[str], direction: str, cases: Iterable[Case], of: str = "ours"
    ) -> list[float]:
        """By how many percent the best of `peers` is faster than `of`."""
        return [100 * (1 / (1 + gain / 100) - 1) for gain in self.gains(peers, direction, cases, of)]

    def total(self, case: Case) -> float:
        both = [self.ms(case, "ours", direction) for direction in ("forward", "backward")]
        return sum(ms for ms in both if ms is not None)


@pytest.fixture(scope="module")
def goals() -> Run:
    return Run("h200.json")


@pytest.fixture(scope="module")
def chosen() -> Run:
    return Run("h200-topk.json")


def span(numbers: Iterable[float]) -> tuple[str, str]:
    """The least and the most, rounded."""
    found = sorted(numbers)
    return f"{found[0]:.0f}", f"{found[-1]:.0f}"


def large(goals: Run) -> list[Case]:
    """The cases with blocks of 128 in which any order has its own backward."""
    return [case for case in goals.cases if case.block == 128 and case.seqlen == 131072]


def test_forward_of_the_readme(goals: Run) -> None:
    fa4, bsa = (goals.gains(peers, "forward", goals.cases) for peers in (("fa4",), BSA))
    assert len(fa4) == len(bsa) == len(goals.cases)
    text = "faster in every case: by {} to {} % over FlashAttention-4 and by {} to {} % over cuDNN's kernels"
    assert text.format(*span(fa4), *span(bsa)) in words("README.md")


def test_backward_of_the_readme(goals: Run) -> None:
    page, cases = words("README.md"), large(goals)
    others = {case: goals.losses(["fa4", *BSA], "backward", [case])[0] for case in cases}
    (exception,) = (case for case in cases if others[case] < 0)
    assert (exception.heads, exception.head_dim, exception.density) == (32, 64, 0.05)
    behind = [goals.losses(peers, "backward", set(cases) - {exception}) for peers in (("fa4",), BSA)]
    text = "are {} to {} % faster than this library by default in three of the four cases"
    assert text.format(*span(chain(*behind))) in page
    (percent,) = goals.gains(("fa4",), "backward", [exception])
    assert f"FlashAttention-4 is {percent:.0f} % slower in the fourth (32 x 64, 5 %)" in page
    ahead = [goals.gains(peers, "backward", cases, "ours-unordered") for peers in (("fa4",), BSA)]
    assert [len(each) for each in ahead] == [4, 2]
    text = "is {} to {} % faster than FlashAttention-4 in all four cases and than cuDNN's kernels in the two that they serve"
    assert text.format(*span(chain(*ahead))) in page
    peaks = [
        goals.rows[cases[0], peer].peak_bytes for peer in ("fa4", "bsa-one-bucket", "ours", "ours-unordered")
    ]
    peaks.append(goals.rows[cases[1], "ours"].peak_bytes)
    theirs, bsa, default, unordered, two_passes = (f"{peak / 2**20:,.0f}" for peak in peaks if peak)
    assert default == unordered
    assert f"take {theirs} and {bsa} MiB" in page
    assert (
        f"this library {default}, by default and in any order; by default at 1 % it takes {two_passes}"
        in page
    )
    small = [case for case in goals.cases if case.block == 64]
    gains = [goals.gains(BSA, "backward", small, peer) for peer in ("ours", "ours-unordered")]
    text = (
        "is {:.0f} and {:.0f} % faster than cuDNN's kernels by default, and {:.0f} and {:.0f} % in any order"
    )
    assert text.format(*chain(*gains)) in page
    short = [case for case in goals.cases if case.seqlen == 16384]
    both = [*goals.gains(("fa4",), "backward", short), *goals.gains(BSA, "backward", short)]
    assert "At 16,384 tokens the default is {} to {} % faster than both".format(*span(both)) in page


def test_random_blocks_of_the_readme(chosen: Run) -> None:
    page = words("README.md")
    small, wide = ([case for case in chosen.cases if case.block == block] for block in (64, 128))
    assert (len(small), len(wide)) == (7, 3)
    ours, *behind = sorted(chosen.losses(BSA, "forward", small))
    assert ours < 0
    text = "ahead in the forward at block size 64, by {} to {} % in six of seven cases"
    assert text.format(*span(behind)) in page
    ahead = [chosen.gains(peers, "forward", wide) for peers in (BSA, ("fa4",))]
    text = "at 128 this library is, by {} to {} % over them and by {} to {} % over FlashAttention-4"
    assert text.format(*chain(*map(span, ahead))) in page
    behind, fa4 = (chosen.losses(peers, "backward", wide) for peers in (BSA, ("fa4",)))
    text = "cuDNN's kernels are {} to {} % faster than the default and FlashAttention-4 is {} to {} %;"
    assert text.format(*span(behind), *span(fa4)) in page
    ahead = [chosen.gains(peers, "backward", wide, "ours-unordered") for peers in (BSA, ("fa4",))]
    text = "is {} to {} % faster than the first and {} to {} % faster than the second"
    assert text.format(*chain(*map(span, ahead))) in page
    (densest,) = (case for case in small if (case.seqlen, case.density) == (131072, 0.1))
    modes = [
        *chosen.losses(BSA, "backward", [densest]),
        *chosen.losses(BSA, "backward", [densest], "ours-unordered"),
    ]
    (percent,) = set(span(modes))
    rest = chosen.gains(BSA, "backward", [case for case in small if case != densest])
    assert len(rest) == 6
    text = "are {} % ahead of both modes with 10 % of the blocks of 131,072 tokens, and this library's default by {} to {} %"
    assert text.format(percent, *span(rest)) in page


def test_flex_of_the_readme() -> None:
    run = Run("h200-flex.json")
    gains = [gain for way in ("forward", "backward") for gain in run.gains(("flex",), way, run.cases)]
    assert "this library was {} to {} % faster than compiled FlexAttention".format(*span(gains)) in words(
        "README.md"
    )


def test_any_order_on_the_page_of_benchmarks(goals: Run, chosen: Run) -> None:
    page, cases = words("docs/benchmarks.md"), large(goals)
    ahead = [goals.gains(peers, "backward", cases, "ours-unordered") for peers in (("fa4",), BSA)]
    assert (
        "is {} to {} % faster than both with the pattern of the first table".format(*span(chain(*ahead)))
        in page
    )
    wide = [case for case in chosen.cases if case.block == 128]
    ahead = [chosen.gains(peers, "backward", wide, "ours-unordered") for peers in (BSA, ("fa4",))]
    text = "it is {} to {} % faster than cuDNN's kernels and {} to {} % faster than FlashAttention-4"
    assert text.format(*chain(*map(span, ahead))) in page


def test_noise_of_the_smallest_case_on_the_page_of_benchmarks(goals: Run) -> None:
    (case,) = (case for case in goals.cases if (case.seqlen, case.density) == (16384, 0.01))
    default, unordered = (goals.rows[case, peer] for peer in ("ours", "ours-unordered"))
    assert default.peak_bytes == unordered.peak_bytes  # both in two passes
    (more,) = goals.losses(["ours"], "backward", [case], "ours-unordered")
    assert f"the same code there, differs by {more:.0f} %" in words("docs/benchmarks.md")


def test_dense_attention_is_faster_in_no_step_of_decoding() -> None:
    for name in ("h100-decode.json", "cpu-decode.json"):
        times: dict[object, dict[str, float]] = {}
        if name.startswith("h100"):
            for row in decode.read_json(str(RESULTS / name))[0]:
                times.setdefault(row.case, {})[row.peer] = row.ms
        else:
            for row in report.read_json(str(RESULTS / name))[0]:
                times.setdefault(row.case, {})[row.peer] = row.forward_ms
        assert times
        assert all(
            min(found[peer] for peer in found if peer.startswith("ours")) < found["sdpa"]
            for found in times.values()
        )
    assert "In none of the [decoding steps](#decoding-on-a-gpu) measured is it faster" in words(
        "docs/benchmarks.md"
    )


def test_blocks_of_64_in_the_guide_to_long_sequences(goals: Run) -> None:
    slower = [
        100 * (goals.total(case) / goals.total(replace(case, block=128)) - 1)
        for case in goals.cases
        if case.block == 64
    ]
    text = "forward and backward together then take {} to {} % longer"
    assert text.format(*span(slower)) in words("docs/guides/long-sequences.md")


def of_default(run: Run, cases: Iterable[Case]) -> list[float]:
    """The time that the backward in any order takes of the default's."""
    return [1 / (1 + gain / 100) for gain in run.gains(["ours"], "backward", cases, "ours-unordered")]


def test_any_order_in_the_guide_to_precision(goals: Run, chosen: Run) -> None:
    page = words("docs/guides/precision.md")
    text = "took {:.2f} of the time of the default, in turns, at 5 % density, and {:.2f} of that of two passes at 1 %"
    turns, two_passes, *fixed = of_default(goals, large(goals))
    assert text.format(turns, two_passes) in page
    assert "where the default sums in fixed point: {:.2f} and {:.2f};".format(*fixed) in page
    (short,) = (case for case in goals.cases if (case.seqlen, case.density) == (16384, 0.05))
    assert "at 16,384 tokens it took {:.2f} of the time at 5 %".format(*of_default(goals, [short])) in page
    blocks = [case for case in goals.cases if (case.block, case.density) == (64, 0.05)]
    (random,) = (case for case in chosen.cases if (case.seqlen, case.density) == (32768, 0.1))
    text = "took {:.2f} of the time of two passes (32 heads of 64: {:.2f}), with 10 % of random ones of 32,768 tokens {:.2f}"
    assert text.format(*of_default(goals, blocks), *of_default(chosen, [random])) in page
    wide = {case.density: case for case in chosen.cases if (case.seqlen, case.block) == (131072, 128)}
    text = "With random blocks the backward then took {:.2f} of the time of two passes at 10 % density and {:.2f} at 5 %"
    assert text.format(*of_default(chosen, [wide[0.1], wide[0.05]])) in page


def test_any_order_in_the_guide_to_training(goals: Run, chosen: Run) -> None:
    wide = [case for case in chosen.cases if case.block == 128]
    assert min(case.seqlen for case in wide) == 92160
    shares = [*of_default(goals, large(goals)), *of_default(chosen, wide)]
    text = "{:.2f} to {:.2f} times as fast with blocks of 128 and at least 92,160 tokens"
    assert text.format(1 / max(shares), 1 / min(shares)) in words("docs/guides/training.md")


def test_small_blocks_in_the_guide_to_backends() -> None:
    rows, _ = calls.read_json(str(RESULTS / "h200-calls.json"))
    times = {row.peer: (row.forward_ms, row.backward_ms) for row in rows}
    page = words("docs/guides/backends.md")
    names = {128: "plain", 64: "block-64", 32: "block-32", 16: "block-16"}
    for block, name in names.items():
        forward, backward = (report.milliseconds(ms) for ms in times[name] if ms is not None)
        pattern = "`dilated_sparse`, rates 1, 2, 4, 8" if block == 128 else "the same"
        assert f"| {block} | {pattern} | {forward}, {backward} |" in page


def test_growing_caches_in_the_guide_to_transformers() -> None:
    rows, _ = generation.read_json(str(RESULTS / "h200-models-generate.json"))
    dense, ours = (row.ms for row in rows if "dynamic" in row.case.label)
    assert dense is not None
    assert ours == pytest.approx(dense, rel=0.02)
    assert "both take equally long" in words("docs/guides/transformers.md")


def test_choice_in_the_guide_to_adaptive_attention() -> None:
    rows, _ = selection.read_json(str(RESULTS / "h200-selection.json"))
    times = {row.peer: row.ms for row in rows}
    share = (
        sum(times[part] for part in ("block_scores", "select_blocks", "from_indices")) / times["attention"]
    )
    text = f"Scoring, choosing and making the layout take {share:.0%} of the time"
    assert text.replace("%", " %") in words("docs/guides/adaptive.md")


def rows_of(page: str, heading: str) -> Iterator[list[str]]:
    """The cells of a Markdown table, by the beginning of its first line."""
    lines = (ROOT / page).read_text("utf-8").splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(heading))
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            return
        yield [cell.strip().replace("*", "") for cell in line.strip("|").split("|")]


def test_table_of_the_goals_in_the_notes(goals: Run) -> None:
    table = list(rows_of(NOTES, "| case | goal | ours |"))
    assert len(table) == len(goals.cases)
    for case, (_, _, *cells) in zip(goals.cases, table, strict=True):
        found = []
        for peers in (("ours",), ("ours-unordered",), ("fa4",), BSA):
            rates = [
                max(
                    (
                        getattr(row, f"{way}_tflops") or 0
                        for peer in peers
                        if (row := goals.rows.get((case, peer)))
                    ),
                    default=0,
                )
                for way in ("forward", "backward")
            ]
            found.append(" / ".join(f"{rate:.0f}" if rate else "none" for rate in rates))
        assert cells == found


def test_any_order_in_the_notes(goals: Run, chosen: Run) -> None:
    page, cases = words(NOTES), large(goals)
    text = "takes {:.2f} (16 x 128, 5 %), {:.2f} (1 %), {:.2f} and {:.2f} (32 x 64) of the time of any order"
    assert text.format(*(1 / share for share in of_default(goals, cases))) in page
    ahead = sorted(1 + gain / 100 for gain in goals.gains(("fa4",), "backward", cases, "ours-unordered"))
    assert f"is {ahead[0]:.2f} to {ahead[-1]:.2f} times fa4 in all four rows of block 128" in page
    wide = [case for case in chosen.cases if case.block == 128]
    default, unordered = (
        sorted(1 + gain / 100 for gain in chosen.gains(BSA, "backward", wide, peer))
        for peer in ("ours", "ours-unordered")
    )
    text = "({:.2f} to {:.2f} of bsa; in any order it is {:.2f} to {:.2f} times bsa)"
    assert text.format(default[0], default[-1], unordered[0], unordered[-1]) in page


def test_calls_beyond_the_plain_one_in_the_notes() -> None:
    rows, _ = calls.read_json(str(RESULTS / "h200-calls.json"))
    ratios = {row.peer: (row.forward_of_plain, row.backward_of_plain) for row in rows}
    table = list(rows_of(NOTES, "| call | compared with | forward, before |"))
    compared = 0
    for name, _, _, forward, _, backward, _ in table:
        found = ratios.get(name.strip("`"))
        if found is None:
            assert (forward, backward) == ("-", "-")
            continue
        compared += 1
        assert [re.match(r"[\d.]+", cell)[0] for cell in (forward, backward)] == [
            f"{ratio:.2f}" for ratio in found
        ]
    assert compared > 20
