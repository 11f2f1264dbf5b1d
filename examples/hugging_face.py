"""Block-sparse attention in a Hugging Face model: one call registers it, and models take it by name.

A small, untrained Llama: at ratio 1 it gives the logits of its dense attention, also with padding; then a
sparse one generates from two prompts, padded on the left, what it generates from each alone, with a cache
that grows and with a static one. It prints the difference, the density and the tokens.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
from dilated_attention_pytorch.integrations.transformers import register_block_sparse_attention


def main() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=0,
        )
    ).eval()
    tokens = torch.randint(3, 256, (2, 1000))
    mask = torch.ones_like(tokens)
    mask[1, :300] = 0  # generation pads on the left: the second prompt is its last 700 tokens

    register_block_sparse_attention("block_sparse_all", sparsity_ratio=1.0)
    with torch.no_grad():
        dense = model(tokens, attention_mask=mask).logits
        model.set_attn_implementation("block_sparse_all")
        same = model(tokens, attention_mask=mask).logits
    difference = (same - dense)[mask.bool()].abs().max().item()
    print(f"ratio 1: largest difference of a logit to the dense attention {difference:.1e}")
    assert difference < 1e-5

    sparse = SparsePatternConfig(sparsity_ratio=0.1)
    register_block_sparse_attention("block_sparse", sparse)
    model.set_attn_implementation("block_sparse")
    options = {"max_new_tokens": 8, "do_sample": False}
    new = model.generate(tokens, attention_mask=mask, **options)
    density = BlockLayout.from_config(sparse, 1000, causal=True).density
    print(f"ratio 0.1: {density:.0%} of the blocks, generated {new[1, 1000:].tolist()}")
    assert torch.equal(
        new, model.generate(tokens, attention_mask=mask, cache_implementation="static", **options)
    )
    alone = model.generate(tokens[1:, 300:], **options)
    assert torch.equal(new[1, 1000:], alone[0, 700:])
    print("the same with a static cache, and from the second prompt alone")


if __name__ == "__main__":
    main()
