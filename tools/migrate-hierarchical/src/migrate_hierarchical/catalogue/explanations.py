"""The texts of the documentation about each reason in reasons.py, as Markdown."""

from __future__ import annotations

from dataclasses import dataclass

PACKAGE = "from dilated_attention_pytorch import "


@dataclass(frozen=True)
class Explanation:
    """Why the codemod does not rewrite such a use, and how to do it by hand."""

    why: str
    todo: str
    before: str
    by_hand: str = ""  # `before`, finished by hand; empty if it is not Python
    path: str = "example.py"
    beside: tuple[str, str] = ("", "")  # path and content of a file that is not given to the run


EXPLANATIONS = {
    "HIER101": Explanation(
        """\
A subclass may override any method of the old class, and the new class does not have most of them.
""",
        """\
A pattern is data now: most subclasses can be replaced by a `SparsePatternConfig`, or by a mask for
`BlockLayout.from_dense`. If you still need a subclass, derive it from `BlockSparseAttention`, whose first argument is
the pattern.
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
The new classes have no levels, and inspect patterns with different methods, which return different results.
""",
        """\
`module.layout(tokens)` returns the layout that a module uses. Its `stats()` returns the counts and the density,
`plot()` draws it, and `coverage()` and `hops_to_full_coverage()` tell which tokens it connects.
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
A name in a string is looked up when the program runs, perhaps as one of several; what the program does with the result
is not visible here.
""",
        """\
Write the name that replaces it, and check how the result is used: the class becomes `BlockSparseAttention`, whose first
argument is the pattern.
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
Unpacked arguments may or may not contain `segment_lengths` or `hierarchical_config`.
""",
        """\
Name the arguments in the call and run the codemod again. Or write the new call yourself, and rename
`hierarchical_config` to `sparse_config` where the dictionary is filled.
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
Only the running program knows which variant, preset or pattern is meant. It may be the hierarchical one: this file
mentions it, or another file of the project stores it under that name or passes it to that function.
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
The value may be an old configuration, a new one or `None`; the new argument accepts only a new one.
""",
        """\
Find the place where the value is created, and create a `SparsePatternConfig` there.
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
The name refers to the removed one in some runs and to something else in others, and a call must fit both.
""",
        """\
Keep the binding that is still needed. A fallback for an old version of the package serves no purpose any more.
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
If a name comes from a star import or from another module, another file decides what it refers to.
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
A callable in a registry, a variable or a `partial` gets its arguments elsewhere, in the old form.

An import that the file itself does not need may be kept, with the report *removed name that others import here*:
another file imports the name from here or looks it up at run time, and has a use that you have to finish by hand. The
report names that file.
""",
        """\
Replace it by a function with the new arguments, or by the class `BlockSparseAttention`, and change the places that
call it. For an import, finish the file that the report names and run the codemod again: it migrates the import and
removes its mark.
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
The call is rewritten, but has an argument that the old module accepted and the new one refuses: the codemod does not
delete what you asked for.
""",
        """\
Delete the argument. The new module caches its layouts itself and has no memory pool.
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
The call failed before too, or it refers to another function of that name.
""",
        """\
If it is dead code, delete it. Otherwise write the call that was meant.
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
The new call has other arguments. Removing an argument that contains `:=`, `await` or `yield` would change what the
program does, and a nested f-string cannot contain the quotes of the new ones.
""",
        """\
Move that part to a statement of its own, and run the codemod again.
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
A dictionary, an attribute or a call of your own function contains the old word; only the running program knows whether
it reaches the library.
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
The module is gone, and the codemod does not know the name to be available from the package now.
""",
        """\
Import what still exists from `dilated_attention_pytorch`; write your own replacement for the rest.
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
Another file of the project imports the name from this one. It would break if this file were migrated alone, so this
file is left unchanged. This can happen with pre-commit, which passes only the staged files.

If two files import names from each other, neither can be the first. Then the whole file is migrated except for the
imports that the other file needs, which stay without a mark until the other file is migrated too.
""",
        """\
Run the codemod on both files, or on the whole project. Files that import names from each other can also be migrated
one by one, each of them twice.
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
The code tests that the variant is gone: it is inside `pytest.raises`, `assertRaises`, a test marked `xfail`, or a `try`
that fails if nothing was raised. Rewritten, it would raise nothing and the test would fail.
""",
        """\
Keep the test, with `# noqa: HIER116` on the line, or delete it.
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
YAML, TOML, JSON, INI and shell files and Dockerfiles are searched but never changed, because it is not known what reads them.
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
