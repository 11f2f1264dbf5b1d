"""Bars as HTML: readable at every width, in the colours of the page."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape


def grouped(title: str, groups: Mapping[str, Mapping[str, float | None]]) -> str:
    """A table of bars per group, all to one scale, side by side where there is room."""
    largest = max(value for group in groups.values() for value in group.values() if value is not None)
    tables = "\n".join(table(name, group, largest, 0) for name, group in groups.items())
    return f'<div class="bars" markdown="0">\n<p>{escape(title)}</p>\n<div>\n{tables}\n</div>\n</div>\n'


def single(title: str, values: Mapping[str, float], digits: int) -> str:
    """One table of bars."""
    return f'<div class="bars" markdown="0">\n{table(title, values, max(values.values()), digits)}\n</div>\n'


def table(title: str, values: Mapping[str, float | None], largest: float, digits: int) -> str:
    """A bar per name; what has no value says none."""
    lines = ['<table class="bars-table">', f"<caption>{escape(title)}</caption>"]
    for i, (name, value) in enumerate(values.items()):
        bar, text = "", "none"
        if value is not None:
            bar = f'<span class="bars-bar bars-{i}" style="--share: {value / largest:.4f}"></span>'
            text = f"{value:,.{digits}f}"
        lines.append(
            f'<tr><th scope="row">{escape(name)}</th><td><div>{bar}<span>{text}</span></div></td></tr>'
        )
    return "\n".join([*lines, "</table>"])
