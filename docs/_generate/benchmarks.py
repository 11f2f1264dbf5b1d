"""Tables and plots of the committed runs of attention-bench."""

from __future__ import annotations

from pathlib import Path

import figures

from attention_bench import report

RESULTS = Path(__file__).resolve().parents[2] / "tools" / "attention-bench" / "results"


def write(markdown: Path, assets: Path) -> None:
    for path in sorted(RESULTS.glob("*.json")):
        rows, where = report.read_json(str(path))
        (markdown / f"benchmark-{path.stem}.md").write_text(report.markdown(rows, where), "utf-8")
        if path.stem != "h200":
            continue
        memory = ["| case | library | above q, k, v and the gradient |", "|---|---|---|"]
        for row in rows:
            if row.peak_bytes is not None and not row.dense:
                memory.append(f"| {row.case.label} | {row.peer} | {row.peak_bytes / 2**20:,.0f} MiB |")
        (markdown / "benchmark-memory.md").write_text("\n".join(memory) + "\n", "utf-8")
        cases = list(dict.fromkeys(row.case for row in rows))
        for direction in ("forward", "backward"):
            series: dict[str, list[float | None]] = {}
            for peer in ("ours", "flex"):
                found = {row.case: getattr(row, f"{direction}_tflops") for row in rows if row.peer == peer}
                series[peer] = [found.get(case) for case in cases]
            labels = [case.label.replace(" tokens", "") for case in cases]
            title = f"{direction}, TFLOP/s of the active blocks, {where['device']}"
            figures.grouped(assets / f"{direction}.svg", labels, series, title)
        ahead = [
            f"- {case.label}, {direction}: {theirs:.0f} against {ours:.0f} TFLOP/s."
            for direction in ("forward", "backward")
            for case in cases
            for ours in [value(rows, case, "ours", direction)]
            for theirs in [value(rows, case, "flex", direction)]
            if ours is not None and theirs is not None and theirs > ours
        ]
        (markdown / "benchmark-behind.md").write_text("\n".join(ahead or ["None."]) + "\n", "utf-8")


def value(rows: list, case: object, peer: str, direction: str) -> float | None:
    return next(
        (getattr(row, f"{direction}_tflops") for row in rows if row.case == case and row.peer == peer), None
    )
