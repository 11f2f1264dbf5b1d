"""Tables and plots of the committed runs of attention-bench."""

from __future__ import annotations

import re
import statistics
import textwrap
from pathlib import Path

import bars

from attention_bench import breakeven, host, report, video
from attention_bench.cases import Case
from attention_bench.markdown import table
from attention_bench.measure import Row

RESULTS = Path(__file__).resolve().parents[2] / "tools" / "attention-bench" / "results"
# The parts of the page that come with further runs: names of files, heading, what to know.
PARTS = [
    (
        "*-flex*",
        "FlexAttention",
        "The cases of the first table in an earlier run, before the last changes of this library: `flex` is compiled "
        "FlexAttention.",
    ),
    (
        "*-topk*",
        "Blocks chosen per head",
        "Random blocks in every row of every head, the diagonal among them, as blocks chosen from the content are: neighbours "
        "share few. `bsa` is cuDNN's block-sparse attention with its defaults, the other `bsa-` are its settings; those with splits "
        "also take all queries of the backward in one bucket. Two or three rounds: differences below 5 % mean little.",
    ),
    (
        "*-practical*",
        "Sizes of training",
        "Causal, 32 heads on 8 kv heads. `cudnn` and `fa4-dense` are dense: they count every pair.",
    ),
    (
        "*-windows*",
        "Windows exact to the token",
        "Causal windows in 32,768 tokens; the pairs that the window shows count. `natten` is its attention in one dimension.",
    ),
    (
        "*-calls*",
        "Every feature beside the plain call",
        "The second figure is the time per pair of tokens in the active blocks over that of the call that it is compared with. "
        "At another head_dim it stands beside the same ratio of dense attention.",
    ),
    (
        "*-short*",
        "Short sequences and few heads",
        "Calls without a pause, eager and as replays of a CUDA graph; `both` is forward and backward.",
    ),
    (
        "h200-0.3.0",
        "Release 0.3.0, with dense attention",
        "The release before the Hopper kernels, compared with dense attention through cuDNN.",
    ),
    (
        "*-features*",
        "Masks, heads and token dilation",
        "Each feature compared with the same case without it. Active blocks count in full: with token dilation the rate "
        "measures time, not the products that were computed.",
    ),
    (
        "*-breakeven*",
        "When dense attention is as fast",
        "The same case from few blocks to all of them, compared with dense attention through cuDNN.",
    ),
    (
        "*-long*",
        "One very long sequence",
        "No peers. The output of a few queries is compared with the definition.",
    ),
    (
        "cpu-small",
        "Short sequences on a CPU",
        "One thread. FlexAttention is compiled and has no backward there.",
    ),
    (
        "cpu-shapes",
        "Other shapes on a CPU",
        "One thread: head_dim 128, grouped heads, blocks of 32 and 128.",
    ),
    (
        "cpu-decode",
        "Decoding on a CPU",
        "One thread. Dense attention reads a cache stored head by head, this library one stored token by token.",
    ),
    (
        "h*-decode",
        "Decoding on a GPU",
        "A step is one query per sequence, 32 heads of 128 on 8 kv heads, at the end of a full cache. Other memory is written "
        "before each step, so that its keys are in no cache of the GPU. The rate counts the keys and values of the active "
        "blocks, of `sdpa` all, and is compared with that of a large copy.",
    ),
    (
        "*-selection*",
        "Blocks chosen from the content",
        "Every part of a call, in the order in which they run; `attention` has a layout that is ready, `together` is all of them.",
    ),
    (
        "*-models-*",
        "Language models",
        "A Llama 3.2 1B with random weights, through the transformers integration. A step of fine-tuning is forward, backward "
        "and AdamW with gradient checkpointing; a token of `generate()` ends when it is on the host.",
    ),
    (
        "*-video*",
        "Tiles of videos",
        "Shapes of video models, in tokens along frames, height and width. The times of tiles include bringing q, k and v into "
        "their order and back.",
    ),
    (
        "*-scaling*",
        "Several GPUs",
        "One sequence over the GPUs of one host: `distributed_block_sparse_attention` with its default settings (`ours`), with one "
        "stage (no overlap), with `save_fetched=True`, and the same kernel after an all-gather of all keys and values. `ring` is "
        "dense causal attention in torch's context parallelism, measured up to the length that the table shows.",
    ),
    (
        "*-host*",
        "Python time of a call",
        "Measured on a problem so small that the GPU has almost nothing to do, with the host's clock and without waiting "
        "for the GPU.",
    ),
]
# Explains a column that some runs have.
OF_PYTHON = (
    '"Of Python" is the time of a call minus that of two allocations, the launch and, with gradients, an autograd node '
    "around them."
)
FOLDED = 12  # longer tables are folded
ONLY_BACKWARD = ("ours-unordered", "bsa-one-bucket")  # settings without a meaning in the forward


