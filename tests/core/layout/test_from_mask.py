"""How a mask_mod is called, which pairs it is asked about, and what is refused."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
from dilated_attention_pytorch.layout import element_masks, from_mask
from dilated_attention_pytorch.layout.lists import packed_masks, unpacked_masks
from tests.core.layout.mask_cases import causal, dilated, documents, window
from tests.core.layout.pairs import equal_layouts, pairs_of

TABLE = torch.rand(2, 100, 90, generator=torch.Generator().manual_seed(0)) < 0.5
FACTORS = [1, 3]


def one_pair_at_a_time(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """Wrong for tensors that broadcast: `any` would be over all of them."""
    assert b.dim() == h.dim() == q.dim() == k.dim() == 0
    return (TABLE[h, q][k] | (torch.tensor([3, 50, 99]) == q).any()).logical_not()


def branches(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return q >= k if h == 0 else q // FACTORS[h] == k


# (mask_mod, its pairs of two heads for 100 queries and 90 keys)
QUERY, KEY = torch.arange(100)[:, None], torch.arange(90)
STYLES: dict[str, tuple[Any, Tensor]] = {
    "vmap": (one_pair_at_a_time, ~(TABLE | torch.isin(QUERY, torch.tensor([3, 50, 99])))),
    "branches": (branches, torch.stack([QUERY >= KEY, QUERY // 3 == KEY])),
    "constant": (lambda b, h, q, k: b.new_ones((), dtype=torch.bool), torch.ones(1, 100, 90, dtype=torch.bool)),
    "of_the_key_alone": (lambda b, h, q, k: k % 3 == h, (torch.arange(2)[:, None, None] == KEY % 3)),
    "of_the_key_alone_without_vmap": (lambda b, h, q, k: k % 3 == int(h), (torch.arange(2)[:, None, None] == KEY % 3)),
}  # fmt: skip


@pytest.mark.parametrize("block_size", [16, 64, 128])
@pytest.mark.parametrize("style", STYLES)
def test_mask_mods_of_every_style(style: str, block_size: int) -> None:
    mask_mod, expected = STYLES[style]
    layout = BlockLayout.from_mask_mod(mask_mod, 100, 90, block_size, num_heads=2)
    assert torch.equal(pairs_of(layout)[0], expected.expand(2, 100, 90))


def test_mask_mod_is_asked_about_tokens_that_exist() -> None:
    """At ragged ends, and where a causal layout begins in the middle of a block."""
    of_queries, of_keys = torch.arange(70) % 3, torch.arange(200) % 3
    layout = BlockLayout.from_mask_mod(lambda b, h, q, k: of_queries[q] == of_keys[k], 70, 200, causal=True)
    expected = (of_queries[:, None] == of_keys) & (torch.arange(200) <= torch.arange(130, 200)[:, None])
    assert torch.equal(pairs_of(layout)[0, 0], expected)


def test_causal_layout_leaves_later_keys_to_is_causal() -> None:
    layout = BlockLayout.from_mask_mod(causal, 300, causal=True)
    assert (layout.block_masks, layout.num_active_blocks, layout.density) == (None, 15, 1.0)
    exact = BlockLayout.from_mask_mod(causal, 300)
    assert exact.stats().num_masks == 1
    assert torch.equal(pairs_of(layout), pairs_of(exact))
    assert layout.stats().num_pairs == exact.stats().num_pairs == 300 * 301 // 2


def test_lists_of_batch_elements_and_heads() -> None:
    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q - k).abs() <= 20 * b + h

    layout = BlockLayout.from_mask_mod(mask_mod, 100, 90, 16, batch=3, num_heads=2)
    assert (layout.batch, layout.num_heads) == (3, 2)
    wide = 20 * torch.arange(3)[:, None, None, None] + torch.arange(2)[:, None, None]
    expected = (QUERY - KEY).abs() <= wide
    assert torch.equal(pairs_of(layout), expected)
    assert equal_layouts(layout, BlockLayout.from_mask(expected, 16))
    active = [mask.unflatten(0, (-1, 1)) for mask in expected.flatten(0, 1)]
    assert layout.stats().num_pairs == int(expected.sum()) == sum(int(mask.sum()) for mask in active)
    assert layout.stats().element_density == int(expected.sum()) / expected.numel()


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([16, 32]), st.integers(1, 90), st.integers(1, 90), st.integers(1, 2), st.booleans(),
    st.floats(0, 1), st.integers(0, 2**32),
)  # fmt: skip
def test_any_mask_survives(
    block_size: int, q_len: int, kv_len: int, heads: int, is_causal: bool, share: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(heads, q_len, kv_len, generator=generator) < share
    layout = BlockLayout.from_mask(mask, block_size, causal=is_causal)
    if is_causal:
        mask &= torch.arange(kv_len) <= torch.arange(q_len)[:, None] + kv_len - q_len
    assert torch.equal(pairs_of(layout)[0], mask)
    assert layout.stats().num_pairs == int(mask.sum())
    if layout.block_masks is not None:  # no mask twice, none of no block, none of the whole block
        ids, table = layout.block_masks
        assert ids.unique().tolist() == list(range(-1 if bool((ids < 0).any()) else 0, table.shape[0]))
        assert table.flatten(1).unique(dim=0).shape[0] == table.shape[0]
        assert bool((~unpacked_masks(table)).flatten(1).any(1).all())


@pytest.mark.parametrize("shape", [(60, 70), (2, 60, 70), (3, 2, 60, 70), (1, 1, 60, 70)])
def test_axes_of_a_mask(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5
    layout = BlockLayout.from_mask(mask, 32)
    batch, heads = ((1,) * (4 - mask.dim()) + shape)[:2]
    assert (layout.batch, layout.num_heads) == (batch, heads)
    assert torch.equal(pairs_of(layout), mask.view(batch, heads, 60, 70))


def test_expanded_axes_of_a_mask_are_one() -> None:
    mask = torch.ones(60, 60, dtype=torch.bool).tril().expand(8, 4, 60, 60)
    assert (BlockLayout.from_mask(mask).batch, BlockLayout.from_mask(mask).num_heads) == (1, 1)


# ---- distinct masks


@pytest.mark.parametrize("size", [16, 32, 64, 128, 256])
def test_packed_masks_have_bit_k_of_key_k(size: int) -> None:
    masks = torch.rand(3, size, size, generator=torch.Generator().manual_seed(2)) < 0.5
    words = packed_masks(masks)
    assert words.dtype == torch.int32
    for key in range(size):
        assert torch.equal((words[:, :, key // 32] >> key % 32) & 1, masks[:, :, key].int())
    assert torch.equal(unpacked_masks(words), masks)
    if size == 16:
        assert bool((words >> 16 == 0).all())


def test_masks_with_one_fingerprint_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = BlockLayout.from_mask_mod(documents(30, 40, 50), 120, block_size=16)
    monkeypatch.setattr(element_masks, "fingerprints", lambda bits: bits[:, 0].long() & 1)
    found = BlockLayout.from_mask_mod(documents(30, 40, 50), 120, block_size=16)
    assert equal_layouts(found, expected)


def test_groups_do_not_change_the_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q * k + h) % 7 < 3

    whole = BlockLayout.from_mask_mod(mask_mod, 200, 150, 16, num_heads=2)
    monkeypatch.setitem(from_mask.PAIRS_PER_GROUP, "cpu", 5 * 16 * 16)
    assert equal_layouts(BlockLayout.from_mask_mod(mask_mod, 200, 150, 16, num_heads=2), whole)


MEASURE = """
import resource
import torch
from dilated_attention_pytorch import BlockLayout
mask_mod = lambda b, h, q, k: (q >= k) & (q - k <= 1000)
BlockLayout.from_mask_mod(mask_mod, 1024)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
layout = BlockLayout.from_mask_mod(mask_mod, 8192)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * 1024, layout.stats().num_masks, layout.stats().num_bytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
def test_a_long_mask_mod_takes_no_square_of_memory() -> None:
    """8,192 x 8,192 pairs would be 67 MB as bools, 537 MB as differences of int64."""
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    grown, num_masks, num_bytes = map(int, done.stdout.split())
    assert grown < 100e6
    assert num_masks == 3
    assert num_bytes < 50e3


