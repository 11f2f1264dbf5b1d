"""`warm`: compile the kernels of a configuration ahead of time, so that they are on the disk when a process needs them."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..backends.installed import TRITON_DISTRIBUTIONS, installed_versions, is_installed
from ..backends.registry import COMPILED_NAMES, choose_backend_for
from ..config import SparsePatternConfig
from ..functional import block_sparse_attention, make_problem
from ..layout import BlockLayout
from .arguments import block_size, did_you_mean, int_list
from .errors import CommandError

if TYPE_CHECKING:
    from ..backends.compile_only import Compilation

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
LARGEST_DIM = 256
SMALLEST_ARCH = 80
FEATURES = {
    "kv-lengths": "kv_lengths, the valid keys of each batch element",
    "positions": "kv_starts, and q_offset on the device: a KV cache, padding on the left",
    "padding": "key_padding_mask",
    "softcap": "softcap",
    "alibi": "alibi_slopes",
    "sinks": "sinks",
    "block-bias": "block_bias",
    "dropout": "dropout_p",
}


class Case(NamedTuple):
    """What a kernel is compiled for, whatever the lengths, strides and numbers of heads."""

    head_dim: int
    block_size: int
    dtype: str
    is_causal: bool

    def __str__(self) -> str:
        mask = "causal" if self.is_causal else "not causal"
        return f"head_dim {self.head_dim}, block_size {self.block_size}, {self.dtype}, {mask}"


class Shape(NamedTuple):
    """Lengths and heads of a small call."""

    q_len: int
    kv_len: int
    num_heads: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `warm`."""
    parser.add_argument("--head-dim", type=head_dims, default=[64, 128], metavar="N,N", help="default 64,128")
    parser.add_argument("--block-size", type=block_sizes, default=[64], metavar="N,N", help="default 64")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="default %(default)s")
    parser.add_argument(
        "--mask", choices=("causal", "none", "both"), default="both", help="default %(default)s"
    )
    parser.add_argument(
        "--features",
        type=features,
        default=[],
        metavar="NAME,NAME",
        help=f"what every call gives, together, beside plain calls: {', '.join(FEATURES)}",
    )
    parser.add_argument(
        "--forward-only", action="store_true", help="for inference: no kernels of the backward"
    )
    parser.add_argument(
        "--backend", choices=("auto", *COMPILED_NAMES), default="auto", help="default: that which serves a call"
    )
    parser.add_argument(
        "--arch",
        type=architecture,
        metavar="N",
        help="compute capability times ten, such as 90, without its GPU (default: the GPU that is here)",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object per kernel instead of text")


def head_dims(text: str) -> list[int]:
    """Head dims, separated by commas."""
    dims = int_list(text)
    if max(dims) > LARGEST_DIM:
        raise argparse.ArgumentTypeError(f"must be at most {LARGEST_DIM}, got {max(dims)}")
    return dims


def block_sizes(text: str) -> list[int]:
    """Block sizes, separated by commas."""
    return [block_size(part.strip()) for part in text.split(",")]


def features(text: str) -> list[str]:
    """Names of features, separated by commas."""
    names = [part.strip() for part in text.split(",")]
    for name in names:
        if name not in FEATURES:
            raise argparse.ArgumentTypeError(
                f"unknown feature {name!r}{did_you_mean(name, FEATURES)} (choose from {', '.join(FEATURES)})"
            )
    return names


def architecture(text: str) -> tuple[int, int]:
    """A compute capability, from 80."""
    if not text.isascii() or not text.isdigit() or int(text) < SMALLEST_ARCH:
        raise argparse.ArgumentTypeError(
            f"must be a compute capability times ten of at least {SMALLEST_ARCH}, such as 80 (A100) or 90 (H100), got {text!r}"
        )
    return divmod(int(text), 10)


def run(args: argparse.Namespace) -> int:
    """Compile, and print what was compiled and what was there."""
    check_installation()
    if args.arch is None and not torch.cuda.is_available():
        raise CommandError(
            f"torch {torch.__version__} finds no usable GPU; give --arch, such as --arch 90 for an H100, to compile without one"
        )
    from ..backends.compile_only import cache_folder, recorded  # imports triton

    masks = {"causal": [True], "none": [False], "both": [True, False]}[args.mask]
    found: list[Compilation] = []
    began = time.perf_counter()
    for case in itertools.starmap(
        Case, itertools.product(args.head_dim, args.block_size, [args.dtype], masks)
    ):
        with recorded() as of_case:
            warm(case, args)
        report(case, of_case, args.json)
        found += of_case
    if not args.json:
        print(summary(found, time.perf_counter() - began, cache_folder()))
    return 0


def check_installation() -> None:
    """Raise CommandError where there is nothing to compile."""
    if not is_installed("triton"):
        raise CommandError("triton is not installed (pip install triton, on Linux)")
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        versions = "/".join(installed_versions("triton", *TRITON_DISTRIBUTIONS))
        raise CommandError(
            f"TRITON_INTERPRET=1 is set: triton {versions} interprets kernels and compiles none; unset it"
        )


def shapes_of(case: Case) -> Iterator[Shape]:
    """Whole blocks, a ragged end, and fewer queries than keys that begin inside a block; heads alone and in groups."""
    b = case.block_size
    for q_len, kv_len in ((2 * b, 2 * b), (2 * b + 5, 2 * b + 5), (b + 3, 2 * b + 5)):
        for num_heads in (2, 4):
            yield Shape(q_len, kv_len, num_heads)


def warm(case: Case, args: argparse.Namespace) -> None:
    """Compile the kernels of a case."""
    device = "cuda" if args.arch is None else "cpu"
    config = SparsePatternConfig(block_size=case.block_size, sparsity_ratio=0.4)
    for shape in shapes_of(case):
        layout = BlockLayout.from_config(
            config, shape.q_len, shape.kv_len, causal=case.is_causal, device=device
        )
        sizes = ((shape.q_len, shape.num_heads), (shape.kv_len, 2), (shape.kv_len, 2))
        q, k, v = (
            torch.zeros(2, length, heads, case.head_dim, dtype=DTYPES[case.dtype], device=device)
            for length, heads in sizes
        )
        for options in [{}, options_of(args.features, shape, layout, q)][: 1 + bool(args.features)]:
            options["is_causal"] = case.is_causal
            try:
                warm_call((q, k, v), layout, options, args)
            except ValueError as error:
                raise CommandError(f"{case}: {error}") from error


def options_of(names: list[str], shape: Shape, layout: BlockLayout, q: Tensor) -> dict[str, Any]:
    """The arguments of a call with these features."""
    device, heads = q.device, shape.num_heads
    ints = {"dtype": torch.int32, "device": device}
    lengths = torch.full((2,), shape.kv_len - 1, **ints)
    values: dict[str, dict[str, Any]] = {
        "kv-lengths": {"kv_lengths": lengths},
        "positions": {
            "kv_starts": torch.ones(2, **ints),
            "kv_lengths": lengths,
            "q_offset": torch.full((2,), max(0, shape.kv_len - shape.q_len - 2), **ints),
        },
        "padding": {"key_padding_mask": torch.zeros(2, shape.kv_len, dtype=torch.bool, device=device)},
        "softcap": {"softcap": 30.0},
        "alibi": {"alibi_slopes": torch.ones(heads, device=device)},
        "sinks": {"sinks": torch.zeros(heads, dtype=q.dtype, device=device)},
        "block-bias": {
            "block_bias": torch.zeros(1, heads, layout.num_block_ids, dtype=q.dtype, device=device)
        },
        "dropout": {"dropout_p": 0.1},
    }
    return {key: value for name in names for key, value in values[name].items()}


def warm_call(
    qkv: tuple[Tensor, Tensor, Tensor], layout: BlockLayout, options: dict[str, Any], args: argparse.Namespace
) -> None:
    """Compile the kernels of one call: by running it where there is its GPU."""
    has_backward = not args.forward_only
    if args.arch is None:
        run_call(qkv, layout, options, args.backend, has_backward)
        return
    problem = make_problem(*qkv, layout, **options)
    backend = choose_backend_for(problem, args.arch, args.backend)
    out = torch.zeros(*qkv[0].shape[:3], qkv[2].shape[3], dtype=qkv[0].dtype)
    lse = torch.zeros(out.shape[0], out.shape[2], out.shape[1])
    grads = [(out, None), (out, lse)] if has_backward else []
    backend.compile_for(problem.prepared_by(backend, layout), args.arch, grads)


def run_call(
    qkv: tuple[Tensor, Tensor, Tensor],
    layout: BlockLayout,
    options: dict[str, Any],
    backend: str,
    has_backward: bool,
) -> None:
    """Call, and with `has_backward` differentiate out alone, and out and lse."""
    given = [x for x in (*qkv, options.get("sinks"), options.get("block_bias")) if x is not None]
    leaves = [x.requires_grad_(has_backward) for x in given]
    outputs = block_sparse_attention(*qkv, layout, **options, return_lse=True, backend=backend)
    if has_backward:
        for of in (outputs[:1], outputs):
            torch.autograd.grad(of, leaves, [torch.zeros_like(x) for x in of], retain_graph=True)


def backend_of(made: Compilation) -> str:
    """The backend that a kernel belongs to, or `layout`."""
    rooms = made.module.split(".")
    return next((name for name in COMPILED_NAMES if name in rooms), "layout")


def report(case: Case, found: list[Compilation], as_json: bool) -> None:
    """Print what was made for a case."""
    if as_json:
        for made in found:
            line = {**case._asdict(), "backend": backend_of(made), "kernel": made.kernel}
            print(json.dumps({**line, "from_disk": made.from_disk, "seconds": round(made.seconds, 3)}))
        return
    print(case)
    for made in found:
        name = f"{backend_of(made)} {made.kernel}"
        how = "was there" if made.from_disk else f"compiled in {made.seconds:.1f} s"
        print(f"  {name:<32}{how}", flush=True)


def summary(found: list[Compilation], seconds: float, folder: str) -> str:
    """All cases in a line."""
    n_new = sum(not made.from_disk for made in found)
    return f"{len(found)} kernels in {seconds:.1f} s: {n_new} compiled, {len(found) - n_new} were there ({folder})"
