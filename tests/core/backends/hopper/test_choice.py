"""When the Hopper backend is chosen, and what it says when it is not; on any machine, with tensors that only have a shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dilated_attention_pytorch import (
    BlockLayout,
    BlockSparseAttention,
    SparsePatternConfig,
    block_sparse_attention,
    explain_backends,
)
from dilated_attention_pytorch.backends import hopper, registry
from dilated_attention_pytorch.backends.hopper import HOPPER
from dilated_attention_pytorch.backends.hopper.strides import is_readable
from dilated_attention_pytorch.backends.problem import AttentionProblem
from dilated_attention_pytorch.config import TokenDilation
from dilated_attention_pytorch.functional import make_problem
from dilated_attention_pytorch.grid import BlockGrid
from dilated_attention_pytorch.layout.lists import BlockLists, BlockMasks
from dilated_attention_pytorch.sequences import Sequences
from tests.core.attention_cases import Case, case, in_strides, make_call
from tests.core.backends.hopper.cases import ALL, label, refusals

NOT_INSTALLED = "triton is not installed (pip install 'triton>=3.6', on Linux)"


@pytest.fixture(autouse=True)
def capability_is_asked_anew() -> Iterator[None]:
    hopper.capability.cache_clear()
    yield
    hopper.capability.cache_clear()


@pytest.fixture
def on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with an H100 and triton, as far as the choice of a backend looks at it."""
    monkeypatch.setattr(hopper, "HAS_GLUON", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))


def fake(x: Tensor, mode: FakeTensorMode, device: str = "cuda:0") -> Tensor:
    """The shape, strides and type of a tensor on a GPU that need not be there."""
    with mode:
        made = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device)
        if x.storage_offset():
            # a view into a storage with room before it
            size = x.storage_offset() + sum((n - 1) * step for n, step in zip(x.shape, x.stride())) + 1
            made = torch.empty(size, dtype=x.dtype, device=device).as_strided(
                x.shape, x.stride(), x.storage_offset()
            )
    return made.requires_grad_(x.requires_grad)


def problem_of(case: Case, dtype: torch.dtype = torch.bfloat16) -> AttentionProblem:
    """The problem of a case as the backend would be given it."""
    call = make_call(case, dtype)
    tensors: dict[str, Any] = dict(call.tensors)
    if case.strided:
        tensors |= {name: in_strides(tensors[name]) for name in ("q", "k", "v")}
    bias = tensors.pop("block_bias", None)
    problem = make_problem(**tensors, layout=call.layout, block_bias=bias, **call.kwargs)
    return on_gpu(problem)


def on_gpu(problem: AttentionProblem) -> AttentionProblem:
    mode = FakeTensorMode()
    q, k, v = (fake(x, mode) for x in (problem.q, problem.k, problem.v))
    return dataclasses.replace(problem, q=q, k=k, v=v)


PLAIN = case("plain", 512, heads=4, kv_heads=2, head_dim=128, block_size=128, is_causal=True)


@pytest.mark.usefixtures("on_hopper")
def test_refused_cases_are_those_of_the_list_and_no_others() -> None:
    found = {label(case): HOPPER.rejects(problem_of(case)) for case in ALL}
    wanted = {label(case): refusals(case.block_size).get(case.name) for case in ALL}
    assert found.keys() == wanted.keys()
    for name, reason in wanted.items():
        if reason is None:
            assert found[name] is None, name
        else:
            assert (found[name] or "").startswith(reason), name


@pytest.mark.usefixtures("on_hopper")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block_size", [64, 128])
@pytest.mark.parametrize("head_dim", [8, 64, 80, 128, 192, 256])
def test_what_the_kernels_are_made_for_is_chosen(head_dim: int, block_size: int, dtype: torch.dtype) -> None:
    problem = problem_of(dataclasses.replace(PLAIN, head_dim=head_dim, block_size=block_size), dtype)
    assert HOPPER.rejects(problem) is None
    assert problem.needs_grad
    assert registry.choose_backend(problem) is HOPPER
    assert registry.choose_backend(problem, "hopper") is HOPPER


