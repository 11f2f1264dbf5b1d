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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "packages" / "dilated-attention-pytorch" / "src"))

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig, block_sparse_attention
from dilated_attention_pytorch.backends.hopper import turn_order
from dilated_attention_pytorch.backends.hopper.adding import Adding, Limits
from dilated_attention_pytorch.backends.hopper.single_pass import SINGLE_PASS, PassMemory

LIMITS = {
    "out": 1e-2,
    "lse": 2e-5,
    "dq": 1e-2,
    "dk": 1e-2,
    "dv": 1e-2,
    "d_block_bias": 3e-2,
    "d_sinks": 3e-2,
}  # five roundings to bfloat16; lse is float32; sums of ds cancel, so of block_bias and sinks more is rounding
DILATION = {"segment_lengths": [128, 256], "dilation_rates": [1, 4]}

# name: head_dim, block_size, tokens, causal, token dilation. 328 tokens: the last block is not whole.
CALLS: dict[str, tuple[int, int, int, bool, dict[str, Any]]] = {
    f"{dim}-{block}-{'causal' if causal else 'full'}-{tokens}": (dim, block, tokens, causal, {})
    for dim, block, (causal, tokens) in itertools.product((64, 128), (64, 128), ((False, 256), (True, 328)))
} | {
    f"{dim}-128-{'causal' if causal else 'full'}-dilation": (dim, 128, 384, causal, DILATION)
    for dim, causal in itertools.product((64, 128), (False, True))
}


NUMBERS = torch.Generator().manual_seed(1)
# What calls beyond a plain one ask for: options, of which tensors of floating point get a gradient where they can have one.
FEATURES: dict[str, dict[str, Any]] = {
    "kv-lengths": {"kv_lengths": torch.tensor([200], dtype=torch.int32)},
    "kv-starts": {"kv_starts": torch.tensor([77], dtype=torch.int32)},
    "padding": {"key_padding_mask": torch.rand(1, 328, generator=NUMBERS) < 0.3},
    "softcap-alibi": {"softcap": 5.0, "alibi_slopes": torch.tensor([0.1, 0.01])},
    "sinks": {"sinks": torch.tensor([0.5, -1.0])},
    "bias": {"block_bias": True},  # as many as the layout has blocks
    "masks": {"masks": True},
    "chunk": {"chunk": 100},  # the last queries alone
}
CALLS |= {
    f"{dim}-{block}-{'causal' if causal else 'full'}-{name}": (dim, block, 328, causal, options)
    for name, options in FEATURES.items()
    for dim, block, causal in ((64, 64, False), (64, 128, True), (128, 64, True), (128, 128, False))
    if causal or name != "chunk"
} | {
    "128-32-causal-tiles": (128, 32, 328, True, {}),
    "64-32-full-masks": (64, 32, 328, False, {"masks": True}),
    "128-256-causal-masks": (128, 256, 600, True, {"masks": True}),
    "256-128-full-bias": (256, 128, 328, False, {"block_bias": True}),
}
# Single passes of the backward, by their sums: whether two backwards must give the same bits, and limits with which small calls take one.
OF_ANY_SIZE = Limits(
    fixed_point_blocks=0, fixed_point_queries=0, turn_columns=0, turn_heads=1, turn_blocks=0, any_order_blocks=0, any_order_blocks_of_64=0,
)  # fmt: skip
SINGLE_PASSES = {
    "any order": (False, OF_ANY_SIZE),
    "ranges": (False, replace(OF_ANY_SIZE, l2_bytes=2**17, range_blocks=1)),
    "fixed point": (True, OF_ANY_SIZE),
    "turns": (True, OF_ANY_SIZE),
}
CALLS |= {
    f"{dim}-{block}-{'causal' if causal else 'full'}-single-{sums.replace(' ', '-')}": (
        dim, block, 328, causal, {"sums": sums},
    )
    for sums, dim, block, causal in (
        ("any order", 64, 64, False), ("any order", 64, 128, True), ("any order", 128, 64, True), ("any order", 128, 128, False),
        ("ranges", 64, 128, True), ("ranges", 128, 128, False), ("fixed point", 64, 128, False), ("fixed point", 64, 128, True),
        ("turns", 128, 128, False),
    )
}  # fmt: skip
WITH_GRADIENT = ("block_bias", "sinks")


