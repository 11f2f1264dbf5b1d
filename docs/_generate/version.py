"""The version of the library, for the header and the footer of every page."""

from __future__ import annotations

from pathlib import Path

import dilated_attention_pytorch

PARTIAL = Path(__file__).resolve().parents[1] / "_theme" / "partials" / "version.html"


def write(markdown: Path, assets: Path) -> None:
    PARTIAL.write_text(dilated_attention_pytorch.__version__, "utf-8")
