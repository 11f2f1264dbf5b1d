"""Find the fastest tiles of the kernels on this GPU: `attention-bench tune`.

Candidates are compiled by several processes at once, then timed one after the other by this one. Prints the
winners as lines for the tuning.py of the backend.
"""

from __future__ import annotations

import argparse
import itertools

import torch

from . import tune_hopper, tune_triton
from .options import Unusable

BACKENDS = {"triton": tune_triton, "hopper": tune_hopper}
KERNELS = tuple(dict.fromkeys(kernel for module in BACKENDS.values() for kernel in module.KERNELS))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="attention-bench tune", description=__doc__)
    parser.add_argument("--backend", choices=BACKENDS, default="triton", help="default: triton")
    parser.add_argument("--head-dim", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--block", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, help="default: all of the backend")
    parser.add_argument("--seqlen", type=int, default=65536)
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--json", help="write every timing to this file")
    return parser


def main(arguments: list[str]) -> int:
    given = build_parser().parse_args(arguments)
    module = BACKENDS[given.backend]
    kernels = given.kernels or list(module.KERNELS)
    unknown = sorted(set(kernels) - set(module.KERNELS))
    if unknown:
        raise Unusable(f"--kernels {unknown[0]} is not one of the backend {given.backend}: {module.KERNELS}")
    if not torch.cuda.is_available():
        raise Unusable("needs a CUDA GPU")
    shapes = list(itertools.product(kernels, given.head_dim, given.block))
    module.tune(shapes, given.seqlen, given.density, given.processes, given.json)
    return 0
