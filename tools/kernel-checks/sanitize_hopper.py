"""One tiny call of every Hopper kernel, compared with the definition; to be run under compute-sanitizer.

    compute-sanitizer --tool memcheck python tools/kernel-checks/sanitize_hopper.py
    python tools/kernel-checks/racecheck.py

memcheck reports nothing; racecheck.py explains what racecheck reports.

Prints the errors of every call; the exit status is 1 if one is too large. Words on the command line select the calls whose
names contain one of them. The definition is computed on the CPU, so that the sanitizer only watches our kernels.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "packages" / "dilated-attention-pytorch" / "src"))

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig, block_sparse_attention

LIMITS = {
    "out": 1e-2,
    "lse": 2e-5,
    "dq": 1e-2,
    "dk": 1e-2,
    "dv": 1e-2,
}  # five roundings to bfloat16; lse is float32
DILATION = {"segment_lengths": [128, 256], "dilation_rates": [1, 4]}

# name: head_dim, block_size, tokens, causal, token dilation. 328 tokens: the last block is not whole.
CALLS: dict[str, tuple[int, int, int, bool, dict[str, Any]]] = {
    f"{dim}-{block}-{'causal' if causal else 'full'}-{tokens}": (dim, block, tokens, causal, {})
    for dim, block, (causal, tokens) in itertools.product((64, 128), (64, 128), ((False, 256), (True, 328)))
} | {
    f"{dim}-128-{'causal' if causal else 'full'}-dilation": (dim, 128, 384, causal, DILATION)
    for dim, causal in itertools.product((64, 128), (False, True))
}


def relative(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().cpu().double(), expected.detach()
    return float((found - expected).norm() / expected.norm())


def attend(
    tensors: list[Tensor],
    layout: BlockLayout,
    backend: str,
    grad_out: Tensor,
    **options: Any,
) -> list[Tensor]:
    """out, lse and the gradients of q, k and v."""
    q, k, v = tensors
    out, lse = block_sparse_attention(q, k, v, layout, return_lse=True, backend=backend, **options)
    return [out, lse, *torch.autograd.grad(out, tensors, grad_out)]


def errors(name: str) -> dict[str, float]:
    """The relative errors of one call: two query heads that share a key head."""
    dim, block_size, length, causal, options = CALLS[name]
    config = SparsePatternConfig(block_size=block_size, sparsity_ratio=0.6)
    layout = BlockLayout.from_config(config, length, causal=causal)
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad_out = (
        torch.randn(1, length, heads, dim, generator=generator).bfloat16() for heads in (2, 1, 1, 2)
    )
    results = []
    for backend, device, dtype in (("reference", "cpu", torch.float64), ("hopper", "cuda", torch.bfloat16)):
        tensors = [x.to(device, dtype).requires_grad_() for x in (q, k, v)]
        grad = grad_out.to(device, dtype)
        results.append(attend(tensors, layout.to(device), backend, grad, is_causal=causal, **options))
    return {of: relative(found, expected) for of, expected, found in zip(LIMITS, *results, strict=True)}


def main(words: list[str]) -> int:
    """Run the selected calls, by default all; returns the number of wrong ones."""
    wrong = 0
    for name in CALLS:
        if words and not any(word in name for word in words):
            continue
        found = errors(name)
        is_wrong = not all(error < LIMITS[of] for of, error in found.items())
        wrong += is_wrong
        figures = "  ".join(f"{of} {error:.1e}" for of, error in found.items())
        print(f"{name:24} {figures}{'  WRONG' if is_wrong else ''}", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
