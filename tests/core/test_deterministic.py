"""`deterministic` reaches the backward from every entry, and explain_backends says what becomes of it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dilated_attention_pytorch import (
    BlockLayout,
    BlockSparseAdaptive,
    BlockSparseAttention,
    BlockSparseMultiheadAttention,
    SparsePatternConfig,
    block_sparse_attention,
    block_sparse_attention_varlen,
    block_sparse_sdpa,
    convert_to_block_sparse,
    create_adaptive_block_sparse,
    create_block_sparse_attention,
    create_multihead_block_sparse,
    explain_backends,
    explain_backends_varlen,
    get_block_sparse_preset,
    ops,
)
from dilated_attention_pytorch.backends.cpu import CPU
from dilated_attention_pytorch.backends.hopper import HOPPER
from dilated_attention_pytorch.functional import make_problem
from dilated_attention_pytorch.integrations.tile_attention import TileAttention
from tests.core.backward_spy import backwards

LENGTH = 40
CONFIG = SparsePatternConfig(block_size=16, sparsity_ratio=0.5)
LAYOUT = BlockLayout.from_config(CONFIG, LENGTH)
BOUNDS = torch.tensor([0, 25, LENGTH], dtype=torch.int32)
BAD = "deterministic must be True, False or None, got 'no'; None is True"

Attend = Callable[[Tensor, Any], Tensor]


def call(x: Tensor, deterministic: Any) -> Tensor:
    return block_sparse_attention(x, x, x, LAYOUT, deterministic=deterministic)


def call_with_lengths(x: Tensor, deterministic: Any) -> Tensor:
    lengths = torch.tensor([LENGTH, 17])
    return block_sparse_attention(x, x, x, LAYOUT, kv_lengths=lengths, deterministic=deterministic)


def packed(x: Tensor, deterministic: Any) -> Tensor:
    x = x.flatten(0, 1)[:LENGTH]
    return block_sparse_attention_varlen(x, x, x, LAYOUT, BOUNDS, BOUNDS, 25, 25, deterministic=deterministic)


def of_layout(x: Tensor, deterministic: Any) -> Tensor:
    x = x.transpose(1, 2)
    return block_sparse_sdpa(x, x, x, layout=LAYOUT, deterministic=deterministic)


def of_pattern(x: Tensor, deterministic: Any) -> Tensor:
    x = x.transpose(1, 2)
    return block_sparse_sdpa(x, x, x, sparse_config=CONFIG, deterministic=deterministic)


def samples(x: Tensor, deterministic: Any) -> Tensor:
    return torch.vmap(lambda each: call(each[None], deterministic))(x)


def of_module(make: Callable[..., nn.Module], **options: Any) -> Attend:
    """The call of a module of q, k and v."""

    def attend(x: Tensor, deterministic: Any) -> Tensor:
        torch.manual_seed(0)  # of the weights, where there are any
        module = make(deterministic=deterministic).eval()
        out: Tensor = module(x, x, x, **options)
        return out

    return attend


def of_layer(make: Callable[..., nn.Module], need_weights: bool = False) -> Attend:
    """The call of a module with projections."""

    def attend(x: Tensor, deterministic: Any) -> Tensor:
        torch.manual_seed(0)
        module, tokens = make(deterministic=deterministic), x.flatten(2)
        out: Tensor = module(tokens, tokens, tokens, need_weights=need_weights)[0]
        return out

    return attend


def multihead(**options: Any) -> nn.Module:
    return BlockSparseMultiheadAttention(32, 2, batch_first=True, sparse_config=CONFIG, **options)


def converted(**options: Any) -> nn.Module:
    return convert_to_block_sparse(nn.MultiheadAttention(32, 2, batch_first=True), CONFIG, **options)


def nested(x: Tensor, deterministic: Any) -> Tensor:
    torch.manual_seed(0)
    module = multihead(deterministic=deterministic)
    tokens = torch.nested.as_nested_tensor([x[0].flatten(1), x[1, :17].flatten(1)], layout=torch.jagged)
    out: Tensor = module(tokens, tokens, tokens, need_weights=False)[0].values()
    return out


def adaptive(**options: Any) -> nn.Module:
    return BlockSparseAdaptive(CONFIG, num_heads=2, head_dim=16, **options)


def video(x: Tensor, deterministic: Any) -> Tensor:
    attention = TileAttention((2, 4, 4), tile=(2, 4, 2), window=(1, 1, 1), deterministic=deterministic)
    return attention(x[:, :32], x[:, :32], x[:, :32])


def compiled(attend: Attend) -> Attend:
    def attend_compiled(x: Tensor, deterministic: Any) -> Tensor:
        torch.compiler.reset()
        made: Tensor = torch.compile(attend, backend="aot_eager", fullgraph=True)(x, deterministic)
        return made

    return attend_compiled


def compiled_module(make: Callable[..., nn.Module]) -> Attend:
    def attend(x: Tensor, deterministic: Any) -> Tensor:
        torch.compiler.reset()
        module = torch.compile(make(deterministic=deterministic), backend="aot_eager", fullgraph=True)
        out: Tensor = module(x, x, x)
        return out

    return attend


ENTRIES: dict[str, Attend] = {
    "block_sparse_attention": call,
    "with lengths": call_with_lengths,
    "block_sparse_attention_varlen": packed,
    "sdpa of a layout": of_layout,
    "sdpa of a pattern": of_pattern,
    "vmap": samples,
    "base": of_module(lambda **given: BlockSparseAttention(CONFIG, **given)),
    "base with weights": of_module(
        lambda **given: FirstOfTwo(BlockSparseAttention(CONFIG, **given)), return_attention_weights=True
    ),
    "create": of_module(lambda **given: create_block_sparse_attention(sparse_config=CONFIG, **given)),
    "preset": of_module(lambda **given: get_block_sparse_preset("local", **given)),
    "adaptive": of_module(adaptive),
    "create_adaptive": of_module(
        lambda **given: create_adaptive_block_sparse(0.5, num_heads=2, head_dim=16, block_size=16, **given)
    ),
    "multihead": of_layer(multihead),
    "multihead with weights": of_layer(multihead, need_weights=True),
    "multihead of nested": nested,
    "create_multihead": of_layer(
        lambda **given: create_multihead_block_sparse(32, 2, 0.5, batch_first=True, **given)
    ),
    "converted": of_layer(converted),
    "TileAttention": video,
    "compiled block_sparse_attention": compiled(call),
    "compiled varlen": compiled(packed),
    "compiled base": compiled_module(lambda **given: BlockSparseAttention(CONFIG, **given)),
    "compiled adaptive": compiled_module(lambda **given: adaptive(**given).eval()),
}


class FirstOfTwo(nn.Module):
    """The first result of a module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **options: Any) -> Tensor:
        first: Tensor = self.module(*args, **options)[0]
        return first


