"""`demo`: train a small byte-level language model whose attention is ours, on real text."""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import __version__
from ..backends.choose import BACKEND_NAMES
from ..patterns import BlockLayout
from .arguments import block_size, kept_ratio, natural_int, path, positive_int
from .errors import CommandError
from .measure import Measurement, Run, measure
from .model import AttentionKind, ByteLanguageModel, ModelSettings, autocast, make_attention, make_model
from .text import Text, load_text
from .training import even_windows, held_out_loss, train

if TYPE_CHECKING:
    from rich.console import Console

# What is left open on the command line. On a GPU there is time for more.
CPU_DEFAULTS = {"context": 4096, "batch_size": 1, "steps": 220, "layers": 4, "dim": 128, "heads": 4}
CUDA_DEFAULTS = {"context": 16_384, "batch_size": 4, "steps": 600, "layers": 8, "dim": 512, "heads": 8}
SAMPLE_BYTES = 400
PROMPT_BYTES = 100
HELD_OUT_LOOKS = 6


@dataclass(frozen=True)
class Plan:
    """Everything that decides a run."""

    settings: ModelSettings
    device: torch.device
    context: int
    batch_size: int
    steps: int
    seed: int
    sample_bytes: int
    output: Path
    prompt: str | None
    with_dense: bool


@dataclass(frozen=True)
class Trained:
    """How the training went: the loss of every step, held-out losses as (step, nats), and its seconds."""

    losses: list[float]
    held_out: list[tuple[int, float]]
    seconds: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `demo`."""

    def sized(flag: str, what: str) -> None:
        name = flag[2:].replace("-", "_")
        cpu, cuda = CPU_DEFAULTS[name], CUDA_DEFAULTS[name]
        parser.add_argument(
            flag, type=positive_int, metavar="N", help=f"{what} (default {cpu:,}; on a GPU {cuda:,})"
        )

    parser.add_argument(
        "files",
        nargs="*",
        type=path,
        metavar="FILE",
        help="text to learn; its last tenth is held out (default: the standard library's own .py files)",
    )
    sized("--context", "bytes that the model sees at once")
    parser.add_argument(
        "--sparsity-ratio",
        type=kept_ratio,
        default=0.05,
        metavar="RATIO",
        help="fraction of the attention's blocks that are kept (default %(default)s: 95 %% sparse)",
    )
    parser.add_argument(
        "--block-size",
        type=block_size,
        default=64,
        metavar="N",
        help="tokens per block side (default %(default)s)",
    )
    sized("--steps", "training steps")
    sized("--batch-size", "contexts per step")
    sized("--layers", "layers")
    sized("--dim", "width of the model")
    sized("--heads", "attention heads")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 (default %(default)s)")
    parser.add_argument(
        "--backend",
        choices=BACKEND_NAMES,
        default="auto",
        help="backend of the attention (default %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=natural_int,
        default=0,
        metavar="N",
        help="of weights, batches and sample (default %(default)s)",
    )
    parser.add_argument(
        "--prompt", help="what the sample continues (default: the start of the held-out text)"
    )
    parser.add_argument(
        "--sample-bytes", type=natural_int, metavar="N", help=f"length of the sample (default {SAMPLE_BYTES})"
    )
    parser.add_argument(
        "--no-dense", action="store_true", help="leave out the comparison with dense attention"
    )
    parser.add_argument(
        "--output",
        type=path,
        default=Path("demo-output"),
        metavar="FOLDER",
        help="where the pictures, the sample and summary.json go (default %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Check all input, then train, sample, measure and write; returns the exit status."""
    check_extras()
    plan = make_plan(args)
    check_attention(plan)
    text = load_text(args.files, plan.context)
    check_writable(plan.output)
    run_plan(plan, text)
    return 0


