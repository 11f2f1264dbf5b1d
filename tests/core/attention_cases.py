"""Attention calls by name: every option, with lengths that are no multiple of a block, and the tensors for them."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig, block_sparse_attention

# float32 rounds to 6e-8; sums over a few hundred keys and the exponential of the scores lose two more digits.
FLOAT32 = 2e-5
# The products q k^T, the weights and the output are each rounded to the type, by 2**-9 and 2**-12.
LIMITS = {torch.float32: FLOAT32, torch.bfloat16: 1e-2, torch.float16: 2e-3}
FLOAT64 = 1e-11


@dataclass(frozen=True)
class Case:
    """One call.

    `layout_heads` is 1, the number of kv heads or that of heads: then every head has a pattern of its own.
    `empty_rows` and `empty_columns` are taken out of the layout, `unseen` are (head, column). `padding` is the share of keys that
    `key_padding_mask` hides. `bias` is the shape of the block bias with "n" for the number of active blocks.
    """

    name: str
    q_len: int
    kv_len: int | None = None
    batch: int = 1
    heads: int = 2
    kv_heads: int | None = None
    head_dim: int = 32
    v_head_dim: int | None = None
    block_size: int = 64
    kind: str = "dilated_sparse"
    ratio: float = 0.4
    global_tokens: int = 0
    layout_heads: int = 1
    empty_rows: Sequence[int] = ()
    empty_columns: Sequence[int] = ()
    unseen: Sequence[tuple[int, int]] = ()
    is_causal: bool = False
    causal_layout: bool | None = None
    softmax_scale: float | None = None
    kv_lengths: Sequence[int] | None = None
    padding: float = 0.0
    segment_lengths: Sequence[int] | None = None
    dilation_rates: Sequence[int] | None = None
    bias: Sequence[int | str] | None = None
    dropout_p: float = 0.0
    strided: bool = False
    lse_gradient: bool = False

    @property
    def keys(self) -> int:
        return self.q_len if self.kv_len is None else self.kv_len

    @property
    def is_long(self) -> bool:
        """Too long for Triton's interpreter."""
        return max(self.q_len, self.keys) > 1100

    @property
    def is_tiny(self) -> bool:
        """Short enough for the slow definition, which computes one query at a time."""
        return self.batch * self.heads * self.q_len <= 1700 and self.keys <= 400


def case(name: str, q_len: int, kv_len: int | None = None, **fields: Any) -> Case:
    return Case(name, q_len, kv_len, **fields)


