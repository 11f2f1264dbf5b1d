"""Positions, lengths and packed sequences under torch.compile, export, torch.func, fake tensors and FLOP counting."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from dilated_attention_pytorch import (
    BlockLayout,
    SparsePatternConfig,
    block_sparse_attention,
    block_sparse_attention_varlen,
    ops,
)
from dilated_attention_pytorch.backends.registry import backend_named
from dilated_attention_pytorch.layout.lists import BlockMasks, packed_masks
from dilated_attention_pytorch.validation.call import check_call, check_packed_call
from tests.core.test_ops_compiled_lengths import Arguments, graphs_of

CONFIG = SparsePatternConfig(block_size=16, sparsity_ratio=0.5)
LAYOUT = BlockLayout.from_config(CONFIG, 160, causal=True)
NOT_CAUSAL = BlockLayout.from_config(CONFIG, 160)
SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])


def qkv(q_len: int, kv_len: int, batch: int = 2) -> list[Tensor]:
    return [torch.randn(batch, q_len, 4, 8), *(torch.randn(batch, kv_len, 2, 8) for _ in range(2))]


def with_masks(layout: BlockLayout) -> BlockLayout:
    ids = torch.arange(layout.num_block_ids, dtype=torch.int32) % 3 - 1
    return dataclasses.replace(layout, block_masks=BlockMasks(ids, packed_masks(torch.rand(2, 16, 16) < 0.7)))


def of_elements(n: int, causal: bool = True) -> BlockLayout:
    """Each element with blocks of its own."""
    mask = (torch.rand(n, 1, 10, 10) < 0.5) | torch.eye(10, dtype=torch.bool)
    return BlockLayout.from_dense(mask.tril() if causal else mask, 16, causal=causal)


# ---- lengths that change, without a new graph


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


def packed(lengths: list[int]) -> tuple[list[Tensor], Tensor, int]:
    return [x[0] for x in qkv(sum(lengths), sum(lengths), 1)], offsets_of(lengths), max(lengths)


def square(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return block_sparse_attention(q, k, v, LAYOUT, is_causal=True)


def at(q: Tensor, k: Tensor, v: Tensor, offset: Any, lengths: Any = None) -> Tensor:
    return block_sparse_attention(q, k, v, LAYOUT, is_causal=True, q_offset=offset, kv_lengths=lengths)


def varlen(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, longest: int) -> Tensor:
    return block_sparse_attention_varlen(q, k, v, LAYOUT, offsets, offsets, longest, longest, is_causal=True)


def everything(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, attn_bias: Tensor) -> Tensor:
    return block_sparse_attention(
        q, k, v, LAYOUT, is_causal=True, softcap=2.0, alibi_slopes=SLOPES, sinks=sinks, attn_bias=attn_bias,
        kv_starts=torch.tensor([0, 2]), kv_lengths=torch.tensor([20, 22]),
    )  # fmt: skip


def packed_call(lengths: list[int]) -> Arguments:
    tensors, offsets, longest = packed(lengths)
    return (*tensors, offsets, longest), {}


def int32(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


# The first calls differ in every length, and none is the number of heads: torch takes equal sizes for the same.
LENGTHS = (40, 41, 64, 100, 129, 33, 160)
CALLS: dict[str, tuple[Callable[..., Any], list[Arguments]]] = {
    "square_on_a_longer_layout": (square, [(qkv(n, n), {}) for n in LENGTHS]),
    "chunks": (square, [(qkv(q, kv), {}) for q, kv in zip((7, 9, 33, 12), (40, 50, 90, 160))]),
    "static_offset": (at, [((*qkv(3, 100), offset), {}) for offset in (50, 51, 64, 80, 97)]),
    "offset_on_the_device": (at, [((*qkv(3, 100), int32(n, n + 9)), {}) for n in (50, 51, 64, 80)]),
    "written_cache": (
        at, [((*qkv(q, 100), int32(n, n + 9) - q, int32(n, n + 9)), {}) for q, n in zip((3, 4, 5, 6), (50, 51, 64, 80))],
    ),
    "packed": (varlen, [packed_call(x) for x in ([40, 23], [44, 22, 11, 9, 5, 3], [30, 60, 21, 17], [99, 2], [8, 9, 77, 31, 10])]),
    "everything": (
        everything, [((*qkv(n, n + 3), torch.randn(4), torch.randn(n, n + 3)), {}) for n in (24, 25, 40, 77)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_changing_lengths_stay_within_two_graphs(name: str) -> None:
    function, calls = CALLS[name]
    graphs = graphs_of(function, calls, fullgraph=True)
    assert graphs.compiled <= 2
    assert graphs.ran == len(calls)


@pytest.mark.parametrize("name", ["static_offset", "packed"])
def test_dynamic_shapes_from_the_start_take_one_graph(name: str) -> None:
    function, calls = CALLS[name]
    assert graphs_of(function, calls, fullgraph=True, dynamic=True).compiled == 1


def test_layouts_that_change_stay_within_two_graphs() -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout) -> Tensor:
        return block_sparse_attention(q, k, v, layout, is_causal=True)

    layouts = [BlockLayout.from_config(CONFIG, n, causal=True) for n in (50, 66, 80, 99)]
    calls: list[Arguments] = [((*qkv(7, 40), layout), {}) for layout in layouts]
    assert graphs_of(attend, calls, fullgraph=True).compiled <= 2
    calls = [((*qkv(n, n), with_masks(BlockLayout.from_config(CONFIG, n, causal=True))), {}) for n in LENGTHS]
    assert graphs_of(attend, calls, fullgraph=True).compiled <= 2


def leaves_of(tensors: list[Tensor]) -> list[Tensor]:
    return [x.detach().clone().requires_grad_() for x in tensors]


@pytest.mark.parametrize("name", ["written_cache", "packed", "everything"])
def test_gradients_of_compiled_calls(name: str) -> None:
    function, calls = CALLS[name]
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for args, _ in calls[:2]:
        leaves = leaves_of([x for x in args if isinstance(x, Tensor) and x.is_floating_point()])
        if name == "everything":
            leaves[-1].requires_grad_(False)
        others = [x for x in args if not (isinstance(x, Tensor) and x.is_floating_point())]
        wants = [x for x in leaves if x.requires_grad]
        grads = [
            torch.autograd.grad(attend(*leaves, *others).sin().sum(), wants)
            for attend in (compiled, function)
        ]
        for ours, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_layouts_with_masks_and_elements_compile() -> None:
    layout = with_masks(of_elements(2))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return block_sparse_attention(q, k, v, layout, is_causal=True)

    torch.compiler.reset()
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    for lengths in ((160, 160), (5, 77)):
        tensors = qkv(*lengths)
        torch.testing.assert_close(compiled(*tensors), attend(*tensors))


class Cache(torch.nn.Module):
    """The last queries beside a cache."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, written: Tensor) -> Tensor:
        return at(q, k, v, written - q.shape[1], written)


