"""The multi-head module as a module: its arguments, its state, what it calls, and what other code does with it."""

from __future__ import annotations

import inspect
import pickle
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.utils.prune
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint

from dilated_attention_pytorch import BlockSparseMultiheadAttention, SparsePatternConfig
from dilated_attention_pytorch.layout.cache import LAYOUTS
from dilated_attention_pytorch.modules import pattern_attention
from tests.core.modules.multihead_cases import EXACT, pair

EMBED, HEADS = 16, 4
SPARSE = SparsePatternConfig(sparsity_ratio=0.3, block_size=16)


def sparse_attention(**options: Any) -> BlockSparseMultiheadAttention:
    return BlockSparseMultiheadAttention(
        EMBED, HEADS, **{"batch_first": True, "sparse_config": SPARSE, **options}
    )


# ---- arguments


def test_arguments_are_those_of_pytorch_in_its_order() -> None:
    for name in ("__init__", "forward"):
        ours, theirs = (
            list(inspect.signature(getattr(each, name)).parameters.values())
            for each in (BlockSparseMultiheadAttention, nn.MultiheadAttention)
        )
        described = [[(p.name, p.default, p.kind) for p in each] for each in (ours, theirs)]
        assert described[0][: len(theirs)] == described[1]
        assert all(p.kind is p.KEYWORD_ONLY for p in ours[len(theirs) :])


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "message"),
    [
        ((0, 4), {}, ValueError, "embed_dim and num_heads must be greater than 0"),
        ((16, 0), {}, ValueError, "embed_dim and num_heads must be greater than 0"),
        ((16, 3), {}, AssertionError, "embed_dim must be divisible by num_heads"),
        ((16, 4), {"dropout": 1.0}, ValueError, r"dropout must be in \[0, 1\), got 1.0"),
        ((16, 4), {"sparsity_ratio": 0}, ValueError, "sparsity_ratio must be the fraction of blocks kept"),
        ((16, 4), {"backend": "cuda"}, ValueError, "backend must be one of"),
        ((16, 4), {"sparse_config": [SPARSE] * 3}, ValueError, "one for each of num_heads 4, got 3"),
        ((16, 4), {"segment_lengths": [64]}, ValueError, "dilation_rates is None; pass both or neither"),
        ((16, 4), {"enable_memory_pool": True}, TypeError, "delete it: memory needs no pool"),
        # the order of version 0.2: embed_dim, num_heads, segment_lengths, dilation_rates
        ((16, 4, [2048], [1]), {}, TypeError, "in the order of torch.nn.MultiheadAttention; leave segment_lengths"),
    ],
)  # fmt: skip
def test_errors_of_the_constructor(
    arguments: tuple[Any, ...], options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        BlockSparseMultiheadAttention(*arguments, **options)


def test_seventh_argument_is_average_attn_weights_not_is_causal_as_in_version_0_2() -> None:
    attention = sparse_attention()
    x = torch.randn(1, 40, EMBED)
    out, weights = attention(x, x, x, None, False, None, True)
    assert weights is None
    assert torch.equal(out, attention(x, x, x, need_weights=False)[0])
    assert not torch.allclose(out, attention(x, x, x, need_weights=False, is_causal=True)[0])


def test_assigned_settings_hold_from_the_next_call_on() -> None:
    attention = sparse_attention()
    x = torch.randn(1, 100, EMBED)
    before, _ = attention(x, x, x)
    attention.sparse_config = SparsePatternConfig("local_window", 32, window_size=64)
    attention.segment_lengths, attention.dilation_rates = [32], [2]
    made_so = sparse_attention(
        sparse_config=attention.sparse_config, segment_lengths=[32], dilation_rates=[2]
    )
    made_so.load_state_dict(attention.state_dict())
    assert repr(made_so) == repr(attention)
    assert torch.equal(attention(x, x, x)[0], made_so(x, x, x)[0])
    assert not torch.allclose(attention(x, x, x)[0], before)
    for other in (pickle.loads(pickle.dumps(attention)), attention):
        assert torch.equal(other(x, x, x)[0], made_so(x, x, x)[0])


# ---- state


@pytest.mark.parametrize("dims", [{}, {"kdim": 6, "vdim": 7}], ids=["same_dims", "own_dims"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "layers.0.attention."])
def test_weights_of_version_0_2_load(dims: dict[str, int], bias: bool, prefix: str) -> None:
    old = {
        "q_proj": nn.Linear(EMBED, EMBED, bias),
        "k_proj": nn.Linear(dims.get("kdim", EMBED), EMBED, bias),
        "v_proj": nn.Linear(dims.get("vdim", EMBED), EMBED, bias),
        "out_proj": nn.Linear(EMBED, EMBED, bias),
    }
    attention = sparse_attention(bias=bias, sparse_config=SparsePatternConfig(sparsity_ratio=1.0), **dims)
    state = {
        f"{prefix}{name}.{key}": value
        for name, linear in old.items()
        for key, value in linear.state_dict().items()
    }
    given = dict(state)
    model: nn.Module = attention
    for part in reversed(prefix.split(".")[:-1]):
        model = nn.ModuleDict({part: model})
    model.load_state_dict(state, strict=True)
    assert state == given  # the user's dict stays as it is

    q, k, v = (torch.randn(2, 9, old[f"{letter}_proj"].in_features) for letter in "qkv")
    heads = [
        old[f"{letter}_proj"](x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for letter, x in zip("qkv", (q, k, v))
    ]
    expected = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention(q, k, v)[0], old["out_proj"](expected))


def test_incomplete_weights_of_version_0_2_are_named() -> None:
    state = {f"{letter}_proj.weight": torch.zeros(EMBED, EMBED) for letter in "qk"}
    with pytest.raises(
        RuntimeError, match=r"(?s)Missing key.*in_proj_weight.*Unexpected key.*q_proj\.weight"
    ):
        sparse_attention().load_state_dict(state)


# ---- the call


def test_self_attention_projects_once_and_copies_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    attention, seen = sparse_attention(), []
    whole = pattern_attention.block_sparse_attention

    def seeing(q: Tensor, k: Tensor, v: Tensor, *others: Any, **options: Any) -> Any:
        seen.append((q, k, v))
        return whole(q, k, v, *others, **options)

    monkeypatch.setattr(pattern_attention, "block_sparse_attention", seeing)
    x = torch.randn(2, 40, EMBED)
    attention(x, x, x, need_weights=False)
    attention(x, x.clone(), x, need_weights=False)
    (q, k, v), others = seen
    assert q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr() == v.untyped_storage().data_ptr()
    assert q.untyped_storage().nbytes() == 3 * x.nbytes
    assert len({each.untyped_storage().data_ptr() for each in others}) == 3


def test_second_call_is_served_from_the_cache_of_calls() -> None:
    attention = sparse_attention(sparse_config=SparsePatternConfig(sparsity_ratio=0.35, block_size=16))
    x = torch.randn(2, 72, EMBED)
    first, _ = attention(x, x, x, need_weights=False)
    layout = LAYOUTS.covering(attention._pattern, 72, 72, False, x.device)
    n_cached = len(layout.calls)
    assert n_cached >= 1
    assert torch.equal(attention(x, x, x, need_weights=False)[0], first)
    assert len(layout.calls) == n_cached


@pytest.mark.parametrize("batch_first", [True, False])
def test_output_is_contiguous(batch_first: bool) -> None:
    x = torch.randn(3, 40, EMBED)
    out, _ = sparse_attention(batch_first=batch_first)(x, x, x, need_weights=False)
    assert out.is_contiguous()


def test_autocast_gives_its_type() -> None:
    attention = sparse_attention(add_bias_kv=True, add_zero_attn=True)
    x = torch.randn(2, 40, EMBED)
    with torch.autocast("cpu", torch.bfloat16):
        out, weights = attention(x, x, x, attn_mask=torch.randn(40, 40))
    assert out.dtype == weights.dtype == torch.bfloat16
    exact, _ = attention(x, x, x, attn_mask=None)
    assert exact.dtype == torch.float32


@pytest.mark.parametrize("is_cross", [False, True])
def test_bias_of_another_type_is_added(is_cross: bool) -> None:
    dense, sparse = pair(EMBED, HEADS, batch_first=True)
    x = torch.randn(2, 20, EMBED, dtype=torch.float64)
    key = x.clone() if is_cross else x
    found = []
    for module in (sparse, dense):
        module.in_proj_bias = nn.Parameter(module.in_proj_bias.half())
        found.append(module(x, key, key))
    torch.testing.assert_close(found[0], found[1], **EXACT)


def test_dropout_is_drawn_in_training_only_and_again_in_a_checkpoint() -> None:
    attention = sparse_attention(dropout=0.5, sparse_config=SparsePatternConfig(sparsity_ratio=1.0))
    x = torch.randn(2, 40, EMBED, requires_grad=True)
    exact, of_all = attention.eval()(x, x, x, average_attn_weights=False)
    assert torch.equal(attention(x, x, x)[0], exact)
    out, weights = attention.train()(x, x, x, average_attn_weights=False)
    dropped = weights == 0
    assert 0.4 < dropped.float().mean() < 0.6
    torch.testing.assert_close(weights, of_all.masked_fill(dropped, 0.0) * 2)  # not normalised again
    v = nn.functional.linear(x, attention.in_proj_weight[2 * EMBED :]).unflatten(-1, (HEADS, -1))
    torch.testing.assert_close(
        out, attention.out_proj(torch.einsum("nhij,njhd->nihd", weights, v).flatten(2))
    )

    def gradient(again: bool) -> Tensor:
        torch.manual_seed(3)
        run: Any = (lambda *a: checkpoint(attention, *a, use_reentrant=False)) if again else attention
        (found,) = torch.autograd.grad(run(x, x, x)[0].sum(), x)
        return found

    assert torch.equal(gradient(True), gradient(False))


def test_mean_over_dropout_is_the_output_without_it() -> None:
    attention = sparse_attention(
        dropout=0.3, sparse_config=SparsePatternConfig(sparsity_ratio=1.0), add_bias_kv=True
    )
    attention = attention.double()
    x = torch.randn(1, 5, EMBED, dtype=torch.float64).expand(1000, -1, -1)  # which are drawn one by one
    drawn, _ = attention(x, x, x, need_weights=False)
    error = drawn.mean(0) - attention.eval()(x, x, x)[0][0]
    assert (error.abs() < 5 * drawn.std(0) / 1000**0.5 + 1e-12).all()  # five standard deviations of the mean


@pytest.mark.parametrize("need_weights", [True, False])
def test_one_compiled_graph_serves_every_length(need_weights: bool) -> None:
    torch.compiler.reset()
    attention = sparse_attention(add_bias_kv=True)
    counter = CompileCounter()
    compiled = torch.compile(attention, fullgraph=True, backend=counter, dynamic=True)
    for length in (40, 100, 130):
        x = torch.randn(2, length, EMBED)
        found, expected = (
            each(x, x, x, need_weights=need_weights, is_causal=True) for each in (compiled, attention)
        )
        torch.testing.assert_close(found, expected)
    assert counter.frame_count == 1


def test_export() -> None:
    attention = sparse_attention().eval()
    x = torch.randn(2, 100, EMBED)
    program = torch.export.export(attention, (x, x, x), {"need_weights": False})
    torch.testing.assert_close(
        program.module()(x, x, x, need_weights=False), attention(x, x, x, need_weights=False)
    )


def test_vmap_over_an_ensemble() -> None:
    first, second = sparse_attention(), sparse_attention()
    parameters, _ = torch.func.stack_module_state([first, second])
    x = torch.randn(1, 40, EMBED)

    def run(values: dict[str, Tensor]) -> Tensor:
        out: Tensor = torch.func.functional_call(first, values, (x, x, x), {"need_weights": False})[0]
        return out

    expected = torch.stack([each(x, x, x, need_weights=False)[0] for each in (first, second)])
    torch.testing.assert_close(torch.vmap(run)(parameters), expected)


def test_meta_tensors_give_shapes() -> None:
    attention = sparse_attention(device="meta")
    x = torch.empty(2, 40, EMBED, device="meta")
    out, weights = attention(x, x, x)
    assert (out.shape, weights.shape) == ((2, 40, EMBED), (2, 40, 40))


# ---- what other code does with the module


class Logged(Tensor):
    """A tensor that notes which functions get it."""

    seen: ClassVar[list[Any]] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


def test_subclass_of_tensor_sees_one_call_and_is_returned() -> None:
    dense, sparse = pair(EMBED, HEADS, batch_first=True)
    x = torch.randn(2, 20, EMBED, dtype=torch.float64)
    found = []
    for attention, name in ((sparse, "multihead_attention"), (dense, "multi_head_attention_forward")):
        logged = x.as_subclass(Logged)
        Logged.seen.clear()
        found.append(attention(logged, logged, logged))
        calls = [func for func in Logged.seen if getattr(func, "__name__", "") == name]
        assert len(calls) == 1
        assert all(type(each) is Logged for each in found[-1])
    torch.testing.assert_close(found[0], found[1], **EXACT)


def pruned(module: nn.Module) -> nn.Module:
    torch.nn.utils.prune.l1_unstructured(module, "in_proj_weight", 0.5)
    return module


def parametrized(module: nn.Module) -> nn.Module:
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    torch.nn.utils.parametrize.register_parametrization(module, "in_proj_weight", Doubled())
    return module


CHANGES: dict[str, Any] = {
    "prune": pruned,
    "parametrize": parametrized,
    "weight_norm": lambda module: torch.nn.utils.parametrizations.weight_norm(module, "in_proj_weight"),
    "spectral_norm_of_out_proj": lambda module: (
        torch.nn.utils.parametrizations.orthogonal(module.out_proj, "weight"), module
    )[1],
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_changed_weights_count_as_in_pytorch(name: str) -> None:
    found = []
    x = torch.randn(2, 20, EMBED, dtype=torch.float64)
    for module in pair(EMBED, HEADS, batch_first=True):
        changed = CHANGES[name](module)
        assert isinstance(changed, nn.MultiheadAttention)
        found.append(changed(x, x, x))
    torch.testing.assert_close(found[0], found[1], **EXACT)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:torch.quantize_per_tensor")
def test_dynamic_quantization_leaves_it_as_it_leaves_pytorchs() -> None:
    dense, sparse = pair(EMBED, HEADS, batch_first=True)
    x = torch.randn(2, 20, EMBED)
    found = []
    for module in (sparse, dense):
        model = nn.ModuleDict({"attention": module.float().eval(), "linear": nn.Linear(EMBED, EMBED)})
        quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
        assert type(quantized["linear"]) is not nn.Linear
        assert type(quantized["attention"].out_proj) is type(module.out_proj)
        found.append(quantized["attention"](x, x, x)[0])
    torch.testing.assert_close(found[0], found[1])


def test_pickles_without_the_newest_attributes_load() -> None:
    attention = sparse_attention()
    state = attention.__dict__.copy()
    del state["_qkv_same_embed_dim"]  # as pickles of PyTorch 1.1
    other = BlockSparseMultiheadAttention.__new__(BlockSparseMultiheadAttention)
    other.__setstate__(state)
    x = torch.randn(2, 20, EMBED)
    assert torch.equal(other(x, x, x)[0], attention(x, x, x)[0])