def run_plan(plan: Plan, text: Text) -> None:
    """The run itself, once all input is known to be good."""
    from . import report

    started = time.perf_counter()
    console = report.make_console()
    config = plan.settings.sparse_config()
    layout = BlockLayout.from_config(config, plan.context, causal=True, device=plan.device)
    model = make_model(plan.settings, "sparse", plan.seed, plan.device)
    console.print(introduction(plan, text, model, layout))

    trained = train_with_progress(plan, text, model, console)
    (_, before), *_, (_, after) = trained.held_out
    console.print(f"held-out loss: {report.loss_cell(before)} before, {report.loss_cell(after)} after")

    prompt = first_bytes(text.held_out) if plan.prompt is None else plan.prompt.encode()
    prompt = prompt[-(plan.context - plan.sample_bytes) :]
    written = model.generate(prompt, plan.sample_bytes, seed=plan.seed)
    report.print_sample(console, prompt, written)

    with console.status("measuring training steps with either attention"):
        sparse = measure_kind(plan, "sparse")
        dense = measure_kind(plan, "dense") if plan.with_dense else None

    summary = {
        "version": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device_name(plan.device),
        "text": {"name": text.name, "train_bytes": len(text.train), "held_out_bytes": len(text.held_out)},
        "model": {**asdict(plan.settings), "weights": count_weights(model)},
        "layout": asdict(layout.stats()),
        "training": {
            "context": plan.context,
            "batch_size": plan.batch_size,
            "steps": plan.steps,
            "seed": plan.seed,
            "seconds": round(trained.seconds, 2),
            "losses": trained.losses,
        },
        "held_out": {
            "nats_per_byte": {"before": before, "after": after},
            "bits_per_byte": {"before": report.in_bits(before), "after": report.in_bits(after)},
            "by_step": trained.held_out,
        },
        "measured": {"sparse": asdict(sparse), "dense": None if dense is None else asdict(dense)},
        "sample": {"prompt": report.readable(prompt), "written": report.readable(written)},
    }
    files = write_files(plan.output, summary, layout, trained)
    console.print(report.result_table(layout, before, after, sparse, dense))
    console.print(f"wrote {', '.join(files)} to {plan.output}; {time.perf_counter() - started:.0f} s in all")


def train_with_progress(plan: Plan, text: Text, model: ByteLanguageModel, console: Console) -> Trained:
    """Train under a progress bar, with a look at the held-out loss before, now and then, and after."""
    from . import report

    windows = even_windows(text.held_out, plan.context)
    losses: list[float] = []
    held_out = [(0, held_out_loss(model, windows, plan.batch_size))]
    looks = {round(plan.steps * i / HELD_OUT_LOOKS) for i in range(1, HELD_OUT_LOOKS + 1)}
    started = time.perf_counter()
    with report.make_progress(console) as progress:
        task = progress.add_task("training", total=plan.steps, figures="")

        def after_step(step: int, loss: float) -> None:
            losses.append(loss)
            speed = step * plan.batch_size * plan.context / (time.perf_counter() - started)
            figures = f"loss {report.running_mean(losses[-100:])[-1]:.2f}, {speed:,.0f} tokens/s"
            progress.update(task, advance=1, figures=figures)
            if step in looks:
                held_out.append((step, held_out_loss(model, windows, plan.batch_size)))

        train(
            model,
            text.train,
            dim=plan.settings.dim,
            context=plan.context,
            batch_size=plan.batch_size,
            steps=plan.steps,
            seed=plan.seed,
            after_step=after_step,
        )
    return Trained(losses, held_out, time.perf_counter() - started)


def measure_kind(plan: Plan, kind: AttentionKind) -> Measurement:
    """Speed and peak memory of a few training steps of the same model."""
    threads = torch.get_num_threads()
    return measure(
        Run(plan.settings, kind, plan.context, plan.batch_size, plan.seed, str(plan.device), threads)
    )