@pytest.mark.parametrize("name", ENTRIES)
def test_it_reaches_the_backward_whose_gradients_stay(name: str) -> None:
    torch.manual_seed(1)
    x = torch.randn(2, LENGTH, 2, 16, requires_grad=True)
    found = {}
    for given, wanted in ((None, True), (False, False), (True, True)):
        with backwards() as seen:
            out = ENTRIES[name](x, given)
            found[given] = out, *torch.autograd.grad(out.square().sum(), x)
        assert set(seen) == {wanted}
    for one, other, default in zip(found[False], found[True], found[None], strict=True):
        assert torch.equal(one, default)
        assert torch.equal(other, default)


@pytest.mark.parametrize("name", [name for name in ENTRIES if not name.startswith("compiled")])
def test_another_value_is_refused_by_name(name: str) -> None:
    with pytest.raises(TypeError) as error:
        ENTRIES[name](torch.randn(2, LENGTH, 2, 16), "no")
    assert str(error.value) == BAD


MODULES: dict[str, Callable[..., nn.Module]] = {
    "base": lambda **given: BlockSparseAttention(CONFIG, **given),
    "multihead": multihead,
    "adaptive": adaptive,
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_keep_it_in_copies_and_show_it(name: str) -> None:
    module: Any = MODULES[name](deterministic=False)
    for each in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert each.deterministic is False
        assert "deterministic=False" in each.extra_repr()
    assert "deterministic" not in MODULES[name]().extra_repr()
    module.deterministic = None
    assert module.deterministic is None
    with pytest.raises(TypeError, match="deterministic must be True, False or None, got 2"):
        module.deterministic = 2
    assert module.deterministic is None


def test_assigned_to_a_module_it_holds_from_the_next_call_on() -> None:
    torch.manual_seed(0)
    module: Any = multihead()
    x = torch.randn(2, LENGTH, 32, requires_grad=True)
    with backwards() as seen:
        for value in (None, False, False, True):
            module.deterministic = value
            module(x, x, x, need_weights=False)[0].sum().backward()
    assert seen == [True, False, False, True]


# ---- the operators


@pytest.mark.parametrize("test", ["test_schema", "test_autograd_registration", "test_faketensor"])
def test_operators_take_it(test: str) -> None:
    q, k, v = (torch.randn(1, LENGTH, 2, 16, requires_grad=True) for _ in range(3))
    problem = make_problem(q, k, v, LAYOUT, deterministic=False)
    args = ops.op_args(problem, "cpu")
    assert ops.Geometry(*args.geometry).deterministic == 0
    assert not args.call().deterministic
    torch.library.opcheck(ops.attention, tuple(args), test_utils=test)


def test_it_changes_no_count_of_flops() -> None:
    x = torch.randn(1, LENGTH, 2, 16, requires_grad=True)
    counts = []
    for value in (None, False):
        with FlopCounterMode(display=False) as counter:
            call(x, value).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


# ---- what becomes of it


def explain(**options: Any) -> dict[str, str | None]:
    x = torch.randn(2, LENGTH, 2, 16)
    return explain_backends(x, x, x, LAYOUT, **options)


def test_explain_backends_says_that_the_backend_has_no_other_backward() -> None:
    found = explain(deterministic=False)
    assert found.pop("deterministic=False") == "backend 'cpu' has no other backward"
    assert found == explain() == explain(deterministic=True)
    x = torch.randn(LENGTH, 2, 16)
    of_packed = explain_backends_varlen(x, x, x, LAYOUT, BOUNDS, BOUNDS, 25, 25, deterministic=False)
    assert of_packed["deterministic=False"] == "backend 'cpu' has no other backward"


def test_explain_backends_says_that_no_backend_serves_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(CPU), "rejects", lambda self, problem: "it is asked not to")
    x = torch.randn(1, LENGTH, 2, 16, dtype=torch.float64)  # which no GPU backend serves
    found = explain_backends(x, x, x, LAYOUT, deterministic=False)
    assert found["deterministic=False"] == "no fast backend serves the call"


