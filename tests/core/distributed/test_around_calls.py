"""What torch does around a call: checkpoints, modes, compiled code, several backwards. The results are those of one process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dilated_attention_pytorch import (
    BlockLayout,
    SparsePatternConfig,
    block_sparse_attention,
    block_sparse_attention_varlen,
)
from dilated_attention_pytorch.distributed.attention import distributed_block_sparse_attention
from dilated_attention_pytorch.distributed.config import DistributedSparseConfig
from dilated_attention_pytorch.distributed.packed_sharding import PackedSharding
from dilated_attention_pytorch.distributed.selected import distributed_attention_from_indices
from dilated_attention_pytorch.distributed.sharding import SequenceSharding, shard_sequence
from dilated_attention_pytorch.distributed.unshard import unshard_sequence
from dilated_attention_pytorch.distributed.varlen import distributed_block_sparse_attention_varlen
from tests.core.distributed.gloo_processes import GlooProcesses, needs_gloo

pytestmark = needs_gloo

LENGTH, SIZE = 200, 16
SAME = 2e-5  # relative error in float32: sums over some hundred terms in another order
LIMIT = 120.0

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


class Case:
    """Inputs of the whole sequence and of this rank, and a call of each kind."""

    def __init__(self, ratio: float = 0.4) -> None:
        made = torch.Generator().manual_seed(0)
        self.layout = BlockLayout.from_config(
            SparsePatternConfig(block_size=SIZE, sparsity_ratio=ratio), LENGTH, causal=True
        )
        self.config = DistributedSparseConfig(torch.distributed.group.WORLD, stages=2)
        self.sharding = SequenceSharding.from_layout(self.layout, self.config)
        self.options: dict[str, Any] = {"is_causal": True}
        self.whole = [torch.randn(2, LENGTH, n, 16, generator=made) for n in (4, 2, 2)]
        self.grad = torch.randn(2, LENGTH, 4, 16, generator=made)

    def with_bias(self) -> Case:
        """The case with a block bias and sinks, which are alike on all ranks."""
        made = torch.Generator().manual_seed(1)
        ids = self.layout.num_block_ids
        self.options |= {
            "block_bias": torch.randn(1, 4, ids, generator=made),
            "sinks": torch.randn(4, generator=made),
        }
        for name in ("block_bias", "sinks"):
            self.options[name].requires_grad_()
        return self

    def own(self, x: Tensor) -> Tensor:
        return shard_sequence(x, self.sharding)

    def alone(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return block_sparse_attention(q, k, v, self.layout, **self.options)

    def together(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return distributed_block_sparse_attention(
            q, k, v, self.layout, self.sharding, self.config, **self.options
        )

    def error(self, around: Callable[[Attention, list[Tensor], Tensor], list[Tensor]]) -> float:
        """The greatest relative error of what `around` does with the call of all ranks, against that with one process."""
        inputs = [x.clone().requires_grad_() for x in self.whole]
        wanted = [self.own(x) for x in around(self.alone, inputs, self.grad)]
        inputs = [self.own(x).clone().requires_grad_() for x in self.whole]
        got = around(self.together, inputs, self.own(self.grad))
        return max(relative_error(x, y) for x, y in zip(got, wanted, strict=True))


class PackedCase(Case):
    """Sequences one behind the other, one of them on both ranks."""

    def __init__(self, ratio: float) -> None:
        super().__init__(ratio)
        self.whole = [x[0] for x in self.whole]
        self.grad = self.grad[0]
        self.offsets = torch.tensor([0, 30, 150, LENGTH])
        self.packed = PackedSharding.from_sequences(self.offsets, self.layout, self.config, is_causal=True)

    def own(self, x: Tensor) -> Tensor:
        return shard_sequence(x, self.packed, 0)

    def alone(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        offsets, longest = self.offsets.int(), self.packed.max_seqlen
        return block_sparse_attention_varlen(
            q, k, v, self.layout, offsets, offsets, longest, longest, **self.options
        )

    def together(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return distributed_block_sparse_attention_varlen(
            q, k, v, self.layout, self.packed, self.config, **self.options
        )


class ChosenCase(Case):
    """Blocks that each rank chose for its rows."""

    def __init__(self, ratio: float) -> None:
        super().__init__(ratio)
        rows = torch.arange(self.layout.grid.n_rows)
        self.indices = torch.stack([rows, rows // 2, rows * 0], 1)

    def alone(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        layout = BlockLayout.from_indices(
            self.indices, q_len=LENGTH, kv_len=LENGTH, block_size=SIZE, causal=True
        )
        return block_sparse_attention(q, k, v, layout, **self.options)

    def together(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        indices = self.indices[self.sharding.block_rows()]
        return distributed_attention_from_indices(
            q, k, v, indices, self.sharding, self.config, **self.options
        )


def relative_error(x: Tensor, y: Tensor) -> float:
    return float((x - y).detach().norm() / y.detach().norm())


# ---- what is done around a call: each gets the attention, its inputs and the gradient of its result


def plainly(attend: Attention, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    out = attend(*inputs)
    out.backward(grad)
    return [out, *(x.grad for x in inputs if x.grad is not None)]


def twice_backward(attend: Attention, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    out = attend(*inputs)
    first = torch.autograd.grad(out, inputs, grad, retain_graph=True)
    second = torch.autograd.grad(out, inputs, 2 * grad)
    return [out, *first, *second]


def backwards_out_of_order(attend: Attention, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    first, second = attend(*inputs), attend(inputs[0], inputs[2], inputs[1])
    return [*torch.autograd.grad(first, inputs, grad), *torch.autograd.grad(second, inputs, grad)]


def layers(attend: Attention, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """Two in a row, and a third that does not need the second: which backward runs first is autograd's choice."""
    q, k, v = inputs
    out = attend(attend(q, k, v), k, v) + attend(q, v, k)
    out.backward(grad)
    return [out, *(x.grad for x in inputs if x.grad is not None)]


