"""UP004: keywords that mean nothing now."""

from __future__ import annotations

from .rule import Rule

RULE = Rule(
    "UP004",
    "keywords that mean nothing now are removed: `enable_memory_pool`, `ring_size` and others",
    """\
from dilated_attention_pytorch import get_block_sparse_preset

attention = get_block_sparse_preset(
    "local",
    enable_memory_pool=True,
    ring_size=1,
    dropout=0.1,
)
""",
    """\
from dilated_attention_pytorch import get_block_sparse_preset

attention = get_block_sparse_preset(
    "local",
    dropout=0.1,
)
""",
    why="""\
There is no memory pool, no ring and no cache to set up, and an argument that has no meaning is an error. The old classes
took any keyword. `sparsity_config`, another name of `sparse_config`, becomes the latter.
""",
    safe="""\
The result: none of these settings had an influence on it. A comment beside an argument that goes moves above the
statement. An argument whose value may do something, such as a call, stays and is [reported](UP109.md).
""",
    changes=(),
)
