"""Times attention over the tokens of a video beside dense attention: `attention-bench video`.

Peers are `sdpa` and `TileAttention` with windows of 3-D tiles and with the best blocks, for each shape of the tiles. Its
time includes bringing q, k and v into the order of the tiles and back. The peers take turns, call by call.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dilated_attention_pytorch import TileOrder
from dilated_attention_pytorch.cli.arguments import int_list, kept_ratio, natural_int, positive_int
from dilated_attention_pytorch.integrations.tile_attention import TileAttention

from . import files, options, outcome
from .cases import DTYPES
from .collection import Collection
from .counts import counted
from .environment import environment
from .report import milliseconds
from .tables import table
from .turns import times_in_turn, work

KIND = "video"
DENSE = "sdpa"
Triple = tuple[int, int, int]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class VideoCase:
    """An attention call: `grid` are the tokens along (frames, height, width), `text` tokens follow them."""

    grid: Triple
    heads: int
    head_dim: int
    text: int = 0
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", tuple(self.grid))  # a list as read from JSON

    @property
    def tokens(self) -> int:
        frames, height, width = self.grid
        return frames * height * width + self.text

    @property
    def label(self) -> str:
        text = f" and {self.text:,} of text" if self.text else ""
        return f"{by(self.grid)}{text}: {counted(self.tokens, 'token')}, {self.heads} x {self.head_dim}"

    def inputs(self, device: str) -> list[Tensor]:
        """q, k and v, which require gradients, and the gradient of the output."""
        generator = torch.Generator(device).manual_seed(0)
        shape = (1, self.tokens, self.heads, self.head_dim)
        q, k, v, grad = (
            torch.randn(shape, generator=generator, device=device, dtype=DTYPES[self.dtype]) for _ in range(4)
        )
        return [q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), grad]


SHAPES = {
    "wan-480p": VideoCase((21, 30, 52), 12, 128),
    "wan-720p": VideoCase((21, 45, 80), 12, 128),
    "hunyuan-720p": VideoCase((33, 45, 80), 24, 128, text=256),
    "tiny": VideoCase((4, 8, 16), 2, 32, text=16),
}
DEFAULT_SHAPES = {"cuda": ["wan-480p", "wan-720p", "hunyuan-720p"], "cpu": ["tiny"]}
DEFAULT_TILES = [(4, 4, 4), (2, 8, 8)]
DEFAULT_WINDOWS = [(3, 3, 3), (3, 5, 5)]
DEFAULT_DENSITIES = [0.1, 0.05]


@dataclass
class VideoRow:
    """The figures of a peer on a case; None if not measured. Times in ms.

    density: fraction of the blocks kept; of the best blocks, of those of the video.
    """

    peer: str
    case: VideoCase
    dense: bool = False
    density: float | None = None
    forward_ms: float | None = None
    both_ms: float | None = None  # forward and backward
    dense_forward_ms: float | None = None  # of sdpa in the same run
    dense_both_ms: float | None = None
    refused: str | None = None

    @property
    def has_figures(self) -> bool:
        return self.forward_ms is not None


def by(triple: Triple) -> str:
    return "x".join(map(str, triple))


@dataclass(frozen=True)
class Dense:
    name: str = DENSE
    dense: bool = True

    def density(self, case: VideoCase) -> float:
        return 1.0

    def prepare(self, case: VideoCase) -> Attend:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            return scaled_dot_product_attention(q, k, v).transpose(1, 2)

        return attend


@dataclass(frozen=True)
class Tiles:
    """TileAttention with a window, or else with the best blocks."""

    tile: Triple
    window: Triple | None = None
    kept: float | None = None
    dense: bool = False

    @property
    def name(self) -> str:
        what = f"window {by(self.window)}" if self.window else f"best {self.kept:.2%}"
        return f"{what}, tiles {by(self.tile)}"

    def density(self, case: VideoCase) -> float | None:
        if self.window is None:
            return self.kept
        return TileOrder(*case.grid, tile=self.tile).window_layout(self.window, text_tokens=case.text).density

    def prepare(self, case: VideoCase) -> Attend:
        return TileAttention(
            case.grid, tile=self.tile, window=self.window, sparsity_ratio=self.kept, text_first=False
        )


VideoPeer = Dense | Tiles


def peers_of(
    tiles: Sequence[Triple], windows: Sequence[Triple], densities: Sequence[float]
) -> list[VideoPeer]:
    """Dense attention, and every window and density with every shape of the tiles."""
    found: list[VideoPeer] = [Dense()]
    for tile in dict.fromkeys(tiles):
        found += [Tiles(tile, window=window) for window in dict.fromkeys(windows)]
        found += [Tiles(tile, kept=density) for density in dict.fromkeys(densities)]
    return found


def measured(
    case: VideoCase, peers: Sequence[VideoPeer], device: str, rounds: int, with_backward: bool
) -> list[VideoRow]:
    """The rows of a case; dense attention is the first."""
    *inputs, grad = case.inputs(device)
    rows: list[VideoRow] = []
    forwards: list[tuple[VideoRow, Callable[[], object]]] = []
    boths: list[tuple[VideoRow, Callable[[], object]]] = []
    for peer in peers:
        row = VideoRow(peer.name, case, peer.dense)
        rows.append(row)

        def prepare(peer: VideoPeer = peer, row: VideoRow = row) -> None:
            row.density = peer.density(case)
            attend = peer.prepare(case)

            @torch.no_grad()
            def alone() -> Tensor:
                return attend(*inputs)

            def both() -> tuple[Tensor, ...]:
                return torch.autograd.grad(attend(*inputs), inputs, grad)

            alone()
            forwards.append((row, alone))
            if with_backward and work(row, both, "backward: "):
                boths.append((row, both))

        work(row, prepare)
    with outcome.interruptible(rows):
        for (row, _), ms in zip(
            forwards, times_in_turn([call for _, call in forwards], device, rounds), strict=True
        ):
            row.forward_ms, row.dense_forward_ms = ms, ms if row.dense else rows[0].forward_ms
        for (row, _), ms in zip(
            boths, times_in_turn([call for _, call in boths], device, rounds), strict=True
        ):
            row.both_ms, row.dense_both_ms = ms, ms if row.dense else rows[0].both_ms
    return rows


def read_json(path: str) -> tuple[list[VideoRow], dict[str, Any]]:
    return files.read_rows(path, KIND, VideoRow, VideoCase)


HEADINGS = ["case", "attention", "blocks kept", "forward", "forward and backward"]


def time_beside(ms: float | None, dense_ms: float | None) -> str:
    """A time, and how many times as fast as dense attention it is."""
    if ms is None:
        return "-"
    return f"{milliseconds(ms)} ms" + ("" if dense_ms is None else f" ({dense_ms / ms:.2f} x)")


def cells(row: VideoRow) -> list[str]:
    density = "-" if row.density is None else f"{row.density:.2%}"
    if row.forward_ms is None:
        return [row.case.label, row.peer, density, f"none: {row.refused}", "-"]
    forward = time_beside(row.forward_ms, row.dense_forward_ms)
    both = f"none: {row.refused}" if row.refused else time_beside(row.both_ms, row.dense_both_ms)
    return [row.case.label, row.peer, density, forward, both]


def markdown(rows: list[VideoRow], where: dict[str, Any]) -> str:
    """The rows as a Markdown table."""
    return table(HEADINGS, map(cells, rows), where)


def line(row: VideoRow) -> str:
    label, peer, density, forward, both = cells(row)
    return f"{label}: {peer}, {density} kept: forward {forward}, with backward {both}"


# ---- the command


def triple(text: str) -> Triple:
    """Three whole numbers separated by commas, for frames, height and width."""
    try:
        frames, height, width = int_list(text)
    except (ValueError, argparse.ArgumentTypeError):
        message = (
            f"must be three whole numbers of at least 1 separated by commas, such as 4,4,4, got {text!r}"
        )
        raise argparse.ArgumentTypeError(message) from None
    return frames, height, width


def build_parser() -> argparse.ArgumentParser:
    parser = options.make_parser("attention-bench video", __doc__)
    options.add_device(parser)
    options.add_threads(parser)
    default = ", ".join(DEFAULT_SHAPES["cuda"])
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--shapes", nargs="+", choices=SHAPES, metavar="SHAPE",
        help=f"of {', '.join(SHAPES)}; default: {default}, on a CPU tiny",
    )  # fmt: skip
    what.add_argument("--grid", type=triple, help="tokens along frames, height and width, such as 21,30,52")
    parser.add_argument("--heads", type=positive_int, help="with --grid (default 12)")
    parser.add_argument("--head-dim", type=positive_int, help="with --grid (default 128)")
    parser.add_argument("--text", type=natural_int, help="with --grid: tokens of text behind (default 0)")
    parser.add_argument(
        "--tiles", nargs="+", type=triple, default=DEFAULT_TILES, metavar="TILE",
        help="tokens of a tile along the three axes (default 4,4,4 2,8,8)",
    )  # fmt: skip
    parser.add_argument(
        "--windows", nargs="*", type=triple, default=DEFAULT_WINDOWS, metavar="WINDOW",
        help="tiles that a tile sees along the three axes (default 3,3,3 3,5,5)",
    )  # fmt: skip
    parser.add_argument(
        "--densities", nargs="*", type=kept_ratio, default=DEFAULT_DENSITIES, metavar="DENSITY",
        help="fractions of the blocks of the video, of which the best are kept (default 0.1 0.05)",
    )  # fmt: skip
    parser.add_argument("--forward-only", action="store_true")
    parser.add_argument(
        "--rounds", type=positive_int, default=10,
        help="calls of every peer, of which the median is taken (default 10)",
    )  # fmt: skip
    options.add_json(parser, "all figures with device, versions and date")
    return parser


def cases_of(given: argparse.Namespace, device: str) -> list[VideoCase]:
    """The named shapes or the grid; float32 on a CPU."""
    sizes = {name: getattr(given, name) for name in ("heads", "head_dim", "text")}
    sizes = {name: size for name, size in sizes.items() if size is not None}
    if given.grid:
        cases = [VideoCase(given.grid, **{"heads": 12, "head_dim": 128, **sizes})]
    elif sizes:
        flag = next(iter(sizes)).replace("_", "-")
        raise options.Unusable(f"--{flag} needs --grid: a shape of --shapes has its own")
    else:
        cases = [SHAPES[name] for name in dict.fromkeys(given.shapes or DEFAULT_SHAPES[device])]
    return cases if device == "cuda" else [replace(case, dtype="float32") for case in cases]


def main(arguments: list[str]) -> int:
    """Exit status 0; 1 if a peer has no figures; 130 if interrupted, with the figures so far saved."""
    parser = build_parser()
    given = parser.parse_args(arguments)
    device = options.device_of(given)
    options.set_threads(given)
    cases = cases_of(given, device)
    peers = peers_of(given.tiles, given.windows, given.densities)
    command = options.command_line(parser.prog, arguments, given.json)
    found = Collection(parser.prog, KIND, line, given.json, device, environment(device, command))
    return found.collect(
        cases, lambda case: measured(case, peers, device, given.rounds, not given.forward_only)
    )
