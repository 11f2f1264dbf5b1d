"""Gradients by finite differences, and what PyTorch does with the operators: compile, export, AMP, checkpointing."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dilated_attention_pytorch import (
    BlockLayout,
    BlockSparseAttention,
    SparsePatternConfig,
    block_sparse_attention,
    ops,
)
from dilated_attention_pytorch.functional import make_problem
from dilated_attention_pytorch.op_library import NAMESPACE
from tests.core.attention_cases import BY_NAME, Case, make_call, run

BACKENDS = ["cpu", pytest.param("triton", marks=pytest.mark.interpreter)]
SMALL = SparsePatternConfig(block_size=16, sparsity_ratio=0.5)

# Small enough for one forward per input element; every option is in one of them.
GRADCHECKED = [
    Case("plain", 20, heads=1, head_dim=3, block_size=16),
    Case("causal_chunk", 7, 37, heads=1, head_dim=3, block_size=16, is_causal=True),
    Case("cross_gqa", 5, 18, heads=4, kv_heads=2, head_dim=2, v_head_dim=3, block_size=16, softmax_scale=0.7),
    Case("empty_rows", 34, heads=1, head_dim=2, block_size=16, empty_rows=(1,), bias=("n",)),
    Case("padding", 20, batch=2, heads=1, head_dim=2, block_size=16, padding=0.4, kv_lengths=(20, 9)),
    Case("bias", 5, 33, batch=2, head_dim=2, kv_heads=1, block_size=16, bias=(2, 1, "n"), ratio=1.0),
    Case("bias_per_head", 18, head_dim=2, block_size=16, layout_heads=2, bias=(2, "n"), is_causal=True, ratio=1.0),
    Case("dilation", 34, heads=1, head_dim=2, block_size=16, segment_lengths=(16, 32), dilation_rates=(1, 4), ratio=1.0),
    Case("dropout", 20, heads=1, head_dim=3, block_size=16, dropout_p=0.4, is_causal=True),
]  # fmt: skip


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("case", GRADCHECKED, ids=lambda case: case.name)
def test_gradients_are_those_of_finite_differences(case: Case, backend: str) -> None:
    call = make_call(case, torch.float64)
    names = list(call.tensors)

    def attend(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)  # the same dropout every time
        out, lse = block_sparse_attention(
            **dict(zip(names, tensors, strict=True)),
            layout=call.layout,
            return_lse=True,
            backend=backend,
            **call.kwargs,
        )
        return out, torch.where(lse == -torch.inf, 0.0, lse)  # differences of infinities are NaN

    assert torch.autograd.gradcheck(attend, tuple(call.tensors.values()))


@pytest.mark.parametrize("used", ["out", "lse", "both"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_flows_through_out_and_lse_alone_and_together(backend: str, used: str) -> None:
    def grads(backend: str) -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        q, k, v = (torch.randn(1, 40, 2, 16, requires_grad=True) for _ in range(3))
        layout = BlockLayout.from_config(SMALL, 40)
        out, lse = block_sparse_attention(q, k, v, layout, return_lse=True, backend=backend)
        loss = {"out": out.square().sum(), "lse": lse.square().sum()}
        chosen = loss["out"] + loss["lse"] if used == "both" else loss[used]
        return torch.autograd.grad(chosen, (q, k, v), allow_unused=True, materialize_grads=True)

    for found, expected in zip(grads(backend), grads("reference"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_tensors_that_ask_get_a_gradient(backend: str) -> None:
    q, k, v = (torch.randn(1, 40, 2, 16) for _ in range(3))
    k.requires_grad_()
    out = block_sparse_attention(q, k, v, BlockLayout.from_config(SMALL, 40), backend=backend)
    out.sum().backward()
    assert q.grad is None
    assert v.grad is None
    assert k.grad is not None
    assert k.grad.shape == k.shape


def test_second_derivatives_are_refused_not_wrong() -> None:
    q = torch.randn(1, 40, 2, 16, requires_grad=True)
    out = block_sparse_attention(q, q, q, BlockLayout.from_config(SMALL, 40))
    (first,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiates once"):
        first.square().sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", [torch.sum, lambda out: out.square().sum()], ids=["linear", "square"])
@pytest.mark.parametrize("by_backward", [False, True])
def test_penalty_on_a_gradient_is_refused_not_left_out(backend: str, loss: Any, by_backward: bool) -> None:
    q, k, v = (torch.randn(1, 40, 2, 16, requires_grad=True) for _ in range(3))
    total = loss(block_sparse_attention(q, k, v, BlockLayout.from_config(SMALL, 40), backend=backend))
    (first,) = torch.autograd.grad(total, q, create_graph=True)
    assert first.requires_grad
    with_penalty = total + first.square().sum()
    again = with_penalty.backward if by_backward else lambda: torch.autograd.grad(with_penalty, q)
    with pytest.raises(RuntimeError, match="differentiates once"):
        again()


def test_reference_has_second_derivatives() -> None:
    q = torch.randn(1, 40, 2, 16, requires_grad=True)
    out = block_sparse_attention(q, q, q, BlockLayout.from_config(SMALL, 40), backend="reference")
    (first,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), q)
    assert second.abs().max() > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_tensors_that_are_minus_their_memory(backend: str) -> None:
    """Views that the dispatcher negates when they are read: of conjugates, and these."""
    layout = BlockLayout.from_config(SMALL, 40)
    tensors = [torch.randn(1, 40, 2, 16) for _ in range(3)]
    grad = torch.randn(1, 40, 2, 16)

    def results(q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        out = block_sparse_attention(*leaves, layout, backend=backend)
        return [out, *torch.autograd.grad(out, leaves, grad)]

    for place in range(4):
        plain = [*tensors, grad]
        plain[place] = -plain[place]
        results(*plain)  # leaves a plan that the next call must not take
        views = [*tensors, grad]
        views[place] = torch._neg_view(views[place])
        for found, expected in zip(results(*views), results(*plain), strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["65_causal", "dropout_chunk", "bias_block_16"])
def test_two_runs_are_equal_to_the_bit(name: str, backend: str) -> None:
    case = BY_NAME[name]
    call = make_call(case, torch.float32)
    first, second = run(case, call, backend), run(case, call, backend)
    for key in first:
        assert torch.equal(first[key], second[key]), key


# ---- torch.library

OPCHECKED = [
    Case("causal", 33, head_dim=16, block_size=16, is_causal=True),
    Case("empty_rows_gqa", 33, 40, heads=4, kv_heads=2, head_dim=16, v_head_dim=8, block_size=16, empty_rows=(1,)),
    Case(
        "all_options", 20, batch=2, heads=1, head_dim=16, block_size=16, bias=(1, "n"), padding=0.2,
        kv_lengths=(20, 17), dropout_p=0.3, segment_lengths=(16, 32), dilation_rates=(1, 2), is_causal=True,
        lse_gradient=True,
    ),
]  # fmt: skip


def op_arguments(case: Case, dtype: torch.dtype, backend: str) -> ops.OpArgs:
    call = make_call(case, dtype)
    q, k, v, *bias = call.tensors.values()
    problem = make_problem(q, k, v, call.layout, block_bias=bias[0] if bias else None, **call.kwargs)
    return ops.op_args(problem, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", OPCHECKED, ids=lambda case: case.name)
def test_opcheck_of_the_forward_operator(case: Case, backend: str) -> None:
    torch.library.opcheck(ops.attention, op_arguments(case, torch.float32, backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", OPCHECKED, ids=lambda case: case.name)
def test_opcheck_of_the_backward_operator(case: Case, backend: str) -> None:
    arguments = [
        x.detach() if isinstance(x, Tensor) else x for x in op_arguments(case, torch.float32, backend)
    ]
    out, lse = ops.attention(*arguments)
    grad_lse = torch.randn_like(lse) if case.lse_gradient else None
    torch.library.opcheck(ops.attention_backward, (out, lse, torch.randn_like(out), grad_lse, *arguments))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_opcheck_of_other_dtypes(dtype: torch.dtype) -> None:
    torch.library.opcheck(ops.attention, op_arguments(OPCHECKED[0], dtype, "cpu"))


# ---- torch.compile and torch.export


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Without graph breaks; the backend changes the code that surrounds our operator, not the operator."""
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager", **options)


