"""register_block_sparse_attention: the attention under a name of the registries of transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

from ... import values
from ...config import SparsePatternConfig, with_shorthands
from ...layout.cache import Pattern
from ...validation.numbers import checked_deterministic
from ...values import shown
from .attention import Settings, make_attention
from .masks import make_mask_function

REGISTERED: set[str] = set()


def register_block_sparse_attention(
    name: str = "block_sparse",
    sparse_config: SparsePatternConfig | Sequence[SparsePatternConfig] | None = None,
    *,
    sparsity_ratio: float | None = None,
    block_size: int | None = None,
    layers: Iterable[int] | Callable[[nn.Module], bool] | None = None,
    cross_attention: bool = False,
    look_for_padding: bool = True,
    deterministic: bool | None = None,
) -> None:
    """Make ``attn_implementation=name`` of a transformers model attend to the blocks of a pattern.

    Models take it from their config, ``from_pretrained(..., attn_implementation=name)`` or
    ``model.set_attn_implementation(name)``. Registered again, a name gets a new meaning, in models that use it too.

    Sequences padded on the left or the right, packed (by `position_ids` or ``cu_seq_lens_q``), continued from a cache of any
    kind, or in chunks give what they give alone and at once; only models without causality see the pattern of the padded
    length. Layers with a sliding window attend to exactly their window: that is sparse already. A `softcap` and sinks are
    part of the scores. Steps of up to 16 tokens go to `block_sparse_decode`, whose host never waits for a GPU.

    Args:
        name: for the registries; without ``/``, ``|``, ``"flash"`` and ``"flex"``, which mean other things to transformers.
        sparse_config: the pattern of all heads, or a sequence with one per head or kv head; a dict stands for a config of its
            items. Default ``SparsePatternConfig()``.
        sparsity_ratio: replaces the field of that name in `sparse_config`.
        block_size: replaces the field of that name in `sparse_config`.
        layers: which layers are sparse, by `layer_idx`, or by a function of the attention module; the others use
            ``scaled_dot_product_attention``, and all blocks where the model has a softcap or sinks. Default: all.
        cross_attention: whether layers that attend to another sequence are sparse too. Default: they are dense. A step of
            decoding sees other blocks there than the whole target at once: for models without a cache.
        look_for_padding: whether a forward of more than 16 tokens with an `attention_mask` reads it once, as transformers
            does for sdpa: all ones then cost nothing. The host waits for the GPU. False: it never does, and every such
            forward runs with positions of its own for each sequence, which takes somewhat longer than a plain call.
        deterministic: of sparse layers, see `block_sparse_attention`.

    Raises:
        ValueError: an argument is out of its range; the message names it.
        TypeError: an argument has the wrong type; the message names it.

    A forward raises NotImplementedError, which says why, where a model asks for what is not served: a position bias (T5),
    attention weights, chunked attention, images with masks of their own, a mask of four dimensions in a causal layer.

    Examples:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> register_block_sparse_attention("block_sparse", sparsity_ratio=0.1)
        >>> sizes = dict(vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
        >>> model = LlamaForCausalLM(LlamaConfig(**sizes, attn_implementation="block_sparse"))
        >>> model(torch.ones(1, 200, dtype=torch.int64)).logits.shape
        torch.Size([1, 200, 32])
    """
    check_name(name)
    for option, value in (("cross_attention", cross_attention), ("look_for_padding", look_for_padding)):
        if values.flag(value) is None:
            raise TypeError(f"{option} must be True or False, got {shown(value)}")
    pattern = Pattern.of(with_shorthands(sparse_config, sparsity_ratio, block_size))
    if deterministic is not None:
        deterministic = checked_deterministic(deterministic)
    settings = Settings(name, pattern, checked_layers(layers), bool(cross_attention), deterministic)
    AttentionInterface.register(name, make_attention(settings))
    AttentionMaskInterface.register(name, make_mask_function(name, bool(look_for_padding)))
    REGISTERED.add(name)


def check_name(name: object) -> None:
    """Raise unless transformers can look the attention up under this name."""
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, got {shown(name)}; use e.g. 'block_sparse'")
    taken = name not in REGISTERED and (name in AttentionInterface() or name in AttentionMaskInterface())
    if taken or not name or name == "eager" or any(part in name for part in ("/", "|", "flash", "flex")):
        raise ValueError(
            f"name must be free in transformers and without '/', '|', 'flash' and 'flex', which mean other attentions there, "
            f"got {name!r}; use e.g. 'block_sparse'"
        )


def checked_layers(layers: object) -> frozenset[int] | Callable[[nn.Module], bool] | None:
    """The layers as a set, a function, or None for all."""
    if layers is None or callable(layers):
        return layers
    given = values.items(list(layers) if isinstance(layers, (range, set, frozenset)) else layers)
    numbers = [values.integer(each) for each in given or ()]
    if given is None or any(number is None or number < 0 for number in numbers):
        raise values.wrong(
            None if given is None or None in numbers else numbers,
            f"layers must be numbers of layers >= 0, or a function of the attention module, got {shown(layers)}; use e.g. "
            "range(2, 16), or None for all",
        )
    return frozenset(number for number in numbers if number is not None)