CASES = [
    # lengths
    case("one_token", 1),
    case("one_token_causal", 1, is_causal=True, lse_gradient=True),
    case("63", 63),
    case("64", 64, is_causal=True),
    case("65", 65),
    case("65_causal", 65, is_causal=True, lse_gradient=True),
    case("200", 200, batch=2, heads=1),
    case("200_causal", 200, batch=2, heads=1, is_causal=True, lse_gradient=True),
    case("1000", 1000, heads=1, ratio=0.1),
    case("1000_causal", 1000, heads=1, ratio=0.1, is_causal=True, lse_gradient=True),
    case("4096", 4096, heads=1, ratio=0.05),
    case("4096_causal", 4096, heads=1, ratio=0.05, is_causal=True, lse_gradient=True),
    # patterns
    case("local_window", 333, kind="local_window", ratio=0.3, is_causal=True),
    case("global_local", 333, kind="global_local", ratio=0.5, global_tokens=70),
    case("global_local_causal", 333, kind="global_local", ratio=0.5, global_tokens=70, is_causal=True),
    case("ratio_one", 130, ratio=1.0),
    case("ratio_one_causal", 130, ratio=1.0, is_causal=True),
    case("causal_attention_on_a_layout_that_is_not", 200, is_causal=True, causal_layout=False, lse_gradient=True),
    # q_len != kv_len
    case("cross_wide", 63, 200, lse_gradient=True),
    case("cross_tall", 200, 65),
    case("cross_one_key", 65, 1),
    case("cross_4096", 1000, 4096, ratio=0.05, kv_heads=1),
    case("decoding", 1, 200, is_causal=True, heads=4, kv_heads=2),
    case("decoding_first_of_block", 1, 193, is_causal=True),
    case("decoding_4096", 1, 4096, ratio=0.1, is_causal=True, heads=4, kv_heads=1, batch=3),
    case("chunk", 65, 256, is_causal=True),
    case("chunk_in_the_middle_of_a_block", 63, 301, is_causal=True, lse_gradient=True),
    case("chunk_within_one_block", 5, 300, is_causal=True, batch=2),
    case("chunk_4096", 1000, 4096, heads=1, ratio=0.1, is_causal=True),
    case("queries_before_the_first_key", 200, 65, is_causal=True, lse_gradient=True),
    case("queries_before_the_first_key_whole_blocks", 192, 64, is_causal=True, batch=2),
    # heads and head dims
    case("gqa", 130, heads=4, kv_heads=2),
    case("gqa_causal_batch", 100, batch=2, heads=6, kv_heads=2, is_causal=True, lse_gradient=True),
    case("mqa", 130, heads=4, kv_heads=1),
    case("mqa_causal", 300, ratio=0.3, heads=3, kv_heads=1, is_causal=True),
    case("head_dim_16", 100, head_dim=16),
    case("head_dim_8", 100, head_dim=8, is_causal=True),
    case("head_dim_64", 200, head_dim=64),
    case("head_dim_80", 100, head_dim=80, is_causal=True),
    case("head_dim_96", 100, head_dim=96, lse_gradient=True),
    case("head_dim_128", 200, head_dim=128, is_causal=True),
    case("head_dim_256", 100, head_dim=256),
    case("head_dim_33", 100, head_dim=33),
    case("v_head_dim_wider", 130, head_dim=32, v_head_dim=80, is_causal=True),
    case("v_head_dim_narrower", 130, head_dim=96, v_head_dim=16, lse_gradient=True),
    case("v_head_dim_192_128", 100, head_dim=192, v_head_dim=128, kv_heads=1, is_causal=True),
    # block sizes
    case("block_16", 100, block_size=16, is_causal=True),
    case("block_16_1000", 1000, heads=1, block_size=16, ratio=0.02),
    case("block_32", 150, block_size=32, kv_heads=1, lse_gradient=True),
    case("block_128", 300, block_size=128),
    case("block_128_causal", 300, block_size=128, is_causal=True, head_dim=64),
    case("block_256", 300, heads=1, block_size=256, is_causal=True),
    case("block_256_4096", 1000, 4096, heads=1, block_size=256, ratio=0.2, is_causal=True, head_dim=64),
    case("block_256_chunk", 65, 600, heads=1, block_size=256, is_causal=True),
    # layouts per head; empty rows and columns
    case("layout_per_head", 130, heads=4, layout_heads=4, is_causal=True),
    case("layout_per_head_gqa", 130, heads=4, kv_heads=2, layout_heads=4, lse_gradient=True),
    case("layout_per_kv_head", 200, heads=4, kv_heads=2, layout_heads=2),
    case("layout_per_head_block_16", 65, heads=4, layout_heads=4, block_size=16, is_causal=True),
    case("layout_per_head_4096", 1000, 4096, ratio=0.05, layout_heads=2),
    case("empty_rows", 200, empty_rows=(0, 2), lse_gradient=True),
    case("empty_rows_per_head", 200, layout_heads=2, empty_rows=(1,), is_causal=True),
    case("empty_columns", 200, empty_columns=(1,), heads=4, kv_heads=2),
    case("empty_layout", 65, empty_rows=(0, 1), lse_gradient=True),
    # padding
    case("kv_lengths", 200, batch=3, heads=1, kv_lengths=(200, 65, 1)),
    case("kv_lengths_of_none", 200, batch=3, heads=1, kv_lengths=(0, 64, 130), lse_gradient=True),
    case("kv_lengths_causal", 200, batch=2, kv_lengths=(100, 199), is_causal=True),
    case("kv_lengths_decoding", 1, 300, batch=4, kv_lengths=(300, 1, 128, 77), heads=4, kv_heads=2),
    case("kv_lengths_block_16", 60, batch=2, kv_lengths=(33, 17), block_size=16),
    case("padding_mask", 200, batch=2, heads=1, padding=0.3),
    case("padding_mask_causal", 200, batch=2, heads=1, padding=0.5, is_causal=True, lse_gradient=True),
    case("padding_mask_hides_all", 65, batch=2, padding=1.0, lse_gradient=True),
    case("padding_mask_and_kv_lengths", 130, batch=2, padding=0.2, kv_lengths=(130, 70), block_size=128),
    case("padding_mask_4096", 1000, 4096, heads=1, ratio=0.05, padding=0.2, is_causal=True),
    # scale
    case("softmax_scale", 130, softmax_scale=0.5),
    case("softmax_scale_negative", 130, softmax_scale=-0.3, is_causal=True),
    case("softmax_scale_zero", 130, softmax_scale=0.0, lse_gradient=True),
    case("softmax_scale_large", 130, softmax_scale=2.0, head_dim=64),
    # block bias; with one block in a row its gradient is zero, so the rows have several
    case("bias_shared", 200, bias=("n",), lse_gradient=True),
    case("bias_per_head", 130, heads=4, kv_heads=2, bias=(4, "n"), ratio=1.0, is_causal=True),
    case("bias_per_batch", 130, batch=2, ratio=0.9, bias=(2, 1, "n")),
    case("bias_full", 200, batch=2, bias=(2, 2, "n"), ratio=0.8, is_causal=True, lse_gradient=True),
    case("bias_layout_per_head", 130, heads=4, kv_heads=2, layout_heads=4, ratio=1.0, bias=(1, 4, "n")),
    case("bias_block_16", 65, block_size=16, ratio=0.8, bias=(2, "n"), is_causal=True),
    case("bias_block_128", 300, block_size=128, ratio=0.8, bias=(2, "n")),
    case("bias_chunk", 63, 301, ratio=0.8, bias=(2, "n"), is_causal=True),
    case("bias_4096", 1000, 4096, heads=1, ratio=0.05, bias=(1, "n"), is_causal=True),
    # token dilation
    case("dilation", 300, segment_lengths=(64, 192), dilation_rates=(1, 4), ratio=0.6),
    case("dilation_causal", 300, segment_lengths=(64, 128, 256), dilation_rates=(1, 2, 4), ratio=0.8, is_causal=True),
    case("dilation_of_all", 200, heads=4, kv_heads=2, segment_lengths=(64,), dilation_rates=(4,), lse_gradient=True),
    case("dilation_more_heads_than_residues", 130, heads=6, kv_heads=3, segment_lengths=(64,), dilation_rates=(2,)),
    case("dilation_coarse", 70, heads=1, segment_lengths=(64, 128), dilation_rates=(1, 64), ratio=1.0),
    case("dilation_finer_farther", 200, segment_lengths=(64, 128), dilation_rates=(8, 1), ratio=1.0, is_causal=True),
    case("dilation_chunk", 63, 301, segment_lengths=(64, 128), dilation_rates=(1, 4), ratio=0.9, is_causal=True),
    case("dilation_block_16", 65, block_size=16, segment_lengths=(16, 64), dilation_rates=(1, 4), ratio=0.6),
    case("dilation_block_256", 300, block_size=256, segment_lengths=(256,), dilation_rates=(16,), ratio=1.0),
    case("dilation_4096", 1000, 4096, heads=1, segment_lengths=(512, 1024), dilation_rates=(1, 4), ratio=0.1, is_causal=True),
    # dropout
    case("dropout", 130, dropout_p=0.3, lse_gradient=True),
    case("dropout_causal", 130, batch=2, heads=2, kv_heads=1, dropout_p=0.1, is_causal=True),
    case("dropout_chunk", 33, 150, dropout_p=0.2, is_causal=True),
    case("dropout_block_16", 65, block_size=16, dropout_p=0.5),
    case("dropout_4096", 300, 4096, heads=1, ratio=0.1, dropout_p=0.1, is_causal=True),
    # memory formats
    case("strided", 100, batch=2, heads=4, kv_heads=2, strided=True, is_causal=True, lse_gradient=True),
    case("strided_head_dim_80", 100, head_dim=80, v_head_dim=48, strided=True),
    # several at once
    case(
        "kv_lengths_dilation_bias", 160, batch=2, heads=2, kv_heads=1, kv_lengths=(160, 100), ratio=1.0,
        segment_lengths=(64, 128), dilation_rates=(1, 2), bias=(2, "n"), is_causal=True,
    ),
    case(
        "padding_dropout_per_head_strided", 130, batch=2, layout_heads=2, padding=0.3, dropout_p=0.2,
        strided=True, lse_gradient=True,
    ),
    case(
        "dilation_dropout_bias_block_32", 100, heads=2, kv_heads=1, block_size=32, segment_lengths=(32, 64),
        dilation_rates=(1, 4), dropout_p=0.1, bias=("n",), ratio=0.7, lse_gradient=True,
    ),
    case(
        "chunk_padding_gqa_head_dim_80", 33, 190, batch=2, heads=4, kv_heads=2, head_dim=80, v_head_dim=96,
        padding=0.2, softmax_scale=0.2, is_causal=True, lse_gradient=True,
    ),
    case(
        "everything", 130, batch=2, heads=4, kv_heads=2, layout_heads=2, head_dim=24, v_head_dim=40,
        block_size=32, ratio=0.7, empty_rows=(1,), is_causal=True, softmax_scale=0.3, kv_lengths=(130, 70),
        padding=0.2, segment_lengths=(32, 96), dilation_rates=(1, 2), bias=(2, 4, "n"), dropout_p=0.2,
        strided=True, lse_gradient=True,
    ),
]  # fmt: skip

