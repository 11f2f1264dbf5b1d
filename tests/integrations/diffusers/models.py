"""Tiny transformers of diffusers with random weights, each with the arguments of a call and the grid of its tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers import (
    CogVideoXTransformer3DModel,
    FluxTransformer2DModel,
    HunyuanVideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    SkyReelsV2Transformer3DModel,
    WanTransformer3DModel,
)
from diffusers.models.embeddings import get_3d_rotary_pos_embed

TILE = (2, 2, 4)


class Case(NamedTuple):
    """A model and a call of it."""

    model: Any
    call: dict[str, Any]
    layers: list[str]
    setting: dict[str, Any]  # what set_block_sparse_attention must be told

    def __call__(self) -> torch.Tensor:
        out: torch.Tensor = self.model(**self.call, return_dict=False)[0]
        return out


def wan() -> Case:
    """(5, 6, 5) tokens; text in cross attention alone."""
    model = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )
    call = {
        "hidden_states": torch.randn(2, 4, 5, 12, 10),
        "timestep": torch.tensor([3, 7]),
        "encoder_hidden_states": torch.randn(2, 7, 16),
    }
    return Case(model.eval(), call, ["blocks.0.attn1", "blocks.1.attn1"], {})


def skyreels() -> Case:
    """(4, 6, 5) tokens in pairs of frames, of which none sees a later one: a mask of all pairs of tokens."""
    model = SkyReelsV2Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=256,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
    )
    model._set_ar_attention(2)
    call = {
        "hidden_states": torch.randn(1, 4, 4, 12, 10),
        "timestep": torch.tensor([3]),
        "encoder_hidden_states": torch.randn(1, 7, 16),
    }
    return Case(model.eval(), call, ["blocks.0.attn1"], {})


def hunyuan() -> Case:
    """(5, 6, 7) tokens, and text behind them, of which one prompt is padded."""
    model = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
    )
    mask = torch.ones(2, 12)
    mask[1, 5:] = 0
    call = {
        "hidden_states": torch.randn(2, 4, 5, 6, 7),
        "timestep": torch.tensor([3, 5]),
        "encoder_hidden_states": torch.randn(2, 12, 16),
        "encoder_attention_mask": mask,
        "pooled_projections": torch.randn(2, 8),
        "guidance": torch.tensor([1000.0, 1000.0]),
    }
    return Case(model.eval(), call, ["transformer_blocks.0.attn", "single_transformer_blocks.0.attn"], {})


def cogvideox() -> Case:
    """(3, 4, 5) tokens, and text before them."""
    model = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=8,
        num_layers=1,
        sample_width=8,
        sample_height=8,
        sample_frames=8,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=8,
        use_rotary_positional_embeddings=True,
    )
    call = {
        "hidden_states": torch.randn(2, 3, 4, 8, 10),
        "encoder_hidden_states": torch.randn(2, 8, 8),
        "timestep": torch.tensor([3, 5]),
        "image_rotary_emb": get_3d_rotary_pos_embed(16, ((0, 0), (4, 5)), (4, 5), temporal_size=3),
    }
    return Case(model.eval(), call, ["transformer_blocks.0.attn1"], {})


def ltx() -> Case:
    """(3, 4, 5) tokens, which the call names; text in cross attention alone."""
    model = LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        qk_norm="rms_norm_across_heads",
        caption_channels=16,
    )
    call = {
        "hidden_states": torch.randn(2, 60, 4),
        "encoder_hidden_states": torch.randn(2, 7, 16),
        "timestep": torch.tensor([3, 5]),
        "encoder_attention_mask": torch.ones(2, 7, dtype=torch.bool),
        "num_frames": 3,
        "height": 4,
        "width": 5,
    }
    return Case(model.eval(), call, ["transformer_blocks.0.attn1"], {})


def flux() -> Case:
    """An image of (6, 8) tokens, and text before them; a model that is not known by name."""
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
    )
    ids = torch.cartesian_prod(torch.arange(1), torch.arange(6), torch.arange(8)).float()
    call = {
        "hidden_states": torch.randn(1, 48, 4),
        "encoder_hidden_states": torch.randn(1, 7, 32),
        "pooled_projections": torch.randn(1, 32),
        "img_ids": ids,
        "txt_ids": torch.zeros(7, 3),
        "timestep": torch.tensor([1.0]),
    }
    layers = ["transformer_blocks.0.attn", "single_transformer_blocks.0.attn"]
    return Case(model.eval(), call, layers, {"grid": (1, 6, 8), "text_first": True})


MODELS: dict[str, Callable[[], Case]] = {
    "wan": wan,
    "skyreels": skyreels,
    "hunyuan": hunyuan,
    "cogvideox": cogvideox,
    "ltx": ltx,
    "flux": flux,
}