def write(markdown: Path, assets: Path) -> None:
    for path in sorted(RESULTS.glob("*.json")):
        (markdown / f"benchmark-{path.stem}.md").write_text(unbroken_table(path), "utf-8")
    rows, where = report.read_json(str(RESULTS / "h200.json"))
    peers = list(dict.fromkeys(row.peer for row in rows if not row.dense))
    plots(markdown, rows, peers, where["device"])
    (markdown / "benchmark-memory.md").write_text(memory(rows), "utf-8")
    chosen = [row for path in sorted(RESULTS.glob("h*-topk.json")) for row in report.read_json(str(path))[0]]
    (markdown / "benchmark-behind.md").write_text(behind([*rows, *chosen]), "utf-8")
    cpu_rows, _ = report.read_json(str(RESULTS / "cpu.json"))
    (markdown / "benchmark-behind-cpu.md").write_text(behind(cpu_rows), "utf-8")
    (markdown / "benchmark-tiles.md").write_text(tiles_of_the_guide(), "utf-8")
    (markdown / "benchmark-more.md").write_text("\n".join(parts()), "utf-8")


def unbroken_table(path: Path) -> str:
    """The figures of a file."""
    return in_lines(table(str(path)))


def in_lines(text: str) -> str:
    """A line breaks between measurements and sizes, not inside them."""
    units = r"(?<=\d) (?:(?:ms|GiB)\b(?: (?=\())?|x (?=\d))"
    return re.sub(units, unbroken, text)


def unbroken(found: re.Match[str]) -> str:
    return found[0].replace(" ", "\N{NO-BREAK SPACE}")


def folded(text: str) -> str:
    """A long table behind a line that unfolds it; its source stays visible."""
    lines = text.splitlines()
    rows = [line for line in lines if line.startswith("|")]
    if len(rows) <= FOLDED + 2:
        return text
    inner, rest = textwrap.indent("\n".join(rows), "    "), "\n".join(lines[len(rows) :])
    return f'??? info "All {len(rows) - 2} cases"\n\n{inner}\n{rest}\n'


def plots(markdown: Path, rows: list[Row], peers: list[str], device: str) -> None:
    """A page's part with bars per direction."""
    cases = list(dict.fromkeys(row.case for row in rows))
    for direction in ("forward", "backward"):
        shown = [peer for peer in peers if direction == "backward" or peer not in ONLY_BACKWARD]
        groups = {
            case.label: {peer: value(rows, case, peer, f"{direction}_tflops") for peer in shown}
            for case in cases
        }
        title = f"{direction.capitalize()}, TFLOP/s of the active blocks, {device}"
        (markdown / f"benchmark-{direction}.md").write_text(bars.grouped(title, groups), "utf-8")


def tiles_of_the_guide() -> str:
    """The videos without text, in the tiles that are the default, and dense."""
    rows, where = video.read_json(str(RESULTS / "h200-video.json"))
    shown = [row for row in rows if not row.case.text and (row.dense or "tiles 4x4x4" in row.peer)]
    return in_lines(video.markdown(shown, where))


