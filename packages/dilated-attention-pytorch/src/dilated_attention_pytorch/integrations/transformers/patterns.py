"""The patterns of layers, and the layouts that serve steps of all lengths."""

from __future__ import annotations

import functools

import torch

from ... import _torch_internals
from ...config import SparsePatternConfig
from ...layout.cache import LAYOUTS, Pattern
from ...layout.layout import BlockLayout

SHORTEST = 4096  # positions of the layout that calls with positions of their own share


@functools.lru_cache(maxsize=64)
def window_text(block_size: int, sliding_window: int, causal: bool) -> str:
    """The pattern of a layer with a sliding window: exactly that.

    Args:
        block_size: as of the other layers.
        sliding_window: as transformers counts it, with the query: ``distance < sliding_window`` on each side.
        causal: only to the past.
    """
    width = sliding_window if causal else max(1, 2 * (sliding_window - 1))
    config = SparsePatternConfig("local_window", block_size=block_size, window_size=width, exact=True)
    return Pattern.of(config).text


@_torch_internals.constant_in_graphs
def window_text_for_graph(block_size: int, sliding_window: int, causal: bool) -> str:
    """`window_text`, once per compiled graph."""
    return window_text(block_size, sliding_window, causal)


def window_pattern(block_size: int, sliding_window: int, causal: bool) -> Pattern:
    """The pattern of `window_text`."""
    make = window_text_for_graph if torch.compiler.is_compiling() else window_text
    return Pattern(make(block_size, sliding_window, causal), block_size, 1)


def full_pattern(block_size: int) -> Pattern:
    """All blocks."""
    return Pattern.of(SparsePatternConfig(block_size=block_size, sparsity_ratio=1.0))


def longest_layout(pattern: Pattern, kv_len: int, device: torch.device) -> BlockLayout:
    """The causal layout of all positions up to a power of two: causal rows are the same in a longer one.

    So steps of decoding build one each time the sequence has doubled, and prompts padded on the left, whose last queries are
    at different positions, share it.
    """
    if torch.compiler.is_compiling():
        made: BlockLayout = getattr(HELD, hold_layout(*pattern, kv_len, str(device)))
        return made
    length = max(SHORTEST, 1 << (kv_len - 1).bit_length())
    return LAYOUTS.find(pattern, length, length, True, device)


class HeldLayouts:
    """The layouts of compiled graphs as attributes: what Dynamo looks up in an object it has seen before."""


HELD = HeldLayouts()
MAX_HELD = 64  # a graph whose layout is gone is compiled again


@_torch_internals.constant_in_graphs
def hold_layout(text: str, block_size: int, num_heads: int, kv_len: int, device: str) -> str:
    """The name under which `HELD` has the `longest_layout` of a pattern, once per compiled graph."""
    pattern = Pattern(text, block_size, num_heads)
    length = max(SHORTEST, 1 << (kv_len - 1).bit_length())
    layout = LAYOUTS.find(pattern, length, length, True, torch.device(device))
    name = f"layout_{id(layout)}"
    held = vars(HELD)
    while name not in held and len(held) >= MAX_HELD:
        delattr(HELD, next(iter(held)))
    for tensor in (*layout.row_lists.tensors(), *layout.col_lists.tensors(), *(layout.block_masks or ())):
        _torch_internals.keep_address(tensor)
    setattr(HELD, name, layout)
    return name
