"""The CPU backend: every way on every case that it serves, and what it promises of memory, strides and threads."""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig, block_sparse_attention
from dilated_attention_pytorch.backends.cpu import (
    choice,
    decode,
    fused_kernel,
    list_cache,
    one_call,
    one_call_plan,
    row_batches,
    row_by_row,
    row_schedule,
    scratch,
    unfused,
)
from tests.core.attention_cases import CASES, FLOAT64, LIMITS, Case
from tests.core.backends.test_attention_grid import check

# ---- the ways


def is_fused(case: Case) -> bool:
    return (
        case.bias is None
        and not case.dropout_p
        and case.dilation_rates is None
        and case.v_head_dim in (None, case.head_dim)
    )


def n_rows(case: Case) -> int:
    offset = case.keys - case.q_len if case.is_causal else 0
    return -(-(case.q_len + offset) // case.block_size) - offset // case.block_size


def is_padded(case: Case) -> bool:
    return case.kv_lengths is not None or case.padding > 0


WAYS: dict[str, tuple[ModuleType, Callable[[Case], bool]]] = {
    "decode": (decode, lambda case: is_fused(case) and n_rows(case) == 1 and not case.empty_rows),
    "rows at once": (
        one_call,
        lambda case: is_fused(case) and not is_padded(case) and case.layout_heads == 1 and not case.strided
        and case.q_len * case.keys <= 2**22 and not case.q_len % case.block_size and not (case.keys - case.q_len) % case.block_size,
    ),
    "all keys": (
        one_call,
        lambda case: is_fused(case) and not is_padded(case) and case.layout_heads == 1 and case.keys <= 1100,
    ),
    "row by row": (row_by_row, lambda case: is_fused(case) and case.layout_heads == 1),
    "row batches": (row_batches, is_fused),
    "unfused": (unfused, lambda case: True),
}  # fmt: skip


@pytest.fixture
def force(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Make one way serve all calls; returns a list to which its every use adds a word."""

    def use(way: str) -> list[str]:
        module = WAYS[way][0]
        used: list[str] = []
        for name in ("forward", "backward"):
            original = getattr(module, name, None)
            if original is not None:
                monkeypatch.setattr(module, name, counted(original, name, used))
        if way != "decode":
            monkeypatch.setattr(decode, "suits", lambda problem: False)
        monkeypatch.setattr(choice, "suits_row_by_row", lambda problem: way == "row by row")
        if way == "unfused":
            for name in ("fits_fused_kernel", "fits_masked_kernel"):
                monkeypatch.setattr(choice, name, lambda problem: False)
        if module is one_call:
            # a call for every row costs endless time, hence is never chosen
            monkeypatch.setattr(one_call_plan, "ROW_US", 10**9)
            monkeypatch.setattr(one_call_plan, "MAX_GATHERED_ELEMENTS", 2**40)
            monkeypatch.setattr(one_call_plan, "MAX_MASK_ELEMENTS", 2**40)
            monkeypatch.setattr(one_call_plan, "DENSE_RATE", 1e-9 if way == "rows at once" else 1e9)
        else:
            monkeypatch.setattr(choice, "plan_of", lambda problem: None)
        return used

    return use


def counted(original: Callable[..., Any], name: str, used: list[str]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        used.append(name)
        return original(*args)

    return call


@pytest.mark.parametrize(
    ("way", "name"),
    [
        (way, case.name)
        for case in CASES  # one after the other: `check` keeps what is expected of the last few
        for way, (_, serves) in WAYS.items()
        if serves(case) and not (case.is_long and way == "unfused")
    ],
)
def test_every_way_computes_the_definition(way: str, name: str, force: Callable[[str], list[str]]) -> None:
    used = force(way)
    check(name, "cpu", torch.float64, FLOAT64)
    assert "forward" in used


@pytest.mark.parametrize(
    "name",
    [case.name for case in CASES if WAYS["row by row"][1](case) and not (case.is_long or case.lse_gradient)],
)
def test_a_backward_in_pieces_computes_the_definition(
    name: str, force: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_by_row, "MAX_BACKWARD_ELEMENTS", 1)  # a block each
    used = force("row by row")
    check(name, "cpu", torch.float64, FLOAT64)
    assert used.count("backward") == 1


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "fp16", "fp32"]
)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_keeps_the_limits_of_a_type(
    way: str, dtype: torch.dtype, force: Callable[[str], list[str]]
) -> None:
    name = {"decode": "decoding_4096", "rows at once": "64"}.get(way, "gqa_causal_batch")
    used = force(way)
    check(name, "cpu", dtype, LIMITS[dtype])
    assert "forward" in used


def test_lse_gradients_are_those_of_the_definition_after_a_fused_forward() -> None:
    # the forward is fused, the backward is not
    check("1000_causal", "cpu", torch.float64, FLOAT64)


# ---- calls of the kind that choose a way by themselves


def qkv(
    q_len: int,
    kv_len: int | None = None,
    batch: int = 1,
    heads: int = 4,
    kv_heads: int | None = None,
    dim: int = 32,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (batch, q_len if kv_len is None else kv_len, heads if kv_heads is None else kv_heads, dim)
    return torch.randn(batch, q_len, heads, dim), torch.randn(shape), torch.randn(shape)


def layout_of(q_len: int, kv_len: int | None = None, ratio: float = 0.3, causal: bool = True) -> BlockLayout:
    return BlockLayout.from_config(SparsePatternConfig(sparsity_ratio=ratio), q_len, kv_len, causal)


# (q_len, kv_len, heads, ratio): decoding, a small call, long rows, short rows, a chunk
SHAPES = [(1, 1000, 4, 0.2), (256, 256, 4, 0.5), (1024, 1024, 8, 0.5), (512, 512, 1, 0.1), (100, 700, 4, 0.3)]


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_runs_give_the_same_bits(shape: tuple[int, int, int, float], causal: bool) -> None:
    q_len, kv_len, heads, ratio = shape
    layout = layout_of(q_len, kv_len, ratio, causal)
    results = []
    for _ in range(2):
        torch.manual_seed(1)
        inputs = [x.requires_grad_() for x in qkv(q_len, kv_len, heads=heads)]
        out = block_sparse_attention(*inputs, layout, is_causal=causal)
        results.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_calls_from_many_threads_do_not_disturb_each_other(shape: tuple[int, int, int, float]) -> None:
    q_len, kv_len, heads, ratio = shape
    layout = layout_of(q_len, kv_len, ratio)
    calls = [qkv(q_len, kv_len, heads=heads) for _ in range(8)]
    alone = [block_sparse_attention(*call, layout, is_causal=True) for call in calls]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            fresh = BlockLayout.from_dense(layout.to_dense(), 64, q_len, kv_len, causal=True)
            together = list(
                pool.map(
                    lambda call, fresh=fresh: block_sparse_attention(*call, fresh, is_causal=True), calls
                )
            )
            for one, other in zip(alone, together, strict=True):
                assert torch.equal(one, other)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_defaults_of_dtype_and_device_do_not_matter(shape: tuple[int, int, int, float]) -> None:
    q_len, kv_len, heads, ratio = shape
    layout = layout_of(q_len, kv_len, ratio)
    inputs = [x.requires_grad_() for x in qkv(q_len, kv_len, heads=heads)]

    def results() -> tuple[Tensor, ...]:
        fresh = BlockLayout(layout.grid, 1, layout.row_lists, layout.col_lists)
        out = block_sparse_attention(*inputs, fresh, is_causal=True)
        return out, *torch.autograd.grad(out.sum(), inputs)

    plain = results()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            changed = results()
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(plain, changed, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_inference_mode_leaves_behind_serves_training(shape: tuple[int, int, int, float]) -> None:
    scratch.KEPT.__dict__.clear()
    q_len, kv_len, heads, ratio = shape
    layout = layout_of(q_len, kv_len, ratio)
    inputs = qkv(q_len, kv_len, heads=heads)
    with torch.inference_mode():
        seen = block_sparse_attention(*inputs, layout, is_causal=True)
    leaves = [x.requires_grad_() for x in inputs]
    out = block_sparse_attention(*leaves, layout, is_causal=True)
    out.sum().backward()
    assert torch.equal(out, seen)


# ---- memory


def allocated(call: Callable[[], object]) -> int:
    """Bytes that a call allocates on the CPU, all together."""
    scratch.KEPT.__dict__.clear()
    with torch.profiler.profile(profile_memory=True) as profile:
        call()
    events = profile.profiler.kineto_results.events()
    return sum(event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0)


def with_last_blocks(q_len: int, kv_len: int, heads: int = 1) -> BlockLayout:
    """A causal layout whose rows have five blocks, far apart, however long the cache is."""
    n_rows, n_cols = -(-q_len // 64), kv_len // 64
    mask = torch.zeros(heads, n_rows, n_cols, dtype=torch.bool)
    for row in range(n_rows):
        last = n_cols - n_rows + row
        mask[:, row, [last * step // 4 for step in range(5)]] = True
    return BlockLayout.from_dense(mask, 64, q_len, kv_len, causal=True)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layout per head": {"heads": 8},
    "padding": {"padding": True},
    "dropout": {"dropout_p": 0.1},
    "block bias": {"bias": True},
    "token dilation": {"segment_lengths": [64, 128], "dilation_rates": [1, 4]},
}


def in_form(x: Tensor, form: str) -> Tensor:
    """The values of a cache (batch, kv, heads, dim) in another order in memory, or in part of a larger one."""
    if form == "heads first":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if form == "dim first":
        return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    if form == "part":
        return torch.cat([x, torch.full_like(x[:, :100], torch.nan)], dim=1)[:, : x.shape[1]]
    if form == "odd rows":
        return torch.cat([x, torch.full_like(x[..., :3], torch.nan)], dim=3)[..., : x.shape[3]]
    return x


FORMS = ["plain", "heads first", "dim first", "part", "odd rows"]


def prepared(q_len: int, kv_len: int, dtype: torch.dtype, form: str, option: str) -> Callable[[], Tensor]:
    """A call on a cache of that form."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    def cache() -> Tensor:
        return in_form(normal(2, 1024, 8, 32).repeat(1, kv_len // 1024, 1, 1), form)

    kwargs = dict(OPTIONS[option])
    q, k, v = normal(2, q_len, 8, 32), cache(), cache()
    layout = with_last_blocks(q_len, kv_len, kwargs.pop("heads", 1))
    if kwargs.pop("bias", False):
        kwargs["block_bias"] = normal(layout.num_active_blocks)
    if kwargs.pop("padding", False):
        kwargs["key_padding_mask"] = torch.arange(kv_len) < torch.tensor([[0], [70]])

    def call() -> Tensor:
        torch.manual_seed(0)  # of the dropout
        return block_sparse_attention(q, k, v, layout, is_causal=True, **kwargs)

    return call


@pytest.mark.parametrize(
    ("q_len", "form", "option"),
    [  # every pair of two of the three
        ((1, 256)[(i + j) % 2], form, option)
        for (i, form), (j, option) in itertools.product(enumerate(FORMS), enumerate(OPTIONS))
    ],
)
def test_memory_follows_the_active_blocks_not_the_cache(q_len: int, form: str, option: str) -> None:
    # as many active blocks in a cache 8 times as long; masks and lists of keys may be a byte and a number for each
    lengths = (2048, 16384)
    short, long = (allocated(prepared(q_len, length, torch.float32, form, option)) for length in lengths)
    per_key = 16 * 2 if option == "padding" else 0
    assert long <= 1.05 * short + per_key * (lengths[1] - lengths[0])


@pytest.mark.parametrize("q_len", [1, 256], ids=["decoding", "prefill"])
def test_bfloat16_caches_are_not_widened(q_len: int) -> None:
    short, long = (allocated(prepared(q_len, n, torch.bfloat16, "plain", "plain")) for n in (2048, 32768))
    assert long <= 1.05 * short


def test_a_thread_keeps_a_bounded_amount_of_memory() -> None:
    for heads, length in ((1, 256), (4, 1024), (16, 2048)):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            inputs = [x.to(dtype).requires_grad_() for x in qkv(length, heads=heads)]
            block_sparse_attention(*inputs, layout_of(length), is_causal=True).sum().backward()
    held = sum(buffer.nbytes for buffer in scratch.KEPT.buffers.values())
    assert 0 < held <= scratch.MAX_KEPT_BYTES


# ---- strides


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize("q_len", [1, 100, 256])
def test_caches_of_any_strides_give_the_same(q_len: int, form: str, option: str) -> None:
    found = prepared(q_len, 1024, torch.float64, form, option)()
    wanted = prepared(q_len, 1024, torch.float64, "plain", option)()
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def expanded(x: Tensor) -> list[Tensor]:
    """Tensors that hold one token, or one head, or one batch element, for all."""
    return [x[:, :1].expand_as(x), x[:, :, :1].expand_as(x), x[:1].expand_as(x), x[..., :1].expand_as(x)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_expanded_tensors_give_the_same_as_their_copies(shape: tuple[int, int, int, float]) -> None:
    q_len, kv_len, heads, ratio = shape
    layout = layout_of(q_len, kv_len, ratio)
    for q, k, v in zip(*(expanded(x.double()) for x in qkv(q_len, kv_len, 2, heads)), strict=True):
        results = []
        for inputs in ((q, k, v), tuple(x.contiguous() for x in (q, k, v))):
            leaves = [x.detach().requires_grad_() for x in inputs]
            out = block_sparse_attention(*leaves, layout, is_causal=True)
            results.append((out, *torch.autograd.grad(out.sum(), leaves)))
        torch.testing.assert_close(results[0], results[1], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("rows", [range(8), (0, 3, 6), (0, 1, 5), (4,)], ids=str)
def test_rows_apart_give_the_same_from_any_strides(
    rows: tuple[int, ...], force: Callable[[str], list[str]]
) -> None:
    used = force("row batches")
    active = torch.zeros(8, 8, dtype=torch.bool)
    for row in rows:  # the others are empty
        active[row, [row, (3 * row + 1) % 8]] = True
    layout = BlockLayout.from_dense(active, 64, q_len=500, kv_len=500)
    q, k, v, grad = torch.randn(4, 2, 500, 4, 32, dtype=torch.float64)  # the last row is cut short
    wanted = None
    for order in ((0, 1, 2, 3), (0, 2, 1, 3), (3, 2, 1, 0), (1, 3, 0, 2)):  # of the dimensions in memory
        back = [order.index(i) for i in range(4)]
        inputs = [x.permute(order).contiguous().permute(back).requires_grad_() for x in (q, k, v)]
        out = block_sparse_attention(*inputs, layout)
        found = (out, *torch.autograd.grad(out, inputs, grad.permute(order).contiguous().permute(back)))
        if wanted is None:
            wanted = found
            reference = block_sparse_attention(*inputs, layout, backend="reference")
            torch.testing.assert_close(out, reference, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)
    assert "backward" in used


# ---- the order of the rows of row_by_row


def test_rows_follow_those_that_they_share_blocks_with() -> None:
    rows = [[row % 4, 10 + row % 4, 20 + row % 4, 30 + row] for row in range(16)]
    ordered = row_schedule.order_by_sharing(rows, list(range(16)))
    assert sorted(ordered) == list(range(16))
    copies = [
        sum(len(step.copies) for step in row_schedule.steps_of(rows, order, 0))
        for order in (range(16), ordered)
    ]
    assert copies == [64, 4 * 3 + 16]  # three blocks for each of four kinds of rows, and one for every row


def test_the_first_slots_hold_the_blocks_of_the_row() -> None:
    generator = torch.Generator().manual_seed(1)
    active = torch.rand(40, 30, generator=generator) < 0.2
    rows = [row.nonzero().flatten().tolist() for row in active]
    numbers = row_schedule.order_by_sharing(rows, [number for number in range(40) if rows[number]])
    held: dict[int, int] = {}
    for step in row_schedule.steps_of(rows, numbers, first_row=2):
        held.update(step.copies)
        n = len(rows[step.row])
        assert step.blocks == [held[slot] for slot in range(n)]
        assert sorted(step.blocks) == rows[step.row]
        own = step.row + 2
        assert step.diagonal == (step.blocks.index(own) if own in step.blocks else n)


def test_rows_of_blocks_in_the_future_see_nothing(force: Callable[[str], list[str]]) -> None:
    used = force("row by row")
    active = torch.ones(3, 3, dtype=torch.bool).triu_(1)
    layout = BlockLayout.from_dense(active, 64)
    out, lse = block_sparse_attention(*qkv(192), layout, is_causal=True, return_lse=True)
    assert not out.any()
    assert (lse == -math.inf).all()
    assert used == ["forward"]


# ---- padding


@pytest.mark.parametrize("way", ["decode", "row by row", "row batches", "unfused"])
def test_what_lies_behind_the_end_is_never_read(way: str, force: Callable[[str], list[str]]) -> None:
    used = force(way)
    q_len = 1 if way == "decode" else 300
    inputs = [x.requires_grad_() for x in qkv(q_len, 300, batch=2)]
    lengths = torch.tensor([300, 170])
    is_causal = q_len == 300  # lengths count from the first key
    layout = layout_of(q_len, 300, 0.6, is_causal)
    out = block_sparse_attention(*inputs, layout, is_causal=is_causal, kv_lengths=lengths)
    wanted = (out, *torch.autograd.grad(out.sum(), inputs))
    for x in inputs[1:]:
        x.data[1, 170:] = math.nan
    out = block_sparse_attention(*inputs, layout, is_causal=is_causal, kv_lengths=lengths)
    found = (out, *torch.autograd.grad(out.sum(), inputs))
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)
    assert "forward" in used


# ---- what is kept with a layout


def test_what_is_kept_goes_with_the_layout() -> None:
    gc.collect()
    before = len(list_cache.CACHE)
    layout = layout_of(512)
    block_sparse_attention(*qkv(512, heads=1), layout, is_causal=True)
    assert len(list_cache.CACHE) == before + 1
    del layout
    gc.collect()
    assert len(list_cache.CACHE) == before


def test_a_bounded_number_of_things_is_kept_for_a_layout() -> None:
    layout = layout_of(512)
    for heads in range(1, 2 * list_cache.MAX_PER_LIST):
        block_sparse_attention(*qkv(512, heads=heads, dim=8), layout, is_causal=True)
    assert len(list_cache.CACHE[layout.row_lists.indices]) <= list_cache.MAX_PER_LIST


# ---- the kernel


def test_parts_of_a_softmax_have_gradients_of_their_own() -> None:
    # what the ways rely on: with out and lse of all keys, the kernel gives each part's share of the gradients
    q, k, v, grad = (torch.randn(1, 2, 48, 16, dtype=torch.float64) for _ in range(4))
    out, lse = fused_kernel.attention(q, k, v, None, 0.3)
    wanted = fused_kernel.attention_backward(grad, q, k, v, out, lse, None, 0.3)
    parts = [
        fused_kernel.attention_backward(grad, q, k[:, :, part], v[:, :, part], out, lse, None, 0.3)
        for part in (slice(0, 20), slice(20, 48))
    ]
    torch.testing.assert_close(parts[0][0] + parts[1][0], wanted[0])
    for i in (1, 2):
        torch.testing.assert_close(torch.cat([parts[0][i], parts[1][i]], dim=2), wanted[i])


def test_a_query_without_keys_gets_zero_and_lse_zero_from_the_kernel() -> None:
    q, k, v = (torch.randn(1, 1, 40, 16) for _ in range(3))
    mask = torch.zeros(40, 40)
    mask[7] = -math.inf
    out, lse = fused_kernel.attention(q, k, v, mask, 0.3)
    assert not out[0, 0, 7].any()
    assert lse[0, 0, 7] == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["k", "v"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "q_len", "kv_len", "block"),
    [
        (4, 1, 128, 128, 16),
        (4, 4, 128, 128, 16),
        (4, 4, 128, 128, 32),
        (2, 2, 40, 96, 16),
        (4, 2, 256, 256, 64),
    ],
)
def test_numbers_of_a_future_block_do_not_reach_short_causal_calls(
    heads: int, kv_heads: int, q_len: int, kv_len: int, block: int, name: str, bad: float
) -> None:
    config = SparsePatternConfig(sparsity_ratio=1.0, block_size=block)
    layout = BlockLayout.from_config(config, q_len, kv_len, causal=True)
    generator = torch.Generator().manual_seed(0)
    q, k, v, d_out = (
        torch.randn(1, n, n_heads, 16, generator=generator)
        for n, n_heads in ((q_len, heads), (kv_len, kv_heads), (kv_len, kv_heads), (q_len, heads))
    )
    before = q_len - block  # queries that see nothing of the last block

    def results(value: float) -> tuple[Tensor, Tensor]:
        tensors = {"k": k.clone(), "v": v.clone()}
        tensors[name][:, -block:] = value
        query = q.clone().requires_grad_()
        out = block_sparse_attention(query, tensors["k"], tensors["v"], layout, is_causal=True, backend="cpu")
        (grad,) = torch.autograd.grad(out, query, d_out)
        return out.detach()[:, :before], grad[:, :before]

    for found, expected in zip(results(bad), results(0.0), strict=True):
        torch.testing.assert_close(found, expected)
