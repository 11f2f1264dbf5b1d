"""Features: what a call may ask for beyond a plain one, each with the plain call that it is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dilated_attention_pytorch import (
    BlockLayout,
    SparsePatternConfig,
    block_sparse_attention,
    block_sparse_attention_varlen,
    explain_backends,
    explain_backends_varlen,
)

from .cases import DTYPES, RANDOM, Case

SHARES = (
    0.31,
    0.23,
    0.19,
    0.13,
    0.09,
)  # of the tokens, of sequences of different lengths; the last has the rest


@dataclass
class FeatureCall:
    """A call of ours.

    inputs: q, k and v, and the other tensors that get gradients, by name. options: the other arguments. packed: the arguments
    of packed sequences behind the layout, None for a batch. blocks: active blocks of all heads and batch elements that the
    call computes.
    """

    layout: BlockLayout
    inputs: dict[str, Tensor]
    options: dict[str, Any]
    blocks: int
    packed: tuple[Any, ...] | None = None
    grad: Tensor = field(init=False)

    def __post_init__(self) -> None:
        q, v = self.inputs["q"], self.inputs["v"]
        generator = torch.Generator(q.device).manual_seed(1)
        self.grad = torch.randn(
            (*q.shape[:-1], v.shape[-1]), generator=generator, device=q.device, dtype=q.dtype
        )

    @property
    def pairs(self) -> int:
        """Pairs of tokens in its active blocks, of which one on the diagonal of a causal call counts in full."""
        return self.blocks * self.layout.block_size**2

    def attend(self, backend: str | None, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """out and lse of these inputs."""
        given = {**self.options, **inputs, "backend": backend, "return_lse": True}
        q, k, v = (given.pop(name) for name in "qkv")
        made: tuple[Tensor, Tensor]
        if self.packed is None:
            made = block_sparse_attention(q, k, v, self.layout, **given)
        else:
            made = block_sparse_attention_varlen(q, k, v, self.layout, *self.packed, **given)
        return made

    def forward(self, backend: str | None) -> Tensor:
        with torch.no_grad():
            return self.attend(backend, self.inputs)[0]

    def backward(self, backend: str | None) -> Callable[[], tuple[Tensor, ...]]:
        """A function that runs the backward, for one forward with copies of the inputs."""
        inputs = {name: x.clone().requires_grad_() for name, x in self.inputs.items()}
        out, _ = self.attend(backend, inputs)
        return lambda: torch.autograd.grad(out, tuple(inputs.values()), self.grad, retain_graph=True)

    def serving(self) -> str:
        """The backend that the library chooses."""
        given = {**self.options, **self.inputs}
        q, k, v = (given.pop(name) for name in "qkv")
        if self.packed is None:
            reasons = explain_backends(q, k, v, self.layout, **given)
        else:
            reasons = explain_backends_varlen(q, k, v, self.layout, *self.packed, **given)
        return next(name for name, why_not in reasons.items() if why_not is None)


@dataclass(frozen=True)
class Feature:
    """make: the call, of the case without features and a device. base: the feature whose time it is compared with.
    has_dense: whether dense attention loses time to it as well, so that the loss is compared with that.
    """

    name: str
    make: Callable[[Case, str], FeatureCall]
    base: str = "plain"
    has_dense: bool = False


def made(case: Case, layout: BlockLayout, blocks: int | None = None, **options: Any) -> FeatureCall:
    """A call of a case; `blocks` are active blocks of the layout per head of it and batch element, default all."""
    q, k, v = case.inputs(str(layout.device))
    n_blocks = layout.num_active_blocks if blocks is None else blocks
    if case.causal:
        options["is_causal"] = True
    heads = case.batch * case.heads // layout.num_heads
    return FeatureCall(layout, {"q": q, "k": k, "v": v}, options, n_blocks * heads)


def active(layout: BlockLayout, first_row: int = 0, rows: int | None = None, cols: int | None = None) -> int:
    """Active blocks from a row on, up to a number of rows and columns."""
    _, row, col = layout.coo()
    is_there = row >= first_row
    if rows is not None:
        is_there &= row < rows
    if cols is not None:
        is_there &= col < cols
    return int(is_there.sum())


def blocks_of(tokens: int, case: Case) -> int:
    return -(-tokens // case.block)


def other(**fields: Any) -> Callable[[Case, str], FeatureCall]:
    """The same call with other sizes."""

    def make(case: Case, device: str) -> FeatureCall:
        case = replace(case, **fields)
        return made(case, case.layout(device))

    return make


def grouped(case: Case, device: str) -> FeatureCall:
    return other(kv_heads=max(1, case.heads // 4))(case, device)


def with_options(options: Callable[[Case, str], dict[str, Any]]) -> Callable[[Case, str], FeatureCall]:
    """The plain call with more arguments."""
    return lambda case, device: made(case, case.layout(device), **options(case, device))


def packed(shares: tuple[float, ...], causal: bool = False) -> Callable[[Case, str], FeatureCall]:
    """Sequences one behind the other; their rows have about as many blocks as those of the plain call."""

    def make(case: Case, device: str) -> FeatureCall:
        lengths = [int(share * case.seqlen) for share in shares]
        lengths[-1] += case.seqlen - sum(lengths)
        longest = max(lengths)
        density = min(1.0, case.density * case.seqlen / longest)
        layout = replace(case, seqlen=longest, density=density, causal=causal).layout(device)
        blocks = [blocks_of(n, case) for n in lengths]
        call = made(replace(case, causal=causal), layout, sum(active(layout, rows=n, cols=n) for n in blocks))
        call.inputs = {name: x[0] for name, x in call.inputs.items()}
        call.grad = call.grad[0]
        starts = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
        call.packed = (starts, starts, longest, longest)
        return call

    return make


def padded(case: Case, device: str, is_right: bool) -> dict[str, Any]:
    """A sixteenth of the keys and a few are padding."""
    mask = torch.zeros(case.batch, case.seqlen, dtype=torch.bool, device=device)
    n = case.seqlen // 16 + 5
    mask[:, -n:] = is_right
    mask[:, :n] = not is_right
    return {"key_padding_mask": mask}


def kv_lengths(case: Case, device: str) -> FeatureCall:
    layout, n = case.layout(device), case.seqlen - case.seqlen // 16 - 5
    lengths = torch.full((case.batch,), n, dtype=torch.int32, device=device)
    return made(case, layout, active(layout, cols=blocks_of(n, case)), kv_lengths=lengths)


def kv_starts(case: Case, device: str) -> FeatureCall:
    case = replace(case, causal=True)
    layout, n = case.layout(device), case.seqlen // 16 + 5
    blocks = blocks_of(case.seqlen - n, case)
    starts = torch.full((case.batch,), n, dtype=torch.int32, device=device)
    return made(case, layout, active(layout, rows=blocks, cols=blocks), kv_starts=starts)


def q_offset(case: Case, device: str) -> FeatureCall:
    """The last queries of a causal call; the first of them is in the middle of a block."""
    case = replace(case, causal=True)
    layout = case.layout(device)
    offset = case.seqlen // 4 + case.block // 2 + 3
    call = made(case, layout, active(layout, first_row=offset // case.block), q_offset=offset)
    call.inputs["q"] = call.inputs["q"][:, offset:].contiguous()
    call.grad = call.grad[:, offset:].contiguous()
    return call


def window(is_exact: bool) -> Callable[[Case, str], FeatureCall]:
    """A causal window of an eighth of the tokens and a few: whole blocks, or exact to the token."""

    def make(case: Case, device: str) -> FeatureCall:
        config = SparsePatternConfig(
            "local_window", case.block, window_size=case.seqlen // 8 + 5, exact=is_exact
        )
        layout = BlockLayout.from_config(config, case.seqlen, causal=True, device=device)
        return made(replace(case, causal=True), layout)

    return make


def biased(has_grad: bool) -> Callable[[Case, str], FeatureCall]:
    def make(case: Case, device: str) -> FeatureCall:
        call = made(case, case.layout(device))
        generator = torch.Generator(device).manual_seed(3)
        shape = (1, case.heads, call.layout.num_block_ids)
        bias = torch.randn(shape, generator=generator, device=device, dtype=DTYPES[case.dtype])
        (call.inputs if has_grad else call.options)["block_bias"] = bias
        return call

    return make


def sinks(case: Case, device: str) -> FeatureCall:
    call = made(case, case.layout(device))
    call.inputs["sinks"] = torch.linspace(-1, 1, case.heads, device=device)
    return call


def slopes(case: Case, device: str) -> dict[str, Any]:
    return {"alibi_slopes": 2.0 ** -torch.linspace(1, 8, case.heads, device=device)}


# In the order of worth.
FEATURES: dict[str, Feature] = {
    feature.name: feature
    for feature in (
        Feature("plain", other()),
        Feature("causal", other(causal=True)),
        Feature("kv_lengths", kv_lengths),
        Feature("packed-uneven", packed(SHARES)),
        Feature("packed-whole", packed((0.25,) * 4)),
        Feature("packed-causal", packed(SHARES, causal=True), "causal"),
        Feature("exact-window", window(True), "window"),
        Feature("padding-right", with_options(lambda case, device: padded(case, device, True))),
        Feature("padding-left", with_options(lambda case, device: padded(case, device, False))),
        Feature("q_offset", q_offset, "causal"),
        Feature("block_bias", biased(False)),
        Feature("block_bias-gradient", biased(True)),
        Feature("random-64", other(pattern=RANDOM, block=64), "block-64"),
        Feature("head_dim-96", other(head_dim=96), has_dense=True),
        Feature("head_dim-256", other(head_dim=256), has_dense=True),
        Feature("head_dim-192", other(head_dim=192), has_dense=True),
        Feature("head_dim-192-128", other(head_dim=192, v_head_dim=128), has_dense=True),
        Feature("block-256", other(block=256)),
        Feature("block-32", other(block=32)),
        Feature("kv_starts", kv_starts, "causal"),
        Feature("softcap", with_options(lambda case, device: {"softcap": 30.0})),
        Feature("alibi", with_options(slopes)),
        Feature("sinks", sinks),
        Feature("grouped-heads", grouped),
        Feature("block-64", other(block=64)),
        Feature("block-16", other(block=16)),
        Feature("random", other(pattern=RANDOM)),
        Feature("dropout", with_options(lambda case, device: {"dropout_p": 0.1})),
        Feature("window", window(False), "causal"),
    )
}