# ---- within a layout


@pytest.mark.parametrize("is_causal", [False, True])
def test_mask_within_a_pattern_is_both(is_causal: bool) -> None:
    configs = [
        SparsePatternConfig("local_window", block_size=16, window_size=40, exact=True),
        SparsePatternConfig(block_size=16, sparsity_ratio=0.3),
    ]
    pattern = BlockLayout.from_config(configs, 200, causal=is_causal)
    mask_mod = documents(70, 50, 80)
    layout = BlockLayout.from_mask_mod(mask_mod, 200, block_size=16, causal=is_causal, within=pattern)
    of = torch.arange(200)
    expected = pairs_of(pattern) & mask_mod(of, of, of[:, None], of)
    assert (layout.num_heads, layout.causal) == (2, is_causal)
    assert torch.equal(pairs_of(layout), expected)


def test_heads_and_batch_elements_within_a_layout_of_one() -> None:
    pattern = BlockLayout.from_config(
        SparsePatternConfig("local_window", 16, window_size=20, exact=True), 100
    )

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q + k) % (b + 2) <= h

    layout = BlockLayout.from_mask_mod(mask_mod, 100, block_size=16, batch=2, num_heads=3, within=pattern)
    alone = BlockLayout.from_mask_mod(mask_mod, 100, block_size=16, batch=2, num_heads=3)
    assert torch.equal(pairs_of(layout), pairs_of(alone) & pairs_of(pattern))