def refused(**changes: Any) -> str | None:
    """Why the plain problem is refused with some of its fields replaced."""
    return HOPPER.rejects(dataclasses.replace(problem_of(PLAIN), **changes))


def of_shape(
    dtype: torch.dtype = torch.bfloat16,
    dim: int = 128,
    v_dim: int = 128,
    device: str = "cuda:0",
    q_len: int = 512,
) -> dict[str, Tensor]:
    shapes = {"q": (1, q_len, 4, dim), "k": (1, 512, 2, dim), "v": (1, 512, 2, v_dim)}
    mode = FakeTensorMode()
    return {name: fake(torch.empty(shape, dtype=dtype), mode, device) for name, shape in shapes.items()}


MANY = torch.zeros(1, dtype=torch.int32).expand(2**30)
OTHERWISE = "use backend='triton'"
REASONS: dict[str, tuple[dict[str, Any], str]] = {
    "device": (of_shape(device="cpu"), "q is on cpu, needs a CUDA device"),
    "float32": (
        of_shape(torch.float32),
        f"q has dtype torch.float32, needs float16 or bfloat16 (convert q, k and v, or {OTHERWISE})",
    ),
    "head_dim": (of_shape(dim=84), f"head_dim is 84, needs a multiple of 8 ({OTHERWISE})"),
    "v_head_dim": (
        of_shape(v_dim=264),
        "v head_dim is 264, needs at most 256 (use more heads that are smaller)",
    ),
    "scattered_small_blocks": (
        {
            "grid": BlockGrid(4096, 4096, 16, False),
            "of_pattern": False,
            "rows": BlockLists(MANY[:5], MANY[:6554], MANY[:6554]),
        },
        "block_size is 16, and 10.0% of the blocks are active in no pattern, needs 15% or a SparsePatternConfig (make the "
        f"layout with 32 or more, or {OTHERWISE})",
    ),
    "bias_of_small_blocks": (
        {"grid": BlockGrid(512, 512, 32, True), "block_bias": torch.zeros(1)},
        "block_bias is given with block_size 32, needs None (make the layout with 64, 128 or 256, or "
        f"{OTHERWISE})",
    ),
    "masks_of_small_blocks": (
        {
            "grid": BlockGrid(2**16, 2**16, 16, True),
            "of_pattern": True,
            "rows": BlockLists(MANY[:5], MANY, MANY),
            "block_masks": BlockMasks(MANY, MANY),
        },
        f"masks inside blocks are given with block_size 16 and {2**20} tiles of 64, needs at most {2**16} (make the "
        f"layout with 64, 128 or 256, or {OTHERWISE})",
    ),
    "attn_bias": (
        {"attn_bias": torch.zeros(1)},
        f"attn_bias is given, needs None (write it as block_bias or as a mask of the layout, or {OTHERWISE})",
    ),
    "scale_zero": (
        {"softmax_scale": 0.0},
        f"softmax_scale is 0.0, needs more than 0 (scale q, or {OTHERWISE})",
    ),
    "scale_negative": (
        {"softmax_scale": -1.5},
        f"softmax_scale is -1.5, needs more than 0 (scale q, or {OTHERWISE})",
    ),
    "large_blocks": (
        {"grid": BlockGrid(512, 512, 256, True), "rows": BlockLists(MANY[:5], MANY, MANY)},
        f"block_size is 256 with {2**30} active blocks, needs fewer than 2**29 (make the layout with 128)",
    ),
}
TABLE = torch.zeros(1, 5, dtype=torch.int32)
DILATION = TokenDilation((128, 256), (1, 4))
# With token dilation, beside what the call asks for here; all end in the same fix.
DILATED_REASONS: dict[str, tuple[dict[str, Any], str]] = {
    "block_size": (
        {"grid": BlockGrid(512, 512, 64, True), "dilation": TokenDilation((64,), (2,))},
        "block_size is 64, needs 128",
    ),
    "head_dim": (of_shape(dim=192), "head_dim is 192, needs at most 128"),
    "v_head_dim": (of_shape(v_dim=136), "v head_dim is 136, needs at most 128"),
    "rates": (
        {"dilation": TokenDilation((128, 256, 512), (1, 2, 4))},
        "dilation_rates is (1, 2, 4), needs at most 2 rates",
    ),
    "coarse": (
        {"dilation": TokenDilation((128, 256), (1, 32))},
        "dilation_rates is (1, 32), needs rates up to 16",
    ),
    "pairs": (
        {"rows": BlockLists(MANY[:5], MANY, MANY)},
        f"the layout has {2**30} active blocks, needs fewer than 2**30",
    ),
}
# What other calls may ask for, and how it is named where tokens are dilated.
BEYOND_PLAIN: dict[str, tuple[dict[str, Any], str]] = {
    "block_bias": ({"block_bias": torch.zeros(1)}, "block_bias is given, needs None"),
    "kv_lengths": (
        {"sequences": Sequences(TABLE, 512, 512, only_lengths=True)},
        "kv_lengths is given, needs None",
    ),
    "key_padding_mask": ({"key_padding_mask": torch.zeros(1)}, "key_padding_mask is given, needs None"),
    "positions": (
        {"sequences": Sequences(TABLE, 512, 512)},
        "the sequences have positions of their own (q_offset as a tensor, or kv_starts), needs the same for all",
    ),
    "packed": (
        {"sequences": Sequences(TABLE, 512, 512, is_packed=True)},
        "the sequences are packed, needs a batch",
    ),
    "layouts": ({"layout_batch": 3}, "the layout has 3 batch elements, needs one for all"),
    "masks": ({"block_masks": BlockMasks(TABLE, TABLE)}, "the layout has masks inside blocks, needs none"),
    "softcap": ({"softcap": 2.0}, "softcap is 2.0, needs 0"),
    "alibi_slopes": ({"alibi_slopes": torch.zeros(4)}, "alibi_slopes is given, needs None"),
    "sinks": ({"sinks": torch.zeros(4)}, "sinks is given, needs None"),
    "dropout_p": ({"dropout_p": 0.25}, "dropout_p is 0.25, needs 0"),
    "offset": (
        {**of_shape(q_len=448), "q_offset": 64, "grid": BlockGrid(448, 512, 128, True)},
        "the first query is at position 64 (q_offset, or kv_len - q_len), needs a multiple of 128",
    ),
}


