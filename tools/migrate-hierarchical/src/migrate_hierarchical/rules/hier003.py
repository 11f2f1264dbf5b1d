"""HIER003: the function that made a module from the name of a configuration."""

from __future__ import annotations

import libcst as cst

from ..analysis.arguments import Arguments
from ..analysis.uses import Use
from ..changes import Changes, Left
from ..context import Context
from ..density import LEVELS
from ..names import FACTORY_PARAMETERS
from .base import ONE_SEGMENT, OTHER_BLOCKS, SAME_PRESETS, Decision, Rule
from .hier005 import IGNORED
from .module import Old, module_call

RULE = Rule(
    "HIER003",
    "`create_hierarchical_block_sparse(...)` becomes `create_block_sparse_attention(...)`",
    """\
from dilated_attention_pytorch import create_hierarchical_block_sparse

model = create_hierarchical_block_sparse("long_range", segment_lengths=[4096, 8192])
""",
    """\
from dilated_attention_pytorch import create_block_sparse_attention, SparsePatternConfig

model = create_block_sparse_attention(
    variant="base",
    segment_lengths=[4096],
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
The arguments that had an effect pass on, as with [HIER001](HIER001.md).
""",
    changes=(OTHER_BLOCKS, SAME_PRESETS, ONE_SEGMENT),
)


def decide(context: Context, changes: Changes, use: Use, call: cst.Call, arguments: Arguments) -> Decision:
    preset = arguments.literal("preset") if "preset" in arguments.named else "standard"
    if preset is None:
        return Left("HIER105", "preset=" + context.module.code_for_node(arguments.named["preset"]))
    if preset not in LEVELS:
        return Left("HIER111", f"there was no preset {preset!r}")
    if "hierarchical_config" in arguments.named or "variant" in arguments.named:
        return Left("HIER111", "hierarchical_config and variant were given twice")
    old = Old(RULE.id, ("preset", *FACTORY_PARAMETERS[1:]), IGNORED, True, preset, ("preset",))
    return module_call(context, changes, use, call, arguments, old)
