"""Every option on every backend: out, lse and all gradients beside the dense definition in float64.

The definition itself (backend "reference" in float64) is compared with the independent slow one, which shares no
code with the package. Errors are relative: ||found - expected|| / ||expected||.
"""

from __future__ import annotations

import functools

import pytest
import torch

from tests.core import slow_definition
from tests.core.attention_cases import (
    BY_NAME,
    CASES,
    FLOAT32,
    FLOAT64,
    LIMITS,
    Call,
    Case,
    errors,
    make_call,
    off_limits,
    run,
)

SHORT = [case.name for case in CASES if not case.is_long]
TINY = [case.name for case in CASES if case.is_tiny]
# The definition is dense, hence slow: some of the longest are enough for it.
FOR_REFERENCE = [*SHORT, "cross_4096", "decoding_4096", "chunk_4096"]


@functools.cache
def expected(name: str, dtype: torch.dtype, device: str = "cpu") -> tuple[Call, dict[str, torch.Tensor]]:
    """The call in `dtype`, and the results of the dense definition in float64 from the same rounded values."""
    case = BY_NAME[name]
    call = make_call(case, dtype, device)
    return call, run(case, call.to(torch.float64, device), "reference")


def check(name: str, backend: str, dtype: torch.dtype, limit: float, device: str = "cpu") -> None:
    call, wanted = expected(name, dtype, device)
    found = run(BY_NAME[name], call, backend)
    assert found.keys() == wanted.keys()
    assert {key: x.shape for key, x in found.items()} == {key: x.shape for key, x in wanted.items()}
    assert found["out"].dtype == dtype
    assert found["lse"].dtype == torch.promote_types(dtype, torch.float32)
    assert off_limits(errors(found, wanted, call), limit) == {}


def slow_run(case: Case, call: Call) -> dict[str, torch.Tensor]:
    """What `run` returns, from the slow definition."""
    inputs, kwargs = dict(call.tensors), dict(call.kwargs)
    bias = inputs.pop("block_bias", None)
    torch.manual_seed(0)
    seed = int(torch.randint(2**62, (1,))) if case.dropout_p else 0
    out, lse = slow_definition.attention(
        **inputs,
        rows_of_heads=[call.layout.rows(head) for head in range(call.layout.num_heads)],
        block_size=case.block_size,
        causal_alignment=call.layout.causal,
        block_bias=bias,
        kv_lengths=case.kv_lengths,
        seed=seed,
        **{name: value for name, value in kwargs.items() if name != "kv_lengths"},
    )
    outputs, grads = [out], [call.grad_out]
    if call.grad_lse is not None:
        outputs.append(lse)
        grads.append(call.grad_lse)
    leaves = list(call.tensors.values())
    if out.requires_grad:
        found = torch.autograd.grad(outputs, leaves, grads, allow_unused=True)
    else:  # nobody sees anything
        found = (None,) * len(leaves)
    named = {
        f"grad_{name}": torch.zeros_like(x) if grad is None else grad
        for (name, x), grad in zip(call.tensors.items(), found, strict=True)
    }
    return {"out": out.detach(), "lse": lse.detach(), **named}


def test_grid_mixes_the_lengths_with_every_option() -> None:
    lengths = {case.q_len for case in CASES} | {case.keys for case in CASES}
    assert {1, 63, 65, 1000, 4096} <= lengths
    assert {case.block_size for case in CASES} == {16, 32, 64, 128, 256}
    assert {16, 64, 80, 128, 256} <= {case.head_dim for case in CASES}
    options = {
        "cross": lambda case: case.q_len != case.keys and not case.is_causal,
        "decoding": lambda case: case.q_len == 1 and case.keys > 1 and case.is_causal,
        "gqa": lambda case: 1 < (case.kv_heads or case.heads) < case.heads,
        "mqa": lambda case: case.kv_heads == 1 < case.heads,
        "v_head_dim": lambda case: case.v_head_dim not in (None, case.head_dim),
        "causal": lambda case: case.is_causal,
        "kv_lengths": lambda case: case.kv_lengths is not None,
        "key_padding_mask": lambda case: case.padding > 0,
        "per head": lambda case: case.layout_heads > 1,
        "empty rows": lambda case: len(case.empty_rows) > 0,
        "softmax_scale": lambda case: case.softmax_scale is not None,
        "block_bias": lambda case: case.bias is not None,
        "token dilation": lambda case: case.dilation_rates is not None,
        "dropout": lambda case: case.dropout_p > 0,
        "lse gradient": lambda case: case.lse_gradient,
    }
    counts = {name: sum(map(has, CASES)) for name, has in options.items()}
    assert {name: n for name, n in counts.items() if n < 3} == {}
    assert len(SHORT) >= 60


@pytest.mark.parametrize("name", TINY)
def test_reference_is_the_slow_definition(name: str) -> None:
    call, wanted = expected(name, torch.float64)
    assert off_limits(errors(slow_run(BY_NAME[name], call), wanted, call), FLOAT64) == {}


@pytest.mark.parametrize("name", FOR_REFERENCE)
def test_reference_in_float32(name: str) -> None:
    check(name, "reference", torch.float32, FLOAT32)


@pytest.mark.parametrize("name", BY_NAME)
def test_cpu_backend_in_float32(name: str) -> None:
    check(name, "cpu", torch.float32, FLOAT32)


@pytest.mark.parametrize("name", SHORT)
def test_cpu_backend_in_float64(name: str) -> None:
    check(name, "cpu", torch.float64, FLOAT64)


@pytest.mark.interpreter
@pytest.mark.parametrize("name", SHORT)
def test_triton_in_the_interpreter(name: str) -> None:
    check(name, "triton", torch.float32, FLOAT32)


HALF = ["65_causal", "gqa", "bias_full", "dilation_causal", "kv_lengths_of_none", "dropout", "everything"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", HALF)
def test_cpu_backend_in_half_precision(name: str, dtype: torch.dtype) -> None:
    check(name, "cpu", dtype, LIMITS[dtype])


@pytest.mark.interpreter
@pytest.mark.parametrize("name", HALF[:-1])
def test_float16_of_triton_in_the_interpreter(name: str) -> None:
    check(name, "triton", torch.float16, LIMITS[torch.float16])


@pytest.mark.interpreter
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_token_dilation_with_the_tiles_for_hopper(
    head_dim: int, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 32 keys of a block are left: their products are transposed (tuning.HOPPER_DILATED)
    monkeypatch.setattr("dilated_attention_pytorch.backends.triton.launch.INTERPRETER_CAPABILITY", (9, 0))
    case = Case(
        "dilated", 384 - 8 * causal, heads=2, kv_heads=1, head_dim=head_dim, block_size=128, ratio=0.7,
        segment_lengths=(128, 256), dilation_rates=(1, 4), is_causal=causal, lse_gradient=True,
    )  # fmt: skip
    call = make_call(case, torch.float16, "cpu")
    wanted = run(case, call.to(torch.float64, "cpu"), "reference")
    found = run(case, call, "triton")
    assert off_limits(errors(found, wanted, call), LIMITS[torch.float16]) == {}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", LIMITS, ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", BY_NAME)
def test_triton_on_the_gpu(name: str, dtype: torch.dtype) -> None:
    check(name, "triton", dtype, LIMITS[dtype], "cuda")
