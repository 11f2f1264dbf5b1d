"""Every private name of torch exists in the installed torch, says what its sentence says, and is used nowhere else."""

from __future__ import annotations

import re
import subprocess
import sys
import types
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

import dilated_attention_pytorch
from dilated_attention_pytorch import _torch_internals

PACKAGE = Path(dilated_attention_pytorch.__file__).parent
PRIVATE = re.compile(r"torch\._[a-z]|torch\._C\b|\bforward_ad\._|_python_dispatch|\._dynamo_")


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_private_names_stand_in_one_file(path: Path) -> None:
    found = PRIVATE.findall(path.read_text("utf-8"))
    assert bool(found) == (path.name == "_torch_internals.py"), found


# ---- who else wants to see a call


def test_dispatch_modes_are_counted() -> None:
    assert _torch_internals.num_dispatch_modes() == 0
    with FakeTensorMode():
        assert _torch_internals.num_dispatch_modes() == 1


def test_function_modes_are_counted() -> None:
    assert _torch_internals.num_function_modes() == 0
    with torch.device("cpu"):
        assert _torch_internals.num_function_modes() == 1


@pytest.mark.parametrize("transform", [torch.func.grad, torch.vmap, torch.func.functionalize])
def test_transforms_are_seen(transform: Any) -> None:
    seen = []

    def note(x: Tensor) -> Tensor:
        seen.append(_torch_internals.functorch_interpreter() is not None)
        seen.append(_torch_internals.are_functorch_transforms_active())
        return x.sum()

    note(torch.ones(3))
    transform(note)(torch.ones(3))
    assert seen == [False, False, True, True]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_trace_is_seen() -> None:
    seen = []

    def note(x: Tensor) -> Tensor:
        seen.append(_torch_internals.tracing_state() is not None)
        return x + 1

    note(torch.ones(1))
    torch.jit.trace(note, torch.ones(1), check_trace=False)
    assert seen == [False, True]


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
@pytest.mark.filterwarnings("ignore:CUDA is not available:UserWarning")
def test_autocast_of_every_device_type_is_seen(device_type: str) -> None:
    assert not _torch_internals.is_any_autocast_enabled()
    with torch.autocast(device_type, torch.bfloat16):
        is_on = torch.is_autocast_enabled(device_type)  # without a GPU "cuda" stays off
        assert _torch_internals.is_any_autocast_enabled() == is_on
    with torch.autocast("cpu", torch.bfloat16):
        assert _torch_internals.is_any_autocast_enabled()


def test_a_tensor_that_stands_for_many_is_seen() -> None:
    seen = []

    class Note(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 1

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            seen.append(_torch_internals.is_legacy_batched(grad))
            return grad

    x = torch.ones(2, requires_grad=True)
    out = Note.apply(x)
    torch.autograd.grad(out, x, torch.ones(2), retain_graph=True)
    torch.autograd.grad(out, x, torch.ones(3, 2), is_grads_batched=True)
    assert seen == [False, True]


def test_forward_mode_is_seen() -> None:
    assert not _torch_internals.is_forward_mode()
    with forward_ad.dual_level():
        assert _torch_internals.is_forward_mode()
    assert not _torch_internals.is_forward_mode()


# ---- around a call


def test_without_function_modes_a_default_device_has_no_effect() -> None:
    for mode in (nullcontext(), torch.device("meta")):
        with mode:
            made = _torch_internals.without_function_modes(torch.empty, 3)
        assert (made.device.type, made.shape) == ("cpu", (3,))


@pytest.mark.parametrize("mode", [nullcontext, torch.inference_mode, FakeTensorMode])
def test_without_modes_tensors_are_plain(mode: Any) -> None:
    with mode(), _torch_internals.without_modes():
        made = torch.ones(2)
    assert (type(made), made.is_inference(), made.sum().item()) == (Tensor, False, 2.0)


def test_without_modes_no_transform_wraps_a_tensor() -> None:
    made = []

    def make(x: Tensor) -> Tensor:
        with _torch_internals.without_modes():
            made.append(torch.zeros(2).add_(1.0))
        return x.sum()

    torch.func.grad(make)(torch.ones(3))
    assert made[0].tolist() == [1.0, 1.0]


# ---- gradients


class Double(torch.autograd.Function):
    """2 x, whose gradient is written by hand."""

    @staticmethod
    def forward(ctx: Any, op: Any, keyset: Any, x: Tensor) -> Tensor:
        with torch.enable_grad():  # for the outer transforms
            made: Tensor = _torch_internals.call_below_autograd(op, keyset, (x,))
        return made

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor]:
        return None, None, 2 * grad


