"""Block-sparse attention for PyTorch, with exact density, fused kernels and a CPU path."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from .adaptive_config import AdaptiveConfig
from .config import SparsePatternConfig
from .config_warnings import SparsityRatioWarning, UnusedFieldWarning
from .decode import block_sparse_decode
from .distributed.attention import distributed_block_sparse_attention
from .distributed.config import DistributedSparseConfig
from .distributed.module import BlockSparseDistributedAttention
from .distributed.packed_sharding import PackedSharding
from .distributed.scores import distributed_block_scores
from .distributed.selected import distributed_attention_from_indices, distributed_attention_from_plan
from .distributed.selection_plan import SelectionPlan, plan_of_indices
from .distributed.sharding import SequenceSharding, shard_sequence
from .distributed.unshard import unshard_sequence
from .distributed.varlen import distributed_block_sparse_attention_varlen
from .factory import (
    create_adaptive_block_sparse,
    create_block_sparse_attention,
    create_multihead_block_sparse,
    get_block_sparse_preset,
)
from .functional import block_sparse_attention, explain_backends
from .layout import BlockLayout, LayoutStats, TileOrder, block_scores, select_blocks
from .modules import (
    BlockSparseAdaptive,
    BlockSparseAttention,
    BlockSparseMultiheadAttention,
    convert_to_block_sparse,
)
from .removed import REPLACEMENTS, raise_removed_name
from .sdpa import block_sparse_sdpa
from .upstream.modules import OLD_MODULES, install, raise_old_module
from .upstream.names import OLD_NAMES, raise_old_name
from .varlen import block_sparse_attention_varlen, explain_backends_varlen

try:
    __version__ = version("dilated-attention-pytorch")
except PackageNotFoundError:  # run from a source tree
    __version__ = "0.3.0"

__all__ = [
    "AdaptiveConfig",
    "BlockLayout",
    "BlockSparseAdaptive",
    "BlockSparseAttention",
    "BlockSparseDistributedAttention",
    "BlockSparseMultiheadAttention",
    "DistributedSparseConfig",
    "LayoutStats",
    "SelectionPlan",
    "PackedSharding",
    "SequenceSharding",
    "SparsePatternConfig",
    "SparsityRatioWarning",
    "TileOrder",
    "UnusedFieldWarning",
    "__version__",
    "block_scores",
    "block_sparse_attention",
    "block_sparse_attention_varlen",
    "block_sparse_decode",
    "block_sparse_sdpa",
    "convert_to_block_sparse",
    "create_adaptive_block_sparse",
    "create_block_sparse_attention",
    "create_multihead_block_sparse",
    "distributed_attention_from_indices",
    "distributed_attention_from_plan",
    "distributed_block_scores",
    "distributed_block_sparse_attention",
    "distributed_block_sparse_attention_varlen",
    "explain_backends",
    "explain_backends_varlen",
    "get_block_sparse_preset",
    "plan_of_indices",
    "select_blocks",
    "shard_sequence",
    "unshard_sequence",
]


install()

if not TYPE_CHECKING:  # type checkers report old names as what they are, unknown

    def __getattr__(name: str) -> object:
        if name in REPLACEMENTS:
            raise_removed_name(name)
        if name in OLD_NAMES:
            raise_old_name(name)
        if name in OLD_MODULES:
            raise_old_module(name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
