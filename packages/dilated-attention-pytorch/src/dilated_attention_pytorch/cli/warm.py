"""`warm`: compile kernels ahead of time, so that they are on the disk when a process needs them."""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import torch

from ..backends.registry import COMPILED_NAMES
from ..launching.installed import TRITON_DISTRIBUTIONS, installed_versions, is_installed, release
from ..launching.supported_triton import NOT_OLDER, OLDEST, OLDEST_TRITON
from .arguments import block_size, did_you_mean, int_list, positive_int
from .errors import CommandError
from .warm_calls import DTYPES, FEATURES, NOT_PACKED, Case, Wanted, compile_kernels, small_calls

if TYPE_CHECKING:
    from ..backends.compile_only import Compilation

LARGEST_DIM = 256
# Others end the compiler of Triton, and with it this process.
ARCHES = {80: "A100", 86: "A10", 89: "L4", 90: "H100", 100: "B200", 120: "RTX 5090"}
MOST_JOBS = 4  # each holds a context of the GPU


class Compiled(NamedTuple):
    """What was compiled for a case, and a line for each thing that did not compile."""

    found: list[Compilation]
    failures: list[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `warm`."""
    parser.add_argument("--head-dim", type=head_dims, default=[64, 128], metavar="N,N", help="default 64,128")
    parser.add_argument(
        "--v-head-dim",
        type=head_dims,
        metavar="N,N",
        help="head_dim of v, each with every one of --head-dim (default: as --head-dim)",
    )
    parser.add_argument("--block-size", type=block_sizes, default=[64], metavar="N,N", help="default 64")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="default %(default)s")
    parser.add_argument(
        "--mask", choices=("causal", "none", "both"), default="both", help="default %(default)s"
    )
    parser.add_argument(
        "--features",
        type=features,
        default=(),
        metavar="NAME,NAME",
        help=f"what calls give, all of it together, beside plain calls: {', '.join(FEATURES)}",
    )
    parser.add_argument(
        "--forward-only", action="store_true", help="for inference: no kernels of the backward"
    )
    parser.add_argument(
        "--no-deterministic",
        dest="deterministic",
        action="store_false",
        help="also the backward of plain calls with deterministic=False",
    )
    parser.add_argument(
        "--backend",
        choices=("auto", *COMPILED_NAMES),
        default="auto",
        help="default: the one that serves a call",
    )
    parser.add_argument(
        "--arch",
        type=architecture,
        metavar="N",
        help="compute capability, such as 90 or 9.0, without its GPU (default: the GPU that is here)",
    )
    parser.add_argument(
        "--jobs",
        type=positive_int,
        default=max(1, min(MOST_JOBS, os.cpu_count() or 1)),
        metavar="N",
        help="processes that compile at the same time (default: one per core, at most 4)",
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


def features(text: str) -> tuple[str, ...]:
    """Names of features, separated by commas."""
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in FEATURES:
            raise argparse.ArgumentTypeError(
                f"unknown feature {name!r}{did_you_mean(name, FEATURES)} (choose from {', '.join(FEATURES)})"
            )
        if "packed" in names and name in NOT_PACKED:
            raise argparse.ArgumentTypeError(f"packed sequences take no {name}; warm them in two runs")
    return names


def architecture(text: str) -> tuple[int, int]:
    """A compute capability that Triton compiles for, as 90 or 9.0."""
    for arch in ARCHES:
        if text in (str(arch), f"{arch // 10}.{arch % 10}"):
            return divmod(arch, 10)
    known = ", ".join(f"{arch} ({name})" for arch, name in ARCHES.items())
    raise argparse.ArgumentTypeError(f"must be one of {known}, got {text!r}")


def run(args: argparse.Namespace) -> int:
    """Compile, and print what was compiled and what was there; the exit status is 1 if something did not compile."""
    if args.forward_only and not args.deterministic:
        raise CommandError(
            "--no-deterministic is for the backward, which --forward-only leaves out; give one"
        )
    check_installation(args.arch)
    from ..backends.compile_only import cache_folder  # imports triton

    cases = cases_of(args)
    wanted = Wanted(args.arch, args.backend, args.features, not args.forward_only, args.deterministic)
    found: list[Compilation] = []
    failures: list[str] = []
    began = time.perf_counter()
    for case, of_case in zip(cases, compiled(cases, wanted, args.jobs), strict=True):
        report(case, of_case, args.json)
        found += of_case.found
        failures += of_case.failures
    if not args.json:
        print(summary(found, time.perf_counter() - began, cache_folder()))
    return 1 if failures else 0


def cases_of(args: argparse.Namespace) -> list[Case]:
    """Every combination of the options."""
    masks = {"causal": [True], "none": [False], "both": [True, False]}[args.mask]
    return [
        Case(head_dim, v_head_dim, size, args.dtype, is_causal)
        for head_dim in args.head_dim
        for v_head_dim in args.v_head_dim or [head_dim]
        for size in args.block_size
        for is_causal in masks
    ]


def check_installation(arch: tuple[int, int] | None) -> None:
    """Raise CommandError where nothing can be compiled."""
    if not is_installed("triton"):
        raise CommandError("triton is not installed (pip install triton, on Linux)")
    for version in installed_versions("triton", *TRITON_DISTRIBUTIONS):
        if (release(version) or OLDEST_TRITON) < OLDEST_TRITON:
            raise CommandError(
                f"triton {version} does not say what it compiles; needs {OLDEST} or newer (pip install '{NOT_OLDER}')"
            )
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        raise CommandError(
            "TRITON_INTERPRET=1 is set, so Triton interprets kernels and compiles none; unset it"
        )
    if arch is None and not torch.cuda.is_available():
        raise CommandError(
            f"torch {torch.__version__} finds no usable GPU; give --arch, such as --arch 90 for an H100, to compile without one"
        )


def compiled(cases: list[Case], wanted: Wanted, jobs: int) -> Iterator[Compiled]:
    """What is compiled for each case, several of them at the same time."""
    n_jobs = min(jobs, len(cases))
    if n_jobs == 1:
        yield from (compile_case(case, wanted) for case in cases)
        return
    # processes, because Triton compiles under the lock of the interpreter; no forks, which could not use CUDA
    with ProcessPoolExecutor(n_jobs, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(compile_case, cases, itertools.repeat(wanted))


def compile_case(case: Case, wanted: Wanted) -> Compiled:
    """Compile the kernels of a case, also of the calls behind one that does not compile.

    Raises:
        CommandError: no backend serves the case.
    """
    from ..backends.compile_only import in_turns, recorded

    failures: list[str] = []
    with recorded() as found, in_turns():
        for call in small_calls(case, wanted):
            try:
                compile_kernels(call, wanted)
            except ValueError as error:
                raise CommandError(f"{case}: {error}") from error
            except Exception as error:  # Triton's own, or one of its assembler
                failures.append(f"{', '.join([str(case), *call.features])}: {last_line(error)}")
    return Compiled(found, [*dict.fromkeys(failures)])


def last_line(error: BaseException) -> str:
    """The last line of what the compiler says; Triton wraps an error once for every function around it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith("Repro command")]
    return f"{type(error).__name__}: {said[-1]}" if said else type(error).__name__


def backend_of(made: Compilation) -> str:
    """The backend that a kernel belongs to, or `layout`."""
    rooms = made.module.split(".")
    return next((name for name in COMPILED_NAMES if name in rooms), "layout")


def report(case: Case, of_case: Compiled, as_json: bool) -> None:
    """Print what was made for a case, and on standard error what was not."""
    if not as_json:
        print(case)
    for made in of_case.found:
        if as_json:
            line = {**case._asdict(), "backend": backend_of(made), "kernel": made.kernel}
            text = json.dumps({**line, "from_disk": made.from_disk, "seconds": round(made.seconds, 3)})
        else:
            how = "was there" if made.from_disk else f"compiled in {made.seconds:.1f} s"
            text = f"  {f'{backend_of(made)} {made.kernel}':<32}{how}"
        print(text, flush=True)
    for failure in of_case.failures:
        print(f"does not compile: {failure}", file=sys.stderr, flush=True)


def summary(found: list[Compilation], seconds: float, folder: str) -> str:
    """All cases in a line; a kernel of several cases counts once."""
    n = len({made.key for made in found})
    n_new = len({made.key for made in found if not made.from_disk})
    return f"{n} kernels in {seconds:.1f} s: {n_new} compiled, {n - n_new} were there ({folder})"
