"""HIER004: the function that took embed_dim and num_heads and did not use them."""

from __future__ import annotations

import libcst as cst

from ..analysis.arguments import Arguments
from ..analysis.uses import Use
from ..changes import Changes
from ..context import Context
from ..names import CREATE_ATTENTION, PARAMETERS
from .base import ONE_SEGMENT, OTHER_BLOCKS, Decision, Rule
from .module import Old, module_call

RULE = Rule(
    "HIER004",
    "`create_hierarchical_attention(...)` becomes `create_block_sparse_attention(...)`",
    """\
from dilated_attention_pytorch import create_hierarchical_attention

model = create_hierarchical_attention(512, 8, segment_lengths=[1024, 2048], dilation_rates=[1, 2])
""",
    """\
from dilated_attention_pytorch import create_block_sparse_attention, SparsePatternConfig

model = create_block_sparse_attention(
    variant="base",
    segment_lengths=[1024],
    dilation_rates=[1],
    sparse_config=SparsePatternConfig(
        pattern_type="dilated_sparse",
        sparsity_ratio=0.01,
        dilation_rates=[1, 2, 4, 8],
    ),
)
""",
    why="""\
The function is gone with the class that it made.
""",
    safe="""\
`embed_dim` and `num_heads` had no effect and go, with a note in the report. The module takes q, k and v, as before;
it has no projections.
""",
    changes=(OTHER_BLOCKS, ONE_SEGMENT),
)

IGNORED = {
    "embed_dim": "embed_dim had no effect and goes",
    "num_heads": "num_heads had no effect and goes",
}


def decide(context: Context, changes: Changes, use: Use, call: cst.Call, arguments: Arguments) -> Decision:
    return module_call(
        context, changes, use, call, arguments, Old(RULE.id, PARAMETERS[CREATE_ATTENTION], IGNORED)
    )
