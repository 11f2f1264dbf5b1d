"""The custom operators: schemas, fakes, gradients, vmap rules and FLOPs, so that all of PyTorch sees one node.

They take a layout either as its lists or as a `pattern`, the constant of a module: then the layout for the lengths of the
tensors is looked up when the operator runs, and a graph serves every length. The backend is chosen when it runs, too
(op_implementations.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from . import _torch_internals
from ._torch_internals import apply_at_this_level, call_below_autograd, without_modes
from .backends.problem import AttentionProblem
from .call import PLAIN_TYPES, Call
from .config import TokenDilation
from .grid import BlockGrid
from .layout.cache import LAYOUTS, Pattern
from .layout.layout import BlockLayout
from .layout.lists import BlockLists

NAMESPACE = "dilated_attention_pytorch"
LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
# Tensors one by one: torch.jit.trace takes no list with optional tensors, is_grads_batched no list of tensors.
ARGUMENTS = (
    "Tensor q, Tensor k, Tensor v, Tensor? block_bias, Tensor? kv_lengths, Tensor? key_padding_mask, Tensor? seed, "
    "Tensor? row_indptr, Tensor? row_indices, Tensor? row_block_ids, "
    "Tensor? col_indptr, Tensor? col_indices, Tensor? col_block_ids, "
    "str pattern, SymInt[] geometry, SymInt[] segment_lengths, SymInt[] dilation_rates, float[] numbers, str backend"
)
# What attention_backward takes before the arguments of attention.
RESULTS = ("out", "lse", "grad_out", "grad_lse")

LIBRARY.define(f"attention({ARGUMENTS}) -> (Tensor, Tensor)", tags=(torch.Tag.pt2_compliant_tag,))
LIBRARY.define(
    f"attention_backward(Tensor out, Tensor lse, Tensor grad_out, Tensor? grad_lse, {ARGUMENTS}) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "block_entries(str pattern, SymInt q_len, SymInt kv_len, bool causal, Device device) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
attention = getattr(torch.ops, NAMESPACE).attention.default
attention_backward = getattr(torch.ops, NAMESPACE).attention_backward.default
block_entries = getattr(torch.ops, NAMESPACE).block_entries.default


# ---- the arguments


class Geometry(NamedTuple):
    """The argument `geometry`; flags are 0 or 1."""

    block_size: int
    layout_heads: int
    is_causal_layout: int
    is_causal: int


class Numbers(NamedTuple):
    """The argument `numbers`."""

    softmax_scale: float
    dropout_p: float


class OpArgs(NamedTuple):
    """The arguments of the operator `attention`, in the order of its schema; see AttentionProblem for the shapes.

    A layout comes as its row and column lists, with an empty `pattern`, or as the text of a Pattern, without lists. A token
    dilation has `segment_lengths` and `dilation_rates`.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    block_bias: Tensor | None
    kv_lengths: Tensor | None
    key_padding_mask: Tensor | None
    seed: Tensor | None
    row_indptr: Tensor | None
    row_indices: Tensor | None
    row_block_ids: Tensor | None
    col_indptr: Tensor | None
    col_indices: Tensor | None
    col_block_ids: Tensor | None
    pattern: str
    geometry: Sequence[int]
    segment_lengths: Sequence[int]
    dilation_rates: Sequence[int]
    numbers: Sequence[float]
    backend: str

    def tensors(self) -> tuple[Any, ...]:
        """The arguments that are tensors or None: autograd saves them."""
        return self[:N_TENSORS]

    def constants(self) -> tuple[Any, ...]:
        """The other arguments."""
        return self[N_TENSORS:]

    def rows(self) -> tuple[Any, ...]:
        """The fields of the row lists."""
        return self.row_indptr, self.row_indices, self.row_block_ids

    def cols(self) -> tuple[Any, ...]:
        """The fields of the column lists."""
        return self.col_indptr, self.col_indices, self.col_block_ids

    def dilation(self) -> TokenDilation | None:
        """The token dilation of the call."""
        if not self.dilation_rates:
            return None
        return TokenDilation(tuple(self.segment_lengths), tuple(self.dilation_rates))

    def call(self) -> Call:
        """The call, without its layout and backend."""
        a, numbers = self, Numbers(*self.numbers)
        return Call(
            q=a.q, k=a.k, v=a.v, block_bias=a.block_bias, kv_lengths=a.kv_lengths, key_padding_mask=a.key_padding_mask,
            seed=a.seed, is_causal=bool(Geometry(*a.geometry).is_causal), softmax_scale=numbers.softmax_scale,
            dropout_p=numbers.dropout_p, dilation=a.dilation(),
        )  # fmt: skip

    def layout(self, q_len: int, kv_len: int, device: torch.device) -> BlockLayout:
        """The layout of the call, for lengths that are known; a pattern's is on the device."""
        geometry = Geometry(*self.geometry)
        causal = bool(geometry.is_causal_layout)
        if self.pattern:
            pattern = Pattern(self.pattern, geometry.block_size, geometry.layout_heads)
            return LAYOUTS.find(pattern, q_len, kv_len, causal, device)
        grid = grid_of(q_len, kv_len, geometry.block_size, causal)
        return BlockLayout._of_lists(
            grid, geometry.layout_heads, BlockLists(*self.rows()), BlockLists(*self.cols())
        )