@pytest.mark.parametrize("strict", [False, True], ids=["non_strict", "strict"])
def test_exported_program_takes_other_positions_and_lengths(strict: bool) -> None:
    queries = torch.export.Dim("queries", min=2, max=64)
    program = torch.export.export(
        Cache(), (*qkv(3, 100), int32(50, 60)), dynamic_shapes=({1: queries}, {}, {}, {}), strict=strict
    )
    for n, written in ((3, int32(50, 60)), (7, int32(99, 12))):
        args = (*qkv(n, 100), written)
        torch.testing.assert_close(program.module()(*args), Cache()(*args))


# ---- torch.func

Attend = Callable[..., Tensor]
SAMPLES: dict[str, tuple[Attend, tuple[int | None, ...]]] = {
    "offsets": (
        lambda q, k, v, n: block_sparse_attention(q, k, v, LAYOUT, is_causal=True, q_offset=n, kv_lengths=n + 3),
        (0, 0, 0, 0),
    ),
    "shared_offsets": (lambda q, k, v, n: at(q, k, v, n), (0, 0, 0, None)),
    "starts": (
        lambda q, k, v, n: block_sparse_attention(q, k, v, LAYOUT, is_causal=True, kv_starts=n - 9), (0, 0, 0, 0),
    ),
    "lists_of_elements": (
        lambda q, k, v, n: block_sparse_attention(q, k, v, of_elements_, q_offset=n), (0, 0, 0, 0),
    ),
    "masks": (lambda q, k, v, n: block_sparse_attention(q, k, v, masked, is_causal=True, q_offset=n), (0, 0, 0, 0)),
}  # fmt: skip
of_elements_, masked = of_elements(2, causal=False), with_masks(LAYOUT)


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_have_positions_of_their_own(name: str) -> None:
    attend, in_dims = SAMPLES[name]
    tensors = [torch.stack(x) for x in zip(*(qkv(3, 40) for _ in range(3)))]
    positions = torch.tensor([[9, 20], [30, 11], [25, 37]])
    positions = positions if in_dims[3] == 0 else positions[0]
    args = (*tensors, positions)

    def total(*x: Tensor) -> Tensor:
        return attend(*x).sin().sum()

    found = torch.vmap(attend, in_dims)(*args)
    grads = torch.vmap(torch.func.grad(total, (0, 1, 2)), in_dims)(*args)
    for i in range(3):
        one = [x if dim is None else x[i] for x, dim in zip(args, in_dims, strict=True)]
        torch.testing.assert_close(found[i], attend(*one))
        leaves = leaves_of(one[:3])
        wanted = torch.autograd.grad(total(*leaves, one[3]), leaves)
        for ours, theirs in zip(grads, wanted, strict=True):
            torch.testing.assert_close(ours[i], theirs)


