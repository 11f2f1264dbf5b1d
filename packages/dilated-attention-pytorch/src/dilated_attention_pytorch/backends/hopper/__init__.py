"""The Hopper backend: warp-specialised Gluon kernels for compute capability 9.0 (H100, H200)."""

from __future__ import annotations

import functools
import os
import warnings
from types import ModuleType

import torch
from torch import Tensor

from ... import _torch_internals
from ...config import TokenDilation
from ...launching.installed import TRITON_DISTRIBUTIONS, installed_versions, is_installed, release
from ...launching.supported_triton import NEWEST, NEWEST_TRITON, NOT_NEWER, NOT_OLDER, OLDEST, OLDEST_TRITON
from ...layout.layout import BlockLayout
from ..problem import (
    AttentionProblem,
    Backend,
    Forward,
    Gradients,
    OutputGrads,
    beyond_plain_batch,
    beyond_plain_scores,
)
from .column_groups import MAX_GROUP_SIZE, MAX_RATES
from .joined_tiles import BYTES_OF_MASK, joined_tiles, most_tiles
from .prepared import make_prepared
from .quarters import LARGE
from .shares import shares_of, splits_rows
from .strides import is_readable
from .turn_order import has_turns
from .work_order import make_work_order

MAX_HEAD_DIM = 256
MAX_DILATED_HEAD_DIM = 128  # with token dilation
SMALLEST_TILE = 64  # smaller blocks are joined to tiles of so many tokens
# A tile takes the time of all its blocks. On an H200 backend 'triton' is faster where tiles of blocks of 16 are filled to less than
# this; tiles of patterns are filled to more, but for a few. Tiles of blocks of 32 hold four, which is always enough.
LEAST_ACTIVE = 0.15
MOST_MASK_BYTES = 64 * 2**20  # of tiles whose blocks have masks inside them
OTHERWISE = "use backend='triton'"
NOT_INSTALLED = f"triton is not installed (pip install '{NOT_OLDER}', on Linux)"


def refused_triton(versions: list[str]) -> str | None:
    """Why the kernels do not run with an installed triton of these versions, or None."""
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        return "TRITON_INTERPRET=1 is set, and Triton does not interpret Gluon"
    if not versions:
        return "the version of triton is unknown" if is_installed("triton") else NOT_INSTALLED
    for text in versions:
        found = release(text)
        if found is None:
            return f"the version of triton is unknown: {text!r}"
        if found < OLDEST_TRITON:
            return f"triton {text} is older than {OLDEST} (pip install '{NOT_OLDER}')"
    return None


def untested_triton(versions: list[str]) -> str | None:
    """Why the kernels are untested with an installed triton of these versions, or None."""
    for text in versions:
        if (release(text) or (0, 0)) > NEWEST_TRITON:
            return (
                f"triton {text} is newer than the newest tested, {NEWEST} (pip install '{NOT_NEWER}', or install a newer "
                "release of this library)"
            )
    return None


VERSIONS = installed_versions("triton", *TRITON_DISTRIBUTIONS)
REFUSED_TRITON = refused_triton(VERSIONS)
UNTESTED_TRITON = None if REFUSED_TRITON else untested_triton(VERSIONS)
HAS_GLUON = REFUSED_TRITON is None and UNTESTED_TRITON is None
WARNED: list[bool] = []


@functools.lru_cache(maxsize=64)
def capability(index: int | None) -> tuple[int, int]:
    """The compute capability of a device (None: the current one), cached because torch takes longer."""
    return torch.cuda.get_device_capability(index)


def is_hopper(index: int | None) -> bool:
    """Whether the device (None: the current one) has compute capability 9.0, as some GPUs of AMD have too."""
    if torch.version.hip is not None:
        return False
    if torch.compiler.is_compiling():  # Dynamo warns about caches
        return torch.cuda.get_device_capability(index) == (9, 0)
    return capability(index) == (9, 0)


@functools.cache
def launches() -> ModuleType:
    """launch.py, imported late because it needs triton; an import statement per call would take 1 us."""
    from . import launch

    return launch


@functools.cache
def order_kernels() -> ModuleType:
    """device_order.py, imported late because it needs triton."""
    from . import device_order

    return device_order


@functools.cache
def tile_kernels() -> ModuleType:
    """device_tiles.py, imported late because it needs triton."""
    from . import device_tiles

    return device_tiles


def rejected_device(q: Tensor) -> str | None:
    """Why the kernels do not run where q is; None if they do."""
    if q.device.type != "cuda":
        return f"q is on {q.device}, needs a CUDA device"
    if torch.version.hip is not None:
        return f"q is on {q.device}, a GPU of AMD; needs an NVIDIA GPU of compute capability (9, 0)"
    if not is_hopper(q.device.index):
        return f"compute capability {torch.cuda.get_device_capability(q.device)} is not (9, 0)"
    return None