@lru_cache(maxsize=256)
def grid_of(q_len: int, kv_len: int, block_size: int, causal: bool) -> BlockGrid:
    """The grid of lengths; its checks take longer than finding it."""
    return BlockGrid(q_len, kv_len, block_size, causal)


# The row and column lists of a layout, or none with a pattern.
ListTensors = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]
NO_LISTS: ListTensors = (None, None, None, None, None, None)
N_TENSORS = OpArgs._fields.index("pattern")
DIFFERENTIABLE = ("q", "k", "v", "block_bias")  # the first arguments


def op_args(problem: AttentionProblem, backend: str) -> OpArgs:
    """The arguments of a problem."""
    p = problem
    geometry = geometry_of(p.block_size, p.layout_heads, p.grid.causal, p.is_causal)
    rows, cols = p.undilated
    return _op_args(p, (*rows.tensors(), *cols.tensors()), "", geometry, backend)


def op_args_of_call(call: Call, layout: BlockLayout | Pattern, backend: str | None) -> OpArgs:
    """The arguments of a call with a layout, which is moved to q's device, or with a pattern."""
    size, heads, is_causal = layout.block_size, layout.num_heads, call.is_causal
    if isinstance(layout, Pattern):
        geometry = geometry_of(size, heads, is_causal, is_causal)
        return _op_args(call, NO_LISTS, layout.text, geometry, backend)
    layout = layout.to(call.q.device)
    geometry = geometry_of(size, heads, layout.causal, is_causal)
    lists = (*layout.row_lists.tensors(), *layout.col_lists.tensors())
    return _op_args(call, lists, "", geometry, backend)


def geometry_of(block_size: int, layout_heads: int, is_causal_layout: bool, is_causal: bool) -> list[int]:
    """The fields of a Geometry, as a list: a tracer has symbols for booleans, hence the conditions."""
    return [block_size, layout_heads, 1 if is_causal_layout else 0, 1 if is_causal else 0]


def _op_args(
    call: Call | AttentionProblem,
    lists: ListTensors,
    pattern: str,
    geometry: list[int],
    backend: str | None,
) -> OpArgs:
    c, dilation = call, call.dilation
    segment_lengths = list(dilation.segment_lengths) if dilation else []
    dilation_rates = list(dilation.dilation_rates) if dilation else []
    return OpArgs(
        c.q, c.k, c.v, c.block_bias, c.kv_lengths, c.key_padding_mask, c.seed, *lists,
        pattern, geometry, segment_lengths, dilation_rates, [c.softmax_scale, c.dropout_p], backend or "auto",
    )  # fmt: skip


# ---- fakes