def relative(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().cpu().double(), expected.detach()
    finite = expected.isfinite()
    if not torch.equal(found[~finite], expected[~finite]):
        return float("inf")
    found, expected = found[finite], expected[finite]
    return float((found - expected).norm() / expected.norm())


def attend(
    tensors: dict[str, Any], layout: BlockLayout, backend: str, grad_out: Tensor, **options: Any
) -> dict[str, Tensor]:
    """out, lse and the gradients of the tensors."""
    out, lse = block_sparse_attention(**tensors, layout=layout, return_lse=True, backend=backend, **options)
    grads = torch.autograd.grad(out, list(tensors.values()), grad_out)
    names = [f"d_{name}" if name in WITH_GRADIENT else f"d{name}" for name in tensors]
    return {"out": out, "lse": lse, **dict(zip(names, grads, strict=True))}


@contextmanager
def single_pass(sums: str | None) -> Iterator[list[str]]:
    """Have small calls take a single pass with such sums, if any; a list of the sums of those that do."""
    taken: list[str] = []
    if sums is None:
        yield taken
        return
    memory = SINGLE_PASS.memory

    def noted(problem: Any, adding: Adding) -> PassMemory:
        made = memory(problem, adding)
        taken.append("ranges" if made.cuts is not None else adding.value[3:])
        return made

    with (
        mock.patch.object(SINGLE_PASS, "limits", SINGLE_PASSES[sums][1]),
        mock.patch.object(SINGLE_PASS, "memory", noted),
        mock.patch.object(turn_order, "LEAST_COLUMNS", 0),
    ):
        yield taken


def layout_of(block_size: int, length: int, causal: bool, has_masks: bool, sums: str | None) -> BlockLayout:
    if has_masks:
        near = 3 * block_size // 2
        return BlockLayout.from_mask_mod(
            lambda b, h, q, kv: ((q - kv).abs() < near) & ((q >= kv) | (not causal)),
            length,
            length,
            block_size,
        )
    rates = [1, 2] if sums == "turns" else None
    config = SparsePatternConfig(block_size=block_size, sparsity_ratio=0.6, dilation_rates=rates)
    layout = BlockLayout.from_config(config, length, causal=causal)
    if sums == "ranges":  # only where blocks are of no pattern
        return BlockLayout.from_dense(layout.to_dense(), block_size, length, length, causal=causal)
    return layout


def errors(name: str) -> dict[str, float]:
    """The relative errors of one call: two query heads that share a key head."""
    dim, block_size, length, causal, asked = CALLS[name]
    options = dict(asked)
    sums = options.pop("sums", None)
    layout = layout_of(block_size, length, causal, options.pop("masks", False), sums)
    if sums is not None:
        options["deterministic"] = SINGLE_PASSES[sums][0]
    n_queries = options.pop("chunk", length)
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad_out = (
        torch.randn(1, n, heads, dim, generator=generator).bfloat16()
        for heads, n in ((2, n_queries), (1, length), (1, length), (2, n_queries))
    )
    if options.pop("block_bias", False):
        options["block_bias"] = torch.randn(2, layout.num_block_ids, generator=generator)
    results = []
    for backend, device, dtype in (("reference", "cpu", torch.float64), ("hopper", "cuda", torch.bfloat16)):
        tensors = {n: x.to(device, dtype).requires_grad_() for n, x in (("q", q), ("k", k), ("v", v))}
        others = {n: x.to(device) if isinstance(x, Tensor) else x for n, x in options.items()}
        for n in WITH_GRADIENT:
            if n in others:
                tensors[n] = (
                    others.pop(n)
                    .to(torch.float64 if backend == "reference" else torch.float32)
                    .requires_grad_()
                )
        grad = grad_out.to(device, dtype)
        with single_pass(sums) as taken:
            results.append(attend(tensors, layout.to(device), backend, grad, is_causal=causal, **others))
    if taken != ([] if sums is None else [sums]):
        raise AssertionError(f"{name}: the backward took single passes with sums {taken}")
    expected, found = results
    return {of: relative(found[of], expected[of]) for of in expected}


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
