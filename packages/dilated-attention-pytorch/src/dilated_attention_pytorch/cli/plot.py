"""`plot`: draw a pattern and print the statistics of its layout."""

from __future__ import annotations

import argparse
import io
import warnings
from pathlib import Path

from ..config import PATTERN_TYPES, TAKEN_BY, SparsePatternConfig, or_, takes
from ..config_warnings import SparsityRatioWarning
from ..layout import BlockLayout
from ..layout.plot import bin_size
from .arguments import block_size, did_you_mean, int_list, kept_ratio, natural_int, path, positive_int
from .errors import CommandError
from .files import check_file, write_whole

FORMATS = (".png", ".svg", ".pdf")
# Limit on blocks, rows and columns, each: about 10 s and 1.5 GB on one CPU core.
MAX_BLOCKS = 2**23
# Limit on rows times blocks with --hops, the cost of one layer: about 10 s on one CPU core.
MAX_HOPS_WORK = 2**30
MAX_LAYERS = 8  # for which the coverage is printed


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
        help="fraction of the blocks kept (default %(default)s)",
    )
    parser.add_argument(
        "--block-size",
        type=block_size,
        default=defaults.block_size,
        metavar="N",
        help="tokens per block side (default %(default)s)",
    )
    parser.add_argument(
        "--window-size",
        type=positive_int,
        metavar="N",
        help="width of the window in tokens, for local_window and global_local",
    )
    parser.add_argument(
        "--exact",
        action="store_true",
        help="the window of local_window is exact to the token, not rounded up to blocks",
    )
    parser.add_argument(
        "--global-tokens",
        type=natural_int,
        default=defaults.global_tokens,
        metavar="N",
        help="number of global tokens, for global_local (default %(default)s)",
    )
    parser.add_argument(
        "--dilation-rates",
        type=int_list,
        metavar="R,R,...",
        help="distances in blocks, for dilated_sparse, such as 1,2,4,8 (default: the powers of two)",
    )
    parser.add_argument(
        "--min-blocks",
        type=positive_int,
        metavar="N",
        help="the fewest blocks a row keeps (default: 3 for causal dilated_sparse, otherwise 2)",
    )
    parser.add_argument(
        "--rotation",
        type=natural_int,
        default=defaults.rotation,
        metavar="N",
        help="places by which every row of dilated_sparse starts later in its offsets (default %(default)s)",
    )
    parser.add_argument(
        "--q-len",
        "--seq-len",
        type=positive_int,
        default=4096,
        metavar="N",
        help="number of queries (default %(default)s)",
    )
    parser.add_argument(
        "--kv-len", type=positive_int, metavar="N", help="number of keys (default: the number of queries)"
    )
    parser.add_argument("--causal", action="store_true", help="keep no blocks in the future")
    parser.add_argument(
        "--hops", action="store_true", help="also print how many layers connect every pair of tokens"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=path,
        default=Path("pattern.png"),
        metavar="FILE",
        help=f"image file, {', '.join(FORMATS)} (default %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Draw the pattern and print its statistics; returns the exit status."""
    check_output(args.output)
    if args.hops and args.kv_len not in (None, args.q_len):
        raise CommandError(
            f"--hops needs as many keys as queries, got {args.q_len} queries and {args.kv_len} keys; "
            "leave --kv-len or --hops out"
        )
    config = make_config(args)
    check_size(config, args.q_len, args.kv_len or args.q_len, args.causal, args.hops)
    layout = make_layout(config, args)
    save(layout, args.output)
    print(describe(layout))
    if args.hops:
        print(describe_hops(layout))
    print(f"wrote {args.output}{describe_bins(layout)}")
    return 0


def check_output(file: Path) -> None:
    """Raise CommandError unless the image file can be written."""
    suffix = file.suffix.lower()
    if suffix not in FORMATS:
        near = did_you_mean(suffix, FORMATS) if suffix else ""
        raise CommandError(f"--output must end in {', '.join(FORMATS)}, got {str(file)!r}{near}")
    try:
        check_file(file)
    except OSError as error:
        raise CommandError(f"cannot write {file}: {error.strerror or error}") from None


def n_blocks(tokens: int, block_size: int) -> int:
    """The number of blocks that hold this many tokens."""
    return -(-tokens // block_size)


def expected_blocks(config: SparsePatternConfig, q_len: int, kv_len: int, causal: bool) -> int:
    """Approximate number of blocks of a layout, computed from the config without building the layout."""
    size = config.block_size
    n_rows, n_cols = n_blocks(q_len, size), n_blocks(kv_len, size)
    available = n_rows * n_cols - (n_rows * (n_rows - 1) // 2 if causal else 0)
    n_global = 0
    if takes(config.pattern_type, "global_tokens"):
        n_global = min(max(n_blocks(config.global_tokens, size), 1), n_rows, n_cols)
    of_global = n_global * (n_rows + n_cols)
    if config.window_size is None:
        least = n_rows * min(config.least_blocks(causal), n_cols) + of_global
        return min(available, max(int(config.sparsity_ratio * available), least))
    near = n_blocks(config.window_size, size) if causal else 2 * n_blocks(config.window_size, 2 * size)
    return min(available, n_rows * min(near + 1, n_cols) + of_global)


def check_size(config: SparsePatternConfig, q_len: int, kv_len: int, causal: bool, hops: bool) -> None:
    """Raise CommandError if the layout or the hops would take minutes or gigabytes."""
    n_rows, n_cols = n_blocks(q_len, config.block_size), n_blocks(kv_len, config.block_size)
    kept = expected_blocks(config, q_len, kv_len, causal)
    matrix = f"{n_rows:,} rows by {n_cols:,} columns of blocks, of which about {kept:,} are kept"
    fix = "use a smaller --seq-len, --sparsity-ratio or window, or a larger --block-size"
    if max(kept, n_rows, n_cols) > MAX_BLOCKS:
        raise CommandError(f"{matrix}: plot draws at most {MAX_BLOCKS:,} of each; {fix}")
    if hops and n_rows * kept > MAX_HOPS_WORK:
        raise CommandError(
            f"{matrix}: --hops works up to {MAX_HOPS_WORK:,} rows times blocks, got {n_rows * kept:,}; "
            f"leave --hops out, or {fix}"
        )


def make_config(args: argparse.Namespace) -> SparsePatternConfig:
    """The pattern given by the options."""
    for field, patterns in TAKEN_BY.items():
        given = getattr(args, field)
        if args.pattern_type not in patterns and given:
            raise CommandError(
                f"{field} does not apply to pattern_type={args.pattern_type!r}, got {given}; "
                f"use {or_(patterns)}, or leave it out"
            )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SparsityRatioWarning)  # --help says what the ratio is
            return SparsePatternConfig(
                pattern_type=args.pattern_type,
                block_size=args.block_size,
                sparsity_ratio=args.sparsity_ratio,
                window_size=args.window_size,
                global_tokens=args.global_tokens,
                dilation_rates=args.dilation_rates,
                min_blocks=args.min_blocks,
                rotation=args.rotation,
                exact=args.exact,
            )
    except ValueError as error:
        raise CommandError(str(error)) from None


def make_layout(config: SparsePatternConfig, args: argparse.Namespace) -> BlockLayout:
    """The layout given by the options."""
    try:
        return BlockLayout.from_config(config, args.q_len, args.kv_len, causal=args.causal)
    except ValueError as error:
        raise CommandError(str(error)) from None


def save(layout: BlockLayout, file: Path) -> None:
    """Draw the layout to an image file."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise CommandError("plot needs matplotlib: pip install matplotlib") from None
    figure = Figure(figsize=(6, 6.3), layout="constrained")
    layout.plot(ax=figure.subplots())
    picture = io.BytesIO()
    figure.savefig(picture, format=file.suffix[1:].lower(), dpi=150)
    try:
        write_whole(file, picture.getvalue())
    except OSError as error:
        raise CommandError(f"cannot write {file}: {error.strerror or error}") from None


def describe_bins(layout: BlockLayout) -> str:
    """How many blocks share a pixel; empty if none do."""
    size = bin_size(layout.grid)
    return "" if size == 1 else f"; one pixel shows {size} x {size} blocks, darker where more are kept"


def describe(layout: BlockLayout) -> str:
    """The statistics of a layout, one per line."""
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
        "pairs": f"{stats.num_pairs:,} of tokens ({stats.element_density:.3%})"
        + (f", {stats.num_masks} masks inside blocks" if stats.num_masks else ""),
        "reach": f"{stats.reach:,} tokens in one layer",
        "memory": f"{stats.num_bytes:,} bytes",
    }
    return "\n".join(f"{name:<16}{figure}" for name, figure in figures.items())


def layers_to_cover(hops: int | None) -> str:
    """The number of layers after which every allowed pair of blocks is connected."""
    return "never, however many layers" if hops is None else f"with {hops} layers"


def describe_hops(layout: BlockLayout) -> str:
    """How far information travels through a stack of layers."""
    hops = layout.hops_to_full_coverage()
    lines = [f"full coverage   {layers_to_cover(hops)}"]
    for layers in range(1, min(hops or MAX_LAYERS, MAX_LAYERS) + 1):
        name = f"{layers} layer{'s' if layers > 1 else ''}"
        connects = "connects" if layers == 1 else "connect"
        lines.append(f"{name:<16}{connects} {layout.coverage(layers):.1%} of the block pairs")
    return "\n".join(lines)
