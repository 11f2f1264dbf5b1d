"""What a model of the demo writes: answers about a passkey, and the continuation of a prompt."""

from __future__ import annotations

import torch

from .model import LanguageModel, autocast
from .plan import Plan
from .task import FIRST_PASSKEY, HELD_OUT_SEED, QUESTION, make_batch, readable, to_tokens
from .text import Text

MAX_ANSWERS = 64  # in the passkey sample
PROMPT_BYTES = 100


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


def default_prompt(text: Text) -> str:
    """The start of the held-out text, up to the end of a line if possible."""
    start = bytes(text.held_out[:PROMPT_BYTES].tolist())
    return readable([*(start[: start.rfind(b"\n") + 1] or start)])
