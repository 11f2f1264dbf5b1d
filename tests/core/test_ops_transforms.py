"""torch.func: gradients and batches of the operators, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils import _pytree as pytree

from dilated_attention_pytorch import (
    BlockLayout,
    BlockSparseAttention,
    SparsePatternConfig,
    block_sparse_attention,
)

# of the dense attention that results are compared with
pytestmark = pytest.mark.filterwarnings(
    "ignore:There is a performance drop because we have not yet implemented the batching rule for "
    "aten.._scaled_dot_product_flash_attention_for_cpu"
)

LENGTH = 20
DENSE = SparsePatternConfig(block_size=16, sparsity_ratio=1.0)
SPARSE = SparsePatternConfig(block_size=16, sparsity_ratio=0.5)
MODULE = BlockSparseAttention(DENSE)

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return block_sparse_attention(q, k, v, BlockLayout.from_config(DENSE, q.shape[-3]))


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    group = q.shape[-2] // k.shape[-2]
    k, v = k.repeat_interleave(group, -2), v.repeat_interleave(group, -2)
    return scaled_dot_product_attention(*(x.transpose(-3, -2) for x in (q, k, v))).transpose(-3, -2)


def loss(attend: Attend) -> Callable[..., Tensor]:
    return lambda q, k, v: attend(q, k, v).square().sum()


def qkv(*lead: int) -> list[Tensor]:
    return [torch.randn(*lead, LENGTH, heads, 4) for heads in (4, 2, 2)]


def assert_equal(found: Any, expected: Any) -> None:
    pairs = zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


ATTENDS = [pytest.param(MODULE, id="module"), pytest.param(function, id="function")]
TRANSFORMS: dict[str, Callable[[Attend], Any]] = {
    "grad": lambda attend: torch.func.grad(loss(attend), (0, 1, 2))(*qkv(1)),
    "grad_and_value": lambda attend: torch.func.grad_and_value(loss(attend))(*qkv(1)),
    "vjp": lambda attend: torch.func.vjp(attend, *(x := qkv(1)))[1](x[0]),
    "jacrev": lambda attend: torch.func.jacrev(attend, (0, 1, 2))(*qkv(1)),
    "vmap": lambda attend: torch.vmap(attend)(*qkv(3, 2)),
    "vmap_of_vmap": lambda attend: torch.vmap(torch.vmap(attend))(*qkv(3, 2, 1)),
    "vmap_of_grad": lambda attend: torch.vmap(torch.func.grad(loss(attend), (0, 1, 2)))(*qkv(3, 2)),
    "vmap_of_grad_with_shared_keys": lambda attend: torch.vmap(
        torch.func.grad(loss(attend), (0, 1, 2)), (0, None, None)
    )(qkv(3, 2)[0], *qkv(2)[1:]),
    "grad_of_vmap": lambda attend: torch.func.grad(loss(torch.vmap(attend)), (0, 1, 2))(*qkv(3, 2)),
    "vmap_over_another_axis": lambda attend: torch.vmap(attend, (2, None, 0), 1)(
        qkv(3, 2)[0].movedim(0, 2), *[qkv(2)[1], qkv(3, 2)[2]]
    ),
    "jacobian": lambda attend: torch.autograd.functional.jacobian(attend, tuple(qkv(1))),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("attend", ATTENDS)
def test_transform_gives_what_dense_attention_gives(attend: Attend, name: str) -> None:
    torch.manual_seed(1)
    found = TRANSFORMS[name](attend)
    torch.manual_seed(1)
    assert_equal(found, TRANSFORMS[name](dense))


@pytest.mark.parametrize("attend", ATTENDS)
def test_gradients_of_many_losses_at_once(attend: Attend) -> None:
    q, k, v = qkv(2)
    q.requires_grad_()
    many = torch.randn(3, *q.shape)
    (found,) = torch.autograd.grad(attend(q, k, v), q, many, is_grads_batched=True)
    each = [torch.autograd.grad(dense(q, k, v), q, one)[0] for one in many]
    assert_equal(found, torch.stack(each))


@pytest.mark.parametrize("attend", ATTENDS)
@pytest.mark.parametrize("name", ["grad", "vmap_of_grad"])
def test_transforms_compile(attend: Attend, name: str) -> None:
    torch.compiler.reset()
    tensors = qkv(2) if name == "grad" else qkv(3, 2)

    def transformed(attend: Attend) -> Callable[..., Any]:
        made = torch.func.grad(loss(attend), (0, 1, 2))
        return made if name == "grad" else torch.vmap(made)

    layout = BlockLayout.from_config(DENSE, LENGTH)  # a trace does not build one
    ours = attend if attend is MODULE else lambda q, k, v: block_sparse_attention(q, k, v, layout)
    found = torch.compile(transformed(ours), fullgraph=True, backend="aot_eager")(*tensors)
    assert_equal(found, transformed(dense)(*tensors))


class Model(torch.nn.Module):
    """A linear map before the attention."""

    def __init__(self) -> None:
        super().__init__()
        self.into = torch.nn.Linear(4, 4)
        self.attention = BlockSparseAttention(SPARSE)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attention(self.into(x), x, x, is_causal=True)
        return out


def test_gradients_of_each_sample() -> None:
    model, samples = Model(), torch.randn(3, 2, LENGTH, 2, 4)

    def of_one(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (x,)).square().sum()

    parameters = {name: x.detach() for name, x in model.named_parameters()}
    found = torch.vmap(torch.func.grad(of_one), (None, 0))(parameters, samples)
    for i, x in enumerate(samples):
        model.zero_grad()
        model(x).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(found[name][i], parameter.grad)


def test_outer_gradient_passes_through_an_inner_transform() -> None:
    q, k, v = qkv(1)
    k.requires_grad_()

    def total(attend: Attend) -> Tensor:
        out, _ = torch.func.vjp(lambda q: attend(q, k, v), q)
        return out.square().sum()

    assert_equal(torch.autograd.grad(total(MODULE), k), torch.autograd.grad(total(dense), k))


# ---- masks, biases and dropout of samples

MASKS = {
    "each_its_own": (0, 0),
    "shared": (None, None),
    "mixed": (0, None),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_of_samples(name: str) -> None:
    module, tensors = BlockSparseAttention(SPARSE), qkv(3, 2)
    in_dims = MASKS[name]
    mask = torch.rand(3, 2, LENGTH) < 0.3 if in_dims[0] == 0 else torch.rand(2, LENGTH) < 0.3
    lengths = torch.randint(1, LENGTH, (3, 2) if in_dims[1] == 0 else (2,))

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        out: Tensor = module(q, k, v, key_padding_mask=mask, kv_lengths=lengths)
        return out

    found = torch.vmap(attend, (0, 0, 0, *in_dims))(*tensors, mask, lengths)
    each = [
        attend(
            *(x[i] for x in tensors),
            mask if in_dims[0] is None else mask[i],
            lengths if in_dims[1] is None else lengths[i],
        )
        for i in range(3)
    ]
    assert_equal(found, torch.stack(each))


LAYOUT = BlockLayout.from_config(SPARSE, 40)
N_BLOCKS = LAYOUT.num_active_blocks


@pytest.mark.parametrize(
    "shape", [(N_BLOCKS,), (4, N_BLOCKS), (1, 4, N_BLOCKS), (2, 1, N_BLOCKS), (2, 4, N_BLOCKS)]
)
@pytest.mark.parametrize("batched", [False, True], ids=["shared", "each_its_own"])
def test_bias_of_samples_and_its_gradient(shape: tuple[int, ...], batched: bool) -> None:
    tensors = [torch.randn(3, 2, 40, heads, 4) for heads in (4, 2, 2)]
    bias = torch.randn(3, *shape) if batched else torch.randn(shape)

    def total(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return block_sparse_attention(q, k, v, LAYOUT, block_bias=bias).square().sum()

    gradient = torch.func.grad(total, (0, 3))
    found = torch.vmap(gradient, (0, 0, 0, 0 if batched else None))(*tensors, bias)
    each = []
    for i in range(3):
        leaves = [x[i].clone().requires_grad_() for x in tensors]
        own = (bias[i] if batched else bias).clone().requires_grad_()
        each.append(torch.autograd.grad(total(*leaves, own), (leaves[0], own)))
    assert_equal(found, tuple(torch.stack(parts) for parts in zip(*each, strict=True)))


def test_dropout_of_samples_is_the_same_or_differs_as_asked() -> None:
    module, (q, k, v) = BlockSparseAttention(SPARSE, dropout=0.5), qkv(2)
    three = torch.stack([q, q, q])

    def attend(q: Tensor) -> Tensor:
        out: Tensor = module(q, k, v)
        return out

    same = torch.vmap(attend, randomness="same")(three)
    assert torch.equal(same[0], same[1])
    assert torch.equal(same[0], same[2])
    different = torch.vmap(attend, randomness="different")(three)
    assert not torch.equal(different[0], different[1])
    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(attend)(three)


def test_dropout_of_the_forward_is_that_of_the_gradient() -> None:
    module, (q, k, v) = BlockSparseAttention(SPARSE, dropout=0.5), qkv(1)
    torch.manual_seed(3)
    found = torch.func.grad(loss(module))(q, k, v)
    torch.manual_seed(3)
    q.requires_grad_()
    assert_equal(found, torch.autograd.grad(module(q, k, v).square().sum(), q)[0])


# ---- what is refused


REFUSED: dict[str, tuple[Callable[[Attend], Any], str]] = {
    "grad_of_grad": (
        lambda attend: torch.func.grad(
            lambda q: torch.func.grad(loss(attend))(q, *qkv(1)[1:]).square().sum()
        )(qkv(1)[0]),
        "differentiates once, but a second derivative",
    ),
    "jacrev_of_jacrev": (
        lambda attend: torch.func.jacrev(torch.func.jacrev(loss(attend)))(*qkv(1)),
        "differentiates once, but a second derivative",
    ),
    "hessian": (lambda attend: torch.func.hessian(loss(attend))(*qkv(1)), "differentiates once"),
    "jvp": (
        lambda attend: torch.func.jvp(attend, tuple(x := qkv(1)), tuple(x)),
        "forward-mode AD is not supported, and q has a tangent",
    ),
    "jacfwd": (
        lambda attend: torch.func.jacfwd(attend, 1)(*qkv(1)),
        "forward-mode AD is not supported, and k has a tangent",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("attend", ATTENDS)
def test_what_is_refused_names_the_backend_that_has_it(attend: Attend, name: str) -> None:
    transform, message = REFUSED[name]
    with pytest.raises(RuntimeError, match=message) as raised:
        transform(attend)
    assert "backend='reference'" in str(raised.value)


def test_reference_has_forward_mode_and_second_derivatives() -> None:
    module = BlockSparseAttention(DENSE, backend="reference")
    tensors = [x.double() for x in qkv(1)]
    rows = torch.func.jacrev(module)(*tensors)
    assert_equal(torch.func.jacfwd(module)(*tensors), rows)
    second = torch.func.hessian(loss(module))(*tensors)
    assert_equal(torch.func.jacrev(torch.func.jacrev(loss(module)))(*tensors), second)
    assert second.abs().max() > 0