def test_packed_samples() -> None:
    tensors = [torch.stack(x) for x in zip(*(packed([40, 23, 9])[0] for _ in range(2)))]
    offsets = torch.stack([offsets_of([40, 23, 9]), offsets_of([10, 50, 12])])

    def total(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
        return varlen(q, k, v, offsets, 50).sin().sum()

    found = torch.vmap(torch.func.grad(total))(*tensors, offsets)
    for i in range(2):
        q, k, v = leaves_of([x[i] for x in tensors])
        (wanted,) = torch.autograd.grad(total(q, k, v, offsets[i]), q)
        torch.testing.assert_close(found[i], wanted)


@pytest.mark.parametrize("batched", [False, True], ids=["shared", "each_its_own"])
def test_gradients_of_sinks_and_biases_of_samples(batched: bool) -> None:
    tensors = [torch.stack(x) for x in zip(*(qkv(8, 40) for _ in range(3)))]
    sinks, bias = torch.randn(4), torch.randn(8, 40)
    if batched:
        sinks, bias = torch.randn(3, 4), torch.randn(3, 2, 1, 8, 40)

    def total(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, sinks: Tensor) -> Tensor:
        out, lse = block_sparse_attention(
            q, k, v, LAYOUT, is_causal=True, attn_bias=bias, sinks=sinks, alibi_slopes=SLOPES, return_lse=True
        )
        return out.sin().sum() + lse.sum()

    in_dims = (0, 0, 0, *((0, 0) if batched else (None, None)))
    found = torch.vmap(torch.func.grad(total, (0, 4)), in_dims)(*tensors, bias, sinks)
    for i in range(3):
        q, k, v, its_sinks = leaves_of([*(x[i] for x in tensors), sinks[i] if batched else sinks])
        wanted = torch.autograd.grad(total(q, k, v, bias[i] if batched else bias, its_sinks), (q, its_sinks))
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours[i], theirs)


# ---- the operators


def op_args(name: str) -> ops.OpArgs:
    torch.manual_seed(0)
    q, k, v = (x.requires_grad_() for x in qkv(9, 40))
    sinks = torch.randn(4, requires_grad=True)
    options: dict[str, Any] = {"sinks": sinks, "softcap": 2.0, "alibi_slopes": SLOPES, "is_causal": True}
    if name == "packed":
        tensors, offsets, longest = packed([20, 13, 0, 7])
        call = check_packed_call(*leaves_of(tensors), LAYOUT, offsets, offsets, longest, longest, **options)
        return ops.op_args_of_call(call, LAYOUT, None)
    layout = with_masks(of_elements(2))
    bias = torch.randn(2, 1, layout.num_block_ids, requires_grad=True)
    call = check_call(
        q, k, v, layout, q_offset=int32(3, 29), kv_starts=int32(0, 1), kv_lengths=int32(39, 40), block_bias=bias,
        attn_bias=torch.randn(1, 4, 9, 40), **options,
    )  # fmt: skip
    return ops.op_args_of_call(call, layout, None)


