"""Block-sparse attention in a Hugging Face model, through the registries of transformers 5.

A small, untrained Llama: at ratio 1 it gives the same logits as with its dense attention, also with
padding; then a sparse one generates from two prompts, padded on the left, what it generates from each
alone. It prints the difference and the density.
"""

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig, LlamaForCausalLM
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

from dilated_attention_pytorch import (
    SparsePatternConfig,
    block_sparse_attention,
    create_block_sparse_attention,
)

NOT_SERVED = ("softcap", "position_bias", "s_aux", "sliding_window", "cu_seq_lens_q")


def register(name: str, config: SparsePatternConfig) -> None:
    """Make `model.set_attn_implementation(name)` attend to the blocks of a pattern."""
    patterns = create_block_sparse_attention(variant="base", sparse_config=config)  # keeps its layouts

    def attend(
        module, query, key, value, attention_mask, scaling=None, dropout=0.0, is_causal=None, **kwargs
    ):
        asked = [option for option in NOT_SERVED if kwargs.get(option) is not None]
        if asked or dropout:
            raise NotImplementedError(f"{name} has no {asked or 'dropout'}")
        # theirs is (batch, num_heads, seq_len, head_dim)
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        causal = module.is_causal if is_causal is None else is_causal
        starts, ends = (None, None) if attention_mask is None else attention_mask
        # a causal layout covers all positions up to the last key
        q_len = k.shape[1] if causal else q.shape[1]
        out = block_sparse_attention(
            q,
            k,
            v,
            patterns.layout(q_len, k.shape[1], causal, q.device),
            is_causal=causal,
            softmax_scale=scaling,
            kv_starts=starts,
            kv_lengths=ends,
        )
        return out, None

    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, valid_keys)  # without this the model drops the attention_mask


def valid_keys(
    batch_size,
    q_length,
    kv_length,
    q_offset=0,
    mask_function=causal_mask_function,
    attention_mask=None,
    **kwargs,
) -> Tensor | None:
    """Where the keys of each sequence begin and end, int32 (2, batch); None without padding."""
    if mask_function not in (causal_mask_function, bidirectional_mask_function):
        raise NotImplementedError("packed sequences, sliding windows and chunks")
    if mask_function is causal_mask_function and q_offset + q_length != kv_length:
        raise NotImplementedError("a static cache: use the default one, which grows")
    if attention_mask is None or attention_mask.all():
        return None
    is_token = attention_mask.int()  # the tokenizer's mask is 1 at tokens
    starts = is_token.argmax(1)
    ends = kv_length - is_token.flip(1).argmax(1)
    if not torch.equal(ends - starts, is_token.sum(1)):
        raise NotImplementedError("padding inside of a sequence")
    return torch.stack([starts, ends]).int()


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
    tokens = torch.randint(1, 256, (2, 1000))
    mask = torch.ones_like(tokens)
    mask[1, 700:] = 0  # padding at the end

    register("block_sparse_all", SparsePatternConfig(sparsity_ratio=1.0))
    with torch.no_grad():
        dense = model(tokens, attention_mask=mask).logits
        model.set_attn_implementation("block_sparse_all")
        same = model(tokens, attention_mask=mask).logits
    difference = (same - dense)[mask.bool()].abs().max().item()
    print(f"ratio 1: largest difference of a logit to the dense attention {difference:.1e}")
    assert difference < 1e-5

    sparse = SparsePatternConfig(sparsity_ratio=0.1)
    register("block_sparse", sparse)
    model.set_attn_implementation("block_sparse")
    mask = mask.flip(1)  # generation pads on the left: the second prompt is its last 700 tokens
    new = model.generate(tokens, attention_mask=mask, max_new_tokens=8, do_sample=False)
    alone = model.generate(tokens[1:, 300:], max_new_tokens=8, do_sample=False)
    density = create_block_sparse_attention(sparse_config=sparse).layout(1000, causal=True).density
    print(f"ratio 0.1: {density:.0%} of the blocks, generated {new[1, 1000:].tolist()}")
    assert torch.equal(new[1, 1000:], alone[0, 700:])
    with torch.no_grad():
        padded = model(tokens, attention_mask=mask).logits[1, 300:]
        difference = (padded - model(tokens[1:, 300:]).logits[0]).abs().max().item()
    print(f"padded on the left or alone: largest difference of a logit {difference:.1e}")
    assert difference < 1e-5


if __name__ == "__main__":
    main()
