"""Bar charts of the figures of a run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from dilated_attention_pytorch.cli.files import write_whole

from .cases import Case
from .measure import Row


def plot(rows: list[Row], where: dict[str, Any], folder: str) -> list[Path]:
    """Write forward.png and backward.png with a group of bars per case; returns the paths.

    The folder is created if needed; its parent must exist.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    written = []
    for direction in ("forward", "backward"):
        times = {(row.case, row.peer): getattr(row, f"{direction}_ms") for row in rows}
        known = {key: ms for key, ms in times.items() if ms is not None}
        if not known:
            continue
        cases: list[Case] = list(dict.fromkeys(case for case, _ in known))
        peers = list(dict.fromkeys(peer for _, peer in known))
        figure, ax = plt.subplots(
            figsize=(8, 1.2 + 0.25 * len(cases) * (len(peers) + 1)), layout="constrained"
        )
        height = 0.8 / len(peers)
        for i_peer, peer in enumerate(peers):
            i_cases = [i for i, case in enumerate(cases) if (case, peer) in known]
            values = [known[cases[i], peer] for i in i_cases]
            bars = ax.barh([i + i_peer * height for i in i_cases], values, height, label=peer)
            ax.bar_label(bars, fmt="%.3g", padding=2, fontsize=8)
        ax.set_yticks(
            [i + 0.4 - height / 2 for i in range(len(cases))], [case.label for case in cases], fontsize=8
        )
        ax.invert_yaxis()
        ax.set_xscale("log")
        ax.set_xlabel(f"{direction}, ms (log scale), lower is better")
        ax.set_title(f"{where['device']}, torch {where['versions']['torch']}, {where['date']}", fontsize=9)
        ax.legend(fontsize=8)
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=150)
        plt.close(figure)
        Path(folder).mkdir(exist_ok=True)
        path = Path(folder, f"{direction}.png")
        write_whole(path, image.getvalue())
        written.append(path)
    return written
