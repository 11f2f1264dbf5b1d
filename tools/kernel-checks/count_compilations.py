"""How many kernels calls of many lengths compile, without a GPU: what Triton's JIT would compile is noted, not compiled.

Run as a script (without TRITON_INTERPRET): prints one JSON object per kernel, head_dim and block_size of 60 random calls.
"""

from __future__ import annotations

import collections
import json
import random
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
from dilated_attention_pytorch.backends.hopper import HOPPER, passes, rejected_values
from dilated_attention_pytorch.backends.hopper.launcher import descriptor
from dilated_attention_pytorch.backends.problem import AttentionProblem, Gradients
from dilated_attention_pytorch.backends.triton.launch import (
    backward_launches,
    forward_launch,
    readable,
    unit_of,
    with_readable_inputs,
)
from dilated_attention_pytorch.functional import make_problem

CAPABILITY = (9, 0)
LONGEST = 1537
N_CALLS = 60


class Target:
    """Stands for a driver of Triton, where there is no GPU."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return -90  # of no GPU

    def get_current_stream(self, device: int) -> int:
        return 0


class Call(NamedTuple):
    """A call, and its backward."""

    q: Tensor
    k: Tensor
    v: Tensor
    layout: BlockLayout
    is_causal: bool
    grad_out: Tensor
    grad_lse: Tensor | None
    softmax_scale: float | None


def drawn_tensor(draw: random.Random, batch: int, length: int, heads: int, dim: int, dtype: torch.dtype) -> Tensor:
    """One of the ways in which (batch, length, heads, dim) may lie in memory."""
    kind = draw.choice(["contiguous", "heads first", "sequence first", "fused", "longer", "heads apart", "odd rows"])
    if kind == "heads first":
        return torch.empty(batch, heads, length, dim, dtype=dtype).transpose(1, 2)
    if kind == "sequence first":
        return torch.empty(length, batch, heads, dim, dtype=dtype).transpose(0, 1)
    if kind == "fused":
        return torch.empty(batch, length, 3, heads, dim, dtype=dtype)[:, :, draw.randrange(3)]
    if kind == "longer":
        return torch.empty(batch, length + draw.randint(1, 40), heads, dim, dtype=dtype)[:, :length]
    if kind == "heads apart":
        return torch.empty(batch, length, heads, dim + 8, dtype=dtype)[..., :dim]
    if kind == "odd rows":
        return torch.empty(batch, length, heads, dim + 3, dtype=dtype)[..., 1 : dim + 1]
    return torch.empty(batch, length, heads, dim, dtype=dtype)


def drawn_call(draw: random.Random, head_dim: int, block_size: int, dtype: torch.dtype) -> Call:
    """Any lengths, causal or not, grouped heads, a layout for each head, strides."""
    is_causal = draw.random() < 0.5
    kv_len = draw.randint(1, LONGEST)
    q_len = draw.choice([kv_len, kv_len, draw.randint(1, kv_len)])
    batch, kv_heads, group = draw.randint(1, 3), draw.randint(1, 4), draw.choice([1, 1, 2, 3])
    heads = kv_heads * group
    ratios = [draw.uniform(0.05, 0.45) for _ in range(draw.choice([1, 1, kv_heads, heads]))]
    configs = [SparsePatternConfig(block_size=block_size, sparsity_ratio=round(ratio, 2)) for ratio in ratios]
    layout = BlockLayout.from_config(configs if len(configs) > 1 else configs[0], q_len, kv_len, causal=is_causal)
    q = drawn_tensor(draw, batch, q_len, heads, head_dim, dtype)
    k, v = (drawn_tensor(draw, batch, kv_len, kv_heads, head_dim, dtype) for _ in range(2))
    grad_lse = draw.choice(
        [None, None, torch.empty(batch, heads, q_len), torch.empty(1).expand(batch, heads, q_len)]
    )
    grad_out = drawn_tensor(draw, batch, q_len, heads, head_dim, dtype)
    return Call(q, k, v, layout, is_causal, grad_out, grad_lse, draw.choice([None, 0.125]))


class Compilations:
    """What a JIT that compiles nothing was asked for, by kernel."""

    def __init__(self) -> None:
        self.keys: dict[str, set[str]] = collections.defaultdict(set)
        self.name = ""

    def __call__(self, *, key: str, fn: Any, **_: Any) -> bool:
        """Triton's hook before a compilation; True: it is not made."""
        self.keys[self.name or fn.name.rpartition(".")[2]].add(str(key))
        return True


