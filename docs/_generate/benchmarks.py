"""Tables and plots of the committed runs of attention-bench."""

from __future__ import annotations

import statistics
from pathlib import Path

import bars

from attention_bench import breakeven, documents, host, report
from attention_bench.measure import Row

RESULTS = Path(__file__).resolve().parents[2] / "tools" / "attention-bench" / "results"
# The parts of the page that come with further runs: names of files, heading, what to know.
PARTS = [
    (
        "h200-0.3.0",
        "Release 0.3.0, with dense attention",
        "The release before the kernels for Hopper, beside dense attention through cuDNN.",
    ),
    (
        "*-features*",
        "Masks, heads and token dilation",
        "Every feature beside the same case without it. Active blocks count whole: with token dilation the rate stands "
        "for the time, not for products that were computed.",
    ),
    (
        "*-breakeven*",
        "When dense attention is as fast",
        "The same case from few blocks to all of them, beside dense attention through cuDNN.",
    ),
    (
        "*-long*",
        "One very long sequence",
        "Without a peer. The output is compared with the definition at a few queries.",
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
        "One thread. Dense attention reads a cache whose heads lie apart, this library one with a token after the other.",
    ),
    (
        "*-host*",
        "Python time of a call",
        "On a problem so small that the GPU has nothing to do, by the clock of the host, without waiting for the GPU.",
    ),
]
# What to know of a run that has it.
OF_PYTHON = (
    "Of Python: what a call takes above two allocations, the launch and, with gradients, a node of autograd around "
    "them."
)


def write(markdown: Path, assets: Path) -> None:
    for path in sorted(RESULTS.glob("*.json")):
        (markdown / f"benchmark-{path.stem}.md").write_text(documents.markdown(str(path)), "utf-8")
    rows, where = report.read_json(str(RESULTS / "h200.json"))
    peers = list(dict.fromkeys(row.peer for row in rows if not row.dense))
    plots(markdown, rows, peers, where["device"])
    (markdown / "benchmark-memory.md").write_text(memory(rows), "utf-8")
    (markdown / "benchmark-behind.md").write_text(behind(rows), "utf-8")
    cpu_rows, _ = report.read_json(str(RESULTS / "cpu.json"))
    (markdown / "benchmark-behind-cpu.md").write_text(behind(cpu_rows), "utf-8")
    (markdown / "benchmark-more.md").write_text("\n".join(parts()), "utf-8")


def plots(markdown: Path, rows: list[Row], peers: list[str], device: str) -> None:
    """A page's part with bars per direction."""
    cases = list(dict.fromkeys(row.case for row in rows))
    for direction in ("forward", "backward"):
        groups = {
            case.label: {peer: value(rows, case, peer, f"{direction}_tflops") for peer in peers}
            for case in cases
        }
        title = f"{direction.capitalize()}, TFLOP/s of the active blocks, {device}"
        (markdown / f"benchmark-{direction}.md").write_text(bars.grouped(title, groups), "utf-8")


def memory(rows: list[Row]) -> str:
    """Also of the run that is about memory, if there is one."""
    found = {(row.case, row.peer): row for row in rows}
    for path in sorted(RESULTS.glob("*-memory*.json")):
        found.update({(row.case, row.peer): row for row in report.read_json(str(path))[0]})
    lines = ["| case | library | above q, k, v and the gradient |", "|---|---|---|"]
    lines += [
        f"| {row.case.label} | {row.peer} | {row.peak_bytes / 2**20:,.0f} MiB |"
        for row in found.values()
        if row.peak_bytes is not None and not row.dense
    ]
    return "\n".join(lines) + "\n"


def behind(rows: list[Row]) -> str:
    """Where another peer takes less time."""
    lines = [
        f"- {row.case.label}, {direction}: {row.peer} {report.milliseconds(theirs)} ms, ours {report.milliseconds(ours)} ms."
        for direction in ("forward", "backward")
        for row in rows
        if row.peer != "ours"
        for ours in [value(rows, row.case, "ours", f"{direction}_ms")]
        for theirs in [value(rows, row.case, row.peer, f"{direction}_ms")]
        if ours is not None and theirs is not None and theirs < ours
    ]
    return "\n".join(lines or ["Nowhere in these cases."]) + "\n"


def parts() -> list[str]:
    """Sections of the page; none for what has not been measured."""
    made = []
    for name, heading, text in PARTS:
        paths = sorted(RESULTS.glob(f"{name}.json"))
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
            made.append(documents.markdown(str(path)))
    return made


def shares(rows: list[Row]) -> list[str]:
    """How the times compare, a line per peer and direction."""
    names, lines = report.labels(rows), []
    for peer in ("sdpa", "flex"):
        for direction in ("forward", "backward"):
            found = report.share(rows, peer, direction)
            if found:
                middle = statistics.median(share for share, _ in found)
                lines.append(
                    f"- {direction}, time over that of `{peer}`: median {middle:.2f}, at most {found[0][0]:.2f} "
                    f"({names[found[0][1]]})."
                )
    return lines


def has_python(path: Path) -> bool:
    """Whether a run of `attention-bench host` knows how much of a call is Python."""
    return any(row.forward_python_us is not None for row in host.read_json(str(path))[0])


def value(rows: list[Row], case: object, peer: str, field: str) -> float | None:
    return next((getattr(row, field) for row in rows if row.case == case and row.peer == peer), None)
