"""Find the fastest tiles of the kernels on this GPU: `attention-bench tune`.

Several processes compile the candidates, then this one times them one after the other. The fastest are printed as lines
for the tuning.py of the backend.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import torch

from dilated_attention_pytorch.cli.arguments import block_size, kept_ratio, positive_int

from . import files, tune_hopper, tune_triton
from .options import Unusable, add_json, add_processes, make_parser, token_count

BACKENDS = {"triton": tune_triton, "hopper": tune_hopper}
KERNELS = ("forward", "dq", "dkdv")  # of every backend


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("attention-bench tune", __doc__)
    parser.add_argument("--backend", choices=BACKENDS, default="triton", help="default: triton")
    parser.add_argument("--head-dim", type=positive_int, nargs="+", default=[64, 128])
    parser.add_argument("--block", type=block_size, nargs="+", default=[64, 128])
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, help="default: all")
    parser.add_argument("--seqlen", type=token_count, default=65536)
    parser.add_argument("--density", type=kept_ratio, default=0.05)
    add_processes(parser, "compile so many candidates at the same time", 8)
    add_json(parser, "every timing")
    return parser


def main(arguments: list[str]) -> int:
    """Exit status 0. After Ctrl-C the file has the kernels timed so far."""
    given = build_parser().parse_args(arguments)
    module = BACKENDS[given.backend]
    if not torch.cuda.is_available():
        raise Unusable("tune needs a CUDA GPU")
    shapes = list(itertools.product(given.kernels or KERNELS, given.head_dim, given.block))
    results: list[dict[str, Any]] = []
    for result in module.tune(shapes, given.seqlen, given.density, given.processes):
        results.append(result)
        if given.json:
            files.write_json(given.json, results)
    if not any(result["timed"] for result in results):
        raise Unusable("no candidate could be timed; the lines above say why")
    return 0
