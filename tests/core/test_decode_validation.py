"""Wrong arguments of block_sparse_decode: the message names the argument, its value and what to pass instead."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout, block_sparse_decode
from tests.core.decode_cases import int32, layout_of, sequence

WHOLE = sequence(layout_of(80), batch=2)


def call(**changes: Any) -> Any:
    """A call of two elements with caches of 80 tokens, with other arguments."""
    arguments: dict[str, Any] = {
        "q": WHOLE.q[:, -1:], "k_cache": WHOLE.k, "v_cache": WHOLE.v, "layout": WHOLE.layout, "cache_lengths": int32(80, 3),
    }  # fmt: skip
    return block_sparse_decode(**arguments | changes)


def pages(x: Tensor) -> Tensor:
    """10 pages of 16."""
    return x.unflatten(1, (5, 16)).flatten(0, 1)


PAGES: dict[str, Any] = {"k_cache": pages(WHOLE.k), "v_cache": pages(WHOLE.v)}
TABLE = torch.arange(10, dtype=torch.int32).view(2, 5)
META = torch.empty(2, dtype=torch.int32, device="meta")

WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    # types
    "q_none": ({"q": None}, TypeError, "q must be a tensor, got NoneType"),
    "k_cache_list": ({"k_cache": [1.0]}, TypeError, "k_cache must be a tensor, got list"),
    "v_cache_none": ({"v_cache": None}, TypeError, "v_cache must be a tensor, got NoneType"),
    "lengths_list": ({"cache_lengths": [80, 3]}, TypeError, "cache_lengths must be a tensor, got list"),
    "lengths_int": ({"cache_lengths": 80}, TypeError, "cache_lengths must be a tensor, got int"),
    "table_list": ({**PAGES, "block_table": [[0]]}, TypeError, "block_table must be a tensor, got list"),
    "starts_int": ({"kv_starts": 3}, TypeError, "kv_starts must be a tensor, got int"),
    "slopes_float": ({"alibi_slopes": 0.5}, TypeError, "alibi_slopes must be a tensor, got float"),
    "sinks_list": ({"sinks": [0.0] * 4}, TypeError, "sinks must be a tensor, got list"),
    "sparse_q": ({"q": WHOLE.q[:, -1:].to_sparse()}, TypeError, "q must be a dense tensor, got layout torch.sparse_coo"),
    "layout_none": ({"layout": None}, TypeError, "layout must be a BlockLayout, got NoneType; make one with"),
    "return_lse_text": ({"return_lse": "yes"}, TypeError, "return_lse must be True or False, got 'yes'"),
    "scale_text": ({"softmax_scale": "1"}, TypeError, "softmax_scale must be a number, got '1'"),
    "softcap_text": ({"softcap": "50"}, TypeError, "softcap must be a number, got '50'"),
    # dtypes
    "q_int": ({"q": torch.ones(2, 1, 4, 16, dtype=torch.int32)}, ValueError, "q must be float32, float16, bfloat16 or float64"),
    "cache_of_another_dtype": (
        {"k_cache": WHOLE.k.half()}, ValueError,
        "must have one dtype, got q torch.float32 and k_cache torch.float16; use q.to(torch.float16)",
    ),
    "lengths_int64": (
        {"cache_lengths": torch.tensor([80, 3])}, ValueError,
        "cache_lengths must be torch.int32 (batch,) = (2,), got torch.int64 (2,); use cache_lengths.to(torch.int32) once",
    ),
    "table_int64": (
        {**PAGES, "block_table": TABLE.long()}, ValueError, "block_table must be torch.int32 (batch, max_pages) = (2, 5), got torch.int64",
    ),
    "starts_float": ({"kv_starts": torch.zeros(2)}, ValueError, "kv_starts must be torch.int32 (batch,) = (2,), got torch.float32"),
    "slopes_int": ({"alibi_slopes": torch.ones(4, dtype=torch.int32)}, ValueError, "alibi_slopes must be floating point with shape (num_heads,) = (4,) on cpu, got torch.int32"),
    "sinks_bool": ({"sinks": torch.ones(4, dtype=torch.bool)}, ValueError, "sinks must be floating point with shape (num_heads,) = (4,) on cpu, got torch.bool"),
    # shapes
    "q_of_three_axes": ({"q": WHOLE.q[:, -1]}, ValueError, "q must be (batch, q_len, num_heads, head_dim), got shape (2, 4, 16)"),
    "k_of_three_axes": ({"k_cache": WHOLE.k[0]}, ValueError, "k_cache must be (batch, max_len, num_kv_heads, head_dim), or (num_pages"),
    "no_query": ({"q": WHOLE.q[:, :0]}, ValueError, "q must have 1 to 16 queries, got 0"),
    "many_queries": (
        {"q": WHOLE.q[:, :17]}, ValueError,
        "q must have 1 to 16 queries, got 17 in shape (2, 17, 4, 16); for more use block_sparse_attention",
    ),
    "v_of_other_length": ({"v_cache": WHOLE.v[:, :70]}, ValueError, "v_cache must be (2, 80, 2) in front as k_cache, got (2, 70, 2)"),
    "other_head_dim": ({"k_cache": WHOLE.k[..., :8]}, ValueError, "k_cache must have q's head_dim 16, got 8"),
    "kv_heads": (
        {"q": torch.ones(2, 1, 3, 16)}, ValueError, "num_kv_heads of k_cache must divide num_heads 3, got 2 in shape (2, 80, 2, 16)",
    ),
    "batch_of_cache": (
        {"q": WHOLE.q[:1, -1:]}, ValueError, "k_cache must have q's batch size 1, got 2; a cache of pages needs a block_table",
    ),
    "lengths_shape": ({"cache_lengths": int32(80)}, ValueError, "cache_lengths must be torch.int32 (batch,) = (2,), got torch.int32 (1,)"),
    "table_shape": (
        {**PAGES, "block_table": TABLE[0]}, ValueError, "block_table must be torch.int32 (batch, max_pages) = (2, 5), got torch.int32 (5,)",
    ),
    "starts_shape": ({"kv_starts": int32(1, 2, 3)}, ValueError, "kv_starts must be torch.int32 (batch,) = (2,), got torch.int32 (3,)"),
    "slopes_shape": ({"alibi_slopes": torch.ones(2)}, ValueError, "alibi_slopes must be floating point with shape (num_heads,) = (4,)"),
    "sinks_shape": ({"sinks": torch.ones(4, 1)}, ValueError, "sinks must be floating point with shape (num_heads,) = (4,)"),
    # devices
    "lengths_elsewhere": ({"cache_lengths": META}, ValueError, "cache_lengths must be on cpu as q, got meta; use cache_lengths.to(q.device) once"),
    "cache_elsewhere": ({"v_cache": WHOLE.v.to("meta")}, ValueError, "v_cache must be on cpu as q, got meta"),
    "sinks_elsewhere": ({"sinks": torch.ones(4, device="meta")}, ValueError, "sinks must be on cpu as q, got meta"),
    # the layout
    "layout_heads": ({"layout": layout_of(80, heads=3)}, ValueError, "layout must have 1 head, num_kv_heads 2 or num_heads 4, got 3"),
    "layout_batch": ({"layout": layout_of(80, batch=3)}, ValueError, "layout must have batch 1 or 2, one for every batch element or packed sequence, got 3"),
    "cross_layout": (
        {"layout": BlockLayout.from_config(WHOLE.layout.configs or (), 16, 80)}, ValueError,
        "layout must be over the positions of one sequence, got q_len 16 and kv_len 80 with causal=False; make it with causal=True",
    ),
    "short_layout": ({"layout": layout_of(40)}, ValueError, "layout covers 40 positions, but an element has 80; make it for the longest length"),
    "late_layout": (
        {"layout": BlockLayout.from_config(WHOLE.layout.configs or (), 20, 80, causal=True)}, ValueError,
        "layout begins at position 48, but a query is at 2; make it with q_len = kv_len",
    ),
    # values
    "long_lengths": ({"cache_lengths": int32(81, 3)}, ValueError, "cache_lengths must be 0 to max_len 80, got 81; max_len is that of k_cache"),
    "negative_lengths": ({"cache_lengths": int32(80, -1)}, ValueError, "cache_lengths must be 0 to max_len 80, got -1"),
    "long_lengths_of_pages": (
        {**PAGES, "block_table": TABLE[:, :4]}, ValueError, "cache_lengths must be 0 to max_len 64, got 80; max_len is max_pages * page_size",
    ),
    "late_starts": ({"kv_starts": int32(0, 4)}, ValueError, "kv_starts must be 0 to cache_lengths, got [0, 4] with cache_lengths [80, 3]"),
    "negative_starts": ({"kv_starts": int32(-1, 0)}, ValueError, "kv_starts must be 0 to cache_lengths, got [-1, 0]"),
    "page_out_of_range": ({**PAGES, "block_table": TABLE + 6}, ValueError, "block_table must hold pages 0 to 9 of k_cache up to cache_lengths, got 10"),
    "infinite_scale": ({"softmax_scale": float("inf")}, ValueError, "softmax_scale must be finite, got inf"),
    "negative_softcap": ({"softcap": -1.0}, ValueError, "softcap must be finite and not negative, got -1.0"),
    "nan_softcap": ({"softcap": float("nan")}, ValueError, "softcap must be finite and not negative, got nan"),
    "backend": ({"backend": "cuda"}, ValueError, "backend must be one of"),
    # gradients
    "q_requires_grad": (
        {"q": WHOLE.q[:, -1:].clone().requires_grad_()}, ValueError,
        "q requires grad, but block_sparse_decode has no backward; call it under torch.no_grad(), or use block_sparse_attention",
    ),
    "sinks_require_grad": ({"sinks": torch.zeros(4, requires_grad=True)}, ValueError, "sinks requires grad, but block_sparse_decode has no"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_named(case: str) -> None:
    changes, error, message = WRONG[case]
    with pytest.raises(error, match=re.escape(message)):
        call(**changes)


def test_what_is_not_wrong_runs() -> None:
    assert call().shape == (2, 1, 4, 24)
    torch.testing.assert_close(call(**PAGES, block_table=TABLE), call())
    assert torch.equal(call(softcap=0), call(softcap=None))
    assert torch.equal(call(alibi_slopes=torch.zeros(4, dtype=torch.float64)), call())


def test_pages_that_are_not_used_are_not_checked() -> None:
    table = TABLE.clone()
    table[1, 1:] = -1  # 3 tokens
    torch.testing.assert_close(call(**PAGES, block_table=table), call())
    starts, shifted = int32(40, 0), TABLE.clone()
    shifted[0, :2] = 77
    torch.testing.assert_close(call(**PAGES, block_table=shifted, kv_starts=starts), call(kv_starts=starts))


def test_a_tangent_is_refused() -> None:
    with torch.autograd.forward_ad.dual_level():
        q = torch.autograd.forward_ad.make_dual(WHOLE.q[:, -1:], WHOLE.q[:, :1])
        with pytest.raises(RuntimeError, match="q has a tangent"):
            call(q=q)