def in_checkpoint(attend: Attention, inputs: list[Tensor], grad: Tensor, reentrant: bool) -> list[Tensor]:
    def layer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.tanh(attend(torch.tanh(q), torch.tanh(k), v))

    out: Tensor = checkpoint(layer, *inputs, use_reentrant=reentrant)
    out = checkpoint(layer, out, *inputs[1:], use_reentrant=reentrant)
    out.backward(grad)
    return [out, *(x.grad for x in inputs if x.grad is not None)]


def compiled(attend: Attention, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    @torch.compile(backend="eager")
    def layer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.tanh(attend(torch.tanh(q), k, v)) * 2

    return plainly(layer, inputs, grad)


def compiled_step(attend: Attention, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    return torch.compile(plainly, backend="eager")(attend, inputs, grad)


def inference_first(attend: Attention, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    with torch.inference_mode():
        before = attend(*(x.clone() for x in inputs))
    return [before, *plainly(attend, inputs, grad)]


def on_default_device(attend: Attention, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    with torch.device("meta"):
        return plainly(attend, inputs, grad)


def sharded_on_default_device(rank: int) -> bool:
    """Whether shardings are what they are without a default device, which holds no values here."""
    same = True
    for balance in ("cost", "zigzag", "contiguous"):
        case, config = Case(), DistributedSparseConfig(torch.distributed.group.WORLD, balance=balance)
        wanted = SequenceSharding.from_layout(case.layout, config)
        x = torch.arange(LENGTH)
        with torch.device("meta"):
            packed = PackedSharding.from_sequences([0, 30, 150, LENGTH], case.layout, config)
            same &= torch.equal(shard_sequence(x, packed, 0), packed.indices("cpu"))
            sharding = SequenceSharding.from_layout(case.layout, config)
            back = unshard_sequence(shard_sequence(x, sharding, 0), sharding, config, 0)
            same &= sharding == wanted and sharding.imbalance(case.layout) == wanted.imbalance(case.layout)
            same &= torch.equal(back, x) and torch.equal(
                shard_sequence(x, sharding, 0), sharding.positions("cpu")
            )
    return same


def unused_out(attend: Attention, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """A rank whose tokens do not count for the loss, as padding."""
    out = attend(*inputs)
    (out * torch.zeros(())).sum().backward()
    return [out]


def only_some_need_gradients(attend: Attention, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    inputs[1].requires_grad_(False)
    return plainly(attend, inputs, grad)


def as_strided(attend: Attention, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """Views of a projection of all three, and a gradient that is expanded."""
    qkv = torch.cat(inputs, 2).detach().requires_grad_()
    out = attend(*qkv.split([4, 2, 2], 2))
    out.backward(grad[:, :, :1].expand_as(out))
    assert qkv.grad is not None
    return [out, qkv.grad]


AROUND: dict[str, Callable[..., list[Tensor]]] = {
    "plainly": plainly,
    "twice_backward": twice_backward,
    "backwards_out_of_order": backwards_out_of_order,
    "layers": layers,
    "checkpoint": partial(in_checkpoint, reentrant=False),
    "reentrant checkpoint": partial(in_checkpoint, reentrant=True),
    "compiled": compiled,
    "compiled step": compiled_step,
    "inference_first": inference_first,
    "on_default_device": on_default_device,
    "unused_out": unused_out,
    "only_some_need_gradients": only_some_need_gradients,
    "as_strided": as_strided,
}
OF_ALL_KINDS = {
    name: around
    for name, around in AROUND.items()
    if name
    in ("twice_backward", "layers", "checkpoint", "compiled step", "inference_first", "on_default_device")
}


def errors_of_kinds(rank: int) -> dict[str, float]:
    """Of the other kinds of calls."""
    found = {}
    for i, (name, around) in enumerate(OF_ALL_KINDS.items()):
        for kind in (PackedCase, ChosenCase):
            found[f"{kind.__name__}, {name}"] = kind(0.3 + i / 100).error(around)
    return found


def errors(rank: int) -> dict[str, float]:
    """Of everything around a call, each with a layout of its own, so that nothing is cached."""
    found = {}
    for i, (name, around) in enumerate(AROUND.items()):
        cases = Case(0.3 + i / 100), Case(0.3 + i / 100).with_bias()
        found[name] = max(case.error(around) for case in cases)
    return found


@pytest.fixture(scope="module")
def found(two: GlooProcesses) -> list[dict[str, float]]:
    made: list[dict[str, float]] = two.run(errors, limit=LIMIT)
    return made


@pytest.mark.parametrize("name", AROUND)
def test_results_are_those_of_one_process(found: list[dict[str, float]], name: str) -> None:
    for of_rank in found:
        assert of_rank[name] < SAME


def test_default_device_does_not_matter_to_shardings(two: GlooProcesses) -> None:
    assert two.run(sharded_on_default_device, limit=LIMIT) == [True, True]


def test_results_of_other_kinds_of_calls_are_those_of_one_process(two: GlooProcesses) -> None:
    for of_rank in two.run(errors_of_kinds, limit=LIMIT):
        assert {name: error for name, error in of_rank.items() if not error < SAME} == {}
