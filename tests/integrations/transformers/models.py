"""Tiny models with random weights, in float64 where transformers computes in it: so rounding does not hide a fault."""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from dilated_attention_pytorch import SparsePatternConfig
from dilated_attention_pytorch.integrations.transformers import register_block_sparse_attention

transformers.logging.set_verbosity_error()

BLOCK = 16
WINDOW = 40
LENGTH = 150
# logits of size 1 after a few hundred roundings, of 1e-16 and of 6e-8
TOLERANCE = {"rtol": 0.0, "atol": 1e-11}
SINGLE_TOLERANCE = {"rtol": 0.0, "atol": 3e-5}

COMMON = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 512,
}  # fmt: skip
HYBRID = {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
BART = {
    "vocab_size": 64, "d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 512,
}  # fmt: skip
BERT = {**COMMON, "num_hidden_layers": 2}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}

MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", COMMON),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**COMMON, "sliding_window": WINDOW}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**COMMON, "head_dim": 8}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**COMMON, **HYBRID, "head_dim": 8}),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {**COMMON, **HYBRID, "head_dim": 8}),
    "gpt_oss": ("GptOssForCausalLM", "GptOssConfig", {**COMMON, **HYBRID, **EXPERTS, "head_dim": 8}),
    "gpt2": (
        "GPT2LMHeadModel", "GPT2Config",
        {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "bert": ("BertModel", "BertConfig", BERT),
    "modernbert": ("ModernBertModel", "ModernBertConfig", {**BERT, "num_hidden_layers": 4, "local_attention": 32}),
    "bart": ("BartForConditionalGeneration", "BartConfig", BART),
}  # fmt: skip
CAUSAL = ("llama", "mistral", "qwen3", "gemma2", "gemma3", "gpt_oss", "gpt2")
BIDIRECTIONAL = ("bert", "modernbert")
# the softmax of "eager", which alone knows a softcap and sinks, and the experts are in float32
DENSE = {"gemma2": "eager", "gpt_oss": "eager"}


register_block_sparse_attention("all_blocks", SparsePatternConfig(sparsity_ratio=1.0, block_size=BLOCK))
register_block_sparse_attention("sparse", SparsePatternConfig(sparsity_ratio=0.2, block_size=BLOCK))


def model_of(name: str, attention: str = "sparse", **changes: Any) -> Any:
    """A tiny model of a family, in eval mode."""
    model_class, config_class, fields = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**{**fields, **changes})
    model = getattr(transformers, model_class)(config).eval()
    if name not in DENSE:
        model.double()
    with torch.no_grad():  # of size 1, or attention is an average over the keys whatever the scores
        for key, weight in model.named_parameters():
            if "sinks" in key:
                nn.init.normal_(weight)
            elif weight.dim() == 2:
                weight.mul_(8)
    if hasattr(model, "generation_config"):
        model.generation_config.pad_token_id = 0
    model.set_attn_implementation(attention)
    return model


def tolerance(name: str) -> dict[str, float]:
    """For results of a model."""
    return SINGLE_TOLERANCE if name in DENSE else TOLERANCE


@functools.cache
def tokens(batch: int = 2, length: int = LENGTH) -> Tensor:
    return torch.randint(3, 64, (batch, length), generator=torch.Generator().manual_seed(1))


def padding(side: str, length: int = LENGTH, number: int = 50) -> Tensor:
    """int64 (2, length), 1 at tokens; the second sequence is shorter by `number`."""
    mask = torch.ones(2, length, dtype=torch.int64)
    mask[1, :number] = 0
    return mask if side == "left" else mask.flip(1)


def positions(mask: Tensor) -> Tensor:
    """The position_ids that `generate` makes of an attention_mask."""
    return (mask.cumsum(1) - 1).clamp(min=0)


@torch.no_grad()
def logits(model: Any, **inputs: Any) -> Tensor:
    """The first output: logits, or hidden states."""
    out: Tensor = model(**inputs)[0]
    return out


def causal_logits(model: Any, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Logits without a cache; with a mask at the positions of its tokens."""
    places = {} if mask is None else {"attention_mask": mask, "position_ids": positions(mask)}
    return logits(model, input_ids=ids, use_cache=False, **places)
