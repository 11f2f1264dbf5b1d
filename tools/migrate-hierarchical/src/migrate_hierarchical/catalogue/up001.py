"""UP001: modules that are gone."""

from __future__ import annotations

from .rule import Rule

RULE = Rule(
    "UP001",
    "names from modules of 0.2.0 are imported from the package itself",
    """\
from dilated_attention_pytorch.block_sparse_factory import get_block_sparse_preset

attention = get_block_sparse_preset("local")
""",
    """\
from dilated_attention_pytorch import get_block_sparse_preset

attention = get_block_sparse_preset("local")
""",
    why="""\
Every public name is in the package itself. The modules of 0.2.0, such as `block_sparse_factory`, `core` and `utils`, are
gone, and so are those of later versions, such as `sparse` and `ring`.
""",
    safe="""\
The names mean what the other rules make of them. A name that the package does not have stays where it is and is
[reported](UP101.md), and so is `from dilated_attention_pytorch import block_sparse_factory`. Imports from
`block_sparse_hierarchical` are those of [HIER009](HIER009.md).
""",
    changes=(),
)
