"""`demo`: compare four kinds of attention in the same small model, on real text with a distant passkey."""

from __future__ import annotations

import argparse
import json
import math
import platform
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .. import __version__
from ..backends.registry import BACKEND_NAMES
from ..cli.arguments import (
    block_size,
    did_you_mean,
    kept_ratio,
    natural_int,
    path,
    positive_int,
    thread_count,
)
from ..cli.errors import CommandError
from ..layout import BlockLayout
from .memory import Run, median_peaks
from .model import (
    KINDS,
    OURS,
    AttentionKind,
    LanguageModel,
    ModelSettings,
    autocast,
    isolated_rows_allowed,
    load_model,
    make_attention,
    make_model,
)
from .task import FIRST_PASSKEY, QUESTION, SHORTEST_CONTEXT, Batch, make_batch, readable, to_tokens
from .text import Text, load_text
from .training import Learner, TimeLeft, context_lengths, held_out_losses

if TYPE_CHECKING:
    from rich.console import Console

    from .report import Result

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
MAX_ANSWERS = 64  # in the passkey sample
PROMPT_BYTES = 100
HELD_OUT_BATCHES = 32
HELD_OUT_SEED = 1_000_003
MODEL_FILE = "model.pt"
# Larger values are typing errors, reported before any work is done.
MAX_SEEDS = 1000
MAX_STEP_TOKENS = 2**30
MAX_WEIGHTS = 2**33


@dataclass(frozen=True)
class Plan:
    """All settings of a run."""

    settings: ModelSettings
    kinds: tuple[AttentionKind, ...]
    device: torch.device
    context: int
    batch_size: int
    steps: int
    seeds: tuple[int, ...]
    sample_bytes: int
    output: Path
    prompt: str | None


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


def run(args: argparse.Namespace) -> int:
    """Check all input, then train and compare the models, or generate text; returns the exit status."""
    if args.prompt == "":
        raise CommandError("--prompt must not be empty; leave it out for the start of the held-out text")
    if args.generate is not None:
        return generate(args)
    check_extras()
    plan = make_plan(args)
    threads = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    try:
        with isolated_rows_allowed():
            check_attention(plan)
            text = load_text(args.files, plan.context)
            check_writable(plan.output)
            return run_plan(plan, text)
    finally:
        torch.set_num_threads(threads)


def generate(args: argparse.Namespace) -> int:
    """Print a prompt and its continuation by a saved model."""
    model = load_model(args.generate, find_device(args.device))
    prompt = args.prompt or default_prompt(load_text(args.files, SHORTEST_CONTEXT))
    written = model.generate(to_tokens(prompt), args.sample_bytes, seed=args.seed)
    print(prompt + readable(written))
    return 0


def run_plan(plan: Plan, text: Text) -> int:
    """Run the comparison, after all input has been checked; returns the exit status."""
    from . import report

    started = time.perf_counter()
    console = report.make_console()
    layouts = make_layouts(plan)
    results = make_results(plan, layouts)
    console.print(introduction(plan, text, layouts))
    status, models = 0, dict[AttentionKind, LanguageModel]()
    try:
        with console.status("measuring memory"):
            measure_memory(plan, results)
        train_seeds(plan, text, results, models, console)
    except KeyboardInterrupt:
        if OURS not in models:
            raise
        status = 130
        console.print("interrupted; these are the results so far")

    complete = all(result.held_out for result in results.values())
    sample = passkey_sample(plan, text, models[OURS]) + text_sample(plan, text, models[OURS])
    console.print(sample, markup=False)
    files = write_files(plan, text, layouts, results, models[OURS], sample, time.perf_counter() - started)
    if complete:
        console.print(report.result_table(results))
        console.print(report.explanation(len(results[OURS].held_out)))
        for line in report.verdicts(results):
            console.print(f"- {line}")
    console.print(f"wrote {', '.join(files)} to {plan.output}", soft_wrap=False)
    console.print(f"total time: {report.duration(time.perf_counter() - started)} minutes")
    return status


def make_layouts(plan: Plan) -> dict[AttentionKind, BlockLayout]:
    """The layouts of the sparse kinds for the full context."""
    return {
        kind: BlockLayout.from_config(
            plan.settings.config(kind), plan.context, causal=True, device=plan.device
        )
        for kind in plan.kinds
        if kind != "dense"
    }


