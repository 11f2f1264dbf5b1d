"""The table of what each backend serves says what the backends say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
from dilated_attention_pytorch.backends.cpu import CPU
from dilated_attention_pytorch.backends.hopper import rejected_values
from dilated_attention_pytorch.backends.problem import AttentionProblem
from dilated_attention_pytorch.backends.triton import unserved_sizes
from dilated_attention_pytorch.functional import make_problem
from dilated_attention_pytorch.varlen import check_packed_call
from tests.docs.fences import ROOT

PAGE = ROOT / "docs/guides/backends.md"
BACKENDS: dict[str, Callable[[AttentionProblem], str | None]] = {
    "cpu": CPU.rejects,
    "hopper": rejected_values,
    "triton": lambda problem: unserved_sizes(problem.q, problem.v_head_dim),
}
LENGTH = 512


def call(
    dtype: torch.dtype = torch.bfloat16,
    dim: int = 64,
    v_dim: int | None = None,
    block: int = 128,
    q_len: int = LENGTH,
    kv_len: int = LENGTH,
    kv_heads: int = 4,
    layout: BlockLayout | None = None,
    **options: Any,
) -> AttentionProblem:
    if layout is None:
        causal = bool(options.get("is_causal"))
        layout = BlockLayout.from_config(SparsePatternConfig(block_size=block), q_len, kv_len, causal=causal)
    q = torch.zeros(2, q_len, 4, dim, dtype=dtype)
    k, v = (torch.zeros(2, kv_len, kv_heads, n, dtype=dtype) for n in (dim, v_dim or dim))
    return make_problem(q, k, v, layout, **options)


def strided(view: Callable[[Tensor], Tensor]) -> AttentionProblem:
    q = view(torch.zeros(2, LENGTH, 4, 64, dtype=torch.bfloat16))
    return make_problem(q, q, q, BlockLayout.from_config(SparsePatternConfig(block_size=128), LENGTH))


def packed() -> AttentionProblem:
    q, ends = torch.zeros(LENGTH, 4, 64, dtype=torch.bfloat16), torch.tensor([0, 200, 512], dtype=torch.int32)
    layout = BlockLayout.from_config(SparsePatternConfig(block_size=128), LENGTH)
    return check_packed_call(q, q, q, layout, ends, ends, 312, 312).problem(layout)


def dense(*shape: int) -> BlockLayout:
    return BlockLayout.from_dense(torch.ones(*shape, 4, 4, dtype=torch.bool), 128)


def masked() -> BlockLayout:
    return BlockLayout.from_mask(torch.rand(LENGTH, LENGTH) < 0.5, block_size=128)


def of_elements(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def dilated(segments: list[int], rates: list[int], **changes: Any) -> AttentionProblem:
    return call(segment_lengths=segments, dilation_rates=rates, **changes)


PADDING: list[dict[str, Any]] = [
    {"kv_lengths": of_elements(300, 512)},
    {"kv_starts": of_elements(0, 40)},
    {"key_padding_mask": torch.zeros(2, LENGTH, dtype=torch.bool)},
]
SCORES: list[dict[str, Any]] = [
    {"softcap": 5.0},
    {"alibi_slopes": torch.full((4,), 0.5)},
    {"sinks": torch.zeros(4)},
]
CAUSAL = BlockLayout.from_config(SparsePatternConfig(block_size=128), LENGTH, causal=True)
OFFSETS: list[dict[str, Any]] = [
    {"q_offset": offset, "q_len": 256, "is_causal": True, "layout": CAUSAL}
    for offset in (64, of_elements(0, 200))
]
BIAS: dict[str, Any] = {"layout": dense(), "block_bias": torch.zeros(1, 1, 16)}
# Of every row some calls; a row in which backends differ within it would fail.
ROWS: dict[str, Callable[[], list[AttentionProblem]]] = {
    "float16, bfloat16": lambda: [call(torch.float16), call(torch.bfloat16)],
    "float32": lambda: [call(torch.float32)],
    "float64": lambda: [call(torch.float64)],
    "head_dim up to 256, a multiple of 8": lambda: [call(dim=dim) for dim in (8, 80, 128, 192, 256)],
    "other head_dim up to 256": lambda: [call(dim=dim) for dim in (4, 84, 255)],
    "head_dim above 256": lambda: [call(dim=264), call(v_dim=264)],
    "v of another head_dim": lambda: [call(dim=192, v_dim=128), call(dim=64, v_dim=256)],
    "blocks of 64, 128, 256": lambda: [call(block=block) for block in (64, 128, 256)],
    "blocks of 16, 32": lambda: [call(block=block) for block in (16, 32)],
    "blocks of 16 of no pattern, less than 15 % of all": lambda: [
        call(layout=BlockLayout.from_dense(torch.eye(LENGTH // 16).bool(), 16)),
    ],
    "any length, `q_len != kv_len`, causal or not": lambda: [
        call(q_len=300, is_causal=causal) for causal in (False, True)
    ],
    "grouped query heads (GQA, MQA), one pattern per head": lambda: [
        call(kv_heads=2), call(kv_heads=1), call(layout=dense(4)),
    ],
    "any strides and offsets": lambda: [
        strided(lambda x: x[:, :, :1].expand_as(x)),
        strided(lambda x: torch.cat([x, x], 3)[..., 3:67]),
        strided(lambda x: x.transpose(2, 3).contiguous().transpose(2, 3)),
    ],
    "`kv_lengths`, `kv_starts`, `key_padding_mask`": lambda: [call(**each) for each in PADDING],
    "`q_offset`, as a number or for each batch element": lambda: [call(**each) for each in OFFSETS],
    "packed sequences (`block_sparse_attention_varlen`)": lambda: [packed()],
    "a layout for each batch element, blocks chosen from the content": lambda: [call(layout=dense(2, 1))],
    "masks inside blocks": lambda: [call(layout=masked())],
    "`block_bias`, with its gradient": lambda: [call(**BIAS)],
    "`block_bias` with blocks of 16, 32": lambda: [
        call(block=block, block_bias=torch.zeros(1, 1, BlockLayout.from_config(SparsePatternConfig(block_size=block), LENGTH).num_block_ids))
        for block in (16, 32)
    ],
    "`softcap`, `alibi_slopes`, `sinks`": lambda: [call(**each) for each in SCORES],
    "`deterministic=False`, which is faster in plain calls of `hopper`": lambda: [call(deterministic=False)],
    "`attn_bias`": lambda: [call(attn_bias=torch.zeros(1, LENGTH, LENGTH))],
    "dropout": lambda: [call(dropout_p=0.1)],
    "`softmax_scale` of 0 or below": lambda: [call(softmax_scale=scale) for scale in (0.0, -1.0)],
    "token dilation with padding, positions, packing, masks inside blocks, biases, softcap, ALiBi, sinks or dropout": lambda: [
        dilated([128, 256], [1, 4], **each)
        for each in (*PADDING, OFFSETS[1], BIAS, {"layout": masked()}, *SCORES, {"dropout_p": 0.1})
    ],
}  # fmt: skip
DILATION = "token dilation"


def table() -> dict[str, dict[str, str]]:
    """The cells by row and backend."""
    before_sections = PAGE.read_text("utf-8").partition("\n## ")[0]
    lines = [line for line in before_sections.splitlines() if line.startswith("| ")]
    names, *rows = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in lines)
    return {
        row[0]: dict(zip((name.strip("` |") for name in names[1:]), row[1:], strict=True)) for row in rows
    }


def test_every_row_is_asked_of_the_backends() -> None:
    assert set(table()) == {*ROWS, DILATION}
    assert all(set(row) == set(BACKENDS) for row in table().values())


@pytest.mark.parametrize("row", ROWS)
def test_a_row_says_what_the_backends_say(row: str) -> None:
    problems = ROWS[row]()
    for name, why_not in BACKENDS.items():
        found = {"yes" if why_not(problem) is None else "no" for problem in problems}
        assert found == {table()[row][name]}, name


def test_the_note_says_which_token_dilation_hopper_serves() -> None:
    assert table()[DILATION] == {"cpu": "yes", "hopper": "if ¹", "triton": "yes"}
    for segments, rates in (([128], [2]), ([128, 256], [1, 16]), ([128, 512], [4, 2])):
        assert rejected_values(dilated(segments, rates, dim=128)) is None
    for problem in (
        dilated([128, 256], [1, 4], block=64),
        dilated([128, 256], [1, 4], dim=136),
        dilated([128, 256], [1, 32]),
        dilated([128, 256, 512], [1, 2, 4]),
        dilated([128, 256], [1, 16], q_len=504, kv_len=504),
    ):
        assert rejected_values(problem) is not None
        assert CPU.rejects(problem) is None
        assert BACKENDS["triton"](problem) is None
