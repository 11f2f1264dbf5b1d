"""UP002: renamed classes."""

from __future__ import annotations

from .rule import Rule

RULE = Rule(
    "UP002",
    "`BlockSparseRingDilatedAttention` becomes `BlockSparseAttention`, and its multihead class `BlockSparseMultiheadAttention`",
    """\
from dilated_attention_pytorch import BlockSparseRingDilatedAttention, SparsePatternConfig


def make(config: SparsePatternConfig) -> BlockSparseRingDilatedAttention:
    return BlockSparseRingDilatedAttention([2048], [1], config, dropout=0.1)
""",
    """\
from dilated_attention_pytorch import BlockSparseAttention, SparsePatternConfig


def make(config: SparsePatternConfig) -> BlockSparseAttention:
    return BlockSparseAttention(sparse_config=config, dropout=0.1)
""",
    why="""\
The classes never were rings, and their parameters have another order now: `sparse_config` comes first. Arguments whose
places have changed are written by name; [UP006](UP006.md) removes the token dilation that was required.
""",
    safe="""\
The class, its inputs and outputs of shape `(batch, seq_len, num_heads, head_dim)`, and `is_causal`. Where other files
import the old name from this one, where it is exported, or where a string or another binding uses it, it stays as
`import BlockSparseAttention as BlockSparseRingDilatedAttention`.
""",
    changes=(
        """\
The old class normalised every block separately and added the results up. The new one has one softmax over all keys that
a query may see, so its output is another one, also with the same blocks.
""",
        """\
`dropout`, which had no effect on the attention, acts in training mode.
""",
    ),
)
