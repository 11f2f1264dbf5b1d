"""The same about the reasons of the group UP."""

from __future__ import annotations

from .explanations import PACKAGE, Explanation

UP_EXPLANATIONS = {
    "UP101": Explanation(
        """\
The package does not have the name, and what comes closest takes other arguments or computes something else.
""",
        """\
The mark says what to use; [Names of 0.2.0](../upstream-names.md) has all of them. `LongNet` and its layers become layers of
`torch.nn` whose attention is replaced.
""",
        f"""\
{PACKAGE}create_dilated_attention

attention = create_dilated_attention("improved", segment_lengths=[2048, 4096], dilation_rates=[1, 2])
""",
        f"""\
{PACKAGE}BlockSparseAttention, SparsePatternConfig

pattern = SparsePatternConfig("dilated_sparse", sparsity_ratio=1.0)
attention = BlockSparseAttention(pattern, segment_lengths=[2048, 4096], dilation_rates=[1, 2])
""",
    ),
    "UP102": Explanation(
        """\
`sparsity_ratio` is the fraction of the blocks kept. In 0.2.0 it had no effect on the blocks, and its examples called 0.95
"95 % sparse". Now 0.95 keeps 95 % of the blocks. Beside a `window_size`, also the one that [UP003](UP003.md) writes, a ratio
still has no effect and is not marked.
""",
        """\
Write the fraction that is kept. If a ratio of 0.5 or more is meant, say so with a comment `# noqa: UP102`.
""",
        f"""\
{PACKAGE}SparsePatternConfig

pattern = SparsePatternConfig("dilated_sparse", sparsity_ratio=0.95)
""",
        f"""\
{PACKAGE}SparsePatternConfig

pattern = SparsePatternConfig("dilated_sparse", sparsity_ratio=0.05)
""",
    ),
    "UP103": Explanation(
        """\
`global_tokens` counted blocks in 0.2.0, and there was one if it was left out. It counts tokens now, and is 0 if it is left
out. The number cannot be rewritten: a second run would multiply it again.
""",
        """\
Multiply it by the block size; the report does. Then keep the mark away with a comment `# noqa: UP103`. The preset
`global_local` had 64 global blocks and has 64 global tokens: give it a `sparse_config` if you want the blocks back.
""",
        f"""\
{PACKAGE}SparsePatternConfig

pattern = SparsePatternConfig("global_local", window_size=256, global_tokens=2)
""",
        f"""\
{PACKAGE}SparsePatternConfig

pattern = SparsePatternConfig("global_local", window_size=256, global_tokens=128)  # noqa: UP103
""",
    ),
    "UP104": Explanation(
        """\
Without a pattern the module used a window of 256 tokens, and the ratio had no effect. Now the same call is a
`dilated_sparse` pattern of that ratio. Which of the two is meant only you know.
""",
        """\
Write the pattern: a window as it was, or a pattern that follows the ratio.
""",
        f"""\
{PACKAGE}create_block_sparse_attention

attention = create_block_sparse_attention(sparsity_ratio=0.1)
""",
        f"""\
{PACKAGE}SparsePatternConfig, create_block_sparse_attention

as_it_was = create_block_sparse_attention(sparse_config=SparsePatternConfig("local_window", window_size=256))
by_the_ratio = create_block_sparse_attention(sparse_config=SparsePatternConfig("dilated_sparse", sparsity_ratio=0.1))
""",
    ),
    "UP105": Explanation(
        """\
The arguments are not in the call: they are unpacked, or the class is passed on and called elsewhere, as by `partial` or as
a `default_factory`. Their order, their meaning and their defaults have changed.
""",
        """\
Pass what is left by name, and without what the rules remove: `segment_lengths`, `dilation_rates`, `enable_memory_pool`.
""",
        f"""\
{PACKAGE}SparsePatternConfig, create_block_sparse_attention

options = dict(variant="base", ring_size=1, sparse_config=SparsePatternConfig("dilated_sparse"))
attention = create_block_sparse_attention(**options)
""",
        f"""\
{PACKAGE}SparsePatternConfig, create_block_sparse_attention

options = dict(variant="base", sparse_config=SparsePatternConfig("dilated_sparse"))
attention = create_block_sparse_attention(**options)  # noqa: UP105
""",
    ),
    "UP106": Explanation(
        """\
The multihead module is a `torch.nn.MultiheadAttention`: it returns `(output, weights)`, where the old one returned only the
output unless `need_weights=True`, which was off by default. `attn_mask` has an effect. The seventh and eighth arguments of
a call were `is_causal, average_attn_weights` and are `average_attn_weights, is_causal`: a seventh argument `True` asked for
causality and does not any more. Calls that pass it by position are marked where the same file makes the module.
""",
        """\
Unpack the result, or take its first item, and pass `need_weights=False` and, if it is meant, `is_causal=True` by name; no
`attn_mask` is needed. Then silence the report.
""",
        f"""\
import torch
{PACKAGE}SparsePatternConfig, create_multihead_block_sparse

attention = create_multihead_block_sparse(64, 4, sparse_config=SparsePatternConfig("dilated_sparse"))
x = torch.randn(1, 128, 64)
out = attention(x, x, x, None, False, None, True)
""",
        f"""\
import torch
{PACKAGE}SparsePatternConfig, create_multihead_block_sparse

pattern = SparsePatternConfig("dilated_sparse")
attention = create_multihead_block_sparse(64, 4, sparse_config=pattern, batch_first=True)  # noqa: UP106
x = torch.randn(1, 128, 64)
out, _ = attention(x, x, x, need_weights=False, is_causal=True)
""",
    ),
    "UP107": Explanation(
        """\
A star import does not say which names it gives, and a new name could hide one of yours.
""",
        """\
Import the names that the file uses.
""",
        """\
from dilated_attention_pytorch.block_sparse_factory import *

attention = get_block_sparse_preset("local")
""",
        f"""\
{PACKAGE}get_block_sparse_preset

attention = get_block_sparse_preset("local")
""",
    ),
    "UP108": Explanation(
        """\
The base class gets its new name, but the arguments that the subclass passes to it have another order, and the methods that
it may override are gone.
""",
        """\
Pass the pattern first, and no token dilation.
""",
        f"""\
{PACKAGE}BlockSparseRingDilatedAttention, SparsePatternConfig


class Attention(BlockSparseRingDilatedAttention):
    def __init__(self):
        super().__init__([2048], [1], SparsePatternConfig("dilated_sparse"))
""",
        f"""\
{PACKAGE}BlockSparseAttention, SparsePatternConfig


class Attention(BlockSparseAttention):
    def __init__(self):
        super().__init__(SparsePatternConfig("dilated_sparse"))
""",
    ),
    "UP109": Explanation(
        """\
The argument means nothing now, but what computes its value may do something that the program needs, such as starting
processes.
""",
        """\
Remove the argument, and keep the call as a statement of its own if it is needed.
""",
        f"""\
{PACKAGE}get_block_sparse_preset


def start():
    return 1


attention = get_block_sparse_preset("local", ring_size=start())
""",
        f"""\
{PACKAGE}get_block_sparse_preset


def start():
    return 1


start()
attention = get_block_sparse_preset("local")
""",
    ),
    "UP110": Explanation(
        """\
The new code needs quotes inside nested f-strings, which have none left, or stands in a docstring with escapes.
""",
        """\
Move the call to a statement of its own, and write there what the other rules would write.
""",
        f"""\
{PACKAGE}SparsePatternConfig

text = f"{{f'{{SparsePatternConfig()}}'}}"
""",
        f"""\
{PACKAGE}SparsePatternConfig

pattern = SparsePatternConfig("local_window", window_size=256)
text = f"{{f'{{pattern}}'}}"
""",
    ),
    "UP111": Explanation(
        """\
The block-sparse classes took any keyword and ignored what they did not know: this one never had an effect on them. What it
asks for has another name now, so that writing it would change the results.
""",
        """\
Remove it, or write the new name if the effect is wanted; the report says which it is.
""",
        f"""\
{PACKAGE}get_block_sparse_preset

attention = get_block_sparse_preset("dilated", local_window_size=512)
""",
        f"""\
{PACKAGE}get_block_sparse_preset

attention = get_block_sparse_preset("dilated")
""",
    ),
    "UP112": Explanation(
        """\
Beside a `sparse_config`, also that of a preset, `sparsity_ratio` and `block_size` had no effect: the config counted alone.
Now they replace its fields.
""",
        """\
Leave the argument out to get the blocks of before. If it shall count, put it into the config.
""",
        f"""\
{PACKAGE}SparsePatternConfig, create_block_sparse_attention

pattern = SparsePatternConfig("dilated_sparse", sparsity_ratio=0.1)
attention = create_block_sparse_attention(sparse_config=pattern, sparsity_ratio=0.02)
""",
        f"""\
{PACKAGE}SparsePatternConfig, create_block_sparse_attention

pattern = SparsePatternConfig("dilated_sparse", sparsity_ratio=0.02)
attention = create_block_sparse_attention(sparse_config=pattern)
""",
    ),
    "UP113": Explanation(
        """\
The module has no caches, pools or counters of its own, and `return_attention_weights=True` gives the weights instead of a
dictionary of block indices. The codemod marks what it sees on a module that the same file makes. A pattern cannot be changed
afterwards: assignments to its fields are marked, too.
""",
        """\
`module.layout(seq_len)` returns the layout that the module uses: its `stats()` has the counts and the density.
Instead of `attention.sparse_config.sparsity_ratio = 0.05` write
`attention.sparse_config = SparsePatternConfig(sparsity_ratio=0.05)`.
""",
        f"""\
{PACKAGE}get_block_sparse_preset

attention = get_block_sparse_preset("local")
print(attention.get_pattern_stats())
""",
        f"""\
{PACKAGE}get_block_sparse_preset

attention = get_block_sparse_preset("local")
print(attention.layout(4096).stats())
""",
    ),
    "UP114": Explanation(
        """\
In 0.2.0 no keys or values travelled between GPUs: each attended to its own tokens, and the fields of
`DistributedSparseConfig` chose the blocks. Now every GPU fetches the blocks that its rows need. For that the config takes
the mesh of the GPUs and none of the old fields, and the pattern is a `sparse_config`, as of every other variant.
""",
        """\
Write the config with a mesh, and the pattern with the fraction of blocks that is kept. The module is called with the q, k
and v of this GPU's tokens; projections are yours, so `embed_dim` and `num_heads` go.
[Several GPUs](../guides/distributed.md) shows a whole program.
""",
        f"""\
{PACKAGE}DistributedSparseConfig, create_block_sparse_attention


def attention_over_gpus():
    config = DistributedSparseConfig(local_sparsity=0.4, enable_gradient_compression=True)
    return create_block_sparse_attention("distributed", embed_dim=512, num_heads=8, distributed_config=config)
""",
        f"""\
{PACKAGE}DistributedSparseConfig, SparsePatternConfig, create_block_sparse_attention


def attention_over_gpus(mesh):  # torch.distributed.init_device_mesh("cuda", (number_of_gpus,))
    pattern = SparsePatternConfig("dilated_sparse", sparsity_ratio=0.1)
    config = DistributedSparseConfig(mesh)
    return create_block_sparse_attention("distributed", sparse_config=pattern, distributed_config=config)
""",
    ),
}
