"""Times language models of Hugging Face transformers, with dense attention and with ours: `attention-bench models`.

The model is a Llama 3.2 1B with random weights; on a CPU, a tiny one. Attentions are `sdpa` and `ours-SIZE`, with blocks
of that size. Needs transformers 5, the extra `transformers` of attention-bench.
"""

from __future__ import annotations

import argparse

from dilated_attention_pytorch.cli.arguments import kept_ratio, positive_int

from . import generation, options, training
from .collection import Collection
from .environment import environment
from .model import PEERS, SIZES, ModelCase, check_transformers

DEFAULT_MODEL = {"cuda": "llama-1b", "cpu": "tiny"}
PACKAGES = ("transformers",)
TRAIN = """Times a step of fine-tuning: forward, backward and AdamW, with gradient checkpointing, one sequence.

The attentions share one model and take turns, step by step. The learning rate is 0, so that all steps do the same.
"""
GENERATE = """Times greedy generate(): each token after the first, the first, and a first call with what it compiles.

The attentions take turns, call by call. On a GPU, transformers compiles the steps of a static cache.
"""


def several(text: str) -> int:
    """A number of tokens, at least 2."""
    value = positive_int(text)
    if value < 2:
        raise argparse.ArgumentTypeError(f"must be at least 2, got {text!r}: the first is not a step")
    return value


def add_model(parser: argparse.ArgumentParser, tokens: str, peers: list[str]) -> None:
    options.add_device(parser)
    options.add_threads(parser)
    parser.add_argument("--model", choices=SIZES, help="default: llama-1b, on a CPU tiny")
    parser.add_argument("--tokens", type=positive_int, help=tokens)
    parser.add_argument(
        "--density", type=kept_ratio, default=0.1, help="fraction of blocks kept (default 0.1)"
    )
    parser.add_argument(
        "--peers", nargs="+", choices=PEERS, metavar="PEER", default=peers,
        help=f"of {', '.join(PEERS)}; default: {' '.join(peers)}",
    )  # fmt: skip
    options.add_json(parser, "all figures with device, versions and date")


def build_parser() -> argparse.ArgumentParser:
    parser = options.make_parser("attention-bench models", __doc__)
    tasks = parser.add_subparsers(dest="task", metavar="{train,generate}", required=True)
    train = tasks.add_parser("train", help="a step of fine-tuning", description=TRAIN)
    add_model(train, "length of the sequence (default 16,384, on a CPU 512)", ["sdpa", "ours-64", "ours-128"])
    train.add_argument(
        "--mask", action="store_true", help="give an attention_mask of ones, as data collators do"
    )
    train.add_argument(
        "--rounds", type=positive_int, default=5,
        help="steps of every attention, of which the median is taken (default 5)",
    )  # fmt: skip
    generate = tasks.add_parser("generate", help="greedy generate()", description=GENERATE)
    add_model(generate, "length of the prompt (default 32,768, on a CPU 512)", ["sdpa", "ours-64"])
    generate.add_argument(
        "--new",
        type=several,
        default=64,
        metavar="TOKENS",
        help="new tokens of a call, at least 2 (default 64)",
    )
    generate.add_argument(
        "--caches", nargs="+", choices=generation.CACHES, metavar="CACHE", default=list(generation.CACHES),
        help=f"default: {' '.join(generation.CACHES)}",
    )  # fmt: skip
    generate.add_argument(
        "--rounds", type=positive_int, default=3,
        help="calls of every attention after the first, of which the medians are taken (default 3)",
    )  # fmt: skip
    return parser


def main(arguments: list[str]) -> int:
    """Exit status 0; 1 if an attention has no figures; 130 if interrupted, with the figures so far saved."""
    given = build_parser().parse_args(arguments)
    prog = f"attention-bench models {given.task}"
    device = options.device_of(given)
    options.set_threads(given)
    check_transformers()
    peers = list(dict.fromkeys(given.peers))
    model = given.model or DEFAULT_MODEL[device]
    dtype = "bfloat16" if device == "cuda" else "float32"
    where = environment(
        device, options.command_line("attention-bench models", arguments, given.json), PACKAGES
    )
    if given.task == "train":
        tokens = given.tokens or {"cuda": 16_384, "cpu": 512}[device]
        case = ModelCase(model, tokens, given.density, dtype, given.mask)
        trained = Collection(prog, training.KIND, training.line, given.json, device, where)
        return trained.collect([case], lambda each: training.measured(each, peers, device, given.rounds))
    tokens = given.tokens or {"cuda": 32_768, "cpu": 512}[device]
    # an attention_mask, as tokenizers give
    cases = [
        ModelCase(model, tokens, given.density, dtype, True, given.new, cache)
        for cache in dict.fromkeys(given.caches)
    ]
    generated = Collection(prog, generation.KIND, generation.line, given.json, device, where)
    return generated.collect(cases, lambda each: generation.measured(each, peers, device, given.rounds))
