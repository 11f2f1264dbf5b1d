"""Layouts in files: the same again, and clear words for files that are not ours."""

from __future__ import annotations

import json
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
from tests.core.layout.mask_cases import documents
from tests.core.layout.pairs import equal_layouts

safetensors = pytest.importorskip("safetensors.torch")

CONFIGS = [
    SparsePatternConfig(sparsity_ratio=Fraction(1, 3), dilation_rates=[1, 3], rotation=2),
    SparsePatternConfig("local_window", window_size=100, exact=True),
]
LAYOUTS: dict[str, Any] = {
    "pattern": lambda: BlockLayout.from_config(CONFIGS[0], 500),
    "patterns_per_head": lambda: BlockLayout.from_config(CONFIGS, 100, 640, causal=True),
    "masks": lambda: BlockLayout.from_mask_mod(documents(100, 200, 30), 330),
    "batch": lambda: BlockLayout.from_mask_mod(
        lambda b, h, q, k: (q - k).abs() <= 50 * b + h, 200, 100, 16, batch=2, num_heads=3
    ),
    "indices": lambda: BlockLayout.from_indices(
        torch.tensor([[0, 0, -1], [1, 9, 0], [2, 1, 0]]), q_len=48, kv_len=40, block_size=16
    ),
    "no_block": lambda: BlockLayout.from_mask(torch.zeros(20, 30, dtype=torch.bool), 16),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_saved_layout_is_the_same_again(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]()
    layout.save(tmp_path / "layout.safetensors")
    again = BlockLayout.load(tmp_path / "layout.safetensors")
    assert equal_layouts(again, layout)
    assert again.stats() == layout.stats()
    assert (again.num_active_blocks, again.num_block_ids) == (layout.num_active_blocks, layout.num_block_ids)


def test_saving_overwrites_and_takes_a_string(tmp_path: Path) -> None:
    path = str(tmp_path / "layout")
    LAYOUTS["masks"]().save(path)
    LAYOUTS["pattern"]().save(path)
    assert equal_layouts(BlockLayout.load(path, device="cpu"), LAYOUTS["pattern"]())


def changed(path: Path, tensors: dict[str, Any] | None = None, **metadata: str) -> None:
    """Write the file again with other tensors and metadata."""
    with safetensors.safe_open(path, framework="pt") as file:
        of_file = file.metadata()
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, tensor in (tensors or {}).items():
        held.pop(name)
        if tensor is not None:
            held[name] = tensor
    safetensors.save_file(held, path, {**of_file, **metadata})


def int32(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


DAMAGES: dict[str, tuple[dict[str, Any], dict[str, str], str]] = {
    "other_file": ({}, {"format": "pt"}, "must be a file that BlockLayout.save wrote.*of something else"),
    "newer": ({}, {"version": "2"}, "must be a file of version 1, got .* of version 2"),
    "json": ({}, {"layout": "{"}, "is damaged"),
    "field": ({}, {"layout": json.dumps({"q_len": 330})}, "is damaged: 'kv_len'"),
    "missing": ({"rows.indptr": None}, {}, "is damaged: 'rows.indptr'"),
    "type": (
        {"rows.indptr": torch.zeros(7)},
        {},
        r"rows.indptr must be int32 \(7,\), got torch.float32 \(7,\)",
    ),
    "shape": (
        {"masks.table": torch.zeros(3, 64, 1, dtype=torch.int32)},
        {},
        r"masks.table must be int32 \(3, 64, 2\)",
    ),
    "ends": ({"rows.indptr": int32(0, 2, 5, 3, 10, 12, 22)}, {}, "rows.indptr must"),
    "column": ({"rows.indices": int32(*[6] * 22)}, {}, "rows.indices must be 0 to 5"),
    "mask": ({"masks.ids": int32(*[99] * 22)}, {}, "masks.ids must be -1 to"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_files_are_refused(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS["masks"]()
    assert (layout.grid.n_rows, layout.num_active_blocks) == (6, 22)
    layout.save(tmp_path / "layout")
    tensors, metadata, message = DAMAGES[name]
    changed(tmp_path / "layout", tensors, **metadata)
    with pytest.raises(ValueError, match=message):
        BlockLayout.load(tmp_path / "layout")


def test_files_of_another_format_are_refused_and_missing_ones_named(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no layout")
    with pytest.raises(ValueError, match=r"path must be a file that BlockLayout.save wrote, got .*text"):
        BlockLayout.load(tmp_path / "text")
    with pytest.raises(FileNotFoundError, match="nothing"):
        BlockLayout.load(tmp_path / "nothing")


def test_without_safetensors_the_package_to_install_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        LAYOUTS["pattern"]().save(tmp_path / "layout")
    with pytest.raises(ImportError, match="pip install safetensors"):
        BlockLayout.load(tmp_path / "layout")


@pytest.mark.parametrize(
    ("name", "error"),
    [("missing/layout.safetensors", FileNotFoundError), ("", IsADirectoryError)],
    ids=["no_folder", "folder"],
)
def test_file_that_cannot_be_written_is_an_oserror_with_its_name(
    name: str, error: type[OSError], tmp_path: Path
) -> None:
    layout = BlockLayout.from_config(SparsePatternConfig(sparsity_ratio=0.5), 128)
    with pytest.raises(error) as caught:
        layout.save(tmp_path / name)
    assert caught.value.filename == str(tmp_path / name)
    assert str(caught.value).endswith(f": {str(tmp_path / name)!r}")


def test_error_of_safetensors_without_a_code_is_an_oserror(monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch

    def fail(*_: object) -> None:
        raise safetensors.SafetensorError("no reason")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    layout = BlockLayout.from_config(SparsePatternConfig(sparsity_ratio=0.5), 128)
    with pytest.raises(OSError, match=r"^'there' cannot be written: no reason$"):
        layout.save("there")
