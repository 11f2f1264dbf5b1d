"""Results of the emulated kernels beside those of the definition."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor

from dilated_attention_pytorch.backends.problem import AttentionProblem
from dilated_attention_pytorch.backends.reference import attention_reference

from .calls import backward, forward
from .launches import emulated_launches


def distance(found: Tensor, wanted: Tensor) -> float:
    """Relative error in the Euclidean norm; infinities must be the same, and NaN is never right."""
    found, wanted = found.detach().double(), wanted.detach().double()
    infinite = torch.isinf(wanted)
    if not torch.equal(found[infinite], wanted[infinite]):
        return float("inf")
    found, wanted = found[~infinite], wanted[~infinite]
    if not torch.isfinite(found).all():
        return float("inf")
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-30)) if wanted.numel() else 0.0


def errors(
    problem: AttentionProblem,
    *,
    gradients: bool = True,
    lse_gradient: bool = False,
    through_launch: bool = False,
    **options: Any,
) -> dict[str, float]:
    """How far out, lse and the gradients are from the definition in float64; options as of `forward`.

    through_launch: by launch.py of the backend, with all that it makes for a call.
    """
    if through_launch:
        with emulated_launches(**options) as module:
            return compare(problem, gradients, lse_gradient, module.launch_forward, module.launch_backward)
    run_forward, run_backward = functools.partial(forward, **options), functools.partial(backward, **options)
    return compare(problem, gradients, lse_gradient, run_forward, run_backward)


def compare(
    problem: AttentionProblem, gradients: bool, lse_gradient: bool, run_forward: Any, run_backward: Any
) -> dict[str, float]:
    """`errors` of two functions."""
    p = problem
    out, lse = run_forward(p)
    names = [name for name in ("q", "k", "v", "block_bias", "sinks") if getattr(p, name) is not None]
    leaves = [getattr(p, name).detach().double().requires_grad_() for name in names]
    wanted_out, wanted_lse = attention_reference(dataclasses.replace(p, **dict(zip(names, leaves))))[:2]
    made = {"out": distance(out, wanted_out), "lse": distance(lse, wanted_lse)}
    if not gradients:
        return made
    grad_out = torch.randn(out.shape).to(out.dtype)
    grad_lse = torch.randn(lse.shape) if lse_gradient else None
    found = run_backward(p, out, lse, grad_out, grad_lse)
    seen = torch.isfinite(wanted_lse)
    outputs = [wanted_out, torch.where(seen, wanted_lse, 0.0)]
    weights = [grad_out.double(), torch.zeros_like(wanted_lse) if grad_lse is None else grad_lse.double()]
    wanted = torch.autograd.grad(outputs, leaves, weights)
    for name, value in zip(names, wanted):
        gradient = getattr(found, name)
        if gradient is not None:
            gradient = gradient.sum_to_size(value.shape)
        made[f"grad_{name}"] = float("inf") if gradient is None else distance(gradient, value)
    return made
