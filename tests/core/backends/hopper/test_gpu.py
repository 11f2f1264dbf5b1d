"""The Hopper backend on its GPU: every option it serves beside the definition, and what only a GPU shows.

`pytest -n 8` compiles each kernel once or twice: cases with the same constants stand together, and Triton keeps what
is compiled on the disk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import (
    BlockLayout,
    BlockSparseAttention,
    SparsePatternConfig,
    block_sparse_attention,
    explain_backends,
)
from tests.core.attention_cases import BY_NAME, Case, case
from tests.core.backends.hopper.cases import MORE, SERVED, check, label, shaped
from tests.core.backends.test_attention_gpu import check_last_block_beyond_two_to_the_31_elements


def is_hopper() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not is_hopper(), reason="needs a GPU of compute capability 9.0"),
]

Results = tuple[Tensor, ...]  # out, lse and the gradients of q, k and v
DILATION: dict[str, Any] = {"segment_lengths": [256, 512], "dilation_rates": [1, 4]}


@pytest.fixture(autouse=True)
def memory_given_back() -> Iterator[None]:
    """Tests of several workers share the GPU."""
    yield
    if torch.cuda.memory_reserved() > 2**31:
        torch.cuda.empty_cache()


def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, dtype=dtype, device="cuda")


def qkv(
    batch: int, length: int, heads: int, dim: int, kv_heads: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = [(batch, length, n, dim) for n in (heads, kv_heads or heads, kv_heads or heads)]
    q, k, v = (random(*shape).requires_grad_() for shape in shapes)
    return q, k, v


def layout_of(length: int, block_size: int, ratio: float = 0.3, causal: bool = False) -> BlockLayout:
    config = SparsePatternConfig(block_size=block_size, sparsity_ratio=ratio)
    return BlockLayout.from_config(config, length, causal=causal, device="cuda")


def step(q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, grad_out: Tensor, **options: Any) -> Results:
    """One forward and backward; causal where the layout is."""
    out, lse = block_sparse_attention(
        q, k, v, layout, is_causal=layout.causal, return_lse=True, backend="hopper", **options
    )
    return out.detach(), lse.detach(), *torch.autograd.grad(out, (q, k, v), grad_out)


def assert_same(found: Results, expected: Results) -> None:
    for name, ours, theirs in zip(("out", "lse", "dq", "dk", "dv"), found, expected, strict=True):
        assert torch.equal(ours, theirs), name


# ---- every option beside the definition


@pytest.mark.parametrize("case", SERVED, ids=label)
def test_grid_in_bfloat16(case: Case) -> None:
    check(case, torch.bfloat16)


IN_FLOAT16 = [
    "1000_causal",
    "gqa_causal_batch",
    "empty_rows",
    "cross_4096",
    "layout_per_head",
    "softmax_scale_large",
]


@pytest.mark.parametrize("name", [*IN_FLOAT16, "dilation", "dilation_2048_full", "dilation_of_all_by_16"])
def test_float16(name: str) -> None:
    block_size = 64 if name in ("1000_causal", "layout_per_head") else 128
    named = BY_NAME | {case.name: case for case in MORE}
    check(shaped(named[name], 128, block_size), torch.float16)


@pytest.mark.parametrize("block_size", [64, 128])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_long_rows_among_short_ones(block_size: int, causal: bool) -> None:
    """A dense row and a dense column, and rows that see nothing: the long list is started first, and is right."""
    n = 2560 // block_size
    mask = torch.eye(n, dtype=torch.bool)
    mask[n - 3], mask[:, 3], mask[5] = True, True, False
    skewed = case("skewed", 2560 - 40, heads=4, kv_heads=2, head_dim=64, block_size=block_size)
    skewed = dataclasses.replace(skewed, is_causal=causal, ratio=1.0, lse_gradient=True)
    whole = torch.ones(n, n, dtype=torch.bool).tril() if causal else torch.ones(n, n, dtype=torch.bool)
    kept = mask & whole
    check_with_layout(skewed, BlockLayout.from_dense(kept, block_size, 2520, 2520, causal))


@pytest.mark.parametrize("block_size", [64, 128])
def test_global_tokens(block_size: int) -> None:
    config = SparsePatternConfig("global_local", block_size, 0.2, global_tokens=200)
    skewed = case("global", 2000, batch=2, heads=2, head_dim=128, block_size=block_size)
    check_with_layout(skewed, BlockLayout.from_config(config, 2000))


def check_with_layout(case: Case, layout: BlockLayout) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.core.attention_cases.layout_of", lambda case: layout)
        check(case, torch.bfloat16)


def test_offsets_beyond_two_to_the_31_elements() -> None:
    # first a short call: the kernel of the long one is then there already
    q, k, v = qkv(1, 3 * 128 + 77, 16, 128)
    step(q, k, v, layout_of(q.shape[1], 128, causal=True), random(*q.shape))
    check_last_block_beyond_two_to_the_31_elements("hopper")


# ---- memory formats


def heads_first(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def surrounded(x: Tensor, dim: int, width: int) -> Tensor:
    """The same values as a view into a larger tensor of NaN: reading or writing outside shows."""
    shape = list(x.shape)
    shape[dim] = width
    rim = torch.full(shape, torch.nan, dtype=x.dtype, device=x.device)
    return torch.cat([rim, x, rim], dim).narrow(dim, width, x.shape[dim])


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "heads_before_tokens": heads_first,
    "some_of_more_heads": lambda x: surrounded(x, 2, 3),
    "some_of_more_tokens": lambda x: surrounded(x, 1, 5),
    "some_of_a_wider_head_dim": lambda x: surrounded(x, 3, 8),
    "one_of_more_batches": lambda x: surrounded(x, 0, 2),
    "heads_first_and_some_of_more": lambda x: surrounded(heads_first(x).transpose(1, 2), 1, 1).transpose(
        1, 2
    ),
}


@pytest.mark.parametrize(
    ("head_dim", "block_size", "options"), [(128, 128, {}), (64, 64, {}), (64, 128, DILATION)]
)
@pytest.mark.parametrize("name", VIEWS)
def test_views_are_read_in_place(name: str, head_dim: int, block_size: int, options: dict[str, Any]) -> None:
    leaves = qkv(2, 1000, 4, head_dim, kv_heads=2)
    layout, grad_out = layout_of(1000, block_size, causal=True), random(*leaves[0].shape)
    expected = step(*leaves, layout, grad_out, **options)
    q, k, v = (VIEWS[name](x.detach()).requires_grad_() for x in leaves)
    assert not q.is_contiguous() or name in ("one_of_more_batches",)
    assert explain_backends(q, k, v, layout, is_causal=True)["hopper"] is None
    assert_same(step(q, k, v, layout, VIEWS[name](grad_out), **options), expected)


def test_one_projection_holds_q_k_and_v() -> None:
    packed = random(2, 700, 3, 4, 128).requires_grad_()
    layout, grad_out = layout_of(700, 128), random(2, 700, 4, 128)
    q, k, v = packed.unbind(2)
    out = block_sparse_attention(q, k, v, layout, backend="hopper")
    (grad,) = torch.autograd.grad(out, packed, grad_out)
    q, k, v = (x.contiguous().detach().requires_grad_() for x in (q, k, v))
    expected, _, *grads = step(q, k, v, layout, grad_out)
    assert torch.equal(out, expected)
    assert torch.equal(grad, torch.stack(grads, 2))


def misaligned(x: Tensor) -> Tensor:
    """The same values, one element into a storage."""
    return torch.cat([x.new_zeros(1), x.detach().flatten()])[1:].view(x.shape)


UNREADABLE: dict[str, Callable[[Tensor], Tensor]] = {
    "misaligned": misaligned,
    "expanded_batch": lambda x: x[:1].expand_as(x),
    "expanded_heads": lambda x: x[:, :, :1].expand_as(x),
    "wide_rows": lambda x: torch.cat([x, x[..., :3]], 3)[..., : x.shape[3]],
    "last_stride_not_one": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_copied(name: str) -> None:
    leaves = qkv(2, 500, 4, 128)
    q, k, v = (UNREADABLE[name](x.detach()).requires_grad_() for x in leaves)
    layout, grad_out = layout_of(500, 128), random(*q.shape)
    assert explain_backends(q, k, v, layout)["hopper"] is None
    copies = (x.detach().contiguous().clone().requires_grad_() for x in (q, k, v))
    expected = step(*copies, layout, grad_out)
    for _ in range(3):  # the later ones are served from the cache of the layout
        assert_same(step(q, k, v, layout, grad_out), expected)


GRADIENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "misaligned": misaligned,
    "heads_before_tokens": heads_first,
    "odd_stride_of_one_batch": lambda x: x.as_strided(x.shape, (x.stride(0) + 3, *x.stride()[1:])),
    "last_stride_not_one": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "wide_rows": lambda x: torch.cat([x, x[..., :3]], 3)[..., : x.shape[3]],
}


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("name", GRADIENTS)
def test_output_gradient_may_lie_anyhow(name: str, head_dim: int) -> None:
    q, k, v = qkv(1, 500, 2, head_dim)
    layout, grad_out = layout_of(500, 128), random(*q.shape)
    assert_same(step(q, k, v, layout, GRADIENTS[name](grad_out)), step(q, k, v, layout, grad_out))


def test_expanded_output_gradient() -> None:
    q, k, v = qkv(2, 500, 2, 64)
    layout, one = layout_of(500, 128), torch.ones((), device="cuda", dtype=torch.bfloat16)
    for like in (one.expand(q.shape), random(1, 500, 2, 64).expand(q.shape)):
        assert_same(step(q, k, v, layout, like), step(q, k, v, layout, like.contiguous()))


def test_lse_gradient_may_lie_anyhow() -> None:
    q, k, v = qkv(2, 500, 2, 64)
    layout, grad_out = layout_of(500, 128), random(*q.shape)
    grad_lse = random(2, 2, 500, dtype=torch.float32)
    expanded = grad_lse[:1, :, :1].expand(grad_lse.shape)

    def grads(grad_lse: Tensor) -> Results:
        outputs = block_sparse_attention(q, k, v, layout, return_lse=True, backend="hopper")
        return torch.autograd.grad(outputs, (q, k, v), (grad_out, grad_lse))

    transposed = grad_lse.transpose(1, 2).contiguous().transpose(1, 2)
    for found, expected in (
        (transposed, grad_lse),
        (misaligned(grad_lse), grad_lse),
        (expanded, expanded.contiguous()),
    ):
        for ours, theirs in zip(grads(found), grads(expected), strict=True):
            assert torch.equal(ours, theirs)


# ---- the same numbers in every run

RUNS: dict[
    str, tuple[Any, ...]
] = {  # head_dim, block_size, kv_heads, layout per head, causal, and what else is asked for
    "full": (128, 128, 8, False, False),
    "causal": (64, 128, 8, False, True),
    "gqa": (128, 128, 2, False, False),
    "gqa_causal": (64, 128, 2, False, True),
    "per_head": (128, 128, 8, True, True),
    "per_head_gqa": (64, 128, 4, True, False),
    "small_blocks": (64, 64, 8, False, True),
    "small_blocks_per_head_gqa": (128, 64, 4, True, False),
    "dilation": (128, 128, 8, False, False, {"segment_lengths": [256, 512], "dilation_rates": [1, 4]}),
    "dilation_per_head_gqa_causal": (
        64,
        128,
        2,
        True,
        True,
        {"segment_lengths": [256, 512], "dilation_rates": [2, 8]},
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_twenty_runs_are_equal_to_the_bit(name: str) -> None:
    head_dim, block_size, kv_heads, per_head, causal, *options = RUNS[name]
    config = SparsePatternConfig(block_size=block_size, sparsity_ratio=0.2)
    configs = [dataclasses.replace(config, sparsity_ratio=0.1 + 0.1 * (head % 3)) for head in range(8)]
    layout = BlockLayout.from_config(configs if per_head else config, 3000, causal=causal, device="cuda")
    q, k, v = qkv(2, 3000, 8, head_dim, kv_heads)
    grad_out = random(*q.shape)
    first = step(q, k, v, layout, grad_out, **dict(*options))
    for _ in range(19):
        assert_same(step(q, k, v, layout, grad_out, **dict(*options)), first)


def test_several_streams_at_once() -> None:
    problems = []
    for length, heads, dim, block_size, causal, options in (
        (3000, 8, 128, 128, True, {}),
        (2000, 6, 64, 64, False, {}),
        (3000, 8, 64, 128, False, DILATION),
    ):
        tensors = qkv(1, length, heads, dim)
        layout, grad_out = layout_of(length, block_size, causal=causal), random(*tensors[0].shape)
        problems.append((tensors, layout, grad_out, options, step(*tensors, layout, grad_out, **options)))
    streams = [torch.cuda.Stream() for _ in problems]
    torch.cuda.synchronize()
    results: list[tuple[Results, Results]] = []
    for _ in range(50):
        for stream, (tensors, layout, grad_out, options, expected) in zip(streams, problems, strict=True):
            with torch.cuda.stream(stream):
                results.append((step(*tensors, layout, grad_out, **options), expected))
    torch.cuda.synchronize()
    for found, expected in results:
        assert_same(found, expected)


def test_first_calls_of_a_layout_on_two_streams() -> None:
    tensors = qkv(1, 16_384, 4, 64)
    grad_out = random(*tensors[0].shape)
    expected = step(*tensors, layout_of(16_384, 64), grad_out)
    for _ in range(20):
        layout = layout_of(16_384, 64)
        torch.cuda.synchronize()
        results = []
        for _ in range(2):
            with torch.cuda.stream(torch.cuda.Stream()):
                results.append(step(*tensors, layout, grad_out))
        torch.cuda.synchronize()
        for found in results:
            assert_same(found, expected)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_tensors_that_were_one_in_an_earlier_call_are_read_apart(head_dim: int) -> None:
    length = 1664  # in no other test: the launches of these calls are new
    layout, x = layout_of(length, 128), random(1, length, 2, head_dim).requires_grad_()
    out = block_sparse_attention(x, x, x, layout, backend="hopper")
    out.backward(x.detach())
    q, k, v = qkv(1, length, 2, head_dim)
    grad_out = random(*q.shape)
    found = block_sparse_attention(q, k, v, layout, backend="hopper")
    expected = block_sparse_attention(q, k, v, layout, backend="triton")
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
    for a, b in zip(*(torch.autograd.grad(o, (q, k, v), grad_out) for o in (found, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


# ---- what PyTorch does with it


@pytest.mark.parametrize(("heads", "head_dim", "options"), [(16, 128, {}), (8, 64, {}), (16, 128, DILATION)])
def test_forward_and_backward_need_hardly_more_memory_than_their_results(
    heads: int, head_dim: int, options: dict[str, Any]
) -> None:
    config = SparsePatternConfig(block_size=128, sparsity_ratio=0.01)
    module = BlockSparseAttention(config, backend="hopper", **options)
    q, k, v = qkv(1, 131_072, heads, head_dim)
    grad_out = random(*q.shape)
    module(q[:, :, :1], k[:, :, :1], v[:, :, :1])  # makes the layout and its schedule
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    out = module(q, k, v)
    grads = torch.autograd.grad(out, (q, k, v), grad_out)
    torch.cuda.synchronize()
    above = torch.cuda.max_memory_allocated() - before
    results = sum(x.numel() * x.element_size() for x in (out, *grads)) + 4 * heads * 131_072  # and lse
    sums = 4 * q.numel() if head_dim == 64 else 0  # of the single pass
    assert above <= 1.05 * results + sums


@pytest.mark.parametrize("training", [False, True], ids=["forward", "forward_and_backward"])
@pytest.mark.parametrize(
    ("block_size", "causal", "options"), [(128, True, {}), (64, False, {}), (128, True, DILATION)]
)
def test_graph_gives_the_numbers_of_eager_mode(
    block_size: int, causal: bool, options: dict[str, Any], training: bool
) -> None:
    q, k, v = qkv(2, 1500, 8, 128, kv_heads=4)
    layout, grad_out = layout_of(1500, block_size, causal=causal), random(*q.shape)

    def work() -> Results:
        if training:
            return step(q, k, v, layout, grad_out, **options)
        with torch.no_grad():
            return block_sparse_attention(
                q, k, v, layout, is_causal=causal, return_lse=True, backend="hopper", **options
            )

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    for _ in range(2):
        with torch.no_grad():
            for x in (q, k, v, grad_out):
                x.copy_(torch.randn_like(x))
        expected = work()
        for x in captured:
            x.fill_(torch.nan)
        for _ in range(2):  # the second replay finds what the first one left
            graph.replay()
            torch.cuda.synchronize()
            for ours, theirs in zip(captured, expected, strict=True):
                assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("block_size", "options"), [(64, {}), (128, {}), (128, DILATION)])
def test_compiled_training_step_is_that_of_eager_mode(block_size: int, options: dict[str, Any]) -> None:
    torch.compiler.reset()
    config = SparsePatternConfig(block_size=block_size, sparsity_ratio=0.3)
    module = BlockSparseAttention(config, backend="hopper", **options)
    function = torch.compile(module, fullgraph=True)
    for length in (500, 1000):
        q, k, v = qkv(2, length, 4, 64)
        grad_out = random(*q.shape)
        found, expected = function(q, k, v, is_causal=True), module(q, k, v, is_causal=True)
        assert torch.equal(found, expected)
        for ours, theirs in zip(
            torch.autograd.grad(found, (q, k, v), grad_out),
            torch.autograd.grad(expected, (q, k, v), grad_out),
            strict=True,
        ):
            assert torch.equal(ours, theirs)


OPTIONS: dict[str, dict[str, Any]] = {
    "block_128": {"block_size": 128},
    "block_64": {"block_size": 64},
    "dilation_128": {"block_size": 128, "segment_lengths": [128, 256], "dilation_rates": [1, 4]},
    # which another backend serves
    "dilation_64": {"block_size": 64, "segment_lengths": [64, 256], "dilation_rates": [1, 4]},
}


def module_of(name: str, backend: str | None = None) -> BlockSparseAttention:
    options = dict(OPTIONS[name])
    config = SparsePatternConfig(block_size=options.pop("block_size"), sparsity_ratio=0.3)
    return BlockSparseAttention(config, backend=backend, **options)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_step_does_not_synchronise_with_the_host(name: str) -> None:
    module = module_of(name)
    q, k, v = qkv(2, 1000, 4, 64)

    def work() -> None:
        out = module(q, k, v, is_causal=True)
        out.backward(out.detach())

    work()  # compiles the kernels and builds the layout
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        work()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", OPTIONS)
def test_without_a_name_the_backend_is_chosen(name: str) -> None:
    q, k, v = qkv(1, 1000, 4, 128, kv_heads=2)
    module = module_of(name)
    layout = module.layout(1000, causal=True, device="cuda:0")
    assert explain_backends(q, k, v, layout, is_causal=True)["hopper"] is None
    by_name = module_of(name, "triton" if name == "dilation_64" else "hopper")
    with torch.no_grad():
        assert torch.equal(module(q, k, v, is_causal=True), by_name(q, k, v, is_causal=True))
    out = module(q, k, v, is_causal=True)
    grads = torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
    expected = by_name(q, k, v, is_causal=True)
    wanted = torch.autograd.grad(expected, (q, k, v), torch.ones_like(out))
    for ours, theirs in zip(grads, wanted, strict=True):
        assert torch.equal(ours, theirs)


def test_layout_on_the_cpu_serves_a_call_on_the_gpu() -> None:
    q, k, v = qkv(1, 1000, 4, 64)
    layout, grad_out = layout_of(1000, 64), random(*q.shape)
    assert_same(step(q, k, v, layout.to("cpu"), grad_out), step(q, k, v, layout, grad_out))
