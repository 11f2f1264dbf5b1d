"""Model: a language model of transformers with random weights, and the attentions that it can have."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from dilated_attention_pytorch import SparsePatternConfig
from dilated_attention_pytorch.config import BLOCK_SIZES

from .cases import DTYPES
from .counts import counted
from .options import Unusable

DENSE = "sdpa"
OURS = {f"ours-{size}": size for size in BLOCK_SIZES}  # by block size
PEERS = (DENSE, *OURS)
SIZES = {
    "llama-1b": {  # Llama 3.2 1B
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128_256,
    },
    "tiny": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 256,
    },
}  # fmt: skip


@dataclass(frozen=True)
class ModelCase:
    """A sequence of random tokens for a model.

    tokens: the length of the sequence, of `generate` of the prompt.
    density: fraction of blocks kept by ours.
    masked: whether the model gets an attention_mask, of ones.
    new_tokens, cache: of `generate`; the cache is "dynamic" or "static".
    """

    model: str
    tokens: int
    density: float
    dtype: str
    masked: bool = False
    new_tokens: int | None = None
    cache: str | None = None

    @property
    def label(self) -> str:
        mask = ", attention_mask" if self.masked and self.new_tokens is None else ""
        new = f" and {self.new_tokens:,} new, {self.cache} cache" if self.new_tokens else ""
        return f"{self.model}, {counted(self.tokens, 'token')}{new}, {self.density:.2%}{mask}"

    def inputs(self, device: str) -> dict[str, Tensor]:
        """The same tokens for every attention."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(3, 256, (1, self.tokens), generator=generator).to(device)
        return {"input_ids": ids, **({"attention_mask": torch.ones_like(ids)} if self.masked else {})}


def check_transformers() -> None:
    """Raise unless the integration can be imported."""
    try:
        import_module("dilated_attention_pytorch.integrations.transformers")
    except ImportError as error:
        raise Unusable(
            "models needs transformers 5: in a clone of the repository, pip install "
            f"'./tools/attention-bench[transformers]' ({error})"
        ) from error


def attention_name(peer: str, density: float) -> str:
    """The name of a peer in transformers, where ours is registered."""
    if peer == DENSE:
        return peer
    from dilated_attention_pytorch.integrations.transformers import register_block_sparse_attention

    name = f"bench_{peer.replace('-', '_')}"
    register_block_sparse_attention(name, SparsePatternConfig(sparsity_ratio=density, block_size=OURS[peer]))
    return name


def make_model(case: ModelCase, peer: str, device: str) -> Any:
    """A model with the attention of a peer; the same weights for every peer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **SIZES[case.model], max_position_embeddings=131_072, tie_word_embeddings=True, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0}, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    name = attention_name(peer, case.density)
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM._from_config(config, attn_implementation=name, dtype=DTYPES[case.dtype])
    if model.config._attn_implementation != name:
        raise RuntimeError(f"transformers gave the model {model.config._attn_implementation!r}, not {name!r}")
    return model
