"""The options of `demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..backends.registry import BACKEND_NAMES
from ..cli.arguments import block_size, kept_ratio, natural_int, path, positive_int, thread_count
from .model import MODEL_FILE

# Defaults of the options; a GPU has time for larger ones.
CPU_DEFAULTS = {
    "context": 1024,
    "batch_size": 1,
    "steps": 500,
    "layers": 4,
    "dim": 32,
    "heads": 2,
    "block_size": 16,
    "min_blocks": 6,
}
CUDA_DEFAULTS = {
    "context": 16_384,
    "batch_size": 4,
    "steps": 800,
    "layers": 8,
    "dim": 128,
    "heads": 2,
    "block_size": 64,
    "min_blocks": 6,
}
SAMPLE_BYTES = 120


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `demo`."""

    def sized(flag: str, what: str, kind: object = positive_int) -> None:
        name = flag[2:].replace("-", "_")
        cpu, cuda = CPU_DEFAULTS[name], CUDA_DEFAULTS[name]
        default = f"default {cpu:,}" + (f"; on a GPU {cuda:,}" if cuda != cpu else "")
        parser.add_argument(flag, type=kind, metavar="N", help=f"{what} ({default})")  # type: ignore[arg-type]

    parser.add_argument(
        "files",
        nargs="*",
        type=path,
        metavar="FILE",
        help="text to train on; its last tenth is held out (default: the .py files of the standard library)",
    )
    sized("--context", "context length in tokens")
    sized("--block-size", "tokens per block side", block_size)
    sized("--min-blocks", "fewest blocks per row of dilated_sparse and of the local window")
    parser.add_argument(
        "--sparsity-ratio",
        type=kept_ratio,
        default=0.01,
        metavar="RATIO",
        help="fraction of the blocks that both keep, if that is more than --min-blocks (default %(default)s)",
    )
    sized("--steps", "training steps")
    sized("--batch-size", "contexts per step")
    sized("--layers", "layers")
    sized("--dim", "width of the model")
    sized("--heads", "attention heads")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 (default %(default)s)")
    parser.add_argument(
        "--threads",
        type=thread_count,
        default=1,
        metavar="N",
        help="CPU threads (default %(default)s: the steps are too small for more)",
    )
    parser.add_argument(
        "--backend",
        choices=BACKEND_NAMES,
        default="auto",
        help="backend of the attention (default %(default)s)",
    )
    parser.add_argument(
        "--seeds",
        type=positive_int,
        default=3,
        metavar="N",
        help="number of seeds; every model is trained once per seed (default %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=natural_int,
        default=0,
        metavar="N",
        help="first seed of weights, batches and sample (default %(default)s)",
    )
    parser.add_argument("--no-dense", action="store_true", help="leave out dense attention")
    parser.add_argument(
        "--output",
        type=path,
        default=Path("demo-output"),
        metavar="FOLDER",
        help="folder for the table, figures, images, sample and model (default %(default)s)",
    )
    parser.add_argument(
        "--generate",
        type=path,
        metavar="MODEL",
        help=f"do not train; continue the prompt with a saved model ({MODEL_FILE} of an earlier run)",
    )
    parser.add_argument(
        "--prompt",
        help="text that the sample continues (default: the start of the held-out text); "
        "<key=H> is the passkey H, <key?> asks for it",
    )
    parser.add_argument(
        "--sample-bytes",
        type=positive_int,
        default=SAMPLE_BYTES,
        metavar="N",
        help="length of the sample in bytes (default %(default)s)",
    )
