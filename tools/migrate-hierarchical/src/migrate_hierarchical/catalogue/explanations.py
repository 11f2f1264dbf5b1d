"""What the documentation says of each reason beside its line in reasons.py; all texts are Markdown."""

from __future__ import annotations

from dataclasses import dataclass

PACKAGE = "from dilated_attention_pytorch import "


@dataclass(frozen=True)
class Explanation:
    """Why the codemod does not rewrite such a use, and how a person does."""

    why: str
    todo: str
    before: str
    by_hand: str = ""  # `before`, finished; empty where it is no Python
    path: str = "example.py"
    beside: tuple[str, str] = ("", "")  # the path and the content of a file that the run is not given


EXPLANATIONS = {
    "HIER101": Explanation(
        """\
A subclass may override any method of the old class, most of which the new one does not have.
""",
        """\
The pattern is data now: most subclasses become a `SparsePatternConfig`, or a mask for `BlockLayout.from_dense`. What
remains subclasses `BlockSparseAttention`, whose first argument is the pattern.
""",
        f"""\
{PACKAGE}BlockSparseHierarchical


class Attention(BlockSparseHierarchical):
    def __init__(self):
        super().__init__([2048], [1])
""",
        f"""\
{PACKAGE}BlockSparseAttention, SparsePatternConfig


class Attention(BlockSparseAttention):
    def __init__(self):
        super().__init__(SparsePatternConfig(sparsity_ratio=0.01))
""",
    ),
    "HIER102": Explanation(
        """\
The new classes have no levels, and other methods that look at a pattern, with other results.
""",
        """\
`module.layout(tokens)` is the layout that a module uses. Its `stats()` has the counts and the density, `plot()` the
picture, `coverage()` and `hops_to_full_coverage()` what it connects.
""",
        f"""\
{PACKAGE}BlockSparseHierarchical

model = BlockSparseHierarchical([2048], [1])
print(model.get_pattern_stats(16_384))
""",
        f"""\
{PACKAGE}create_block_sparse_attention, SparsePatternConfig

model = create_block_sparse_attention(
    variant="base",
    segment_lengths=[2048],
    dilation_rates=[1],
    sparse_config=SparsePatternConfig(
        pattern_type="dilated_sparse",
        sparsity_ratio=0.01,
        dilation_rates=[1, 2, 4, 8],
    ),
)
print(model.layout(16_384).stats())
""",
    ),
    "HIER103": Explanation(
        """\
A name in a string is looked up when the program runs, perhaps together with others; what is done with the result is not
visible here.
""",
        """\
Write the name that replaces it, and look at what is made of the result: the class becomes `BlockSparseAttention`, whose
first argument is the pattern.
""",
        """\
import importlib

module = importlib.import_module("dilated_attention_pytorch.block_sparse_hierarchical")
print(module.__name__)
""",
        """\
import importlib

module = importlib.import_module("dilated_attention_pytorch")
print(module.__name__)
""",
    ),
    "HIER104": Explanation(
        """\
Unpacked arguments may hold `segment_lengths` or `hierarchical_config`, or may not.
""",
        """\
Name the arguments in the call, and run again. Or write the new call, and rename `hierarchical_config` to
`sparse_config` where the dictionary is filled.
""",
        f"""\
{PACKAGE}BlockSparseHierarchical

options = {{"segment_lengths": [2048, 4096], "dilation_rates": [1, 2]}}
model = BlockSparseHierarchical(**options)
""",
        f"""\
{PACKAGE}BlockSparseAttention, SparsePatternConfig

options = {{"sparse_config": SparsePatternConfig(sparsity_ratio=0.01)}}
model = BlockSparseAttention(**options)
""",
    ),
    "HIER105": Explanation(
        """\
Which variant, preset or pattern is meant shows only when the program runs, and the file speaks of the hierarchical one,
or another file of the project keeps it under that name or passes it to that function.
""",
        """\
Drop `"hierarchical"` from the choices, or map it to `"base"` with a `SparsePatternConfig`.
""",
        f"""\
import os
{PACKAGE}create_block_sparse_attention

variant = os.environ.get("ATTENTION_VARIANT", "hierarchical")
model = create_block_sparse_attention(variant)
""",
        f"""\
import os
{PACKAGE}create_block_sparse_attention, SparsePatternConfig

variant = os.environ.get("ATTENTION_VARIANT", "base")
model = create_block_sparse_attention(variant, sparse_config=SparsePatternConfig(sparsity_ratio=0.01))
""",
    ),
    "HIER106": Explanation(
        """\
What arrives there may be an old configuration, a new one or `None`; the new argument takes only the new one.
""",
        """\
Find where the value is made, and make a `SparsePatternConfig` there.
""",
        f"""\
{PACKAGE}BlockSparseHierarchical


def build(config):
    return BlockSparseHierarchical([2048], [1], hierarchical_config=config)
""",
        f"""\
{PACKAGE}create_block_sparse_attention, SparsePatternConfig


def build(config: SparsePatternConfig):
    return create_block_sparse_attention("base", sparse_config=config)
""",
    ),
    "HIER107": Explanation(
        """\
The name means the removed one in some runs and something else in others, and a call must fit both.
""",
        """\
Keep the binding that is still needed. A fallback for an old version of the package has nothing to fall back to now.
""",
        f"""\
try:
    {PACKAGE}BlockSparseHierarchical
except ImportError:
    from my_fork import BlockSparseHierarchical

model = BlockSparseHierarchical([2048], [1])
""",
        f"""\
{PACKAGE}BlockSparseAttention, SparsePatternConfig

model = BlockSparseAttention(SparsePatternConfig(sparsity_ratio=0.01))
""",
    ),
    "HIER108": Explanation(
        """\
Where a name comes from a star import or through another module, another file decides what it means.
""",
        """\
Import the new names by name from `dilated_attention_pytorch`.
""",
        """\
from dilated_attention_pytorch import *

model = BlockSparseHierarchical([2048], [1])
""",
        f"""\
{PACKAGE}BlockSparseAttention, SparsePatternConfig

model = BlockSparseAttention(SparsePatternConfig(sparsity_ratio=0.01))
""",
    ),
    "HIER109": Explanation(
        """\
What is called through a registry, a variable or `partial` gets its arguments somewhere else, in the old form.

An import that the file itself does not need stays for others, *removed name that others import here*: another file takes
the name from here, or looks it up while it runs, and has a use that is left to a person. The report names that file.
""",
        """\
Put a function with the new arguments in its place, or the class `BlockSparseAttention`, and change the places that
call it. For an import finish the file that the report names and run again: the import is migrated, and its mark goes.
""",
        f"""\
{PACKAGE}BlockSparseHierarchical

MODELS = {{"sparse": BlockSparseHierarchical}}
model = MODELS["sparse"]([2048], [1])
""",
        f"""\
{PACKAGE}BlockSparseAttention, SparsePatternConfig

MODELS = {{"sparse": BlockSparseAttention}}
model = MODELS["sparse"](SparsePatternConfig(sparsity_ratio=0.01))
""",
    ),
    "HIER110": Explanation(
        """\
The call is rewritten, with an argument that the old module took and the new one refuses: the codemod does not delete
what you asked for.
""",
        """\
Delete the argument. The new module keeps its layouts by itself and has no memory pool to switch on.
""",
        f"""\
{PACKAGE}BlockSparseHierarchical

model = BlockSparseHierarchical([2048], [1], enable_memory_pool=True)
""",
        f"""\
{PACKAGE}create_block_sparse_attention, SparsePatternConfig

model = create_block_sparse_attention(
    variant="base",
    segment_lengths=[2048],
    dilation_rates=[1],
    sparse_config=SparsePatternConfig(
        pattern_type="dilated_sparse",
        sparsity_ratio=0.01,
        dilation_rates=[1, 2, 4, 8],
    ),
)
""",
    ),
    "HIER111": Explanation(
        """\
The call failed before too, or the code means another function of that name.
""",
        """\
If it is dead code, delete it; else write the call that was meant.
""",
        f"""\
{PACKAGE}create_hierarchical_block_sparse

model = create_hierarchical_block_sparse("enormous")
""",
        f"""\
{PACKAGE}get_block_sparse_preset

model = get_block_sparse_preset("ultra_sparse")
""",
    ),
    "HIER112": Explanation(
        """\
The new call has more or other arguments: an argument that goes would take a `:=`, `await` or `yield` with it, and a
nested f-string has no room for the quotes.
""",
        """\
Give the part a statement of its own, and run again.
""",
        f"""\
{PACKAGE}BlockSparseHierarchical

model = BlockSparseHierarchical([2048], (rates := [1]))
print(rates)
""",
        f"""\
{PACKAGE}BlockSparseAttention, SparsePatternConfig

rates = [1]
model = BlockSparseAttention(SparsePatternConfig(sparsity_ratio=0.01), [2048], rates)
print(rates)
""",
    ),
    "HIER113": Explanation(
        """\
A dictionary, an attribute or a call of your own holds the old word; whether it ends at the library shows only when the
program runs.
""",
        """\
Write `"base"` for the variant, `"dilated_sparse"` for the pattern, and `sparse_config` with a `SparsePatternConfig` for
the keyword.
""",
        f"""\
from dataclasses import replace
{PACKAGE}SparsePatternConfig

config = replace(SparsePatternConfig(), pattern_type="hierarchical")
""",
        f"""\
from dataclasses import replace
{PACKAGE}SparsePatternConfig

config = replace(SparsePatternConfig(), pattern_type="dilated_sparse")
""",
    ),
    "HIER114": Explanation(
        """\
The module is gone, and the name is none of those that the codemod knows to be at the package root now.
""",
        """\
Import what remains from `dilated_attention_pytorch`; of what does not, a copy of your own.
""",
        """\
from dilated_attention_pytorch.block_sparse_hierarchical import BlockSparseHierarchical, logger

model = BlockSparseHierarchical([2048], [1])
logger.info("made")
""",
        f"""\
import logging
{PACKAGE}BlockSparseAttention, SparsePatternConfig

logger = logging.getLogger(__name__)
model = BlockSparseAttention(SparsePatternConfig(sparsity_ratio=0.01))
logger.info("made")
""",
    ),
    "HIER115": Explanation(
        """\
Another file of the project takes the name from this one. It would break if this file were migrated alone, so the file
is left whole. A run by pre-commit, which passes the staged files only, ends so.

Where the two files take names from each other, neither can be the first. Then all of the file is migrated but the import
that the other takes, which stays without a mark until the other is migrated too.
""",
        """\
Run on both, or on the whole project. Files that take names from each other may also be run one by one, each of them twice.
""",
        f"""\
{PACKAGE}HierarchicalConfig

config = HierarchicalConfig()
""",
        path="shared.py",
        beside=("train.py", "from shared import HierarchicalConfig\n\nother = HierarchicalConfig()\n"),
    ),
    "HIER116": Explanation(
        """\
The code tests that the variant is gone: it stands in `pytest.raises`, `assertRaises`, a test marked `xfail`, or a `try`
that fails where nothing was raised. Rewritten, it would raise nothing and the test would fail.
""",
        """\
Keep the test with `# noqa: HIER116` on the line, or delete it with what it tests.
""",
        f"""\
import pytest

with pytest.raises(ImportError):
    {PACKAGE}HierarchicalConfig
""",
        f"""\
import pytest

with pytest.raises(ImportError):
    {PACKAGE}HierarchicalConfig  # noqa: HIER116
""",
    ),
    "HIER120": Explanation(
        """\
YAML, TOML, JSON and shell files are searched and never changed: what reads them is not known.
""",
        """\
Edit the file by hand, together with the code that reads it.
""",
        """\
model:
  attention: dilated_attention_pytorch.BlockSparseHierarchical
""",
        path="config.yaml",
    ),
}
