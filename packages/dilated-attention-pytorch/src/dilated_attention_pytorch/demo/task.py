"""The task: passkey retrieval in real text, after Mohtashami and Jaggi (arXiv:2305.16300).

A context is a piece of real text. At a random position in its first quarter a byte is replaced by the passkey, one of
16 letters; in the rest, random bytes (one in 16 tokens) are replaced by questions. After a question the model has to
predict the passkey, everywhere else the next byte of the text. The answers are not part of the context, so every path
of information to an answer starts at the passkey; questions in between may relay it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

PASSKEYS = "ABCDEFGHIJKLMNOP"
FIRST_PASSKEY = 256  # tokens below are bytes
QUESTION = FIRST_PASSKEY + len(PASSKEYS)
VOCABULARY = QUESTION + 1
TOKENS_PER_QUESTION = 16
PASSKEY_SHARE = 4  # the passkey is in the first quarter of the context
SHORTEST_CONTEXT = 64
HELD_OUT_SEED = 1_000_003  # of the contexts that no model is trained on

MARK = re.compile(r"<key=([A-P])>|<key\?>")


@dataclass(frozen=True)
class Batch:
    """Contexts and their targets.

    tokens, targets: int64 (batch, context). is_answer: bool (batch, context), True where the target is the passkey.
    """

    tokens: Tensor
    targets: Tensor
    is_answer: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(self.tokens.to(device), self.targets.to(device), self.is_answer.to(device))


def make_batch(text: Tensor, context: int, batch_size: int, generator: torch.Generator) -> Batch:
    """Contexts from random positions of the text, a uint8 tensor longer than the context."""
    starts = torch.randint(len(text) - context, (batch_size, 1), generator=generator)
    pieces = text[starts + torch.arange(context + 1)].long()
    tokens, targets = pieces[:, :-1].clone(), pieces[:, 1:].clone()

    n_first = context // PASSKEY_SHARE
    position = torch.randint(n_first, (batch_size, 1), generator=generator)
    letter = torch.randint(len(PASSKEYS), (batch_size, 1), generator=generator)
    n_questions = context // TOKENS_PER_QUESTION
    questions = torch.rand(batch_size, context - n_first, generator=generator).topk(n_questions).indices
    questions += n_first

    tokens.scatter_(1, position, FIRST_PASSKEY + letter)
    tokens.scatter_(1, questions, QUESTION)
    targets.scatter_(1, questions, (ord(PASSKEYS[0]) + letter).expand_as(questions))
    is_answer = torch.zeros_like(tokens, dtype=torch.bool).scatter_(1, questions, True)
    return Batch(tokens, targets, is_answer)


def to_tokens(text: str) -> list[int]:
    """Tokens of a text; `<key=H>` stands for the passkey H and `<key?>` for a question."""
    tokens: list[int] = []
    end = 0
    for mark in MARK.finditer(text):
        tokens += text[end : mark.start()].encode()
        tokens.append(FIRST_PASSKEY + PASSKEYS.index(mark[1]) if mark[1] else QUESTION)
        end = mark.end()
    return [*tokens, *text[end:].encode()]


def readable(tokens: list[int]) -> str:
    """Tokens as printable text, with marks as in `to_tokens` and no control characters except tabs and newlines."""
    pieces, run = [], bytearray()
    for token in [*tokens, None]:
        if token is not None and token < FIRST_PASSKEY:
            run.append(token)
            continue
        pieces.append(printable(bytes(run)))
        run.clear()
        if token == QUESTION:
            pieces.append("<key?>")
        elif token is not None:
            pieces.append(f"<key={PASSKEYS[token - FIRST_PASSKEY]}>")
    return "".join(pieces)


def printable(text: bytes) -> str:
    """Decode text and replace unprintable characters."""
    decoded = text.decode("utf-8", errors="replace").replace("\r\n", "\n")
    return "".join(
        char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in decoded
    )