def memory(rows: list[Row]) -> str:
    """A row per case, those of the run that is about memory included, and a column per peer."""
    found = {(row.case, row.peer): row for row in rows}
    for path in sorted(RESULTS.glob("*-memory*.json")):
        found.update({(row.case, row.peer): row for row in report.read_json(str(path))[0]})
    cases: dict[Case, dict[str, str]] = {}
    for row in found.values():
        if row.peak_bytes is not None and not row.dense:
            cases.setdefault(row.case, {})[row.peer] = f"{row.peak_bytes / 2**20:,.0f} MiB"
    peers = list(dict.fromkeys(peer for cells in cases.values() for peer in cells))
    lines = [f"| case | {' | '.join(peers)} |", "|---" * (1 + len(peers)) + "|"]
    lines += [
        f"| {case.label} | {' | '.join(cells.get(peer, 'not measured') for peer in peers)} |"
        for case, cells in cases.items()
    ]
    return "\n".join(lines) + "\n"


def behind(rows: list[Row]) -> str:
    """Where another library takes less time at its best setting, with our time and, backward, that of our fastest mode."""

    def is_best(row: Row, direction: str) -> bool:
        library = [each for each in rows if each.case == row.case and name_of(each) == name_of(row)]
        times = [ms for each in library if (ms := getattr(each, f"{direction}_ms")) is not None]
        return bool(getattr(row, f"{direction}_ms") == min(times, default=None))

    lines = [
        f"- {row.case.label}, {direction}: {row.peer} {report.milliseconds(theirs)} ms, ours {report.milliseconds(ours)} ms"
        + ("" if unordered is None else f", in any order {report.milliseconds(unordered)} ms")
        + "."
        for direction in ("forward", "backward")
        for row in rows
        if name_of(row) != "ours" and is_best(row, direction)
        for ours in [value(rows, row.case, "ours", f"{direction}_ms")]
        for theirs in [value(rows, row.case, row.peer, f"{direction}_ms")]
        for unordered in [
            value(rows, row.case, "ours-unordered", "backward_ms") if direction == "backward" else None
        ]
        if ours is not None and theirs is not None and theirs < ours
    ]
    return "\n".join(lines or ["None of these cases."]) + "\n"


def name_of(row: Row) -> str:
    """The library of a peer, without its setting."""
    return row.peer.split("-", maxsplit=1)[0]


def parts() -> list[str]:
    """The sections of the page; what has not been measured has none."""
    made = []
    for name, heading, text in PARTS:
        paths = sorted(RESULTS.glob(f"{name}.json"), key=lambda path: path.stem)
        if not paths:
            continue
        made += [f"## {heading}\n", f"{text}\n"]
        if "host" in name and any(map(has_python, paths)):
            made.append(f"{OF_PYTHON}\n")
        for path in paths:
            if "breakeven" in name:
                made.append(
                    "\n".join(breakeven.lines(report.read_json(str(path))[0], "ours", "cudnn")) + "\n"
                )
            if "cpu" in name:
                made.append("\n".join(shares(report.read_json(str(path))[0])) + "\n")
            made.append(folded(unbroken_table(path)))
    return made


def shares(rows: list[Row]) -> list[str]:
    """One line per peer and direction that compares the times."""
    names, lines = report.labels(rows), []
    for peer in ("sdpa", "flex"):
        for direction in ("forward", "backward"):
            found = report.share(rows, peer, direction)
            if found:
                middle = statistics.median(share for share, _ in found)
                lines.append(
                    f"- {direction}, our time divided by that of `{peer}`: median {middle:.2f}, at most {found[0][0]:.2f} "
                    f"({names[found[0][1]]})."
                )
    return lines


def has_python(path: Path) -> bool:
    """Whether a run of `attention-bench host` knows how much of a call is Python."""
    return any(row.forward_python_us is not None for row in host.read_json(str(path))[0])


def value(rows: list[Row], case: object, peer: str, field: str) -> float | None:
    return next((getattr(row, field) for row in rows if row.case == case and row.peer == peer), None)
