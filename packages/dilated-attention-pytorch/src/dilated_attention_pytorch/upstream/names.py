"""The classes and functions of 0.2.0 that were not carried over, and the programs that replace them."""

from __future__ import annotations

import textwrap
from typing import NamedTuple, NoReturn

PAGE = "docs/upstream-names.md"


class Replacement(NamedTuple):
    """What to write instead of an old name."""

    program: str  # runs unchanged; empty: nothing replaces the name
    note: str = ""


BASE = Replacement(
    """\
from dilated_attention_pytorch import BlockSparseAttention, SparsePatternConfig

attention = BlockSparseAttention(
    sparse_config=SparsePatternConfig("local_window", window_size=256)  # the default of 0.2.0
)
""",
    "q, k and v keep their shape, (batch, seq_len, num_heads, head_dim). Leave segment_lengths and dilation_rates out: they "
    "had no effect there, and thin out keys here.",
)
MULTIHEAD = Replacement(
    """\
from dilated_attention_pytorch import BlockSparseMultiheadAttention, SparsePatternConfig

attention = BlockSparseMultiheadAttention(
    embed_dim=512,
    num_heads=8,
    sparse_config=SparsePatternConfig("local_window", window_size=256),  # the default of 0.2.0
    batch_first=True,  # the default there, not here
)
""",
    "Its arguments and results are those of torch.nn.MultiheadAttention: the result is (out, weights), need_weights is True "
    "by default, and is_causal comes last. Leave segment_lengths and dilation_rates out. Weights of 0.2.0 (q_proj, k_proj, "
    "v_proj) load.",
)
ADAPTIVE = Replacement(
    """\
from dilated_attention_pytorch import AdaptiveConfig, create_block_sparse_attention

attention = create_block_sparse_attention("adaptive", adaptive_config=AdaptiveConfig(base_sparsity=0.9))
""",
    "It is called with q, k and v: projections are yours.",
)
SCORER = Replacement(
    ADAPTIVE.program, "BlockSparseAdaptive makes its scorer itself; AdaptiveConfig has its sizes."
)
TRAINER = Replacement(
    """\
from dilated_attention_pytorch import AdaptiveConfig, create_block_sparse_attention

attention = create_block_sparse_attention(
    "adaptive", adaptive_config=AdaptiveConfig(temperature=1.0, learnable_temperature=True)
)
""",
    "It annealed the temperature, which is learned here: leave it out.",
)
DILATED = Replacement(
    """\
from dilated_attention_pytorch import BlockSparseAttention, SparsePatternConfig

attention = BlockSparseAttention(
    SparsePatternConfig(sparsity_ratio=1.0), segment_lengths=[2048, 4096, 8192], dilation_rates=[1, 2, 4]
)
""",
    "The rate of a key depends on its distance from the query here, not on its segment, so results differ. Rates are powers "
    "of two up to block_size.",
)
MULTIHEAD_DILATED = Replacement(
    """\
from dilated_attention_pytorch import BlockSparseMultiheadAttention, SparsePatternConfig

attention = BlockSparseMultiheadAttention(
    embed_dim=512, num_heads=8, sparse_config=SparsePatternConfig(sparsity_ratio=0.1), batch_first=True
)
""",
    "For the layer norm of MAGNETO, put a torch.nn.LayerNorm around it.",
)
LAYER = Replacement(
    """\
import torch
from dilated_attention_pytorch import SparsePatternConfig, convert_to_block_sparse

layer = torch.nn.{layer}(d_model=512, nhead=8, batch_first=True)
layer = convert_to_block_sparse(layer, SparsePatternConfig(sparsity_ratio=0.1))
""",
    "It had no masks but is_causal, and normalised as MAGNETO does.",
)
ENCODER = LAYER._replace(program=LAYER.program.format(layer="TransformerEncoderLayer"))
DECODER = LAYER._replace(program=LAYER.program.format(layer="TransformerDecoderLayer"))
LONGNET = Replacement(
    """\
import torch
from dilated_attention_pytorch import SparsePatternConfig, convert_to_block_sparse

layer = torch.nn.TransformerEncoderLayer(d_model=512, nhead=8, batch_first=True)
model = torch.nn.TransformerEncoder(layer, num_layers=2)
model = convert_to_block_sparse(model, SparsePatternConfig(sparsity_ratio=0.1))
""",
    "There is no model of this name: any model of torch.nn.Transformer layers can be made block-sparse.",
)
RING = Replacement(
    BASE.program,
    "On one GPU it needs no ring: memory is linear in the sequence length. For one sequence over several GPUs use "
    "BlockSparseDistributedAttention, which sends only the blocks that are needed: docs/guides/distributed.md.",
)
RING_CONFIG = RING._replace(
    note="Its settings have no counterpart: memory needs no pool, the backward stores no weights, and torch.autocast sets the "
    "precision. Leave it out."
)
DISTRIBUTED = Replacement(
    """\
import os
import torch
from dilated_attention_pytorch import BlockSparseDistributedAttention, DistributedSparseConfig, SparsePatternConfig

device = "cuda" if torch.cuda.is_available() else "cpu"
mesh = torch.distributed.init_device_mesh(device, (int(os.environ["WORLD_SIZE"]),))  # as torchrun sets it
attention = BlockSparseDistributedAttention(SparsePatternConfig(sparsity_ratio=0.1), DistributedSparseConfig(mesh))
""",
    "It is called with the q, k and v of this rank's tokens, (batch, tokens, num_heads, head_dim); projections are yours. "
    "docs/guides/distributed.md has the rest.",
)
DISTRIBUTED_PATTERN = Replacement(
    "", "One pattern, sparse_config, says which blocks are kept, whichever GPU holds them: delete it."
)
PATTERN = Replacement(
    """\
from dilated_attention_pytorch import BlockLayout, SparsePatternConfig

config = SparsePatternConfig("dilated_sparse", sparsity_ratio=0.25, block_size=128)
layout = BlockLayout.from_config(config, 4096, causal=True)
mask = layout.to_dense()  # (n_q, n_k), bool
""",
    "sparsity_ratio is the fraction kept. Strided and random patterns: BlockLayout.from_dense(mask, block_size).",
)
ANALYZER = Replacement(
    """\
from dilated_attention_pytorch import BlockLayout, SparsePatternConfig

layout = BlockLayout.from_config(SparsePatternConfig(sparsity_ratio=0.1), 4096, causal=True)
print(layout.stats(), layout.coverage(layers=2))
""",
)
OPTIMIZER = Replacement(
    "", "It changed masks by trial and error. Blocks chosen from the content: docs/guides/from-data.md."
)
POOL = Replacement("", "Memory needs no pool: delete it.")
SEGMENTS = Replacement("", "Patterns have no segments to choose: delete it.")

