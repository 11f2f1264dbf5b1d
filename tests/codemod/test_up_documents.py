"""The group UP in notebooks, pages and docstrings."""

from __future__ import annotations

import json

import pytest

from migrate_hierarchical.engine import migrate_bytes
from tests.codemod.test_up_fixtures import SETTINGS

IMPORT = "from dilated_attention_pytorch.block_sparse_factory import get_block_sparse_preset\n"
NEW = "from dilated_attention_pytorch import get_block_sparse_preset\n"
CALL = 'model = get_block_sparse_preset(preset_name="local")\n'
PAGE = f"""\
# Page

```python
{IMPORT}{CALL}```

Later:

```python
other = get_block_sparse_preset("local", ring_size=2)
```

```bash
echo dilated_attention_pytorch
```
"""


def migrated(path: str, text: str) -> str:
    result = migrate_bytes(path, text.encode(), SETTINGS)
    assert result.error is None
    new = (result.new or text.encode()).decode()
    assert migrate_bytes(path, new.encode(), SETTINGS).new is None
    return new


def test_page() -> None:
    expected = PAGE.replace(IMPORT, NEW).replace("preset_name=", "name=").replace(", ring_size=2", "")
    assert migrated("page.md", PAGE) == expected


def test_block_that_relies_on_another_page() -> None:
    text = (
        "dilated_attention_pytorch:\n\n```python\n"
        "model = BlockSparseRingDilatedAttention([2048], [1], SparsePatternConfig('dilated_sparse'))\n```\n"
    )
    assert "model = BlockSparseAttention(sparse_config=SparsePatternConfig('dilated_sparse'))\n" in migrated(
        "a.md", text
    )


def test_restructured_text() -> None:
    text = f"Page\n====\n\n.. code-block:: python\n\n    {IMPORT}    {CALL}\nAnd::\n\n    {IMPORT}    {CALL}\nEnd\n"
    assert migrated("page.rst", text) == text.replace(IMPORT, NEW).replace("preset_name=", "name=")


def test_notebook() -> None:
    cells = [
        {"cell_type": "markdown", "source": ["dilated_attention_pytorch"]},
        {"cell_type": "code", "source": [IMPORT, "%timeit 1\n"], "outputs": []},
        {"cell_type": "code", "source": [CALL], "outputs": []},
    ]
    new = json.loads(migrated("a.ipynb", json.dumps({"cells": cells}, indent=1)))
    assert ["".join(cell["source"]) for cell in new["cells"]] == [
        "dilated_attention_pytorch",
        NEW + "%timeit 1\n",
        CALL.replace("preset_name=", "name="),
    ]


@pytest.mark.parametrize("quote", ['"""', 'r"""'])
def test_docstring(quote: str) -> None:
    text = (
        f"def f():\n    {quote}Makes it.\n\n    >>> {IMPORT}    >>> {CALL}"
        '    >>> x = get_block_sparse_preset("local", ring_size=2)\n    """\n'
    )
    expected = text.replace(IMPORT, NEW).replace("preset_name=", "name=").replace(", ring_size=2", "")
    assert migrated("a.py", text) == expected


def test_example_beside_an_escape_is_reported() -> None:
    text = (
        'def f():\n    """Makes \\n it.\n\n    >>> from dilated_attention_pytorch import BlockSparseRingDilatedAttention'
        '  # \\n\n    """\n'
    )
    result = migrate_bytes("a.py", text.encode(), SETTINGS)
    assert (result.new, [entry.rule for entry in result.left]) == (None, ["UP110"])