def rejected_call(problem: AttentionProblem) -> str | None:
    """Why the kernels cannot serve a call, whatever triton is installed; None if they can."""
    return rejected_device(problem.q) or rejected_values(problem)


def rejected_values(problem: AttentionProblem) -> str | None:
    """Why the kernels cannot serve a call on the right device; None if they can."""
    p = problem
    if p.q.dtype not in (torch.float16, torch.bfloat16):
        return f"q has dtype {p.q.dtype}, needs float16 or bfloat16 (convert q, k and v, or {OTHERWISE})"
    for what, dim in (("head_dim", p.head_dim), ("v head_dim", p.v_head_dim)):
        if not 0 < dim <= MAX_HEAD_DIM:
            return f"{what} is {dim}, needs at most {MAX_HEAD_DIM} (use more heads that are smaller)"
        if dim % 8:
            return f"{what} is {dim}, needs a multiple of 8 ({OTHERWISE})"
    if p.block_size < SMALLEST_TILE:
        why_not = rejected_small_blocks(p)
        if why_not is not None:
            return why_not
    if p.attn_bias is not None:
        return f"attn_bias is given, needs None (write it as block_bias or as a mask of the layout, or {OTHERWISE})"
    if p.softmax_scale <= 0.0:
        return f"softmax_scale is {p.softmax_scale}, needs more than 0 (scale q, or {OTHERWISE})"
    n_blocks = p.rows.indices.numel()
    if p.block_size == LARGE and n_blocks >= 2**29:
        return f"block_size is 256 with {n_blocks} active blocks, needs fewer than 2**29 (make the layout with 128)"
    if p.dilation is not None:
        why_not = rejected_dilation(p)
        if why_not is not None:
            return why_not
    return None


def rejected_small_blocks(problem: AttentionProblem) -> str | None:
    """Why the kernels do not serve the blocks of 16 or 32 of a call, joined to tiles of 64; None if they do."""
    p, n_blocks = problem, problem.rows.indices.numel()
    n_heads = p.layout_batch * p.layout_heads
    otherwise = f"make the layout with 64, 128 or 256, or {OTHERWISE}"
    active = n_blocks / (n_heads * max(1, p.grid.available()))
    if p.block_size == 16 and not p.of_pattern and active < LEAST_ACTIVE:
        return (
            f"block_size is 16, and {active:.1%} of the blocks are active in no pattern, needs {LEAST_ACTIVE:.0%} or a "
            f"SparsePatternConfig (make the layout with 32 or more, or {OTHERWISE})"
        )
    if p.block_bias is not None:
        return f"block_bias is given with block_size {p.block_size}, needs None ({otherwise})"
    if p.block_masks is not None:
        n_tiles = most_tiles(p.grid, n_heads, n_blocks)
        most = MOST_MASK_BYTES // BYTES_OF_MASK
        if n_tiles > most:
            return f"masks inside blocks are given with block_size {p.block_size} and {n_tiles} tiles of 64, needs at most {most} ({otherwise})"
    return None


def rejected_dilation(problem: AttentionProblem) -> str | None:
    """Why the kernels do not dilate the tokens of a call; None if they do."""
    beyond = beyond_dilation(problem) or beyond_plain_batch(problem) or beyond_plain_scores(problem)
    return None if beyond is None else f"with token dilation, {beyond} ({OTHERWISE})"


def beyond_dilation(problem: AttentionProblem) -> str | None:
    """What a problem asks for that kernels with token dilation lack, beside what is beyond a plain batch and plain scores."""
    p, n_blocks = problem, problem.rows.indices.numel()
    if p.block_size != 128:
        return f"block_size is {p.block_size}, needs 128"
    for what, dim in (("head_dim", p.head_dim), ("v head_dim", p.v_head_dim)):
        if dim > MAX_DILATED_HEAD_DIM:
            return f"{what} is {dim}, needs at most {MAX_DILATED_HEAD_DIM}"
    if len(p.rates) > MAX_RATES:
        return f"dilation_rates is {p.rates}, needs at most {MAX_RATES} rates"
    if max(p.rates) > MAX_GROUP_SIZE:
        return f"dilation_rates is {p.rates}, needs rates up to {MAX_GROUP_SIZE}"
    if p.kv_len % max(p.rates):
        return f"kv_len is {p.kv_len}, needs a multiple of the largest rate, {max(p.rates)}"
    if n_blocks >= 2**30:
        return f"the layout has {n_blocks} active blocks, needs fewer than 2**30"
    for what, value in (("block_bias", p.block_bias), ("key_padding_mask", p.key_padding_mask)):
        if value is not None:
            return f"{what} is given, needs None"
    if p.sequences is not None and p.sequences.only_lengths and not p.sequences.is_packed:
        return "kv_lengths is given, needs None"
    if p.dropout_p > 0.0:
        return f"dropout_p is {p.dropout_p}, needs 0"
    if p.q_offset % p.block_size:
        return f"the first query is at position {p.q_offset} (q_offset, or kv_len - q_len), needs a multiple of 128"
    return None


