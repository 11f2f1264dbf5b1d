"""A small causal language model over bytes and passkey tokens, with interchangeable attention."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cli.errors import CommandError
from ..config import SparsePatternConfig
from ..config_warnings import SparsityRatioWarning
from ..factory import create_block_sparse_attention
from .task import FIRST_PASSKEY, VOCABULARY

ROTARY_BASE = 10_000.0
# One in this many dimensions of a head is rotated; the others match content at any distance.
ROTATED_SHARE = 2
TINY_RATIO = 1e-9  # keeps no block beyond min_blocks
INITIAL_STD = 0.15  # at width 32; inversely proportional to the square root of the width

AttentionKind = Literal["dense", "dilated_sparse", "own_block", "local_window"]
KINDS: tuple[AttentionKind, ...] = get_args(AttentionKind)
OURS: AttentionKind = "dilated_sparse"
MODEL_FILE = "model.pt"


@dataclass(frozen=True)
class ModelSettings:
    """Sizes of the model and of its pattern."""

    layers: int
    dim: int
    heads: int
    block_size: int
    min_blocks: int
    sparsity_ratio: float = 0.01
    backend: str = "auto"

    def config(self, kind: AttentionKind) -> SparsePatternConfig:
        """The pattern of a sparse kind; local_window and dilated_sparse keep equally many blocks in every row."""
        if kind == "own_block":
            return SparsePatternConfig("dilated_sparse", self.block_size, TINY_RATIO, min_blocks=1)
        if kind == "dense":
            raise ValueError("kind must be a sparse attention, got 'dense', which has no pattern")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SparsityRatioWarning)  # --help says what the ratio is
            return SparsePatternConfig(kind, self.block_size, self.sparsity_ratio, min_blocks=self.min_blocks)


class DenseAttention(nn.Module):
    """The baseline: `scaled_dot_product_attention` with the interface of BlockSparseAttention."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False) -> Tensor:
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=is_causal
        )
        return out.transpose(1, 2)


def make_attention(settings: ModelSettings, kind: AttentionKind) -> nn.Module:
    """The attention module of a kind."""
    if kind == "dense":
        return DenseAttention()
    return create_block_sparse_attention(
        variant="base", sparse_config=settings.config(kind), backend=settings.backend
    )


