"""Command line options that several commands share."""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import torch

from dilated_attention_pytorch.backends.registry import BACKEND_NAMES
from dilated_attention_pytorch.cli.arguments import (
    OneLineParser,
    block_size,
    int_list,
    kept_ratio,
    positive_int,
    thread_count,
)
from dilated_attention_pytorch.cli.files import check_file
from dilated_attention_pytorch.config import PATTERN_TYPES, takes

from .cases import DTYPES, RANDOM, Case

CASE_FIELDS = (
    "seqlen", "batch", "heads", "kv_heads", "head_dim", "block", "density", "pattern", "pattern_rates", "dtype",
    "causal", "segment_lengths", "dilation_rates", "window",
)  # fmt: skip


UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


class Unusable(ValueError):
    """A request of the user that cannot be served; the message says why. Exit status 2."""


def numbers(text: str) -> tuple[int, ...] | None:
    """Positive ints separated by commas, or None for "none"."""
    return None if text == "none" else tuple(int_list(text))


def token_count(text: str) -> int:
    """A number of tokens: 131072, 131,072, 1e9, or with a unit of 1,024: 128K, 4M, 1G."""
    unit = UNITS.get(text[-1:].upper(), 1)
    digits = text[:-1] if unit > 1 else text
    if unit == 1 and "e" not in text.lower():
        return positive_int(text)
    try:
        value = Decimal(digits) * unit
        whole = int(value)
    except (ArithmeticError, ValueError):  # also nan and the infinities
        whole, value = 0, Decimal(0)
    if whole < 1 or whole != value:
        raise argparse.ArgumentTypeError(
            f"must be a whole number of at least 1, such as 4M or 1e9, got {text!r}"
        )
    return positive_int(str(whole))


