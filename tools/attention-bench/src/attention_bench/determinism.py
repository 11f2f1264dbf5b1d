"""Repeats a call and compares all results bit by bit: `attention-bench determinism`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from dilated_attention_pytorch.cli.arguments import positive_int

from . import options
from .budget import Budget
from .cases import PATTERNS, RANDOM, Case
from .features import FEATURES, FeatureCall, made
from .load import Load
from .measure import free, one_line
from .processes import in_processes

BASE = {"cuda": Case(16384, 16, 128, 128, 0.05), "cpu": Case(2048, 2, 64, 64, 0.1, dtype="float32")}
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Subject:
    """What is repeated: a label and how to make the call."""

    label: str
    make: Callable[[], FeatureCall]


@dataclass(frozen=True)
class Finding:
    """What was found about a subject; the text is None if there was no time for it."""

    label: str
    text: str | None
    is_fault: bool = False


def bits(x: Tensor) -> Tensor:
    """The tensor viewed as integers, so that NaN equals NaN and 0 differs from -0."""
    return x.contiguous().view(INTEGERS[x.element_size()])


def first_difference(name: str, first: Tensor, other: Tensor) -> str | None:
    """A description of where two results differ; None if they are bit-identical."""
    a, b = bits(first), bits(other)
    if torch.equal(a, b):
        return None
    differs = a != b
    index = tuple(differs.nonzero()[0].tolist())
    return (
        f"{name} differs in {int(differs.sum()):,} of {differs.numel():,} elements, first at {list(index)}: "
        f"{first[index].item()!r} and {other[index].item()!r}"
    )


def call_of(case: Case, device: str) -> FeatureCall:
    """The call of a case, with its token dilation."""
    call = made(case, case.layout(device))
    if case.segment_lengths is not None:
        call.options |= {"segment_lengths": case.segment_lengths, "dilation_rates": case.dilation_rates}
    return call


def results(call: FeatureCall, backend: str | None) -> dict[str, Tensor]:
    """out, lse and the gradients of a run, by name."""
    torch.manual_seed(0)  # for dropout
    inputs = {name: x.detach().requires_grad_() for name, x in call.inputs.items()}
    out, lse = call.attend(backend, inputs)
    grads = torch.autograd.grad(out, tuple(inputs.values()), call.grad)
    names = [f"d{name}" for name in inputs]
    return {"out": out.detach(), "lse": lse.detach(), **dict(zip(names, grads, strict=True))}


def compare(call: FeatureCall, device: str, runs: int, backend: str | None, has_load: bool) -> str:
    """What is equal in all runs; `Different` with the first difference between the first run and a later one."""
    first = results(call, backend)
    with Load(device, has_load) as load:
        for run in range(2, runs + 1):
            load.add()
            others = results(call, backend)
            for name, expected in first.items():
                found = first_difference(name, expected, others[name])
                if found is not None:
                    raise Different(f"run {run} of {runs}: {found}")
    under = " under load" if has_load else ""
    return f"ok, {', '.join(first)} of {runs} runs{under} are bit-identical"


class Different(ArithmeticError):
    """Two runs gave different results."""


def every_subject(device: str) -> Iterator[Subject]:
    """Cases and features that together run every kernel, in the order of worth."""
    base = BASE[device]
    is_gpu = device == "cuda"
    dilated = {"segment_lengths": (base.seqlen // 8, base.seqlen // 4), "dilation_rates": (1, 4)}
    half = replace(base, head_dim=base.head_dim // 2, heads=2 * base.heads)
    other_block = {"block": 64 if is_gpu else 32}
    cases = [base, replace(base, **other_block), half, replace(half, **other_block)]  # type: ignore[arg-type]
    cases += [replace(case, **dilated) for case in cases]  # type: ignore[arg-type]
    cases += [replace(case, causal=True) for case in (*cases[:2], *cases[4:6])]
    cases += [replace(base, pattern=RANDOM, **other_block), replace(base, pattern=RANDOM)]  # type: ignore[arg-type]
    cases += [replace(base, heads=2 * base.heads, kv_heads=base.heads // 2, causal=True)]
    if is_gpu:  # large enough for backwards of their own
        cases += [replace(base, seqlen=4 * base.seqlen, heads=base.heads // 4), replace(half, density=0.1)]
    for case in cases:
        yield Subject(case.label, partial(call_of, case, device))
    for name, feature in FEATURES.items():
        yield Subject(name, partial(feature.make, base, device))


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
    options.add_case(parser, f"default: {BASE['cuda'].label}; on a CPU {BASE['cpu'].label}", PATTERNS)
    options.add_window(parser)
    parser.add_argument(
        "--every", action="store_true",
        help="instead of one case those, and the features, that together run every kernel",
    )  # fmt: skip
    parser.add_argument(
        "--runs", type=at_least_two, default=20, help="number of forward and backward passes (default 20)"
    )
    parser.add_argument(
        "--load", action="store_true",
        help="meanwhile multiply matrices on a second stream (on a CPU in a second thread)",
    )  # fmt: skip
    options.add_processes(parser, "with --every, repeat so many of them at the same time")
    options.add_backend(parser)
    options.add_budget(parser)
    return parser


def main(arguments: list[str]) -> int:
    """Exit status 0, or 1 if something differs."""
    given = build_parser().parse_args(arguments)
    device = options.device_of(given)
    if given.every and options.has_case(given):
        raise options.Unusable("--every has its own cases; leave the options of a case out")
    if given.processes > 1 and not given.every:
        raise options.Unusable("--processes shares the cases of --every; give both, or neither")
    budget, status = Budget(given.budget), 0
    missing: list[str] = []
    repeat = partial(finding, given=given, device=device, budget=budget)
    for found in in_processes(repeat, range(len(subjects(given, device))), given.processes):
        if found.text is None:
            missing.append(found.label)
        else:
            print(f"{found.label}: {found.text}", flush=True)
            status |= found.is_fault
    if missing:
        print(f"{budget.left_out()}: {'; '.join(missing)}", flush=True)
    return status


def subjects(given: argparse.Namespace, device: str) -> list[Subject]:
    """What the options ask for."""
    if given.every:
        return list(every_subject(device))
    case = options.case_of(given, BASE[device])
    return [Subject(case.label, partial(call_of, case, device))]


def finding(i_subject: int, given: argparse.Namespace, device: str, budget: Budget) -> Finding:
    """Repeat a subject, if there is time for it; `Unusable` where the only one cannot be run."""
    subject = subjects(given, device)[
        i_subject
    ]  # by its place: another process could not be given its functions
    if not budget.fits(subject.label):
        return Finding(subject.label, None)
    try:
        return Finding(subject.label, compare(subject.make(), device, given.runs, given.backend, given.load))
    except Different as difference:
        return Finding(subject.label, str(difference), is_fault=True)
    except (ValueError, RuntimeError, MemoryError) as error:
        if not given.every:
            raise options.Unusable(one_line(error)) from error
        if isinstance(error, ValueError):  # the backend cannot serve the case
            return Finding(subject.label, f"left out: {one_line(error)}")
        return Finding(subject.label, f"failed: {one_line(error)}", is_fault=True)
    finally:
        free(device)
