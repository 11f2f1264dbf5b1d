"""The Hopper backend: warp-specialised Gluon kernels for compute capability 9.0 (H100, H200)."""

from __future__ import annotations

import functools
import os
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

import torch
from torch import Tensor

from ...patterns.joined import MOST_JOINED, MOST_RATES
from ..problem import AttentionProblem, Forward, Gradients

HEAD_DIMS = (64, 128)
BLOCK_SIZES = (64, 128)
OLDEST_TRITON = (3, 6)  # with Gluon as the kernels use it


def has_gluon() -> bool:
    """Whether triton is new enough, and compiles."""
    try:
        installed = tuple(int(part) for part in version("triton").split(".")[:2])
    except PackageNotFoundError:
        return False
    return installed >= OLDEST_TRITON and os.environ.get("TRITON_INTERPRET", "0") != "1"


HAS_GLUON = has_gluon()


@functools.lru_cache(maxsize=64)
def capability(index: int | None) -> tuple[int, int]:
    """The compute capability of a device (None: the current one); asking torch takes longer."""
    return torch.cuda.get_device_capability(index)


def is_hopper(index: int | None) -> bool:
    """Whether the device (None: the current one) has compute capability 9.0."""
    if torch.compiler.is_compiling():  # Dynamo warns of every cache
        return torch.cuda.get_device_capability(index) == (9, 0)
    return capability(index) == (9, 0)


def wants_schedule(device: torch.device, block_size: int) -> bool:
    """Whether this backend may serve calls on a device, and so needs the schedule of the layout."""
    return HAS_GLUON and device.type == "cuda" and block_size in BLOCK_SIZES and is_hopper(device.index)


def badly_strided(name: str, x: Tensor) -> str | None:
    """Why the tensor memory accelerator cannot read a tensor, or None."""
    sizes, steps = x.shape, x.stride()
    if steps[3] != 1 or any(sizes[i] != 1 and (steps[i] % 8 or not steps[i]) for i in (0, 1, 2)):
        return f"{name} has strides {tuple(x.stride())}, needs multiples of 8 (not 0), and 1 for the last"
    # a trace cannot ask for the offset; a launch clones what is misaligned
    if not torch.compiler.is_compiling() and x.storage_offset() % 8:
        return f"{name} begins {x.storage_offset()} elements into its storage, needs a multiple of 8"
    return None


@functools.cache
def launches() -> ModuleType:
    """launch.py, which imports triton; an import statement in every call would take 1 us."""
    from . import launch

    return launch


class HopperBackend:
    """Fused kernels; see forward.py and backward.py."""

    name = "hopper"

    def rejects(self, problem: AttentionProblem) -> str | None:
        p = problem
        if not HAS_GLUON:
            return "triton >= 3.6 is not installed (pip install 'triton>=3.6', on Linux), or TRITON_INTERPRET=1 is set"
        if p.q.device.type != "cuda":
            return f"q is on {p.q.device}, needs a CUDA device"
        if not is_hopper(p.q.device.index):
            return f"compute capability {torch.cuda.get_device_capability(p.q.device)} is not (9, 0)"
        if p.q.dtype not in (torch.float16, torch.bfloat16):
            return f"q has dtype {p.q.dtype}, needs float16 or bfloat16"
        if p.head_dim not in HEAD_DIMS or p.v_head_dim != p.head_dim:
            return f"head_dim {p.head_dim} and v head_dim {p.v_head_dim} are not both 64 or both 128"
        if p.block_size not in BLOCK_SIZES:
            return f"block_size {p.block_size} is not 64 or 128"
        for what, value in (
            ("block_bias", p.block_bias),
            ("kv_lengths", p.kv_lengths),
            ("key_padding_mask", p.key_padding_mask),
        ):
            if value is not None:
                return f"{what} is given"
        if p.dropout_p > 0.0:
            return f"dropout_p is {p.dropout_p}, needs 0"
        if p.softmax_scale <= 0.0:
            return f"softmax_scale {p.softmax_scale} is not positive"
        if p.q_offset % p.block_size:
            return f"the first query sits in the middle of a block (kv_len - q_len = {p.q_offset} is no multiple of {p.block_size})"
        if p.dilation is not None:
            if p.block_size != 128:
                return f"token dilation needs block_size 128, got {p.block_size}"
            if len(p.rates) > MOST_RATES:
                return f"token dilation has {len(p.rates)} rates, at most {MOST_RATES} fit"
            if max(p.rates) > MOST_JOINED or p.kv_len % max(p.rates):
                return f"token dilation needs rates up to {MOST_JOINED} that divide kv_len {p.kv_len}, got {p.rates}"
            if p.rows.indices.numel() >= 2**30:
                return f"token dilation counts pairs of {p.rows.indices.numel()} active blocks, at most 2**30 - 1 fit int32"
        for name, x in (("q", p.q), ("k", p.k), ("v", p.v)):
            why_not = badly_strided(name, x)
            if why_not is not None:
                return why_not
        if p.schedule is None:
            return "the problem was made without a schedule"
        return None

    def forward(self, problem: AttentionProblem) -> tuple[Tensor, Tensor]:
        made: tuple[Tensor, Tensor] = launches().launch_forward(problem)
        return made

    def bind(self, problem: AttentionProblem) -> Forward | None:
        """The forward of problems like one that was served but for their q, k and v, faster."""
        bound: Forward | None = launches().bind_forward(problem)
        return bound

    def backward(
        self, problem: AttentionProblem, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
    ) -> Gradients:
        made: Gradients = launches().launch_backward(problem, out, lse, grad_out, grad_lse)
        return made


HOPPER = HopperBackend()