def positive_number(text: str, unit: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of {unit} above 0, got {text!r}")
    return value


def milliseconds(text: str) -> float:
    """A positive number of milliseconds."""
    return positive_number(text, "milliseconds")


def seconds(text: str) -> float:
    """A positive number of seconds."""
    return positive_number(text, "seconds")


def json_file(text: str) -> str:
    """A file that can be written; its folder must exist."""
    try:
        check_file(Path(text))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: {reason}") from error
    return text


def make_parser(prog: str, description: str | None, epilog: str | None = None) -> argparse.ArgumentParser:
    """A parser that reports errors in one line and suggests the closest option."""
    return OneLineParser(prog=prog, description=description, epilog=epilog)


def add_json(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--json", type=json_file, metavar="FILE", help=f"write {what}; its folder must exist")


def add_budget(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--budget", type=seconds, metavar="SECONDS",
        help="begin nothing new after so many seconds, say what was left out, and keep the figures; cases come in order of worth",
    )  # fmt: skip


def add_processes(parser: argparse.ArgumentParser, what: str, default: int = 1) -> None:
    parser.add_argument(
        "--processes", type=positive_int, default=default, metavar="N", help=f"{what} (default {default})"
    )


def add_backend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend",
        choices=[name for name in BACKEND_NAMES if name != "auto"],
        help="default: the library's choice",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda if there is a GPU")


def add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=thread_count, help="CPU threads (default: the choice of torch)")


def set_threads(options: argparse.Namespace) -> None:
    if options.threads is not None:
        torch.set_num_threads(options.threads)


def add_sizes(parser: argparse.ArgumentParser, meaning: str) -> None:
    """Options for the fields of a Case without a pattern; options that are not given are missing in the namespace."""

    def add(flag: str, help: str | None = None, **others: object) -> None:
        parser.add_argument(flag, default=argparse.SUPPRESS, help=help, **others)  # type: ignore[arg-type]

    tokens = f"tokens, such as 131072, 4M (K, M, G: 2**10, 2**20, 2**30) or 1e9; {meaning}"
    add("--seqlen", tokens.replace("%", "%%"), type=token_count)
    add("--batch", type=positive_int)
    add("--heads", type=positive_int)
    add("--kv-heads", type=positive_int)
    add("--head-dim", type=positive_int)
    add("--block", "tokens per block side", type=block_size)
    add("--density", "fraction of blocks kept", type=kept_ratio)
    add("--dtype", choices=DTYPES)
    add("--causal", action="store_true")


def add_pattern(parser: argparse.ArgumentParser, patterns: Sequence[str] = PATTERN_TYPES) -> None:
    """Options for the pattern of a Case; options that are not given are missing in the namespace."""
    parser.add_argument("--pattern", default=argparse.SUPPRESS, choices=patterns)
    parser.add_argument(
        "--dilation-rates", default=argparse.SUPPRESS,
        help="of dilated_sparse, in blocks, such as 1,2,4,8; none for the powers of two",
        type=numbers, dest="pattern_rates", metavar="RATES",
    )  # fmt: skip


def add_window(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--window", default=argparse.SUPPRESS, type=positive_int, metavar="TOKENS",
        help="of --pattern local_window, which it chooses: exact to the token, in place of the density; NATTEN needs --causal too",
    )  # fmt: skip


def add_case(parser: argparse.ArgumentParser, meaning: str, patterns: Sequence[str] = PATTERN_TYPES) -> None:
    """Options for all fields of a Case; options that are not given are missing in the namespace."""

    def add(flag: str, help: str | None = None, **others: object) -> None:
        parser.add_argument(flag, default=argparse.SUPPRESS, help=help, **others)  # type: ignore[arg-type]

    add_sizes(parser, meaning)
    add_pattern(parser, patterns)
    add(
        "--segment-lengths",
        "of token dilation, in tokens, such as 2048,4096",
        type=numbers, metavar="LENGTHS",
    )  # fmt: skip
    add(
        "--token-rates",
        "of token dilation, one rate per segment length, such as 1,4",
        type=numbers, dest="dilation_rates", metavar="RATES",
    )  # fmt: skip


def has_case(options: argparse.Namespace) -> bool:
    return any(hasattr(options, name) for name in CASE_FIELDS)


def case_of(options: argparse.Namespace, base: Case) -> Case:
    """`base` with the given options."""
    given = {name: getattr(options, name) for name in CASE_FIELDS if hasattr(options, name)}
    if "window" in given and given.setdefault("pattern", "local_window") != "local_window":
        raise Unusable(
            f"--window is of --pattern local_window, got --pattern {given['pattern']}; leave one of the two out"
        )
    missing = [
        flag
        for flag, name in (("--segment-lengths", "segment_lengths"), ("--token-rates", "dilation_rates"))
        if given.get(name, getattr(base, name)) is None
    ]
    if len(missing) == 1:
        raise Unusable(
            f"--segment-lengths and --token-rates go together, {missing[0]} is not given; give both or neither"
        )
    try:
        case = replace(base, **given)
        if case.pattern != RANDOM:
            case.config()
    except ValueError as error:
        raise Unusable(str(error)) from error
    if "pattern_rates" in given and not takes(case.pattern, "dilation_rates"):
        raise Unusable(
            f"--dilation-rates are of --pattern dilated_sparse, got --pattern {case.pattern}, which has none; leave one out"
        )
    return case


def for_device(case: Case, device: str) -> Case:
    """The case, in float32 on a CPU."""
    return case if device == "cuda" else replace(case, dtype="float32")


def device_of(options: argparse.Namespace) -> str:
    if options.device == "cuda" and not torch.cuda.is_available():
        raise Unusable("--device cuda needs a GPU, but torch finds none; use --device cpu")
    return options.device or ("cuda" if torch.cuda.is_available() else "cpu")


def command_line(prog: str, arguments: list[str], file: str | None) -> str:
    """The command as typed, without the folder of the output file."""
    name = "" if file is None else Path(file).name
    shown = [
        name if each == file else f"--json={name}" if each == f"--json={file}" else each for each in arguments
    ]
    return shlex.join([*prog.split(), *shown])