def test_operators_with_gradients_of_their_own_work_in_nested_transforms() -> None:
    library = torch.library.Library("dilated_attention_pytorch_test", "DEF")
    library.define("double(Tensor x) -> Tensor")
    op = torch.ops.dilated_attention_pytorch_test.double.default

    def autograd(keyset: Any, x: Tensor) -> Any:
        if _torch_internals.are_functorch_transforms_active():
            return _torch_internals.apply_at_this_level(Double, op, keyset, x)
        return Double.apply(op, keyset, x)

    library.impl("double", lambda x: 2 * x, "CompositeExplicitAutograd")
    library.impl("double", autograd, "Autograd", with_keyset=True)
    x = torch.tensor(3.0, requires_grad=True)
    op(x).backward()
    assert x.grad == 2.0
    assert torch.func.grad(lambda y: op(y) * op(y))(torch.tensor(3.0)) == 8.0 * 3.0
    assert torch.func.grad(torch.func.grad(lambda y: op(y) ** 2 / 2))(torch.tensor(3.0)) == 4.0


# ---- compilation


def test_marked_length_is_dynamic_at_once() -> None:
    torch.compiler.reset()
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    doubled = torch.compile(lambda x: x * 2, backend=backend, fullgraph=True)
    for length in (5, 7, 9):
        x = torch.ones(length)
        _torch_internals.mark_length_dynamic(x)
        doubled(x)
    assert len(graphs) == 1


# ---- the CUDA device


def test_names_of_cuda_are_there_with_cuda() -> None:
    has_cuda = torch.backends.cuda.is_built() or torch.version.hip is not None
    assert (_torch_internals.current_raw_stream is not None) == has_cuda
    assert (_torch_internals.current_device is not None) == has_cuda


@pytest.mark.gpu
def test_stream_and_device_are_the_current_ones() -> None:
    assert _torch_internals.current_device() == torch.cuda.current_device()
    with torch.cuda.stream(torch.cuda.Stream()):
        stream = torch.cuda.current_stream()
        assert _torch_internals.current_raw_stream(stream.device_index) == stream.cuda_stream != 0
    assert _torch_internals.current_raw_stream(torch.cuda.current_device()) == 0


# ---- nn.MultiheadAttention and NestedTensors


def test_shapes_of_multihead_attention_are_checked() -> None:
    x, y = torch.ones(2, 3, 4), torch.ones(3, 4)
    assert _torch_internals.check_multihead_shapes(x, x, x, None, None, 2)
    assert not _torch_internals.check_multihead_shapes(y, y, y, None, None, 2)
    with pytest.raises(AssertionError, match="expected `key` and `value` to be 3-D"):
        _torch_internals.check_multihead_shapes(x, y, y, None, None, 2)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_sizes_of_a_strided_nested_tensor_are_on_the_host() -> None:
    nested = torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)])
    assert _torch_internals.nested_sizes(nested).tolist() == [[2, 4], [3, 4]]


def test_parts_of_a_jagged_tensor() -> None:
    jagged = torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)], layout=torch.jagged)
    assert _torch_internals.jagged_offsets(jagged).tolist() == [0, 2, 5]
    assert _torch_internals.jagged_max_len(jagged) == 3
    assert _torch_internals.is_packed_jagged(jagged)
    assert not _torch_internals.is_packed_jagged(jagged.transpose(1, 2))
    lengths = torch.tensor([1, 3])
    with_gaps = torch.nested.nested_tensor_from_jagged(
        torch.ones(5, 4), _torch_internals.jagged_offsets(jagged), lengths
    )
    assert not _torch_internals.is_packed_jagged(with_gaps)
    total = jagged + _torch_internals.jagged_like(jagged, torch.ones(5, 4))
    assert [each.sum().item() for each in total.unbind()] == [16, 24]


# ---- what a model does that is compiled


def test_assert_async_fails_on_the_cpu_with_its_message() -> None:
    _torch_internals.assert_async(torch.tensor(True), "no")
    with pytest.raises(RuntimeError, match="the message"):
        _torch_internals.assert_async(torch.tensor(False), "the message")


def test_keep_address_is_what_cuda_graphs_ask_for() -> None:
    tensor = torch.zeros(1)
    _torch_internals.keep_address(tensor)
    assert tensor._dynamo_static_input_type == "unguarded"


def test_the_import_leaves_dynamo_out() -> None:
    """Which takes seconds; a mark on a function is all that `assume_constant_result` makes."""
    program = "import sys, dilated_attention_pytorch; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"

    def function() -> None: ...

    def marks(mark: Callable[..., Any]) -> dict[str, Any]:
        return dict(vars(mark(types.FunctionType(function.__code__, {}))))

    assert marks(_torch_internals.constant_in_graphs) == marks(torch.compiler.assume_constant_result)


def test_what_is_not_traced_is_in_no_graph_nor_what_it_calls() -> None:
    def below(x: Tensor) -> Tensor:
        return x.cos()

    @_torch_internals.not_traced
    def hidden(x: Tensor) -> Tensor:
        return below(x) + 1

    operators: list[str] = []

    def record(graph: Any, inputs: Any) -> Any:
        operators.extend(node.name for node in graph.graph.nodes if node.op.startswith("call"))
        return graph.forward

    x = torch.ones(3)
    compiled = torch.compile(lambda x: hidden(x.sin()).tan(), backend=record)
    torch.testing.assert_close(compiled(x), (x.sin().cos() + 1).tan())
    assert operators == ["sin", "tan"]
