"""Compile the decoding kernels without a GPU, and read what ptxas reports.

Run as a script (without TRITON_INTERPRET): prints one JSON object per kernel, architecture and case.
"""

from __future__ import annotations

import json
import sys
from typing import Any, NamedTuple

import torch
from offline_compile import compiled

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
from dilated_attention_pytorch.backends.decode_problem import DecodeInputs
from dilated_attention_pytorch.backends.triton.decode_launch import launches_of, make_results, sizes_of
from dilated_attention_pytorch.backends.triton.launch import Launch
from dilated_attention_pytorch.layout.lists import BlockMasks
from dilated_attention_pytorch.validation.decode import check_decode


class Shape(NamedTuple):
    """A decoding call of 32 heads with a cache of n_tokens."""

    head_dim: int = 128
    block_size: int = 64
    dtype: torch.dtype = torch.bfloat16
    q_len: int = 1
    kv_heads: int = 8
    layout_heads: int = 1
    page_size: int | None = None
    has_starts: bool = False
    has_scores: bool = False  # softcap, alibi_slopes and sinks
    has_masks: bool = False
    n_tokens: int = 32768


DEFAULT_SHAPES = (
    Shape(),
    Shape(page_size=64),
    Shape(page_size=16),
    Shape(q_len=16),
    Shape(has_masks=True),
)
OTHER_SHAPES = (
    Shape(q_len=4),
    Shape(q_len=16, kv_heads=32),
    Shape(kv_heads=1),
    Shape(layout_heads=32),
    Shape(head_dim=64),
    Shape(head_dim=64, block_size=128),
    Shape(block_size=128, page_size=256),
    Shape(block_size=16),
    Shape(block_size=32, page_size=16),
    Shape(head_dim=256),
    Shape(head_dim=96),
    Shape(dtype=torch.float32),
    Shape(dtype=torch.float32, head_dim=64, block_size=16, q_len=4),
    Shape(dtype=torch.float32, head_dim=256, q_len=4),
    Shape(n_tokens=128),  # one program with all keys
    Shape(has_starts=True),
    Shape(has_starts=True, page_size=64),
    Shape(has_scores=True),
    Shape(q_len=4, has_masks=True, has_scores=True),
)


def launches(shape: Shape, capability: tuple[int, int], multiprocessors: int = 132) -> list[Launch]:
    """The kernels of a call."""
    s, n_tokens, batch = shape, shape.n_tokens, 1
    config = SparsePatternConfig(block_size=s.block_size)
    configs = config if s.layout_heads == 1 else [config] * s.layout_heads
    layout = BlockLayout.from_config(configs, n_tokens, causal=True)
    table, first, tokens = None, batch, n_tokens
    if s.page_size is not None:
        table = torch.zeros(batch, n_tokens // s.page_size, dtype=torch.int32)
        first, tokens = n_tokens // s.page_size, s.page_size
    inputs = DecodeInputs(
        torch.empty(batch, s.q_len, 32, s.head_dim, dtype=s.dtype),
        torch.empty(first, tokens, s.kv_heads, s.head_dim, dtype=s.dtype),
        torch.empty(first, tokens, s.kv_heads, s.head_dim, dtype=s.dtype),
        torch.zeros(batch, dtype=torch.int32),
        table,
        torch.zeros(batch, dtype=torch.int32) if s.has_starts else None,
        torch.zeros(32) if s.has_scores else None,
        torch.zeros(32, dtype=s.dtype) if s.has_scores else None,
    )
    problem = check_decode(inputs, layout, softmax_scale=None, softcap=30.0 if s.has_scores else None)
    if s.has_masks:
        ids = torch.zeros(layout.num_active_blocks, dtype=torch.int32)
        words = torch.zeros(1, s.block_size, -(-s.block_size // 32), dtype=torch.int32)
        problem = problem._replace(block_masks=BlockMasks(ids, words))
    sizes = sizes_of(problem, capability, multiprocessors)
    return launches_of(problem, make_results(problem, sizes.n_splits), sizes)


def reported(shape: Shape, arch: int) -> list[dict[str, Any]]:
    """What ptxas reports about every kernel of a call."""
    case = {"arch": arch, **shape._asdict(), "dtype": str(shape.dtype)}
    return [
        {**case, **compiled(launch, arch), **launch.options, "programs": list(launch.grid)}
        for launch in launches(shape, divmod(arch, 10))
    ]


def main(arguments: list[str]) -> None:
    """Arguments: capabilities such as 80 90; --other adds every option to the default shapes."""
    shapes = DEFAULT_SHAPES + (OTHER_SHAPES if "--other" in arguments else ())
    for arch in (int(argument) for argument in arguments if not argument.startswith("--")):
        for shape in shapes:
            for kernel in reported(shape, arch):
                print(json.dumps(kernel), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
