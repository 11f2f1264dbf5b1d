"""Named lists of cases."""

from __future__ import annotations

from dataclasses import replace

from .cases import Case

KERNELS = [
    Case(131072, 16, 128, 128, 0.05),
    Case(131072, 16, 128, 128, 0.01),
    Case(131072, 16, 128, 64, 0.05),
    Case(131072, 16, 128, 64, 0.01),
    Case(131072, 32, 64, 128, 0.05),
    Case(131072, 32, 64, 128, 0.01),
    Case(131072, 32, 64, 64, 0.05),
    Case(131072, 8, 64, 128, 0.01),
    Case(16384, 16, 128, 128, 0.05),
    Case(16384, 16, 128, 128, 0.01),
]
BASE, SPARSE, MANY_HEADS = KERNELS[0], KERNELS[1], Case(131072, 32, 128, 128, 0.05)
FAR = replace(BASE, pattern_rates=(16, 32))  # 98 % of the blocks are 2,048 tokens and more away
DENSITIES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0)

PRESETS = {
    "kernels": KERNELS,
    # The kernel table without its 8 x 64 row.
    "goals": [case for case in KERNELS if case.heads != 8],
    # Every feature beside the same case without it.
    "features": [
        BASE,
        replace(BASE, causal=True),
        replace(BASE, pattern="global_local"),
        SPARSE,
        replace(SPARSE, pattern="global_local"),
        MANY_HEADS,
        replace(MANY_HEADS, kv_heads=8),
        FAR,
        replace(FAR, segment_lengths=(2048, 4096), dilation_rates=(1, 4)),
    ],
    "memory": [Case(131072, 8, 64, 128, 0.01), SPARSE],
    # For `attention-bench breakeven`, with the peers ours and cudnn.
    "breakeven": [Case(16384, 16, 128, block, density) for block in (128, 64) for density in DENSITIES],
    "cpu": [Case(16384, 4, 64, 64, 0.02, dtype="float32")],
    "quick": [Case(2048, 2, 64, 64, 0.1, dtype="float32")],
}
