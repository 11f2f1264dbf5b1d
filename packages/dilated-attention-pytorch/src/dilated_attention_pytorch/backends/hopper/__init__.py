"""The Hopper backend: warp-specialised Gluon kernels for compute capability 9.0 (H100, H200)."""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from ..problem import AttentionProblem, Gradients

HEAD_DIMS = (64, 128)
BLOCK_SIZES = (64, 128)
MOST_RATES = 2  # distance classes of token dilation
HAS_GLUON = (
    importlib.util.find_spec("triton") is not None
    and importlib.util.find_spec("triton.experimental.gluon") is not None
    and os.environ.get("TRITON_INTERPRET", "0") != "1"
)


def wants_schedule(device: torch.device, block_size: int) -> bool:
    """Whether this backend may serve calls on a device, and so needs the schedule of the layout."""
    return (
        HAS_GLUON
        and device.type == "cuda"
        and block_size in BLOCK_SIZES
        and torch.cuda.get_device_capability(device) == (9, 0)
    )


def badly_strided(name: str, x: Tensor) -> str | None:
    """Why the tensor memory accelerator cannot read a tensor, or None."""
    if x.stride(3) != 1 or any(stride % 8 for stride in x.stride()[:3]):
        return f"{name} has strides {tuple(x.stride())}, needs multiples of 8 and 1 for the last"
    if x.storage_offset() % 8:
        return f"{name} begins {x.storage_offset()} elements into its storage, needs a multiple of 8"
    return None


class HopperBackend:
    """Fused kernels; see forward.py and backward.py."""

    name = "hopper"

    def rejects(self, problem: AttentionProblem) -> str | None:
        p = problem
        if not HAS_GLUON:
            return "triton with Gluon is not installed (pip install 'triton>=3.6', on Linux), or TRITON_INTERPRET=1 is set"
        if p.q.device.type != "cuda":
            return f"q is on {p.q.device}, needs a CUDA device"
        if torch.cuda.get_device_capability(p.q.device) != (9, 0):
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
            if max(p.rates) > 16 or p.kv_len % max(p.rates):
                return f"token dilation needs rates up to 16 that divide kv_len {p.kv_len}, got {p.rates}"
        for name, x in (("q", p.q), ("k", p.k), ("v", p.v)):
            why_not = badly_strided(name, x)
            if why_not is not None:
                return why_not
        if p.row_schedule is None:
            return "the problem was made without a schedule of its rows"
        return None

    def rejects_backward(self, problem: AttentionProblem) -> str | None:
        if problem.dilation is not None:
            return "token dilation is not in the backward kernel"
        if problem.block_size != 128:
            return (
                f"block_size {problem.block_size} is not in the backward kernel: the portable ones are faster"
            )
        return None

    def forward(self, problem: AttentionProblem) -> tuple[Tensor, Tensor]:
        from .launch import launch_forward

        return launch_forward(problem)

    def backward(
        self, problem: AttentionProblem, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
    ) -> Gradients:
        from .launch import launch_backward

        return launch_backward(problem, out, lse, grad_out, grad_lse)


HOPPER = HopperBackend()
