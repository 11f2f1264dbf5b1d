"""UP007: the multihead module's inputs."""

from __future__ import annotations

from .rule import Rule

RULE = Rule(
    "UP007",
    "the multihead module gets `batch_first=True`, which was the default",
    """\
from dilated_attention_pytorch import create_block_sparse_attention, SparsePatternConfig

pattern = SparsePatternConfig("dilated_sparse")
attention = create_block_sparse_attention("multihead", sparse_config=pattern, embed_dim=512, num_heads=8)
""",
    """\
from dilated_attention_pytorch import create_block_sparse_attention, SparsePatternConfig

pattern = SparsePatternConfig("dilated_sparse")
# TODO(migrate-hierarchical): UP106 the multihead module returns a pair, attn_mask has an effect, is_causal comes eighth: unpack its result, pass is_causal by name
attention = create_block_sparse_attention("multihead", sparse_config=pattern, embed_dim=512, num_heads=8, batch_first=True)
""",
    why="""\
`BlockSparseMultiheadAttention` is a `torch.nn.MultiheadAttention`, whose inputs are `(seq_len, batch, embed_dim)` unless
`batch_first=True`. The old class took `(batch, seq_len, embed_dim)` by default.
""",
    safe="""\
The shape of the inputs, and the weights: its `q_proj.weight` and others load. What it returns is [reported](UP106.md).
""",
    changes=(),
)
