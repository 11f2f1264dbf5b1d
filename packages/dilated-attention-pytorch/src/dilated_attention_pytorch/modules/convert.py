"""convert_to_block_sparse: the attention modules of an existing model, made block-sparse."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar, cast

from torch import nn

from ..config import SparsePatternConfig, with_shorthands
from ..values import shown
from .multihead import BlockSparseMultiheadAttention

Model = TypeVar("Model", bound=nn.Module)
Names = str | Sequence[str] | Callable[[str, nn.Module], bool]


def convert_to_block_sparse(
    model: Model,
    sparse_config: SparsePatternConfig | Sequence[SparsePatternConfig] | None = None,
    *,
    names: Names | None = None,
    sparsity_ratio: float | None = None,
    block_size: int | None = None,
    segment_lengths: Sequence[int] | None = None,
    dilation_rates: Sequence[int] | None = None,
    backend: str | None = None,
    deterministic: bool | None = None,
) -> Model:
    """Make every `torch.nn.MultiheadAttention` of a model a `BlockSparseMultiheadAttention`, in place.

    The modules stay the same objects, with their parameters, hooks, training mode and places in the model; optimizers
    and shared modules keep working. Subclasses of `torch.nn.MultiheadAttention` compute something else and stay as they are, and so
    does what has the weights of such a module, but not its class. A `torch.nn.TransformerEncoder` around converted
    modules no longer packs padding in eval mode (``use_nested_tensor``), so that patterns are those of the padded length, as in training.

    Args:
        model: a model, or a single `torch.nn.MultiheadAttention`.
        sparse_config: the pattern, or one per head. Default ``SparsePatternConfig()``.
        names: which modules: a pattern of their names as in `model.named_modules` with the wildcards of `fnmatch`
            (``"*.self_attn"``, ``"encoder.layers.[0-5].*"``), several of them, or a function of name and module. Default: all,
            cross attention too.
        sparsity_ratio: replaces the field of that name in `sparse_config`.
        block_size: replaces the field of that name in `sparse_config`.
        segment_lengths: token dilation by distance, with `dilation_rates`.
        dilation_rates: the rate of each of `segment_lengths`.
        backend: see `block_sparse_attention`.
        deterministic: see `block_sparse_attention`.

    Returns:
        The model itself.

    Raises:
        ValueError: no module is meant, or none by one of `names`, or an argument is out of range; then nothing is converted.
        TypeError: an argument has the wrong type.

    Examples:
        >>> layer = torch.nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        >>> model = torch.nn.TransformerEncoder(layer, num_layers=2)
        >>> model = convert_to_block_sparse(model, SparsePatternConfig(sparsity_ratio=0.2))
        >>> type(model.layers[0].self_attn).__name__
        'BlockSparseMultiheadAttention'
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {shown(model)}")
    configs = with_shorthands(sparse_config, sparsity_ratio, block_size)
    found = {name: each for name, each in model.named_modules() if type(each) is nn.MultiheadAttention}
    meant = {name: each for name, each in found.items() if names is None or is_meant(names, name, each)}
    idle = (
        []
        if names is None or callable(names)
        else [each for each in listed(names) if not matches(each, found)]
    )
    if not meant or idle:
        which = f" that names={shown(names if not meant else idle)} means" if found else ""
        done = [
            name for name, each in model.named_modules() if isinstance(each, BlockSparseMultiheadAttention)
        ]
        there = "subclasses of it stay as they are"
        if found:
            there = f"there are {', '.join(map(repr, found))}"
        elif done:
            there = f"converted already: {', '.join(map(repr, done))}; to change a pattern, assign a sparse_config"
        raise ValueError(f"model has no torch.nn.MultiheadAttention{which}; {there}")
    for name, each in meant.items():  # raises before the first is changed; no memory, no random numbers
        try:
            BlockSparseMultiheadAttention(
                each.embed_dim, each.num_heads, each.dropout, device="meta", sparse_config=configs,
                segment_lengths=segment_lengths, dilation_rates=dilation_rates, backend=backend,
                deterministic=deterministic,
            )  # fmt: skip
        except (TypeError, ValueError) as error:
            raise type(error)(f"module {name!r}: {error}" if name else str(error)) from None
    for each in meant.values():
        each.__class__ = BlockSparseMultiheadAttention
        converted = cast(BlockSparseMultiheadAttention, each)
        converted._set_up(configs, segment_lengths, dilation_rates, backend, deterministic)
    for outer in model.modules():
        if isinstance(outer, nn.TransformerEncoder) and not set(meant.values()).isdisjoint(outer.modules()):
            outer.use_nested_tensor = False
    return model


def is_meant(names: Names, name: str, module: nn.Module) -> bool:
    if callable(names):
        return bool(names(name, module))
    return any(fnmatchcase(name, each) for each in listed(names))


def listed(names: str | Sequence[str]) -> Sequence[str]:
    return [names] if isinstance(names, str) else names


def matches(pattern: str, names: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)
