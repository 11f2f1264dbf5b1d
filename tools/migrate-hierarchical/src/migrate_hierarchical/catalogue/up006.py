"""UP006: token dilation that had no effect."""

from __future__ import annotations

from .rule import Rule

RULE = Rule(
    "UP006",
    "`segment_lengths` and `dilation_rates`, which had no effect, are removed",
    """\
from dilated_attention_pytorch import create_block_sparse_attention, SparsePatternConfig

attention = create_block_sparse_attention(
    segment_lengths=[2048, 4096],
    dilation_rates=[1, 2],
    sparse_config=SparsePatternConfig("dilated_sparse"),
)
""",
    """\
from dilated_attention_pytorch import create_block_sparse_attention, SparsePatternConfig

attention = create_block_sparse_attention(
    sparse_config=SparsePatternConfig("dilated_sparse"),
)
""",
    why="""\
The block-sparse classes of 0.2.0 required both and did not use them. Now they are optional and mean
[token dilation](../patterns.md#token-dilation): of far blocks only every second key would take part.
""",
    safe="""\
Every key of an active block takes part, as in 0.2.0. Rates that are all 1 have no effect in either version and stay where
the function has the same name and the same place for them. The field `dilation_rates` of `SparsePatternConfig`, which counts blocks, stays.
""",
    changes=(),
)
