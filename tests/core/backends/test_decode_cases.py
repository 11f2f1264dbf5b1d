"""Decoding on every backend gives the rows of the full causal forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig, block_sparse_decode
from dilated_attention_pytorch.backends.triton import decode_tuning
from tests.core.decode_cases import (
    cache_of,
    int32,
    last_lse,
    last_queries,
    layout_of,
    paged,
    sequence,
    table_of,
)

BACKENDS = ["reference", "cpu", pytest.param("triton", marks=pytest.mark.interpreter)]
LENGTHS = int32(109, 66, 0)
SLOPES, SINKS = torch.tensor([0.5, 0.25, 0.125, 0.0]), torch.tensor([1.5, -0.5, 0.0, 3.0])
# (arguments of layout_of, q_len, page size, left padding, scores)
CASES: dict[str, tuple[dict[str, Any], int, int | None, bool, dict[str, Any]]] = {
    "one_query": ({}, 1, None, False, {}),
    "queries_in_two_rows": ({}, 7, None, False, {}),
    "most_queries": ({}, 16, None, False, {}),
    "lists_of_kv_heads": ({"heads": 2}, 5, None, False, {}),
    "lists_of_query_heads": ({"heads": 4}, 5, None, False, {}),
    "lists_of_elements": ({"heads": 2, "batch": 3}, 3, None, False, {}),
    "one_query_and_lists_of_query_heads": ({"heads": 4}, 1, None, False, {"sinks": SINKS}),
    "one_query_and_lists_of_elements": ({"heads": 2, "batch": 3}, 1, 10, True, {}),
    "masks": ({"with_masks": True}, 1, None, False, {}),
    "masks_and_queries_in_two_rows": ({"with_masks": True, "heads": 2}, 7, 16, False, {}),
    "masks_of_large_blocks": ({"with_masks": True, "block": 128}, 2, 32, False, {}),
    "pages_as_blocks": ({}, 1, 16, False, {}),
    "pages_of_several_blocks": ({}, 3, 64, False, {}),
    "blocks_of_several_pages": ({"block": 64}, 3, 16, False, {}),
    "pages_of_any_size": ({}, 3, 10, False, {}),
    "left_padding": ({}, 3, None, True, {}),
    "left_padding_in_pages": ({}, 3, 16, True, {}),
    "scores": ({}, 3, None, False, {"softcap": 1.5, "alibi_slopes": SLOPES, "sinks": SINKS}),
    "scores_at_left_padding": ({"block": 32}, 1, 16, True, {"softcap": 1.5, "alibi_slopes": SLOPES, "sinks": SINKS}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_decoding_gives_the_rows_of_the_full_forward(
    backend: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, q_len, page_size, is_padded, scores = CASES[case]
    monkeypatch.setattr(decode_tuning, "MIN_KEYS", 48)  # splits also of short lists
    starts = int32(5, 17, 0) if is_padded else None
    n_tokens = LENGTHS if starts is None else LENGTHS - starts
    whole = sequence(layout_of(112, **options))
    out, lse = whole.rows(**scores)
    k, v = (cache_of(x, LENGTHS, 120, starts) for x in (whole.k, whole.v))
    table = None
    if page_size is not None:
        table = table_of(3, -(-120 // page_size))
        k, v = paged(k, page_size), paged(v, page_size)
    q = last_queries(whole.q, n_tokens, q_len)
    got_out, got_lse = block_sparse_decode(
        q, k, v, whole.layout, LENGTHS, table, kv_starts=starts, return_lse=True, backend=backend, **scores
    )
    torch.testing.assert_close(got_out, last_queries(out, n_tokens, q_len), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got_lse, last_lse(lse, n_tokens, q_len), rtol=1e-5, atol=1e-5)


WINDOW = SparsePatternConfig("local_window", 16, window_size=40, exact=True)
MASK_LAYOUTS: dict[str, Callable[[], BlockLayout]] = {
    "window_to_the_token": lambda: BlockLayout.from_config(WINDOW, 112, causal=True),
    "causal_mask_mod": lambda: BlockLayout.from_mask_mod(
        lambda b, h, q, k: (k <= q) & ((q - k < 20) | (k < 5)), 112, block_size=16
    ),
    "mask_mod_of_elements_and_heads": lambda: BlockLayout.from_mask_mod(
        lambda b, h, q, k: (q - k) % (b + 2) <= h, 112, block_size=32, batch=3, num_heads=2, causal=True
    ),
}


@pytest.mark.parametrize("name", MASK_LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts_of_masks_decode_to_the_rows_of_the_full_forward(backend: str, name: str) -> None:
    whole = sequence(MASK_LAYOUTS[name]())
    out, lse = whole.rows()
    k, v = (paged(cache_of(x, LENGTHS, 120), 16) for x in (whole.k, whole.v))
    got_out, got_lse = block_sparse_decode(
        last_queries(whole.q, LENGTHS, 3),
        k,
        v,
        whole.layout,
        LENGTHS,
        table_of(3, 8),
        return_lse=True,
        backend=backend,
    )
    torch.testing.assert_close(got_out, last_queries(out, LENGTHS, 3), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got_lse, last_lse(lse, LENGTHS, 3), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_of_any_kind_are_read(backend: str) -> None:
    whole = sequence(layout_of(80))
    lengths = int32(70, 33, 50)
    expected = last_queries(whole.rows()[0], lengths, 2)
    k, v = (cache_of(x, lengths, 80).transpose(1, 2).contiguous().transpose(1, 2) for x in (whole.k, whole.v))
    q = torch.stack([last_queries(whole.q, lengths, 2)] * 2, -1)[..., 1]
    table = torch.stack([lengths, lengths + 1], 1)
    out = block_sparse_decode(q, k, v, whole.layout, table[:, 0], backend=backend)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_queries_outside_of_the_layout_and_of_the_sequence_see_nothing(backend: str) -> None:
    whole = sequence(layout_of(80), batch=1)
    k, v = whole.k, whole.v
    # queries -2 to 1
    out, lse = block_sparse_decode(
        whole.q[:, :4], k, v, whole.layout, int32(2), return_lse=True, backend=backend
    )
    assert (out[:, :2] == 0).all()
    assert (lse[:, :, :2] == -torch.inf).all()
    assert lse[:, :, 2:].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_query_heads_are_any_multiple_of_the_kv_heads(backend: str) -> None:
    # 3 queries of 7 heads per kv head: 21 of 32 rows of a product
    whole = sequence(layout_of(80), heads=7, kv_heads=1)
    lengths = int32(70, 33, 50)
    k, v = (cache_of(x, lengths, 80) for x in (whole.k, whole.v))
    out = block_sparse_decode(last_queries(whole.q, lengths, 3), k, v, whole.layout, lengths, backend=backend)
    torch.testing.assert_close(out, last_queries(whole.rows()[0], lengths, 3), rtol=1e-5, atol=1e-5)


@pytest.mark.interpreter
def test_more_rows_than_a_tile_are_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_tuning, "MAX_BLOCK_M", 16)
    whole = sequence(layout_of(80))
    lengths = int32(70, 33, 50)
    k, v = (cache_of(x, lengths, 80) for x in (whole.k, whole.v))
    q = last_queries(whole.q, lengths, 11)
    out = block_sparse_decode(q, k, v, whole.layout, lengths, backend="triton")
    torch.testing.assert_close(out, last_queries(whole.rows()[0], lengths, 11), rtol=1e-5, atol=1e-5)


def test_float64_is_exact_on_the_cpu() -> None:
    whole = sequence(layout_of(112, heads=2, with_masks=True), dtype=torch.float64)
    scores: dict[str, Any] = {
        "softcap": 1.5,
        "alibi_slopes": SLOPES.double(),
        "sinks": SINKS.double(),
    }
    out, lse = whole.rows(**scores)
    k, v = (cache_of(x, LENGTHS, 112) for x in (whole.k, whole.v))
    got = block_sparse_decode(
        last_queries(whole.q, LENGTHS, 5),
        k,
        v,
        whole.layout,
        LENGTHS,
        return_lse=True,
        backend="cpu",
        **scores,
    )
    torch.testing.assert_close(got[0], last_queries(out, LENGTHS, 5), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got[1], last_lse(lse, LENGTHS, 5), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", ["cpu", pytest.param("triton", marks=pytest.mark.interpreter)])
def test_half_precision_rounds_weights_and_results_only(backend: str, dtype: torch.dtype) -> None:
    if backend == "triton" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter gets products of bfloat16 wrong")
    whole = sequence(layout_of(80), dtype=dtype)
    lengths = int32(70, 33, 50)
    k, v = (cache_of(x, lengths, 80) for x in (whole.k, whole.v))
    out = block_sparse_decode(last_queries(whole.q, lengths, 2), k, v, whole.layout, lengths, backend=backend)
    assert out.dtype == dtype
    # weights that sum to 1 times values below 4, each rounded once, and the result
    torch.testing.assert_close(
        out, last_queries(whole.rows()[0], lengths, 2), rtol=0.0, atol=5 * torch.finfo(dtype).eps
    )


def test_a_backend_that_does_not_decode_says_so() -> None:
    whole = sequence(layout_of(80), batch=1)
    with pytest.raises(ValueError, match="backend='hopper' cannot serve this call: it does not decode"):
        block_sparse_decode(whole.q[:, :1], whole.k, whole.v, whole.layout, int32(70), backend="hopper")
