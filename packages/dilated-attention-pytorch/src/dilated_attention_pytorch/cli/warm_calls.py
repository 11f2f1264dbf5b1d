"""Calls for which `warm` compiles, nearly all of them small: kernels depend on neither lengths nor strides nor numbers of heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backends.problem import AttentionProblem
from ..backends.registry import choose_backend_for
from ..config import SparsePatternConfig
from ..functional import block_sparse_attention, make_problem
from ..layout import BlockLayout
from ..validation.call import check_packed_call
from ..varlen import block_sparse_attention_varlen

BATCH, KV_HEADS = 2, 2
LARGE_LENGTH, LARGE_HEADS = 12_288, 16
# Whole blocks of 128 and 256; a head of 64 has two ranges of rows, one of 128 three.
RANDOM_LENGTH, RANDOM_DENSITY = 66_048, 0.15
# 512 columns of 128; with two heads each has more than 40 blocks.
WINDOWED_LENGTH, WINDOWED_DENSITY = 65_536, 0.1
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# What a call may have beside a layout.
FEATURES = (
    "packed", "masks", "kv-lengths", "positions", "padding", "softcap", "alibi", "sinks", "block-bias", "dropout",
)  # fmt: skip
NOT_PACKED = ("kv-lengths", "positions", "padding")


class Case(NamedTuple):
    """What kernels are compiled for."""

    head_dim: int
    v_head_dim: int
    block_size: int
    dtype: str
    is_causal: bool

    def __str__(self) -> str:
        of_v = "" if self.v_head_dim == self.head_dim else f", v_head_dim {self.v_head_dim}"
        mask = "causal" if self.is_causal else "not causal"
        return f"head_dim {self.head_dim}{of_v}, block_size {self.block_size}, {self.dtype}, {mask}"


class Wanted(NamedTuple):
    """For which GPU (None: the one that is here), backend and features, and with which backward.

    Calls that are not `deterministic` are plain ones: others have no backward of their own.
    """

    capability: tuple[int, int] | None
    backend: str
    features: tuple[str, ...]
    has_backward: bool
    deterministic: bool = True

    @property
    def device(self) -> str:
        """Where the tensors of the calls are."""
        return "cuda" if self.capability is None else "cpu"


@dataclasses.dataclass
class SmallCall:
    """Tensors (batch, tokens, heads, head_dim), a layout, and what else the call gives."""

    q: Tensor
    k: Tensor
    v: Tensor
    layout: BlockLayout
    options: dict[str, Any]
    features: tuple[str, ...]

    @property
    def is_packed(self) -> bool:
        """Whether its tokens are sequences one behind the other."""
        return "packed" in self.features

    def packed(self) -> dict[str, Any]:
        """The same tokens as sequences one behind the other."""
        q_len, kv_len = self.q.shape[1], self.k.shape[1]
        of_q, of_k = (
            torch.arange(BATCH + 1, dtype=torch.int32, device=self.q.device) * n for n in (q_len, kv_len)
        )
        tokens = {name: x.flatten(0, 1) for name, x in (("q", self.q), ("k", self.k), ("v", self.v))}
        lengths = {"max_seqlen_q": q_len, "max_seqlen_k": kv_len}
        return {
            **tokens,
            "layout": self.layout,
            "cu_seqlens_q": of_q,
            "cu_seqlens_k": of_k,
            **lengths,
            **self.options,
        }

    def problem(self) -> AttentionProblem:
        """What a backend is asked."""
        if self.is_packed:
            return check_packed_call(**self.packed()).problem(self.layout)
        return make_problem(self.q, self.k, self.v, self.layout, **self.options)

    def run(self, backend: str, has_backward: bool) -> None:
        """Call, and with `has_backward` differentiate out alone, and out and lse."""
        given = [self.q, self.k, self.v, self.options.get("sinks"), self.options.get("block_bias")]
        leaves = [x.requires_grad_(has_backward) for x in given if x is not None]
        outputs: tuple[Tensor, Tensor]
        if self.is_packed:
            outputs = block_sparse_attention_varlen(**self.packed(), return_lse=True, backend=backend)
        else:
            outputs = block_sparse_attention(
                self.q, self.k, self.v, self.layout, **self.options, return_lse=True, backend=backend
            )
        if has_backward:
            for of in (outputs[:1], outputs):
                torch.autograd.grad(of, leaves, [torch.zeros_like(x) for x in of], retain_graph=True)


def compile_kernels(call: SmallCall, wanted: Wanted) -> None:
    """Compile the kernels of a call: by running it where its GPU is.

    Raises:
        ValueError: no backend, or not the one that is wanted, serves the call.
    """
    if wanted.capability is None:
        call.run(wanted.backend, wanted.has_backward)
        return
    problem = call.problem()
    backend = choose_backend_for(problem, wanted.capability, wanted.backend)
    out = torch.zeros(*problem.q.shape[:3], problem.v_head_dim, dtype=problem.q.dtype)
    lse = torch.zeros(out.shape[0], out.shape[2], out.shape[1])
    grads = [(out, None), (out, lse)] if wanted.has_backward else []
    backend.compile_for(problem.prepared_by(backend, call.layout), wanted.capability, grads)


def small_calls(case: Case, wanted: Wanted) -> Iterator[SmallCall]:
    """Calls of all sizes, plain, and the small ones with all features together and with ``deterministic=False`` as well."""
    for q_len, kv_len, num_heads in small_sizes(case):
        yield small_call(case, q_len, kv_len, num_heads, wanted.device, ())
        if wanted.features:
            yield small_call(case, q_len, kv_len, num_heads, wanted.device, wanted.features)
        if not wanted.deterministic:
            call = small_call(case, q_len, kv_len, num_heads, wanted.device, ())
            call.options["deterministic"] = False
            yield call
    yield from large_calls(case, wanted)


def small_sizes(case: Case) -> Iterator[tuple[int, int, int]]:
    """Whole blocks, a ragged end, and fewer queries than keys that begin inside a block; heads alone and in groups."""
    b = case.block_size
    for q_len, kv_len in ((2 * b, 2 * b), (2 * b + 5, 2 * b + 5), (b + 3, 2 * b + 5)):
        for num_heads in (KV_HEADS, 2 * KV_HEADS):
            yield q_len, kv_len, num_heads


def large_calls(case: Case, wanted: Wanted) -> Iterator[SmallCall]:
    """Calls, of whole blocks and with a ragged end, that run and may have another backward than small ones.

    Where calls are compiled and not run, a backend compiles all backwards of a small one.
    """
    if wanted.capability is not None or not wanted.has_backward:
        return
    orders = [True] if case.block_size >= 128 else []
    if not wanted.deterministic and case.block_size >= 64:
        orders.append(False)
    for deterministic in orders:
        for length in (LARGE_LENGTH, LARGE_LENGTH + 5):
            call = small_call(case, length, length, LARGE_HEADS, wanted.device, ())
            call.options["deterministic"] = deterministic
            yield call
            if case.block_size < 128:
                continue
            if not deterministic:
                yield scattered(case, RANDOM_LENGTH + length % 128, call)
            elif not case.is_causal:
                yield windowed(case, WINDOWED_LENGTH + length % 128, call)


def windowed(case: Case, length: int, like: SmallCall) -> SmallCall:
    """A call of a window with the options of another, long enough that programs of the backward take turns."""
    config = SparsePatternConfig("local_window", block_size=case.block_size, sparsity_ratio=WINDOWED_DENSITY)
    layout = BlockLayout.from_config(config, length, device=like.q.device)
    return of_length(length, layout, like)


def scattered(case: Case, length: int, like: SmallCall) -> SmallCall:
    """A call of random blocks with the options of another, long enough that the backward goes through ranges of rows."""
    n = -(-length // case.block_size)
    mask = torch.rand(n, n, device=like.q.device) < RANDOM_DENSITY
    layout = BlockLayout.from_dense(
        mask.tril() if case.is_causal else mask, case.block_size, length, length, case.is_causal
    )
    return of_length(length, layout, like)


def of_length(length: int, layout: BlockLayout, like: SmallCall) -> SmallCall:
    """A call of one sequence with the options of another."""
    q, k, v = (x.new_zeros(1, length, KV_HEADS, x.shape[3]) for x in (like.q, like.k, like.v))
    return SmallCall(q, k, v, layout, dict(like.options), ())


def small_call(
    case: Case, q_len: int, kv_len: int, num_heads: int, device: str, features: tuple[str, ...]
) -> SmallCall:
    """A call with these features."""
    config = SparsePatternConfig(block_size=case.block_size, sparsity_ratio=0.4)
    layout = BlockLayout.from_config(config, q_len, kv_len, causal=case.is_causal, device=device)
    if "masks" in features:
        layout = BlockLayout.from_mask_mod(
            lambda b, h, q, kv: (q + kv_len - q_len - kv).abs() < case.block_size,
            q_len,
            kv_len,
            case.block_size,
            causal=case.is_causal,
            device=device,
        )
    sizes = (
        (q_len, num_heads, case.head_dim),
        (kv_len, KV_HEADS, case.head_dim),
        (kv_len, KV_HEADS, case.v_head_dim),
    )
    q, k, v = (torch.zeros(BATCH, *size, dtype=DTYPES[case.dtype], device=device) for size in sizes)
    options: dict[str, Any] = {"is_causal": case.is_causal}
    for name in features:
        options |= feature_options(name, q, kv_len, layout)
    return SmallCall(q, k, v, layout, options, features)


def feature_options(name: str, q: Tensor, kv_len: int, layout: BlockLayout) -> dict[str, Any]:
    """The arguments that a feature is."""
    device, num_heads = q.device, q.shape[2]
    if name in ("kv-lengths", "positions"):
        lengths = torch.full((BATCH,), kv_len - 1, dtype=torch.int32, device=device)
        if name == "kv-lengths":
            return {"kv_lengths": lengths}
        return {
            "kv_lengths": lengths,
            "kv_starts": torch.ones_like(lengths),
            "q_offset": torch.full_like(lengths, layout.grid.q_offset),
        }
    if name == "padding":
        return {"key_padding_mask": torch.zeros(BATCH, kv_len, dtype=torch.bool, device=device)}
    if name == "alibi":
        return {"alibi_slopes": torch.ones(num_heads, device=device)}
    if name == "sinks":
        return {"sinks": torch.zeros(num_heads, dtype=q.dtype, device=device)}
    if name == "block-bias":
        return {"block_bias": torch.zeros(1, num_heads, layout.num_block_ids, dtype=q.dtype, device=device)}
    return {"softcap": {"softcap": 30.0}, "dropout": {"dropout_p": 0.1}}.get(name, {})