@pytest.mark.usefixtures("on_hopper")
@pytest.mark.parametrize("name", BEYOND_PLAIN)
def test_beyond_plain_calls_are_served_unless_tokens_are_dilated(name: str) -> None:
    changes, named = BEYOND_PLAIN[name]
    assert refused(**changes) is None
    assert refused(**changes, dilation=DILATION) == f"with token dilation, {named} ({OTHERWISE})"


@pytest.mark.usefixtures("on_hopper")
@pytest.mark.parametrize("name", DILATED_REASONS)
def test_what_token_dilation_needs_is_named(name: str) -> None:
    changes, named = DILATED_REASONS[name]
    assert refused(**{"dilation": DILATION, **changes}) == f"with token dilation, {named} ({OTHERWISE})"
    assert refused(**{**changes, "dilation": None}) is None


@pytest.mark.usefixtures("on_hopper")
@pytest.mark.parametrize("name", REASONS)
def test_reason_names_the_argument_its_value_and_the_fix(name: str) -> None:
    changes, reason = REASONS[name]
    assert refused(**changes) == reason


@pytest.mark.usefixtures("on_hopper")
def test_blocks_of_16_are_served_where_their_tiles_are_known_to_be_filled() -> None:
    def why_not(layout: BlockLayout) -> str | None:
        q = torch.empty(1, layout.q_len, 1, 64, dtype=torch.bfloat16)
        return HOPPER.rejects(on_gpu(make_problem(q, q, q, layout)))

    of_pattern = BlockLayout.from_config(SparsePatternConfig(block_size=16, sparsity_ratio=0.1), 640)
    alike = of_pattern.to_dense()
    assert why_not(of_pattern) is None
    assert "in no pattern" in (why_not(BlockLayout.from_dense(alike, 16)) or "")
    assert why_not(BlockLayout.from_dense(alike, 32)) is None
    assert why_not(BlockLayout.from_dense(torch.rand(40, 40) < 0.3, 16)) is None
    half = torch.arange(20).repeat(40, 1)  # from indices, of which there is room for half of the blocks
    assert why_not(BlockLayout.from_indices(half, q_len=640, kv_len=640, block_size=16)) is None


