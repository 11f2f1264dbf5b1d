"""UP003: the old default pattern."""

from __future__ import annotations

from .rule import Rule

RULE = Rule(
    "UP003",
    "the pattern that was the default is written out: `local_window` of 256 tokens",
    """\
from dilated_attention_pytorch import SparsePatternConfig, create_block_sparse_attention

config = SparsePatternConfig(block_size=32)
attention = create_block_sparse_attention("base")
""",
    """\
from dilated_attention_pytorch import SparsePatternConfig, create_block_sparse_attention

config = SparsePatternConfig(pattern_type="local_window", block_size=32, window_size=256)
attention = create_block_sparse_attention("base", sparse_config=SparsePatternConfig(pattern_type="local_window", window_size=256))
""",
    why="""\
The default pattern was `local_window` of 256 tokens, which ignored `sparsity_ratio`. It is `dilated_sparse` at a ratio of
0.1 now: at 131,072 tokens 205 blocks of 64 in every row instead of 5, 41 times as many. The rule writes out what the call
relied on, so that the same blocks are computed.
""",
    safe="""\
Without a causal mask, the same blocks where the window is a multiple of two blocks. A literal `pattern_type` stays. A
`sparsity_ratio` that is given stays too, and has no effect beside `window_size`, as in 0.2.0: to let it decide, remove
`window_size`.
""",
    changes=(
        """\
With a causal mask the window now means tokens before the query, so a query sees twice as many past blocks as in 0.2.0.
""",
    ),
)