def random_qkv(length: int, requires_grad: bool = False, kv_heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    q = torch.randn(1, length, 2, 16, requires_grad=requires_grad)
    k, v = (torch.randn(1, length, kv_heads, 16, requires_grad=requires_grad) for _ in range(2))
    return q, k, v


@pytest.mark.parametrize("backend", BACKENDS)
def test_function_compiles_to_one_graph(backend: str) -> None:
    layout = BlockLayout.from_config(SMALL, 40, causal=True)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = block_sparse_attention(
            q * 2.0, k, v, layout, is_causal=True, return_lse=True, backend=backend
        )
        return out + 1.0, lse

    tensors = random_qkv(40, requires_grad=True)
    results = []
    for function in (attend, compiled(attend)):
        out, lse = function(*tensors)
        grads = torch.autograd.grad(out.square().sum() + lse.sum(), tensors)
        results.append((out, lse, *grads))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_function_with_every_option_compiles_to_one_graph() -> None:
    case = BY_NAME["everything"]
    call = make_call(case, torch.float32)
    q, k, v, bias = call.tensors.values()

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, kv_lengths: Tensor, padding: Tensor) -> Tensor:
        kwargs = {**call.kwargs, "kv_lengths": kv_lengths, "key_padding_mask": padding, "dropout_p": 0.0}
        return block_sparse_attention(q, k, v, call.layout, block_bias=bias, **kwargs)

    others = (call.kwargs["kv_lengths"], call.kwargs["key_padding_mask"])
    # First: the layout has made no lists for the dilation yet.
    found = compiled(attend)(q, k, v, bias, *others)
    expected = attend(q, k, v, bias, *others)
    torch.testing.assert_close(found, expected)
    leaves = (q, k, v, bias)
    for ours, theirs in zip(
        torch.autograd.grad(found.square().sum(), leaves),
        torch.autograd.grad(expected.square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_compiled_call_takes_other_numbers() -> None:
    """From the second value on they are symbols to the tracer."""
    layout = BlockLayout.from_config(SMALL, 40)

    def attend(q: Tensor, scale: float, is_causal: bool) -> Tensor:
        return block_sparse_attention(q, q, q, layout, softmax_scale=scale, is_causal=is_causal)

    traced = compiled(attend)
    for head_dim in (16, 32, 8):
        for scale, is_causal in ((0.1, True), (0.2, False), (0.3, 1), (0.4, 0)):
            q = torch.randn(1, 40, 2, head_dim)
            torch.testing.assert_close(traced(q, scale, is_causal), attend(q, scale, bool(is_causal)))


@pytest.mark.parametrize("dynamic", [False, None, True], ids=["static", "automatic", "dynamic"])
def test_module_compiles_and_serves_other_lengths(dynamic: bool | None) -> None:
    module = BlockSparseAttention(SMALL, [16, 32], [1, 2])
    function = compiled(module, dynamic=dynamic)
    for length in (40, 33, 100):
        q, k, v = random_qkv(length, requires_grad=True)
        found, expected = function(q, k, v, is_causal=True), module(q, k, v, is_causal=True)
        torch.testing.assert_close(found, expected)
        for ours, theirs in zip(
            torch.autograd.grad(found.sin().sum(), (q, k, v)),
            torch.autograd.grad(expected.sin().sum(), (q, k, v)),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs)


def test_compiled_module_draws_new_dropout_in_every_call() -> None:
    module = BlockSparseAttention(SMALL, dropout=0.5)
    function = compiled(module)
    q, k, v = random_qkv(40)
    first, second = function(q, k, v), function(q, k, v)
    assert not torch.equal(first, second)
    module.eval()
    torch.testing.assert_close(compiled(module)(q, k, v), module(q, k, v))


@pytest.mark.parametrize("length", [40, 48])
def test_compiled_results_have_the_strides_of_their_fakes(length: int) -> None:
    """A graph is compiled for them: with fewer kv heads the CPU makes them in another order."""
    module = BlockSparseAttention(SMALL)
    q, k, v = (torch.randn(2, length, heads, 16, requires_grad=True) for heads in (4, 2, 2))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return module(q, k, v, is_causal=True).flatten(2) * 2

    torch.testing.assert_close(compiled(attend)(q, k, v), attend(q, k, v))


@pytest.mark.slow
def test_inductor_compiles_the_surroundings() -> None:
    torch.compiler.reset()
    module = BlockSparseAttention(SMALL)
    q, k, v = random_qkv(40, requires_grad=True)

    def block(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return module(q.sin(), k, v, is_causal=True).relu()

    try:
        found = torch.compile(block, fullgraph=True)(q, k, v)
    except torch._inductor.exc.InvalidCxxCompiler:
        pytest.skip("no C++ compiler")
    torch.testing.assert_close(found, block(q, k, v))
    for ours, theirs in zip(
        torch.autograd.grad(found.square().sum(), (q, k, v)),
        torch.autograd.grad(block(q, k, v).square().sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


class Layer(torch.nn.Module):
    """A linear map before the attention and one after it."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.into = torch.nn.Linear(32, 96)
        self.attention = BlockSparseAttention(SMALL, **options)
        self.out = torch.nn.Linear(32, 32)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        q, k, v = self.into(x).unflatten(2, (3, 2, 16)).unbind(2)
        return self.out(self.attention(q, k, v, is_causal=True, key_padding_mask=padding).flatten(2))


@pytest.mark.parametrize("strict", [False, True], ids=["non_strict", "strict"])
def test_exported_program_gives_the_same_numbers(strict: bool) -> None:
    layer = Layer().eval()
    x, padding = torch.randn(2, 40, 32), torch.rand(2, 40) < 0.2
    program = torch.export.export(layer, (x, padding), strict=strict)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert any(f"{NAMESPACE}.attention" in target for target in targets)
    other, other_padding = torch.randn(2, 40, 32), torch.rand(2, 40) < 0.2
    torch.testing.assert_close(program.module()(other, other_padding), layer(other, other_padding))


# ---- autocast and activation checkpointing


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_its_type_and_returns_gradients_in_theirs(dtype: torch.dtype) -> None:
    q, k, v = random_qkv(40, requires_grad=True)
    layout = BlockLayout.from_config(SMALL, 40)
    with torch.autocast("cpu", dtype):
        out = block_sparse_attention(q, k, v, layout, is_causal=True)
    grads = torch.autograd.grad(out.float().square().sum(), (q, k, v))
    narrow = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
    expected = block_sparse_attention(*narrow, layout, is_causal=True)
    wanted = torch.autograd.grad(expected.float().square().sum(), narrow)
    assert out.dtype == dtype
    assert torch.equal(out, expected)
    for ours, theirs in zip(grads, wanted, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs.float())


def test_autocast_brings_mixed_types_together() -> None:
    q, k, v = random_qkv(40)
    layout = BlockLayout.from_config(SMALL, 40)
    with torch.autocast("cpu", torch.bfloat16):
        out = block_sparse_attention(q, k.bfloat16(), v, layout)
    assert torch.equal(out, block_sparse_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), layout))


def test_layer_trains_under_autocast() -> None:
    layer = Layer()
    with torch.autocast("cpu", torch.bfloat16):
        loss = layer(torch.randn(2, 40, 32)).float().square().mean()
    loss.backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()


@pytest.mark.parametrize("reentrant", [False, True], ids=["non_reentrant", "reentrant"])
def test_activation_checkpointing_draws_the_same_dropout_again(reentrant: bool) -> None:
    layer = Layer(dropout=0.5)
    x = torch.randn(2, 40, 32, requires_grad=True)

    def grads(attend: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        torch.manual_seed(3)
        x.grad = None
        layer.zero_grad()
        attend(x).square().sum().backward()
        return x.grad, *(parameter.grad for parameter in layer.parameters())

    plain = grads(layer)
    checkpointed = grads(lambda x: checkpoint(layer, x, use_reentrant=reentrant))
    for ours, theirs in zip(checkpointed, plain, strict=True):
        assert torch.equal(ours, theirs)


# ---- modules as torch expects them


def test_module_survives_copy_and_pickle() -> None:
    module = BlockSparseAttention(SMALL, dropout=0.1, softmax_scale=0.3).eval()
    q, k, v = random_qkv(40)
    expected = module(q, k, v)  # fills the cache of layouts, which is not copied
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other.sparse_config == SMALL
        assert torch.equal(other(q, k, v), expected)
        torch.testing.assert_close(compiled(other)(q, k, v), expected)
    assert module.state_dict() == {}


def test_gradient_of_an_expanded_output_gradient() -> None:
    # sum().backward() hands over a gradient with stride 0 everywhere
    for backend in ("cpu", "reference"):
        q, k, v = (x.double() for x in random_qkv(40))
        v.requires_grad_()
        layout = BlockLayout.from_config(SMALL, 40)
        block_sparse_attention(q, k, v, layout, backend=backend).sum().backward()
        # every query hands out weights that sum to 1
        torch.testing.assert_close(v.grad.sum(1), torch.full((1, 2, 16), 40.0, dtype=torch.float64))
