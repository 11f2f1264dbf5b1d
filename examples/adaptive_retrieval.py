"""Long-range retrieval in text: blocks chosen by a trained scorer beside a fixed pattern of the same density.

A letter is hidden in the first quarter of a piece of real text (sources of Python's standard library); questions in the
rest ask for it (passkey retrieval, arXiv:2305.16300). Two small language models differ in nothing but their attention, and
both attend to the same number of blocks. It prints, for each, the blocks that it keeps, and how many of the questions in
text that it has not seen it answers.

    python examples/adaptive_retrieval.py [CONTEXT] [STEPS] [SEED]
"""

import sys
import time

import torch

from dilated_attention_pytorch import AdaptiveConfig, BlockLayout, BlockSparseAdaptive
from dilated_attention_pytorch.demo.model import LanguageModel, ModelSettings, make_model
from dilated_attention_pytorch.demo.task import make_batch
from dilated_attention_pytorch.demo.text import load_text
from dilated_attention_pytorch.demo.training import Learner, context_lengths, held_out_losses

# two layers of two heads of 16; 3 blocks of 16 tokens a row, or 1 % of them where that is more
SETTINGS = ModelSettings(layers=2, dim=32, heads=2, block_size=16, min_blocks=3, sparsity_ratio=0.01)
TOKENS_PER_STEP = 4096


def make(adaptive: bool, seed: int) -> LanguageModel:
    """A model with `dilated_sparse`, or with a scorer of its own in each layer."""
    model = make_model(SETTINGS, "dilated_sparse", seed, torch.device("cpu"))
    if adaptive:
        config = AdaptiveConfig(hidden_dim=16)  # its base_sparsity is 1 - sparsity_ratio of the pattern
        for layer in model.layers:
            layer.attention = BlockSparseAdaptive(
                SETTINGS.config("dilated_sparse"), config, num_heads=2, head_dim=16
            )
    return model


def main(context: int = 512, steps: int = 200, seed: int = 0) -> None:
    text = load_text([], context)
    held_out = torch.Generator().manual_seed(1234)
    questions = [make_batch(text.held_out, context, 8, held_out) for _ in range(4)]
    layout = BlockLayout.from_config(SETTINGS.config("dilated_sparse"), context, causal=True)
    print(f"context {context}, {steps} steps; {layout.num_active_blocks} blocks, {layout.density:.1%} of all")
    right = []
    for adaptive in (False, True):
        model = make(adaptive, seed)
        learner, draws = Learner(model, steps), torch.Generator().manual_seed(seed)
        start = time.perf_counter()
        for length in context_lengths(context, steps):  # from 64 tokens to all
            learner.step(make_batch(text.train, length, TOKENS_PER_STEP // length, draws))
        seconds = time.perf_counter() - start
        losses = held_out_losses(model.eval(), questions)
        right.append(losses["right"])
        name = "adaptive" if adaptive else "dilated_sparse"
        print(
            f"{name:15} {losses['right']:6.1%} of the questions, text loss {losses['text']:.2f}, {seconds:.0f} s"
        )
    assert right[1] > right[0]


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
