"""Time whole processes: a tree without a use against `import libcst`, and 30 uses in 2,300 files against plain libcst.

    python tools/migrate-hierarchical/benchmarks/speed.py

The tree consists of copies of the standard library's modules in a temporary folder. Prints medians of five runs.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

N_FILES, N_USES, RUNS = 2300, 30, 5
USE = (
    "from dilated_attention_pytorch import BlockSparseHierarchical, HierarchicalConfig\n"
    "model = BlockSparseHierarchical([2048, 4096], [1, 2], hierarchical_config=HierarchicalConfig())\n"
)
PLAIN_PASS = """\
import sys
import libcst as cst
from libcst.metadata import MetadataWrapper, QualifiedNameProvider


class Rename(cst.CSTTransformer):
    METADATA_DEPENDENCIES = (QualifiedNameProvider,)

    def leave_Name(self, original_node, updated_node):
        self.get_metadata(QualifiedNameProvider, original_node, None)
        return updated_node


for path in sys.argv[1:]:
    MetadataWrapper(cst.parse_module(open(path, "rb").read())).visit(Rename()).code
"""


def seconds(command: list[str], before=None) -> float:
    """Median time of a whole process, in seconds; `before` is called before each run."""
    times = []
    for _ in range(RUNS):
        if before is not None:
            before()
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def source_lines(path: Path, count: int) -> str | None:
    """The first `count` lines of a module or fewer, cut between top-level statements; None if that leaves too few."""
    import ast

    text = path.read_text("utf-8", "ignore")
    try:
        body = ast.parse(text).body
    except SyntaxError:
        return None
    lines = text.splitlines(keepends=True)
    ends = [node.end_lineno for node in body if node.end_lineno and node.end_lineno <= count]
    return "".join(lines[: ends[-1]]) if ends and ends[-1] > count * 0.8 else None


def make_tree(root: Path) -> tuple[list[Path], list[Path]]:
    """All files, and those among them (of about 300 lines) that get a use."""
    library = sorted(Path(os.__file__).parent.rglob("*.py"))
    library = [path for path in library if "site-packages" not in path.parts]
    files = []
    for i in range(N_FILES):
        target = root / f"p{i % 60}" / f"m{i}.py"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(library[i % len(library)], target)
        files.append(target)
    pieces = (source_lines(path, 300) for path in library)
    texts = [text for text in pieces if text is not None][:N_USES]
    uses = files[:: N_FILES // N_USES][:N_USES]
    for path, text in zip(uses, texts):
        path.write_text(text)
    return files, uses


def main() -> None:
    tool = [sys.executable, "-m", "migrate_hierarchical"]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        files, uses = make_tree(root)
        texts = [path.read_text() for path in uses]
        baseline = seconds([sys.executable, "-c", "import libcst"])
        clean = seconds([*tool, str(root)])

        def add_uses() -> None:
            for path, text in zip(uses, texts):
                path.write_text(text + USE)

        dirty = seconds([*tool, str(root)], add_uses)
        add_uses()
        plain = seconds([sys.executable, "-c", PLAIN_PASS, *map(str, uses)])
    print(
        f"{len(files):,} files, {N_USES} of them with a use, of about {sum(len(text.splitlines()) for text in texts) // N_USES} lines each"
    )
    print(f"import libcst                     {baseline * 1000:6.0f} ms")
    print(
        f"a tree without a use              {clean * 1000:6.0f} ms  ({clean / baseline:.2f} times the import)"
    )
    print(f"{N_USES} uses, rewritten                 {dirty * 1000:6.0f} ms")
    print(f"plain libcst over these {N_USES} files    {plain * 1000:6.0f} ms")


if __name__ == "__main__":
    main()