BY_NAME = {item.name: item for item in CASES}


@dataclass(frozen=True)
class Call:
    """The tensors of a case; `tensors` are those that need a gradient, in the order q, k, v, block_bias."""

    tensors: dict[str, Tensor]
    layout: BlockLayout
    kwargs: dict[str, Any]
    grad_out: Tensor
    grad_lse: Tensor | None

    def to(self, dtype: torch.dtype, device: torch.device | str) -> Call:
        """The same values, as far as the type can hold them, as fresh leaves."""
        return Call(
            {name: x.detach().to(device, dtype).requires_grad_() for name, x in self.tensors.items()},
            self.layout.to(device),
            {name: x.to(device) if isinstance(x, Tensor) else x for name, x in self.kwargs.items()},
            self.grad_out.to(device, dtype),
            None if self.grad_lse is None else self.grad_lse.to(device, dtype),
        )


def layout_of(case: Case) -> BlockLayout:
    """The layout of a case; each head has its own pattern; `empty_rows` and the columns `unseen` are emptied."""
    causal = case.is_causal if case.causal_layout is None else case.causal_layout
    config = SparsePatternConfig(
        case.kind,
        case.block_size,
        case.ratio,
        global_tokens=case.global_tokens,  # type: ignore[arg-type]
    )
    configs = [config]
    if case.layout_heads > 1:
        kinds = ("dilated_sparse", "local_window", "global_local")
        configs = [
            dataclasses.replace(
                config, pattern_type=kinds[head % 3], sparsity_ratio=case.ratio / (1 + head % 2)
            )
            for head in range(case.layout_heads)
        ]
    layout = BlockLayout.from_config(configs, case.q_len, case.keys, causal)
    if not case.empty_rows and not case.empty_columns and not case.unseen:
        return layout
    mask = layout.to_dense()
    mask[..., list(case.empty_rows), :] = False
    mask[..., list(case.empty_columns)] = False
    for head, column in case.unseen:
        mask[head, :, column] = False
    return BlockLayout.from_dense(mask, case.block_size, case.q_len, case.keys, causal)


