"""What a problem says beyond a plain batch: the reference, the CPU and the Triton backend serve it, Hopper refuses it by name."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout
from dilated_attention_pytorch.backends.problem import (
    AttentionProblem,
    beyond_plain_batch,
    beyond_plain_scores,
)
from dilated_attention_pytorch.backends.reference import attention_reference
from dilated_attention_pytorch.backends.registry import reasons
from dilated_attention_pytorch.config import TokenDilation
from dilated_attention_pytorch.grid import BlockGrid
from dilated_attention_pytorch.layout.lists import BlockLists, BlockMasks, packed_masks, unpacked_masks
from dilated_attention_pytorch.sequences import packed_sequences, sequences_of_batch

BLOCK, BATCH, HEADS, Q_LEN, KV_LEN = 16, 3, 2, 21, 50
POSITIONS = 64  # of the layout


def int32(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def lists_of(mask: Tensor) -> tuple[BlockLists, BlockLists]:
    """The lists of a block mask (batch, heads, n_rows, n_cols): those of as many heads."""
    layout = BlockLayout.from_dense(mask.flatten(0, 1), BLOCK)
    return layout.row_lists, layout.col_lists


def block_mask(*batch_and_heads: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    size = POSITIONS // BLOCK
    return torch.rand(*batch_and_heads, size, size, generator=generator) < 0.6


def problem(mask: Tensor, **changes: Any) -> AttentionProblem:
    """Queries 0 to 20 and keys 0 to 49 of a layout over 64 positions."""
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(BATCH, Q_LEN, HEADS, 8, generator=generator, dtype=torch.float64)
    k, v = (torch.randn(BATCH, KV_LEN, HEADS, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    rows, cols = lists_of(mask)
    made = AttentionProblem(
        q=q, k=k, v=v, grid=BlockGrid(POSITIONS, POSITIONS, BLOCK, False), layout_batch=mask.shape[0],
        layout_heads=mask.shape[1], rows=rows, cols=cols, undilated=(rows, cols), q_offset=0, is_causal=False,
        softmax_scale=0.5, dropout_p=0.0, dilation=None, block_bias=None, key_padding_mask=None, seed=None,
    )  # fmt: skip
    if "sequences" in changes and changes["sequences"].is_packed:
        made = dataclasses.replace(made, q=q[:1], k=k[:1], v=v[:1])
    return dataclasses.replace(made, **changes)


def dense(p: AttentionProblem, mask: Tensor) -> tuple[Tensor, Tensor]:
    """out and lse by the definition, one pair of tokens after the other."""
    active = mask.expand(BATCH, HEADS, -1, -1)
    ids = torch.full(mask.shape, -1)
    ids[mask] = torch.arange(int(mask.sum()))
    ids = ids.expand(BATCH, HEADS, -1, -1)
    out, lse = torch.zeros_like(p.q), torch.full(p.q.shape[:3], -math.inf, dtype=p.q.dtype).transpose(1, 2)
    table = [[0, Q_LEN, 0, KV_LEN, p.q_offset]] * BATCH if p.sequences is None else p.sequences.table.tolist()
    for s, (q_start, q_len, kv_start, kv_len, q_position) in enumerate(table):
        b = 0 if p.sequences is not None and p.sequences.is_packed else s
        for h in range(HEADS):
            for i in range(q_start, q_start + q_len):
                scores = {}
                for j in range(kv_start, kv_start + kv_len):
                    query, key = q_position + i - q_start, j - kv_start
                    if not (0 <= query < POSITIONS and active[s, h, query // BLOCK, key // BLOCK]):
                        continue
                    if p.is_causal and key > query:
                        continue
                    block = int(ids[s, h, query // BLOCK, key // BLOCK])
                    if p.block_masks is not None and p.block_masks.ids[block] >= 0:
                        inside = unpacked_masks(p.block_masks.table)[p.block_masks.ids[block]]
                        if not inside[query % BLOCK, key % BLOCK]:
                            continue
                    if p.dilation is not None:
                        near, rates = p.dilation.segment_lengths[0], p.dilation.dilation_rates
                        distance = abs(query // BLOCK - key // BLOCK) * BLOCK
                        rate = rates[0] if near > distance else rates[1]
                        if key % rate != h % rate:
                            continue
                    score = 0.5 * float(p.q[b, i, h] @ p.k[b, j, h])
                    if p.softcap:
                        score = p.softcap * math.tanh(score / p.softcap)
                    if p.block_bias is not None:
                        score += float(p.block_bias.expand(BATCH, HEADS, -1)[s, h, block])
                    if p.alibi_slopes is not None:
                        score -= float(p.alibi_slopes[h]) * abs(query - key)
                    if p.attn_bias is not None:
                        score += float(p.attn_bias.expand(BATCH, HEADS, -1, -1)[b, h, i, j])
                    scores[j] = score
                total = sum(map(math.exp, scores.values()))
                if total > 0.0:
                    if p.sinks is not None:
                        total += math.exp(float(p.sinks[h]))
                    lse[b, h, i] = math.log(total)
                for j, score in scores.items():
                    if score > -math.inf:
                        out[b, i, h] += math.exp(score) / total * p.v[b, j, h]
    return out, lse


def some_masks(mask: Tensor) -> BlockMasks:
    generator = torch.Generator().manual_seed(2)
    n_blocks = int(mask.sum())
    ids = torch.randint(-1, 3, (n_blocks,), generator=generator, dtype=torch.int32)
    return BlockMasks(ids, packed_masks(torch.rand(3, BLOCK, BLOCK, generator=generator) < 0.5))


SHARED, PER_HEAD, PER_ELEMENT = block_mask(1, 1), block_mask(1, HEADS), block_mask(BATCH, HEADS)
STARTS, ENDS, OFFSETS = int32(0, 9, 21), int32(50, 44, 30), int32(29, 7, -2)
QUERIES = torch.empty(BATCH, Q_LEN, HEADS, 8)
MOVED = sequences_of_batch(QUERIES, KV_LEN, True, OFFSETS, ENDS, STARTS)[1]
PACKED = packed_sequences(int32(0, 5, 5, 20), int32(0, 19, 23, 49), 15, 26, True)
PACKED_FIELDS: dict[str, Any] = {"sequences": PACKED, "is_causal": True}
OWN_POSITIONS = (
    "the sequences have positions of their own (q_offset as a tensor, or kv_starts), needs the same for all"
)
NUMBERS = torch.linspace(-3, 3, HEADS * Q_LEN * KV_LEN, dtype=torch.float64).view(HEADS, Q_LEN, KV_LEN)
HIDDEN = NUMBERS.masked_fill(NUMBERS.cos() < -0.5, -math.inf)
BIAS = torch.linspace(-2, 2, int(PER_ELEMENT.sum()), dtype=torch.float64)
# (block mask, fields, what the other backends say of it)
BEYOND: dict[str, tuple[Tensor, dict[str, Any], str]] = {
    "layout_of_more_positions": (
        SHARED, {}, "the layout is for q_len 64 and kv_len 64, needs the call's 21 and 50",
    ),
    "chunk_of_a_sequence": (PER_HEAD, {"q_offset": 9, "is_causal": True}, "q_offset is 9, needs 29"),
    "causal_at_the_end": (
        SHARED, {"q_offset": 29, "is_causal": True}, "the layout is for q_len 64 and kv_len 64, needs the call's 21 and 50",
    ),
    "positions_of_elements": (
        PER_HEAD, {"sequences": sequences_of_batch(QUERIES, KV_LEN, True, OFFSETS)[1], "is_causal": True}, OWN_POSITIONS,
    ),
    "padding_on_the_left": (
        SHARED, {"sequences": sequences_of_batch(QUERIES, KV_LEN, False, 0, ENDS, STARTS)[1]}, OWN_POSITIONS,
    ),
    "packed": (PER_HEAD, PACKED_FIELDS, "the sequences are packed, needs a batch"),
    "softcap": (PER_HEAD, {"softcap": 0.7}, "softcap is 0.7, needs 0"),
    "alibi_slopes": (SHARED, {"alibi_slopes": torch.tensor([0.5, 0.125])}, "alibi_slopes is given, needs None"),
    "sinks": (PER_HEAD, {"sinks": torch.tensor([0.5, -1.0])}, "sinks is given, needs None"),
    "attn_bias": (SHARED, {"attn_bias": HIDDEN[None]}, "attn_bias is given, needs None"),
    "lists_of_elements": (PER_ELEMENT, {}, "the layout has 3 batch elements, needs one for all"),
    "lists_and_bias_of_elements": (
        PER_ELEMENT, {"block_bias": BIAS[None, None]}, "the layout has 3 batch elements, needs one for all",
    ),
    "packed_lists_of_elements": (
        PER_ELEMENT, {**PACKED_FIELDS, "block_bias": BIAS[None, None]},
        "the layout has 3 batch elements, needs one for all",
    ),
    "masks_inside_blocks": (PER_HEAD, {"block_masks": some_masks(PER_HEAD)}, "the layout has masks inside blocks, needs none"),
    "all_together": (
        PER_ELEMENT,
        {
            "block_masks": some_masks(PER_ELEMENT), "sequences": MOVED, "is_causal": True, "block_bias": BIAS[None, None],
            "softcap": 2.0, "alibi_slopes": torch.tensor([0.5, 0.125]), "sinks": torch.tensor([0.5, -1.0]),
            "attn_bias": HIDDEN[None],
        },
        "the layout has 3 batch elements, needs one for all",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BEYOND)
def test_reference_is_the_dense_definition(name: str) -> None:
    mask, fields, _ = BEYOND[name]
    p = problem(mask, **fields)
    # float64 over 50 keys
    torch.testing.assert_close(attention_reference(p), dense(p, mask), rtol=0.0, atol=1e-13)


def test_positions_decide_which_keys_token_dilation_keeps() -> None:
    dilation = TokenDilation((32, 64), (1, 2))
    p = problem(SHARED, sequences=MOVED)
    split = BlockLayout.from_dense(SHARED[0, 0], BLOCK).lists(dilation)
    p = dataclasses.replace(p, dilation=dilation, rows=split[0], cols=split[1])
    torch.testing.assert_close(attention_reference(p), dense(p, SHARED), rtol=0.0, atol=1e-13)


@pytest.mark.parametrize("name", BEYOND)
def test_what_is_beyond_a_plain_call_is_said_by_name(name: str) -> None:
    mask, fields, reason = BEYOND[name]
    p = problem(mask, **fields)
    assert reason in (beyond_plain_batch(p), beyond_plain_scores(p))
    assert reasons(p)["cpu"] is None
    assert reasons(p)["hopper"] is not None


def test_a_plain_batch_is_not_refused() -> None:
    grid = BlockGrid(Q_LEN, KV_LEN, BLOCK, False)
    mask = block_mask(1, 1)[:, :, : grid.n_rows, : grid.n_cols]
    plain = problem(mask, grid=grid, sequences=sequences_of_batch(QUERIES, KV_LEN, False, kv_lengths=ENDS)[1])
    assert reasons(plain)["cpu"] is None