@_torch_internals.constant_in_graphs  # a compiled call warns when it is traced
def warn_of_untested_triton() -> None:
    """Warn once per process that an untested triton keeps the Hopper kernels from serving calls."""
    if not WARNED:
        WARNED.append(True)
        warnings.warn(
            f"{UNTESTED_TRITON}: the slower kernels of backend 'triton' serve what backend 'hopper' would",
            stacklevel=2,
        )


def note_other_backend(problem: AttentionProblem) -> None:
    """Warn if a triton that is too new is the only reason why another backend serves the call."""
    if UNTESTED_TRITON is not None and rejected_call(problem) is None:
        warn_of_untested_triton()


class HopperBackend(Backend):
    """Fused kernels; see kernels/forward.py and kernels/backward.py."""

    name = "hopper"

    def rejects(self, problem: AttentionProblem) -> str | None:
        if not HAS_GLUON:
            return REFUSED_TRITON or UNTESTED_TRITON or NOT_INSTALLED
        return rejected_call(problem)

    def rejects_for(self, problem: AttentionProblem, capability: tuple[int, int]) -> str | None:
        if not HAS_GLUON:
            return REFUSED_TRITON or UNTESTED_TRITON or NOT_INSTALLED
        if capability != (9, 0):
            return f"compute capability {capability} is not (9, 0)"
        return rejected_values(problem)

    def compile_for(
        self, problem: AttentionProblem, capability: tuple[int, int], grads: list[OutputGrads]
    ) -> None:
        from .ahead import compile_call

        compile_call(problem, capability, grads)

    def prepare(self, layout: BlockLayout, dilation: TokenDilation | None) -> tuple[Tensor, ...]:
        """`Prepared`, flat."""
        # outside the closure, which may run in a thread that must not wait for this one
        lists, masks = layout.lists(dilation), layout.block_masks
        grid, n_heads = layout.grid, layout.batch * layout.num_heads
        make, join, turns = make_work_order, joined_tiles, has_turns(layout, dilation)
        if layout.device.type == "cuda" and HAS_GLUON:
            make = order_kernels().work_order_by_kernels
            if layout.block_size < SMALLEST_TILE:
                join = tile_kernels().joined_tiles_by_kernels
        return layout.keep(
            self.name,
            dilation,
            lambda: make_prepared(grid, n_heads, lists, dilation, masks, make, join, turns).tensors(),
        )

    def prepare_shares(self, problem: AttentionProblem, layout: BlockLayout) -> tuple[Tensor, ...]:
        """Lists of the shares of split rows (shares.py), for a small problem, if that is asked for."""
        if not splits_rows():
            return ()
        # lists of another kind of layout are made for every call, or say nothing of how long they are
        if not layout.is_exact or layout.is_captured or not HAS_GLUON or layout.device.type != "cuda":
            return ()
        n_shares = launches().wanted_shares(problem)
        if n_shares == 1:
            return ()
        return layout.keep(f"{self.name}, {n_shares} shares", None, lambda: shares_of(problem, n_shares))

    def forward(self, problem: AttentionProblem) -> tuple[Tensor, Tensor]:
        made: tuple[Tensor, Tensor] = launches().launch_forward(problem)
        return made

    def bind(self, problem: AttentionProblem) -> Forward | None:
        """A forward that launches directly, with everything but q, k and v looked up once."""
        bound: Forward | None = launches().bind_forward(problem)
        return bound

    def backward(
        self, problem: AttentionProblem, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
    ) -> Gradients:
        made: Gradients = launches().launch_backward(problem, out, lse, grad_out, grad_lse)
        return made

    def why_deterministic(self, problem: AttentionProblem) -> str | None:
        why_not: str | None = launches().why_deterministic(problem)
        return why_not

    def forward_into(self, problem: AttentionProblem, out: Tensor) -> Tensor:
        if not is_readable(out):
            return super().forward_into(problem, out)
        lse: Tensor = launches().launch_forward(problem, out)[1]
        return lse

    def backward_into(
        self,
        problem: AttentionProblem,
        out: Tensor,
        lse: Tensor,
        grad_out: Tensor,
        grad_lse: Tensor | None,
        dq: Tensor,
    ) -> Gradients:
        if not is_readable(dq):
            return super().backward_into(problem, out, lse, grad_out, grad_lse, dq)
        made: Gradients = launches().launch_backward(problem, out, lse, grad_out, grad_lse, dq)
        return made


HOPPER = HopperBackend()