def make_call(case: Case, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Call:
    """The tensors of a case, with values that `dtype` can hold: rounded once, then the same for every backend."""
    generator = torch.Generator().manual_seed(zlib.crc32(case.name.encode()))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    kv_heads = case.heads if case.kv_heads is None else case.kv_heads
    v_head_dim = case.head_dim if case.v_head_dim is None else case.v_head_dim
    layout = layout_of(case)
    shapes = {
        "q": (case.batch, case.q_len, case.heads, case.head_dim),
        "k": (case.batch, case.keys, kv_heads, case.head_dim),
        "v": (case.batch, case.keys, kv_heads, v_head_dim),
    }
    tensors = {name: normal(*shape) for name, shape in shapes.items()}
    if case.bias is not None:
        shape = [layout.num_active_blocks if size == "n" else int(size) for size in case.bias]
        tensors["block_bias"] = normal(*shape)
    kwargs: dict[str, Any] = {
        "is_causal": case.is_causal,
        "softmax_scale": case.softmax_scale,
        "segment_lengths": case.segment_lengths,
        "dilation_rates": case.dilation_rates,
        "dropout_p": case.dropout_p,
    }
    if case.kv_lengths is not None:
        kwargs["kv_lengths"] = torch.tensor(case.kv_lengths)
    if case.padding:
        kwargs["key_padding_mask"] = torch.rand(case.batch, case.keys, generator=generator) < case.padding
    grad_out = normal(case.batch, case.q_len, case.heads, v_head_dim)
    grad_lse = normal(case.batch, case.heads, case.q_len) if case.lse_gradient else None
    return Call(tensors, layout, kwargs, grad_out, grad_lse).to(dtype, device)


def in_strides(x: Tensor) -> Tensor:
    """The same values as a view of a (batch, heads, seq_len, dim) tensor with a row stride larger than dim."""
    batch, length, heads, dim = x.shape
    wide = torch.cat(
        [x, torch.full((batch, length, heads, 3), torch.nan, dtype=x.dtype, device=x.device)], -1
    )
    return wide.transpose(1, 2).contiguous().transpose(1, 2)[..., :dim]


def run(case: Case, call: Call, backend: str | None) -> dict[str, Tensor]:
    """out, lse and the gradient of every tensor; the dropout mask is the same for every backend."""
    inputs = dict(call.tensors)
    if case.strided:
        inputs |= {name: in_strides(inputs[name]) for name in ("q", "k", "v")}
    bias = inputs.pop("block_bias", None)
    torch.manual_seed(0)
    out, lse = block_sparse_attention(
        **inputs, layout=call.layout, block_bias=bias, return_lse=True, backend=backend, **call.kwargs
    )
    outputs, grads = [out], [call.grad_out]
    if call.grad_lse is not None:
        outputs.append(lse)
        grads.append(call.grad_lse.to(lse.dtype))
    found = torch.autograd.grad(outputs, list(call.tensors.values()), grads)
    named = zip(call.tensors, found, strict=True)
    return {"out": out.detach(), "lse": lse.detach(), **{f"grad_{name}": grad for name, grad in named}}


def relative_error(found: Tensor, expected: Tensor, natural: float) -> float:
    """||found - expected|| / ||expected||, over the entries that are finite in both.

    A gradient that is zero in exact arithmetic (of a softmax over one key, say) has no size of its own, and is
    a difference of numbers of the size `natural`: then the error is measured against that.
    """
    expected = expected.double()
    found = found.double()
    if not torch.equal(found.isfinite(), expected.isfinite()):
        return torch.inf
    expected, found = expected.nan_to_num(0.0, 0.0, 0.0), found.nan_to_num(0.0, 0.0, 0.0)
    size = float(expected.norm())
    error = float((found - expected).norm())
    if size <= 1e-12 * natural:
        size = natural
    return error / size if error else 0.0


def errors(found: dict[str, Tensor], expected: dict[str, Tensor], call: Call) -> dict[str, float]:
    """The relative error of out, lse and every gradient."""
    natural = float(call.grad_out.double().norm())
    if call.grad_lse is not None:
        natural += float(call.grad_lse.double().norm())
    return {name: relative_error(found[name], expected[name], natural) for name in expected}


def off_limits(found: dict[str, float], limit: float) -> dict[str, float]:
    """The errors that reach the limit, or are NaN."""
    return {name: error for name, error in found.items() if not error < limit}
