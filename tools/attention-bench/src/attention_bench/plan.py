"""Computes what a distributed call moves, holds and computes on every rank: `attention-bench plan`.

From the pattern alone: no process group, no GPU, nothing is measured. Beside ours stand ring attention (dense) and an all-gather
of k and v. Times come from stated bandwidths and TFLOP/s; they leave out latencies, packing and everything but attention.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from typing import Any

import torch

from dilated_attention_pytorch.cli.arguments import block_size, kept_ratio, positive_int
from dilated_attention_pytorch.distributed.balance import BALANCES
from dilated_attention_pytorch.distributed.sharding import SequenceSharding
from dilated_attention_pytorch.distributed.stages import Shape, split_heads
from dilated_attention_pytorch.grid import BlockGrid

from . import files, options
from .cases import Case
from .counts import counted
from .environment import environment
from .exchange_counts import count_exchange, make_sharding, sampled
from .plan_estimates import (
    DENSE_TFLOPS,
    FAR_GBS,
    NEAR_GBS,
    RANKS_PER_HOST,
    TFLOPS,
    Direction,
    Machine,
    Method,
    PlanRow,
    TokenBytes,
    all_gather,
    exchange_lists_bytes,
    ours,
    ring,
)
from .report import milliseconds
from .tables import table

KIND = "plan"
COMPUTED = "Computed from the pattern, not measured"
BASE = Case(131072, 32, 128, 128, 0.01, kv_heads=8, pattern_rates=None)


def causal(seqlen: int, density: float, rates: tuple[int, ...] | None) -> Case:
    return replace(BASE, seqlen=seqlen, density=density, causal=True, pattern_rates=rates)


# Tokens, density and ranks: from one host to a billion tokens, with 5 to 50 blocks in a row.
SIZES = [
    (131072, 0.01, 8),
    (2**20, 0.01, 8),
    (2**20, 0.001, 8),
    (2**22, 0.001, 32),
    (2**24, 0.0005, 64),
    (2**27, 0.0001, 256),
    (10**9, 0.00001, 1024),
]
# With rates that stay near, and with all powers of two.
SCALING = [
    (causal(tokens, density, rates), ranks)
    for tokens, density, ranks in SIZES
    for rates in ((1, 2, 4, 8), None)
]
PRESETS = {"scaling": SCALING}


def make_plan(
    case: Case, ranks: int, balance: str, machine: Machine, stages: int | None, save_fetched: bool, layers: int,
    sample: int | None = None,
) -> PlanRow:  # fmt: skip
    """The plan of a case.

    Raises:
        ValueError: there are fewer blocks than ranks, or a pattern that is not causal has too many.
    """
    config, grid = case.config(), BlockGrid(case.seqlen, case.seqlen, case.block, case.causal)
    sharding = make_sharding(config, grid, balance, ranks)
    counts = count_exchange(config, grid, sharding, machine.ranks_per_host, sampled(ranks, sample))
    number = number_of_stages(case, sharding, float(counts.fetched.double().mean()), stages)
    of_gather = number_of_stages(case, sharding, case.seqlen * (1 - 1 / ranks), stages)
    return PlanRow(
        case=case, ranks=ranks, balance=balance, stages=number, save_fetched=save_fetched, layers=layers, machine=machine,
        counted_ranks=counts.ranks.numel(),
        tokens=int(counts.tokens.max()),
        fetched_tokens=int(counts.fetched.max()),
        mean_fetched_tokens=float(counts.fetched.double().mean()),
        sources=int(counts.sources.max()),
        active_blocks=int(counts.active.max()),
        mean_active_blocks=float(counts.active.double().mean()),
        lists_bytes=int(exchange_lists_bytes(counts, case.block).max()),
        methods=[
            ours(case, counts, machine, number, save_fetched),
            ring(case, ranks, machine),
            all_gather(case, counts, machine, of_gather),
        ],
    )  # fmt: skip


def number_of_stages(case: Case, sharding: SequenceSharding, fetched: float, stages: int | None) -> int:
    """The stages of a call whose ranks fetch so many tokens on average; `stages` None: as many as the library chooses."""
    if not fetched:
        return 1
    per_token = TokenBytes(case).all_heads
    shape = Shape(
        sharding, case.causal, case.heads, case.num_kv_heads, None, torch.device("cpu"), stages, per_token
    )
    return len(split_heads(shape, False, fetched * per_token))


# ---- files and tables


def read_json(path: str) -> tuple[list[PlanRow], dict[str, Any]]:
    rows, where = files.read_kind(path, KIND)
    return [read_row(row) for row in rows], where


def read_row(row: dict[str, Any]) -> PlanRow:
    methods = [
        Method(**{**method, **{name: Direction(**method[name]) for name in ("forward", "backward")}})
        for method in row["methods"]
    ]
    machine: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in row["machine"].items()
    }
    return PlanRow(**{**row, "case": Case(**row["case"]), "machine": Machine(**machine), "methods": methods})


def size(num_bytes: float) -> str:
    """Bytes with a decimal unit and three digits, as bandwidths are given."""
    if num_bytes < 1000:
        return f"{num_bytes:.0f} B"
    power = min(5, int(math.log10(num_bytes) // 3))
    value = num_bytes / 1000**power
    return f"{value:.3g} {' kMGTP'[power]}B" if value < 999.5 else f"{value:.0f} {' kMGTP'[power]}B"


def duration(ms: float) -> str:
    if ms >= 3600e3:
        return f"{ms / 3600e3:.1f} h"
    return f"{milliseconds(ms)} ms" if ms < 10e3 else f"{ms / 1e3:,.0f} s"


def teraflop(flops: float) -> str:
    value = flops / 1e12
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def share(part: float) -> str:
    return f"{part:.1%}" if part >= 0.01 else f"{100 * part:.2g}%"


HEADINGS = [
    "case", "ranks", "fetched by a rank", "sent by a rank: ours / ring attention / all-gather", "imbalance",
    "memory: ours / ring attention / all-gather", "time: ours / ring attention / all-gather",
]  # fmt: skip


def cells(row: PlanRow) -> list[str]:
    others = row.case.seqlen * (1 - 1 / row.ranks)
    fetched = row.mean_fetched_tokens / others if others else 0.0
    layers = "" if row.layers == 1 else f", {row.layers} layers"
    sample = "" if row.counted_ranks == row.ranks else f" ({row.counted_ranks} of them counted)"
    return [
        row.case.label + layers,
        f"{row.ranks:,}{sample}",
        f"{row.mean_fetched_tokens:,.0f} tokens ({share(fetched)} of the others')",
        " / ".join(size(method.mean_sent_bytes * row.layers) for method in row.methods),
        f"{row.imbalance:.1%}",
        " / ".join(size(row.memory_bytes(method)) for method in row.methods),
        " / ".join(duration(method.ms * row.layers) for method in row.methods),
    ]


def markdown(rows: list[PlanRow], where: dict[str, Any]) -> str:
    """The rows as a Markdown table, of forward and backward; bytes are means over the ranks, memory and times of the busiest one."""
    return table(HEADINGS, map(cells, rows), where)


def sent(way: Direction) -> str:
    most = "-" if way.sent_bytes is None else size(way.sent_bytes)
    return f"{most} ({size(way.mean_sent_bytes)})"


def text(row: PlanRow) -> str:
    """A plan for the terminal."""
    case, machine = row.case, row.machine
    held = [
        f"{case.label}; {counted(row.ranks, 'rank')}, balance {row.balance}, {counted(row.stages, 'stage')}, "
        f"{counted(row.layers, 'layer')}",
        f"{COMPUTED}: per rank and layer, of the rank with most, in parentheses the mean.",
    ]
    if row.counted_ranks < row.ranks:
        held.append(
            f"What travels was counted for a sample of {counted(row.counted_ranks, 'rank')}: others may fetch more, and the most "
            "that a rank sends is not known."
        )
    held += [
        "",
        f"tokens held      {row.tokens:,}",
        f"tokens fetched   {row.fetched_tokens:,} ({row.mean_fetched_tokens:,.0f}) from up to {counted(row.sources, 'rank')}",
        f"active blocks    {row.active_blocks:,} ({row.mean_active_blocks:,.0f}); imbalance of FLOPs {row.imbalance:.1%}",
        f"lists, indices   {size(row.lists_bytes)}",
        "",
    ]
    lines = [["", *(method.name for method in row.methods)]]
    for name in ("forward", "backward"):
        ways = [getattr(method, name) for method in row.methods]
        lines += [
            [f"{name}: sent", *(sent(way) for way in ways)],
            ["  received", *(size(way.received_bytes) for way in ways)],
            ["  memory", *(size(way.memory_bytes) for way in ways)],
            ["  TFLOP", *(f"{teraflop(way.flops)} ({teraflop(way.mean_flops)})" for way in ways)],
            ["  computing", *(duration(way.compute_ms) for way in ways)],
            ["  transfers", *(duration(way.transfer_ms) for way in ways)],
            ["  both, overlapped", *(duration(way.ms) for way in ways)],
        ]
    lines += [
        [
            f"step of {counted(row.layers, 'layer')}",
            *(duration(method.ms * row.layers) for method in row.methods),
        ],
        ["  memory", *(size(row.memory_bytes(method)) for method in row.methods)],
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    aligned = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    share_text = (
        f"Ours sends {share(row.share_of_ring)} of ring attention's bytes in the forward, all ranks together."
    )
    rates = (
        f"Assumed: {machine.near_gbs:g} GB/s each way inside a host of {machine.ranks_per_host}, {machine.far_gbs:g} GB/s for "
        f"each GPU between hosts; {machine.tflops[0]:g} TFLOP/s forward and {machine.tflops[1]:g} backward, dense "
        f"{machine.dense_tflops[0]:g} and {machine.dense_tflops[1]:g}."
    )
    return "\n".join([*held, *aligned, "", share_text, rates])


# ---- the command


def rate(text: str) -> float:
    """A rate above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def build_parser() -> argparse.ArgumentParser:
    parser = options.make_parser("attention-bench plan", __doc__)
    parser.add_argument(
        "--ranks", type=positive_int, help="processes that share a sequence, a GPU each (default 8)"
    )
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        help="instead of a case: from 8 ranks to 1,024 and a billion tokens; takes minutes",
    )
    options.add_sizes(parser, f"default: {BASE.label}; --heads alone has as many kv heads")
    for flag, same in (("--block-size", "block"), ("--ratio", "density")):
        kind = {"block": block_size, "density": kept_ratio}[same]
        parser.add_argument(
            flag, dest=same, type=kind, default=argparse.SUPPRESS, help=f"the same as --{same}"
        )
    options.add_pattern(parser)
    parser.add_argument(
        "--balance", choices=BALANCES, default="cost", help="which tokens a rank holds (default cost)"
    )
    parser.add_argument(
        "--stages", type=positive_int,
        help="groups of kv heads: while one computes, the next is fetched (default: what the library chooses)",
    )  # fmt: skip
    parser.add_argument(
        "--save-fetched", action="store_true",
        help="keep what was fetched for the backward, instead of fetching it again",
    )  # fmt: skip
    parser.add_argument("--layers", type=positive_int, default=1, help="of a step (default 1)")
    parser.add_argument(
        "--sample",
        type=positive_int,
        metavar="N",
        help="count what N of the ranks fetch, spread evenly; default: all",
    )
    parser.add_argument(
        "--ranks-per-host", type=positive_int, default=RANKS_PER_HOST, help=f"default {RANKS_PER_HOST}"
    )
    parser.add_argument(
        "--near", type=rate, default=NEAR_GBS, metavar="GB/S",
        help=f"each way and GPU inside a host (default {NEAR_GBS:g}: NVLink of an H100 or H200)",
    )  # fmt: skip
    parser.add_argument(
        "--far", type=rate, default=FAR_GBS, metavar="GB/S",
        help=f"each way and GPU between hosts (default {FAR_GBS:g}: a port of 400 Gb/s for each GPU, as in a DGX H100)",
    )  # fmt: skip
    parser.add_argument(
        "--tflops", type=rate, nargs=2, metavar=("FORWARD", "BACKWARD"),
        help="of the active blocks (default: those of an H200 for this head_dim and block in results/h200.json)",
    )  # fmt: skip
    parser.add_argument(
        "--dense-tflops", type=rate, nargs=2, metavar=("FORWARD", "BACKWARD"),
        help="of dense attention (default: those of cuDNN on an H200 for this head_dim in results/h200-0.3.0.json)",
    )  # fmt: skip
    options.add_json(parser, "all figures")
    return parser


