"""What the report and the documentation say of a rule. Nothing of the catalogue needs libcst."""

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
    safe: str  # what stays as it was
    changes: Sequence[str]  # what the new code does otherwise; empty where it does nothing otherwise


# What most rules change.
OTHER_BLOCKS = """\
The new module computes other blocks, so its output differs: train again, or fine-tune. The report says the density and
the coverage of the old configuration and of the new one at `--seq-len`. The old module also normalised every block on
its own; the new one has one softmax over all keys that a query may see.
"""
ONE_SEGMENT = """\
Of `segment_lengths` one is left, because the scales now live in the pattern: a literal list keeps its first element, any
other expression becomes `expression[:1]`.
"""
SAME_PRESETS = """\
What differed between the presets is gone: each becomes the same pattern.
"""
KEPT_RATIOS = """\
An explicit literal `sparsity_ratio` up to 0.05 is kept. Any other becomes the default, with a note, because the old
pattern ignored it.
"""
