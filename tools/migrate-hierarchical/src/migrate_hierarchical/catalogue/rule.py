"""The texts of a rule in the report and the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """A rule as `--list-rules` and its page of the documentation show it; all texts are Markdown."""

    id: str
    summary: str
    before: str
    after: str
    why: str
    safe: str  # what does not change
    changes: Sequence[str]  # how the new code behaves differently; empty if it does not


# Changes that several rules share.
OTHER_BLOCKS = """\
The new module computes different blocks, so its output differs: train again or fine-tune. The report compares the
density and the coverage of the old and the new configuration at `--seq-len`. The old module also normalised every
block separately; the new one has one softmax over all keys that a query may see.
"""
ONE_SEGMENT = """\
Only one of the `segment_lengths` is left, because the scales are part of the pattern now: a literal list keeps its
first element, any other expression becomes `expression[:1]`.
"""
SAME_PRESETS = """\
The presets no longer differ: each becomes the same pattern.
"""
KEPT_RATIOS = """\
An explicit literal `sparsity_ratio` of at most 0.05 is kept. Any other becomes the default, with a note, because the
old pattern ignored it.
"""
