"""Times attention of one sequence over several GPUs: `attention-bench scaling`.

Start it with torchrun, one process per GPU, or by itself: it then starts a process per GPU. Every peer is first compared
with one GPU. Then they take turns, call by call; the time of a call is that of the slowest rank. Peers are
`distributed_block_sparse_attention` with and without overlap, the same kernel after an all-gather of all keys and values, one
GPU with all tokens and with the tokens of one rank, and dense ring attention of torch, up to a stated length.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dilated_attention_pytorch.cli.arguments import block_size, kept_ratio, positive_int

from . import options, ranks
from .cases import DTYPES, Case
from .collection import Collection
from .environment import environment
from .large import TOLERANCE
from .measure import free, one_line
from .ranks import Ranks
from .scaling_peers import ALONE_PEERS, PEERS, Place, Prepared, ScalingPeer, dense_attention, one_gpu
from .scaling_rows import ALONE, CHECK, KIND, RING, SHARE, TIMES, WHOLE, ScalingRow, compare, line, markdown

BASE = {
    "cuda": Case(131072, 32, 128, 128, 0.01, kv_heads=8, causal=True, pattern_rates=None),
    "cpu": Case(2048, 4, 32, 32, 0.1, kv_heads=2, causal=True, pattern_rates=None, dtype="float32"),
}
TOKENS = {"cuda": [131072, 262144, 524288, 1048576, 2097152, 4194304], "cpu": [2048]}
DENSITIES = {"cuda": [0.01, 0.001], "cpu": [0.1]}
FIRST = 1048576  # tokens per GPU of the case that is measured first
CHECKED_TOKENS = 16384
ALONE_CASES = ((131072, 0.01), (16384, 0.1))  # tokens and density on one rank
RING_UP_TO = 262144
SECONDS_PER_TURNS = 15.0  # for all rounds of a case and direction; at least LEAST_ROUNDS
LEAST_ROUNDS = 3
# FLOP/s of a GPU by which the time of a case is estimated before it begins, below what any measured one reached
ASSUMED_RATE = {"cuda": 4e14, "cpu": 1e9}


class Refused(Exception):
    """A peer cannot be measured; the message says why. Alike on every rank."""


@dataclass(frozen=True)
class Point:
    """What is measured together: the peers of a case on the first `n_ranks` ranks."""

    case: Case
    n_ranks: int
    part: str = TIMES

    def peers(self, chosen: Sequence[ScalingPeer], ring_up_to: int) -> list[ScalingPeer]:
        if self.part == CHECK:
            return [peer for peer in chosen if not peer.on_one]
        if self.part == ALONE:
            return ALONE_PEERS
        return [peer for peer in chosen if peer.name != RING or self.case.seqlen <= ring_up_to]

    def seconds(self, peers: Sequence[ScalingPeer], device: str) -> float:
        """About the least time that the point takes: two forwards and two times both directions."""
        pairs = self.case.dense_pairs()
        flops = 0.0
        for peer in peers:
            n_gpus = {WHOLE: 1, SHARE: self.n_ranks**2}.get(peer.name, self.n_ranks)
            density = 1 if peer.dense else self.case.density
            flops += 2 * (1 + 3.5) * self.case.flops(int(density * pairs / n_gpus))
        return flops / ASSUMED_RATE[device]


class Inputs:
    """q, k, v and the gradient of the output of the longest call, made once; other calls take the first of their tokens."""

    def __init__(self, case: Case, tokens: int, device: str, seed: int) -> None:
        self.tokens = tokens
        generator = torch.Generator(device).manual_seed(seed)

        def random(heads: int) -> Tensor:
            shape = (1, tokens, heads, case.head_dim)
            return torch.randn(shape, generator=generator, device=device, dtype=DTYPES[case.dtype])

        self.whole = (
            random(case.heads),
            random(case.num_kv_heads),
            random(case.num_kv_heads),
            random(case.heads),
        )

    def first(self, tokens: int) -> tuple[list[Tensor], Tensor]:
        """q, k and v, which require gradients, and the gradient of the output."""
        if tokens > self.tokens:
            raise ValueError(f"inputs of {self.tokens:,} tokens are held, {tokens:,} are needed")
        *inputs, grad = (x[:, :tokens] for x in self.whole)
        return [x.detach().requires_grad_() for x in inputs], grad


def needed_bytes(case: Case, inputs: int, own: int, held: int, with_backward: bool) -> int:
    """Memory of a call of `own` queries that holds `held` tokens of keys besides its inputs, of `inputs` tokens."""
    item = DTYPES[case.dtype].itemsize
    of_query = case.heads * case.head_dim * item
    of_key = 2 * case.num_kv_heads * case.head_dim * item
    needed = inputs * (2 * of_query + of_key) + own * (of_query + 4 * case.heads) + held * of_key
    if with_backward:
        needed += own * (of_query + of_key + 4 * case.heads) + held * of_key
    else:
        needed += own * of_query  # the output that others are compared with
    return needed


def free_bytes(device: str) -> float:
    """Memory of the device that calls may take, 0.97 of it without what is written between calls; no limit on a CPU."""
    if device != "cuda":
        return math.inf
    return 0.97 * torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory - 2**30


def relative_error(found: Tensor, expected: Tensor) -> list[float]:
    """The squared norms of the difference and of `expected`, (1, tokens, heads, head_dim), in pieces."""
    of_difference = of_expected = 0.0
    for mine, theirs in zip(found.split(16384, 1), expected.split(16384, 1), strict=True):
        of_difference += float((mine.float() - theirs.float()).square().sum())
        of_expected += float(theirs.float().square().sum())
    return [of_difference, of_expected]


class Measurement:
    """Measures points on all ranks; every method is called by every rank in the same order."""

    def __init__(
        self, these: Ranks, given: argparse.Namespace, peers: Sequence[ScalingPeer], inputs: Inputs | None
    ) -> None:
        self.ranks, self.given, self.inputs = these, given, inputs
        self.peers = list(peers)
        self.device = these.device
        self.begin = time.monotonic()

    def left(self) -> float:
        """Seconds of the budget that are left, as the first rank sees it."""
        budget = math.inf if self.given.budget is None else self.given.budget
        seconds: float = self.ranks.shared(budget - (time.monotonic() - self.begin))
        return seconds

    def attempt(self, call: Callable[[], Any] | None) -> Any:
        """The result of a call, None on a rank that takes no part; Refused on every rank if it fails on one."""
        result, error = None, None
        try:
            if call is not None:
                result = call()
            if self.device == "cuda":
                torch.cuda.synchronize()
        except Exception as failed:  # a peer that fails is a row of the table, not the end of the run
            error = one_line(failed)
        reason = self.ranks.failures(error)
        if reason is not None:
            del result
            free(self.device)
            raise Refused(reason)
        return result

    def points(self, points: Sequence[Point]) -> Iterator[Point]:
        """Those for which there is time left."""
        for point in points:
            needed = point.seconds(point.peers(self.peers, self.given.ring_up_to), self.device)
            if self.left() > needed:
                yield point
            elif self.ranks.is_first:
                print(
                    f"{point.case.label}: left out, the budget of {self.given.budget:g} s is used up",
                    flush=True,
                )

    def measured(self, point: Point) -> list[ScalingRow]:
        """The rows of a point."""
        free(self.device)
        peers = point.peers(self.peers, self.given.ring_up_to)
        rows = [ScalingRow(peer.name, point.case, point.n_ranks, point.part) for peer in peers]
        group = self.ranks.group(point.n_ranks)
        with ExitStack() as stack:
            try:
                layout = self.attempt(None if group is None else lambda: point.case.layout(self.device))
            except Refused as why:
                for row in rows:
                    row.refused = str(why)
                return rows
            place = None if group is None else Place(point.case, layout, group, self.device, stack)
            if point.part == CHECK:
                self.check(rows, peers, place, point)
            else:
                self.time(rows, peers, place)
        return rows

    def prepared(
        self, row: ScalingRow, peer: ScalingPeer, place: Place | None, with_backward: bool
    ) -> Prepared | None:
        """What a peer prepares; None on a rank that takes no part. Refused if it does not fit the memory."""
        takes_part = place is not None and (self.ranks.is_first or not peer.on_one)

        def prepare() -> Prepared:
            assert place is not None
            case, inputs = place.case, 0 if self.inputs is None else self.inputs.tokens
            if peer.name == WHOLE and case.seqlen > inputs:  # on the first rank alone
                raise MemoryError("forward and backward do not fit the memory of one GPU")
            made = peer.prepare(place)
            needed = needed_bytes(case, inputs, made.tokens, made.held, with_backward)
            if needed > free_bytes(self.device):
                raise MemoryError(f"needs about {needed / 2**30:,.0f} GiB")
            return made

        made: Prepared | None = self.attempt(prepare if takes_part else None)
        others = row.case.seqlen - row.case.seqlen // row.ranks
        active, fetched = self.ranks.most([made.active_blocks or 0, made.fetched] if made else [0, 0])
        row.note = self.ranks.shared(None if made is None else made.note)
        row.active_blocks = None if peer.dense else int(active)
        row.moved = fetched / others if others and fetched else None
        return made

    # ---- correctness

    def check(
        self, rows: list[ScalingRow], peers: Sequence[ScalingPeer], place: Place | None, point: Point
    ) -> None:
        """Compare outputs and gradients of all peers with one GPU, on the same inputs; those that are wrong are not timed."""
        inputs, grad = Inputs(point.case, point.case.seqlen, self.device, 0).first(point.case.seqlen)
        wanted = {}  # made before a peer changes what attention of torch is
        for dense in sorted({peer.dense for peer in peers}):
            wanted[dense] = self.attempt(None if place is None else on_one_gpu(place, dense, inputs, grad))
        for row, peer in zip(rows, peers, strict=True):
            try:
                made = self.prepared(row, peer, place, with_backward=True)
                found = self.attempt(None if made is None else on_rank(made, inputs, grad))
            except Refused as why:
                row.refused = str(why)
                continue
            row.error = self.largest_error(made, found, wanted[peer.dense])
            limit = TOLERANCE[point.case.dtype]
            if not peer.dense and not row.error <= limit:  # NaN too
                row.refused = f"is off by {row.error:.1e} from one GPU; limit {limit:.0e}"
                row.error = None
        wrong = {row.peer for row in rows if row.refused is not None}
        self.peers = [peer for peer in self.peers if peer.name not in wrong]

    def largest_error(
        self, made: Prepared | None, found: list[Tensor] | None, expected: list[Tensor] | None
    ) -> float:
        """Of the output and the gradients, over all ranks."""
        squares = [0.0] * 8
        if made is not None and found is not None and expected is not None:
            squares = []
            for mine, whole in zip(found, expected, strict=True):
                squares += relative_error(mine, whole[:, made.positions])
        totals = self.ranks.total(squares)
        errors = [
            math.sqrt(difference / of) for difference, of in zip(totals[::2], totals[1::2], strict=True)
        ]
        return math.nan if any(map(math.isnan, errors)) else max(errors)

    # ---- times

    def time(self, rows: list[ScalingRow], peers: Sequence[ScalingPeer], place: Place | None) -> None:
        """Measure the times of all peers, forward and then both directions."""
        forwards: list[tuple[ScalingRow, Callable[[], object] | None]] = []
        boths: list[tuple[ScalingRow, Callable[[], object] | None]] = []
        expected: Tensor | None = None
        for row, peer in zip(rows, peers, strict=True):
            try:
                made = self.prepared(row, peer, place, with_backward=False)
                forward, both = (None, None) if made is None else self.calls(made)
                out = self.attempt(forward)
                if not peer.dense and not peer.on_one:
                    expected = self.compare_outputs(row, out, expected)
                del out
            except Refused as why:
                row.refused = str(why)
                continue
            if peer.forward:
                forwards.append((row, forward))
            if not self.given.forward_only:
                boths.append((row, both))
        del expected
        self.in_turn("forward", forwards)
        ready = []
        free(self.device)
        for row, both in boths:
            try:
                self.attempt(both)
                ready.append((row, both))
            except Refused as why:  # the figures of the forward remain valid
                row.refused = f"backward: {why}"
        self.in_turn("both", ready)
        compare(rows)

    def calls(self, made: Prepared) -> tuple[Callable[[], Tensor], Callable[[], object]]:
        """The forward, and forward and backward."""
        assert self.inputs is not None
        inputs, grad = self.inputs.first(made.tokens)

        @torch.no_grad()
        def forward() -> Tensor:
            return made.attend(*inputs)

        def both() -> tuple[Tensor, ...]:
            return torch.autograd.grad(made.attend(*inputs), inputs, grad)

        return forward, both

    def compare_outputs(self, row: ScalingRow, out: Tensor | None, expected: Tensor | None) -> Tensor | None:
        """Set the error of an output, relative to the first; returns the first."""
        is_first = self.ranks.total([expected is not None])[0] == 0
        if is_first:
            return out
        squares = [0.0, 0.0] if out is None or expected is None else relative_error(out, expected)
        difference, of = self.ranks.total(squares)
        row.error = math.sqrt(difference / of)
        return expected

    def in_turn(
        self, direction: str, calls: Sequence[tuple[ScalingRow, Callable[[], object] | None]]
    ) -> None:
        """Set the median times, of the slowest rank, and the peak memory."""
        if not calls:
            return
        times: list[list[float]] = [[] for _ in calls]
        peaks = [0.0] * len(calls)
        n_rounds, i_round = 1, 0
        while i_round < n_rounds:
            in_order = list(enumerate(calls))
            for i, (_, call) in in_order[::-1] if i_round % 2 else in_order:
                if self.device == "cuda" and i_round == 0:
                    before = torch.cuda.memory_allocated()
                    torch.cuda.reset_peak_memory_stats()
                times[i].append(self.ranks.call_ms(call))
                if self.device == "cuda" and i_round == 0:
                    peaks[i] = float(torch.cuda.max_memory_allocated() - before)
            if i_round == 0:
                n_rounds = self.rounds(sum(self.ranks.most([each[0] for each in times])) / 1000)
            i_round += 1
        slowest = [self.ranks.most(of_call) for of_call in times]
        for (row, _), of_call, peak in zip(calls, slowest, self.ranks.most(peaks), strict=True):
            setattr(row, f"{direction}_ms", statistics.median(of_call))
            setattr(row, f"{direction}_rounds", n_rounds)
            if self.device == "cuda":
                row.peak_bytes = int(peak)

    def rounds(self, seconds: float) -> int:
        """How many rounds fit, where one takes so many seconds; alike on every rank."""
        wanted: int = self.given.rounds
        fit = max(LEAST_ROUNDS, int(SECONDS_PER_TURNS / seconds))
        left = max(1.0, self.left() / seconds)
        return int(min(wanted, fit, left))


def on_one_gpu(place: Place, dense: bool, inputs: list[Tensor], grad: Tensor) -> Callable[[], list[Tensor]]:
    """Output and gradients of all tokens, on this GPU alone."""
    attend = dense_attention(place) if dense else one_gpu(share=False)(place).attend

    def call() -> list[Tensor]:
        out = attend(*inputs)
        return [out.detach(), *torch.autograd.grad(out, inputs, grad)]

    return call


def on_rank(made: Prepared, inputs: list[Tensor], grad: Tensor) -> Callable[[], list[Tensor]]:
    """Output and gradients of the tokens of this rank."""

    def call() -> list[Tensor]:
        mine = [x.detach()[:, made.positions].requires_grad_() for x in inputs]
        out = made.attend(*mine)
        return [out.detach(), *torch.autograd.grad(out, mine, grad[:, made.positions])]

    return call


def received_gbps(these: Ranks) -> float | None:
    """GB/s that a GPU receives while all send to all, None on a CPU or with one rank; measured once, for the record."""
    if these.device != "cuda" or these.size == 1:
        return None
    n_each = 2**29 // these.size
    sent = torch.zeros(these.size * n_each, dtype=torch.bfloat16, device="cuda")
    received = torch.empty_like(sent)
    times = [these.call_ms(lambda: dist.all_to_all_single(received, sent)) for _ in range(5)]
    ms = statistics.median(these.most(times[1:]))
    return (these.size - 1) * n_each * 2 / ms / 1e6


# ---- the command


def build_parser() -> argparse.ArgumentParser:
    parser = options.make_parser("attention-bench scaling", __doc__)
    options.add_device(parser)
    base = BASE["cuda"]
    parser.add_argument(
        "--processes", type=positive_int,
        help="where it was not started with torchrun (default: the GPUs; 2 on a CPU)",
    )  # fmt: skip
    parser.add_argument(
        "--gpus", nargs="+", type=positive_int, metavar="N",
        help="numbers of GPUs to measure (default: the powers of two from 2, and all)",
    )  # fmt: skip
    parser.add_argument(
        "--tokens", nargs="+", type=positive_int, metavar="N",
        help="tokens of all GPUs together (default: 131072 to 4194304; 2048 on a CPU)",
    )  # fmt: skip
    parser.add_argument(
        "--densities", nargs="+", type=kept_ratio, metavar="DENSITY",
        help="fractions of the blocks (default 0.01 0.001; 0.1 on a CPU)",
    )  # fmt: skip
    for flag in ("--heads", "--kv-heads", "--head-dim"):
        default = base.num_kv_heads if flag == "--kv-heads" else getattr(base, flag[2:].replace("-", "_"))
        parser.add_argument(flag, type=positive_int, help=f"default {default} on a GPU")
    parser.add_argument(
        "--block", type=block_size, help=f"tokens per block side (default {base.block} on a GPU)"
    )
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--not-causal", action="store_true")
    parser.add_argument(
        "--peers", nargs="+", choices=PEERS, metavar="PEER", help=f"of {', '.join(PEERS)} (default: all)"
    )
    parser.add_argument(
        "--ring-up-to", type=positive_int, default=RING_UP_TO, metavar="TOKENS",
        help=f"the longest sequence of dense ring attention (default {RING_UP_TO})",
    )  # fmt: skip
    parser.add_argument(
        "--checks-only", action="store_true", help="compare with one GPU and measure no times"
    )
    parser.add_argument("--forward-only", action="store_true")
    parser.add_argument(
        "--rounds", type=positive_int, default=15,
        help=f"calls of every peer, of which the median is taken (default 15; down to {LEAST_ROUNDS} where they are long)",
    )  # fmt: skip
    parser.add_argument(
        "--budget", type=positive_int, metavar="SECONDS",
        help="leave out what would end later than so many seconds after the ranks have met",
    )  # fmt: skip
    options.add_json(parser, "all figures with device, versions and date, after every case")
    return parser


def base_case(given: argparse.Namespace, device: str) -> Case:
    """The case whose tokens and density vary."""
    names = ("heads", "kv_heads", "head_dim", "block", "dtype")
    sizes = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    if "heads" in sizes:
        sizes.setdefault("kv_heads", sizes["heads"])
    try:
        return replace(BASE[device], causal=not given.not_causal, **sizes)
    except ValueError as error:
        raise options.Unusable(str(error)) from error


def checked_tokens(given: argparse.Namespace, device: str, block: int, sizes: Sequence[int]) -> list[int]:
    """The lengths, each with as many whole blocks for every rank."""
    tokens = list(dict.fromkeys(given.tokens or TOKENS[device]))
    multiple = block * math.lcm(*sizes)
    wrong = [each for each in tokens if each % multiple]
    if wrong:
        raise options.Unusable(
            f"--tokens must be multiples of {multiple}, whole blocks of {block} for every rank, got {wrong[0]}"
        )
    return tokens


def group_sizes(given: argparse.Namespace, n_ranks: int) -> list[int]:
    """The numbers of GPUs to measure, the largest first; none where there is one."""
    sizes = given.gpus or [2**i for i in range(1, n_ranks.bit_length()) if 2**i <= n_ranks] + [n_ranks]
    found = sorted(set(sizes) - {1}, reverse=True)
    if found and found[0] > n_ranks:
        raise options.Unusable(f"--gpus must be at most {n_ranks}, the number of processes, got {found[0]}")
    return found


def points_of(
    base: Case, tokens: Sequence[int], densities: Sequence[float], sizes: Sequence[int]
) -> list[Point]:
    """What is measured, the most important first: one rank, then FIRST tokens per GPU, then by length."""
    on_gpu = base.dtype != "float32"
    alone = [(n, density) for n, density in ALONE_CASES if on_gpu] or [(min(tokens), densities[0])]
    points = [Point(replace(base, seqlen=n, density=density), 1, ALONE) for n, density in alone]
    for n_ranks in sizes:
        in_order = sorted(tokens, key=lambda n: (n != FIRST * n_ranks, n))
        for n in in_order:
            points += [Point(replace(base, seqlen=n, density=density), n_ranks) for density in densities]
    return points


def held_tokens(points: Sequence[Point], device: str) -> int:
    """Tokens of the inputs: the most that a rank has, and of one GPU with all tokens what fits beside its results."""
    of_ranks = max(-(-point.case.seqlen // point.n_ranks) for point in points)
    of_one = [
        point.case.seqlen
        for point in points
        if needed_bytes(point.case, point.case.seqlen, point.case.seqlen, 0, True) <= free_bytes(device)
    ]
    return max([of_ranks, *of_one])


def plan_of(given: argparse.Namespace, device: str, n_ranks: int) -> tuple[Point, list[Point]]:
    """What is checked, and what is timed after it."""
    base, sizes = base_case(given, device), group_sizes(given, n_ranks)
    tokens = checked_tokens(given, device, base.block, sizes or [1])
    densities = list(dict.fromkeys(given.densities or DENSITIES[device]))
    check = Point(replace(base, seqlen=min(CHECKED_TOKENS, *tokens), density=0.1), n_ranks, CHECK)
    return check, [] if given.checks_only else points_of(base, tokens, densities, sizes)


def main(arguments: list[str]) -> int:
    """Exit status 0; 1 if a peer has no figures or is wrong; 130 if interrupted."""
    given = build_parser().parse_args(arguments)
    device = options.device_of(given)
    default = torch.cuda.device_count() if device == "cuda" else 2
    n_processes = given.processes or default
    if device == "cuda" and n_processes > default:
        raise options.Unusable(
            f"--processes must be at most {default}, the number of GPUs, got {n_processes}"
        )
    plan_of(given, device, ranks.number_of(n_processes))  # says at once what is wrong, not on every rank
    return ranks.start(on_rank_of_command, arguments, device, n_processes)


def on_rank_of_command(these: Ranks, arguments: list[str]) -> int:
    """The command in the process of one rank; the first prints and writes."""
    parser = build_parser()
    given = parser.parse_args(arguments)
    device = these.device
    check, points = plan_of(given, device, these.size)
    peers = [PEERS[name] for name in given.peers or PEERS if device == "cuda" or name != RING]
    where = environment(device, options.command_line(parser.prog, arguments, given.json))
    if device == "cuda":
        where["device"] = f"{these.size} x {where['device']}"
        where["versions"]["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    where["ranks"], where["received_gbps"] = these.size, received_gbps(these)
    measurement = Measurement(these, given, peers, None)
    found = Collection(parser.prog, KIND, line, given.json if these.is_first else None, device, where)

    def cases() -> Iterator[Point]:
        yield check
        if points:
            measurement.inputs = Inputs(check.case, held_tokens(points, device), device, these.rank)
            yield from measurement.points(points)

    if not these.is_first:
        for point in cases():
            measurement.measured(point)
        return 0
    status = found.collect(cases(), measurement.measured)
    wrong = any(row.refused is not None for row in found.rows if row.part == CHECK)
    print(f"\n{markdown(found.rows, where)}", flush=True)
    return max(status, int(wrong))
