"""Fingerprints: the same for the same tensor, another for any other, whatever the strides; layouts likewise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
from dilated_attention_pytorch.distributed import fingerprints
from dilated_attention_pytorch.distributed.fingerprints import (
    facts_of_layout,
    fingerprint,
    mixed,
    texts_of_tensors,
)


def splitmix64(seed: int) -> int:
    """The published function, on Python's integers."""
    x = (seed + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def test_numbers_are_mixed_as_published() -> None:
    seeds = [0, 1, 2**63 - 1, -1, -(2**63), 1234567]
    got = mixed(torch.tensor(seeds)).tolist()
    assert [x % 2**64 for x in got] == [splitmix64(seed % 2**64) for seed in seeds]


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.int32, torch.int64, torch.bfloat16, torch.float32, torch.complex64]
)
def test_every_element_and_its_place_counts(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "PIECE", 4)  # more than one piece
    x = torch.tensor([0, 1, 0, 0, 1, 1, 0, 1, 1, 0]).to(dtype)
    others = [x.roll(1), x.flip(0)]
    for place in range(10):
        other = x.clone()
        other[place] = 1 - other[place].to(torch.complex64).real
        others.append(other)
    prints = {int(fingerprint(each)) for each in [x, *others]}
    assert len(prints) == 1 + len(others)
    assert int(fingerprint(x.repeat_interleave(3)[::3])) == int(fingerprint(x))


def test_pieces_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(33)
    whole = int(fingerprint(x))
    monkeypatch.setattr(fingerprints, "PIECE", 5)
    assert int(fingerprint(x)) == whole


def test_texts_show_dtype_and_shape() -> None:
    text = texts_of_tensors({"x": torch.zeros(2, 3, dtype=torch.float16)})["x"]
    assert text.startswith("float16 (2, 3) #")
    assert texts_of_tensors({"x": torch.zeros(3, 2, dtype=torch.float16)})["x"] != text


def texts(layout: BlockLayout) -> dict[str, object]:
    facts = facts_of_layout(layout)
    tensors = {name: value for name, value in facts.items() if isinstance(value, Tensor)}
    return {**facts, **texts_of_tensors(tensors)}


def test_layouts_have_equal_facts_exactly_when_they_are_equal() -> None:
    def of(ratio: float = 0.3, length: int = 300, causal: bool = True, exact: bool = False) -> BlockLayout:
        pattern = "local_window" if exact else "dilated_sparse"
        window = {"window_size": 40, "exact": True} if exact else {"sparsity_ratio": ratio}
        return BlockLayout.from_config(
            SparsePatternConfig(pattern, block_size=16, **window), length, causal=causal
        )

    assert texts(of()) == texts(of())
    others = [of(0.4), of(length=301), of(causal=False), of(exact=True)]
    moved = of().to_dense()
    moved[12, :12] = moved[12, :12].roll(1)
    others.append(BlockLayout.from_dense(moved, 16, 300, 300, causal=True))
    for other in others:
        assert texts(other) != texts(of())


def test_unused_room_of_lists_does_not_count() -> None:
    indices = torch.tensor([[[[0, -1, -1], [0, 1, -1], [1, 2, -1]]]])
    sizes = {"q_len": 48, "kv_len": 48, "block_size": 16, "causal": True}
    layouts = [BlockLayout.from_indices(indices, **sizes) for _ in range(2)]
    before = [texts(layout) for layout in layouts]
    assert before[0] == before[1]
    lists = layouts[0].row_lists
    lists.indices[lists.indptr[-1] :] += 1
    lists.block_ids[lists.indptr[-1] :] += 1
    assert texts(layouts[0]) == before[0]
