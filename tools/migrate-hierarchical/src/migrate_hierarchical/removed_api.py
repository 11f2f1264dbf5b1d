"""The removed API: its names, their modules and their parameters."""

from __future__ import annotations

import re

PACKAGE = "dilated_attention_pytorch"

# Removed.
REMOVED_CLASS = "BlockSparseHierarchical"
REMOVED_CONFIG = "HierarchicalConfig"
REMOVED_GET_PRESETS = "get_hierarchical_presets"
REMOVED_CREATE_ATTENTION = "create_hierarchical_attention"
REMOVED_CREATE_BLOCK_SPARSE = "create_hierarchical_block_sparse"
REMOVED_NAMES = frozenset(
    {
        REMOVED_CLASS,
        REMOVED_CONFIG,
        REMOVED_GET_PRESETS,
        REMOVED_CREATE_ATTENTION,
        REMOVED_CREATE_BLOCK_SPARSE,
    }
)
REMOVED_MODULE = "block_sparse_hierarchical"
GONE_NAMES = REMOVED_NAMES | {REMOVED_MODULE}

# Still there, but without their hierarchical arguments.
FACTORY = "create_block_sparse_attention"
GET_PRESET = "get_block_sparse_preset"
PATTERN = "SparsePatternConfig"
MODULE = "BlockSparseAttention"
# Functions whose names begin like those of the modules that are gone.
FUNCTIONS = frozenset(
    {
        "block_sparse_attention",
        "block_sparse_attention_varlen",
        "block_sparse_decode",
        "block_sparse_sdpa",
    }
)
KEPT_NAMES = frozenset({FACTORY, GET_PRESET, PATTERN, MODULE})
CHOOSE = frozenset({FACTORY, GET_PRESET, PATTERN})  # take a variant, a preset or a pattern by name

HIERARCHICAL = "hierarchical"
KEYWORD = "hierarchical_config"
REMOVED_PRESETS = {
    "hierarchical_standard": "standard",
    "hierarchical_fine": "fine_grained",
    "hierarchical_long": "long_range",
}
HIERARCHICAL_STRINGS = frozenset({HIERARCHICAL, *REMOVED_PRESETS})

# What replaces a removed class used as a type.
NEW_TYPES = {REMOVED_CLASS: MODULE, REMOVED_CONFIG: PATTERN}

# Names that no other library has.
CERTAIN_NAMES = frozenset({REMOVED_CLASS, REMOVED_CREATE_BLOCK_SPARSE})

# Keywords and keys that name a class.
TARGETS = frozenset({"_target_", "target", "type", "cls", "class", "class_name", "class_path"})

# Members of the removed classes that their successors do not have.
REMOVED_MEMBERS = frozenset(
    {
        "hierarchical_config",
        "get_pattern_stats",
        "visualize_pattern",
        "_generate_hierarchical_pattern",
        "num_levels",
        "level_configs",
    }
)

# Those of them that objects of other libraries have too.
COMMON_MEMBERS = frozenset({"num_levels", "level_configs"})

PATTERN_PARAMETERS = (
    "pattern_type",
    "block_size",
    "sparsity_ratio",
    "window_size",
    "global_tokens",
    "dilation_rates",
)
FACTORY_PARAMETERS = (
    "variant",
    "segment_lengths",
    "dilation_rates",
    "sparse_config",
    "sparsity_ratio",
    "block_size",
    "hierarchical_config",
    "adaptive_config",
    "distributed_config",
    "embed_dim",
    "num_heads",
)
PARAMETERS = {
    REMOVED_CLASS: ("segment_lengths", "dilation_rates", "hierarchical_config", "sparse_config"),
    REMOVED_CONFIG: ("level_configs",),
    REMOVED_GET_PRESETS: (),
    REMOVED_CREATE_ATTENTION: (
        "embed_dim",
        "num_heads",
        "segment_lengths",
        "dilation_rates",
        "hierarchical_config",
    ),
    REMOVED_CREATE_BLOCK_SPARSE: ("preset",),
    FACTORY: FACTORY_PARAMETERS,
    GET_PRESET: ("preset_name",),
    PATTERN: PATTERN_PARAMETERS,
}

# Keywords that the base variant accepts unchanged.
PASSED_ON = frozenset({"dropout", "softmax_scale", "backend", "device", "dtype"})

# The beginning of the comment above a statement that needs a person.
TODO = "# TODO(migrate-hierarchical): "

# The beginning of the comment lines between pieces of code that are migrated together.
PIECE = "#@migrate-hierarchical-piece"

# Replaces a magic or a shell line of IPython, followed by its number and its words.
MAGIC_LINE = "#@migrate-hierarchical-line"

# A file with this text is left unchanged.
SKIP_FILE = b"migrate-hierarchical: skip-file"

# A file without this text has no use; Hierarchical and hierarchical both contain it.
NEEDLE = b"ierarchical"

# Nor has one with neither a removed name nor a module that is gone.
GONE = re.compile(
    rb"\b(?!(?:" + "|".join(sorted(FUNCTIONS)).encode() + rb")\b)block_sparse_\w"
    rb"|\bdilated_attention_pytorch\.sparse"
)

# A configuration in Python that names a removed class and need not mention the package.
SETTING = re.compile(
    rb"\b(?:" + "|".join(sorted(TARGETS)).encode() + rb")[\"']?\s*[=:]\s*[\"'](?:"
    + "|".join(sorted(CERTAIN_NAMES)).encode() + rb")[\"']"
)  # fmt: skip


def is_gone(module: str) -> bool:
    """Whether a submodule of the package (a path below it, "" for the root) no longer exists."""
    first = module.split(".")[0]
    return first not in FUNCTIONS and first.startswith(("block_sparse", "sparse"))


def strip_source(path: str) -> str:
    """A dotted path without the prefix `src.`, which scripts next to the package's sources use."""
    return path[4:] if path.startswith("src." + PACKAGE) else path


def below_package(path: str) -> str | None:
    """The part of a dotted module path below the package, "" for the package itself; None for other packages."""
    path = strip_source(path)
    if path == PACKAGE:
        return ""
    return path[len(PACKAGE) + 1 :] if path.startswith(PACKAGE + ".") else None
