"""The gradient of the sinks, from what the dq pass has left for the dkdv pass (lse_delta.py)."""

from __future__ import annotations

import triton
import triton.language as tl

from .lse_delta import CHUNK
from .softmax import LOG2E


@triton.jit(do_not_specialize=["n_chunks", "n_sequences", "num_heads"])
def sink_gradient_kernel(
    Stats, Sinks, Starts, Sums, n_chunks, n_sequences, num_heads, PARTS: tl.constexpr, CHUNKS: tl.constexpr
):  # fmt: skip
    """Sums: float32 (groups of heads * num_heads, PARTS): over some queries of a head, of -exp(sink - lse) * delta.

    Stats: (groups of heads * num_heads, n_chunks, 2, CHUNK), lse in units of log2 and -delta; with Starts n_chunks is twice the
    tiles of queries that it says.
    """
    of_head, part = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS
    if Starts is not None:
        n_chunks = 2 * tl.load(Starts + n_sequences)
    sink = tl.load(Sinks + of_head % num_heads) * LOG2E
    stats = Stats + of_head.to(tl.int64) * n_chunks * (2 * CHUNK)
    sums = tl.zeros([CHUNKS, CHUNK], tl.float32)
    for first in range(part * CHUNKS, n_chunks, PARTS * CHUNKS):
        chunk = first + tl.arange(0, CHUNKS)
        places = chunk.to(tl.int64)[:, None] * (2 * CHUNK) + tl.arange(0, CHUNK)[None, :]
        inside = (chunk < n_chunks)[:, None] & (places >= 0)
        lse = tl.load(stats + places, mask=inside, other=float("inf"))
        minus_delta = tl.load(stats + places + CHUNK, mask=inside, other=0.0)
        sums += tl.exp2(sink - lse) * minus_delta
    tl.store(Sums + tl.program_id(0), tl.sum(tl.sum(sums, 1), 0))