def lse_dtype(q: Tensor) -> torch.dtype:
    """float32, or float64 for float64 inputs."""
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def fake(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    batch, q_len, num_heads, _ = q.shape
    lse = q.new_empty(batch, num_heads, q_len, dtype=lse_dtype(q))
    return q.new_empty(batch, q_len, num_heads, v.shape[3]), lse


def fake_backward(
    out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None, *args: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a = OpArgs(*args)
    q, k, v, bias = a.q, a.k, a.v, a.block_bias
    grad_bias = q.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), grad_bias


def fake_entries(pattern: str, q_len: int, kv_len: int, causal: bool, device: torch.device) -> Tensor:
    its = Pattern.of_text(pattern)
    q_offset = kv_len - q_len if causal else 0
    n_rows = (q_len + q_offset + its.block_size - 1) // its.block_size - q_offset // its.block_size
    n_cols = (kv_len + its.block_size - 1) // its.block_size
    return torch.empty(its.num_heads, n_rows, n_cols, dtype=torch.int64, device=device)


torch.library.register_fake(f"{NAMESPACE}::attention", fake, lib=LIBRARY)
torch.library.register_fake(f"{NAMESPACE}::attention_backward", fake_backward, lib=LIBRARY)
torch.library.register_fake(f"{NAMESPACE}::block_entries", fake_entries, lib=LIBRARY)


# ---- gradients


def call_in_function(op: Any, keyset: Any, args: tuple[Any, ...]) -> Any:
    """`call_below_autograd` inside an autograd.Function, which turns gradients off, also for the outer transforms of torch.func."""
    if not _torch_internals.are_functorch_transforms_active():
        return call_below_autograd(op, keyset, args)
    with torch.enable_grad():
        return call_below_autograd(op, keyset, args)


class AttentionFunction(torch.autograd.Function):
    """The gradient of the operator `attention`."""

    @staticmethod
    def forward(ctx: Any, op: Any, keyset: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        args = OpArgs(*inputs)
        out, lse = call_in_function(op, keyset, args)
        ctx.save_for_backward(out, lse, *args.tensors())
        ctx.constants = args.constants()
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        out, lse, *tensors = ctx.saved_tensors
        args = OpArgs(*tensors, *ctx.constants)
        of_others = (None,) * (len(args) - len(DIFFERENTIABLE))
        if grad_out is None and grad_lse is None:
            return (None, None, *(None,) * len(args))
        if grad_out is None:
            grad_out = torch.zeros_like(out)
        *grads, grad_bias = attention_backward(out, lse, grad_out, grad_lse, *args)
        return (None, None, *grads, None if args.block_bias is None else grad_bias, *of_others)


class RefusedSecondDerivative(torch.autograd.Function):
    """The gradient of the operator `attention_backward`: there is none."""

    @staticmethod
    def forward(ctx: Any, op: Any, keyset: Any, *args: Any) -> tuple[Tensor, ...]:
        made: tuple[Tensor, ...] = call_in_function(op, keyset, args)
        return made

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "block_sparse_attention differentiates once, but a second derivative was asked for; "
            "backend='reference' has it"
        )


def autograd_kernel(
    op: Any, function: type[torch.autograd.Function], names: tuple[str, ...]
) -> Callable[..., Any]:
    """What the dispatcher calls at the key Autograd; once for every nested gradient of torch.func.

    `names` are those of the first arguments, which can have gradients; the others hold integers and booleans.
    """

    def kernel(keyset: Any, *args: Any) -> Any:
        if _torch_internals.is_forward_mode():
            check_no_tangents(zip(names, args))
        if not torch.is_grad_enabled() or not any(
            x is not None and x.requires_grad for x in args[: len(names)]
        ):
            return call_below_autograd(op, keyset, args)
        if not _torch_internals.are_functorch_transforms_active():
            return function.apply(op, keyset, *args)
        return apply_at_this_level(function, op, keyset, *args)

    return kernel


def check_no_tangents(named: Iterable[tuple[str, Tensor | None]]) -> None:
    """Raise if a tensor has a tangent, which would be lost: the operators have no rule for it."""
    for name, x in named:
        if x is not None and forward_ad.unpack_dual(x).tangent is not None:
            raise RuntimeError(
                "block_sparse_attention differentiates once, in reverse mode: forward-mode AD is not supported, and "
                f"{name} has a tangent; use reverse mode (backward, torch.func.grad, jacrev), or backend='reference', "
                "which has both"
            )


LIBRARY.impl(
    "attention", autograd_kernel(attention, AttentionFunction, DIFFERENTIABLE), "Autograd", with_keyset=True
)
LIBRARY.impl(
    "attention_backward",
    autograd_kernel(attention_backward, RefusedSecondDerivative, (*RESULTS, *DIFFERENTIABLE)),
    "Autograd",
    with_keyset=True,
)


# ---- vmap


def fold(x: Any, dim: int | None, size: int) -> Any:
    """The tensor of every sample, as one with the samples in its batch dimension; None as it is."""
    if x is None:
        return None
    x = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return x.flatten(0, 1)


def fold_bias(bias: Tensor, dim: int | None, size: int, batch: int) -> Tensor:
    """The bias of every sample, (batch or 1, ...) each, as one (samples * batch, ...)."""
    by_sample = bias.expand(size, *bias.shape) if dim is None else bias.movedim(dim, 0)
    return by_sample.expand(size, batch, *by_sample.shape[2:]).flatten(0, 1)


def fold_args(args: OpArgs, dims: Any, size: int) -> OpArgs:
    """The arguments of all samples in one call: samples become elements of the batch."""
    q = fold(args.q, dims.q, size)
    bias = args.block_bias
    return args._replace(
        q=q,
        k=fold(args.k, dims.k, size),
        v=fold(args.v, dims.v, size),
        block_bias=None
        if bias is None
        else fold_bias(bias, dims.block_bias, size, q.shape[0] // max(size, 1)),
        kv_lengths=fold(args.kv_lengths, dims.kv_lengths, size),
        key_padding_mask=fold(args.key_padding_mask, dims.key_padding_mask, size),
    )


def take(x: Any, dim: int | None, i: int) -> Any:
    """Sample i of an argument."""
    return x.select(dim, i) if isinstance(x, Tensor) and dim is not None else x


def one_by_one(op: Any, in_dims: tuple[Any, ...], args: tuple[Any, ...], size: int) -> tuple[Any, Any]:
    """A call per sample: the bits of dropout count batch elements."""
    samples = [op(*(take(x, dim, i) for x, dim in zip(args, in_dims, strict=True))) for i in range(size)]
    outs = [torch.stack(parts) for parts in zip(*samples, strict=True)]
    return tuple(outs), (0,) * len(outs)


def check_shared_lists(dims: Any) -> None:
    if any(dim is not None for dim in (*dims.rows(), *dims.cols())):
        raise ValueError("the lists of a layout must be the same for every sample of vmap, got batched ones")


def vmap_attention(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    """Samples go into the batch dimension; with dropout they go one after the other."""
    a, size = OpArgs(*args), info.batch_size
    dims: Any = OpArgs(*in_dims)
    check_shared_lists(dims)
    if a.seed is not None:
        return one_by_one(attention, in_dims, args, size)
    out, lse = attention(*fold_args(a, dims, size))
    return (out.unflatten(0, (size, -1)), lse.unflatten(0, (size, -1))), (0, 0)


def vmap_attention_backward(
    info: Any,
    in_dims: tuple[Any, ...],
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    *args: Any,
) -> tuple[Any, Any]:
    """As `vmap_attention`; the gradient of a bias that a sample's batch shares is summed over it."""
    results, size = (out, lse, grad_out, grad_lse), info.batch_size
    a = OpArgs(*args)
    dims: Any = OpArgs(*in_dims[len(results) :])
    check_shared_lists(dims)
    if a.seed is not None:
        return one_by_one(attention_backward, in_dims, (*results, *args), size)
    folded = fold_args(a, dims, size)
    *grads, grad_bias = attention_backward(*(fold(x, dim, size) for x, dim in zip(results, in_dims)), *folded)
    made = [grad.unflatten(0, (size, -1)) for grad in grads]
    bias, dim = a.block_bias, dims.block_bias
    if bias is None:
        return (*made, grad_bias), (0, 0, 0, None)
    grad_bias = grad_bias.unflatten(0, (size, -1))
    of_sample = bias if dim is None else bias.select(dim, 0)
    if of_sample.shape[0] == 1:
        grad_bias = grad_bias.sum(1, keepdim=True)
    return (*made, grad_bias), (0, 0, 0, 0)


torch.library.register_vmap(f"{NAMESPACE}::attention", vmap_attention, lib=LIBRARY)
torch.library.register_vmap(f"{NAMESPACE}::attention_backward", vmap_attention_backward, lib=LIBRARY)


# ---- FLOPs


def num_pairs(args: OpArgs) -> Any:
    """(query, key) pairs in active blocks, over the batch and all heads; what a mask hides in them counts."""
    (batch, q_len, num_heads, _), kv_len = args.q.shape, args.k.shape[1]
    geometry, device = Geometry(*args.geometry), torch.device("cpu")
    if args.row_indptr is not None and args.row_indices is not None:
        device = args.row_indptr.device
        if type(args.row_indices) not in PLAIN_TYPES or args.row_indices.is_meta:
            # the lists have no values: the mean over all block pairs, which is exact for whole blocks
            grid = BlockGrid(q_len, kv_len, geometry.block_size, bool(geometry.is_causal_layout))
            n_blocks = max(1, geometry.layout_heads * grid.n_rows * grid.n_cols)
            rate = min(args.dilation_rates) if args.dilation_rates else 1
            return batch * num_heads * args.row_indices.shape[0] * q_len * kv_len // (n_blocks * rate)
    with without_modes():  # the lists have values even where q has none
        layout = args.layout(int(q_len), int(kv_len), device)
        return batch * num_heads // geometry.layout_heads * layout._num_pairs(args.dilation())


@register_flop_formula(torch.ops.dilated_attention_pytorch.attention, get_raw=True)
def count_flops(*args: Any, out_val: Any = None, **others: Any) -> Any:
    """Two products over the active blocks, counted as scaled_dot_product_attention's over all pairs."""
    a = OpArgs(*args)
    return 2 * num_pairs(a) * (a.q.shape[3] + a.v.shape[3])


@register_flop_formula(torch.ops.dilated_attention_pytorch.attention_backward, get_raw=True)
def count_backward_flops(
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    *args: Any,
    out_val: Any = None,
    **others: Any,
) -> Any:
    """Five products: the scores again, and the gradients of scores, q, k and v."""
    a = OpArgs(*args)
    return 2 * num_pairs(a) * (3 * a.q.shape[3] + 2 * a.v.shape[3])
