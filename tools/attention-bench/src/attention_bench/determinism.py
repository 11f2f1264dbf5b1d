"""Repeats a call and compares all results bit by bit: `attention-bench determinism`."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout, block_sparse_attention
from dilated_attention_pytorch.cli.arguments import positive_int

from . import options
from .cases import Case
from .measure import one_line

BASE = {"cuda": Case(16384, 16, 128, 128, 0.05), "cpu": Case(2048, 2, 64, 64, 0.1, dtype="float32")}
NAMES = ("out", "lse", "dq", "dk", "dv")
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(x: Tensor) -> Tensor:
    """The tensor viewed as integers, so that NaN equals NaN and 0 differs from -0."""
    return x.view(INTEGERS[x.element_size()])


def first_difference(name: str, first: Tensor, other: Tensor) -> str | None:
    """A description of where two results differ; None if they are bit-identical."""
    differs = bits(first) != bits(other)
    count = int(differs.sum())
    if not count:
        return None
    index = tuple(differs.nonzero()[0].tolist())
    return (
        f"{name} differs in {count:,} of {differs.numel():,} elements, first at {list(index)}: "
        f"{first[index].item()!r} and {other[index].item()!r}"
    )


def results(case: Case, layout: BlockLayout, device: str, backend: str | None) -> tuple[Tensor, ...]:
    """out, lse and the gradients of a run."""
    q, k, v = (x.requires_grad_() for x in case.inputs(device))
    out, lse = block_sparse_attention(
        q, k, v, layout, is_causal=case.causal, segment_lengths=case.segment_lengths,
        dilation_rates=case.dilation_rates, return_lse=True, backend=backend,
    )  # fmt: skip
    grads = torch.autograd.grad(out, (q, k, v), case.grad_out(device))
    return out.detach(), lse.detach(), *grads


def compare(case: Case, device: str, runs: int, backend: str | None) -> str | None:
    """The first difference between the first run and a later one; None if there is none."""
    layout = case.layout(device)
    first = results(case, layout, device, backend)
    for run in range(2, runs + 1):
        others = results(case, layout, device, backend)
        for name, a, b in zip(NAMES, first, others, strict=True):
            found = first_difference(name, a, b)
            if found is not None:
                return f"run {run} of {runs}: {found}"
    return None


def at_least_two(text: str) -> int:
    """A number of runs, at least 2."""
    runs = positive_int(text)
    if runs < 2:
        raise argparse.ArgumentTypeError(f"must be at least 2, got {text!r}: a single run cannot be compared")
    return runs


def build_parser() -> argparse.ArgumentParser:
    parser = options.make_parser(
        "attention-bench determinism", f"{__doc__} The exit status is 1 if something differs."
    )
    options.add_device(parser)
    options.add_case(parser, f"default: {BASE['cuda'].label}; on a CPU {BASE['cpu'].label}")
    parser.add_argument(
        "--runs", type=at_least_two, default=20, help="number of forward and backward passes (default 20)"
    )
    options.add_backend(parser)
    return parser


def main(arguments: list[str]) -> int:
    """Exit status 0, or 1 if something differs."""
    given = build_parser().parse_args(arguments)
    device = options.device_of(given)
    case = options.case_of(given, BASE[device])
    try:
        found = compare(case, device, given.runs, given.backend)
    except ValueError as error:  # the backend cannot serve the case
        raise options.Unusable(str(error)) from error
    except (RuntimeError, MemoryError) as error:
        raise options.Unusable(one_line(error)) from error
    equal = f"ok, {', '.join(NAMES)} of {given.runs} runs are bit-identical"
    print(f"{case.label}: {equal if found is None else found}")
    return 0 if found is None else 1
