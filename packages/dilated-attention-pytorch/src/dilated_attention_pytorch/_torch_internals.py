"""Every private name of PyTorch that this package uses, but for two operators in backends/cpu/fused_kernel.py.

Names that every call needs are bound to the C function itself: a Python function around it costs as much again. Callers
write `_torch_internals.name(...)`, so a test replaces a name in one place.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad, profiler
from torch.autograd.function import _SingleLevelFunction
from torch.utils._python_dispatch import _disable_current_modes

if TYPE_CHECKING:  # torch may be built without it
    from torch._C._distributed_c10d import ProcessGroup, Store

Made = TypeVar("Made", bound=Callable[..., Any])

# ---- the CUDA device; None in builds of torch without CUDA

current_raw_stream: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", None)  # type: ignore[assignment]
"""The address of a device's current stream; `torch.cuda.current_stream` makes an object around it."""

current_device: Callable[[], int] = getattr(torch._C, "_cuda_getDevice", None)  # type: ignore[assignment]
"""The index of the current device; `torch.cuda.current_device` first asks whether CUDA is initialised."""

# ---- who else wants to see a call

num_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
"""How many `TorchDispatchMode`s are active."""

num_function_modes: Callable[[], int] = torch._C._len_torch_function_stack
"""How many `TorchFunctionMode`s are active; a default device is one."""

functorch_interpreter: Callable[[], object | None] = torch._C._functorch.peek_interpreter_stack
"""The innermost transform of `torch.func` at this point, or None."""

are_functorch_transforms_active: Callable[[], bool] = torch._C._are_functorch_transforms_active
"""Whether the dispatcher will hand operators to the transforms of `torch.func`."""

tracing_state: Callable[[], object | None] = torch._C._get_tracing_state
"""The trace that `torch.jit.trace` is writing, or None; `torch.jit.is_tracing` takes twice as long."""

is_any_autocast_enabled: Callable[[], bool] = torch._C._is_any_autocast_enabled
"""Whether autocast is on for any device type."""

is_legacy_batched: Callable[[Tensor], bool] = torch._C._functorch.is_legacy_batchedtensor
"""Whether a tensor stands for many, as with `is_grads_batched` of `torch.autograd.grad`."""


def is_forward_mode() -> bool:
    """Whether a level of forward-mode AD is open, so that tensors can have tangents."""
    return forward_ad._current_level >= 0


# ---- profiles

profiler_flags = profiler
"""Its `_is_profiler_enabled` says whether a profiler runs: an attribute to read, which costs less than any call."""


def labelled(name: str, function: Callable[..., Any], *args: Any) -> Any:
    """The result of the function, a range of this name where a profiler runs."""
    if not profiler_flags._is_profiler_enabled:
        return function(*args)
    with torch.profiler.record_function(name):
        return function(*args)


# ---- tensors without values


def is_fake(x: object) -> bool:
    """Whether a tensor is one of a FakeTensorMode, which has shapes and no values."""
    return isinstance(x, FakeTensor)


def has_no_values(x: Tensor) -> bool:
    """Whether a tensor has shapes alone: on the meta device, or fake."""
    return x.is_meta or is_fake(x)


def is_for_the_dispatcher(x: Tensor) -> bool:
    """Whether a tensor that looks plain has to go through an operator: it has no values, or stands for those of many samples."""
    return has_no_values(x) or functorch_interpreter() is not None


def as_of_call(x: Tensor, q: Tensor) -> Tensor:
    """A tensor for a call with q, on its device: fake where q is, as its mode may take no others."""
    if isinstance(q, FakeTensor) and not isinstance(x, FakeTensor):
        x = q.fake_mode.from_tensor(x)
    return x.to(q.device)


# ---- around a call


def without_function_modes(function: Callable[..., Any], *args: Any) -> Any:
    """The result, unaffected by function modes: what a backend makes has a device of its own, not the default one."""
    if not num_function_modes():
        return function(*args)
    with torch._C.DisableTorchFunction():
        return function(*args)


@contextlib.contextmanager
def without_modes() -> Iterator[None]:
    """Make plain tensors under inference mode, function transforms and dispatch modes too."""
    with torch.inference_mode(False), torch._C._DisableFuncTorch(), _disable_current_modes():
        yield


@contextlib.contextmanager
def without_any_modes() -> Iterator[None]:
    """Make plain tensors, under function modes too: a default device is one."""
    with without_modes(), torch._C.DisableTorchFunction():
        yield


# ---- gradients


def call_below_autograd(op: Any, keyset: Any, args: tuple[Any, ...]) -> Any:
    """Call an operator below autograd: continue dispatch after the Autograd key."""
    with torch._C._AutoDispatchBelowAutograd():
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)


