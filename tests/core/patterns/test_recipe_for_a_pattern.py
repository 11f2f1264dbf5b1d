"""The recipe for a pattern in CONTRIBUTING.md, followed to the letter in a copy: it then works wherever patterns do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
LIBRARY = "packages/dilated-attention-pytorch/src"
BENCH = "tools/attention-bench/src"
COPIED = (LIBRARY, BENCH, "docs/_generate")

# Step 1 of the recipe: the file.
PATTERN = '''\
"""first_blocks: the first blocks of the sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import SparsePatternConfig
from .budget import ratio_budget
from ..grid import BlockGrid
from .intervals import expand
from .registry import register


@register("first_blocks")
def first_blocks(config: SparsePatternConfig, grid: BlockGrid, device: torch.device) -> tuple[Tensor, Tensor]:
    """Active (rows, columns) of the pattern."""
    count = grid.visible_rows(ratio_budget(config, grid).blocks()).to(device)
    return expand(torch.arange(grid.n_rows, device=device), torch.zeros_like(count), count)
'''

USE = """\
import io, json, sys, warnings
from contextlib import redirect_stdout
from pathlib import Path

import torch

folder = Path(sys.argv[1])
sys.path.insert(0, str(folder / "docs/_generate"))
import explorer
import gallery
from attention_bench import options
from attention_bench.cases import Case
from dilated_attention_pytorch import BlockLayout, SparsePatternConfig, block_sparse_attention, create_block_sparse_attention
from dilated_attention_pytorch.__main__ import main

config = SparsePatternConfig("first_blocks", block_size=16, sparsity_ratio=0.25)
layout = BlockLayout.from_config(config, 128)
x = torch.randn(1, 128, 2, 16)
module = create_block_sparse_attention(sparse_config=config)

unused = {}
for field, value in {"window_size": 64, "global_tokens": 16, "dilation_rates": [1], "rotation": 1}.items():
    with warnings.catch_warnings(record=True) as caught:
        SparsePatternConfig("first_blocks", **{field: value})
    unused[field] = [str(warning.message) for warning in caught]

with redirect_stdout(io.StringIO()) as printed:
    status = main(["plot", "--pattern-type", "first_blocks", "--q-len", "512", "-o", str(folder / "picture.svg")])

parser = options.make_parser("bench", None)
options.add_case(parser, "")
case = options.case_of(parser.parse_args(["--pattern", "first_blocks"]), Case(4096, 4, 64, 64, 0.1))

explorer.RATIOS, explorer.BLOCKS, explorer.LENGTHS = (0.1,), (64,), (4096,)
for page in (gallery, explorer):
    page.write(folder, folder)

json.dump({
    "rows": layout.rows(),
    "causal": BlockLayout.from_config(config, 128, causal=True).rows(),
    "density": layout.stats().density,
    "same": bool((module(x, x, x) == block_sparse_attention(x, x, x, layout)).all()),
    "unused": unused,
    "plot": [status, printed.getvalue()],
    "bench": [case.config().pattern_type, case.label, case.layout("cpu").num_active_blocks],
    "gallery": (folder / "gallery-causal.md").read_text(),
    "choices": (folder / "explorer-patterns.html").read_text(),
    "layouts": list(json.loads((folder / "layouts.json").read_text())),
}, sys.stdout)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a copy of the repository says of the new pattern."""
    folder = tmp_path_factory.mktemp("copy")
    for part in COPIED:
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    package = folder / LIBRARY / "dilated_attention_pytorch"
    (package / "patterns" / "first_blocks.py").write_text(PATTERN, "utf-8")
    # Step 2 of the recipe: its name in PatternType.
    config = (package / "config.py").read_text("utf-8")
    named = config.replace("PatternType = Literal[", 'PatternType = Literal["first_blocks", ', 1)
    assert named != config
    (package / "config.py").write_text(named, "utf-8")
    paths = os.pathsep.join([str(folder / LIBRARY), str(folder / BENCH), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", USE, str(folder)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_layouts_have_the_blocks_that_the_file_says(found: dict[str, Any]) -> None:
    assert found["rows"] == [[0, 1]] * 8
    assert found["causal"][:3] == [[0], [0, 1], [0, 1]]
    assert found["density"] == 0.25


def test_modules_and_functions_take_it(found: dict[str, Any]) -> None:
    assert found["same"]


def test_fields_that_it_does_not_name_are_warned_of(found: dict[str, Any]) -> None:
    assert set(found["unused"]) == {"window_size", "global_tokens", "dilation_rates", "rotation"}
    for field, (message,) in found["unused"].items():
        assert message.startswith(f"{field}=")
        assert "has no effect with pattern_type='first_blocks'" in message


def test_plot_draws_it(found: dict[str, Any]) -> None:
    status, printed = found["plot"]
    assert status == 0
    assert "8 rows by 8 columns" in printed


def test_bench_times_it(found: dict[str, Any]) -> None:
    pattern, label, n_blocks = found["bench"]
    assert pattern == "first_blocks"
    assert label.endswith(", first_blocks")
    assert n_blocks == 409  # a tenth of 64 * 64, rounded down


def test_site_shows_it(found: dict[str, Any]) -> None:
    assert (
        'alt="The lower triangle of a grid of blocks: the first blocks of the sequence."' in found["gallery"]
    )
    assert "<option>first_blocks</option>" in found["choices"]
    assert "first_blocks|0.1|64|4096|1" in found["layouts"]
