"""The factory: variants, presets, shorthands, the settings of a pattern, and what was removed."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

import dilated_attention_pytorch as package
from dilated_attention_pytorch import (
    AdaptiveConfig,
    BlockSparseAdaptive,
    BlockSparseAttention,
    BlockSparseDistributedAttention,
    BlockSparseMultiheadAttention,
    DistributedSparseConfig,
    SparsePatternConfig,
    create_adaptive_block_sparse,
    create_block_sparse_attention,
    create_multihead_block_sparse,
    get_block_sparse_preset,
)
from dilated_attention_pytorch.config import PATTERN_TYPES, PatternType
from dilated_attention_pytorch.factory import VARIANTS
from tests.core.distributed.gloo_processes import needs_gloo
from tests.core.distributed.one_process import mesh_of_one

# The wording is fixed: users search for it.
REMOVED = (
    "Hierarchical variant has been removed due to poor memory efficiency. Use 'base' variant with "
    "pattern_type='dilated_sparse' and sparsity_ratio=0.01-0.05 (95-99% sparse) for better multi-scale coverage."
)
REMOVED_NAMES = [
    "BlockSparseHierarchical",
    "HierarchicalConfig",
    "get_hierarchical_presets",
    "create_hierarchical_attention",
    "create_hierarchical_block_sparse",
    "block_sparse_hierarchical",
]


def made(**arguments: Any) -> BlockSparseAttention:
    module = create_block_sparse_attention(**arguments)
    assert type(module) is BlockSparseAttention
    return module


# ---- variants


@pytest.mark.parametrize("variant", ["base", "auto"])
def test_variant_makes_the_base_module(variant: str) -> None:
    module = made(variant=variant)
    assert module.sparse_config == SparsePatternConfig()
    assert module.segment_lengths is None
    assert module.dilation_rates is None


def test_default_is_auto() -> None:
    assert made().sparse_config == SparsePatternConfig()


def test_migrated_code_runs() -> None:
    # word for word what the codemod writes
    model = create_block_sparse_attention(
        variant="base",
        segment_lengths=[2048],
        dilation_rates=[1],
        sparse_config=SparsePatternConfig(
            pattern_type="dilated_sparse",
            sparsity_ratio=0.01,  # keeps 1% of the blocks, at least 2 per row (causal: 3)
            dilation_rates=[1, 2, 4, 8],  # distances in blocks; sparse rows share them out
        ),
    )
    q = torch.randn(1, 256, 2, 16)
    assert model(q, q, q, is_causal=True).shape == q.shape
    assert model.layout(16_384).num_active_blocks == 655


def test_positional_order_is_that_of_upstream() -> None:
    config = SparsePatternConfig(block_size=16)
    module = made_positionally("base", [32, 64], [1, 2], config, 0.3, 32)
    assert module.segment_lengths == (32, 64)
    assert module.dilation_rates == (1, 2)
    assert module.sparse_config == SparsePatternConfig(block_size=32, sparsity_ratio=0.3)


def made_positionally(*arguments: Any) -> BlockSparseAttention:
    module = create_block_sparse_attention(*arguments)
    assert isinstance(module, BlockSparseAttention)
    return module


def test_other_arguments_reach_the_module() -> None:
    module = made(dropout=0.2, softmax_scale=0.5, backend="reference", device="cpu", dtype=torch.float16)
    assert (module.dropout, module.softmax_scale, module.backend) == (0.2, 0.5, "reference")


@pytest.mark.parametrize("variant", ["dense", "", "Base", None, 3])
def test_unknown_variant_lists_the_choices(variant: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        create_block_sparse_attention(variant)
    assert str(error.value) == f"variant must be one of {('auto', *VARIANTS)}, got {variant!r}"


@pytest.mark.parametrize("name", ["sparsities", "sparsity"])
def test_unknown_arguments_are_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(
        TypeError, match=f"variant='auto' takes no argument '{name}'.*arguments are sparse_config"
    ):
        create_block_sparse_attention(**{name: 1})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"embed_dim": 64},
            "variant='auto' takes no argument 'embed_dim'; use variant='multihead', with num_heads, or leave it out",
        ),
        (
            {"variant": "base", "embed_dim": 64, "num_heads": 4},
            "variant='base' takes no argument 'embed_dim'; use variant='multihead', or leave it out",
        ),
        (
            {"batch_first": True},
            "variant='auto' takes no argument 'batch_first'; use variant='multihead', with embed_dim and num_heads, or leave it out",
        ),
        ({"variant": "multihead", "embed_dim": 64}, "variant='multihead' needs embed_dim and num_heads, got no num_heads"),
        (
            {"variant": "distributed"},
            "variant='distributed' needs distributed_config; use DistributedSparseConfig(mesh), "
            "mesh=torch.distributed.init_device_mesh('cuda', (number_of_gpus,))",
        ),
        (
            {"variant": "distributed", "embed_dim": 64},
            "variant='distributed' takes no argument 'embed_dim'; delete it: the module is called with q, k and v, "
            "projections are yours",
        ),
        (
            {"embed_dim": 64, "num_heads": 4, "distributed_config": {}},
            "variant='auto' takes no argument 'embed_dim' beside distributed_config; delete it: the module is called with q, "
            "k and v, projections are yours",
        ),
        (
            {"adaptive_config": {}, "distributed_config": {}},
            "variant='auto' takes no argument 'adaptive_config'; use variant='adaptive', or leave it out",
        ),
        (
            {"variant": "base", "distributed_config": {}},
            "variant='base' takes no argument 'distributed_config'; use variant='distributed', or leave it out",
        ),
    ],
)  # fmt: skip
def test_arguments_of_other_variants_name_them(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError) as error:
        create_block_sparse_attention(**arguments)
    assert str(error.value) == message


# ---- multihead


def test_embed_dim_and_num_heads_make_the_multihead_module() -> None:
    settings: dict[str, Any] = {"sparsity_ratio": 0.2, "block_size": 32, "batch_first": True, "dropout": 0.1}
    for module in (
        create_block_sparse_attention(embed_dim=64, num_heads=4, **settings),
        create_block_sparse_attention("multihead", embed_dim=64, num_heads=4, **settings),
        create_multihead_block_sparse(64, 4, **settings),
    ):
        assert type(module) is BlockSparseMultiheadAttention
        assert (module.embed_dim, module.num_heads, module.batch_first, module.dropout) == (64, 4, True, 0.1)
        assert module.sparse_config == SparsePatternConfig(sparsity_ratio=0.2, block_size=32)


def test_every_argument_of_the_factory_reaches_the_multihead_module() -> None:
    module = create_block_sparse_attention("auto", [64], [2], {"block_size": 32}, 0.3, 16, None, None, 64, 4)
    assert isinstance(module, BlockSparseMultiheadAttention)
    assert (module.segment_lengths, module.dilation_rates) == ((64,), (2,))
    assert module.sparse_config == SparsePatternConfig(sparsity_ratio=0.3, block_size=16)


def test_shorthand_of_the_multihead_module_has_the_same_errors() -> None:
    with pytest.raises(TypeError, match="variant='multihead' takes no argument 'softmax_scale'"):
        create_multihead_block_sparse(64, 4, softmax_scale=0.5)
    with pytest.raises(TypeError, match=r"use sparse_config=SparsePatternConfig\(window_size=64\)"):
        create_multihead_block_sparse(64, 4, window_size=64)


# ---- adaptive


def test_adaptive_config_makes_the_adaptive_module() -> None:
    config = AdaptiveConfig(base_sparsity=0.8, hidden_dim=16)
    settings: dict[str, Any] = {"block_size": 32, "dropout": 0.1, "num_heads": 4}
    for module in (
        create_block_sparse_attention(
            adaptive_config=config, num_heads=4, head_dim=16, block_size=32, dropout=0.1
        ),
        create_block_sparse_attention("adaptive", adaptive_config=config, embed_dim=64, **settings),
        create_adaptive_block_sparse(0.8, head_dim=16, **settings),
        get_block_sparse_preset("adaptive_standard", adaptive_config=config, head_dim=16, **settings),
    ):
        assert type(module) is BlockSparseAdaptive
        assert (module.adaptive_config.base_sparsity, module.block_size, module.dropout) == (0.8, 32, 0.1)


def test_adaptive_preset_takes_its_sizes_from_the_first_call() -> None:
    module = get_block_sparse_preset("adaptive_standard")
    assert type(module) is BlockSparseAdaptive
    assert module.adaptive_config == AdaptiveConfig()
    q = torch.randn(1, 300, 2, 16)
    assert module(q, q, q, is_causal=True).isfinite().all()
    assert (module.num_heads, module.head_dim) == (2, 16)


def test_shorthand_of_the_adaptive_module_refuses_a_second_base_sparsity() -> None:
    with pytest.raises(TypeError, match="create_adaptive_block_sparse makes the adaptive_config"):
        create_adaptive_block_sparse(adaptive_config=AdaptiveConfig())
    with pytest.raises(ValueError, match="base_sparsity must be the fraction of blocks dropped"):
        create_adaptive_block_sparse(2)


# ---- distributed


@needs_gloo
def test_distributed_config_makes_the_distributed_module() -> None:
    settings: dict[str, Any] = {"sparsity_ratio": 0.2, "block_size": 32, "dropout": 0.1}
    with mesh_of_one() as mesh:
        config = DistributedSparseConfig(mesh, balance="zigzag")
        as_dict = {"mesh": mesh, "balance": "zigzag"}
        for module in (
            create_block_sparse_attention(distributed_config=config, **settings),
            create_block_sparse_attention(distributed_config=as_dict, **settings),
            create_block_sparse_attention(
                "distributed", None, None, None, 0.2, 32, None, config, dropout=0.1
            ),
            get_block_sparse_preset("dilated", variant="distributed", distributed_config=config, **settings),
        ):
            assert type(module) is BlockSparseDistributedAttention
            assert module.distributed_config == config
            assert (module.sparse_config.sparsity_ratio, module.block_size, module.dropout) == (0.2, 32, 0.1)


@needs_gloo
def test_distributed_module_of_one_process_is_the_base_module() -> None:
    q = torch.randn(1, 300, 2, 16)
    with mesh_of_one() as mesh:
        module = create_block_sparse_attention(
            segment_lengths=[64], dilation_rates=[2], distributed_config=DistributedSparseConfig(mesh)
        )
        out = module(q, q, q, is_causal=True)
    expected = made(segment_lengths=[64], dilation_rates=[2])(q, q, q, is_causal=True)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)


# ---- shorthands


def test_shorthands_make_a_config() -> None:
    module = made(sparsity_ratio=0.25, block_size=128)
    assert module.sparse_config == SparsePatternConfig(sparsity_ratio=0.25, block_size=128)
    assert module.block_size == 128


def test_shorthands_replace_the_fields_of_a_config() -> None:
    config = SparsePatternConfig("local_window", 32, window_size=96)
    assert made(sparse_config=config, block_size=16).sparse_config == dataclasses.replace(
        config, block_size=16
    )
    assert config.block_size == 32


def test_shorthands_replace_the_fields_of_every_heads_config() -> None:
    configs = [SparsePatternConfig(), SparsePatternConfig("local_window")]
    module = made(sparse_config=configs, sparsity_ratio=0.5)
    assert module.sparse_config == (
        SparsePatternConfig(sparsity_ratio=0.5),
        SparsePatternConfig("local_window", sparsity_ratio=0.5),
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity_ratio": 0}, "sparsity_ratio must be the fraction of blocks kept.*got 0"),
        ({"block_size": 48}, r"block_size must be one of \(16, 32, 64, 128, 256\), got 48"),
        ({"sparse_config": "dilated_sparse"}, "sparse_config must be a SparsePatternConfig"),
        ({"segment_lengths": [64]}, "dilation_rates is None; pass both or neither"),
        ({"dropout": 1}, r"dropout must be in \[0, 1\), got 1"),
    ],
)
def test_factory_hands_the_errors_of_the_settings_on(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        create_block_sparse_attention(**arguments)


# ---- presets

PRESETS = {
    "local": ("local_window", 0.1, 64, 256, 0, None),
    "dilated": ("dilated_sparse", 0.1, 64, None, 0, (1, 2, 4, 8)),
    "global_local": ("global_local", 0.1, 64, 256, 64, None),
    "ultra_sparse": ("dilated_sparse", 0.01, 128, None, 0, None),
}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_makes_a_module_that_attends(name: str) -> None:
    module = get_block_sparse_preset(name)
    assert type(module) is BlockSparseAttention
    config = module.sparse_config
    found = (config.pattern_type, config.sparsity_ratio, config.block_size)
    assert (*found, config.window_size, config.global_tokens, config.dilation_rates) == PRESETS[name]
    q = torch.randn(1, 300, 2, 16)
    out = module(q, q, q, is_causal=True)
    assert out.shape == q.shape
    assert out.isfinite().all()


def test_preset_takes_overrides() -> None:
    module = get_block_sparse_preset("dilated", sparsity_ratio=0.02, dropout=0.1, block_size=32)
    assert module.sparse_config == SparsePatternConfig(
        sparsity_ratio=0.02, block_size=32, dilation_rates=[1, 2, 4, 8]
    )
    assert module.dropout == 0.1
    own = SparsePatternConfig(block_size=16)
    assert get_block_sparse_preset("dilated", sparse_config=own).sparse_config == own
    # the preset itself stays as it was
    assert get_block_sparse_preset("dilated").sparse_config.sparsity_ratio == 0.1


@pytest.mark.parametrize("name", ["", "dense", "Local", "hierarchical", None])
def test_unknown_preset_lists_the_choices(name: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        get_block_sparse_preset(name)
    choices = "('local', 'dilated', 'global_local', 'ultra_sparse', 'adaptive_standard')"
    assert str(error.value) == f"name must be one of {choices}, got {name!r}"


def test_unknown_override_is_refused() -> None:
    with pytest.raises(TypeError, match="window"):
        get_block_sparse_preset("local", window=3)


# ---- what was removed


@pytest.mark.parametrize(
    "use",
    [
        lambda: create_block_sparse_attention("hierarchical"),
        lambda: create_block_sparse_attention(variant="hierarchical", segment_lengths=[2048], dilation_rates=[1]),
        lambda: create_block_sparse_attention(hierarchical_config=None),
        lambda: create_block_sparse_attention("base", hierarchical_config={"num_levels": 3}),
        lambda: get_block_sparse_preset("hierarchical_standard"),
        lambda: get_block_sparse_preset("hierarchical_fine"),
        lambda: get_block_sparse_preset("hierarchical_long", sparsity_ratio=0.1),
        lambda: get_block_sparse_preset("local", hierarchical_config=None),
        lambda: SparsePatternConfig("hierarchical"),
        lambda: SparsePatternConfig(pattern_type="hierarchical", sparsity_ratio=7),
    ],
    ids=[
        "variant", "variant_with_others", "keyword", "keyword_beside_base", "preset_standard", "preset_fine",
        "preset_long", "keyword_of_preset", "pattern", "pattern_before_its_other_errors",
    ],
)  # fmt: skip
def test_removed_variant_says_exactly_this(use: Any) -> None:
    with pytest.raises(ValueError) as error:
        use()
    assert str(error.value) == REMOVED


@pytest.mark.parametrize("name", REMOVED_NAMES)
def test_removed_name_says_what_replaces_it(name: str) -> None:
    with pytest.raises(ImportError) as error:
        getattr(package, name)
    message = str(error.value)
    assert message.startswith(f"`dilated_attention_pytorch.{name}` was removed on 2025-07-07")
    assert "python -m migrate_hierarchical PATH" in message
    assert "pip install ./tools/migrate-hierarchical" in message
    assert "docs/migrate.md" in message
    assert "://" not in message  # no address that may lead nowhere


@pytest.mark.parametrize("name", REMOVED_NAMES)
def test_from_import_of_a_removed_name_says_what_replaces_it(name: str) -> None:
    with pytest.raises(ImportError, match="was removed on 2025-07-07"):
        exec(f"from dilated_attention_pytorch import {name}", {})


@pytest.mark.parametrize("name", REMOVED_NAMES)
def test_program_in_the_message_of_a_removed_name_runs(name: str) -> None:
    with pytest.raises(ImportError) as error:
        getattr(package, name)
    program = "".join(re.findall(r"^(?:    .*)?\n", str(error.value), re.MULTILINE))
    namespace: dict[str, Any] = {}
    exec(textwrap.dedent(program), namespace)
    made = [
        value for value in namespace.values() if isinstance(value, BlockSparseAttention | SparsePatternConfig)
    ]
    assert len(made) == 1


def test_importing_the_removed_module_says_what_replaces_it() -> None:
    # twice: the first attempt must not leave half a module behind
    for _ in range(2):
        with pytest.raises(ImportError, match="from dilated_attention_pytorch import create_block_sparse"):
            importlib.import_module("dilated_attention_pytorch.block_sparse_hierarchical")


def test_import_of_a_name_from_the_removed_module() -> None:
    with pytest.raises(ImportError) as error:
        exec("from dilated_attention_pytorch.block_sparse_hierarchical import HierarchicalConfig", {})
    assert str(error.value).startswith("`dilated_attention_pytorch.block_sparse_hierarchical` was removed")


def test_dir_lists_the_public_names_and_none_that_was_removed() -> None:
    assert set(dir(package)) == set(package.__all__)
    assert not set(dir(package)) & set(REMOVED_NAMES)
    assert not [name for name in dir(package) if "hierarchical" in name.lower()]
    namespace: dict[str, Any] = {}
    exec("from dilated_attention_pytorch import *", namespace)
    assert set(package.__all__) <= set(namespace)


def test_other_missing_names_are_ordinary_attribute_errors() -> None:
    with pytest.raises(
        AttributeError, match="module 'dilated_attention_pytorch' has no attribute 'BlockSparse'"
    ):
        package.BlockSparse  # noqa: B018
    assert not hasattr(package, "nothing")


# ---- settings of a pattern


def test_positional_order_of_the_config_is_that_of_upstream() -> None:
    order = ["pattern_type", "block_size", "sparsity_ratio", "window_size", "global_tokens", "dilation_rates"]
    order += ["min_blocks", "rotation", "exact"]  # ours
    assert [field.name for field in dataclasses.fields(SparsePatternConfig)] == order
    assert list(inspect.signature(SparsePatternConfig).parameters) == order
    config = SparsePatternConfig("global_local", 32, 0.2, 128, 64)
    assert config == SparsePatternConfig(
        pattern_type="global_local", block_size=32, sparsity_ratio=0.2, window_size=128, global_tokens=64
    )
    assert SparsePatternConfig("dilated_sparse", 32, 0.2, None, 0, [1, 3]).dilation_rates == (1, 3)


@pytest.mark.parametrize("field", ["min_blocks", "window_size", "rotation", "exact"])
def test_fields_of_the_config_beside_it_are_refused_with_the_way_out(field: str) -> None:
    with pytest.raises(TypeError, match=rf"use sparse_config=SparsePatternConfig\({field}=4\)"):
        create_block_sparse_attention("base", **{field: 4})


def test_defaults_of_the_config() -> None:
    config = SparsePatternConfig()
    assert dataclasses.astuple(config) == ("dilated_sparse", 64, 0.1, None, 0, None, None, 0, False)


def test_config_is_frozen_and_can_be_a_key() -> None:
    config = SparsePatternConfig(dilation_rates=[1, 2])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.block_size = 32  # type: ignore[misc]
    assert {config: 1}[SparsePatternConfig(dilation_rates=(1, 2))] == 1


def test_pattern_types_are_the_three() -> None:
    assert get_args(PatternType) == PATTERN_TYPES == ("dilated_sparse", "local_window", "global_local")


RATIO = "sparsity_ratio must be the fraction of blocks kept, 0 < ratio <= 1, got {}; for 99 % sparse use 0.01"
SIZE = "block_size must be one of (16, 32, 64, 128, 256), got {}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"pattern_type": "bigbird"},
            "pattern_type must be one of ('dilated_sparse', 'local_window', 'global_local'), got 'bigbird'",
        ),
        *(({"block_size": size}, SIZE.format(repr(size))) for size in (8, 48, 512, 0, -64, 64.0, True, "64", None)),
        *(
            ({"sparsity_ratio": ratio}, RATIO.format(repr(ratio)))
            for ratio in (0, 0.0, -0.1, 1.01, 99, float("nan"), float("inf"), True, "0.1", None)
        ),
        *(
            (
                {"pattern_type": "local_window", "window_size": size},
                f"window_size must be a positive number of tokens, got {size!r}",
            )
            for size in (0, -1, 64.0, "64", True)
        ),
        *(
            (
                {"pattern_type": "global_local", "global_tokens": tokens},
                f"global_tokens must be a number of tokens >= 0, got {tokens!r}",
            )
            for tokens in (-1, 1.5, None, True)
        ),
        *(
            (
                {"dilation_rates": rates},
                f"dilation_rates must be positive numbers of blocks, got {tuple(rates)}; use e.g. [1, 2, 4, 8]",
            )
            for rates in ([], [0], [1, -2], [1.0], [True])
        ),
    ],
    ids=lambda value: str(value)[:50] if isinstance(value, dict) else "",
)  # fmt: skip
def test_config_names_the_argument_its_value_and_what_would_do(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        SparsePatternConfig(**settings)
    assert str(error.value) == message


# ---- what people see


def test_module_prints_its_settings() -> None:
    module = made(sparsity_ratio=0.01, segment_lengths=[64], dilation_rates=[2], dropout=0.1, backend="cpu")
    printed = repr(module)
    for part in (
        "sparsity_ratio=0.01",
        "segment_lengths=[64]",
        "dilation_rates=[2]",
        "dropout=0.1",
        "backend='cpu'",
    ):
        assert part in printed
    assert "softmax_scale" not in printed


def test_module_has_no_parameters() -> None:
    module = made()
    assert list(module.parameters()) == []
    assert module.state_dict() == {}


def test_table_of_presets_has_their_settings() -> None:
    page = (Path(__file__).parents[2] / "docs/patterns.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `((?:SparsePattern|Adaptive)Config\(.*?\))`", page, re.MULTILINE)
    names = {"SparsePatternConfig": SparsePatternConfig, "AdaptiveConfig": AdaptiveConfig}
    factory = importlib.import_module("dilated_attention_pytorch.factory")
    assert {name: eval(made, names) for name, made in rows} == {**factory.PRESETS, **factory.ADAPTIVE_PRESETS}
