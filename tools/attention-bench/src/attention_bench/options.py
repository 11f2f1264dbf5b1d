"""Command line options that several commands share."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace
from pathlib import Path

import torch

from .cases import DTYPES, Case

CASE_FIELDS = (
    "seqlen", "batch", "heads", "kv_heads", "head_dim", "block", "density", "pattern", "pattern_rates", "dtype",
    "causal", "segment_lengths", "dilation_rates",
)  # fmt: skip


class Unusable(ValueError):
    """What a user asked for cannot be done; the message says why. Exit status 2."""


def numbers(text: str) -> tuple[int, ...] | None:
    """1,2,4,8 or none."""
    return None if text == "none" else tuple(int(part) for part in text.split(","))


def positive(text: str) -> int:
    """An int of at least 1."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: the GPU, if there is one")


def add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=positive, help="of a CPU; default: as many as torch takes")


def add_case(parser: argparse.ArgumentParser, meaning: str) -> None:
    """The fields of a Case; those that are not given are not in the namespace."""

    def add(flag: str, help: str | None = None, **others: object) -> None:
        parser.add_argument(flag, default=argparse.SUPPRESS, help=help, **others)  # type: ignore[arg-type]

    add("--seqlen", f"tokens; {meaning}".replace("%", "%%"), type=positive)
    add("--batch", type=positive)
    add("--heads", type=positive)
    add("--kv-heads", type=positive)
    add("--head-dim", type=positive)
    add("--block", "tokens per block side", type=positive)
    add("--density", "share of blocks kept", type=float)
    add("--pattern", choices=("dilated_sparse", "local_window", "global_local"))
    add(
        "--dilation-rates",
        "of dilated_sparse, in blocks, such as 1,2,4,8; none: the powers of two",
        type=numbers, dest="pattern_rates", metavar="RATES",
    )  # fmt: skip
    add("--dtype", choices=DTYPES)
    add("--causal", action="store_true")
    add(
        "--segment-lengths",
        "token dilation: in tokens, such as 2048,4096",
        type=numbers, metavar="LENGTHS",
    )  # fmt: skip
    add(
        "--token-rates",
        "token dilation: one rate for every segment length, such as 1,4",
        type=numbers, dest="dilation_rates", metavar="RATES",
    )  # fmt: skip


def has_case(options: argparse.Namespace) -> bool:
    return any(hasattr(options, name) for name in CASE_FIELDS)


def case_of(options: argparse.Namespace, base: Case) -> Case:
    """`base` with the options given."""
    given = {name: getattr(options, name) for name in CASE_FIELDS if hasattr(options, name)}
    try:
        case = replace(base, **given)
        case.config()
    except ValueError as error:
        raise Unusable(str(error)) from error
    return case


def for_device(case: Case, device: str) -> Case:
    """The case in float32 on a CPU."""
    return case if device == "cuda" else replace(case, dtype="float32")


def device_of(options: argparse.Namespace) -> str:
    if options.device == "cuda" and not torch.cuda.is_available():
        raise Unusable("--device cuda, but torch sees no GPU; use --device cpu")
    return options.device or ("cuda" if torch.cuda.is_available() else "cpu")


def command_line(prog: str, arguments: list[str], file: str | None) -> str:
    """What was typed, without the folder of the file that is written."""
    shown = [Path(each).name if each == file else each for each in arguments]
    return shlex.join([*prog.split(), *shown])