def hopper_kernels(p: AttentionProblem, call: Call) -> Iterator[tuple[str, Any, dict[str, Any], dict[str, Any]]]:
    """Name, kernel, arguments and options of the Hopper kernels of a call."""
    out, lse = torch.empty(p.q.shape, dtype=p.q.dtype), torch.empty(p.batch, p.num_heads, p.q_len)
    yield "forward", passes.FORWARD.kernel, passes.FORWARD.arguments(p, out, lse), passes.FORWARD.options(p)
    grads = Gradients(*(torch.empty(x.shape, dtype=x.dtype) for x in (p.q, p.k, p.v)), None)
    grad_out = torch.empty(p.q.shape, dtype=p.q.dtype)
    grad_lse = lse if call.grad_lse is None else call.grad_lse
    of = passes.BackwardCall(p, out, lse, grad_out, grad_lse, call.grad_lse is not None, grads, None)
    for name, one in zip(("dq", "dkdv"), passes.backward_of(p).passes, strict=True):
        yield name, one.kernel, one.arguments(of, torch.empty(16)), one.options(p)


def note(found: Compilations, call: Call) -> str:
    """Note the kernels of a call; returns its backend."""
    problem = make_problem(
        call.q, call.k, call.v, call.layout, is_causal=call.is_causal, softmax_scale=call.softmax_scale
    )
    if rejected_values(problem) is None:
        p = problem.prepared_by(HOPPER, call.layout)
        for name, kernel, arguments, options in hopper_kernels(p, call):
            found.name = f"hopper {name}"
            made = {n: descriptor(*x) if isinstance(x, tuple) else x for n, x in arguments.items()}
            kernel.warmup(grid=(1,), **made, **options)
        return "hopper"
    p, unit = with_readable_inputs(problem), unit_of(problem)
    out, lse = torch.empty(p.q.shape, dtype=p.q.dtype), torch.empty(p.batch, p.num_heads, p.q_len)
    backward, _ = backward_launches(p, out, lse, readable(call.grad_out, unit), call.grad_lse, CAPABILITY)
    for launch in [forward_launch(p, out, lse, CAPABILITY), *backward]:
        found.name = f"triton {launch.kernel.__name__.removesuffix('_kernel')}"
        launch.kernel.warmup(grid=launch.grid, **launch.arguments, **launch.options, enable_fp_fusion=True)
    return "triton"


def counted(head_dim: int, block_size: int, dtype: torch.dtype, n_calls: int = N_CALLS) -> dict[str, Any]:
    """Compilations by kernel, and calls by backend."""
    draw, found, backends = random.Random(head_dim + block_size), Compilations(), collections.Counter[str]()
    triton.knobs.runtime.jit_cache_hook = found  # type: ignore[assignment]
    for _ in range(n_calls):
        backends[note(found, drawn_call(draw, head_dim, block_size, dtype))] += 1
    return {
        "head_dim": head_dim,
        "block_size": block_size,
        "dtype": str(dtype),
        "calls": dict(backends),
        "compilations": {name: len(keys) for name, keys in sorted(found.keys.items())},
    }


CASES = [
    (64, 64, torch.bfloat16),
    (128, 128, torch.bfloat16),
    (64, 128, torch.bfloat16),
    (96, 64, torch.bfloat16),
    (64, 64, torch.float32),
    (20, 32, torch.float16),
]


def main() -> None:
    """Print a line for every case."""
    triton.runtime.driver.set_active(Target())
    for case in CASES:
        print(json.dumps(counted(*case)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
