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
from .layout.lists import BlockLists, BlockMasks
from .layout.pair_counts import Span, pairs_in_blocks
from .op_library import LIBRARY, NAMESPACE, define
from .samples import one_by_one
from .sequences import Sequences

# Tensors one by one: torch.jit.trace takes no list with optional tensors, is_grads_batched no list of tensors.
ARGUMENTS = (
    "Tensor q, Tensor k, Tensor v, Tensor? block_bias, Tensor? sinks, Tensor? attn_bias, Tensor? alibi_slopes, "
    "Tensor? sequences, Tensor? key_padding_mask, Tensor? seed, "
    "Tensor? row_indptr, Tensor? row_indices, Tensor? row_block_ids, "
    "Tensor? col_indptr, Tensor? col_indices, Tensor? col_block_ids, Tensor? mask_ids, Tensor? mask_table, "
    "str pattern, SymInt[] geometry, SymInt[] segment_lengths, SymInt[] dilation_rates, float[] numbers, str backend"
)
# What attention_backward takes before the arguments of attention.
RESULTS = ("out", "lse", "grad_out", "grad_lse")

attention = define(f"attention({ARGUMENTS}) -> (Tensor, Tensor)")
attention_backward = define(
    f"attention_backward(Tensor out, Tensor lse, Tensor grad_out, Tensor? grad_lse, {ARGUMENTS}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
block_entries = define(
    "block_entries(str pattern, SymInt q_len, SymInt kv_len, bool causal, Device device) -> Tensor"
)


# ---- the arguments


class Geometry(NamedTuple):
    """The argument `geometry`; flags are 0 or 1."""

    block_size: int
    layout_batch: int
    layout_heads: int
    is_causal_layout: int
    is_exact_layout: int
    # of the layout's grid; 0 with a pattern, which is looked up for the lengths of q and k
    layout_q_len: int
    layout_kv_len: int
    layout_q_offset: int
    is_causal: int
    q_offset: int
    # of Sequences; 0 without a table
    is_packed: int
    only_lengths: int
    max_q_len: int
    max_kv_len: int
    deterministic: int


class Numbers(NamedTuple):
    """The argument `numbers`."""

    softmax_scale: float
    softcap: float
    dropout_p: float


class OpArgs(NamedTuple):
    """The arguments of the operator `attention`, in the order of its schema; see AttentionProblem for the shapes.

    A layout comes as its row and column lists and its masks, with an empty `pattern`, or as the text of a Pattern, without
    them. `sequences` is the table of a Sequences. A token dilation has `segment_lengths` and `dilation_rates`.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    block_bias: Tensor | None
    sinks: Tensor | None
    attn_bias: Tensor | None
    alibi_slopes: Tensor | None
    sequences: Tensor | None
    key_padding_mask: Tensor | None
    seed: Tensor | None
    row_indptr: Tensor | None
    row_indices: Tensor | None
    row_block_ids: Tensor | None
    col_indptr: Tensor | None
    col_indices: Tensor | None
    col_block_ids: Tensor | None
    mask_ids: Tensor | None
    mask_table: Tensor | None
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

    def masks(self) -> BlockMasks | None:
        """The masks inside blocks."""
        if self.mask_ids is None or self.mask_table is None:
            return None
        return BlockMasks(self.mask_ids, self.mask_table)

    def of_layout(self) -> tuple[Any, ...]:
        """The tensors of the layout."""
        return (*self.rows(), *self.cols(), self.mask_ids, self.mask_table)

    def table(self) -> Sequences | None:
        """The sequences of the call."""
        if self.sequences is None:
            return None
        its = Geometry(*self.geometry)
        return Sequences(
            self.sequences, its.max_q_len, its.max_kv_len, bool(its.is_packed), bool(its.only_lengths)
        )

    def dilation(self) -> TokenDilation | None:
        """The token dilation of the call."""
        if not self.dilation_rates:
            return None
        return TokenDilation(tuple(self.segment_lengths), tuple(self.dilation_rates))

    def call(self) -> Call:
        """The call, without its layout and backend."""
        a, numbers, geometry = self, Numbers(*self.numbers), Geometry(*self.geometry)
        return Call(
            q=a.q, k=a.k, v=a.v, block_bias=a.block_bias, sinks=a.sinks, attn_bias=a.attn_bias,
            alibi_slopes=a.alibi_slopes, sequences=a.table(), key_padding_mask=a.key_padding_mask, seed=a.seed,
            q_offset=geometry.q_offset, is_causal=bool(geometry.is_causal), softmax_scale=numbers.softmax_scale,
            softcap=numbers.softcap, dropout_p=numbers.dropout_p, dilation=a.dilation(),
            deterministic=bool(geometry.deterministic),
        )  # fmt: skip

    def layout(self, q_len: int, kv_len: int, device: torch.device) -> BlockLayout:
        """The layout of the call, for lengths that are known; a pattern's is on the device."""
        geometry = Geometry(*self.geometry)
        causal = bool(geometry.is_causal_layout)
        if self.pattern:
            pattern = Pattern(self.pattern, geometry.block_size, geometry.layout_heads)
            return LAYOUTS.covering(pattern, q_len, kv_len, causal, device)
        return BlockLayout.from_lists(
            self.grid(), geometry.layout_heads, BlockLists(*self.rows()), BlockLists(*self.cols()),
            geometry.layout_batch, self.masks(), bool(geometry.is_exact_layout),
        )  # fmt: skip

    def grid(self) -> BlockGrid:
        """The grid of a layout that is given as its lists."""
        its = Geometry(*self.geometry)
        return grid_of(
            its.layout_q_len,
            its.layout_kv_len,
            its.block_size,
            bool(its.is_causal_layout),
            its.layout_q_offset,
        )


@lru_cache(maxsize=256)
def grid_of(q_len: int, kv_len: int, block_size: int, causal: bool, q_offset: int) -> BlockGrid:
    """The grid of lengths; its checks take longer than finding it."""
    return BlockGrid(q_len, kv_len, block_size, causal, q_offset)


class LayoutTensors(NamedTuple):
    """The lists and the masks of a layout, or nothing with a pattern."""

    row_indptr: Tensor | None = None
    row_indices: Tensor | None = None
    row_block_ids: Tensor | None = None
    col_indptr: Tensor | None = None
    col_indices: Tensor | None = None
    col_block_ids: Tensor | None = None
    mask_ids: Tensor | None = None
    mask_table: Tensor | None = None


def layout_tensors(rows: BlockLists, cols: BlockLists, masks: BlockMasks | None) -> LayoutTensors:
    """The tensors of a layout."""
    return LayoutTensors(*rows.tensors(), *cols.tensors(), *(masks or (None, None)))


N_TENSORS = OpArgs._fields.index("pattern")
DIFFERENTIABLE = ("q", "k", "v", "block_bias", "sinks")  # the first arguments


def op_args(problem: AttentionProblem, backend: str) -> OpArgs:
    """The arguments of a problem."""
    p = problem
    rows, cols = p.undilated
    tensors = layout_tensors(rows, cols, p.block_masks)
    # a backend is given lists that need not fill their tensors
    geometry = geometry_of_lists(p, p.grid, p.layout_batch, p.layout_heads, is_exact=False)
    return _op_args(p, tensors, "", geometry, backend)


def op_args_of_call(call: Call, layout: BlockLayout | Pattern, backend: str | None) -> OpArgs:
    """The arguments of a call with a layout, which is moved to q's device, or with a pattern."""
    if isinstance(layout, Pattern):
        geometry = geometry_of(
            call,
            block_size=layout.block_size,
            layout_heads=layout.num_heads,
            is_causal_layout=call.is_causal,
        )
        return _op_args(call, LayoutTensors(), layout.text, geometry, backend)
    if not torch.compiler.is_compiling() and _torch_internals.is_fake(call.q):
        its = layout_tensors(layout.row_lists, layout.col_lists, layout.block_masks)
        tensors = LayoutTensors(*(None if x is None else _torch_internals.as_of_call(x, call.q) for x in its))
    else:
        layout = layout.to(call.q.device)
        tensors = layout_tensors(layout.row_lists, layout.col_lists, layout.block_masks)
    geometry = geometry_of_lists(call, layout.grid, layout.batch, layout.num_heads, layout.is_exact)
    return _op_args(call, tensors, "", geometry, backend)


def geometry_of_lists(
    call: Call | AttentionProblem, grid: BlockGrid, batch: int, heads: int, is_exact: bool
) -> Geometry:
    """The geometry of a call with a layout that is given as its lists."""
    return geometry_of(
        call,
        block_size=grid.block_size,
        layout_batch=batch,
        layout_heads=heads,
        is_causal_layout=grid.causal,
        is_exact_layout=is_exact,
        layout_q_len=grid.q_len,
        layout_kv_len=grid.kv_len,
        layout_q_offset=grid.q_offset,
    )


def geometry_of(
    call: Call | AttentionProblem,
    *,
    block_size: int,
    layout_heads: int,
    is_causal_layout: bool,
    layout_batch: int = 1,
    is_exact_layout: bool = True,
    layout_q_len: int = 0,
    layout_kv_len: int = 0,
    layout_q_offset: int = 0,
) -> Geometry:
    """The geometry of a call; the defaults are those of a pattern."""
    its = call.sequences
    return Geometry(
        block_size=block_size,
        layout_batch=layout_batch,
        layout_heads=layout_heads,
        # a tracer has symbols for booleans, hence the conditions
        is_causal_layout=1 if is_causal_layout else 0,
        is_exact_layout=1 if is_exact_layout else 0,
        layout_q_len=layout_q_len,
        layout_kv_len=layout_kv_len,
        layout_q_offset=layout_q_offset,
        is_causal=1 if call.is_causal else 0,
        q_offset=call.q_offset,
        is_packed=1 if its is not None and its.is_packed else 0,
        only_lengths=1 if its is not None and its.only_lengths else 0,
        max_q_len=0 if its is None else its.max_q_len,
        max_kv_len=0 if its is None else its.max_kv_len,
        deterministic=1 if call.deterministic else 0,
    )


def _op_args(
    call: Call | AttentionProblem,
    of_layout: LayoutTensors,
    pattern: str,
    geometry: Geometry,
    backend: str | None,
) -> OpArgs:
    c, dilation = call, call.dilation
    segment_lengths = list(dilation.segment_lengths) if dilation else []
    dilation_rates = list(dilation.dilation_rates) if dilation else []
    table = None if c.sequences is None else c.sequences.table
    return OpArgs(
        c.q, c.k, c.v, c.block_bias, c.sinks, c.attn_bias, c.alibi_slopes, table, c.key_padding_mask, c.seed, *of_layout,
        pattern, list(geometry), segment_lengths, dilation_rates,
        [c.softmax_scale, c.softcap, c.dropout_p], backend or "auto",
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    a = OpArgs(*args)
    q, k, v = a.q, a.k, a.v
    grad_bias, grad_sinks = (
        q.new_empty(0) if x is None else x.new_empty(x.shape) for x in (a.block_bias, a.sinks)
    )
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), grad_bias, grad_sinks


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
        *grads, grad_bias, grad_sinks = attention_backward(out, lse, grad_out, grad_lse, *args)
        grad_bias = None if args.block_bias is None else grad_bias
        return (None, None, *grads, grad_bias, None if args.sinks is None else grad_sinks, *of_others)


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
    q, a = fold(args.q, dims.q, size), args
    batch = q.shape[0] // max(size, 1)

    def bias(x: Tensor | None, dim: int | None) -> Tensor | None:
        return None if x is None else fold_bias(x, dim, size, batch)

    return a._replace(
        q=q,
        k=fold(a.k, dims.k, size),
        v=fold(a.v, dims.v, size),
        block_bias=bias(a.block_bias, dims.block_bias),
        # one for all elements stays as it is: it may be as large as all scores
        attn_bias=a.attn_bias
        if is_for_all(a.attn_bias, dims.attn_bias)
        else bias(a.attn_bias, dims.attn_bias),
        sequences=fold(a.sequences, dims.sequences, size),
        key_padding_mask=fold(a.key_padding_mask, dims.key_padding_mask, size),
    )


def is_for_all(bias: Tensor | None, dim: int | None) -> bool:
    """Whether all samples and all elements of their batches have the same bias."""
    return bias is not None and dim is None and bias.shape[0] == 1


def fits_one_batch(args: OpArgs, dims: Any) -> bool:
    """Whether samples can become elements of the batch.

    Not with dropout, whose bits count elements, packed sequences, lists for each element or sample, or numbers of a head for
    each sample.
    """
    geometry = Geometry(*args.geometry)
    return (
        args.seed is None
        and not geometry.is_packed
        and geometry.layout_batch == 1
        and all(dim is None for dim in dims.of_layout())
        and dims.sinks is None
        and dims.alibi_slopes is None
    )


def vmap_attention(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    """Samples go into the batch dimension, or one after the other, see `fits_one_batch`."""
    a, size = OpArgs(*args), info.batch_size
    dims: Any = OpArgs(*in_dims)
    if not fits_one_batch(a, dims):
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
    if a.sinks is not None or not fits_one_batch(a, dims):  # every sample has a gradient of the sinks
        return one_by_one(attention_backward, in_dims, (*results, *args), size)
    folded = fold_args(a, dims, size)
    *grads, grad_bias, no_sinks = attention_backward(
        *(fold(x, dim, size) for x, dim in zip(results, in_dims)), *folded
    )
    made = [grad.unflatten(0, (size, -1)) for grad in grads]
    bias, dim = a.block_bias, dims.block_bias
    if bias is None:
        return (*made, grad_bias, no_sinks), (0, 0, 0, None, None)
    grad_bias = grad_bias.unflatten(0, (size, -1))
    of_sample = bias if dim is None else bias.select(dim, 0)
    if of_sample.shape[0] == 1:
        grad_bias = grad_bias.sum(1, keepdim=True)
    return (*made, grad_bias, no_sinks), (0, 0, 0, 0, None)


torch.library.register_vmap(f"{NAMESPACE}::attention", vmap_attention, lib=LIBRARY)
torch.library.register_vmap(f"{NAMESPACE}::attention_backward", vmap_attention_backward, lib=LIBRARY)


# ---- FLOPs


def num_pairs(args: OpArgs) -> Any:
    """(query, key) pairs in active blocks, over the batch and all heads; what a mask hides in them counts."""
    (batch, q_len, num_heads, _), kv_len = args.q.shape, args.k.shape[1]
    geometry, device, table = Geometry(*args.geometry), torch.device("cpu"), args.table()
    if args.row_indptr is not None and args.row_indices is not None:
        device = args.row_indptr.device
        if not (has_values(args.row_indices) and (table is None or has_values(table.table))):
            # the mean over all block pairs, which is exact for whole blocks
            grid = args.grid()
            n_blocks = max(1, geometry.layout_batch * geometry.layout_heads * grid.n_rows * grid.n_cols)
            rate = min(args.dilation_rates) if args.dilation_rates else 1
            keys = table.max_kv_len if table is not None and table.is_packed else kv_len
            return batch * num_heads * args.row_indices.shape[0] * q_len * keys // (n_blocks * rate)
    with without_modes():  # the lists have values even where q has none
        layout, dilation = args.layout(int(q_len), int(kv_len), device), args.dilation()
        group = num_heads // geometry.layout_heads
        if table is None or table.only_lengths:
            elements = batch if layout.batch == 1 else 1
            span = Span(geometry.q_offset, int(q_len), int(kv_len))
            return elements * group * pairs_in_blocks(layout, dilation, span)
        spans = [
            Span(first, its_q_len, its_kv_len, None if layout.batch == 1 else element)
            for element, (_, its_q_len, _, its_kv_len, first) in enumerate(table.table.tolist())
        ]
        return group * sum(pairs_in_blocks(layout, dilation, span) for span in spans)


def has_values(x: Tensor) -> bool:
    return type(x) in PLAIN_TYPES and not x.is_meta


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