# Of all public names of 0.2.0 those that are neither here nor in removed.py.
OLD_NAMES: dict[str, Replacement] = {
    "BlockSparseRingDilatedAttention": BASE,
    "BlockSparseRingMultiheadDilatedAttention": MULTIHEAD,
    "BlockSparseRingDistributedDilatedAttention": DISTRIBUTED,
    "DistributedSparsePattern": DISTRIBUTED_PATTERN,
    "ImportanceScorer": SCORER,
    "AdaptiveSparsityTrainer": TRAINER,
    "create_adaptive_sparse_attention": ADAPTIVE,
    "DilatedAttention": DILATED,
    "ImprovedDilatedAttention": DILATED,
    "create_dilated_attention": DILATED,
    "MultiheadDilatedAttention": MULTIHEAD_DILATED,
    "ImprovedMultiheadDilatedAttention": MULTIHEAD_DILATED,
    "create_multihead_dilated_attention": MULTIHEAD_DILATED,
    "DilatedTransformerEncoderLayer": ENCODER,
    "DilatedTransformerDecoderLayer": DECODER,
    "LongNet": LONGNET,
    "RingDilatedAttention": RING,
    "RingDilatedAttentionProduction": RING,
    "RingAttentionConfig": RING_CONFIG,
    "create_production_ring_attention": RING,
    "PatternConfig": PATTERN,
    "PatternType": PATTERN,
    "SparsePatternGenerator": PATTERN,
    "PatternQualityAnalyzer": ANALYZER,
    "PatternOptimizer": OPTIMIZER,
    # Public at other times of 0.2.0, whose number did not change, or named in its documentation
    "BlockSparseDilatedAttention": BASE,
    "BlockSparseOptimized": BASE,
    "BlockSparseTorchSparse": BASE,
    "create_block_sparse_multihead_attention": MULTIHEAD,
    "create_improved_block_sparse_multihead_attention": MULTIHEAD,
    "create_adaptive_sparse_multihead_attention": ADAPTIVE,
    "DistributedImprovedDilatedAttention": DISTRIBUTED,
    "DistributedImprovedMultiheadDilatedAttention": DISTRIBUTED,
    "DistributedMultiheadDilatedAttention": DISTRIBUTED,
    "BlockSparseRingAdvancedDistributedDilatedAttention": DISTRIBUTED,
    "EnterpriseDistributedDilatedAttention": DISTRIBUTED,
    "RingDistributedDilatedAttention": DISTRIBUTED,
    "DistributedRingAttention": DISTRIBUTED,
    "ImprovedDistributedDilatedAttention": DISTRIBUTED,
    "RingDilatedAttentionHilbert": RING,
    "RingDilatedAttentionHilbertOptimized": RING,
    "RingDilatedAttentionHybrid": RING,
    "RingDilatedAttentionHybridOptimizedV2": RING,
    "RingHilbertDilatedAttention": RING,
    "RingDilatedAttentionV2": RING,
    "RingDilatedAttentionV2Collective": RING,
    "RingDilatedAttentionV2Flash": RING,
    "RingDilatedAttentionCorrect": RING,
    "RingDilatedAttentionSDPA": RING,
    "RingDilatedAttentionHilbertGPUOptimized": RING,
    "StandardRingAttention": RING,
    "HilbertRingAttention": RING,
    "RingBlockSparseAttention": RING,
    "create_ring_attention": RING,
    "RingMultiheadDilatedAttention": MULTIHEAD_DILATED,
    "RingMultiheadDilatedAttentionHybrid": MULTIHEAD_DILATED,
    "HeadParallelDilatedAttention": DILATED,
    "ImprovedDilatedAttentionV2": DILATED,
    "DynamicDilatedAttention": DILATED,
    "DynamicMultiheadDilatedAttention": MULTIHEAD_DILATED,
    "create_dynamic_dilated_attention": DILATED,
    "DynamicSegmentSelector": SEGMENTS,
    "SegmentSelectionConfig": SEGMENTS,
    "AdaptiveMemoryPool": POOL,
    "MemoryPool": POOL,
    "UnifiedMemoryPool": POOL,
}


def raise_old_name(name: str) -> NoReturn:
    """Raise ImportError for a name of 0.2.0, with what to write instead."""
    program, note = OLD_NAMES[name]
    instead = (
        f"Write instead:\n\n{textwrap.indent(program, '    ')}\n" if program else "Nothing replaces it. "
    )
    raise ImportError(
        f"`dilated_attention_pytorch.{name}` of version 0.2.0 was not carried over. {instead}"
        f"{note}{' ' if note else ''}{PAGE} of the repository has all names of 0.2.0 and what differs."
    )
