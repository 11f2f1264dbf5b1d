"""The plan of a run of the demo: its settings, from the options and the defaults of the device, and its layouts."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from ..cli.arguments import did_you_mean
from ..cli.errors import CommandError
from ..layout import BlockLayout
from .arguments import CPU_DEFAULTS, CUDA_DEFAULTS
from .model import KINDS, OURS, AttentionKind, ModelSettings, autocast, make_attention
from .task import SHORTEST_CONTEXT
from .text import Text

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


def make_layouts(plan: Plan) -> dict[AttentionKind, BlockLayout]:
    """The layouts of the sparse kinds for the full context."""
    return {
        kind: BlockLayout.from_config(
            plan.settings.config(kind), plan.context, causal=True, device=plan.device
        )
        for kind in plan.kinds
        if kind != "dense"
    }


def introduction(plan: Plan, text: Text, layouts: dict[AttentionKind, BlockLayout]) -> str:
    """Describe the task, the text, the model and the patterns."""
    settings, ours = plan.settings, layouts[OURS]
    hops = ours.hops_to_full_coverage()
    return "\n".join(
        [
            "Task: a passkey, one of 16 letters, is hidden at a random position in the first quarter of a context of "
            "real text; questions at random positions of the rest ask for it.",
            f"Text: {text.name}, {len(text.train):,} bytes to train on and {len(text.held_out):,} held out.",
            f"Model: {counted(settings.layers, 'layer')}, width {settings.dim}, {counted(settings.heads, 'head')}, context "
            f"{plan.context:,}, on {device_name(plan.device)}; {plan.steps:,} steps of "
            f"{plan.context * plan.batch_size:,} tokens, {counted(len(plan.seeds), 'seed')}.",
            f"dilated_sparse keeps {ours.num_active_blocks:,} of {ours.stats().num_available_blocks:,} causal "
            f"blocks of {settings.block_size} tokens, the local window "
            f"{layouts['local_window'].num_active_blocks:,}, the own block only "
            f"{layouts['own_block'].num_active_blocks:,}. dilated_sparse connects "
            f"{ours.coverage(settings.layers):.0%} of all block pairs in {counted(settings.layers, 'layer')} (all in {hops}), "
            f"the local window {layouts['local_window'].coverage(settings.layers):.0%}.",
        ]
    )


def device_name(device: torch.device) -> str:
    """The name of the GPU, or the CPU with its number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"the CPU, {counted(torch.get_num_threads(), 'thread')}"


def counted(number: int, what: str) -> str:
    """A number of things, such as "1 layer" and "2 layers"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
