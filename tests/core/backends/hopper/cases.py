"""The cases of attention_cases.py in shapes that the Hopper backend serves, and the names of those that it may refuse."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout
from dilated_attention_pytorch.backends.hopper import HOPPER
from dilated_attention_pytorch.backends.hopper.work_order import WorkOrder
from dilated_attention_pytorch.config import TokenDilation
from tests.core.attention_cases import CASES, FLOAT32, Case, case, errors, make_call, run

SHAPES = ((64, 64), (64, 128), (128, 64), (128, 128), (128, 256))  # head_dim and block_size

# Rare in the other cases: whole blocks before the first query, long lists, every form of token dilation.
MORE = [
    case("whole_blocks_before", 256, 640, heads=4, kv_heads=2, is_causal=True, lse_gradient=True),
    case("whole_blocks_before_ragged", 200, 456, batch=2, is_causal=True, ratio=0.7),
    case("decoding_at_a_block_start", 1, 385, batch=2, heads=4, kv_heads=1, is_causal=True, ratio=0.9),
    case("all_of_2000", 2000, heads=1, ratio=1.0),
    case("all_of_2000_causal", 2000, heads=1, ratio=1.0, is_causal=True, lse_gradient=True),
    case("all_of_2048_causal_gqa", 2048, heads=2, kv_heads=1, ratio=1.0, is_causal=True),
    case("many_heads", 300, batch=3, heads=20, kv_heads=5, layout_heads=20, ratio=0.5, is_causal=True),
    case(
        "columns_unseen_by_some_heads", 500, batch=2, heads=8, kv_heads=2, layout_heads=8, ratio=0.9,
        unseen=((0, 2), (0, 3), (1, 0), (1, 1), (2, 1), (3, 1), (4, 0), (4, 1), (4, 2), (6, 4), (6, 5), (7, 6), (7, 7)),
    ),
    case("seven_heads_share_keys", 500, heads=7, kv_heads=1, ratio=0.5, lse_gradient=True),
    case("dilation_2048", 2048, segment_lengths=(128, 256), dilation_rates=(1, 4), ratio=0.6, is_causal=True),
    case("dilation_2048_full", 2048, heads=4, kv_heads=2, segment_lengths=(64, 128), dilation_rates=(2, 16), ratio=1.0),
    case("dilation_of_all_by_16", 1008, segment_lengths=(64,), dilation_rates=(16,), ratio=0.9, is_causal=True),
    case("dilation_per_head", 600, heads=4, layout_heads=4, segment_lengths=(64, 128), dilation_rates=(1, 8), ratio=0.8),
    case("dilation_empty_rows", 520, segment_lengths=(64, 128), dilation_rates=(1, 4), ratio=0.8, empty_rows=(1, 3)),
    case("dilation_whole_blocks_before", 256, 640, segment_lengths=(64, 128), dilation_rates=(1, 2), ratio=0.8, is_causal=True),
]  # fmt: skip

# Cases that may be refused. A name added here is a call that the backend no longer serves.
OPTIONS: dict[str, tuple[str, ...]] = {
    "softmax_scale": ("softmax_scale_negative", "softmax_scale_zero"),
}  # fmt: skip
DILATED = (
    "dilation", "dilation_causal", "dilation_of_all", "dilation_more_heads_than_residues", "dilation_coarse",
    "dilation_finer_farther", "dilation_block_16", "dilation_block_256", "dilation_2048", "dilation_2048_full",
    "dilation_of_all_by_16", "dilation_per_head", "dilation_empty_rows", "dilation_whole_blocks_before", "dilation_chunk",
    "dilation_4096", "kv_lengths_dilation_bias", "dilation_dropout_bias_block_32", "everything",
)  # fmt: skip
OPTIONS_AT_BLOCK: dict[int, dict[str, tuple[str, ...]]] = {
    64: {"with token dilation, block_size is 64": DILATED},
    128: {
        "with token dilation, the first query is at position": ("dilation_4096",),
        "with token dilation, block_bias": ("kv_lengths_dilation_bias", "dilation_dropout_bias_block_32", "everything"),
        "with token dilation, dilation_rates is": ("dilation_causal", "dilation_coarse"),
        "with token dilation, kv_len is": ("dilation_block_16", "dilation_block_256", "dilation_chunk"),
    },
    256: {"with token dilation, block_size is 256": DILATED},
}  # fmt: skip


def refusals(block_size: int) -> dict[str, str]:
    """The start of the reason why each case is refused at a block size, by the name of the case."""
    lists = [*OPTIONS.items(), *OPTIONS_AT_BLOCK.get(block_size, {}).items()]
    return {name: reason for reason, names in lists for name in names}


def shaped(case: Case, head_dim: int, block_size: int, v_head_dim: int | None = None) -> Case:
    """A case in a shape that the backend serves; lengths stay, segments and empty rows follow the block size."""
    segments = case.segment_lengths
    if segments is not None:
        segments = tuple(length * block_size // case.block_size for length in segments)
    n_rows, n_cols = -(-case.q_len // block_size), -(-case.keys // block_size)
    return dataclasses.replace(
        case,
        head_dim=head_dim,
        v_head_dim=v_head_dim or head_dim,
        block_size=block_size,
        segment_lengths=segments,
        empty_rows=tuple(row for row in case.empty_rows if row < n_rows),
        empty_columns=tuple(column for column in case.empty_columns if column < n_cols),
        unseen=tuple((head, column) for head, column in case.unseen if column < n_cols),
    )


def constants(case: Case) -> tuple[object, ...]:
    """The constants that kernels are compiled for; sorted by it, neighbouring cases share kernels."""
    whole = case.keys % case.block_size == 0
    return case.head_dim, case.block_size, case.is_causal, whole, tuple(case.dilation_rates or ())


ALL = [shaped(case, head_dim, block_size) for case in (*CASES, *MORE) for head_dim, block_size in SHAPES]
# That are none of the kernels' own, or take three passes backward.
OTHER_HEAD_DIMS = ((8, 8), (80, 80), (96, 64), (192, 128), (192, 192), (128, 256), (256, 256))
IN_OTHER_HEAD_DIMS = (
    "whole_blocks_before_ragged",
    "many_heads",
    "columns_unseen_by_some_heads",
    "seven_heads_share_keys",
)
ALL += [
    shaped(case, head_dim, block_size, v_head_dim)
    for case in MORE
    if case.name in IN_OTHER_HEAD_DIMS
    for head_dim, v_head_dim in OTHER_HEAD_DIMS
    for block_size in (64, 128)
]
ALL += [
    shaped(case, head_dim, block_size)
    for case in MORE
    if case.segment_lengths is None
    for head_dim, block_size in ((64, 32), (128, 16))  # joined to tiles of 64
]
SERVED = sorted((case for case in ALL if case.name not in refusals(case.block_size)), key=constants)


def label(case: Case) -> str:
    v_head_dim = "" if case.v_head_dim == case.head_dim else f"-{case.v_head_dim}"
    return f"{case.name}-{case.head_dim}{v_head_dim}-{case.block_size}"


# ---- how far from the definition a result may be

# Mean relative error of rounding a number to the type.
ROUNDING = {torch.bfloat16: 2**-9, torch.float16: 2**-12}
# out and the gradient of v: the weights are rounded, and the result; sqrt(2) roundings, and as much again.
# The gradients of q and k: the result, ds, and delta, which comes from the rounded out and is subtracted from a number
# of its size; in float64 with these roundings alone 2.2 at most, and 4.5 where the weights are nearly 0 and 1.
# The gradients of block_bias and sinks are sums that cancel, so the rounding of out, by delta, may be all of them: they are
# compared with those of the rounded out. Of a bias the rounding of ds is left, which cancels less; of sinks no rounding is.
ROUNDINGS = {
    "out": 2.0,
    "grad_v": 2.0,
    "grad_q": 4.0,
    "grad_k": 4.0,
    "grad_block_bias": 8.0,
    "grad_sinks": 0.1,
}
SUMS = ("grad_block_bias", "grad_sinks")
NEARLY_ONE_HOT = "softmax_scale_large"


def over_the_limit(found: dict[str, float], case: Case, dtype: torch.dtype) -> dict[str, float]:
    """The errors that reach their limit, or are NaN; lse is computed and returned in float32."""

    def limit(name: str) -> float:
        if name == "lse":
            return FLOAT32
        twice = case.name == NEARLY_ONE_HOT and name in ("grad_q", "grad_k")
        return ROUNDINGS[name] * ROUNDING[dtype] * (2.0 if twice else 1.0)

    return {name: error for name, error in found.items() if not error < limit(name)}


def lse_gradient_of_rounding(grad_out: Tensor, found: Tensor, wanted: Tensor) -> Tensor:
    """The gradient of lse that changes delta as the rounding of out does: (batch, heads, q_len), of (batch, q_len, heads, dim)."""
    return -(grad_out.double() * (found.detach().double() - wanted.detach())).sum(-1).transpose(1, 2)


def check(case: Case, dtype: torch.dtype, device: str = "cuda") -> None:
    """Compare with the dense definition in float64, on the same device and from the same rounded values."""
    call = make_call(case, dtype, device)
    exact = call.to(torch.float64, device)
    wanted = run(case, exact, "reference")
    found = run(case, call, "hopper")
    assert {key: x.shape for key, x in found.items()} == {key: x.shape for key, x in wanted.items()}
    assert found["out"].dtype == dtype
    assert found["lse"].dtype == torch.float32
    if any(name in wanted for name in SUMS):
        grad_lse = lse_gradient_of_rounding(exact.grad_out, found["out"], wanted["out"])
        if exact.grad_lse is not None:
            grad_lse = grad_lse + exact.grad_lse
        of_rounded = run(case, dataclasses.replace(exact, grad_lse=grad_lse), "reference")
        wanted |= {name: of_rounded[name] for name in SUMS if name in wanted}
    assert over_the_limit(errors(found, wanted, call), case, dtype) == {}


# ---- what the backend prepares


def work_order(layout: BlockLayout, dilation: TokenDilation | None = None) -> Tensor:
    """The work order of a layout."""
    made, *_ = HOPPER.prepare(layout, dilation)
    return made


def offsets_of(layout: BlockLayout, dilation: TokenDilation | None = None) -> WorkOrder:
    """The offsets of its parts."""
    grid = layout.grid
    return WorkOrder.of(
        grid.n_rows, grid.n_cols, layout.num_heads, layout.num_active_blocks, grid.block_size, dilation
    )