def test_long_dilated_window_within_a_window_is_asked_about_little() -> None:
    asked = 0
    mask = dilated(256, 4)

    def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        nonlocal asked
        asked += 1
        return mask(b, h, q, k)

    blocks = BlockLayout.from_config(SparsePatternConfig("local_window", window_size=512), 32_768)
    layout = BlockLayout.from_mask_mod(mask_mod, 32_768, within=blocks)
    assert asked == math.ceil(blocks.num_active_blocks * 64 * 64 / from_mask.PAIRS_PER_GROUP["cpu"])
    assert layout.stats().num_masks == 3
    first = BlockLayout.from_mask_mod(mask, 1024)
    assert layout.rows()[:12] == first.rows()[:12]


# ---- what is refused


def refused(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    raise KeyError("no such document")


NARROW = SparsePatternConfig("local_window", window_size=64)
ERRORS: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "no_function": (TypeError, "mask_mod must be a function .*got None", {"mask_mod": None}),
    "tensor": (TypeError, "got a tensor of shape .*use BlockLayout.from_mask", {"mask_mod": torch.ones(4, 4)}),
    "int": (TypeError, "mask_mod must return a bool tensor, got torch.int64", {"mask_mod": lambda b, h, q, k: q - k}),
    "python": (TypeError, "mask_mod must return a bool tensor, got True", {"mask_mod": lambda b, h, q, k: True}),
    "raises": (ValueError, "mask_mod raised KeyError: 'no such document'", {"mask_mod": refused}),
    "parameters": (ValueError, "mask_mod raised TypeError.*positional", {"mask_mod": lambda q, k: q >= k}),
    "reduced": (
        TypeError,
        r"bool for every pair.*broadcasts to \(4, 64, 64\), got \(\); torch.vmap cannot take it.*item",
        {"mask_mod": lambda b, h, q, k: (q >= k).any() if int(h) == 0 else q >= k},
    ),
    "q_len": (ValueError, "q_len must be a positive number of tokens.*got 0", {"q_len": 0}),
    "kv_len": (ValueError, "kv_len must be a positive number of tokens.*got -1", {"kv_len": -1}),
    "block_size": (ValueError, "block_size must be one of .*got 48", {"block_size": 48}),
    "batch": (ValueError, "batch must be a positive number, or None where .*got 0", {"batch": 0}),
    "num_heads": (TypeError, "num_heads must be a positive number, or None where .*got 2.5", {"num_heads": 2.5}),
    "causal": (TypeError, "causal must be True or False, got 'yes'", {"causal": "yes"}),
    "device": (ValueError, "device must hold values, got 'meta'", {"device": "meta"}),
    "within": (TypeError, "within must be a BlockLayout, got 3", {"within": 3}),
    "within_lengths": (
        ValueError,
        "within must be for q_len 128, kv_len 128, block_size 64 and causal=False, got a layout for 256, 256, 64 and causal=False",
        {"within": BlockLayout.from_config(NARROW, 256)},
    ),
    "within_heads": (
        ValueError,
        "num_heads must be the 2 of within, or None, got 3",
        {"within": BlockLayout.from_config([NARROW] * 2, 128), "num_heads": 3},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors_of_from_mask_mod_name_argument_and_value(name: str) -> None:
    kind, message, arguments = ERRORS[name]
    with pytest.raises(kind, match=message):
        BlockLayout.from_mask_mod(**{"mask_mod": window(10), "q_len": 128, **arguments})


@pytest.mark.parametrize(
    ("mask", "kind", "message"),
    [
        ([[True]], TypeError, "mask must be a bool tensor, got list"),
        (torch.zeros(4, 4), TypeError, r"got torch.float32; for a mask of 0 and -inf use mask == 0.*attn_bias"),
        (torch.zeros(4, 4, dtype=torch.int64), ValueError, r"mask must be bool .*got torch.int64 \(4, 4\)"),
        (torch.zeros(4, dtype=torch.bool), ValueError, r"mask must be bool .*got torch.bool \(4,\)"),
        (torch.zeros(0, 4, dtype=torch.bool), ValueError, r"each at least 1, got torch.bool \(0, 4\)"),
        (torch.zeros(4, 4, dtype=torch.bool, device="meta"), ValueError, "with values.*got .* on meta"),
    ],
)  # fmt: skip
def test_errors_of_from_mask_name_shape_and_type(mask: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        BlockLayout.from_mask(mask)


def test_layouts_made_in_inference_mode_serve_training() -> None:
    with torch.inference_mode():
        layout = BlockLayout.from_mask_mod(causal, 100)
    assert layout.block_masks is not None
    assert not layout.block_masks.table.is_inference()
