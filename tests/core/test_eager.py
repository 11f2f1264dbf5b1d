"""Calls that go straight to the backend, without the dispatcher, give what the operators give; who looks, sees operators."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dilated_attention_pytorch import (
    BlockLayout,
    BlockSparseAttention,
    SparsePatternConfig,
    block_sparse_attention,
    eager,
    ops,
)
from dilated_attention_pytorch.backends.registry import backend_named
from dilated_attention_pytorch.config import TokenDilation
from dilated_attention_pytorch.functional import make_problem
from dilated_attention_pytorch.op_library import NAMESPACE
from tests.core.attention_cases import Case, make_call
from tests.core.backends.hopper.cases import work_order
from tests.core.op_recorder import OpRecorder

SMALL = SparsePatternConfig(block_size=16, sparsity_ratio=0.5)
DILATION = TokenDilation((16, 32), (1, 2))
BACKENDS = {"cpu": (), "triton": pytest.mark.interpreter}
CASES = [
    Case("plain", 40, head_dim=16, block_size=16, is_causal=True),
    Case("gqa", 20, 33, batch=2, heads=4, kv_heads=2, head_dim=16, v_head_dim=8, block_size=16, empty_rows=(1,)),
    Case("bias_shared", 24, head_dim=16, block_size=16, bias=("n",), ratio=1.0),
    Case("bias_per_head", 24, batch=2, head_dim=16, block_size=16, bias=(2, "n"), ratio=1.0),
    Case("bias_per_batch", 24, batch=2, head_dim=16, block_size=16, bias=(2, 1, "n"), ratio=1.0),
    Case("bias_full", 24, batch=2, head_dim=16, block_size=16, bias=(2, 2, "n"), ratio=1.0),
    Case(
        "all_options", 40, batch=2, head_dim=16, block_size=16, bias=(1, "n"), padding=0.2, kv_lengths=(40, 17),
        dropout_p=0.3, segment_lengths=(16, 32), dilation_rates=(1, 2), is_causal=True, ratio=0.9,
    ),
]  # fmt: skip


def random_qkv(requires_grad: bool = True) -> list[Tensor]:
    return [torch.randn(1, 40, 2, 16, requires_grad=requires_grad) for _ in range(3)]


def layout() -> BlockLayout:
    return BlockLayout.from_config(SMALL, 40)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of the two ways a call takes, one word per call."""
    ways: list[str] = []

    def spy(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*args: Any, **kwargs: Any) -> Any:
            ways.append(name)
            return function(*args, **kwargs)

        return noting

    monkeypatch.setattr(ops, "attention", spy("operator", ops.attention))
    monkeypatch.setattr(eager.EagerAttention, "apply", spy("eager", eager.EagerAttention.apply))
    return ways


# ---- the same numbers


@pytest.mark.parametrize(
    ("case", "backend", "used"),
    [  # every pair of two of the three
        pytest.param(case, backend, used, marks=marks, id=f"{case.name}-{backend}-{used}")
        for i, case in enumerate(CASES)
        for j, used in enumerate(("out", "lse", "both"))
        for k, (backend, marks) in enumerate(BACKENDS.items())
        if (i + j + k) % 2 == 0
    ],
)
def test_both_ways_give_the_same_to_the_bit(case: Case, backend: str, used: str) -> None:
    call = make_call(case, torch.float32)
    tensors: dict[str, Any] = dict(call.tensors)
    bias = tensors.pop("block_bias", None)
    problem = make_problem(**tensors, layout=call.layout, block_bias=bias, **call.kwargs)
    leaves = list(call.tensors.values())
    grad_lse = torch.randn(case.batch, case.heads, case.q_len)
    results = []
    for attend in (
        lambda problem, backend: eager.run_attention(problem, backend_named(backend)),
        lambda problem, backend: ops.attention(*ops.op_args(problem, backend)),
    ):
        out, lse = attend(problem, backend)
        outputs = {"out": [out], "lse": [lse], "both": [out, lse]}[used]
        grads = {"out": [call.grad_out], "lse": [grad_lse], "both": [call.grad_out, grad_lse]}[used]
        found = torch.autograd.grad(outputs, leaves, grads, allow_unused=True)
        results.append((out, lse, *found))
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_gradient_of_a_bias_comes_in_its_shape_and_type() -> None:
    q, k, v = random_qkv()
    n = layout().num_active_blocks
    for shape in ((n,), (2, n), (1, 1, n), (1, 2, n)):
        bias = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        out = block_sparse_attention(q, k, v, layout(), block_bias=bias)
        (grad,) = torch.autograd.grad(out.square().sum(), bias)
        assert (grad.shape, grad.dtype) == (bias.shape, bias.dtype)
        assert grad.any()


