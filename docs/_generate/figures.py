"""Pictures of layouts as SVG, in colours that can be told apart on a light and on a dark page."""

from __future__ import annotations

from dilated_attention_pytorch import BlockLayout

KEPT, LEFT_OUT = "#5b6ee1", "#7a7f8a"


def grid(layout: BlockLayout) -> str:
    """Rows of query blocks, columns of key blocks; neighbouring active blocks are one rectangle."""
    n_rows, n_cols = layout.grid.n_rows, layout.grid.n_cols
    path = "".join(
        f"M{first} {row}h{last - first + 1}v1h-{last - first + 1}z"
        for row, cols in enumerate(layout.rows())
        for first, last in runs(cols)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {n_cols} {n_rows}" width="512" height="512" '
        f'shape-rendering="crispEdges"><path fill="{LEFT_OUT}" fill-opacity="0.2" d="M0 0h{n_cols}v{n_rows}H0z"/>'
        f'<path fill="{KEPT}" d="{path}"/></svg>\n'
    )


def runs(numbers: list[int]) -> list[tuple[int, int]]:
    """First and last of every run of consecutive numbers."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found
