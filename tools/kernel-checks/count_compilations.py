"""How many kernels calls of many lengths compile, without a GPU: what Triton's JIT would compile is noted, not compiled.

Run as a script (without TRITON_INTERPRET): prints one JSON object for 60 random calls of each head_dim, block_size and type, or
with --some of fewer.
"""

from __future__ import annotations

import collections
import json
import os
import random
import sys
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
from dilated_attention_pytorch.backends.registry import choose_backend_for
from dilated_attention_pytorch.environment_settings import COMPILE_WORKERS
from dilated_attention_pytorch.functional import make_problem

CAPABILITY = (9, 0)
LONGEST = 1537
N_CALLS = 60
PASSES = ("DKDV", "SUMS")  # constants by which passes differ


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


def drawn_tensor(
    draw: random.Random, batch: int, length: int, heads: int, dim: int, dtype: torch.dtype
) -> Tensor:
    """One of the ways in which (batch, length, heads, dim) may lie in memory."""
    kind = draw.choice(
        ["contiguous", "heads first", "sequence first", "fused", "longer", "heads apart", "odd rows"]
    )
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
    kv_len = draw.choice([draw.randint(1, LONGEST), block_size * draw.randint(1, LONGEST // block_size)])
    q_len = draw.choice([kv_len, kv_len, draw.randint(1, kv_len)])
    batch, kv_heads, group = draw.randint(1, 3), draw.randint(1, 4), draw.choice([1, 1, 2, 3])
    heads = kv_heads * group
    ratios = [draw.uniform(0.05, 0.45) for _ in range(draw.choice([1, 1, kv_heads, heads]))]
    configs = [SparsePatternConfig(block_size=block_size, sparsity_ratio=round(ratio, 2)) for ratio in ratios]
    layout = BlockLayout.from_config(
        configs if len(configs) > 1 else configs[0], q_len, kv_len, causal=is_causal
    )
    q = drawn_tensor(draw, batch, q_len, heads, head_dim, dtype)
    k, v = (drawn_tensor(draw, batch, kv_len, kv_heads, head_dim, dtype) for _ in range(2))
    grad_lse = draw.choice(
        [None, None, torch.empty(batch, heads, q_len), torch.empty(1).expand(batch, heads, q_len)]
    )
    grad_out = drawn_tensor(draw, batch, q_len, heads, head_dim, dtype)
    q.requires_grad_()
    return Call(q, k, v, layout, is_causal, grad_out, grad_lse, draw.choice([None, 0.125]))


class Compilations:
    """What Triton's JIT was asked to compile, by kernel; the passes of a backward that are one kernel count apart."""

    def __init__(self) -> None:
        self.keys: dict[str, set[str]] = collections.defaultdict(set)

    def __call__(self, *, key: str, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        """Triton's hook before a compilation; True: it is not made."""
        names = fn.jit_function.arg_names
        passes = [
            f"{name}={value}" for (i,), value in compile["constants"].items() if (name := names[i]) in PASSES
        ]
        room = "hopper" if "hopper" in fn.module else "triton"
        self.keys[" ".join([room, fn.name.rpartition(".")[2], *passes])].add(str(key))
        return True


def note(call: Call) -> str:
    """Ask for the kernels of a call; returns the backend that serves it."""
    problem = make_problem(
        call.q, call.k, call.v, call.layout, is_causal=call.is_causal, softmax_scale=call.softmax_scale
    )
    backend = choose_backend_for(problem, CAPABILITY)
    backend.compile_for(
        problem.prepared_by(backend, call.layout), CAPABILITY, [(call.grad_out, call.grad_lse)]
    )
    return backend.name


def counted(head_dim: int, block_size: int, dtype: str, n_calls: int = N_CALLS) -> dict[str, Any]:
    """Compilations by kernel, and calls by backend."""
    draw, found, backends = random.Random(head_dim + block_size), Compilations(), collections.Counter[str]()
    triton.knobs.runtime.jit_cache_hook = found
    for _ in range(n_calls):
        backends[note(drawn_call(draw, head_dim, block_size, getattr(torch, dtype)))] += 1
    compilations = {name: len(keys) for name, keys in sorted(found.keys.items())}
    sizes = {"head_dim": head_dim, "block_size": block_size, "dtype": dtype}
    return {**sizes, "calls": dict(backends), "compilations": compilations}


CASES = [
    (64, 64, "bfloat16"),
    (128, 128, "bfloat16"),
    (20, 32, "float16"),
    (64, 128, "bfloat16"),
    (96, 64, "bfloat16"),
    (64, 64, "float32"),
    (128, 16, "bfloat16"),
]


def main(arguments: list[str]) -> None:
    """Print a line for every case, or with --some for the first three."""
    os.environ[COMPILE_WORKERS.name] = "1"  # what is expected to be wanted is asked for, too
    for case in CASES[: 3 if "--some" in arguments else None]:
        print(json.dumps(counted(*case)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
