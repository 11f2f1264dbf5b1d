"""Named lists of cases."""

from __future__ import annotations

from dataclasses import replace

from .cases import RANDOM, Case

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
# For one CPU thread: sizes at which a call spends much of its time outside the matrix products.
SMALL = [
    Case(tokens, 4, 64, 64, density, causal=causal, dtype=dtype, pattern_rates=None)
    for dtype in ("float32", "bfloat16")
    for tokens in (256, 512, 1024, 2048, 4096)
    for causal in (False, True)
    for density in (0.1, 0.25, 0.5)
]
SMALL_SHAPES = [
    replace(case, **fields)  # type: ignore[arg-type]
    for case in SMALL
    if case.seqlen in (256, 1024, 4096) and case.density in (0.1, 0.5) and not case.causal
    for fields in ({"head_dim": 128}, {"heads": 8, "kv_heads": 2}, {"block": 32}, {"block": 128})
]
FAR = replace(BASE, pattern_rates=(16, 32))  # 98 % of the blocks are at least 2,048 tokens away
DENSITIES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0)

# Blocks chosen per head, which share few rows and columns: tokens, heads, block, density.
TOPK = [
    Case(tokens, 16, 128, block, density, pattern=RANDOM)
    for tokens, block, density in (
        (131072, 128, 0.05),
        (131072, 128, 0.1),
        (131072, 64, 0.05),
        (131072, 64, 0.1),
        (131072, 64, 0.01),
        (32768, 64, 0.05),
        (32768, 64, 0.1),
    )
]
VIDEO = [
    Case(tokens, heads, 128, block, 0.1, pattern=RANDOM)
    for tokens, heads, block in ((92160, 40, 128), (92160, 40, 64), (40768, 16, 64))
]
# Sizes of training: grouped heads, causal, whole batches of short sequences or one long one.
PRACTICAL = [
    Case(tokens, 32, 128, block, density, batch, 8, causal=True, pattern_rates=None)
    for block in (128, 64)
    for batch, tokens, density in (
        (8, 2048, 0.25),
        (4, 4096, 0.25),
        (1, 32768, 0.05),
        (2, 8192, 0.125),
        (1, 16384, 0.1),
        (1, 131072, 0.01),
    )
]
# For `attention-bench short`.
SHORT = [
    Case(tokens, heads, 128, block, 0.1, pattern_rates=None)
    for block in (128, 64)
    for tokens in (2048, 4096, 8192, 16384)
    for heads in (4, 8, 16, 32)
]
WINDOWS = [
    Case(32768, 16, 128, block, 1.0, pattern="local_window", causal=True, window=window)
    for window in (4096, 1000)
    for block in (128, 64)
]

FOR_CPU = ("cpu", "cpu-small", "cpu-shapes", "cpu-decode", "quick")  # the other presets take hours on a CPU

PRESETS = {
    "kernels": KERNELS,
    # The kernel table without the 8 x 64 row.
    "goals": [case for case in KERNELS if case.heads != 8],
    # Every feature next to the same case without it.
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
    # For `attention-bench breakeven` with the peers ours and cudnn.
    "breakeven": [Case(16384, 16, 128, block, density) for block in (128, 64) for density in DENSITIES],
    "topk": TOPK,
    "video": VIDEO,
    "practical": PRACTICAL,
    "windows": WINDOWS,
    "short": SHORT,
    # One query per sequence, for `attention-bench decode`.
    "decode": [
        Case(keys, 32, 128, 64, 0.1, batch, 8, causal=True, pattern_rates=None, decode=True)
        for batch, keys in (
            (1, 8192),
            (8, 8192),
            (32, 8192),
            (1, 32768),
            (8, 32768),
            (32, 32768),
            (1, 131072),
        )
    ],
    "cpu": [Case(16384, 4, 64, 64, 0.02, dtype="float32")],
    "cpu-small": SMALL,
    "cpu-shapes": SMALL_SHAPES,
    "cpu-decode": [
        Case(
            keys,
            heads,
            dim,
            64,
            density,
            batch,
            kv_heads,
            causal=True,
            dtype=dtype,
            pattern_rates=None,
            decode=True,
        )
        for dtype in ("float32", "bfloat16")
        for heads, kv_heads, dim in ((8, 8, 64), (32, 8, 128))
        for batch, keys in ((1, 4096), (4, 4096), (1, 16384), (1, 65536))
        for density in (0.02, 0.1)
    ],
    "quick": [Case(2048, 2, 64, 64, 0.1, dtype="float32")],
}
