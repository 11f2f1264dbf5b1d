"""Programs as the README and the guides of 0.2.0 have them: following what each error says leads to one that runs.

Every journey is a list of steps: a program, and what its error or warning says. The last program runs without either.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from tests.core.distributed.one_process import mesh_of_one

Step = tuple[str, tuple[str, ...]]
HERE = "from dilated_attention_pytorch import "
CALL = "out = attention(q, k, v, is_causal=True); assert out.shape == q.shape"
PAIR = "out, weights = attention(x, x, x, is_causal=True); assert out.shape == x.shape"

JOURNEYS: dict[str, list[Step]] = {
    "quick start of the README": [
        (HERE + "create_multihead_dilated_attention", ("BlockSparseMultiheadAttention(", "batch_first=True")),
        (
            HERE + "BlockSparseMultiheadAttention\n"
            "attention = BlockSparseMultiheadAttention('auto', embed_dim=64, num_heads=2, batch_first=True)",
            ("embed_dim",),
        ),
        (
            HERE + "BlockSparseMultiheadAttention\n"
            f"attention = BlockSparseMultiheadAttention(embed_dim=64, num_heads=2, dropout=0.1, batch_first=True); {PAIR}",
            (),
        ),
    ],
    "multi-head class with the order of its arguments": [
        (HERE + "BlockSparseRingMultiheadDilatedAttention", ("BlockSparseMultiheadAttention(",)),
        (
            HERE + "BlockSparseMultiheadAttention\nBlockSparseMultiheadAttention(64, 2, [128, 256], [1, 2])",
            ("leave segment_lengths and dilation_rates of 0.2.0 out",),
        ),
        (
            HERE + "BlockSparseMultiheadAttention\n"
            "BlockSparseMultiheadAttention(64, 2, use_layer_norm=True, enable_memory_pool=True)",
            ("use_layer_norm: delete it, and put a torch.nn.LayerNorm", "enable_memory_pool: delete it"),
        ),
        (
            HERE + "BlockSparseMultiheadAttention\n"
            f"attention = BlockSparseMultiheadAttention(64, 2, batch_first=True); {PAIR}",
            (),
        ),
    ],
    "dilated attention from its module": [
        (
            "from dilated_attention_pytorch.dilated_attention import DilatedAttention",
            ("from dilated_attention_pytorch import DilatedAttention",),
        ),
        (HERE + "DilatedAttention", ("BlockSparseAttention(", "segment_lengths=[2048, 4096, 8192]")),
        (
            HERE + "BlockSparseAttention\nBlockSparseAttention([128, 256], [1, 2])",
            ("if these are segment_lengths of 0.2.0, leave them and dilation_rates out",),
        ),
        (
            HERE + "BlockSparseAttention\n"
            "BlockSparseAttention(segment_lengths=[128, 256], dilation_rates=[1, 2], attention_dropout=0.1, op=None)",
            ("attention_dropout: use dropout", "op: delete it"),
        ),
        (
            HERE + "BlockSparseAttention\n"
            f"attention = BlockSparseAttention(segment_lengths=[128, 256], dilation_rates=[1, 2], dropout=0.1); {CALL}",
            (),
        ),
    ],
    "configs of core": [
        ("from dilated_attention_pytorch.core import MultiheadConfig", ("pass their fields as arguments",)),
        (
            HERE + "create_multihead_block_sparse\n"
            "create_multihead_block_sparse(embed_dim=64, num_heads=2, attention_config={}, multihead_config={})",
            ("attention_config: pass its fields as arguments",),
        ),
        (
            HERE + "create_multihead_block_sparse\n"
            f"attention = create_multihead_block_sparse(64, 2, dropout=0.1, batch_first=True); {PAIR}",
            (),
        ),
    ],
    "factory from its module": [
        (
            "from dilated_attention_pytorch.block_sparse_factory import create_block_sparse_attention",
            ("from dilated_attention_pytorch import create_block_sparse_attention",),
        ),
        (
            HERE + "create_block_sparse_attention\n"
            f"attention = create_block_sparse_attention('auto', sparsity_ratio=0.1, block_size=64); {CALL}",
            (),
        ),
    ],
    "less memory": [
        (
            HERE
            + "create_block_sparse_attention\ncreate_block_sparse_attention('base', sparsity_ratio=0.01, "
            "block_size=128, use_memory_pool=True, mixed_precision=True)",
            ("use_memory_pool: delete it", "mixed_precision: delete it: use torch.autocast"),
        ),
        (
            HERE + "create_block_sparse_attention\n"
            f"attention = create_block_sparse_attention('base', sparsity_ratio=0.01, block_size=128); {CALL}",
            (),
        ),
    ],
    "95 % sparse": [
        (
            HERE + "create_block_sparse_attention\ncreate_block_sparse_attention(sparsity_ratio=0.95)",
            ("for 95 % sparse use 0.05",),
        ),
        (
            HERE + "create_block_sparse_attention\n"
            f"attention = create_block_sparse_attention(sparsity_ratio=0.05); {CALL}",
            (),
        ),
    ],
    "a local window": [
        (
            HERE + "SparsePatternConfig\n"
            "SparsePatternConfig(pattern_type='local_window', sparsity_ratio=0.1, local_window_size=512)",
            ("local_window_size: use window_size",),
        ),
        (
            HERE + "SparsePatternConfig, BlockSparseAttention\n"
            "config = SparsePatternConfig(pattern_type='local_window', sparsity_ratio=0.1, window_size=512)\n"
            f"attention = BlockSparseAttention(config); {CALL}",
            (),
        ),
    ],
    "global tokens in a dict": [
        (
            HERE
            + "BlockSparseAttention\nBlockSparseAttention(sparse_config={'pattern_type': 'global_local', "
            "'num_global_tokens': 64, 'window_size': 256})",
            ("num_global_tokens: use global_tokens",),
        ),
        (
            HERE
            + "BlockSparseAttention\nBlockSparseAttention(sparse_config={'pattern_type': 'global_local', "
            "'global_tokens': 64, 'window_size': 256, 'dilation_rates': [1, 2]})",
            ("dilation_rates=[1, 2] has no effect", "leave it out"),
        ),
        (
            HERE + "BlockSparseAttention\nattention = BlockSparseAttention(sparse_config={'pattern_type': "
            f"'global_local', 'global_tokens': 64, 'window_size': 256}}); {CALL}",
            (),
        ),
    ],
    "base class on one GPU": [
        (HERE + "BlockSparseRingDilatedAttention, SparsePatternConfig", ("BlockSparseAttention(",)),
        (
            HERE + "BlockSparseAttention, SparsePatternConfig\n"
            "BlockSparseAttention(sparse_config=SparsePatternConfig(block_size=128), use_adaptive_sparsity=False, ring_size=1)",
            ("use_adaptive_sparsity: use variant='adaptive'", "ring_size: delete it"),
        ),
        (
            HERE + "BlockSparseAttention, SparsePatternConfig\n"
            "attention = BlockSparseAttention(sparse_config=SparsePatternConfig(block_size=128))\n"
            "attention(q, k, v, True, True)",
            ("if this is return_attention_weights, pass it by name",),
        ),
        (
            HERE + "BlockSparseAttention, SparsePatternConfig\n"
            "attention = BlockSparseAttention(sparse_config=SparsePatternConfig(block_size=128))\n"
            "out, weights = attention(q, k, v, True, return_attention_weights=True)",
            (),
        ),
    ],
    "preset by its old keyword": [
        (
            HERE + "get_block_sparse_preset\nget_block_sparse_preset(preset_name='ultra_sparse')",
            ("preset_name: use name",),
        ),
        (
            HERE
            + f"get_block_sparse_preset\nattention = get_block_sparse_preset(name='ultra_sparse'); {CALL}",
            (),
        ),
    ],
    "learned pattern": [
        (
            HERE + "SparsePatternConfig\nSparsePatternConfig(pattern_type='adaptive')",
            ("use variant='adaptive' instead",),
        ),
        (
            HERE + "create_block_sparse_attention\n"
            f"attention = create_block_sparse_attention('adaptive', num_heads=2, head_dim=32); {CALL}",
            (),
        ),
    ],
    "adaptive class and its trainer": [
        (HERE + "AdaptiveSparsityTrainer", ("learnable_temperature=True", "leave it out")),
        (
            HERE + "BlockSparseAdaptive, AdaptiveConfig\n"
            "config = AdaptiveConfig(base_sparsity=0.9, temperature=1.0, learnable_temperature=True, min_temperature=0.1, "
            "hidden_dim=128, num_layers=2, share_across_heads=False, hard_sparsity=False)\n"
            f"attention = BlockSparseAdaptive(num_heads=2, head_dim=32, adaptive_config=config); {CALL}",
            (),
        ),
    ],
    "adaptive by embed_dim": [
        (
            HERE + "create_adaptive_block_sparse\n"
            f"attention = create_adaptive_block_sparse(embed_dim=64, num_heads=2); {CALL}",
            (),
        ),
    ],
    "ring attention": [
        (
            "from dilated_attention_pytorch.ring_dilated_attention_production import RingAttentionConfig",
            ("from dilated_attention_pytorch import RingDilatedAttentionProduction, RingAttentionConfig",),
        ),
        (HERE + "RingAttentionConfig", ("Leave it out",)),
        (HERE + "RingDilatedAttentionProduction", ("BlockSparseAttention(", "guides/distributed.md")),
        (HERE + f"BlockSparseAttention\nattention = BlockSparseAttention(); {CALL}", ()),
    ],
    "several GPUs": [
        (
            HERE + "BlockSparseRingDistributedDilatedAttention, DistributedSparseConfig",
            ("BlockSparseDistributedAttention(", "init_device_mesh(", "guides/distributed.md"),
        ),
        (
            HERE + "create_block_sparse_attention, DistributedSparseConfig\n"
            "create_block_sparse_attention('distributed', distributed_config=DistributedSparseConfig("
            "sparsity_ratio=0.1, local_sparsity=0.4, enable_gradient_compression=True))",
            (
                "sparsity_ratio: use sparsity_ratio of SparsePatternConfig",
                "local_sparsity: delete it: sparse_config says",
                "enable_gradient_compression: delete it: gradients are sent as they are",
            ),
        ),
        (
            HERE + "create_block_sparse_attention\n"
            "create_block_sparse_attention('distributed', sparsity_ratio=0.1, embed_dim=64, num_heads=2)",
            ("'embed_dim'; delete it: the module is called with q, k and v",),
        ),
        (
            HERE + "create_block_sparse_attention\n"
            "create_block_sparse_attention('distributed', sparsity_ratio=0.1)",
            ("use DistributedSparseConfig(mesh), mesh=torch.distributed.init_device_mesh(",),
        ),
        (
            HERE + "create_block_sparse_attention, DistributedSparseConfig\n"
            "config = DistributedSparseConfig(mesh)\n"
            "attention = create_block_sparse_attention('distributed', sparsity_ratio=0.1, distributed_config=config); "
            f"{CALL}",
            (),
        ),
    ],
    "one of several GPUs, without the others": [
        (
            HERE + "create_block_sparse_attention\n"
            "create_block_sparse_attention('base', enable_deepspeed_integration=True, communication_backend='nccl')",
            ("enable_deepspeed_integration: delete it: weights and", "communication_backend: delete it"),
        ),
        (
            HERE
            + f"create_block_sparse_attention\nattention = create_block_sparse_attention('base'); {CALL}",
            (),
        ),
    ],
    "LongNet": [
        (
            "from dilated_attention_pytorch.long_net import LongNet",
            ("from dilated_attention_pytorch import LongNet",),
        ),
        (HERE + "LongNet", ("TransformerEncoder(", "convert_to_block_sparse(")),
        (
            HERE + "convert_to_block_sparse, SparsePatternConfig\n"
            "layer = torch.nn.TransformerEncoderLayer(64, 2, 128, batch_first=True)\n"
            "model = torch.nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)\n"
            "model = convert_to_block_sparse(model, SparsePatternConfig(sparsity_ratio=0.1))\n"
            "assert model(x).shape == x.shape",
            (),
        ),
    ],
    "masks of patterns": [
        (
            "from dilated_attention_pytorch.sparse_pattern_utils import PatternConfig, SparsePatternGenerator",
            ("from dilated_attention_pytorch import PatternConfig, SparsePatternGenerator",),
        ),
        (HERE + "PatternConfig, SparsePatternGenerator", ("BlockLayout.from_config(", "to_dense()")),
        (
            HERE + "BlockLayout, SparsePatternConfig\n"
            "mask = BlockLayout.from_config(SparsePatternConfig(sparsity_ratio=0.1), 4096).to_dense()",
            (),
        ),
    ],
    "hierarchy": [
        (HERE + "HierarchicalConfig", ("python -m migrate_hierarchical PATH", "SparsePatternConfig(")),
        (
            HERE + "create_block_sparse_attention\ncreate_block_sparse_attention('hierarchical')",
            ("Use 'base' variant with pattern_type='dilated_sparse'",),
        ),
        (
            HERE + "create_block_sparse_attention, SparsePatternConfig\n"
            "config = SparsePatternConfig(pattern_type='dilated_sparse', sparsity_ratio=0.05)\n"
            f"attention = create_block_sparse_attention('base', sparse_config=config); {CALL}",
            (),
        ),
    ],
}


def said(program: str) -> str:
    """The error of a program, or its warnings."""
    if "(mesh)" in program:
        with mesh_of_one() as mesh:
            return said_of(program, mesh)
    return said_of(program, None)


def said_of(program: str, mesh: object) -> str:
    q, k, v = (torch.randn(1, 256, 2, 32) for _ in range(3))
    namespace: dict[str, Any] = {
        "torch": torch,
        "mesh": mesh,
        "q": q,
        "k": k,
        "v": v,
        "x": torch.randn(1, 256, 64),
    }
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            exec(program, namespace)
        except (ImportError, TypeError, ValueError) as error:
            return str(error)
    return "\n".join(str(warning.message) for warning in caught)


@pytest.mark.parametrize("journey", JOURNEYS)
def test_following_the_errors_leads_to_a_program_that_runs(journey: str) -> None:
    *failing, (last, nothing) = JOURNEYS[journey]
    for program, says in failing:
        message = said(program)
        assert says
        for part in says:
            assert part in message, program
    assert not nothing
    assert said(last) == ""