def machine_of(given: argparse.Namespace, case: Case) -> Machine:
    """The stated rates; Unusable if a default is missing."""
    tflops, dense = given.tflops, given.dense_tflops
    if case.dtype != "float32":
        tflops = tflops or TFLOPS.get((case.head_dim, case.block))
        dense = dense or DENSE_TFLOPS.get(case.head_dim)
    for flag, found in (("--tflops", tflops), ("--dense-tflops", dense)):
        if found is None:
            raise options.Unusable(
                f"no rate was measured for head_dim {case.head_dim}, block {case.block} and {case.dtype}; give {flag} FORWARD "
                "BACKWARD"
            )
    return Machine(tuple(tflops), tuple(dense), given.near, given.far, given.ranks_per_host)


def cases_of(given: argparse.Namespace) -> list[tuple[Case, int]]:
    """The cases with their ranks: the preset, or one case."""
    if given.preset is None:
        if hasattr(given, "heads") and not hasattr(given, "kv_heads"):
            given.kv_heads = given.heads
        return [(options.case_of(given, BASE), given.ranks or 8)]
    if options.has_case(given) or given.ranks is not None:
        raise options.Unusable(
            f"--preset {given.preset} has its own cases and ranks; leave the options of a case out"
        )
    return PRESETS[given.preset]


def main(arguments: list[str]) -> int:
    """Exit status 0."""
    parser = build_parser()
    given = parser.parse_args(arguments)
    command = options.command_line(parser.prog, arguments, given.json)
    rows: list[PlanRow] = []
    where = environment("cpu", command)
    where.update(device=COMPUTED, threads=None, cpus=None)
    cases = cases_of(given)
    most = max(ranks for _, ranks in cases)
    if given.sample is not None and given.sample > most:
        raise options.Unusable(
            f"--sample must be at most the number of ranks, {most}, got {given.sample}; leave it out to count all"
        )
    for case, ranks in cases:
        machine = machine_of(given, case)
        try:
            row = make_plan(
                case,
                ranks,
                given.balance,
                machine,
                given.stages,
                given.save_fetched,
                given.layers,
                given.sample,
            )
        except ValueError as error:
            raise options.Unusable(str(error)) from error
        print(("\n" if rows else "") + text(row), flush=True)
        rows.append(row)
        if given.json:
            files.write(given.json, KIND, rows, where)
    return 0
