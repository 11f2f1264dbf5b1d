"""What only a GPU shows: sizes beyond 32-bit offsets, peak memory, layouts of a million tokens, no host synchronisation."""

from __future__ import annotations

import statistics
import time
from typing import Any

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import (
    BlockLayout,
    BlockSparseAttention,
    SparsePatternConfig,
    block_sparse_attention,
    ops,
)
from dilated_attention_pytorch.functional import make_problem
from tests.core.attention_cases import BY_NAME, make_call, run

pytestmark = pytest.mark.gpu


def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, dtype=dtype, device="cuda")


def relative(found: Tensor, expected: Tensor) -> float:
    expected = expected.detach()
    return float((found.detach().double() - expected).norm() / expected.norm())


# ---- sizes


def test_last_block_is_right_beyond_two_to_the_31_elements() -> None:
    check_last_block_beyond_two_to_the_31_elements("triton")


def check_last_block_beyond_two_to_the_31_elements(backend: str) -> None:
    block, n_last = 128, 77
    length = 8195 * block + n_last  # tokens; 16 heads x 128
    config = SparsePatternConfig("dilated_sparse", block, 0.001)
    layout = BlockLayout.from_config(config, length, causal=True, device="cuda")
    q, k, v = (random(1, length, 16, 128).requires_grad_() for _ in range(3))
    assert q.numel() > 2**31
    grad_out = random(1, length, 16, 128)
    out, lse = block_sparse_attention(q, k, v, layout, is_causal=True, return_lse=True, backend=backend)
    grads = torch.autograd.grad(out, (q, k, v), grad_out)

    # The last row of blocks alone sees the last block of keys: all about both, dense, in float64.
    begin = length - n_last
    columns = layout.row_lists.indices[int(layout.row_lists.indptr[-2]) :].tolist()
    assert columns[-1] == 8195
    assert len(columns) > 4
    keys = torch.cat([torch.arange(c * block, min((c + 1) * block, length)) for c in columns]).cuda()
    rows = q[0, begin:].detach().double().requires_grad_()
    their_k, their_v = (x[0, keys].detach().double().requires_grad_() for x in (k, v))
    scores = torch.einsum("ihd,jhd->hij", rows, their_k) / 128**0.5
    hidden = keys > torch.arange(begin, length, device="cuda")[:, None]
    scores = scores.masked_fill(hidden, -torch.inf)
    expected = torch.einsum("hij,jhd->ihd", scores.softmax(-1), their_v)
    wanted = torch.autograd.grad(expected, (rows, their_k, their_v), grad_out[0, begin:].double())

    assert relative(out[0, begin:], expected) < 1e-2
    torch.testing.assert_close(lse[0, :, begin:].double(), scores.logsumexp(-1), rtol=1e-3, atol=1e-3)
    assert relative(grads[0][0, begin:], wanted[0]) < 1e-2
    for grad, theirs in zip(grads[1:], wanted[1:], strict=True):
        assert relative(grad[0, begin:], theirs[-n_last:]) < 1e-2


def test_forward_and_backward_need_little_memory_above_their_inputs() -> None:
    length, heads, dim = 131_072, 8, 64
    module = BlockSparseAttention(SparsePatternConfig(sparsity_ratio=0.01), backend="triton")
    q, k, v = (random(1, length, heads, dim).requires_grad_() for _ in range(3))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    out = module(q, k, v, is_causal=True)
    out.backward(torch.ones_like(out))
    torch.cuda.synchronize()
    above = torch.cuda.max_memory_allocated() - before
    tensors = sum(x.numel() * x.element_size() for x in (q, k, v, out))
    assert above < 2.5 * tensors
    assert q.grad is not None  # it did run


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("kind", ["dilated_sparse", "local_window", "global_local"])
def test_layout_of_a_million_tokens_is_small_and_fast(kind: Any, causal: bool) -> None:
    length, block = 1_048_576, 128
    global_tokens = 256 if kind == "global_local" else 0
    config = SparsePatternConfig(kind, block, 0.01, global_tokens=global_tokens)
    n = length // block
    pairs = n * (n + 1) // 2 if causal else n * n
    times = []
    for _ in range(6):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        layout = BlockLayout.from_config(config, length, causal=causal, device="cuda")
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        assert torch.cuda.max_memory_allocated() - before < 100e6
        if kind != "global_local":
            assert layout.num_active_blocks == pairs // 100
        del layout
    assert statistics.median(times[1:]) < 1.0