def write_files(folder: Path, summary: dict[str, Any], layout: BlockLayout, trained: Trained) -> list[str]:
    """Write the pictures, the sample and the summary; returns their names."""
    from . import report

    sample = summary["sample"]
    try:
        report.save_pattern(layout, folder / "pattern.png")
        report.save_loss_curve(trained.losses, trained.held_out, folder / "loss.png")
        (folder / "sample.txt").write_text(sample["prompt"] + sample["written"] + "\n", encoding="utf-8")
        (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise CommandError(f"cannot write to {folder}: {error.strerror or error}") from None
    return ["pattern.png", "loss.png", "sample.txt", "summary.json"]


# Checks of the input, before any work.


def check_extras() -> None:
    """Raise CommandError unless what the demo shows and draws with is installed."""
    try:
        import matplotlib  # noqa: F401
        import rich  # noqa: F401
    except ImportError as error:
        raise CommandError(f"the demo needs {error.name}: pip install rich matplotlib") from None


def make_plan(args: argparse.Namespace) -> Plan:
    """The options, completed by the defaults of the device."""
    device = find_device(args.device)
    defaults = CUDA_DEFAULTS if device.type == "cuda" else CPU_DEFAULTS
    sizes = {name: getattr(args, name) or default for name, default in defaults.items()}
    if sizes["dim"] % (2 * sizes["heads"]):
        raise CommandError(
            f"--dim must be a multiple of 2 * --heads, got --dim {sizes['dim']} and --heads {sizes['heads']}"
        )
    sample_bytes = args.sample_bytes
    if sample_bytes is None:
        sample_bytes = min(SAMPLE_BYTES, sizes["context"] // 2)
    if sample_bytes >= sizes["context"]:
        raise CommandError(
            f"--sample-bytes must be less than --context {sizes['context']}, got {sample_bytes}"
        )
    if args.prompt == "":
        raise CommandError("--prompt must not be empty")
    settings = ModelSettings(
        layers=sizes["layers"],
        dim=sizes["dim"],
        heads=sizes["heads"],
        sparsity_ratio=args.sparsity_ratio,
        block_size=args.block_size,
        backend=args.backend,
    )
    return Plan(
        settings=settings,
        device=device,
        context=sizes["context"],
        batch_size=sizes["batch_size"],
        steps=sizes["steps"],
        seed=args.seed,
        sample_bytes=sample_bytes,
        output=args.output,
        prompt=args.prompt,
        with_dense=not args.no_dense,
    )


def find_device(name: str) -> torch.device:
    """The device of this name; "auto" is the GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise CommandError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}")
    n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= n_devices:
        raise CommandError(f"--device {name}: torch {torch.__version__} sees {n_devices} CUDA devices")
    return device


def check_attention(plan: Plan) -> None:
    """Raise CommandError with the backend's reason if it cannot serve the model."""
    settings = plan.settings
    q = torch.zeros(
        1, 2 * settings.block_size, settings.heads, settings.dim // settings.heads, device=plan.device
    )
    try:
        with autocast(plan.device):
            make_attention(settings)(q, q, q, is_causal=True)
    except ValueError as error:
        raise CommandError(str(error)) from None


def check_writable(folder: Path) -> None:
    """Make the folder; raise CommandError if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CommandError(f"cannot write to {folder}: {error.strerror or error}") from None


# What is said.


def introduction(plan: Plan, text: Text, model: ByteLanguageModel, layout: BlockLayout) -> str:
    """What will be trained on what."""
    settings, stats = plan.settings, layout.stats()
    lines = [
        f"text: {text.name}, {len(text.train):,} bytes to learn and {len(text.held_out):,} held out",
        f"model: {count_weights(model):,} weights, {settings.layers} layers, width {settings.dim}, {settings.heads} "
        f"heads, context {plan.context:,}, on {device_name(plan.device)}",
        f"attention: {stats.num_active_blocks:,} of {stats.num_available_blocks:,} causal block pairs "
        f"({stats.density:.1%}), {settings.block_size} tokens a side",
    ]
    if stats.density > 1.2 * settings.sparsity_ratio:
        lines.append(
            f"(more than the {settings.sparsity_ratio:.1%} asked for, because every row keeps its diagonal block; "
            "a longer --context or a smaller --block-size comes closer)"
        )
    return "\n".join(lines)


def first_bytes(text: Tensor) -> bytes:
    """The start of the held-out text, up to the end of a line if there is one."""
    start = bytes(text[:PROMPT_BYTES].tolist())
    return start[: start.rfind(b"\n") + 1] or start


def count_weights(model: ByteLanguageModel) -> int:
    return sum(weight.numel() for weight in model.parameters())


def device_name(device: torch.device) -> str:
    """The name of a GPU, or the CPU and its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"the CPU, {torch.get_num_threads()} threads"
