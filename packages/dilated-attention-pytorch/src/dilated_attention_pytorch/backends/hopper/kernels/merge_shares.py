"""The Triton kernel that adds the shares of split rows, which forward.py leaves in float32.

A share has the softmax over its own keys. Its weight is its part of the whole denominator: with m the largest lse of the
shares, exp(lse - m) over the sum of these. Shares are added in their order, so every run gives the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

NUMBERS = ("n_shares", "n_elements", "q_len", "num_heads", "stride_ob", "stride_os", "stride_oh")


@triton.jit(do_not_specialize=NUMBERS)
def merge_shares_kernel(
    PartOut, PartLse, Out, Lse, Sinks, n_shares, n_elements, q_len, num_heads, stride_ob, stride_os, stride_oh,
    DIM: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """TOKENS queries of a head of a batch element.

    PartOut: float32 (n_shares, n_elements, q_len, num_heads, DIM), PartLse: float32 (n_shares, n_elements, num_heads, q_len),
    Lse: float32 (n_elements, num_heads, q_len), all contiguous. Sinks: float32 (num_heads,), or None.
    """
    n_blocks = tl.cdiv(q_len, TOKENS)
    element_head = tl.program_id(0) // n_blocks
    query = tl.program_id(0) % n_blocks * TOKENS + tl.arange(0, TOKENS)
    i_element, head = (element_head // num_heads).to(tl.int64), element_head % num_heads
    d = tl.arange(0, DIM)
    is_query = query < q_len
    n_rows = n_elements.to(tl.int64) * num_heads * q_len  # of a share
    of_lse = PartLse + (i_element * num_heads + head) * q_len + query
    m = tl.full([TOKENS], float("-inf"), tl.float32)
    for i in range(n_shares):
        m = tl.maximum(m, tl.load(of_lse + i * n_rows, mask=is_query, other=float("-inf")))
    is_empty = m == float("-inf")
    m = tl.where(is_empty, 0.0, m)
    total = tl.zeros([TOKENS], tl.float32)
    if Sinks is not None:
        sink = tl.load(Sinks + head)
        m = tl.where(is_empty, m, tl.maximum(m, sink))
        total += tl.where(is_empty, 0.0, tl.exp(sink - m))
    acc = tl.zeros([TOKENS, DIM], tl.float32)
    of_out = PartOut + ((i_element * q_len + query) * num_heads + head)[:, None] * DIM + d[None, :]
    for i in range(n_shares):
        weight = tl.exp(tl.load(of_lse + i * n_rows, mask=is_query, other=float("-inf")) - m)
        part = tl.load(of_out + i * n_rows * DIM, mask=is_query[:, None], other=0.0)
        acc += weight[:, None] * part
        total += weight
    total = tl.where(is_empty, 1.0, total)
    out = (
        Out
        + i_element * stride_ob
        + query.to(tl.int64)[:, None] * stride_os
        + head.to(tl.int64) * stride_oh
        + d[None, :]
    )
    tl.store(out, (acc / total[:, None]).to(Out.dtype.element_ty), mask=is_query[:, None])
    lse = tl.where(is_empty, float("-inf"), m + tl.log(total))
    tl.store(Lse + (i_element * num_heads + head) * q_len + query, lse, mask=is_query)
