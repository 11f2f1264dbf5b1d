"""A cached call gives what the call gave when it was resolved, and a call that differs from it in anything is checked."""

from __future__ import annotations

import copy
import dataclasses
import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dilated_attention_pytorch import (
    BlockLayout,
    BlockSparseAttention,
    SparsePatternConfig,
    _torch_internals,
    block_sparse_attention,
    eager,
    functional,
    ops,
)
from dilated_attention_pytorch.backends.hopper import HOPPER
from dilated_attention_pytorch.backends.registry import backend_named
from dilated_attention_pytorch.layout.cache import LAYOUTS
from dilated_attention_pytorch.op_library import NAMESPACE
from tests.core.op_recorder import OpRecorder

LENGTH = 40
CONFIG = SparsePatternConfig(block_size=16, sparsity_ratio=0.5)


def qkv(requires_grad: bool = False, heads: int = 2, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(1, LENGTH, heads, 16, dtype=dtype).requires_grad_(requires_grad) for _ in range(3)]


def layout(ratio: float = 0.5) -> BlockLayout:
    return BlockLayout.from_config(dataclasses.replace(CONFIG, sparsity_ratio=ratio), LENGTH)


@pytest.fixture(autouse=True)
def no_layouts_of_other_tests() -> None:
    """Modules share their layouts, and with them the calls that another test may have made."""
    LAYOUTS.clear()


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A word for every call that was checked."""
    seen: list[str] = []
    real = functional.check_call

    def noting(*args: Any, **kwargs: Any) -> Any:
        seen.append("checked")
        return real(*args, **kwargs)

    monkeypatch.setattr(functional, "check_call", noting)
    return seen


def served(its_layout: BlockLayout, tensors: list[Tensor] | None = None, **options: Any) -> list[Tensor]:
    """The tensors of a call that is cached from now on."""
    tensors = qkv() if tensors is None else tensors
    block_sparse_attention(*tensors, its_layout, **options)
    assert its_layout.calls
    return tensors


# ---- the same numbers


def test_second_call_is_not_checked_and_uses_its_own_values(checks: list[str]) -> None:
    its_layout = layout()
    served(its_layout)
    for _ in range(3):
        tensors = qkv()
        found = block_sparse_attention(*tensors, its_layout)
        wanted = block_sparse_attention(*tensors, its_layout, backend="reference")
        torch.testing.assert_close(found, wanted)
    assert checks == ["checked"] * (1 + 3)  # the reference is never cached


@pytest.mark.parametrize("requires_grad", [False, True])
def test_forward_that_the_backend_bound_is_called(
    requires_grad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def bound(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(q)
        return torch.full_like(v, 7.0), torch.zeros(1, 2, LENGTH)

    monkeypatch.setattr(type(backend_named("cpu")), "bind", lambda self, problem: bound)
    its_layout = layout()
    served(its_layout, qkv(requires_grad))
    tensors = qkv(requires_grad)
    out = block_sparse_attention(*tensors, its_layout)
    assert (out == 7.0).all()
    assert seen[0] is tensors[0] or seen[0].data_ptr() == tensors[0].data_ptr()
    assert out.requires_grad == requires_grad


def test_another_layout_of_the_same_shape_is_another_call(checks: list[str]) -> None:
    first, second = layout(0.5), layout(1.0)
    tensors = served(first)
    found = block_sparse_attention(*tensors, second)
    assert checks == ["checked"] * 2
    assert torch.equal(found, block_sparse_attention(*tensors, layout(1.0)))
    assert not torch.equal(found, block_sparse_attention(*tensors, first))


def test_lists_changed_in_place_are_read_anew() -> None:
    its_layout = layout()
    tensors = served(its_layout)
    its_layout.row_lists.indices.fill_(0)
    found = block_sparse_attention(*tensors, its_layout)
    fresh = BlockLayout(its_layout.grid, 1, its_layout.row_lists, its_layout.col_lists)
    assert torch.equal(found, block_sparse_attention(*tensors, fresh))


OPTIONS: list[dict[str, Any]] = [
    {},
    {"is_causal": True},
    {"softmax_scale": 0.5},
    {"softmax_scale": 0.25},
    {"softmax_scale": 1},
    {"backend": "cpu"},
    {"segment_lengths": [16], "dilation_rates": [1]},
    {"segment_lengths": (16, 32), "dilation_rates": (1, 2)},
    {"segment_lengths": (16, 32), "dilation_rates": (1, 4)},
    {"kv_lengths": torch.tensor([17])},
    {"key_padding_mask": torch.arange(LENGTH)[None] > 20},
    {"block_bias": torch.linspace(-1, 1, layout().num_active_blocks)},
]


@pytest.mark.parametrize("return_lse", [False, True])
def test_options_do_not_share_a_cached_call(return_lse: bool) -> None:
    shared = layout()
    tensors = qkv()
    for options in [*OPTIONS, *reversed(OPTIONS), *OPTIONS]:
        found = block_sparse_attention(*tensors, shared, return_lse=return_lse, **options)
        wanted = block_sparse_attention(*tensors, layout(), return_lse=return_lse, **options)
        for ours, theirs in zip(found, wanted, strict=True):
            assert torch.equal(ours, theirs), options


def test_lse_comes_and_goes_with_each_call() -> None:
    its_layout = layout()
    tensors = served(its_layout)
    out, lse = block_sparse_attention(*tensors, its_layout, return_lse=True)
    assert lse.shape == (1, 2, LENGTH)
    assert torch.equal(block_sparse_attention(*tensors, its_layout), out)


def test_dropout_is_drawn_every_time() -> None:
    its_layout = layout()
    tensors = served(its_layout)
    first, second = (block_sparse_attention(*tensors, its_layout, dropout_p=0.5) for _ in range(2))
    assert not torch.equal(first, second)


def test_a_scale_that_can_change_is_not_cached() -> None:
    its_layout, scale = layout(), torch.tensor(0.5)
    tensors = qkv()
    block_sparse_attention(*tensors, its_layout, softmax_scale=scale)
    scale.fill_(0.125)
    found = block_sparse_attention(*tensors, its_layout, softmax_scale=scale)
    assert torch.equal(found, block_sparse_attention(*tensors, layout(), softmax_scale=0.125))


def test_strides_offsets_types_and_heads_are_other_calls(checks: list[str]) -> None:
    its_layout = layout()
    q, k, v = served(its_layout)
    strided = q.transpose(1, 2).contiguous().transpose(1, 2)
    moved = torch.cat([torch.zeros(1), q.flatten()])[1:].view_as(q)
    others = [
        [strided, k, v],
        [moved, k, v],
        qkv(dtype=torch.float64),
        qkv(heads=4),
        [q, k[:, :, :1], v[:, :, :1]],
    ]
    for tensors in others:
        n_checks = len(checks)
        found = block_sparse_attention(*tensors, its_layout)
        assert len(checks) == n_checks + 1
        assert torch.equal(found, block_sparse_attention(*tensors, layout()))


def test_module_finds_cached_calls_but_for_weights(checks: list[str]) -> None:
    module = BlockSparseAttention(CONFIG, segment_lengths=[2048], dilation_rates=[1])
    tensors = qkv()
    wanted = module(*tensors)
    assert torch.equal(module(*tensors), wanted)
    assert checks == ["checked"]
    out, weights = module(*tensors, return_attention_weights=True)
    assert torch.equal(out, wanted)
    assert weights.shape == (1, 2, LENGTH, LENGTH)


# ---- gradients


def test_gradients_flip_with_every_call() -> None:
    its_layout, plain, leaves = layout(), qkv(), qkv(requires_grad=True)
    with torch.no_grad():
        for ours, theirs in zip(plain, leaves, strict=True):
            ours.copy_(theirs)
    wanted = torch.autograd.grad(block_sparse_attention(*leaves, layout()).square().sum(), leaves)
    for _ in range(3):
        assert not block_sparse_attention(*plain, its_layout).requires_grad
        with torch.no_grad():
            assert not block_sparse_attention(*leaves, its_layout).requires_grad
        with torch.inference_mode():
            assert block_sparse_attention(*leaves, its_layout).is_inference()
        for needing in range(3):
            mixed = [leaves[i] if i == needing else plain[i] for i in range(3)]
            (found,) = torch.autograd.grad(
                block_sparse_attention(*mixed, its_layout).square().sum(), leaves[needing]
            )
            assert torch.equal(found, wanted[needing])


def test_every_graph_has_its_own_tensors() -> None:
    its_layout = layout()
    served(its_layout, qkv(requires_grad=True))
    calls = [qkv(requires_grad=True) for _ in range(3)]
    outs = [block_sparse_attention(*tensors, its_layout) for tensors in calls]
    for tensors, out in zip(reversed(calls), reversed(outs), strict=True):
        found = torch.autograd.grad(out.square().sum(), tensors)
        wanted = torch.autograd.grad(block_sparse_attention(*tensors, layout()).square().sum(), tensors)
        assert all(map(torch.equal, found, wanted))


def test_hooks_on_saved_tensors_may_give_other_strides_back() -> None:
    its_layout = layout()
    tensors = served(its_layout, qkv(requires_grad=True))
    turned = torch.autograd.graph.saved_tensors_hooks(
        lambda x: x.transpose(0, -1).contiguous(), lambda x: x.transpose(0, -1)
    )
    with turned:
        out = block_sparse_attention(*tensors, its_layout)
    found = torch.autograd.grad(out.square().sum(), tensors)
    wanted = torch.autograd.grad(block_sparse_attention(*tensors, layout()).square().sum(), tensors)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_graph_of_a_cached_call_dies_with_its_last_user() -> None:
    its_layout = layout()
    served(its_layout, qkv(requires_grad=True))
    gc.collect()
    gc.disable()  # nothing may wait for the collector of cycles
    try:
        q, k, v = (x * 1.0 for x in qkv(requires_grad=True))
        out = block_sparse_attention(q, k, v, its_layout)
        alive = [weakref.ref(x) for x in (q, k, v, out)]
        del q, k, v, out
        assert [x() for x in alive] == [None] * 4
    finally:
        gc.enable()


# ---- errors come after a success too


WRONG: dict[str, tuple[Callable[[Tensor], dict[str, Any]], type[Exception], str]] = {
    "rank": (lambda x: {"q": x[0]}, ValueError, "q must be"),
    "length": (lambda x: {"q": torch.cat([x, x], 1)}, ValueError, "layout covers queries at positions 0 to 39"),
    "type": (lambda x: {"k": x.double()}, ValueError, "one dtype"),
    "integers": (lambda x: dict.fromkeys("qkv", x.long()), ValueError, "floating point"),
    "device": (lambda x: {"v": x.to("meta")}, ValueError, "one device"),
    "no_tensor": (lambda x: {"v": [1.0]}, TypeError, "v must be a tensor"),
    "v_length": (lambda x: {"v": x[:, 1:]}, ValueError, "v must have k's"),
    "layout": (lambda x: {"layout": "all"}, TypeError, "layout must be a BlockLayout"),
    "dropout": (lambda x: {"dropout_p": 1.0}, ValueError, "dropout_p must be"),
    "backend": (lambda x: {"backend": "gpu"}, ValueError, "backend must be one of"),
    "backend_list": (lambda x: {"backend": ["cpu"]}, TypeError, "backend must be one of"),
    "rejected": (lambda x: {"backend": "hopper"}, ValueError, "cannot serve this call"),
    "dilation": (lambda x: {"dilation_rates": [1]}, ValueError, "go together"),
    "rate": (lambda x: {"segment_lengths": [16], "dilation_rates": [3]}, ValueError, "must divide block_size"),
    "lengths": (lambda x: {"kv_lengths": torch.zeros(1)}, ValueError, "kv_lengths must be int"),
    "offset": (lambda x: {"q_offset": 1}, ValueError, "queries at 1 to 40 .q_offset 1"),
    "offset_type": (lambda x: {"q_offset": 0.0}, TypeError, "q_offset must be an int"),
    "offset_bool": (lambda x: {"q_offset": False}, TypeError, "q_offset must be an int"),
    "softcap": (lambda x: {"softcap": -1.0}, ValueError, "softcap must be finite"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calls_are_refused_after_a_success(name: str) -> None:
    its_layout = layout()
    q, k, v = served(its_layout)
    change, error, message = WRONG[name]
    for _ in range(2):
        with pytest.raises(error, match=message):
            block_sparse_attention(**{"q": q, "k": k, "v": v, "layout": its_layout, **change(q)})
        block_sparse_attention(q, k, v, its_layout)


def test_forward_mode_is_refused_after_a_success() -> None:
    its_layout = layout()
    q, k, v = served(its_layout)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(k, torch.ones_like(k))
        with pytest.raises(RuntimeError, match="forward-mode AD is not supported, and k has a tangent"):
            block_sparse_attention(q, dual, v, its_layout)


# ---- whoever looks at the operators


def test_autocast_is_part_of_the_call() -> None:
    its_layout = layout()
    for _ in range(3):
        single, half = qkv(), qkv(dtype=torch.bfloat16)
        assert block_sparse_attention(*single, its_layout).dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            assert block_sparse_attention(*single, its_layout).dtype == torch.bfloat16
            assert block_sparse_attention(*half, its_layout).dtype == torch.bfloat16
        with torch.autocast("cpu", torch.float16):
            assert block_sparse_attention(*half, its_layout).dtype == torch.float16
        assert block_sparse_attention(*half, its_layout).dtype == torch.bfloat16


def test_operators_are_seen_after_a_success(monkeypatch: pytest.MonkeyPatch) -> None:
    its_layout = layout()
    tensors = served(its_layout)
    with OpRecorder() as recorded:
        block_sparse_attention(*tensors, its_layout)
    assert f"{NAMESPACE}.attention.default" in recorded.names
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(1, LENGTH, 2, 16)
        found = block_sparse_attention(x, x, x, its_layout)
    assert type(found) is not Tensor

    class Mine(Tensor):
        pass

    ran: list[str] = []
    real = ops.attention
    monkeypatch.setattr(ops, "attention", lambda *args: (ran.append("operator"), real(*args))[1])
    mine = tensors[0].as_subclass(Mine)
    assert torch.equal(
        block_sparse_attention(mine, *tensors[1:], its_layout), block_sparse_attention(*tensors, its_layout)
    )
    assert ran == ["operator"]


def test_compiled_call_is_an_operator_after_a_success() -> None:
    torch.compiler.reset()
    its_layout, targets = layout(), []
    tensors = served(its_layout)

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return block_sparse_attention(q, k, v, its_layout)

    n_cached = len(its_layout.calls)
    compiled = torch.compile(attend, fullgraph=True, backend=backend)
    for _ in range(3):
        found = compiled(*tensors)
    assert sum(f"{NAMESPACE}.attention" in target for target in targets) == 1
    assert torch.equal(found, attend(*tensors))
    assert len(its_layout.calls) == n_cached + 1  # of the operator, for its next calls


# ---- where cached calls live


def test_copies_moved_and_replaced_layouts_have_none() -> None:
    its_layout = layout()
    tensors = served(its_layout)
    HOPPER.prepare(its_layout, None)
    (key,) = its_layout._prepared
    made, stream, _ = its_layout._prepared[key]
    its_layout._prepared[key] = made, stream, threading.Lock()  # as an event of a GPU, it cannot be copied
    others = [
        copy.deepcopy(its_layout),
        pickle.loads(pickle.dumps(its_layout)),
        its_layout.to("meta"),
        dataclasses.replace(its_layout, num_heads=its_layout.num_heads),
    ]
    assert [len(other.calls) + len(other._prepared) for other in others] == [0] * 4
    assert torch.equal(
        block_sparse_attention(*tensors, others[0]), block_sparse_attention(*tensors, its_layout)
    )
    copied = copy.deepcopy(torch.nn.ModuleList([BlockSparseAttention(CONFIG)]))
    assert copied[0](*tensors).shape == tensors[0].shape


def test_stream_that_has_not_waited_for_the_layout_finds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = qkv()
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    keys = set()
    for stream in (0, 7, 0):
        raw_stream = lambda index, is_now=stream: is_now  # noqa: E731
        monkeypatch.setattr(_torch_internals, "current_raw_stream", raw_stream)
        keys.add(eager.key_of(q, k, v, False, None, None, None, None, None))
    assert len(keys) == 2


def test_call_that_is_captured_is_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    its_layout, (q, k, v) = layout(), qkv()
    problem = functional.make_problem(q, k, v, its_layout)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    for capturing in (True, False):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda is_now=capturing: is_now)
        monkeypatch.setattr(_torch_internals, "current_raw_stream", lambda index: 0)
        key = eager.key_of(q, k, v, False, None, None, None, None, None)
        eager.cache_call(its_layout, key, q, k, v, problem, backend_named("cpu"), needs_grad=False)
        assert bool(its_layout.calls) == (not capturing)


def test_cached_call_dies_with_its_layout() -> None:
    its_layout = layout()
    served(its_layout)
    (cached,) = its_layout.calls.values()
    died = weakref.ref(cached.static_problem)
    del cached, its_layout
    assert died() is None


def test_call_with_a_layout_elsewhere_is_not_cached(checks: list[str]) -> None:
    its_layout = layout()
    x = torch.empty(1, LENGTH, 2, 16, device="meta")
    for _ in range(2):
        assert block_sparse_attention(x, x, x, its_layout).is_meta
    assert not its_layout.calls


def test_layout_keeps_only_so_many_cached_calls() -> None:
    its_layout, tensors = layout(), qkv()
    for i in range(3 * its_layout.calls.bound):
        block_sparse_attention(*tensors, its_layout, softmax_scale=1.0 + i)
        assert 1 <= len(its_layout.calls) <= its_layout.calls.bound


def test_threads_share_a_layout() -> None:
    its_layout, wrong = layout(), []

    def work(i: int) -> None:
        generator = torch.Generator().manual_seed(i)
        tensors = [torch.randn(1, LENGTH, 2, 16, generator=generator) for _ in range(3)]
        wanted = block_sparse_attention(*tensors, layout(), softmax_scale=1.0 + i % 3)
        for _ in range(50):
            found = block_sparse_attention(*tensors, its_layout, softmax_scale=1.0 + i % 3)
            wrong.extend([i] * (not torch.equal(found, wanted)))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