def test_layout_built_on_the_gpu_is_that_of_the_cpu() -> None:
    for kind in ("dilated_sparse", "local_window", "global_local"):
        config = SparsePatternConfig(kind, 64, 0.05)
        for lengths in (
            (10_000, 10_000, True),
            (10_000, 10_000, False),
            (77, 5_000, True),
            (300, 5_000, False),
        ):
            on_gpu = BlockLayout.from_config(config, *lengths, device="cuda")
            on_cpu = BlockLayout.from_config(config, *lengths)
            for name in ("indptr", "indices", "block_ids"):
                for lists in ("row_lists", "col_lists"):
                    ours = getattr(getattr(on_gpu, lists), name)
                    assert ours.is_cuda
                    assert torch.equal(ours.cpu(), getattr(getattr(on_cpu, lists), name))


# ---- what PyTorch does with the operators


def test_a_step_does_not_synchronise_with_the_host() -> None:
    module = BlockSparseAttention(SparsePatternConfig(), [64, 256], [1, 4], dropout=0.1)
    q, k, v = (random(2, 1000, 4, 64).requires_grad_() for _ in range(3))
    padding = torch.rand(2, 1000, device="cuda") < 0.1
    lengths = torch.tensor([1000, 700], device="cuda", dtype=torch.int32)

    def step() -> None:
        out = module(q, k, v, is_causal=True, key_padding_mask=padding, kv_lengths=lengths)
        out.backward(out.detach())

    step()  # compiles the kernels and builds the layout
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "name", ["1000_causal", "gqa_causal_batch", "dropout_causal", "bias_full", "everything"]
)
def test_two_runs_are_equal_to_the_bit(name: str, dtype: torch.dtype) -> None:
    call = make_call(BY_NAME[name], dtype, "cuda")
    first = run(BY_NAME[name], call, "triton")
    for _ in range(3):
        second = run(BY_NAME[name], call, "triton")
        for key in first:
            assert torch.equal(first[key], second[key]), key


@pytest.mark.parametrize("name", ["65_causal", "empty_rows", "bias_full", "dilation_causal", "everything"])
def test_opcheck(name: str) -> None:
    case = BY_NAME[name]
    call = make_call(case, torch.bfloat16, "cuda")
    q, k, v, *bias = call.tensors.values()
    problem = make_problem(q, k, v, call.layout, block_bias=bias[0] if bias else None, **call.kwargs)
    torch.library.opcheck(ops.attention, ops.op_args(problem, "triton"))
    arguments = [x.detach() if isinstance(x, Tensor) else x for x in ops.op_args(problem, "triton")]
    out, lse = ops.attention(*arguments)
    torch.library.opcheck(
        ops.attention_backward,
        (out, lse, torch.randn_like(out), torch.randn_like(lse), *arguments),
    )


def test_compiled_training_step_is_that_of_eager_mode() -> None:
    module = BlockSparseAttention(SparsePatternConfig(sparsity_ratio=0.2), [64, 256], [1, 2])
    function = torch.compile(module, fullgraph=True)
    for length in (500, 1000):
        q, k, v = (random(2, length, 4, 64).requires_grad_() for _ in range(3))
        found, expected = function(q, k, v, is_causal=True), module(q, k, v, is_causal=True)
        assert torch.equal(found, expected)
        for ours, theirs in zip(
            torch.autograd.grad(found, (q, k, v), torch.ones_like(found)),
            torch.autograd.grad(expected, (q, k, v), torch.ones_like(found)),
            strict=True,
        ):
            assert torch.equal(ours, theirs)


def test_autocast_and_export() -> None:
    module = BlockSparseAttention(SparsePatternConfig())
    q, k, v = (random(1, 300, 2, 64, dtype=torch.float32).requires_grad_() for _ in range(3))
    with torch.autocast("cuda", torch.bfloat16):
        out = module(q, k, v)
    assert torch.equal(out, module(q.bfloat16(), k.bfloat16(), v.bfloat16()))
    (grad,) = torch.autograd.grad(out.float().sum(), q)
    assert grad.dtype == torch.float32
    program = torch.export.export(module, (q, k, v))
    assert torch.equal(program.module()(q, k, v), module(q, k, v))


@pytest.mark.parametrize("how", ["kv_lengths", "key_padding_mask"])
def test_padded_keys_may_hold_nan(how: str) -> None:
    q, k, v = (random(2, 300, 2, 64).requires_grad_() for _ in range(3))
    padding = torch.arange(300, device="cuda") >= torch.tensor([[300], [130]], device="cuda")
    kwargs = {how: padding if how == "key_padding_mask" else torch.tensor([300, 130])}
    layout = BlockLayout.from_config(SparsePatternConfig(sparsity_ratio=1.0), 300)
    bad_k, bad_v = (
        x.detach().masked_fill(padding[:, :, None, None], torch.nan).requires_grad_() for x in (k, v)
    )
    results = []
    for tensors in ((q, k, v), (q, bad_k, bad_v)):
        out = block_sparse_attention(*tensors, layout, backend="triton", **kwargs)
        results.append((out, *torch.autograd.grad(out, tensors, torch.ones_like(out))))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)