class KeyValueCache:
    """Keys and values of the previous tokens, per layer (batch, max_len, heads, head_dim)."""

    def __init__(self, max_len: int) -> None:
        self.max_len = max_len
        self.length = 0
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, i_layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new keys and values of a layer and return all of them. The model advances `length`."""
        if i_layer not in self.layers:
            shape = (k.shape[0], self.max_len, *k.shape[2:])
            self.layers[i_layer] = (k.new_empty(shape), v.new_empty(shape))
        end = self.length + k.shape[1]
        keys, values = self.layers[i_layer]
        keys[:, self.length : end] = k
        values[:, self.length : end] = v
        return keys[:, :end], values[:, :end]


class Layer(nn.Module):
    """Pre-norm attention and MLP. The attention has no weights, so all layers share it and its layouts."""

    def __init__(self, settings: ModelSettings, i_layer: int, attention: nn.Module) -> None:
        super().__init__()
        self.i_layer = i_layer
        self.heads = settings.heads
        self.attention = attention
        self.attention_norm = nn.LayerNorm(settings.dim, bias=False)
        self.to_qkv = nn.Linear(settings.dim, 3 * settings.dim, bias=False)
        self.from_heads = nn.Linear(settings.dim, settings.dim, bias=False)
        self.mlp_norm = nn.LayerNorm(settings.dim, bias=False)
        self.widen = nn.Linear(settings.dim, 2 * settings.dim, bias=False)
        self.narrow = nn.Linear(2 * settings.dim, settings.dim, bias=False)

    def forward(self, x: Tensor, rotation: Tensor, cache: KeyValueCache | None) -> Tensor:
        """x: (batch, seq_len, dim)."""
        qkv = self.to_qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.unbind(2)  # (batch, seq_len, heads, head_dim)
        q, k = rotate(q, rotation), rotate(k, rotation)
        if cache is not None:
            k, v = cache.extend(self.i_layer, k, v)
        out = self.attention(q, k, v, is_causal=True)
        x = x + self.from_heads(out.flatten(2))
        mlp: Tensor = self.narrow(F.gelu(self.widen(self.mlp_norm(x))))
        return x + mlp


class LanguageModel(nn.Module):
    """Causal language model with rotary positions; the output layer shares the weight of the embedding."""

    def __init__(self, settings: ModelSettings, attention: nn.Module) -> None:
        super().__init__()
        self.settings = settings
        self.embedding = nn.Embedding(VOCABULARY, settings.dim)
        self.layers = nn.ModuleList(Layer(settings, i, attention) for i in range(settings.layers))
        self.norm = nn.LayerNorm(settings.dim, bias=False)
        head_dim = settings.dim // settings.heads
        n_rotated = max(1, head_dim // 2 // ROTATED_SHARE)
        frequency = ROTARY_BASE ** -torch.linspace(0, 1, n_rotated, dtype=torch.float32)
        self.register_buffer("frequency", frequency, persistent=False)
        self.frequency: Tensor
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                # As in GPT-2, layers that write to the residual stream start smaller in deeper models.
                writes = name.endswith(("from_heads.weight", "narrow.weight"))
                std = INITIAL_STD * (32 / settings.dim) ** 0.5
                nn.init.normal_(weight, std=std / (2 * settings.layers) ** 0.5 if writes else std)

    def forward(
        self, tokens: Tensor, cache: KeyValueCache | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Logits of the next token: int (batch, seq_len) -> (batch, seq_len, VOCABULARY).

        `positions` (seq_len,) are those of the tokens; by default they follow one another, after those in the cache.
        """
        if positions is None:
            start = 0 if cache is None else cache.length
            positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        angle = positions[:, None] * self.frequency
        rotation = torch.stack([angle.cos(), angle.sin()])
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, rotation, cache)
        if cache is not None:
            cache.length += tokens.shape[1]
        return F.linear(self.norm(x), self.embedding.weight)

    @torch.no_grad()
    def generate(self, prompt: list[int], n_bytes: int, temperature: float = 0.7, seed: int = 0) -> list[int]:
        """Continue a prompt byte by byte, with a cache of keys and values; returns the new tokens."""
        device = self.embedding.weight.device
        generator = torch.Generator().manual_seed(seed)
        cache = KeyValueCache(len(prompt) + n_bytes)
        tokens = torch.tensor([prompt], device=device)
        written = []
        with autocast(device):
            for _ in range(n_bytes):
                logits = self(tokens, cache)[0, -1, :FIRST_PASSKEY].float().cpu()
                token = torch.multinomial((logits / temperature).softmax(0), 1, generator=generator)
                written.append(int(token))
                tokens = token[None].to(device)
        return written

    def save(self, kind: AttentionKind, file: Path) -> None:
        """Write the settings, the kind of attention and the weights."""
        torch.save({"settings": asdict(self.settings), "kind": kind, "weights": self.state_dict()}, file)


def load_model(file: Path, device: torch.device) -> LanguageModel:
    """Load a model written by `LanguageModel.save`.

    Raises:
        CommandError: the file cannot be read, or holds something else.
    """
    try:
        saved: dict[str, Any] = torch.load(file, map_location=device, weights_only=True)
        model = make_model(ModelSettings(**saved["settings"]), saved["kind"], 0, device)
        model.load_state_dict(saved["weights"])
    except OSError as error:
        raise CommandError(f"cannot read {file}: {error.strerror or error}") from None
    except Exception as error:  # torch.load may raise anything for a file of another kind
        reason = f"{type(error).__name__} {error}".splitlines()[0]
        raise CommandError(f"{file} is not a model of this demo: it cannot be loaded ({reason})") from None
    return model


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotary positions in the first dimensions of x (batch, seq_len, heads, head_dim).

    Source: RoFormer, arXiv:2104.09864.
    """
    cos, sin = rotation[:, :, None]  # each (seq_len, 1, n_rotated)
    n_rotated = cos.shape[-1]
    a, b, rest = x.split([n_rotated, n_rotated, x.shape[-1] - 2 * n_rotated], dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], dim=-1).to(x.dtype)


def make_model(
    settings: ModelSettings, kind: AttentionKind, seed: int, device: torch.device
) -> LanguageModel:
    """A new model; the same seed gives the same weights with every kind of attention."""
    torch.manual_seed(seed)
    return LanguageModel(settings, make_attention(settings, kind)).to(device)


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """Autocast to bfloat16 on a GPU; no autocast on the CPU."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


@contextmanager
def isolated_rows_allowed() -> Iterator[None]:
    """Suppress the warning about rows that keep only their diagonal block: `own_block` is such a pattern."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*some rows keep only their diagonal block")
        yield
