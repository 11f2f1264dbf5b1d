"""Every public entry point, given every kind of bad value: a TypeError or ValueError that names the argument."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from dilated_attention_pytorch import (
    BlockLayout,
    BlockSparseAttention,
    SparsePatternConfig,
    block_scores,
    block_sparse_attention,
    block_sparse_attention_varlen,
    block_sparse_decode,
    create_block_sparse_attention,
    explain_backends,
    explain_backends_varlen,
    get_block_sparse_preset,
    select_blocks,
)

CONFIG = SparsePatternConfig(sparsity_ratio=0.5)
SHAPE = (2, 128, 4, 16)
LAYOUT = BlockLayout.from_config(CONFIG, 128)
BLOCK_MASK = LAYOUT.to_block_mask()
BLOCKS = torch.ones(2, 2, dtype=torch.bool)


def nested(layout: torch.layout) -> torch.Tensor:
    return torch.nested.nested_tensor([torch.randn(n, 4, 16) for n in (100, 60)], layout=layout)


# Wrong for every argument below, or named in RIGHT.
BAD: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "text": lambda: "x",
    "number_as_text": lambda: "64",
    "bytes": lambda: b"a",
    "true": lambda: True,
    "nan": lambda: math.nan,
    "infinity": lambda: math.inf,
    "negative": lambda: -3,
    "zero": lambda: 0,
    "large": lambda: 10**30,
    "too_large_to_print": lambda: 10**5000,
    "fractional": lambda: 1.5,
    "complex": lambda: 1j,
    "empty_list": list,
    "list_of_none": lambda: [None],
    "list_of_lists": lambda: [[1]],
    "list_of_bool": lambda: [True],
    "dict": lambda: {"a": 1},
    "set": lambda: {1},
    "generator": lambda: (item for item in (0,)),
    "object": object,
    "type": lambda: int,
    "function": lambda: len,
    "numpy_negative": lambda: np.int64(-1),
    "numpy_nan": lambda: np.float32(np.nan),
    "numpy_text": lambda: np.str_("x"),
    "numpy_matrix": lambda: np.ones((2, 2)),
    "numpy_objects": lambda: np.array([None, 1], dtype=object),
    "tensor_of_a_number": lambda: torch.tensor(-1.5),
    "tensor_of_one": lambda: torch.full((1,), 7),
    "tensor_matrix": lambda: torch.ones(2, 3),
    "tensor_bool": lambda: torch.ones(3, 4, 5, dtype=torch.bool),
    "tensor_int": lambda: torch.ones(SHAPE, dtype=torch.int64),
    "tensor_complex": lambda: torch.ones(SHAPE, dtype=torch.complex64),
    "tensor_on_meta": lambda: torch.ones(SHAPE, device="meta"),
    "number_on_meta": lambda: torch.ones((), device="meta"),
    "tensor_sparse": lambda: torch.randn(SHAPE).to_sparse(),
    "tensor_csr": lambda: torch.ones(3, 3).to_sparse_csr(),
    "tensor_mkldnn": lambda: torch.randn(SHAPE).to_mkldnn(),
    "tensor_quantized": lambda: torch.quantize_per_tensor(torch.randn(SHAPE), 0.1, 0, torch.quint8),
    "tensor_nested": lambda: nested(torch.strided),
    "tensor_jagged": lambda: nested(torch.jagged),
    "tensor_empty": lambda: torch.ones(0),
    "tensor_with_grad": lambda: torch.tensor(0.5, requires_grad=True),
}


def refused(use: Callable[[], Any]) -> str:
    with pytest.raises((TypeError, ValueError)) as error:
        use()
    return str(error.value)


def call(**changes: Any) -> Any:
    q = torch.randn(SHAPE)
    return block_sparse_attention(**{"q": q, "k": q, "v": q, "layout": LAYOUT, **changes})


def explain(**changes: Any) -> Any:
    q = torch.randn(SHAPE)
    return explain_backends(**{"q": q, "k": q, "v": q, "layout": LAYOUT, **changes})


OFFSETS = torch.tensor([0, 128, 256], dtype=torch.int32)


def packed_arguments(**changes: Any) -> dict[str, Any]:
    q = torch.randn(256, 4, 16)
    offsets = {"cu_seqlens_q": OFFSETS, "cu_seqlens_k": OFFSETS, "max_seqlen_q": 128, "max_seqlen_k": 128}
    return {"q": q, "k": q, "v": q, "layout": LAYOUT, **offsets, **changes}


def call_packed(**changes: Any) -> Any:
    return block_sparse_attention_varlen(**packed_arguments(**changes), backend="reference")


def explain_packed(**changes: Any) -> Any:
    return explain_backends_varlen(**packed_arguments(**changes))


def decode(**changes: Any) -> Any:
    cache = torch.randn(SHAPE)
    lengths = torch.tensor([128, 70], dtype=torch.int32)
    arguments = {
        "q": cache[:, :1],
        "k_cache": cache,
        "v_cache": cache,
        "layout": LAYOUT,
        "cache_lengths": lengths,
    }
    return block_sparse_decode(**{**arguments, **changes})


def attend(**changes: Any) -> Any:
    q = torch.randn(SHAPE)
    return BlockSparseAttention(CONFIG)(**{"q": q, "k": q, "v": q, **changes})


def dilated(make: Callable[..., Any]) -> Callable[..., Any]:
    """With the other argument of a token dilation."""
    return lambda **given: make(**{"segment_lengths": [64], "dilation_rates": [1], **given})


SCALES = {"none", "negative", "zero", "large", "fractional", "numpy_negative", "tensor_of_a_number"}
FLAGS = {"true", "zero"}
CONFIGS = {"none"}
CALL = {
    **{name: set() for name in ("q", "k", "v", "layout")},
    **{
        name: {"none"}
        for name in ("kv_lengths", "kv_starts", "key_padding_mask", "block_bias", "alibi_slopes", "sinks")
    },
    "attn_bias": {"none", "tensor_of_a_number"},
    "q_offset": {"none", "zero"},
    "is_causal": FLAGS,
    "softmax_scale": SCALES,
    "softcap": {"none", "zero", "large", "fractional"},
    "dropout_p": {"zero"},
    "deterministic": {"none", *FLAGS},
}
# what packed sequences have too
PACKED = {
    **{name: CALL[name] for name in (
        "q", "k", "v", "layout", "block_bias", "alibi_slopes", "sinks", "q_offset", "is_causal", "softmax_scale", "softcap",
        "dropout_p", "deterministic",
    )},
    "cu_seqlens_q": set(),
    "cu_seqlens_k": set(),
    "max_seqlen_q": set(),
    "max_seqlen_k": set(),
}  # fmt: skip
MODULE = {
    "sparse_config": CONFIGS,
    "sparsity_ratio": {"none"},
    "block_size": {"none"},
    "dropout": {"zero"},
    "softmax_scale": SCALES,
    "backend": {"none"},
    "deterministic": CALL["deterministic"],
}
INDICES = torch.zeros(2, 1, dtype=torch.int64)
INDEX_LENGTHS = {"q_len": 128, "kv_len": 128, "block_size": 64}
QUERIES = torch.randn(1, 128, 2, 16)
# (entry point, argument): how it is called with the argument, and the values that are right there
ENTRIES: dict[tuple[str, str], tuple[Callable[..., Any], set[str]]] = {
    **{("block_sparse_attention", name): (call, right) for name, right in CALL.items()},
    ("block_sparse_attention", "backend"): (call, {"none"}),
    ("block_sparse_attention", "return_lse"): (call, FLAGS),
    ("block_sparse_attention", "segment_lengths"): (dilated(call), set()),
    ("block_sparse_attention", "dilation_rates"): (dilated(call), set()),
    **{("explain_backends", name): (explain, right) for name, right in CALL.items()},
    **{("block_sparse_attention_varlen", name): (call_packed, right) for name, right in PACKED.items()},
    ("block_sparse_attention_varlen", "return_lse"): (call_packed, FLAGS),
    **{
        ("block_sparse_decode", name): (decode, right)
        for name, right in {
            **{name: set() for name in ("q", "k_cache", "v_cache", "layout", "cache_lengths")},
            **{name: {"none"} for name in ("block_table", "kv_starts", "alibi_slopes", "sinks", "backend")},
            "softmax_scale": SCALES, "softcap": CALL["softcap"], "return_lse": FLAGS,
        }.items()
    },
    **{("explain_backends_varlen", name): (explain_packed, right) for name, right in PACKED.items()},
    **{("module", name): (attend, CALL[name]) for name in ("q", "k", "v", "kv_lengths", "key_padding_mask")},
    ("module", "is_causal"): (attend, FLAGS),
    **{("BlockSparseAttention", name): (BlockSparseAttention, right) for name, right in MODULE.items()},
    **{("create", name): (create_block_sparse_attention, right) for name, right in MODULE.items()},
    ("create", "variant"): (create_block_sparse_attention, set()),
    ("create", "segment_lengths"): (dilated(create_block_sparse_attention), set()),
    ("create", "dilation_rates"): (dilated(create_block_sparse_attention), set()),
    ("get_block_sparse_preset", "name"): (get_block_sparse_preset, set()),
    ("config", "pattern_type"): (SparsePatternConfig, set()),
    ("config", "block_size"): (SparsePatternConfig, set()),
    ("config", "sparsity_ratio"): (SparsePatternConfig, set()),
    ("config", "dilation_rates"): (SparsePatternConfig, {"none", "tensor_of_one"}),
    ("config", "window_size"): (lambda **given: SparsePatternConfig("local_window", **given), {"none"}),
    ("config", "global_tokens"): (lambda **given: SparsePatternConfig("global_local", **given), {"zero"}),
    ("from_config", "config"): (lambda **given: BlockLayout.from_config(q_len=128, **given), set()),
    ("from_config", "q_len"): (lambda **given: BlockLayout.from_config(CONFIG, **given), set()),
    ("from_config", "kv_len"): (lambda **given: BlockLayout.from_config(CONFIG, 128, **given), {"none"}),
    ("from_config", "causal"): (lambda **given: BlockLayout.from_config(CONFIG, 128, **given), FLAGS),
    ("from_dense", "mask"): (lambda **given: BlockLayout.from_dense(block_size=64, **given), {"tensor_bool"}),
    ("from_dense", "block_size"): (lambda **given: BlockLayout.from_dense(BLOCKS, **given), set()),
    ("from_dense", "q_len"): (lambda **given: BlockLayout.from_dense(BLOCKS, 64, **given), {"none"}),
    ("from_dense", "kv_len"): (lambda **given: BlockLayout.from_dense(BLOCKS, 64, **given), {"none"}),
    ("from_dense", "causal"): (lambda **given: BlockLayout.from_dense(BLOCKS, 64, **given), FLAGS),
    **{
        ("from_indices", name): (
            lambda **given: BlockLayout.from_indices(**{"indices": INDICES, **INDEX_LENGTHS, **given}), right
        )
        for name, right in {
            "indices": set(), "counts": {"none", "tensor_of_one"}, "q_len": set(), "kv_len": set(), "block_size": set(), "causal": FLAGS,
        }.items()
    },
    **{
        ("block_scores", name): (lambda **given: block_scores(**{"q": QUERIES, "k": QUERIES, "block_size": 64, **given}), right)
        for name, right in {
            "q": set(), "k": set(), "block_size": set(), "causal": FLAGS, "softmax_scale": SCALES,
        }.items()
    },
    **{
        ("select_blocks", name): (
            lambda **given: select_blocks(**{"scores": torch.randn(4, 4), "num_blocks": 2, "keep_diagonal": False, **given}),
            right,
        )
        for name, right in {
            "scores": {"tensor_matrix", "tensor_on_meta"}, "num_blocks": set(), "top_p": {"none"}, "keep_diagonal": FLAGS,
            "window": {"zero"}, "sinks": {"zero"}, "causal": FLAGS,
        }.items()
    },
    ("from_block_mask", "block_mask"): (BlockLayout.from_block_mask, set()),
    **{
        ("from_block_mask", name): (lambda **given: BlockLayout.from_block_mask(BLOCK_MASK, **given), right)
        for name, right in {
            "allow_partial": FLAGS, "q_len": {"none"}, "kv_len": {"none"}, "causal": FLAGS,
        }.items()
    },
    ("coverage", "layers"): (LAYOUT.coverage, {"large", "too_large_to_print"}),
    ("rows", "head"): (LAYOUT.rows, {"zero"}),
    ("plot", "head"): (LAYOUT.plot, {"zero"}),
    ("plot", "ax"): (LAYOUT.plot, {"none"}),
}  # fmt: skip


@pytest.mark.parametrize(("entry", "argument"), ENTRIES, ids=lambda name: name)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_bad_values_are_refused_by_the_name_of_the_argument(entry: str, argument: str) -> None:
    if entry == "plot":
        pytest.importorskip("matplotlib").use("Agg")
    use, right = ENTRIES[entry, argument]
    for kind, make in BAD.items():
        if kind in right:
            use(**{argument: make()})
            continue
        message = refused(lambda: use(**{argument: make()}))  # noqa: B023
        assert argument in message, kind
        assert len(message) < 1500, kind


# Of a wrong type wherever a number, a flag, a tensor, a name, a layout or a list of these is wanted.
OF_NO_TYPE = ("bytes", "object", "type", "function", "complex")


@pytest.mark.parametrize(("entry", "argument"), ENTRIES, ids=lambda name: name)
def test_value_of_a_wrong_type_is_a_type_error(entry: str, argument: str) -> None:
    if entry == "plot":
        pytest.importorskip("matplotlib").use("Agg")
    use, _ = ENTRIES[entry, argument]
    for kind in OF_NO_TYPE:
        with pytest.raises(TypeError, match=argument):
            use(**{argument: BAD[kind]()})


# A number that is out of its range, a text that is no name and an empty list have the right type.
OF_NO_VALUE = {
    "backend": "text",
    "variant": "text",
    "name": "text",
    "pattern_type": "text",
    "block_size": "zero",
    "q_len": "negative",
    "sparsity_ratio": "fractional",
    "segment_lengths": "empty_list",
    "dilation_rates": "empty_list",
    "sparse_config": "empty_list",
    "window": "negative",
    "head": "negative",
    "layers": "zero",
    "softmax_scale": "nan",
}


@pytest.mark.parametrize(
    ("entry", "argument"), [each for each in ENTRIES if each[1] in OF_NO_VALUE], ids=lambda name: name
)
def test_value_out_of_its_range_is_a_value_error(entry: str, argument: str) -> None:
    if entry == "plot":
        pytest.importorskip("matplotlib").use("Agg")
    use, _ = ENTRIES[entry, argument]
    with pytest.raises(ValueError, match=argument):
        use(**{argument: BAD[OF_NO_VALUE[argument]]()})


# ---- numbers of other libraries

NUMBERS: dict[str, tuple[Any, Any]] = {
    "float32": (np.float32(0.1), 0.1),
    "float16": (np.float16(0.1), 0.1),
    "float64": (np.float64(0.1), 0.1),
    "array": (np.array(0.1, dtype=np.float32), 0.1),
    "decimal": (Decimal("0.1"), 0.1),
    "fraction": (Fraction(1, 10), 0.1),
    "tensor": (torch.tensor(0.1), 0.1),
    "half": (torch.tensor(0.1, dtype=torch.bfloat16), 0.1),
    "int": (np.int64(1), 1.0),
    "third": (Fraction(1, 3), Fraction(1, 3)),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_ratio_is_the_decimal_that_was_written(name: str) -> None:
    given, meant = NUMBERS[name]
    config = SparsePatternConfig(sparsity_ratio=given)
    assert config.sparsity_ratio == meant
    assert type(config.sparsity_ratio) is type(meant)
    assert BlockSparseAttention(sparsity_ratio=given).sparse_config == config


def test_third_of_the_blocks_is_a_third() -> None:
    # as a float it is a little less, and every total that 3 divides would lose a block
    config = SparsePatternConfig("local_window", 16, Fraction(1, 3))
    assert BlockLayout.from_config(config, 16 * 30).num_active_blocks == 300


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint8, np.array, torch.tensor])
def test_whole_numbers_of_other_libraries_are_taken(kind: Callable[[int], Any]) -> None:
    config = SparsePatternConfig("global_local", kind(16), 0.5, kind(32), kind(16))
    assert config == SparsePatternConfig("global_local", 16, 0.5, 32, 16)
    assert SparsePatternConfig(dilation_rates=[kind(1), kind(4)]).dilation_rates == (1, 4)
    layout = BlockLayout.from_config(config, kind(48), kind(96))
    assert (layout.q_len, layout.kv_len) == (48, 96)
    module = create_block_sparse_attention(segment_lengths=[kind(64)], dilation_rates=[kind(2)])
    assert (module.segment_lengths, module.dilation_rates) == ((64,), (2,))
    assert layout.coverage(kind(1)) == layout.coverage(1)


@pytest.mark.parametrize("kind", [np.array, torch.tensor, tuple, range, iter], ids=lambda kind: kind.__name__)
def test_lists_may_be_arrays_tuples_ranges_and_generators(kind: Callable[[Any], Any]) -> None:
    rates = kind(2) if kind is range else kind([0, 1])
    with pytest.raises(ValueError, match="dilation_rates must be positive"):
        SparsePatternConfig(dilation_rates=rates)
    rates = range(1, 3) if kind is range else kind([1, 2])
    assert SparsePatternConfig(dilation_rates=rates).dilation_rates == (1, 2)
    rates = range(1, 3) if kind is range else kind([1, 2])
    module = BlockSparseAttention(CONFIG, [64, 128], rates)
    q = torch.randn(SHAPE)
    expected = block_sparse_attention(q, q, q, LAYOUT, segment_lengths=[64, 128], dilation_rates=[1, 2])
    assert torch.equal(module(q, q, q), expected)


def test_numbers_of_numpy_in_a_call() -> None:
    expected = call(softmax_scale=0.5, is_causal=False, dropout_p=0.0)
    q = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    tensors = {"q": q, "k": q, "v": q}
    expected = call(**tensors, softmax_scale=0.5)
    for scale in (np.float32(0.5), np.array(0.5), torch.tensor(0.5), Fraction(1, 2), Decimal("0.5")):
        found = call(**tensors, softmax_scale=scale, is_causal=np.bool_(False), dropout_p=np.float32(0.0))
        assert torch.equal(found, expected)
    module = BlockSparseAttention(CONFIG, softmax_scale=np.float32(0.5), dropout=np.float32(0.1)).eval()
    assert (module.softmax_scale, module.dropout) == (0.5, 0.1)
    assert torch.equal(module(q, q, q), expected)


# ---- what a dict stands for


def test_dict_stands_for_a_config_of_its_items() -> None:
    given = {"pattern_type": "local_window", "sparsity_ratio": 0.2}
    config = SparsePatternConfig("local_window", sparsity_ratio=0.2)
    assert BlockSparseAttention(given).sparse_config == config
    assert BlockSparseAttention([given, CONFIG]).sparse_config == (config, CONFIG)
    assert create_block_sparse_attention(sparse_config=given, sparsity_ratio=0.3).sparse_config == (
        SparsePatternConfig("local_window", sparsity_ratio=0.3)
    )
    assert BlockLayout.from_config(given, 256).rows() == BlockLayout.from_config(config, 256).rows()


def test_misspelt_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="no field 'sparsity'; did you mean 'sparsity_ratio'"):
        BlockSparseAttention({"sparsity": 0.1})
    with pytest.raises(ValueError, match=r"mean 'sparsity_ratio'\? The fields are pattern_type, "):
        BlockSparseAttention({"sparsty_ratio": 0.1})
    with pytest.raises(ValueError, match="no field 'zzz'; the fields are pattern_type, "):
        BlockSparseAttention({"zzz": 0.1})
    with pytest.raises(TypeError, match=r"no argument 'droput'; did you mean 'dropout'.*softmax_scale"):
        create_block_sparse_attention(droput=0.1)
    with pytest.raises(TypeError, match="no argument 'ring'; the arguments are sparse_config, "):
        get_block_sparse_preset("local", ring=1)


@pytest.mark.parametrize("backend", ["tritn", "CPU", "cuda", ""])
def test_unknown_backend_is_refused_when_the_module_is_made(backend: str) -> None:
    with pytest.raises(ValueError, match=rf"backend must be one of \('auto', 'cpu',.* got '{backend}'"):
        BlockSparseAttention(backend=backend)


# ---- (batch, num_heads, seq_len, head_dim)


@pytest.mark.parametrize(
    "use",
    {
        "decoding": lambda x: BlockSparseAttention(CONFIG)(x[:, :, :1], x, x, is_causal=True),
        "cross": lambda x: BlockSparseAttention(CONFIG)(x[:, :, :100], x, x),
        "padding": lambda x: BlockSparseAttention(CONFIG)(
            x, x, x, key_padding_mask=torch.zeros(2, 128, dtype=torch.bool)
        ),
        "lengths": lambda x: BlockSparseAttention(CONFIG)(x, x, x, kv_lengths=torch.tensor([128, 9])),
    }.items(),
    ids=lambda item: item[0],
)
def test_heads_before_tokens_are_named_where_nothing_fits(use: tuple[str, Callable[..., Any]]) -> None:
    x = torch.randn(2, 4, 128, 16)
    with pytest.raises(
        ValueError, match=r"look like \(batch, num_heads, seq_len, head_dim\).*q\.transpose\(1, 2\)"
    ):
        use[1](x)


@pytest.mark.parametrize("shape", [(1, 8, 512, 16), (2, 8, 100, 16), (1, 2, 33, 16)])
def test_many_heads_of_few_tokens_give_a_warning(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    with pytest.warns(UserWarning, match=rf"{shape[1]} tokens of {shape[2]} heads.*transpose\(1, 2\)"):
        BlockSparseAttention(CONFIG)(x, x, x)


@pytest.mark.parametrize("length", [16, 128])
def test_layout_for_the_number_of_heads_gives_a_warning(length: int) -> None:
    x = torch.randn(2, 4, length, 16)
    with pytest.warns(UserWarning, match=rf"4 tokens of {length} heads.*transpose\(1, 2\)"):
        block_sparse_attention(x, x, x, BlockLayout.from_config(CONFIG, length))


def test_decoding_with_a_short_cache_gives_none() -> None:
    q, k = torch.randn(1, 1, 128, 16), torch.randn(1, 3, 128, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BlockSparseAttention(CONFIG)(q, k, k, is_causal=True)


@pytest.mark.parametrize("shape", [(2, 1, 128, 16), (1, 5, 32, 16), (1, 25, 96, 16), (1, 1024, 256, 4)])
def test_usual_numbers_of_heads_give_none(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BlockSparseAttention(CONFIG)(x, x, x, is_causal=True)


# ---- causal layouts and lengths


@pytest.mark.parametrize("q_len", [128, 64])
def test_causal_layout_without_is_causal_is_refused_with_both_ways_out(q_len: int) -> None:
    layout = BlockLayout.from_config(CONFIG, q_len, 128, causal=True)
    q = torch.randn(2, q_len, 4, 16)
    k = torch.randn(SHAPE)
    with pytest.raises(ValueError, match=r"pass is_causal=True, or make the layout with causal=False"):
        block_sparse_attention(q, k, k, layout)
    assert block_sparse_attention(q, k, k, layout, is_causal=True).shape == q.shape


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.complex64, torch.uint16])
def test_lengths_of_other_types_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"kv_lengths must be int with shape \(2,\)"):
        call(kv_lengths=torch.ones(2, dtype=dtype))


@pytest.mark.parametrize(("length", "shown"), [(-5, "-5"), (129, "129"), (2**40, str(2**40))])
def test_lengths_out_of_range_are_refused(length: int, shown: str) -> None:
    with pytest.raises(ValueError, match=f"kv_lengths must be 0 to kv_len 128, got {shown}"):
        call(kv_lengths=torch.tensor([7, length]))


# ---- tensors of other kinds


@pytest.mark.parametrize("use", [call, attend, explain], ids=lambda use: use.__name__)
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_told_to_be_padded(layout: torch.layout, use: Callable[..., Any]) -> None:
    x = nested(layout)
    with pytest.raises(
        TypeError, match=r"q is a nested tensor; pad it with torch\.nested\.to_padded.*kv_lengths"
    ):
        use(q=x, k=x, v=x)


class ShardedTensor(torch.Tensor):
    """What the checks know a DTensor by."""

    placements = ()

    def to_local(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


@pytest.mark.parametrize("use", [call, attend, explain], ids=lambda use: use.__name__)
def test_sharded_tensors_are_told_to_be_local(use: Callable[..., Any]) -> None:
    x = torch.randn(SHAPE).as_subclass(ShardedTensor)
    with pytest.raises(TypeError, match=r"q is a DTensor; shard over the heads, Shard\(2\).*q\.to_local\(\)"):
        use(q=x)


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_tensors_without_strides_are_told_how_to_get_them(name: str) -> None:
    x = torch.randn(SHAPE)
    fixes = {
        "to_dense()": [x.to_sparse(), x.to_mkldnn()],
        "dequantize()": [torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)],
        "float()": [x.int()],
        "real": [x.cfloat()],
    }
    for fix, tensors in fixes.items():
        for tensor in tensors:
            with pytest.raises((TypeError, ValueError)) as error:
                call(**{name: tensor})
            assert f"use {name}.{fix}" in str(error.value)


OPTIONS = {
    "key_padding_mask": (torch.zeros(2, 128, dtype=torch.bool), r"bool \(batch, kv_len\)"),
    "kv_lengths": (torch.tensor([128, 5]), r"int \(batch,\)"),
    "block_bias": (
        torch.zeros(2, 4, LAYOUT.num_active_blocks),
        r"floating point \(batch, num_heads, layout.num_block_ids\)",
    ),
    "attn_bias": (torch.zeros(2, 4, 128, 128), r"floating point \(batch, num_heads, q_len, kv_len\)"),
    "sinks": (torch.zeros(4), r"floating point \(num_heads,\)"),
    "alibi_slopes": (torch.zeros(4), r"floating point \(num_heads,\)"),
    "q_offset": (torch.tensor([0, 0]), r"int \(batch,\)"),
    "kv_starts": (torch.tensor([0, 5]), r"int \(batch,\)"),
}


@pytest.mark.parametrize("use", [call, explain], ids=lambda use: use.__name__)
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_options_of_other_kinds_are_told_what_is_wanted(name: str, use: Callable[..., Any]) -> None:
    x, wanted = OPTIONS[name]
    kinds = {
        rf"a nested tensor; use torch.nested.to_padded_tensor\({name}": torch.nested.as_nested_tensor(list(x))
        if x.dim() > 1
        else torch.nested.nested_tensor([x]),
        rf"a DTensor; use {name}.to_local\(\) .*{name}.full_tensor\(\)": x.as_subclass(ShardedTensor),
        rf"layout torch.sparse_coo; use {name}.to_dense\(\)": x.to_sparse(),
        rf"a MaskedTensor; use {name}.get_data\(\)": torch.masked.masked_tensor(x, x == x),
    }
    for kind, tensor in kinds.items():
        with pytest.raises(TypeError, match=f"^{name} must be a dense tensor, {wanted}, got {kind}"):
            use(**{name: tensor})


def test_packed_tensors_of_other_kinds_are_told_what_is_wanted() -> None:
    x = nested(torch.jagged)
    with pytest.raises(
        TypeError,
        match=r"^k is a nested tensor; pass k\.values\(\), and k\.offsets\(\)\.int\(\) as cu_seqlens_k",
    ):
        call_packed(k=x)
    with pytest.raises(TypeError, match=r"^q is a DTensor; shard over the heads, Shard\(1\)"):
        call_packed(q=torch.randn(256, 4, 16).as_subclass(ShardedTensor))


@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize("use", [call, attend, explain], ids=lambda use: use.__name__)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_masked_tensors_are_told_where_the_mask_goes(use: Callable[..., Any], name: str) -> None:
    x = torch.randn(SHAPE)
    with pytest.raises(
        TypeError, match=rf"^{name} is a MaskedTensor; use {name}\.get_data.*key_padding_mask"
    ):
        use(**{name: torch.masked.masked_tensor(x, x > 0)})


@pytest.mark.parametrize("given", [None, "no", 2, torch.ones(2)])
@pytest.mark.parametrize("more", [{}, {"layout": LAYOUT}], ids=["pattern", "layout"])
def test_return_attention_weights_is_true_or_false(given: Any, more: dict[str, Any]) -> None:
    x = torch.randn(SHAPE)
    with pytest.raises(TypeError, match="return_attention_weights must be True or False, got"):
        BlockSparseAttention(CONFIG)(x, x, x, return_attention_weights=given, **more)


def test_return_attention_weights_of_other_libraries_is_taken() -> None:
    x = torch.randn(SHAPE)
    assert isinstance(BlockSparseAttention(CONFIG)(x, x, x, return_attention_weights=np.False_), torch.Tensor)
    assert len(BlockSparseAttention(CONFIG)(x, x, x, return_attention_weights=np.True_)) == 2


def test_mask_as_is_causal_is_told_where_masks_go() -> None:
    with pytest.raises(
        TypeError, match=r"is_causal must be True or False.*key_padding_mask.*BlockLayout.from_mask"
    ):
        attend(is_causal=torch.ones(128, 128, dtype=torch.bool))