def make_results(plan: Plan, layouts: dict[AttentionKind, BlockLayout]) -> dict[AttentionKind, Result]:
    """A result per kind, with the density and coverage of its layout."""
    from .report import Result

    tokens = plan.context * plan.batch_size
    return {
        kind: Result(layouts[kind].density, layouts[kind].hops_to_full_coverage(), tokens_per_step=tokens)
        if kind in layouts
        else Result(1.0, 1, tokens_per_step=tokens)
        for kind in plan.kinds
    }


def measure_memory(plan: Plan, results: dict[AttentionKind, Result]) -> None:
    """Set the peak memory of a training step in every result."""
    device, threads = str(plan.device), torch.get_num_threads()
    runs = [
        Run(plan.settings, kind, plan.context, plan.batch_size, device, threads)
        for kind in plan.kinds
    ]  # fmt: skip
    for result, peak in zip(results.values(), median_peaks(runs)):
        result.peak_bytes = peak


def train_seeds(
    plan: Plan,
    text: Text,
    results: dict[AttentionKind, Result],
    models: dict[AttentionKind, LanguageModel],
    console: Console,
) -> None:
    """Train every kind with every seed and fill in the results; the kinds take turns, step by step.

    `models` is updated with the models in training; at the end it holds those of the last seed.
    """
    from . import report

    lengths = context_lengths(plan.context, plan.steps)
    held_out = held_out_batches(plan, text)
    time_left = TimeLeft([*lengths, "held out"] * len(plan.seeds))
    with console.status("timing a step of every context length"):
        try_out(plan, text, held_out, lengths, time_left)
    with report.make_progress(console) as progress:
        task = progress.add_task("training", total=plan.steps * len(plan.seeds), left="")
        for i_seed, seed in enumerate(plan.seeds, start=1):
            models.update({kind: make_model(plan.settings, kind, seed, plan.device) for kind in plan.kinds})
            learners = {kind: Learner(model, plan.steps) for kind, model in models.items()}
            losses: dict[AttentionKind, list[float]] = {kind: [] for kind in plan.kinds}
            generator = torch.Generator().manual_seed(seed)
            progress.update(task, description=f"seed {i_seed} of {len(plan.seeds)}")
            for i_step, length in enumerate(lengths):
                began = time.perf_counter()
                batch = step_batch(plan, text, length, generator)
                for kind, learner in learners.items():
                    loss, seconds = learner.step(batch)
                    losses[kind].append(loss)
                    # The first step of a seed is slower because it builds layouts and allocates memory.
                    if length == plan.context and i_step > 0:
                        results[kind].step_seconds.append(seconds)
                time_left.done(length, time.perf_counter() - began)
                progress.update(task, advance=1, left=f"{report.duration(time_left.left())} left")
            began = time.perf_counter()
            for kind, model in models.items():
                results[kind].held_out.append(held_out_losses(model, held_out))
                results[kind].answer_losses.append(losses[kind])
            time_left.done("held out", time.perf_counter() - began)
            left = f"{report.duration(time_left.left())} left"
            progress.update(task, left=left)
            found = ", ".join(
                f"{report.TITLES[kind]} {result.values('answer')[-1]:.2f}" for kind, result in results.items()
            )
            console.print(f"seed {seed}, answers' loss: {found}; {left}")


def try_out(plan: Plan, text: Text, held_out: list[Batch], lengths: list[int], time_left: TimeLeft) -> None:
    """Time a step of every context length with throwaway models, so that the time left is known from the start."""
    models = {kind: make_model(plan.settings, kind, 0, plan.device) for kind in plan.kinds}
    learners = {kind: Learner(model, 2) for kind, model in models.items()}
    generator = torch.Generator().manual_seed(0)
    for length in sorted(set(lengths)):
        for is_warm in (False, True):
            began = time.perf_counter()
            batch = step_batch(plan, text, length, generator)
            for learner in learners.values():
                learner.step(batch)
            if is_warm:
                time_left.tried(length, time.perf_counter() - began)
    began = time.perf_counter()
    for model in models.values():
        held_out_losses(model, held_out[:1])
    time_left.tried("held out", (time.perf_counter() - began) * len(held_out))


def step_batch(plan: Plan, text: Text, length: int, generator: torch.Generator) -> Batch:
    """A training batch; the number of tokens does not depend on the context length."""
    batch_size = plan.batch_size * plan.context // length
    return make_batch(text.train, length, batch_size, generator).to(plan.device)


