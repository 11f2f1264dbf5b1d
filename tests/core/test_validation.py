"""What bad input is told: every message names the argument, its value and what would do; and no backend is swapped."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import dilated_attention_pytorch.backends.hopper as hopper_backend
import dilated_attention_pytorch.backends.triton as triton_backend
from dilated_attention_pytorch import (
    BlockLayout,
    BlockSparseAttention,
    SparsePatternConfig,
    block_sparse_attention,
    block_sparse_attention_varlen,
    explain_backends,
    explain_backends_varlen,
)
from dilated_attention_pytorch.backends import registry
from dilated_attention_pytorch.backends.cpu import CPU
from dilated_attention_pytorch.backends.problem import AttentionProblem

CONFIG = SparsePatternConfig(block_size=16, sparsity_ratio=0.5)


def arguments(**changes: Any) -> dict[str, Any]:
    """A call that is right (batch 2, 40 tokens, 4 heads, 2 kv heads, head_dim 16), with some arguments replaced."""
    return {
        "q": torch.randn(2, 40, 4, 16),
        "k": torch.randn(2, 40, 2, 16),
        "v": torch.randn(2, 40, 2, 16),
        "layout": BlockLayout.from_config(CONFIG, 40),
        **changes,
    }


def layout(q_len: int = 40, kv_len: int = 40, causal: bool = False, heads: int = 1) -> BlockLayout:
    return BlockLayout.from_config([CONFIG] * heads, q_len, kv_len, causal)


N = layout().num_active_blocks

WHY_POWERS_OF_TWO = (
    ": a rate keeps as many keys of every block; use powers of two up to 16, or dilation_rates of SparsePatternConfig, which "
    "spread out whole blocks and may be any numbers"
)
BAD: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "q_dim": (
        lambda: {"q": torch.randn(2, 40, 16)},
        "q must be (batch, seq_len, num_heads, head_dim), got shape (2, 40, 16)",
    ),
    "k_dim": (
        lambda: {"k": torch.randn(40, 2, 16)},
        "k must be (batch, seq_len, num_heads, head_dim), got shape (40, 2, 16)",
    ),
    "v_dim": (
        lambda: {"v": torch.randn(1, 2, 40, 2, 16)},
        "v must be (batch, seq_len, num_heads, head_dim), got shape (1, 2, 40, 2, 16)",
    ),
    "int_q": (
        lambda: {"q": torch.ones(2, 40, 4, 16, dtype=torch.int64)},
        "q must be a floating point tensor, got torch.int64; use q.float()",
    ),
    "complex_k": (
        lambda: {"k": torch.ones(2, 40, 2, 16, dtype=torch.complex64)},
        "k must be a floating point tensor, got torch.complex64; use k.real",
    ),
    "device": (
        lambda: {"v": torch.ones(2, 40, 2, 16, device="meta")},
        "q, k and v must be on one device, got q on cpu and v on meta",
    ),
    "dtype": (
        lambda: {"k": torch.ones(2, 40, 2, 16, dtype=torch.float16)},
        "q, k and v must have one dtype, got q torch.float32 and k torch.float16",
    ),
    "batch": (
        lambda: {"v": torch.ones(3, 40, 2, 16)},
        "q, k and v must have one batch size, got q 2 and v 3",
    ),
    "head_dim": (lambda: {"k": torch.ones(2, 40, 2, 8)}, "k must have q's head_dim 16, got 8"),
    "no_head_dim": (
        lambda: {name: torch.ones(2, 40, 4, 0) for name in "qkv"},
        "head_dim must be at least 1, got q with head_dim 0",
    ),
    "v_length": (
        lambda: {"v": torch.ones(2, 41, 2, 16)},
        "v must have k's seq_len and num_heads (40, 2), got (41, 2)",
    ),
    "v_heads": (
        lambda: {"v": torch.ones(2, 40, 4, 16)},
        "v must have k's seq_len and num_heads (40, 2), got (40, 4)",
    ),
    "kv_heads": (
        lambda: {"k": torch.ones(2, 40, 3, 16), "v": torch.ones(2, 40, 3, 16)},
        "num_kv_heads must divide num_heads 4, got 3",
    ),
    "no_heads": (
        lambda: {name: torch.ones(2, 40, 0, 16) for name in "qkv"},
        "num_heads must be at least 1, got q (2, 40, 0, 16)",
    ),
    "bias_type": (
        lambda: {"block_bias": torch.zeros(layout().num_block_ids).to(torch.float8_e4m3fn)},
        "block_bias must be floating point on cpu and broadcast to (batch, num_heads, layout.num_block_ids) = (2, 4, "
        f"{layout().num_block_ids}), got torch.float8_e4m3fn ({layout().num_block_ids},) on cpu",
    ),
    "no_kv_heads": (
        lambda: {"k": torch.ones(2, 40, 0, 16), "v": torch.ones(2, 40, 0, 16)},
        "num_kv_heads must divide num_heads 4, got 0",
    ),
    "layout_type": (
        lambda: {"layout": torch.ones(3, 3, dtype=torch.bool)},
        "layout must be a BlockLayout, got Tensor; make one with BlockLayout.from_config",
    ),
    "layout_of_config": (
        lambda: {"layout": CONFIG},
        "layout must be a BlockLayout, got SparsePatternConfig; make one with BlockLayout.from_config",
    ),
    "layout_of_flex_attention": (
        lambda: {"layout": layout().to_block_mask()},
        "layout must be a BlockLayout, got BlockMask; make one with BlockLayout.from_block_mask",
    ),
    "layout_lengths": (
        lambda: {"layout": layout(39, 48)},
        "layout covers queries at positions 0 to 38 and keys at 0 to 47, but the call has queries at 0 to 39 and keys at 0 to "
        "39; make it for these lengths or longer ones",
    ),
    "layout_keys": (
        lambda: {"layout": layout(48, 39)},
        "layout covers queries at positions 0 to 47 and keys at 0 to 38, but the call has queries at 0 to 39 and keys at 0 to "
        "39; make it for these lengths or longer ones",
    ),
    "layout_not_causal": (
        lambda: {"q": torch.ones(2, 7, 4, 16), "layout": layout(7, 40), "is_causal": True},
        "layout covers queries at positions 0 to 6 and keys at 0 to 39, but the call has queries at 33 to 39 and keys at 0 to "
        "39; make it for these lengths or longer ones, with causal=True if the last query is to sit at the last key",
    ),
    "layout_causal": (
        lambda: {"q": torch.ones(2, 7, 4, 16), "layout": layout(7, 40, causal=True)},
        "is_causal=False needs a layout made with causal=False, got causal=True: queries would see later keys of their own "
        "block; pass is_causal=True, or make the layout with causal=False",
    ),
    "layout_heads": (
        lambda: {"layout": layout(heads=3)},
        "layout must have 1 head, num_kv_heads 2 or num_heads 4, got 3; give one pattern for all heads, or one per head or "
        "kv head (the list sparse_config, the mask's first axis)",
    ),
    "dropout_one": (lambda: {"dropout_p": 1.0}, "dropout_p must be in [0, 1), got 1.0"),
    "dropout_negative": (lambda: {"dropout_p": -0.1}, "dropout_p must be in [0, 1), got -0.1"),
    "scale_nan": (
        lambda: {"softmax_scale": float("nan")},
        "softmax_scale must be finite, got nan; None is 1 / sqrt(head_dim)",
    ),
    "dropout_nan": (lambda: {"dropout_p": float("nan")}, "dropout_p must be in [0, 1), got nan"),
    "kv_lengths_shape": (
        lambda: {"kv_lengths": torch.tensor([40])},
        "kv_lengths must be int with shape (2,), got torch.int64 (1,); use kv_lengths.expand(2)",
    ),
    "kv_lengths_dtype": (
        lambda: {"kv_lengths": torch.tensor([40.0, 30.0])},
        "kv_lengths must be int with shape (2,), got torch.float32 (2,); use kv_lengths.int()",
    ),
    "kv_lengths_bool": (
        lambda: {"kv_lengths": torch.tensor([True, False])},
        "kv_lengths must be int with shape (2,), got torch.bool (2,); pass numbers of tokens, and a bool mask of keys as "
        "key_padding_mask",
    ),
    "kv_lengths_column": (
        lambda: {"kv_lengths": torch.tensor([[40.0], [30.0]])},
        "kv_lengths must be int with shape (2,), got torch.float32 (2, 1); use kv_lengths.flatten().int()",
    ),
    "kv_lengths_many": (
        lambda: {"kv_lengths": torch.tensor([40, 30, 20])},
        "kv_lengths must be int with shape (2,), got torch.int64 (3,); pass one number for every sequence",
    ),
    "padding_shape": (
        lambda: {"key_padding_mask": torch.zeros(2, 41, dtype=torch.bool)},
        "key_padding_mask must be bool with shape (2, 40), True where padded, got torch.bool (2, 41)",
    ),
    "padding_dtype": (
        lambda: {"key_padding_mask": torch.zeros(2, 40)},
        "key_padding_mask must be bool with shape (2, 40), True where padded, got torch.float32 (2, 40)",
    ),
    "bias_shape": (
        lambda: {"block_bias": torch.zeros(4, N + 1)},
        "block_bias must be floating point on cpu and broadcast to (batch, num_heads, layout.num_block_ids) "
        f"= (2, 4, {N}), got torch.float32 (4, {N + 1}) on cpu",
    ),
    "bias_kv_heads": (
        lambda: {"block_bias": torch.zeros(2, N)},
        "block_bias must be floating point on cpu and broadcast to (batch, num_heads, layout.num_block_ids) "
        f"= (2, 4, {N}), got torch.float32 (2, {N}) on cpu",
    ),
    "bias_dtype": (
        lambda: {"block_bias": torch.zeros(N, dtype=torch.int64)},
        "block_bias must be floating point on cpu and broadcast to (batch, num_heads, layout.num_block_ids) "
        f"= (2, 4, {N}), got torch.int64 ({N},) on cpu",
    ),
    "bias_device": (
        lambda: {"block_bias": torch.zeros(N, device="meta")},
        "block_bias must be floating point on cpu and broadcast to (batch, num_heads, layout.num_block_ids) "
        f"= (2, 4, {N}), got torch.float32 ({N},) on meta",
    ),
    "bias_4d": (
        lambda: {"block_bias": torch.zeros(1, 1, 1, N)},
        "block_bias must be floating point on cpu and broadcast to (batch, num_heads, layout.num_block_ids) "
        f"= (2, 4, {N}), got torch.float32 (1, 1, 1, {N}) on cpu",
    ),
    "offset_leaves_the_layout": (
        lambda: {"q_offset": 3},
        "layout covers queries at positions 0 to 39 and keys at 0 to 39, but the call has queries at 3 to 42 (q_offset 3) and "
        "keys at 0 to 39; make it for these lengths or longer ones",
    ),
    "offset_negative": (
        lambda: {"q_offset": -1},
        "layout covers queries at positions 0 to 39 and keys at 0 to 39, but the call has queries at -1 to 38 (q_offset -1) and "
        "keys at 0 to 39; make it for these lengths or longer ones",
    ),
    "offset_too_large": (
        lambda: {"q_offset": -(2**40), "layout": layout(causal=True), "is_causal": True},
        f"q_offset must be a position below 2**31, got {-(2**40)}",
    ),
    "offsets_too_large": (
        lambda: {"q_offset": torch.tensor([0, 2**31 + 7])},
        f"q_offset must be a position below 2**31, got {2**31 + 7}",
    ),
    "offsets_too_negative": (
        lambda: {"q_offset": torch.tensor([-(2**40), 0]), "layout": layout(causal=True), "is_causal": True},
        f"q_offset must be a position below 2**31, got {-(2**40)}",
    ),
    "offsets_leave_the_layout": (
        lambda: {"q_offset": torch.tensor([0, 7])},
        "layout covers queries at positions 0 to 39 and keys at 0 to 39, but the call has queries at 7 to 46 and keys at 0 to "
        "39; make it for these lengths or longer ones",
    ),
    "offset_shape": (
        lambda: {"q_offset": torch.tensor([0])},
        "q_offset must be int with shape (2,), got torch.int64 (1,); use q_offset.expand(2)",
    ),
    "offset_of_all": (
        lambda: {"q_offset": torch.tensor(0)},
        "q_offset must be int with shape (2,), got torch.int64 (); use q_offset.expand(2)",
    ),
    "offset_dtype": (
        lambda: {"q_offset": torch.tensor([0.0, 0.0])},
        "q_offset must be int with shape (2,), got torch.float32 (2,); use q_offset.int()",
    ),
    "offset_device": (
        lambda: {"q_offset": torch.zeros(2, dtype=torch.int32, device="meta")},
        "q_offset must be on cpu as q, got a tensor on meta, which holds no values",
    ),
    "starts_negative": (
        lambda: {"kv_starts": torch.tensor([0, -1])},
        "kv_starts must be 0 to kv_len 40, got -1; it is the number of keys before the first one, as of padding on the left",
    ),
    "starts_too_large": (
        lambda: {"kv_starts": torch.tensor([0, 41])},
        "kv_starts must be 0 to kv_len 40, got 41; it is the number of keys before the first one, as of padding on the left",
    ),
    "starts_behind_the_lengths": (
        lambda: {"kv_starts": torch.tensor([0, 9]), "kv_lengths": torch.tensor([40, 8])},
        "kv_starts must be at most kv_lengths, got 9 and 8: keys are valid from kv_starts to kv_lengths - 1, both counted from "
        "the first key in memory",
    ),
    "starts_shape": (
        lambda: {"kv_starts": torch.zeros(2, 1, dtype=torch.int32)},
        "kv_starts must be int with shape (2,), got torch.int32 (2, 1); use kv_starts.flatten()",
    ),
    "lengths_leave_the_layout": (
        lambda: {"layout": layout(40, 33), "kv_lengths": torch.tensor([33, 34])},
        "layout covers queries at positions 0 to 39 and keys at 0 to 32, but the call has queries at 0 to 39 and keys at 0 to "
        "33; make it for these lengths or longer ones",
    ),
    "softcap_negative": (
        lambda: {"softcap": -1.0}, "softcap must be finite and not negative, got -1.0; None or 0 is none",
    ),
    "softcap_nan": (
        lambda: {"softcap": float("nan")}, "softcap must be finite and not negative, got nan; None or 0 is none",
    ),
    "softcap_infinite": (
        lambda: {"softcap": float("inf")}, "softcap must be finite and not negative, got inf; None or 0 is none",
    ),
    "slopes_shape": (
        lambda: {"alibi_slopes": torch.ones(2)},
        "alibi_slopes must be floating point with shape (num_heads,) = (4,) on cpu, got torch.float32 (2,) on cpu",
    ),
    "slopes_dtype": (
        lambda: {"alibi_slopes": torch.ones(4, dtype=torch.int64)},
        "alibi_slopes must be floating point with shape (num_heads,) = (4,) on cpu, got torch.int64 (4,) on cpu; use "
        "alibi_slopes.float()",
    ),
    "slopes_per_batch": (
        lambda: {"alibi_slopes": torch.ones(2, 4)},
        "alibi_slopes must be floating point with shape (num_heads,) = (4,) on cpu, got torch.float32 (2, 4) on cpu",
    ),
    "slopes_grad": (
        lambda: {"alibi_slopes": torch.ones(4, requires_grad=True)},
        "alibi_slopes requires grad, but would get no gradient; pass alibi_slopes.detach(), or what is learned as a block_bias, "
        "which is differentiable",
    ),
    "sinks_shape": (
        lambda: {"sinks": torch.ones(1, 4)},
        "sinks must be floating point with shape (num_heads,) = (4,) on cpu, got torch.float32 (1, 4) on cpu",
    ),
    "sinks_dtype": (
        lambda: {"sinks": torch.ones(4, dtype=torch.int32)},
        "sinks must be floating point with shape (num_heads,) = (4,) on cpu, got torch.int32 (4,) on cpu; use "
        "sinks.float()",
    ),
    "sinks_device": (
        lambda: {"sinks": torch.ones(4, device="meta")},
        "sinks must be on cpu as q, got a tensor on meta, which holds no values",
    ),
    "attn_bias_bool": (
        lambda: {"attn_bias": torch.ones(40, 40, dtype=torch.bool)},
        "attn_bias must be floating point, got torch.bool; a mask of tokens goes into the layout, BlockLayout.from_mask(mask), "
        "and padding into kv_lengths or key_padding_mask",
    ),
    "attn_bias_int": (
        lambda: {"attn_bias": torch.ones(40, 40, dtype=torch.int32)},
        "attn_bias must be torch.float32 on cpu and broadcast to (batch, num_heads, q_len, kv_len) = (2, 4, 40, 40), got "
        "torch.int32 (40, 40) on cpu; use attn_bias.to(torch.float32)",
    ),
    "attn_bias_dtype": (
        lambda: {"attn_bias": torch.ones(40, 40, dtype=torch.float16)},
        "attn_bias must be torch.float32 on cpu and broadcast to (batch, num_heads, q_len, kv_len) = (2, 4, 40, 40), got "
        "torch.float16 (40, 40) on cpu; use attn_bias.to(torch.float32)",
    ),
    "attn_bias_shape": (
        lambda: {"attn_bias": torch.ones(8, 40, 40)},
        "attn_bias must be torch.float32 on cpu and broadcast to (batch, num_heads, q_len, kv_len) = (2, 4, 40, 40), got "
        "torch.float32 (8, 40, 40) on cpu",
    ),
    "attn_bias_5d": (
        lambda: {"attn_bias": torch.ones(1, 1, 1, 40, 40)},
        "attn_bias must be torch.float32 on cpu and broadcast to (batch, num_heads, q_len, kv_len) = (2, 4, 40, 40), got "
        "torch.float32 (1, 1, 1, 40, 40) on cpu",
    ),
    "attn_bias_grad": (
        lambda: {"attn_bias": torch.ones(40, 40, requires_grad=True)},
        "attn_bias requires grad, but would get no gradient; pass attn_bias.detach(), a block_bias, which is differentiable, or "
        "backend='reference', which gives it",
    ),
    "layout_batch": (
        lambda: {"layout": BlockLayout.from_dense(torch.ones(3, 1, 3, 3, dtype=torch.bool), 16)},
        "layout must have batch 1 or 2, one for every batch element or packed sequence, got 3",
    ),
    "rates_without_segments": (
        lambda: {"dilation_rates": [1, 2]},
        "segment_lengths and dilation_rates go together, segment_lengths is None; pass both or neither",
    ),
    "segments_without_rates": (
        lambda: {"segment_lengths": [32]},
        "segment_lengths and dilation_rates go together, dilation_rates is None; pass both or neither",
    ),
    "dilation_lengths": (
        lambda: {"segment_lengths": [32, 64], "dilation_rates": [1]},
        "segment_lengths and dilation_rates must have the same length >= 1, got [32, 64] and [1]",
    ),
    "dilation_of_nothing": (
        lambda: {"segment_lengths": [], "dilation_rates": []},
        "segment_lengths and dilation_rates must have the same length >= 1, got [] and []",
    ),
    "segment_no_multiple": (
        lambda: {"segment_lengths": [32, 40], "dilation_rates": [1, 2]},
        "segment_lengths must be multiples of block_size 16, got 40 in [32, 40]",
    ),
    "segments_not_ascending": (
        lambda: {"segment_lengths": [64, 32], "dilation_rates": [1, 2]},
        "segment_lengths must be ascending, got [64, 32]",
    ),
    "segments_equal": (
        lambda: {"segment_lengths": [32, 32], "dilation_rates": [1, 2]},
        "segment_lengths must be ascending, got [32, 32]",
    ),
    "rate_not_dividing": (
        lambda: {"segment_lengths": [32, 64], "dilation_rates": [1, 3]},
        f"dilation_rates must divide block_size 16, got 3 in [1, 3]{WHY_POWERS_OF_TWO}",
    ),
    "rate_zero": (
        lambda: {"segment_lengths": [32], "dilation_rates": [0]},
        f"dilation_rates must divide block_size 16, got 0 in [0]{WHY_POWERS_OF_TWO}",
    ),
    "unknown_backend": (
        lambda: {"backend": "cuda"},
        "backend must be one of ('auto', 'cpu', 'hopper', 'triton', 'reference'), got 'cuda'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_message_names_the_argument_its_value_and_what_would_do(name: str) -> None:
    make, message = BAD[name]
    with pytest.raises((TypeError, ValueError)) as error:
        block_sparse_attention(**arguments(**make()))
    assert str(error.value) == message


def test_the_call_that_the_others_change_is_right() -> None:
    assert block_sparse_attention(**arguments()).shape == (2, 40, 4, 16)


def packed_arguments(**changes: Any) -> dict[str, Any]:
    """A call of packed sequences that is right (20 and 33 tokens, 4 heads, 2 kv heads), with some arguments replaced."""
    offsets = torch.tensor([0, 20, 53], dtype=torch.int32)
    return {
        "q": torch.randn(53, 4, 16),
        "k": torch.randn(53, 2, 16),
        "v": torch.randn(53, 2, 16),
        "layout": layout(),
        "cu_seqlens_q": offsets,
        "cu_seqlens_k": offsets,
        "max_seqlen_q": 33,
        "max_seqlen_k": 33,
        **changes,
    }


def int32(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


BAD_PACKED: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "batch": (
        lambda: {"q": torch.randn(1, 53, 4, 16)},
        "q must be (total, num_heads, head_dim), got shape (1, 53, 4, 16); a batch (batch, seq_len, num_heads, head_dim) is for "
        "block_sparse_attention",
    ),
    "offsets_int64": (
        lambda: {"cu_seqlens_q": int32(0, 20, 53).long()},
        "cu_seqlens_q must be int32 with shape (sequences + 1,) on cpu, got torch.int64 (3,) on cpu; use cu_seqlens_q.int()",
    ),
    "offsets_float": (
        lambda: {"cu_seqlens_k": int32(0, 20, 53).float()},
        "cu_seqlens_k must be int32 with shape (sequences + 1,) on cpu, got torch.float32 (3,) on cpu",
    ),
    "offsets_2d": (
        lambda: {"cu_seqlens_q": int32(0, 20, 53)[None]},
        "cu_seqlens_q must be int32 with shape (sequences + 1,) on cpu, got torch.int32 (1, 3) on cpu",
    ),
    "offsets_empty": (
        lambda: {"cu_seqlens_q": int32()},
        "cu_seqlens_q must be int32 with shape (sequences + 1,) on cpu, got torch.int32 (0,) on cpu",
    ),
    "offsets_device": (
        lambda: {"cu_seqlens_q": int32(0, 20, 53).to("meta")},
        "cu_seqlens_q must be on cpu as q, got a tensor on meta, which holds no values",
    ),
    "first_offset": (
        lambda: {"cu_seqlens_q": int32(1, 20, 53)},
        "cu_seqlens_q must begin with 0, never decrease and end with the 53 tokens of q, got [1, 20, 53]",
    ),
    "last_offset": (
        lambda: {"cu_seqlens_k": int32(0, 20, 50)},
        "cu_seqlens_k must begin with 0, never decrease and end with the 53 tokens of k, got [0, 20, 50]",
    ),
    "decreasing_offsets": (
        lambda: {"cu_seqlens_k": int32(0, 60, 53)},
        "cu_seqlens_k must begin with 0, never decrease and end with the 53 tokens of k, got [0, 60, 53]",
    ),
    "no_sequences": (
        lambda: {"cu_seqlens_q": int32(0)},
        "cu_seqlens_q must begin with 0, never decrease and end with the 53 tokens of q, got [0]",
    ),
    "numbers_of_sequences": (
        lambda: {"cu_seqlens_k": int32(0, 20, 53, 53)},
        "cu_seqlens_q and cu_seqlens_k must have one shape (sequences + 1,), got (3,) and (4,); a sequence without queries or "
        "keys has length 0",
    ),
    "greatest_length": (
        lambda: {"max_seqlen_q": 32},
        "max_seqlen_q must be at least the greatest length 33 in cu_seqlens_q, got 32",
    ),
    "negative_length": (lambda: {"max_seqlen_k": -1}, "max_seqlen_k must be 0 to 2**31 - 1, got -1"),
    "layout": (
        lambda: {"layout": layout(32, 32)},
        "layout covers queries at positions 0 to 31 and keys at 0 to 31, but the call has queries at 0 to 32 and keys at 0 to "
        "32; make it for these lengths or longer ones",
    ),
    "offset": (
        lambda: {"q_offset": 21},
        "layout covers queries at positions 0 to 39 and keys at 0 to 39, but the call has queries at 21 to 40 (q_offset 21) and "
        "keys at 0 to 19; make it for these lengths or longer ones",
    ),
    "offsets_too_large": (
        lambda: {"q_offset": torch.tensor([0, 2**40])},
        f"q_offset must be a position below 2**31, got {2**40}",
    ),
    "offset_shape": (
        lambda: {"q_offset": int32(0, 1, 2)},
        "q_offset must be int with shape (2,), got torch.int32 (3,); pass one number for every sequence",
    ),
    "layout_batch": (
        lambda: {"layout": BlockLayout.from_dense(torch.ones(3, 1, 3, 3, dtype=torch.bool), 16)},
        "layout must have batch 1 or 2, one for every batch element or packed sequence, got 3",
    ),
    "layout_heads": (
        lambda: {"layout": layout(heads=3)},
        "layout must have 1 head, num_kv_heads 2 or num_heads 4, got 3; give one pattern for all heads, or one per head or kv "
        "head (the list sparse_config, the mask's first axis)",
    ),
    "bias_shape": (
        lambda: {"block_bias": torch.zeros(3, 1, N)},
        f"block_bias must be floating point on cpu and broadcast to (sequences, num_heads, layout.num_block_ids) = (2, 4, {N}), "
        f"got torch.float32 (3, 1, {N}) on cpu",
    ),
    "unknown_backend": (
        lambda: {"backend": "cuda"},
        "backend must be one of ('auto', 'cpu', 'hopper', 'triton', 'reference'), got 'cuda'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_PACKED)
def test_message_about_packed_sequences_names_the_argument_its_value_and_what_would_do(name: str) -> None:
    make, message = BAD_PACKED[name]
    with pytest.raises(ValueError) as error:
        block_sparse_attention_varlen(**packed_arguments(**make()))
    assert str(error.value) == message


def test_the_packed_call_that_the_others_change_is_right() -> None:
    assert block_sparse_attention_varlen(**packed_arguments()).shape == (53, 4, 16)
    assert explain_backends_varlen(**packed_arguments())["cpu"] is None


def test_meta_tensor_as_greatest_length_is_told_that_it_is_not_read() -> None:
    longest = torch.tensor(33, device="meta")
    with pytest.raises(
        TypeError, match="max_seqlen_q must be an int, got a tensor; keep it as a Python number"
    ):
        block_sparse_attention_varlen(**packed_arguments(max_seqlen_q=longest))


BAD_MODULES: dict[str, tuple[dict[str, Any], str]] = {
    "dropout": ({"dropout": 1.5}, "dropout must be in [0, 1), got 1.5"),
    "config_type": (
        {"sparse_config": ["dilated_sparse"]},
        "sparse_config must be a SparsePatternConfig or a sequence of them, got ['dilated_sparse']; use e.g. "
        "SparsePatternConfig(sparsity_ratio=0.1)",
    ),
    "no_config": (
        {"sparse_config": []},
        "sparse_config must be a SparsePatternConfig or a sequence of them, got []; use e.g. "
        "SparsePatternConfig(sparsity_ratio=0.1)",
    ),
    "one_of_two": (
        {"segment_lengths": [64]},
        "segment_lengths and dilation_rates go together, dilation_rates is None; pass both or neither",
    ),
    "segment_no_multiple": (
        {"sparse_config": CONFIG, "segment_lengths": [40], "dilation_rates": [2]},
        "segment_lengths must be multiples of block_size 16, got 40 in [40]",
    ),
    "rate": (
        {"sparse_config": CONFIG, "segment_lengths": [32], "dilation_rates": [32]},
        f"dilation_rates must divide block_size 16, got 32 in [32]{WHY_POWERS_OF_TWO}",
    ),
}


@pytest.mark.parametrize("name", BAD_MODULES)
def test_module_refuses_bad_settings_when_it_is_made(name: str) -> None:
    settings, message = BAD_MODULES[name]
    with pytest.raises((TypeError, ValueError)) as error:
        BlockSparseAttention(**settings)
    assert str(error.value) == message


def test_mixed_block_sizes_are_refused_by_the_constructor() -> None:
    mixed = [SparsePatternConfig(block_size=32), SparsePatternConfig(block_size=64)]
    with pytest.raises(ValueError, match=r"same block_size, got \[32, 64\]"):
        BlockSparseAttention(mixed)
    assert BlockSparseAttention(mixed, block_size=64).block_size == 64


def test_module_refuses_more_patterns_than_heads() -> None:
    module = BlockSparseAttention([CONFIG] * 3)
    q = torch.randn(1, 40, 4, 16)
    with pytest.raises(ValueError, match="layout must have 1 head, num_kv_heads 4 or num_heads 4, got 3"):
        module(q, q, q)


def test_module_passes_the_checks_of_the_function_on() -> None:
    q = torch.randn(1, 40, 2, 16)
    with pytest.raises(ValueError, match=r"key_padding_mask must be bool with shape \(1, 40\)"):
        BlockSparseAttention(CONFIG)(q, q, q, key_padding_mask=torch.zeros(40, dtype=torch.bool))


# ---- the choice of a backend

INTERPRETER = "q is on the CPU; the kernels run there only in Triton's interpreter (TRITON_INTERPRET=1, slow)"


def refusal(backend: str, **changes: Any) -> str:
    with pytest.raises(ValueError) as error:
        block_sparse_attention(**arguments(**changes), backend=backend)
    start = f"backend={backend!r} cannot serve this call: "
    message = str(error.value)
    assert message.startswith(start)
    return message.removeprefix(start)


def cast(dtype: torch.dtype, dim: int = 16, v_dim: int = 16, device: str = "cpu") -> dict[str, Tensor]:
    shapes = {"q": (2, 40, 4, dim), "k": (2, 40, 2, dim), "v": (2, 40, 2, v_dim)}
    return {name: torch.zeros(shape, dtype=dtype, device=device) for name, shape in shapes.items()}


def test_triton_names_what_it_does_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_backend, "INTERPRETED", True)
    dtype = "q has dtype torch.float64, needs float32, float16 or bfloat16"
    assert refusal("triton", **cast(torch.float64)) == dtype
    assert refusal("triton", **cast(torch.float32, dim=257)) == "head_dim is 257, needs at most 256"
    assert refusal("triton", **cast(torch.float32, v_dim=300)) == "v head_dim is 300, needs at most 256"
    assert refusal("triton", **cast(torch.bfloat16)) == (
        "q has dtype torch.bfloat16, whose products Triton's interpreter gets wrong; use float32 or float16"
    )


def test_triton_names_what_the_machine_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_backend, "INTERPRETED", False)
    assert refusal("triton") == INTERPRETER
    monkeypatch.setattr(triton_backend, "HAS_TRITON", False)
    assert refusal("triton") == "triton is not installed (pip install triton, on Linux)"


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("backend", [None, "cpu", "triton", "hopper", "reference"])
def test_type_that_nothing_serves_is_refused_whatever_the_backend(
    dtype: torch.dtype, backend: str | None
) -> None:
    message = (
        f"^q must be float32, float16, bfloat16 or float64, got {dtype}; use q.to\\(torch.bfloat16\\), times "
    )
    with pytest.raises(ValueError, match=message):
        block_sparse_attention(**arguments(**cast(dtype)), backend=backend)


def test_without_any_backend_every_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hopper_backend, "HAS_GLUON", True)
    monkeypatch.setattr(triton_backend, "INTERPRETED", False)
    monkeypatch.setattr(type(CPU), "rejects", lambda self, problem: "its reason")
    with pytest.raises(ValueError) as error:
        block_sparse_attention(**arguments())
    assert str(error.value) == (
        f"no fast backend can serve this call (cpu: its reason; hopper: q is on cpu, needs a CUDA device; triton: {INTERPRETER}"
        "); backend='reference' is dense and slow, but always can"
    )
    assert block_sparse_attention(**arguments(), backend="reference").shape == (2, 40, 4, 16)


def test_explain_backends_takes_the_arguments_of_a_call() -> None:
    of_call, of_question = (
        inspect.signature(x).parameters for x in (block_sparse_attention, explain_backends)
    )
    assert set(of_call) - set(of_question) == {"return_lse", "backend"}
    assert explain_backends(**arguments(), deterministic=False)["cpu"] is None
    with pytest.raises(TypeError, match="deterministic must be True, False or None, got 'no'"):
        explain_backends(**arguments(), deterministic="no")  # type: ignore[arg-type]


def test_explain_backends_gives_the_reasons_of_the_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_backend, "INTERPRETED", False)
    monkeypatch.setattr(hopper_backend, "HAS_GLUON", True)
    q, k, v, its_layout = arguments().values()
    assert explain_backends(q, k, v, its_layout) == {
        "cpu": None,
        "hopper": "q is on cpu, needs a CUDA device",
        "triton": INTERPRETER,
        "reference": None,
    }
    with pytest.raises(ValueError, match=r"dropout_p must be in \[0, 1\), got 2"):
        explain_backends(q, k, v, its_layout, dropout_p=2)
    with pytest.raises(ValueError, match="dilation_rates"):
        explain_backends(q, k, v, its_layout, segment_lengths=[128, 256], dilation_rates=[1])


@pytest.mark.parametrize(
    "asked", ["reference", "cpu", pytest.param("triton", marks=pytest.mark.interpreter), None, "auto"]
)
def test_the_backend_that_was_asked_for_computes(asked: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def spy(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noting(problem: AttentionProblem, *others: Any) -> Any:
            ran.append(name)
            return function(problem, *others)

        return noting

    for backend in registry.BACKENDS:
        for method in ("forward", "backward"):
            name = f"{backend.name} {method}"
            monkeypatch.setattr(backend, method, spy(name, getattr(backend, method)))
    tensors = arguments()
    tensors["q"].requires_grad_()
    block_sparse_attention(**tensors, backend=asked).sum().backward()
    expected = {"reference": [], None: "cpu", "auto": "cpu"}.get(asked, asked)
    assert ran == ([f"{expected} forward", f"{expected} backward"] if expected else [])


def test_an_explicit_request_that_fails_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any) -> Any:
        raise AssertionError("a backend ran that was not asked for")

    for backend in registry.BACKENDS:
        monkeypatch.setattr(backend, "forward", never)
    refusal("triton", **cast(torch.float64))


def test_module_hands_its_backend_on() -> None:
    q, k, v, _ = arguments(**cast(torch.float64)).values()
    with pytest.raises(ValueError, match=r"backend='triton' cannot serve this call: q "):
        BlockSparseAttention(CONFIG, backend="triton")(q, k, v)


def test_without_the_interpreter_triton_does_not_serve_the_cpu() -> None:
    # a process of its own: the variable is read once
    code = (
        "import torch; from dilated_attention_pytorch import *; q = torch.randn(1, 16, 1, 16);"
        "layout = BlockLayout.from_config(SparsePatternConfig(block_size=16), 16);"
        "print(explain_backends(q, q, q, layout)['triton'])"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == INTERPRETER


@pytest.mark.gpu
def test_cpu_backend_refuses_tensors_on_the_gpu() -> None:
    tensors = {name: x.cuda() if isinstance(x, Tensor) else x for name, x in arguments().items()}
    with pytest.raises(ValueError, match=re.escape("q must be on the CPU, got cuda:0")):
        block_sparse_attention(**tensors, backend="cpu")
    assert block_sparse_attention(**tensors).is_cuda
    with pytest.raises(ValueError, match=r"q must be on the CPU.*q has dtype torch\.float64"):
        block_sparse_attention(
            **{name: x.double() if isinstance(x, Tensor) else x for name, x in tensors.items()}
        )


@pytest.mark.parametrize(
    "name",
    [
        "q",
        "v",
        "kv_lengths",
        "kv_starts",
        "key_padding_mask",
        "block_bias",
        "attn_bias",
        "alibi_slopes",
        "sinks",
    ],
)
def test_what_is_no_tensor_is_named(name: str) -> None:
    layout = BlockLayout.from_config(SparsePatternConfig(), 64)
    arguments = {each: torch.randn(1, 64, 1, 16) for each in "qkv"} | {name: [64]}
    with pytest.raises(TypeError, match=f"^{name} must be a tensor, got list"):
        block_sparse_attention(**arguments, layout=layout)


@pytest.mark.parametrize("name", ["block_bias", "sinks"])
def test_what_is_no_tensor_is_named_beside_padding(name: str) -> None:
    layout = BlockLayout.from_config(SparsePatternConfig(), 64)
    arguments = {each: torch.randn(1, 64, 1, 16) for each in "qkv"} | {name: [64]}
    padding = torch.zeros(1, 64, dtype=torch.bool)
    with pytest.raises(TypeError, match=f"^{name} must be a tensor, got list"):
        block_sparse_attention(**arguments, layout=layout, key_padding_mask=padding)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"is_causal": "no"}, "is_causal must be True or False, got 'no'"),
        ({"is_causal": None}, "is_causal must be True or False, got None"),
        ({"softmax_scale": "0.5"}, "softmax_scale must be a number, got '0.5'"),
        ({"softmax_scale": b"0.5"}, "softmax_scale must be a number, got b'0.5'"),
        ({"softmax_scale": 10**400}, f"softmax_scale must be a number, got {10**400}"),
        (
            {"softmax_scale": torch.nn.Parameter(torch.tensor(0.5))},
            "softmax_scale must be a number, got a tensor that requires grad and would get none; scale q instead",
        ),
        ({"dropout_p": None}, "dropout_p must be a number, got None"),
        ({"softcap": "30"}, "softcap must be a number, got '30'"),
        (
            {"softcap": torch.nn.Parameter(torch.tensor(30.0))},
            "softcap must be a number, got a tensor that requires grad and would get none; pass softcap.item()",
        ),
        (
            {"q_offset": True},
            "q_offset must be an int, or an int tensor (1,) with a position for every sequence, got True",
        ),
        (
            {"q_offset": 1.0},
            "q_offset must be an int, or an int tensor (1,) with a position for every sequence, got 1.0",
        ),
        (
            {"segment_lengths": 2048, "dilation_rates": [1]},
            "segment_lengths must be a list or tuple of int, got 2048",
        ),
        (
            {"segment_lengths": [2048], "dilation_rates": "1"},
            "dilation_rates must be a list or tuple of int, got '1'",
        ),
        (
            {"segment_lengths": {2048}, "dilation_rates": [1]},
            "segment_lengths must be a list or tuple of int, got {2048}",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_has_another_type_is_named(arguments: dict[str, Any], message: str) -> None:
    layout = BlockLayout.from_config(SparsePatternConfig(), 64)
    q = torch.randn(1, 64, 1, 16)
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        block_sparse_attention(q, q, q, layout, **arguments)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_empty_batch(backend: str) -> None:
    layout = BlockLayout.from_config(SparsePatternConfig(), 70, causal=True)
    q = torch.randn(0, 70, 2, 16, requires_grad=True)
    out = block_sparse_attention(q, q, q, layout, is_causal=True, backend=backend)
    out.sum().backward()
    assert out.shape == q.shape
    assert q.grad is not None
    assert q.grad.shape == q.shape


def test_padding_behind_the_last_key_is_refused_when_decoding() -> None:
    module = BlockSparseAttention(SparsePatternConfig(sparsity_ratio=0.1, block_size=16))
    q, k = torch.randn(2, 1, 2, 8), torch.randn(2, 200, 2, 8)
    right = torch.arange(200) >= torch.tensor([50, 200])[:, None]
    with pytest.raises(ValueError, match=r"not be padding at the end.*k\[:, :length\].*on the left"):
        module(q, k, k, is_causal=True, key_padding_mask=right)
    left = torch.arange(200) < torch.tensor([48, 0])[:, None]  # three whole blocks, as the message says
    window = BlockSparseAttention(SparsePatternConfig("local_window", window_size=64, block_size=16))
    out = window(q, k, k, is_causal=True, key_padding_mask=left)
    alone = window(q[:1], k[:1, 48:], k[:1, 48:], is_causal=True)
    torch.testing.assert_close(out[:1], alone)
    scattered = right.clone()
    scattered[0, 3] = True  # not the end of a sequence, but keys that are hidden
    assert module(q, k, k, is_causal=True, key_padding_mask=scattered).shape == q.shape
    nothing = torch.ones(2, 200, dtype=torch.bool)  # says what it means
    assert module(q, k, k, is_causal=True, key_padding_mask=nothing).abs().max() == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([64],), "q_len must be"),
        ((64, 2.5), "kv_len must be"),
        ((64, 64, "no"), "causal must be True or False"),
        ((64, 64, False, "gpu"), "device must be"),
    ],
)
def test_layout_of_a_module_names_bad_arguments(arguments: tuple[object, ...], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        BlockSparseAttention().layout(*arguments)  # type: ignore[arg-type]


def test_ratio_beside_a_window_is_warned_of() -> None:
    config = SparsePatternConfig("local_window", window_size=256)
    with pytest.warns(
        UserWarning, match=r"sparsity_ratio 0.5 has no effect because the config has window_size"
    ):
        BlockSparseAttention(config, sparsity_ratio=0.5)


def test_meta_tensors_get_their_shapes() -> None:
    x = torch.empty(2, 100, 4, 16, device="meta")
    out = BlockSparseAttention()(x, x, x, is_causal=True)
    assert (out.device.type, out.shape) == ("meta", x.shape)