HOPPER_CALLS: dict[str, tuple[int, dict[str, Any], str | None]] = {
    "plain": (128, {}, None),
    "blocks of 256": (256, {"is_causal": True}, None),
    "few blocks": (128, {}, "a row has fewer than 6 blocks of 128 on the mean"),
    "blocks of 64": (64, {}, "a row has fewer than 32 blocks of 64 on the mean"),
    "blocks of 32": (32, {}, "there are positions, masks, biases or score terms"),
    "score terms": (128, {"softcap": 20.0}, "there are positions, masks, biases or score terms"),
    "torch": (128, {}, "torch.use_deterministic_algorithms(True) asks for the same bits"),
}


@pytest.mark.parametrize("name", HOPPER_CALLS)
def test_explain_backends_says_what_hopper_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton.experimental.gluon")
    monkeypatch.setattr(type(CPU), "rejects", lambda self, problem: "q is on cuda")
    monkeypatch.setattr(type(HOPPER), "rejects", lambda self, problem: None)
    size, options, wanted = HOPPER_CALLS[name]
    length = 300 if name == "few blocks" else 800
    x = torch.randn(1, length, 2, 64, dtype=torch.bfloat16)
    n = -(-length // size)
    layout = BlockLayout.from_dense(torch.ones(n, n).bool(), size, length, length)
    torch.use_deterministic_algorithms(name == "torch")
    try:
        found = explain_backends(x, x, x, layout, **options, deterministic=False)
    finally:
        torch.use_deterministic_algorithms(False)
    assert found["hopper"] is None
    assert found["deterministic=False"] == wanted
