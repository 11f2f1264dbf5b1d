"""`demo`: compare four kinds of attention in the same small model, on real text with a distant passkey."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

import torch

from ..cli.errors import CommandError
from ..layout import BlockLayout
from .arguments import add_arguments
from .files import check_writable, write_files
from .memory import Run, median_peaks
from .model import OURS, AttentionKind, LanguageModel, isolated_rows_allowed, load_model, make_model
from .plan import Plan, check_attention, find_device, introduction, make_layouts, make_plan
from .samples import default_prompt, passkey_sample, text_sample
from .task import HELD_OUT_SEED, SHORTEST_CONTEXT, Batch, make_batch, readable, to_tokens
from .text import Text, load_text
from .training import Learner, TimeLeft, context_lengths, held_out_losses

if TYPE_CHECKING:
    from rich.console import Console

    from .report import Result

__all__ = ["add_arguments", "run"]

HELD_OUT_BATCHES = 32


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


def check_extras() -> None:
    """Raise CommandError unless rich and matplotlib are installed."""
    try:
        import matplotlib  # noqa: F401
        import rich  # noqa: F401
    except ImportError as error:
        raise CommandError(f"the demo needs {error.name}: pip install rich matplotlib") from None


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