@pytest.mark.usefixtures("on_hopper")
def test_dilation_wants_a_length_that_its_rates_divide() -> None:
    dilated = case(
        "dilated", 510, head_dim=64, block_size=128, segment_lengths=(128, 256), dilation_rates=(2, 4)
    )
    assert HOPPER.rejects(problem_of(dilated)) == (
        "with token dilation, kv_len is 510, needs a multiple of the largest rate, 4 (use backend='triton')"
    )
    assert HOPPER.rejects(problem_of(dataclasses.replace(dilated, dilation_rates=(1, 2)))) is None


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (10, 0), (12, 0)])
def test_other_architectures_are_named(
    capability: tuple[int, int], on_hopper: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    assert refused() == f"compute capability {capability} is not (9, 0)"


def test_gpus_of_amd_are_no_hopper_although_some_have_its_number(
    on_hopper: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert refused() == "q is on cuda:0, a GPU of AMD; needs an NVIDIA GPU of compute capability (9, 0)"


@pytest.mark.usefixtures("on_hopper")
@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_no_strides_and_no_offset_are_refused(name: str) -> None:
    heads, mode = 4 if name == "q" else 2, FakeTensorMode()
    shape = (1, 512, heads, 128)
    flat = torch.empty(512 * heads * 128 + 8, dtype=torch.bfloat16)
    for x in (
        torch.empty(1, 512, heads, 132, dtype=torch.bfloat16)[..., :128],
        torch.empty(1, 512, 128, heads, dtype=torch.bfloat16).transpose(2, 3),
        torch.empty(1, 512, 1, 128, dtype=torch.bfloat16).expand(shape),
        flat[3:-5].view(shape),
    ):
        assert not is_readable(x)
        assert refused(**{name: fake(x, mode)}) is None
    for x in (
        flat[8:].view(shape),
        torch.empty(1, heads, 512, 128, dtype=torch.bfloat16).transpose(1, 2),
        torch.empty(1, 512, heads + 3, 128, dtype=torch.bfloat16)[:, :, 2 : 2 + heads],
    ):
        assert is_readable(x)


def test_strides_are_looked_at_one_by_one() -> None:
    x = torch.empty(8 * 8 * 8 * 8 * 8, dtype=torch.bfloat16)
    assert is_readable(x.as_strided((2, 2, 2, 2), (64, 8, 16, 1)))
    assert is_readable(x.as_strided((1, 2, 1, 2), (3, 8, 0, 1)))  # those of a dimension of one are never used
    for strides in ((63, 8, 16, 1), (64, 4, 16, 1), (64, 8, 17, 1), (64, 8, 16, 2), (64, 0, 16, 1)):
        assert not is_readable(x.as_strided((2, 2, 2, 2), strides))


# ---- descriptors


def test_descriptors_are_the_same_by_name_and_box_never_by_the_tensors_of_one_call() -> None:
    pytest.importorskip("triton.experimental.gluon.nvidia.hopper")
    from dilated_attention_pytorch.backends.hopper.launcher import same_descriptors

    x = torch.empty(1, 128, 1, 64)
    near = {"desc_q": (x, 64, 0), "desc_k": (x, 128, 1), "desc_v": (x, 128, 1)}
    same = {"desc_k_far": (x, 128, 1), "desc_v_far": (x, 128, 1), "desc_out": (x, 64, 0), "number": 3}
    far = {"desc_k_far": (x, 32, 4), "desc_v_far": (x, 32, 4), "desc_out": (x, 64, 0), "number": 3}
    assert same_descriptors(near | same) == [0, 1, 2, 1, 2, 5]
    assert same_descriptors(near | far) == [0, 1, 2, 3, 4, 5]


# ---- memory


@pytest.mark.parametrize(("num_heads", "head_dim"), [(16, 128), (8, 64), (1, 64)])
def test_backward_takes_little_more_than_its_results(num_heads: int, head_dim: int) -> None:
    pytest.importorskip("triton.experimental.gluon")
    from dilated_attention_pytorch.backends.hopper.passes import backward_of

    seqlen = 131_072
    layout = BlockLayout.from_config(SparsePatternConfig(sparsity_ratio=0.001, block_size=128), seqlen)
    q = torch.empty(1, seqlen, num_heads, head_dim, dtype=torch.bfloat16, device="meta")
    problem = make_problem(q, q, q, layout)
    per_head = seqlen * (2 * head_dim * 4 + 4)  # out, dq, dk, dv and lse
    assert 4 * backward_of(problem).n_floats(problem) <= 0.02 * num_heads * per_head


# ---- through the public functions


@pytest.mark.usefixtures("on_hopper")
def test_traced_call_is_the_operator_of_the_chosen_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = BlockLayout.from_config(SparsePatternConfig(block_size=128), 512)
    with FakeTensorMode(allow_non_fake_inputs=True):
        q = torch.empty(1, 512, 4, 128, dtype=torch.bfloat16, device="cuda:0")
        k, v = (torch.empty(1, 512, 2, 128, dtype=torch.bfloat16, device="cuda:0") for _ in range(2))
        assert explain_backends(q, k, v, layout)["hopper"] is None
        out, lse = block_sparse_attention(q, k, v, layout, backend="hopper", return_lse=True)
    assert (out.shape, out.dtype, out.device) == (q.shape, q.dtype, q.device)
    assert (lse.shape, lse.dtype) == ((1, 4, 512), torch.float32)


def test_on_the_cpu_the_request_by_name_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    q = torch.zeros(1, 256, 2, 64, dtype=torch.bfloat16)
    layout = BlockLayout.from_config(SparsePatternConfig(), 256)
    for has_gluon, reason in ((True, "q is on cpu, needs a CUDA device"), (False, NOT_INSTALLED)):
        monkeypatch.setattr(hopper, "HAS_GLUON", has_gluon)
        monkeypatch.setattr(hopper, "REFUSED_TRITON", None if has_gluon else reason)
        assert explain_backends(q, q, q, layout)["hopper"] == reason
        with pytest.raises(ValueError) as error:
            block_sparse_attention(q, q, q, layout, backend="hopper")
        assert str(error.value) == f"backend='hopper' cannot serve this call: {reason}"
        with pytest.raises(ValueError, match="backend='hopper' cannot serve this call"):
            BlockSparseAttention(SparsePatternConfig(), backend="hopper")(q, q, q)


def test_backends_stand_in_order_of_choice() -> None:
    assert registry.BACKEND_NAMES == ("auto", "cpu", "hopper", "triton", "reference")
    for name in registry.BACKEND_NAMES[1:-1]:
        assert registry.backend_named(name).name == name


def test_a_call_prepares_what_its_backend_needs_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    module = BlockSparseAttention(SparsePatternConfig())
    q = torch.zeros(1, 256, 2, 64)
    module(q, q, q)
    layout = module.layout(256)
    assert layout._prepared == {}
    explain_backends(q, q, q, layout)
    problem = make_problem(q, q, q, layout)
    assert (layout._prepared, problem.prepared) == ({}, ())
    assert problem.prepared_by(registry.CPU, layout) is problem
    (work_order,) = problem.prepared_by(HOPPER, layout).prepared
    assert HOPPER.prepare(layout, None)[0] is work_order
    assert [name for name, _ in layout._prepared] == ["hopper"]
