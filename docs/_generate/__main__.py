"""Write everything on the site that comes from code or measurements: `python docs/_generate`.

Markdown goes to docs/generated/, where pages include it; pictures and data go to docs/assets/generated/, whole pages to
docs/rules/, the version to docs/_theme/. None of it is committed: the docs session of nox runs this before it builds
the site.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the layouts are small: threads only wait for each other
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import benchmarks  # noqa: E402
import commands  # noqa: E402
import explorer  # noqa: E402
import gallery  # noqa: E402
import reach  # noqa: E402
import removal  # noqa: E402
import rule_pages  # noqa: E402
import rules  # noqa: E402
import version  # noqa: E402

MARKDOWN = HERE.parent / "generated"
ASSETS = HERE.parent / "assets" / "generated"


def main() -> None:
    for folder in (MARKDOWN, ASSETS):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    for part in (version, rules, rule_pages, removal, reach, commands, benchmarks, gallery, explorer):
        part.write(MARKDOWN, ASSETS)


if __name__ == "__main__":
    main()
