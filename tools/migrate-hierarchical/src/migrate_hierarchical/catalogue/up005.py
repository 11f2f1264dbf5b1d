"""UP005: the parameter of get_block_sparse_preset."""

from __future__ import annotations

from .rule import Rule

RULE = Rule(
    "UP005",
    "`get_block_sparse_preset(preset_name=...)` becomes `name=`",
    """\
from dilated_attention_pytorch import get_block_sparse_preset

attention = get_block_sparse_preset(preset_name="ultra_sparse")
""",
    """\
from dilated_attention_pytorch import get_block_sparse_preset

attention = get_block_sparse_preset(name="ultra_sparse")
""",
    why="""\
The parameter has another name.
""",
    safe="""\
The preset.
""",
    changes=(),
)