def held_out_batches(plan: Plan, text: Text) -> list[Batch]:
    """The same held-out contexts for every kind and seed."""
    generator = torch.Generator().manual_seed(HELD_OUT_SEED)
    return [
        make_batch(text.held_out, plan.context, plan.batch_size, generator).to(plan.device)
        for _ in range(max(1, HELD_OUT_BATCHES // plan.batch_size))
    ]


# Output files and samples.


@torch.no_grad()
def passkey_sample(plan: Plan, text: Text, model: LanguageModel) -> str:
    """A held-out passkey and the answers of the model, from the nearest question to the farthest."""
    generator = torch.Generator().manual_seed(HELD_OUT_SEED + 1)
    batch = make_batch(text.held_out, plan.context, 1, generator)
    with autocast(plan.device):
        answers = model(batch.tokens.to(plan.device)).argmax(-1).cpu()[batch.is_answer].tolist()
    tokens = batch.tokens[0].tolist()
    passkey = next(i for i, token in enumerate(tokens) if FIRST_PASSKEY <= token < QUESTION)
    questions = [i for i, token in enumerate(tokens) if token == QUESTION]
    shown = answers[:: -(-len(answers) // MAX_ANSWERS)]
    around = " ".join(readable(tokens[max(0, passkey - 24) : passkey + 24]).split())
    return (
        f"Held-out text: ... {around} ...\n{questions[0] - passkey:,} to {questions[-1] - passkey:,} tokens later "
        f"the model answers {readable(shown)}\n"
    )


def text_sample(plan: Plan, text: Text, model: LanguageModel) -> str:
    """A prompt and its continuation by the model."""
    prompt = plan.prompt or default_prompt(text)
    tokens = to_tokens(prompt)[-max(1, plan.context - plan.sample_bytes) :]
    written = readable(model.generate(tokens, plan.sample_bytes, seed=plan.seeds[0]))
    return f"A prompt and, after the mark |, its continuation:\n{prompt}|{written}\n"


def write_files(
    plan: Plan,
    text: Text,
    layouts: dict[AttentionKind, BlockLayout],
    results: dict[AttentionKind, Result],
    model: LanguageModel,
    sample: str,
    seconds: float,
) -> list[str]:
    """Write the model, the sample, the figures and the images; returns the file names."""
    from . import report

    summary = {
        "version": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device_name(plan.device),
        "text": {"name": text.name, "train_bytes": len(text.train), "held_out_bytes": len(text.held_out)},
        "model": {**asdict(plan.settings), "weights": count_weights(model)},
        "training": {
            "context": plan.context,
            "batch_size": plan.batch_size,
            "steps": plan.steps,
            "seeds": plan.seeds,
        },
        "seconds": round(seconds, 1),
        "results": {
            kind: {
                "density": result.density,
                "hops": result.hops,
                "held_out": result.held_out,
                "tokens_per_second": result.tokens_per_second,
                "peak_bytes": result.peak_bytes,
            }
            for kind, result in results.items()
        },
    }
    complete = all(result.held_out for result in results.values())
    folder, files = plan.output, [MODEL_FILE, "sample.txt", "pattern.png"]
    try:
        model.save(OURS, folder / MODEL_FILE)
        (folder / "sample.txt").write_text(sample, encoding="utf-8")
        report.save_patterns(layouts, folder / "pattern.png")
        if complete:
            curves = {kind: mean_curve(result.answer_losses) for kind, result in results.items()}
            report.save_loss_curves(curves, folder / "loss.png")
            (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
            (folder / "table.md").write_text(report.markdown_table(results), encoding="utf-8")
            losses = {kind: result.answer_losses for kind, result in results.items()}
            (folder / "losses.json").write_text(json.dumps(losses) + "\n", encoding="utf-8")
            files += ["loss.png", "losses.json", "summary.json", "table.md"]
    except OSError as error:
        raise CommandError(f"cannot write to {folder}: {error.strerror or error}") from None
    return files


def mean_curve(curves: list[list[float]]) -> list[float]:
    """The mean over the seeds at every step."""
    return [math.fsum(losses) / len(losses) for losses in zip(*curves)]


# Input checks.


def check_extras() -> None:
    """Raise CommandError unless rich and matplotlib are installed."""
    try:
        import matplotlib  # noqa: F401
        import rich  # noqa: F401
    except ImportError as error:
        raise CommandError(f"the demo needs {error.name}: pip install rich matplotlib") from None


def make_plan(args: argparse.Namespace) -> Plan:
    """The plan given by the options and the defaults of the device."""
    device = find_device(args.device)
    defaults = CUDA_DEFAULTS if device.type == "cuda" else CPU_DEFAULTS
    sizes = {name: getattr(args, name) or default for name, default in defaults.items()}
    if sizes["dim"] % (2 * sizes["heads"]):
        raise CommandError(
            f"--dim must be a multiple of 2 * --heads, got --dim {sizes['dim']} and --heads {sizes['heads']}"
        )
    if sizes["context"] < SHORTEST_CONTEXT:
        raise CommandError(f"--context must be at least {SHORTEST_CONTEXT}, got {sizes['context']}")
    for what, number, limit in (
        ("--seeds", args.seeds, MAX_SEEDS),
        ("--context times --batch-size", sizes["context"] * sizes["batch_size"], MAX_STEP_TOKENS),
        ("weights, 12 * --layers * --dim**2,", 12 * sizes["layers"] * sizes["dim"] ** 2, MAX_WEIGHTS),
    ):
        if number > limit:
            raise CommandError(f"{what} must be at most {limit:,}, got {number:,}")
    settings = ModelSettings(
        layers=sizes["layers"],
        dim=sizes["dim"],
        heads=sizes["heads"],
        block_size=sizes["block_size"],
        min_blocks=sizes["min_blocks"],
        sparsity_ratio=args.sparsity_ratio,
        backend=args.backend,
    )
    return Plan(
        settings=settings,
        kinds=tuple(kind for kind in KINDS if kind != "dense" or not args.no_dense),
        device=device,
        context=sizes["context"],
        batch_size=sizes["batch_size"],
        steps=sizes["steps"],
        seeds=tuple(range(args.seed, args.seed + args.seeds)),
        sample_bytes=args.sample_bytes,
        output=args.output,
        prompt=args.prompt,
    )


def find_device(name: str) -> torch.device:
    """The device with this name; "auto" is the GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise CommandError(
            f"--device must be auto, cpu, cuda or cuda:N, got {name!r}"
            + did_you_mean(name, ("auto", "cpu", "cuda"))
        )
    n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= n_devices:
        raise CommandError(f"--device {name}: torch {torch.__version__} sees {n_devices} CUDA devices")
    return device


def check_attention(plan: Plan) -> None:
    """Raise CommandError with the reason of the backend if it cannot serve the model."""
    settings = plan.settings
    q = torch.zeros(
        1, 2 * settings.block_size, settings.heads, settings.dim // settings.heads, device=plan.device
    )
    try:
        with autocast(plan.device):
            make_attention(settings, OURS)(q, q, q, is_causal=True)
    except ValueError as error:
        raise CommandError(str(error)) from None


def check_writable(folder: Path) -> None:
    """Create the folder; raise CommandError if files cannot be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CommandError(f"cannot write to {folder}: {error.strerror or error}") from None


# Printed text.


def introduction(plan: Plan, text: Text, layouts: dict[AttentionKind, BlockLayout]) -> str:
    """Describe the task, the text, the model and the patterns."""
    settings, ours = plan.settings, layouts[OURS]
    hops = ours.hops_to_full_coverage()
    return "\n".join(
        [
            "Task: a passkey, one of 16 letters, is hidden at a random position in the first quarter of a context of "
            "real text; questions at random positions of the rest ask for it.",
            f"Text: {text.name}, {len(text.train):,} bytes to train on and {len(text.held_out):,} held out.",
            f"Model: {settings.layers} layers, width {settings.dim}, {settings.heads} heads, context "
            f"{plan.context:,}, on {device_name(plan.device)}; {plan.steps:,} steps of "
            f"{plan.context * plan.batch_size:,} tokens, {len(plan.seeds)} seeds.",
            f"dilated_sparse keeps {ours.num_active_blocks:,} of {ours.stats().num_available_blocks:,} causal "
            f"blocks of {settings.block_size} tokens, the local window "
            f"{layouts['local_window'].num_active_blocks:,}, the own block only "
            f"{layouts['own_block'].num_active_blocks:,}. dilated_sparse connects "
            f"{ours.coverage(settings.layers):.0%} of all block pairs in {settings.layers} layers (all in {hops}), "
            f"the local window {layouts['local_window'].coverage(settings.layers):.0%}.",
        ]
    )


def default_prompt(text: Text) -> str:
    """The start of the held-out text, up to the end of a line if possible."""
    start = bytes(text.held_out[:PROMPT_BYTES].tolist())
    return readable([*(start[: start.rfind(b"\n") + 1] or start)])


def count_weights(model: LanguageModel) -> int:
    return sum(weight.numel() for weight in model.parameters())


def device_name(device: torch.device) -> str:
    """The name of the GPU, or the CPU with its number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return "the CPU, " + ("1 thread" if threads == 1 else f"{threads} threads")
