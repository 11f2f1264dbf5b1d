"""Run against the installed wheels, from outside the tree: a small attention, forward and backward."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import torch

import dilated_attention_pytorch as core

REPOSITORY = Path(__file__).resolve().parents[2]


def main() -> None:
    """Raise if the installed packages do not work."""
    home = Path(core.__file__).resolve().parent
    if (REPOSITORY / "packages") in home.parents:
        raise SystemExit(f"imported from the source tree, not from a wheel: {home}")
    if not (home / "py.typed").exists():
        raise SystemExit("the wheel lacks py.typed")
    versions = {
        name: version(name)
        for name in ("dilated-attention-pytorch", "migrate-hierarchical", "attention-bench")
    }
    if set(versions.values()) != {core.__version__}:
        raise SystemExit(f"versions differ: {versions}, __version__ {core.__version__}")

    config = core.SparsePatternConfig(pattern_type="dilated_sparse", sparsity_ratio=0.25, block_size=16)
    attention = core.create_block_sparse_attention(variant="base", sparse_config=config)
    q, k, v = (torch.randn(1, 100, 2, 16, requires_grad=True) for _ in range(3))
    out = attention(q, k, v, is_causal=True)
    out.sum().backward()
    layout = core.BlockLayout.from_config(config, 100, causal=True)
    expected = core.block_sparse_attention(q, k, v, layout, is_causal=True, backend="reference")
    torch.testing.assert_close(out, expected)
    print("smoke test passed:", versions)


if __name__ == "__main__":
    main()
