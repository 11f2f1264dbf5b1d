"""Launches of the decoding kernels: their arguments, and that they depend on shapes alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch.backends.decode_problem import DecodeInputs, DecodeProblem
from dilated_attention_pytorch.backends.triton import decode_launch
from dilated_attention_pytorch.backends.triton.decode_launch import launches_of, make_results, sizes_of
from dilated_attention_pytorch.validation.decode import check_decode
from tests.core.decode_cases import int32, layout_of, table_of

H100 = (9, 0)


def problem(
    batch: int = 1,
    n_tokens: int = 8192,
    q_len: int = 1,
    heads: int = 32,
    layout_heads: int = 1,
    **options: Any,
) -> DecodeProblem:
    """A call with 8 kv heads of 128 in bfloat16, on meta tensors."""
    layout = layout_of(n_tokens, layout_heads, 64, 0.1)
    q = torch.empty(batch, q_len, heads, 128, dtype=torch.bfloat16)
    k = torch.empty(1, 1, 8, 128, dtype=torch.bfloat16).expand(batch, n_tokens, 8, 128)
    lengths = torch.zeros(batch, dtype=torch.int32)
    inputs = DecodeInputs(q, k, k, lengths, None, None, None, None)._replace(**options)
    return check_decode(inputs, layout, softmax_scale=None, softcap=None)


def sizes(p: DecodeProblem) -> decode_launch.DecodeSizes:
    return sizes_of(p, H100, 132)


@pytest.mark.parametrize("has_options", [False, True])
def test_arguments_are_in_the_order_of_the_kernels(has_options: bool) -> None:
    # a raw launch takes them by place: addresses of tensors, then numbers
    options: dict[str, Tensor] = {}
    if has_options:
        options = {
            "block_table": table_of(1, 8192), "kv_starts": int32(0), "alibi_slopes": torch.ones(32), "sinks": torch.ones(32),
        }  # fmt: skip
    p = problem(**options)
    launches = launches_of(p, make_results(p, sizes(p).n_splits), sizes(p))
    assert len(launches) == 2
    for launch, n_tensors in zip(launches, (15, 5), strict=True):
        assert list(launch.arguments) == list(launch.kernel.arg_names)
        is_tensor = [isinstance(x, Tensor) for x in launch.arguments.values()]
        assert is_tensor == [True] * n_tensors + [False] * (len(is_tensor) - n_tensors)


def test_sizes_do_not_depend_on_lengths() -> None:
    p = problem()
    longer = p._replace(inputs=p.inputs._replace(cache_lengths=int32(8192)))
    assert sizes(p) == sizes(longer)


@pytest.mark.parametrize(
    ("batch", "n_tokens", "n_splits"),
    [
        (1, 8192, 7),  # 13 blocks, in shares of 2
        (1, 32768, 26),
        (1, 131072, 64),
        (8, 8192, 7),
        (32, 32768, 3),  # 256 programs for 132 multiprocessors
        (512, 8192, 1),
    ],
)
def test_keys_are_shared_out_until_the_gpu_is_full(batch: int, n_tokens: int, n_splits: int) -> None:
    assert sizes(problem(batch, n_tokens)).n_splits == n_splits


def test_heads_that_share_keys_are_rows_of_one_product() -> None:
    assert (sizes(problem()).pack, sizes(problem()).tiles.block_m) == (4, 16)
    assert sizes(problem(q_len=16)).tiles.block_m == 64
    assert sizes(problem(heads=128, q_len=16)).tiles.block_m == 64  # in 4 tiles
    assert sizes(problem(heads=128, q_len=16)).n_programs == 8 * 4
    assert sizes(problem(layout_heads=8)).pack == 4
    assert sizes(problem(layout_heads=32)).pack == 1


def test_one_program_with_all_keys_needs_no_parts() -> None:
    p = problem(batch=512)
    results = make_results(p, 1)
    assert results.part_out is results.out
    assert results.part_lse is results.lse
    assert len(launches_of(p, results, sizes(p))) == 1


def test_a_repeated_call_is_not_bound_in_the_interpreter() -> None:
    assert decode_launch.bind_decode(problem()) is None


class FakeCompiled:
    """A compiled kernel whose launches are noted."""

    packed_metadata, function = "metadata", "function"

    def __init__(self, noted: list[tuple[Any, ...]]) -> None:
        self.noted = noted
        self.run = self
        self.gsan_enabled = False
        self.arg_annotations = self.kernel_signature = None

    def launch(self, *arguments: Any) -> None:
        self.noted.append(arguments)


class FakeKernel:
    def __init__(self, kernel: Any, noted: list[tuple[Any, ...]]) -> None:
        self.arg_names, self.noted = kernel.arg_names, noted

    def warmup(self, **arguments: Any) -> FakeCompiled:
        return FakeCompiled(self.noted)


@pytest.mark.parametrize("is_apart", [False, True])
def test_a_bound_call_launches_with_the_addresses_of_its_inputs(
    is_apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dilated_attention_pytorch.launching import raw_launch

    noted: list[tuple[Any, ...]] = []
    monkeypatch.setattr(decode_launch, "HAS_RAW_LAUNCH", True)
    monkeypatch.setattr(decode_launch, "raw_launch", raw_launch, raising=False)
    monkeypatch.setattr(raw_launch, "ARGUMENTS_APART", is_apart)
    for name in ("decode_kernel", "combine_kernel"):
        monkeypatch.setattr(decode_launch, name, FakeKernel(getattr(decode_launch, name), noted))
    monkeypatch.setattr(decode_launch._torch_internals, "current_device", lambda: -1)
    monkeypatch.setattr(decode_launch._torch_internals, "current_raw_stream", lambda index: 77)
    p = problem(batch=2, alibi_slopes=torch.ones(32), sinks=torch.ones(32))
    bound = decode_launch.bind_decode(p)
    assert bound is not None
    given = p.inputs._replace(q=torch.empty_like(p.inputs.q), cache_lengths=int32(5, 6))
    out, lse = bound(given, True)
    assert lse is not None
    assert out.shape == (2, 1, 32, 128)
    assert lse.shape == (2, 32, 1)
    walk, combine = noted
    assert walk[:4] == (2 * 8 * 7, 1, 1, 77)
    assert combine[:4] == (2 * 32, 1, 1, 77)

    def addresses(launched: tuple[Any, ...], kernel: Any) -> dict[str, Any]:
        passed = launched[-len(kernel.arg_names) :] if is_apart else launched[-1]
        return dict(zip(kernel.arg_names, passed, strict=True))

    names = addresses(walk, decode_launch.decode_kernel)
    others = addresses(combine, decode_launch.combine_kernel)
    for name, x in (
        ("Q", given.q), ("K", given.k_cache), ("V", given.v_cache), ("CacheLengths", given.cache_lengths),
        ("Slopes", given.alibi_slopes), ("Sinks", given.sinks), ("Offsets", p.rows.indptr), ("Indices", p.rows.indices),
        ("Entries", p.rows.block_ids),
    ):  # fmt: skip
        assert x is not None
        assert names[name] == x.data_ptr(), name
    assert (others["Out"], others["Lse"]) == (out.data_ptr(), lse.data_ptr())
    assert (others["PartOut"], others["PartLse"]) == (names["Out"], names["Lse"])
    assert names["Lse"] - names["Out"] == 4 * 2 * 7 * 32 * 128
    assert (names["n_splits"], names["HEAD_DIM"], others["n_splits"]) == (7, 128, 7)
    assert (names["max_len"], names["stride_ks"], names["softmax_scale"]) == (8192, 0, p.softmax_scale)
    longer = torch.empty(2, 8, 300, 128, dtype=torch.bfloat16).transpose(1, 2)  # a cache that was made anew
    assert bound(given._replace(k_cache=longer, v_cache=longer), False)[1] is None
    after = addresses(noted[2], decode_launch.decode_kernel)
    changed = dict(zip(("stride_kb", "stride_ks", "stride_kh", "stride_kd"), longer.stride(), strict=True))
    changed |= dict(zip(("stride_vb", "stride_vs", "stride_vh", "stride_vd"), longer.stride(), strict=True))
    changed |= {"max_len": 300, "K": longer.data_ptr(), "V": longer.data_ptr()}
    for name in names.keys() - {"Out", "Lse"}:
        assert after[name] == changed.get(name, names[name]), name