def test_only_a_bias_that_asks_is_enough() -> None:
    q, k, v = random_qkv(requires_grad=False)
    bias = torch.randn(layout().num_active_blocks, requires_grad=True)
    block_sparse_attention(q, k, v, layout(), block_bias=bias).square().sum().backward()
    assert bias.grad is not None
    assert bias.grad.any()


def test_backward_twice_over_a_kept_graph_gives_the_same() -> None:
    q, k, v = random_qkv()
    out = block_sparse_attention(q, k, v, layout())
    grad = torch.randn_like(out)
    first = torch.autograd.grad(out, (q, k, v), grad, retain_graph=True)
    for ours, theirs in zip(first, torch.autograd.grad(out, (q, k, v), grad), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(out, q, grad)


# ---- what autograd is owed


def test_second_derivatives_are_refused_on_both_ways() -> None:
    q, k, v = random_qkv()
    problem = make_problem(q, k, v, layout())
    through_operator, _ = ops.attention(*ops.op_args(problem, "cpu"))
    for out in (eager.run_attention(problem, backend_named("cpu"))[0], through_operator):
        (first,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiates once"):
            first.square().sum().backward()


def test_changing_an_input_before_the_backward_is_refused() -> None:
    leaf, k, v = random_qkv()
    q = leaf * 1.0
    out = block_sparse_attention(q, k, v, layout())
    q.detach().add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_graph_dies_with_its_last_user() -> None:
    gc.collect()
    gc.disable()  # nothing may wait for the collector of cycles
    try:
        q, k, v = (x * 1.0 for x in random_qkv())
        bias = torch.randn(layout().num_active_blocks, requires_grad=True)
        out = block_sparse_attention(q, k, v, layout(), block_bias=bias)
        alive = [weakref.ref(x) for x in (q, k, v, bias, out)]
        del q, k, v, bias, out
        assert [x() for x in alive] == [None] * 5
    finally:
        gc.enable()


def test_hooks_on_saved_tensors_see_them_all() -> None:
    q, k, v = random_qkv()
    packed = []

    def pack(x: Tensor) -> Tensor:
        packed.append(x.shape)
        return x.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = block_sparse_attention(q, k, v, layout())
    assert sorted(packed) == sorted([*[q.shape] * 4, torch.Size([1, 2, 40])])  # q, k, v, out and lse
    found = torch.autograd.grad(out.sum(), (q, k, v))
    wanted = torch.autograd.grad(block_sparse_attention(q, k, v, layout()).sum(), (q, k, v))
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours, theirs)


# ---- which way is taken


def test_plain_calls_do_not_pass_the_dispatcher(ran: list[str]) -> None:
    q, k, v = random_qkv()
    block_sparse_attention(q, k, v, layout())
    assert ran == ["eager"]
    block_sparse_attention(torch.nn.Parameter(q.detach()), k, v, layout())
    assert ran == ["eager"] * 2


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_only_the_forward_runs(mode: Callable[[], Any], ran: list[str]) -> None:
    q, k, v = random_qkv()
    with mode():
        out = block_sparse_attention(q, k, v, layout())
    assert ran == []
    assert not out.requires_grad
    assert torch.equal(out, block_sparse_attention(q, k, v, layout()))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_dispatch_mode_sees_the_operators(requires_grad: bool) -> None:
    q, k, v = random_qkv(requires_grad)
    with OpRecorder() as recorded:
        out = block_sparse_attention(q, k, v, layout())
        if requires_grad:
            out.sum().backward()
    names = [name for name in recorded.names if name.startswith(NAMESPACE)]
    operators = ["attention", "attention_backward"] if requires_grad else ["attention"]
    assert names == [f"{NAMESPACE}.{operator}.default" for operator in operators]


def test_fake_tensors_go_through_the_operators(ran: list[str]) -> None:
    module = BlockSparseAttention(SMALL)
    module.layout(40)
    with FakeTensorMode(allow_non_fake_inputs=True):
        q = torch.empty(1, 40, 2, 16, requires_grad=True)
        out = module(q, q, q)
        (grad,) = torch.autograd.grad(out.sum(), q)
    assert ran == ["operator"]
    assert out.shape == grad.shape == (1, 40, 2, 16)


def test_subclasses_of_tensors_go_through_the_operators(ran: list[str]) -> None:
    class Mine(Tensor):
        pass

    q, k, v = random_qkv(requires_grad=False)
    out = block_sparse_attention(q.as_subclass(Mine), k, v, layout())
    assert ran == ["operator"]
    assert torch.equal(out, block_sparse_attention(q, k, v, layout()))


def square_loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return block_sparse_attention(q, k, v, layout()).square().sum()


@pytest.mark.parametrize("transform", [torch.func.grad, torch.vmap])
def test_function_transforms_go_through_the_operators(transform: Any, ran: list[str]) -> None:
    # PyTorch has no rule by which it could transform them: an error, or the right numbers, never something else
    many = [torch.randn(3, 1, 40, 2, 16) for _ in range(3)]
    tensors = many if transform is torch.vmap else [x[0] for x in many]
    try:
        found = transform(square_loss)(*tensors)
    except RuntimeError as error:
        if "functorch" not in str(error) and "vmap" not in str(error):
            raise
    else:
        if transform is torch.vmap:
            wanted = torch.stack([square_loss(*each) for each in zip(*many)])
        else:
            tensors[0].requires_grad_()
            (wanted,) = torch.autograd.grad(square_loss(*tensors), tensors[0])
        torch.testing.assert_close(found, wanted)
    assert ran[0] == "operator"


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_torch_jit_trace_goes_through_the_operators(ran: list[str]) -> None:
    its_layout = layout()

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return block_sparse_attention(q, k, v, its_layout)

    traced = torch.jit.trace(call, random_qkv(requires_grad=False))
    assert set(ran) == {"operator"}
    other = random_qkv(requires_grad=False)
    torch.testing.assert_close(traced(*other), call(*other))


def test_forward_mode_is_refused_and_its_tangent_not_dropped() -> None:
    q, k, v = random_qkv(requires_grad=False)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(k, torch.ones_like(k))
        with pytest.raises(RuntimeError, match="forward-mode AD is not supported, and k has a tangent"):
            block_sparse_attention(q, dual, v, layout())
        assert block_sparse_attention(q, k, v, layout()).shape == q.shape


def test_backward_in_a_mode_is_an_operator(ran: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    tensors = random_qkv()
    out = block_sparse_attention(*tensors, layout())
    wanted = torch.autograd.grad(out.sum(), tensors, retain_graph=True)
    with Watching():
        found = torch.autograd.grad(out.sum(), tensors)
    assert torch.ops.dilated_attention_pytorch.attention_backward.default in seen
    assert ran == ["eager"]
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b)


# ---- what is kept is good for every later call


def in_fake_mode(module: BlockSparseAttention, its_layout: BlockLayout) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        q = torch.empty(1, 40, 2, 16)
        module(q, q, q)
        work_order(its_layout)
        its_layout.lists(DILATION)


def in_inference_mode(module: BlockSparseAttention, its_layout: BlockLayout) -> None:
    with torch.inference_mode():
        q = torch.zeros(1, 40, 2, 16)
        module(q, q, q)
        work_order(its_layout)
        its_layout.lists(DILATION)


def in_a_transform(module: BlockSparseAttention, its_layout: BlockLayout) -> None:
    def call(q: Tensor) -> Tensor:
        work_order(its_layout)
        its_layout.lists(DILATION)
        module.layout(40)
        return q.sum()

    torch.func.grad(call)(torch.zeros(1, 40, 2, 16))


@pytest.mark.parametrize("surrounded", [in_fake_mode, in_inference_mode, in_a_transform])
def test_first_use_inside_of_a_mode_spoils_no_later_call(surrounded: Any) -> None:
    module = BlockSparseAttention(SMALL, segment_lengths=[16, 32], dilation_rates=[1, 2])
    its_layout = layout()
    surrounded(module, its_layout)
    rows, cols = its_layout.lists(DILATION)
    of_module = module.layout(40)
    kept = [work_order(its_layout), rows.indptr, cols.block_ids, of_module.row_lists.indices]
    assert [(type(x), x.is_inference()) for x in kept] == [(Tensor, False)] * 4
    assert torch.equal(kept[0], work_order(layout()))
    assert kept[0].data_ptr() != 0
    q, k, v = random_qkv()
    ops.attention(*ops.op_args(make_problem(q, k, v, of_module), "cpu"))[0].sum().backward()
    assert q.grad is not None


def test_compiled_calls_are_operators() -> None:
    torch.compiler.reset()
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    module = BlockSparseAttention(SMALL)
    q, k, v = random_qkv()
    found = torch.compile(module, fullgraph=True, backend=backend)(q, k, v)
    (graph,) = graphs
    targets = [str(node.target) for node in graph.graph.nodes]
    assert sum(f"{NAMESPACE}.attention" in target for target in targets) == 1
    assert torch.equal(found, module(q, k, v))
