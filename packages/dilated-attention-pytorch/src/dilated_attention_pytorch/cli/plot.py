"""`plot`: draw a pattern and print the figures of its layout."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..config import PATTERN_TYPES, SparsePatternConfig
from ..patterns import BlockLayout
from .arguments import block_size, int_list, kept_ratio, natural_int, path, positive_int
from .errors import CommandError

FORMATS = (".png", ".svg", ".pdf")
# Of how many layers the coverage is printed.
MOST_LAYERS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `plot`."""
    defaults = SparsePatternConfig()
    parser.add_argument(
        "--pattern-type", choices=PATTERN_TYPES, default=defaults.pattern_type, help="default %(default)s"
    )
    parser.add_argument(
        "--sparsity-ratio",
        type=kept_ratio,
        default=defaults.sparsity_ratio,
        metavar="RATIO",
        help="fraction of the blocks that are kept (default %(default)s)",
    )
    parser.add_argument(
        "--block-size",
        type=block_size,
        default=defaults.block_size,
        metavar="N",
        help="tokens per block side (default %(default)s)",
    )
    parser.add_argument(
        "--window-size", type=positive_int, metavar="N", help="tokens, for local_window and global_local"
    )
    parser.add_argument(
        "--global-tokens",
        type=natural_int,
        default=defaults.global_tokens,
        metavar="N",
        help="tokens that all attend to, for global_local (default %(default)s)",
    )
    parser.add_argument(
        "--dilation-rates",
        type=int_list,
        metavar="R,R,...",
        help="in blocks, for dilated_sparse, such as 1,2,4,8 (default: the powers of two)",
    )
    parser.add_argument(
        "--min-blocks",
        type=positive_int,
        metavar="N",
        help="the least that a row keeps (default: 3 for causal dilated_sparse, else 2)",
    )
    parser.add_argument(
        "--rotation",
        type=natural_int,
        default=defaults.rotation,
        metavar="N",
        help="offsets by which every row of dilated_sparse begins later (default %(default)s)",
    )
    parser.add_argument(
        "--q-len",
        "--seq-len",
        type=positive_int,
        default=4096,
        metavar="N",
        help="queries (default %(default)s)",
    )
    parser.add_argument("--kv-len", type=positive_int, metavar="N", help="keys (default: as many as queries)")
    parser.add_argument("--causal", action="store_true", help="no block of the future")
    parser.add_argument(
        "--hops", action="store_true", help="also print how many layers connect every pair of tokens"
    )
    parser.add_argument(
        "--output",
        type=path,
        default=Path("pattern.png"),
        metavar="FILE",
        help=f"the picture, {', '.join(FORMATS)} (default %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Draw and print; returns the exit status."""
    if args.output.suffix.lower() not in FORMATS:
        raise CommandError(f"--output must end in {', '.join(FORMATS)}, got {str(args.output)!r}")
    if args.hops and args.kv_len not in (None, args.q_len):
        raise CommandError(f"--hops needs as many keys as queries, got {args.q_len} and {args.kv_len}")
    layout = make_layout(args)
    save(layout, args.output)
    print(describe(layout))
    if args.hops:
        print(describe_hops(layout))
    print(f"wrote {args.output}")
    return 0


def make_layout(args: argparse.Namespace) -> BlockLayout:
    """The layout that the options ask for."""
    try:
        config = SparsePatternConfig(
            pattern_type=args.pattern_type,
            block_size=args.block_size,
            sparsity_ratio=args.sparsity_ratio,
            window_size=args.window_size,
            global_tokens=args.global_tokens,
            dilation_rates=args.dilation_rates,
            min_blocks=args.min_blocks,
            rotation=args.rotation,
        )
        return BlockLayout.from_config(config, args.q_len, args.kv_len, causal=args.causal)
    except ValueError as error:
        raise CommandError(str(error)) from None


def save(layout: BlockLayout, file: Path) -> None:
    """Draw the layout into a file."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise CommandError("plot needs matplotlib: pip install matplotlib") from None
    figure = Figure(figsize=(6, 6.3), layout="constrained")
    layout.plot(ax=figure.subplots())
    try:
        figure.savefig(file, dpi=150)
    except OSError as error:
        raise CommandError(f"cannot write {file}: {error.strerror or error}") from None


def describe(layout: BlockLayout) -> str:
    """The figures of a layout, one in a line."""
    stats = layout.stats()
    causal = ", causal" if layout.causal else ""
    asked = "" if stats.asked_density is None else f", asked {stats.asked_density:.3%}"
    figures = {
        "tokens": f"{layout.q_len:,} queries, {layout.kv_len:,} keys, {layout.block_size} a block{causal}",
        "matrix": f"{stats.num_rows:,} rows by {stats.num_cols:,} columns of blocks",
        "blocks": f"{stats.num_active_blocks:,} of {stats.num_available_blocks:,} kept ({stats.density:.3%}{asked})",
        "blocks per row": (
            f"{stats.min_blocks_per_row} to {stats.max_blocks_per_row}, {stats.mean_blocks_per_row:.2f} on average"
            + (f"; {stats.rows_at_floor:,} rows at the floor" if stats.rows_at_floor else "")
        ),
        "reach": f"{stats.reach:,} tokens in one layer",
        "memory": f"{stats.num_bytes:,} bytes",
    }
    return "\n".join(f"{name:<16}{figure}" for name, figure in figures.items())


def layers_to_cover(hops: int | None) -> str:
    """When a stack of layers connects every allowed pair."""
    return "never, however many layers" if hops is None else f"with {hops} layers"


def describe_hops(layout: BlockLayout) -> str:
    """How far information travels through stacked layers."""
    hops = layout.hops_to_full_coverage()
    lines = [f"full coverage   {layers_to_cover(hops)}"]
    for layers in range(1, min(hops or MOST_LAYERS, MOST_LAYERS) + 1):
        name = f"{layers} layer{'s' if layers > 1 else ''}"
        lines.append(f"{name:<16}connect {layout.coverage(layers):.1%} of the block pairs")
    return "\n".join(lines)