def apply_at_this_level(function: type[torch.autograd.Function], *args: Any) -> Any:
    """`function.apply` for one transform of `torch.func` alone; `apply` itself starts with the innermost one again."""
    with enable_single_level_autograd_function():
        return of_one_level(function).apply(*args)


@functools.lru_cache(maxsize=16)
def of_one_level(function: type[torch.autograd.Function]) -> Any:
    """The function with the base class that transforms of `torch.func` leave alone."""
    methods = {"forward": staticmethod(function.forward), "backward": staticmethod(function.backward)}
    return type(function.__name__, (_SingleLevelFunction,), methods)


# ---- compilation


def mark_length_dynamic(tensor: Tensor) -> None:
    """`torch._dynamo.maybe_mark_dynamic(tensor, 0)` without the import of Dynamo."""
    tensor._dynamo_weak_dynamic_indices = {0}  # type: ignore[attr-defined]


def tensors_as_indices() -> contextlib.AbstractContextManager[object]:
    """Let ``table[index]`` take tensors that `torch.vmap` maps; older releases ask such a tensor for its number."""
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    return TransformGetItemToIndex()


def slices_forget_mask_mod() -> bool:
    """Whether a slice of a BlockMask looks as if it was made without a mask_mod; newer releases put an error in its place."""
    from torch.nn.attention import flex_attention

    return not hasattr(flex_attention, "_sliced_mask_mod_error")


# ---- nn.MultiheadAttention and NestedTensors

check_multihead_shapes: Callable[..., bool] = torch.nn.functional._mha_shape_check  # type: ignore[attr-defined]
"""Whether the tensors of nn.MultiheadAttention have a batch dimension; raises its AssertionErrors if they do not fit."""


def nested_sizes(nested: Tensor) -> Tensor:
    """The sizes of the sequences of a NestedTensor with the strided layout, int64 (sequences, dimensions), on the host."""
    sizes: Tensor = nested._nested_tensor_size()
    return sizes


def jagged_offsets(nested: Any) -> Tensor:
    """Where each sequence of a jagged tensor begins, and the last ends, int64 (sequences + 1,)."""
    offsets: Tensor = nested.offsets()
    return offsets


def jagged_max_len(nested: Any) -> int:
    """The greatest length of a jagged tensor, which it knows, or reads from the device once."""
    return int(nested._get_max_seqlen())


def is_packed_jagged(nested: Any) -> bool:
    """Whether the sequences of a jagged tensor are its second dimension, and stand one behind the other without gaps."""
    return bool(nested._ragged_idx == 1 and nested.lengths() is None)


def jagged_like(nested: Any, values: Tensor) -> Tensor:
    """A jagged tensor with the lengths of another, so that the two can be added."""
    return torch.nested.nested_tensor_from_jagged(
        values, nested.offsets(), min_seqlen=nested._maybe_min_seqlen, max_seqlen=nested._maybe_max_seqlen
    )


# ---- what a model does that is compiled, or runs on a device that nobody waits for


def assert_async(condition: Tensor, message: str) -> None:
    """Fail on the device of a condition unless it holds; the host does not wait."""
    torch._assert_async(condition, message)


def keep_address(tensor: Tensor) -> None:
    """Say to compiled graphs that a tensor stays where it is: then CUDA graphs do not copy it."""
    torch._dynamo.mark_static_address(tensor)  # type: ignore[no-untyped-call, unused-ignore]


# ---- compiled graphs


def constant_in_graphs(function: Made) -> Made:
    """`torch.compiler.assume_constant_result`, which would import Dynamo: that takes longer than all the rest of this library."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def not_traced(function: Made) -> Made:
    """`torch.compiler.disable`, of all that it calls too, without importing Dynamo for those who do not compile."""
    hidden = torch._disable_dynamo(function)  # type: ignore[attr-defined]

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (hidden if "torch._dynamo" in sys.modules else function)(*args, **kwargs)

    call._torchdynamo_disable = True  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]


# ---- process groups


def are_collectives_compared() -> bool:
    """Whether TORCH_DISTRIBUTED_DEBUG=DETAIL is set."""
    from torch.distributed import DebugLevel, get_debug_level  # type: ignore[attr-defined]

    return bool(get_debug_level() == DebugLevel.DETAIL)


def group_store(group: ProcessGroup, prefix: str) -> Store:
    """The store in which the ranks of a process group found one another; its keys are those of the group and the prefix."""
    from torch.distributed.distributed_c10d import PrefixStore, _get_process_group_store

    try:
        return PrefixStore(prefix, _get_process_group_store(group))
    except KeyError:
        raise RuntimeError(
            f"{group} was destroyed (destroy_process_group); make a new group and a config with it"
        ) from None
