"""Syntax that came after the codemod, or after the installed libcst."""

from __future__ import annotations

import libcst as cst
import pytest

from migrate_hierarchical.analysis import order
from migrate_hierarchical.engine import migrate_bytes
from migrate_hierarchical.settings import Settings

NEW_CALL = """create_block_sparse_attention(
    variant="base",
    segment_lengths=[2048],
    dilation_rates=[1],
    sparse_config=SparsePatternConfig(
        pattern_type="dilated_sparse",
        sparsity_ratio=0.01,
        dilation_rates=[1, 2, 4, 8],
    ),
)
"""
LAZY = pytest.mark.skipif(not hasattr(cst, "LazyImport"), reason="this libcst does not read lazy imports")


@LAZY
@pytest.mark.parametrize(
    ("imports", "call", "new_imports", "prefix"),
    [
        (
            "lazy from dilated_attention_pytorch import BlockSparseHierarchical\n",
            "BlockSparseHierarchical",
            "lazy from dilated_attention_pytorch import create_block_sparse_attention, SparsePatternConfig\n",
            "",
        ),
        (
            "lazy from dilated_attention_pytorch import BlockSparseHierarchical as Attention  # why\n",
            "Attention",
            "lazy from dilated_attention_pytorch import create_block_sparse_attention, SparsePatternConfig  # why\n",
            "",
        ),
        (
            "lazy from dilated_attention_pytorch import (\n    BlockSparseHierarchical,\n    doctor,  # kept\n)\ndoctor\n",
            "BlockSparseHierarchical",
            "lazy from dilated_attention_pytorch import (\n    create_block_sparse_attention,\n    doctor,  # kept\n"
            "    SparsePatternConfig,\n)\ndoctor\n",
            "",
        ),
        (
            "lazy import dilated_attention_pytorch as dap\n",
            "dap.BlockSparseHierarchical",
            "lazy import dilated_attention_pytorch as dap\n",
            "dap.",
        ),
        (
            "import json\nlazy import dilated_attention_pytorch.block_sparse_hierarchical as hier, torch\njson, torch\n",
            "hier.BlockSparseHierarchical",
            "import json\nlazy import dilated_attention_pytorch as hier, torch\njson, torch\n",
            "hier.",
        ),
        (
            "lazy from dilated_attention_pytorch.block_sparse_hierarchical import BlockSparseHierarchical\n",
            "BlockSparseHierarchical",
            "lazy from dilated_attention_pytorch import create_block_sparse_attention, SparsePatternConfig\n",
            "",
        ),
        (
            "from dilated_attention_pytorch import SparsePatternConfig\n"
            "lazy from dilated_attention_pytorch import BlockSparseHierarchical\nSparsePatternConfig\n",
            "BlockSparseHierarchical",
            "from dilated_attention_pytorch import SparsePatternConfig\n"
            "lazy from dilated_attention_pytorch import create_block_sparse_attention\nSparsePatternConfig\n",
            "",
        ),
    ],
)
def test_lazy_imports_stay_lazy(imports: str, call: str, new_imports: str, prefix: str) -> None:
    source = f"{imports}model = {call}([2048], [1])\n"
    new_call = NEW_CALL.replace("create_", f"{prefix}create_").replace("Sparse", f"{prefix}Sparse")
    result = migrate_bytes("example.py", source.encode(), Settings())
    assert result.error is None
    assert (result.new or b"").decode() == f"{new_imports}model = {new_call}"
    assert migrate_bytes("example.py", result.new or b"", Settings()).new is None


@LAZY
def test_unused_lazy_import_is_an_import() -> None:
    source = b"lazy from dilated_attention_pytorch import HierarchicalConfig\nx: 'HierarchicalConfig'\n"
    result = migrate_bytes("example.py", source, Settings())
    assert result.new == (
        b"lazy from dilated_attention_pytorch import SparsePatternConfig\nx: 'SparsePatternConfig'\n"
    )


USE = b"from dilated_attention_pytorch import HierarchicalConfig\nconfig = HierarchicalConfig()\n"


def test_unknown_kind_of_node_is_refused_with_the_name_of_libcst(monkeypatch) -> None:
    monkeypatch.setattr(order, "KNOWN", order.KNOWN - {"While"})
    monkeypatch.delitem(order.ORDERS, cst.While, raising=False)
    result = migrate_bytes("example.py", USE + b"while x:\n    pass\n", Settings())
    assert result.new is None
    assert result.error == (
        f"libcst {order.VERSION} reads the construct While, which this release does not know"
    )
    again = migrate_bytes("example.py", USE + b"while y:\n    pass\n", Settings())
    assert again.error == result.error, "not only the first time"


def test_syntax_that_libcst_does_not_read_is_refused_with_its_version() -> None:
    result = migrate_bytes("example.py", USE + b"from future import syntax !\n", Settings())
    assert result.new is None
    assert result.error == (
        f"line 3: not valid Python to libcst {order.VERSION}; newer syntax may need a newer libcst"
    )


@LAZY
def test_examples_beside_syntax_newer_than_the_running_python_are_not_forgotten() -> None:
    source = (
        b"lazy from dilated_attention_pytorch import create_block_sparse_attention\n\n\ndef f():\n"
        b'    """Make it.\n\n    >>> from dilated_attention_pytorch import HierarchicalConfig\n    """\n'
    )
    result = migrate_bytes("example.py", source, Settings())
    assert [(entry.rule, entry.line) for entry in result.left] == [("HIER103", 7)]
