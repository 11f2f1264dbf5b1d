"""UP008: fields that the pattern does not take."""

from __future__ import annotations

from .rule import Rule

RULE = Rule(
    "UP008",
    "fields of `SparsePatternConfig` that the pattern does not take are removed",
    """\
from dilated_attention_pytorch import SparsePatternConfig

config = SparsePatternConfig(pattern_type="dilated_sparse", window_size=256, global_tokens=1, dilation_rates=[1, 2, 4])
""",
    """\
from dilated_attention_pytorch import SparsePatternConfig

config = SparsePatternConfig(pattern_type="dilated_sparse", dilation_rates=[1, 2, 4])
""",
    why="""\
The fields were filled in for every pattern, and those of other patterns had no effect. They have none now either, but give
a warning: `window_size` is for `local_window` and `global_local`, `global_tokens` for `global_local`, `dilation_rates` for
`dilated_sparse`.
""",
    safe="""\
The pattern. A pattern that is not a literal keeps all its fields.
""",
    changes=(),
)
