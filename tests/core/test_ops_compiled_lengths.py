"""A compiled call serves changing lengths with two graphs, as scaled_dot_product_attention does in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import (
    BlockLayout,
    BlockSparseAttention,
    SparsePatternConfig,
    block_sparse_attention,
)

CONFIG = SparsePatternConfig(block_size=16, sparsity_ratio=0.5)
# The number of blocks stays the same between some, and changes between others.
LENGTHS = (64, 65, 66, 120, 121, 127, 128, 129, 130, 200, 31, 47)

Arguments = tuple[Sequence[Any], dict[str, Any]]


class Graphs:
    """A backend of torch.compile that counts the graphs it is given, and how often they run."""

    def __init__(self) -> None:
        self.compiled = self.ran = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self.compiled += 1

        def run(*args: Any) -> Any:
            self.ran += 1
            return graph(*args)

        return run


def graphs_of(
    function: Callable[..., Any], calls: Iterable[Arguments], with_gradients: bool = False, **options: Any
) -> Graphs:
    """The graphs of the compiled function over all calls, whose results must be those of the eager one."""
    torch.compiler.reset()
    graphs = Graphs()
    compiled = torch.compile(function, backend=graphs, **options)
    for args, kwargs in calls:
        leaves = [x for x in args if isinstance(x, Tensor)]
        for leaf in leaves:
            leaf.requires_grad_(with_gradients)
        found, expected = compiled(*args, **kwargs), function(*args, **kwargs)
        torch.testing.assert_close(found, expected)
        if with_gradients:
            for ours, theirs in zip(
                torch.autograd.grad(found.sin().sum(), leaves),
                torch.autograd.grad(expected.sin().sum(), leaves),
                strict=True,
            ):
                torch.testing.assert_close(ours, theirs)
    return graphs


def qkv(q_len: int, kv_len: int | None = None) -> list[Tensor]:
    kv_len = q_len if kv_len is None else kv_len
    return [torch.randn(2, q_len, 4, 16), torch.randn(2, kv_len, 2, 16), torch.randn(2, kv_len, 2, 16)]


@pytest.mark.parametrize("with_gradients", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
def test_module_serves_twelve_lengths_with_two_graphs(
    is_causal: bool, fullgraph: bool, with_gradients: bool
) -> None:
    module = BlockSparseAttention(CONFIG)
    calls = [(qkv(length), {"is_causal": is_causal}) for length in LENGTHS]
    graphs = graphs_of(module, calls, with_gradients, fullgraph=fullgraph)
    assert (graphs.compiled, graphs.ran) == (2, 12)


OPTIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "padding": lambda length: {"key_padding_mask": torch.rand(2, length) < 0.3},
    "kv_lengths": lambda length: {"kv_lengths": torch.tensor([length, length // 2])},
    "layout": lambda length: {"layout": BlockLayout.from_config(CONFIG, length)},
    "causal_layout": lambda length: {
        "layout": BlockLayout.from_config(CONFIG, length, causal=True),
        "is_causal": True,
    },
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_changing_lengths_stay_within_two_graphs(name: str) -> None:
    calls = [(qkv(length), OPTIONS[name](length)) for length in LENGTHS]
    graphs = graphs_of(BlockSparseAttention(CONFIG), calls, with_gradients=True, fullgraph=True)
    assert (graphs.compiled, graphs.ran) == (2, 12)


MODULES: dict[str, Callable[[], BlockSparseAttention]] = {
    "dilated": lambda: BlockSparseAttention(CONFIG, [16, 64], [1, 2]),
    "per_head": lambda: BlockSparseAttention([CONFIG, SparsePatternConfig("local_window", 16, 0.3)]),
    "reference": lambda: BlockSparseAttention(CONFIG, backend="reference"),
}


@pytest.mark.parametrize("name", MODULES)
def test_settings_of_a_module_stay_within_two_graphs(name: str) -> None:
    calls = [(qkv(length), {}) for length in LENGTHS]
    graphs = graphs_of(MODULES[name](), calls, with_gradients=True, fullgraph=True)
    assert (graphs.compiled, graphs.ran) == (2, 12)


def test_attention_weights_of_changing_lengths() -> None:
    calls = [(qkv(length), {"return_attention_weights": True}) for length in LENGTHS]
    graphs = graphs_of(BlockSparseAttention(CONFIG), calls, fullgraph=True)
    assert (graphs.compiled, graphs.ran) == (2, 12)


def test_a_hundred_steps_of_decoding_take_two_graphs() -> None:
    calls = [(qkv(1, 50 + step), {"is_causal": True}) for step in range(100)]
    graphs = graphs_of(BlockSparseAttention(CONFIG), calls, fullgraph=True)
    assert graphs.compiled <= 2
    assert graphs.ran == 100


def attend(q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout) -> Tensor:
    return block_sparse_attention(q, k, v, layout, is_causal=True)


def test_function_serves_twelve_layouts_with_two_graphs() -> None:
    calls = [((*qkv(n), BlockLayout.from_config(CONFIG, n, causal=True)), {}) for n in LENGTHS]
    graphs = graphs_of(attend, calls, with_gradients=True, fullgraph=True)
    assert (graphs.compiled, graphs.ran) == (2, 12)


def test_function_decodes_a_hundred_steps_with_two_graphs() -> None:
    calls = [((*qkv(1, n), BlockLayout.from_config(CONFIG, 1, n, causal=True)), {}) for n in range(50, 150)]
    graphs = graphs_of(attend, calls, fullgraph=True)
    assert graphs.compiled <= 2
    assert graphs.ran == 100


def test_dynamic_shapes_from_the_start_take_one_graph() -> None:
    calls = [(qkv(length), {}) for length in LENGTHS]
    assert graphs_of(BlockSparseAttention(CONFIG), calls, fullgraph=True, dynamic=True).compiled == 1


def test_length_marked_dynamic_is_not_specialised() -> None:
    calls = []
    for length in LENGTHS:
        tensors = qkv(length)
        for x in tensors:
            torch._dynamo.mark_dynamic(x, 1)
        calls.append((tensors, {}))
    assert graphs_of(BlockSparseAttention(CONFIG), calls, fullgraph=True).compiled == 1


def test_lengths_come_again_without_another_graph() -> None:
    module = BlockSparseAttention(CONFIG)
    calls = [(qkv(length), {}) for length in range(64, 104)]
    graphs = graphs_of(module, [*calls, *calls], fullgraph=True)
    assert (graphs.compiled, graphs.ran) == (2, 80)


def test_layout_that_is_looked_up_when_the_graph_runs_may_have_been_dropped() -> None:
    module = BlockSparseAttention(CONFIG)
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    tensors = [x.requires_grad_() for x in qkv(40)]
    expected = torch.autograd.grad(module(*tensors).sin().sum(), tensors)
    out = compiled(*tensors)
    module.clear_cache()
    for ours, theirs in zip(torch.autograd.grad(out.sin().sum(), tensors), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_layout_of_a_compiled_call_may_die_before_its_backward() -> None:
    torch.compiler.reset()
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    tensors = [x.requires_grad_() for x in qkv(40)]
    layout = BlockLayout.from_config(CONFIG, 40, causal=True)
    expected = torch.autograd.grad(attend(*tensors, layout).sin().sum(), tensors)
    out = compiled(*tensors, layout)
    torch.compiler.reset()
    del layout
    for ours, theirs in zip(torch.autograd.grad(out.sin().sum(), tensors), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_backend_that_cannot_serve_says_why_when_the_graph_runs() -> None:
    torch.compiler.reset()
    module = BlockSparseAttention(CONFIG, backend="hopper")
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match="backend='hopper' cannot serve this call"):
        compiled(*qkv(40))


def test_module_layout_says_that_it_cannot_be_compiled() -> None:
    torch.compiler.reset()
    module = BlockSparseAttention(CONFIG)

    def call(q: Tensor) -> Tensor:
        return module(q, q, q, layout=module.layout(q.shape[1]))

    # torch 2.6 names the error's kind alone
    with pytest.raises(Exception, match=r"call it outside|Observed exception"):
        torch.compile(call, fullgraph=True, backend="eager")(torch.randn(1, 40, 2, 16))


@pytest.mark.parametrize("strict", [False, True], ids=["non_strict", "strict"])
@pytest.mark.parametrize("name", ["plain", "dilated"])
def test_exported_program_serves_every_length(name: str, strict: bool) -> None:
    module = BlockSparseAttention(CONFIG) if name == "plain" else MODULES[name]()
    length = torch.export.Dim("length", min=2, max=4096)
    shapes = ({1: length}, {1: length}, {1: length})
    program = torch.export.export(module, tuple(qkv(40)), dynamic_shapes=shapes, strict=strict)
    for n in (33, 40, 129):
        tensors = qkv(n)
        torch.testing.assert_close(program.module()(*tensors), module(*tensors))


def test_layout_replaces_the_pattern_of_the_module() -> None:
    module = BlockSparseAttention(CONFIG)
    layout = BlockLayout.from_config(SparsePatternConfig(block_size=32, sparsity_ratio=1.0), 40)
    tensors = qkv(40)
    found = module(*tensors, layout=layout)
    torch.testing.assert_close(found, block_sparse_attention(*tensors, layout))
    assert not torch.equal(found, module(*tensors))
    out, weights = module(*tensors, layout=layout, return_attention_weights=True)
    assert torch.equal(out, found)
    assert (weights > 0).all()
