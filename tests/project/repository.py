"""Paths of the repository, and readers for its files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = [
    ROOT / "packages/dilated-attention-pytorch",
    ROOT / "tools/migrate-hierarchical",
    ROOT / "tools/attention-bench",
]


def load_toml(path: Path) -> dict:
    """A TOML file as a dict."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


def bash_fences(path: Path) -> list[str]:
    """The bash fences of a Markdown file."""
    return [
        body.strip()
        for body in re.findall(r"^```bash\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)
    ]


def source_files() -> list[Path]:
    """The files that git tracks or would track."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    names = listing.stdout.decode().split("\0")
    return sorted({ROOT / name for name in names if name and (ROOT / name).is_file()})
