"""The figures of the demo in README and on the site are those of the committed run."""

from __future__ import annotations

import json
import re
import statistics

from tests.project.repository import ROOT

RUN = ROOT / "tools/attention-bench/results/demo-h100"
SUMMARY = json.loads((RUN / "summary.json").read_text("utf-8"))


def answers(kind: str) -> list[float]:
    return [losses["answer"] for losses in SUMMARY["results"][kind]["held_out"]]


def test_table_is_that_of_the_summary() -> None:
    rows = (RUN / "table.md").read_text("utf-8").splitlines()[2:]
    assert len(rows) == len(SUMMARY["results"])
    for row, (kind, result) in zip(rows, SUMMARY["results"].items(), strict=True):
        losses = answers(kind)
        loss = f"{statistics.mean(losses):.2f} ± {(max(losses) - min(losses)) / 2:.2f}"
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1:3] == [f"{result['density']:.1%}", loss]
        assert cells[5] == f"{result['tokens_per_second']:,.0f}"


def test_sentence_of_the_readme_has_the_figures_of_the_table() -> None:
    rows = [row.split("|") for row in (RUN / "table.md").read_text("utf-8").splitlines()[2:]]
    dense, ours, own_block, window = ([cell.strip() for cell in row[2:4]] for row in rows)
    (sentence,) = re.findall(
        r"On an H100 the run is longer.*?table\]", (ROOT / "README.md").read_text("utf-8"), re.DOTALL
    )
    words = " ".join(sentence.split())
    assert f"keeps {ours[0][:-1]} % of the blocks and its answers' loss is {ours[1]}" in words
    means = [cells[1].split()[0] for cells in (dense, own_block, window)]
    assert (
        "compared with {} for dense attention, {} for the own block and {} for the local window".format(
            *means
        )
        in words
    )
    assert (
        f"{SUMMARY['training']['context']:,} tokens of context, {SUMMARY['training']['steps']} steps" in words
    )


def test_page_names_each_seeds_loss() -> None:
    page = " ".join((ROOT / "docs/get-started.md").read_text("utf-8").split())
    assert "({:.2f}, {:.2f} and {:.2f})".format(*answers("dilated_sparse")) in page
