"""block_sparse_decode: every step gives the row of the full forward, and nothing is made per step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from dilated_attention_pytorch import BlockLayout, block_sparse_attention, block_sparse_decode
from dilated_attention_pytorch.backends.decode_problem import DecodeInputs
from dilated_attention_pytorch.decode_ops import decode, op_args
from dilated_attention_pytorch.validation.decode import check_decode
from tests.core.decode_cases import (
    BLOCK,
    RANDOM_CASES,
    RandomCase,
    int32,
    layout_of,
    paged,
    sequence,
    table_of,
)


@settings(max_examples=40, deadline=None)
@given(case=RANDOM_CASES)
def test_decoding_at_random_lengths_gives_the_rows_of_the_full_forward(case: RandomCase) -> None:
    out, expected = case.rows("cpu")
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_paged", [False, True])
def test_a_thousand_steps_make_no_layout(is_paged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sequence(layout_of(1000, block=64), batch=1)
    full = block_sparse_attention(whole.q, whole.k, whole.v, whole.layout, is_causal=True)
    k, v, table = whole.k, whole.v, None
    if is_paged:
        k, v, table = paged(k, 64), paged(v, 64), table_of(1, 16)
    made: list[BlockLayout] = []
    monkeypatch.setattr(BlockLayout, "__post_init__", made.append)
    lengths = int32(0)
    steps = []
    for i in range(1000):
        lengths += 1
        steps.append(block_sparse_decode(whole.q[:, i : i + 1], k, v, whole.layout, lengths, table))
    assert not made
    assert not whole.layout._prepared
    assert not whole.layout._dilated
    torch.testing.assert_close(torch.cat(steps, 1), full, rtol=1e-5, atol=1e-5)


def test_speculated_queries_replace_steps() -> None:
    whole = sequence(layout_of(100), batch=2)
    full = block_sparse_attention(whole.q, whole.k, whole.v, whole.layout, is_causal=True)
    ends = list(range(4, 101, 4))
    chunks = [
        block_sparse_decode(whole.q[:, end - 4 : end], whole.k, whole.v, whole.layout, int32(end, end))
        for end in ends
    ]
    torch.testing.assert_close(torch.cat(chunks, 1), full, rtol=1e-5, atol=1e-5)


def test_a_layout_that_begins_later_serves_the_queries_after_that() -> None:
    whole = sequence(layout_of(160), batch=1)
    later = BlockLayout.from_config(whole.layout.configs or (), 90, 160, causal=True)
    for end in (81, 96, 160):
        got, expected = (
            block_sparse_decode(whole.q[:, end - 1 : end], whole.k, whole.v, layout, int32(end))
            for layout in (later, whole.layout)
        )
        assert torch.equal(got, expected)


def test_lse_is_returned_on_request() -> None:
    whole = sequence(layout_of(64), batch=1)
    arguments = (whole.q[:, -1:], whole.k, whole.v, whole.layout, int32(64))
    out = block_sparse_decode(*arguments)
    also_out, lse = block_sparse_decode(*arguments, return_lse=True)
    assert torch.equal(out, also_out)
    assert lse.shape == (1, 4, 1)
    assert lse.dtype == torch.float32


def test_gradients_that_nobody_asks_for_are_no_obstacle() -> None:
    whole = sequence(layout_of(64), batch=1)
    q = whole.q[:, -1:].clone().requires_grad_()
    sinks = torch.nn.Parameter(torch.zeros(4))
    with torch.no_grad():
        out = block_sparse_decode(q, whole.k, whole.v, whole.layout, int32(64), sinks=sinks)
    assert not out.requires_grad


# ---- as an operator


def step(q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, lengths: Tensor, table: Tensor) -> Tensor:
    lengths.add_(1)
    return block_sparse_decode(q, k, v, layout, lengths, table, softcap=2.0)


def test_one_compiled_graph_serves_every_step() -> None:
    torch._dynamo.reset()
    whole = sequence(layout_of(100), batch=2)
    table, k, v = table_of(2, 7), paged(whole.k, BLOCK), paged(whole.v, BLOCK)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    eager_lengths, lengths = int32(0, 30), int32(0, 30)
    for i in range(20):
        expected = step(whole.q[:, i : i + 1], k, v, whole.layout, eager_lengths, table)
        got = compiled(whole.q[:, i : i + 1], k, v, whole.layout, lengths, table)
        assert torch.equal(got, expected)
    assert counter.frame_count == 1
    assert torch.equal(lengths, eager_lengths)


def test_the_operator_is_what_its_schema_and_its_fake_say() -> None:
    whole = sequence(layout_of(64, with_masks=True), batch=2)
    inputs = DecodeInputs(
        whole.q[:, -2:], paged(whole.k, 16), paged(whole.v, 16), int32(64, 20), table_of(2, 4), int32(0, 3),
        torch.rand(4), torch.rand(4),
    )  # fmt: skip
    problem = check_decode(inputs, whole.layout, softmax_scale=None, softcap=1.0)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(decode, op_args(problem, "cpu"), test_utils=tests)


def test_a_default_device_of_others_is_ignored() -> None:
    whole = sequence(layout_of(64), batch=1)
    arguments = (whole.q[:, -1:], whole.k, whole.v, whole.layout, int32(64))
    expected = block_sparse_decode(*arguments)
    with torch.device("meta"):
        got = block_sparse_decode(*arguments)
    assert torch.equal(got, expected)
