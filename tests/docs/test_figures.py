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
    """The cases in which others are ahead in the backward."""
    return [case for case in goals.cases if case.block == 128 and case.seqlen == 131072]


def test_forward_of_the_readme(goals: Run) -> None:
    fa4, bsa = (goals.gains(peers, "forward", goals.cases) for peers in (("fa4",), BSA))
    (same,) = (gain for gain in bsa if gain < 1)
    others = [gain for gain in bsa if gain != same]
    text = "by {} to {} % over FlashAttention-4 and by {} to {} % over cuDNN's kernels, which take the same time at block size 64 and 1 %"
    assert text.format(*span(fa4), *span(others)) in words("README.md")


def test_backward_of_the_readme(goals: Run) -> None:
    page, cases = words("README.md"), large(goals)
    behind = [goals.losses(peers, "backward", cases) for peers in (("fa4",), BSA)]
    assert "are {} to {} % faster than this library by default".format(*span(chain(*behind))) in page
    ahead = [goals.gains(peers, "backward", cases, "ours-unordered") for peers in (("fa4",), BSA)]
    (percent,) = set(span(chain(*ahead)))
    assert [len(each) for each in ahead] == [4, 2]
    text = "is {} % faster than FlashAttention-4 in all four cases and than cuDNN's kernels in the two that they serve"
    assert text.format(percent) in page
    memory = [goals.rows[cases[0], peer].peak_bytes for peer in ("fa4", "bsa-one-bucket", "ours")]
    taken = [f"{peak / 2**20:,.0f}" for peak in memory if peak]
    assert "take {} and {} MiB".format(*taken) in page
    assert f"where this library takes {taken[2]}" in page
    small = [case for case in goals.cases if case.block == 64]
    text = "this library is {} and {} % faster than cuDNN's kernels"
    assert text.format(*span(goals.gains(BSA, "backward", small))) in page
    short = [case for case in goals.cases if case.seqlen == 16384]
    both = [*goals.gains(("fa4",), "backward", short), *goals.gains(BSA, "backward", short)]
    assert "At 16,384 tokens the default is {} to {} % faster than both".format(*span(both)) in page


def test_random_blocks_of_the_readme(chosen: Run) -> None:
    page = words("README.md")
    small, wide = ([case for case in chosen.cases if case.block == block] for block in (64, 128))
    text = "cuDNN's kernels are ahead in the forward at block size 64, by {} to {} %, and this library at 128, by {} to {} %"
    behind, ahead = chosen.losses(BSA, "forward", small), chosen.gains(BSA, "forward", wide)
    assert text.format(*span(behind), *span(ahead)) in page
    text = "they are ahead of the default by {} to {} %"
    assert text.format(*span(chosen.losses(BSA, "backward", wide))) in page
    worst, *rest = sorted(chosen.gains(BSA, "backward", wide, "ours-unordered"))
    text = "is {:.0f} % behind them with 10 % of the blocks of 131,072 tokens, and {:.0f} and {:.0f} % ahead in the two other"
    assert text.format(100 * (1 / (1 + worst / 100) - 1), *rest) in page
    worst, *rest = sorted(chosen.gains(BSA, "backward", small))
    text = "are {:.0f} % ahead with 10 % of the blocks of 131,072 tokens, and this library by {} to {} % in the other four"
    assert text.format(100 * (1 / (1 + worst / 100) - 1), *span(rest)) in page


def test_flex_of_the_readme() -> None:
    run = Run("h200-flex.json")
    gains = [gain for way in ("forward", "backward") for gain in run.gains(("flex",), way, run.cases)]
    assert "this library was {} to {} % faster than compiled FlexAttention".format(*span(gains)) in words(
        "README.md"
    )


def test_any_order_on_the_page_of_benchmarks(goals: Run, chosen: Run) -> None:
    page, cases = words("docs/benchmarks.md"), large(goals)
    ahead = [goals.gains(peers, "backward", cases, "ours-unordered") for peers in (("fa4",), BSA)]
    (percent,) = set(span(chain(*ahead)))
    assert f"is {percent} % faster than both with the pattern of the first table" in page
    wide = [case for case in chosen.cases if case.block == 128]
    worst, *rest = sorted(chosen.gains(BSA, "backward", wide, "ours-unordered"))
    text = "it is {:.0f} and {:.0f} % faster than cuDNN's in two cases, and {:.0f} % slower in the third"
    assert text.format(*rest, 100 * (1 / (1 + worst / 100) - 1)) in page


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


def test_any_order_in_the_guide_to_precision(goals: Run) -> None:
    shares = [
        backward / two_passes
        for case in large(goals)
        if (backward := goals.ms(case, "ours-unordered", "backward"))
        and (two_passes := goals.ms(case, "ours", "backward"))
    ]
    text = "took {:.2f} of the time of two passes at 5 % density and {:.2f} at 1 % (32 heads of 64: {:.2f} and {:.2f};"
    assert text.format(*shares) in words("docs/guides/precision.md")
    small = [case for case in goals.cases if case.seqlen == 16384]
    shares = [1 / (1 + gain / 100) for gain in goals.gains(["ours"], "backward", small, "ours-unordered")]
    text = "at 16,384 tokens it took {:.2f} of the time at 5 % and {:.2f} at 1 %"
    assert text.format(*shares) in words("docs/guides/precision.md")


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


def test_slower_than_flash_attention_in_the_notes(goals: Run) -> None:
    text = "is {} to {} % slower than FlashAttention-4 on an H200"
    assert text.format(*span(goals.losses(("fa4",), "backward", large(goals)))) in words(NOTES)


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
