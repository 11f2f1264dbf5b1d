"""Positions and lengths that stay on the GPU: no step waits for it, and a CUDA graph is replayed with other values."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import (
    BlockLayout,
    SparsePatternConfig,
    block_sparse_attention,
    block_sparse_attention_varlen,
)

pytestmark = pytest.mark.gpu

CONFIG = SparsePatternConfig(block_size=64, sparsity_ratio=0.3)
LONGEST, HEADS, DIM = 1024, 4, 64


@pytest.fixture(params=["triton", "hopper"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "hopper" and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a GPU of compute capability 9.0")
    return name


@pytest.fixture
def without_synchronisation() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def int32(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32, device="cuda")


def leaves(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, device="cuda", dtype=torch.bfloat16).requires_grad_() for shape in shapes]


class Step:
    """A call and its backward, whose integers are in buffers; two sets of their values."""

    def __init__(self, name: str, backend: str) -> None:
        layout = BlockLayout.from_config(CONFIG, LONGEST, causal=True, device="cuda")
        self.sinks = torch.randn(HEADS, device="cuda", requires_grad=True)
        self.attend: Callable[[], Tensor]
        if name == "packed":
            q, k, v = leaves(*[(700, HEADS, DIM)] * 3)
            self.buffers = [int32(0, 300, 600, 700), int32(0, 300, 600, 700)]
            self.values = [
                [int32(0, 300, 600, 700), int32(0, 300, 600, 700)],
                [int32(0, 10, 600, 650), int32(0, 64, 654, 700)],
            ]
            self.attend = lambda: block_sparse_attention_varlen(
                q, k, v, layout, *self.buffers, 600, 600, is_causal=True, sinks=self.sinks, backend=backend
            )
        else:
            n_queries = 1 if name == "decoding" else 100
            q, k, v = leaves((2, n_queries, HEADS, DIM), *[(2, LONGEST, HEADS, DIM)] * 2)
            self.buffers = [int32(500, 900), int32(400, 800), int32(0, 7)]
            self.values = [
                [int32(500, 900), int32(400, 800), int32(0, 7)],
                [int32(1024, 64), int32(924, 0), int32(90, 0)],
            ]
            lengths, offsets, starts = self.buffers
            self.attend = lambda: block_sparse_attention(
                q, k, v, layout, is_causal=True, q_offset=offsets, kv_lengths=lengths, kv_starts=starts, softcap=20.0,
                sinks=self.sinks, backend=backend,
            )  # fmt: skip
        self.leaves = [q, k, v, self.sinks]
        self.grad = torch.randn_like(self.attend().detach())

    def set(self, i: int) -> None:
        for buffer, value in zip(self.buffers, self.values[i], strict=True):
            buffer.copy_(value)

    def run(self) -> list[Tensor]:
        out = self.attend()
        grads = torch.autograd.grad(out, self.leaves, self.grad)
        return [
            out.detach(),
            *grads,
        ]  # a graph that lives on would tie a capture to the stream it was made on


@pytest.mark.parametrize("name", ["decoding", "chunk", "packed"])
def test_a_graph_replayed_with_other_values_is_bit_equal_to_eager(
    name: str, backend: str, without_synchronisation: None
) -> None:
    torch.cuda.set_sync_debug_mode("default")  # the first call on a device may wait
    step = Step(name, backend)
    wanted = []
    for i in (0, 1):
        step.set(i)
        step.run()
    torch.cuda.set_sync_debug_mode("error")
    for i in (0, 1):
        step.set(i)
        wanted.append(step.run())
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step.run()  # what is prepared for a layout is waited for on this stream
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph, stream=stream):
        captured = step.run()
    for i in (1, 0, 1):
        step.set(i)
        graph.replay()
        equal = [(ours == theirs).all() for ours, theirs in zip(captured, wanted[i], strict=True)]
        torch.cuda.set_sync_debug_mode("default")
        assert all(bool(each) for each in equal)
        torch.cuda.set_sync_debug_mode("error")


def test_shorter_calls_on_a_long_layout_wait_for_nothing_after_the_first(
    backend: str, without_synchronisation: None
) -> None:
    torch.cuda.set_sync_debug_mode("default")
    layout = BlockLayout.from_config(CONFIG, LONGEST, causal=True, device="cuda")
    tensors = leaves(*[(1, 500, HEADS, DIM)] * 3)
    exact = BlockLayout.from_config(CONFIG, 500, causal=True, device="cuda")
    wanted = block_sparse_attention(*tensors, exact, is_causal=True, backend=backend)
    block_sparse_attention(*tensors, layout, is_causal=True, backend=backend)
    torch.cuda.set_sync_debug_mode("error")
    shorter = [x[:, :499] for x in tensors]
    found = block_sparse_attention(*tensors, layout, is_causal=True, backend=backend)
    block_sparse_attention(*shorter, layout, is_causal=True, backend=backend).sum().backward()
    torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", ["decoding", "chunk", "packed"])
def test_gpu_gives_what_the_reference_gives(name: str, backend: str) -> None:
    step = Step(name, backend)
    step.set(1)
    found = step.run()
    layout = BlockLayout.from_config(CONFIG, LONGEST, causal=True, device="cuda")
    q, k, v = (x.detach().float().requires_grad_() for x in step.leaves[:3])
    sinks = step.sinks.detach().requires_grad_()
    if name == "packed":
        out = block_sparse_attention_varlen(
            q, k, v, layout, *step.buffers, 600, 600, is_causal=True, sinks=sinks, backend="reference"
        )
    else:
        lengths, offsets, starts = step.buffers
        out = block_sparse_attention(
            q, k, v, layout, is_causal=True, q_offset=offsets, kv_lengths=lengths, kv_starts=starts, softcap=20.0,
            sinks=sinks, backend="reference",
        )  # fmt: skip
    wanted = [out, *torch.autograd.grad(out, [q, k, v, sinks], step.grad.float())]
    for ours, theirs in zip(found, wanted, strict=True):
        # bfloat16 rounds by 2**-9 in the products, the weights and the result
        assert (ours.float() - theirs).norm() < 1e-2 * theirs.norm()