@pytest.mark.parametrize("name", ["batch_of_all_options", "packed"])
def test_opcheck(name: str) -> None:
    args = op_args(name)
    torch.library.opcheck(ops.attention, args)
    plain = [x.detach() if isinstance(x, Tensor) else x for x in args]
    out, lse = ops.attention(*plain)
    torch.library.opcheck(
        ops.attention_backward, (out, lse, torch.randn_like(out), torch.randn_like(lse), *plain)
    )


def test_fake_and_meta_tensors_get_their_shapes() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        q, k, v = qkv(9, 40)
        out, lse = block_sparse_attention(
            q, k, v, LAYOUT, is_causal=True, q_offset=torch.zeros(2, dtype=torch.int32), sinks=torch.ones(4),
            attn_bias=torch.ones(9, 40), alibi_slopes=torch.ones(4), return_lse=True,
        )  # fmt: skip
        assert (out.shape, lse.shape) == ((2, 9, 4, 8), (2, 4, 9))
        offsets = torch.zeros(4, dtype=torch.int32)
        out, lse = block_sparse_attention_varlen(
            q[0], k[0], v[0], LAYOUT, offsets, offsets, 9, 40, is_causal=True, return_lse=True
        )
        assert (out.shape, lse.shape) == ((9, 4, 8), (4, 9))


def test_gradient_of_a_gradient_through_the_operator_is_refused() -> None:
    q, k, v = leaves_of(qkv(9, 40))
    sinks = torch.zeros(4, requires_grad=True)
    out = block_sparse_attention(q, k, v, LAYOUT, is_causal=True, sinks=sinks)
    (first,) = torch.autograd.grad(out.square().sum(), sinks, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiates once"):
        first.square().sum().backward()


def test_tangents_of_sinks_are_refused() -> None:
    q, k, v = qkv(9, 40)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(torch.zeros(4), torch.ones(4))
        with pytest.raises(RuntimeError, match="forward-mode AD is not supported, and sinks has a tangent"):
            block_sparse_attention(q, k, v, LAYOUT, is_causal=True, sinks=dual)


# ---- FLOPs


def flops(attend: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        attend()
    total: int = counter.get_total_flops()
    return total


def test_flops_count_the_positions_of_the_call() -> None:
    full = BlockLayout.from_config(SparsePatternConfig(block_size=16, sparsity_ratio=1.0), 160)
    q, k, v = qkv(9, 40)
    pair = 2 * 4 * 4 * 8  # two products of 8 numbers, for 2 elements of 4 heads
    assert flops(lambda: block_sparse_attention(q, k, v, full)) == pair * 9 * 40
    assert flops(lambda: block_sparse_attention(q, k, v, full, q_offset=70)) == pair * 9 * 40
    offsets = torch.tensor([155, 20])
    attend = torch.compile(block_sparse_attention, backend="aot_eager")
    # of the first element 5 queries are in the layout
    assert flops(lambda: attend(q, k, v, full, q_offset=offsets)) == pair // 2 * (5 + 9) * 40
    tensors, ends, longest = packed([20, 13, 7])
    sequences = flops(lambda: block_sparse_attention_varlen(*tensors, full, ends, ends, longest, longest))
    assert sequences == pair // 2 * (20**2 + 13**2 + 7**2)


# ---- calls that are cached


def test_calls_with_a_static_position_are_cached_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = BlockLayout.from_config(CONFIG, 160, causal=True)
    q, k, v = qkv(1, 100)
    wanted = {n: at(q, k, v, n) for n in (50, 99)}
    before = {n: block_sparse_attention(q, k, v, layout, is_causal=True, q_offset=n) for n in (50, 99)}
    assert len(layout.calls) == 2
    monkeypatch.setattr(backend_named("cpu"), "rejects", lambda problem: "resolved again")
    for n in (50, 99):
        found = block_sparse_attention(q, k, v, layout, is_causal=True, q_offset=n)
        assert torch.equal(found, before[n])
        torch.testing.assert_close(found, wanted[n])


def test_shorter_square_calls_are_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = BlockLayout.from_config(CONFIG, 160, causal=True)
    q, k, v = qkv(77, 77)
    wanted = block_sparse_attention(q, k, v, layout, is_causal=True)
    monkeypatch.setattr(backend_named("cpu"), "rejects", lambda problem: "resolved again")
    assert torch.equal(block_sparse_attention(q, k, v, layout, is_causal=True), wanted)
