"""Small problems: all rows in one kernel call, or a few, as a `CallPlan` says.

The kernel takes microseconds here, which leaves no time to visit rows one by one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..problem import AttentionProblem, Gradients
from . import fused_kernel
from .one_call_plan import CallPlan, forward_dtype_of
from .scratch import Buffers, Scratch


class RowTensors:
    """Converts tensors of the problem to the shapes of the kernel call, in which layout rows are batch elements."""

    def __init__(
        self, problem: AttentionProblem, plan: CallPlan, dtype: torch.dtype, buffers: Buffers
    ) -> None:
        p = self.problem = problem
        self.dtype = dtype
        self.scratch = Scratch(dtype, buffers)
        self.n_rows = plan.n_rows
        self.key_tokens = plan.key_tokens
        if self.key_tokens is not None and p.batch > 1:
            starts = torch.arange(0, p.batch * p.kv_len, p.kv_len, device="cpu")
            self.key_tokens = (starts[:, None] + self.key_tokens).flatten()

    def pack_queries(self, x: Tensor) -> Tensor:
        """(batch, q_len, num_heads, ...) -> (batch * n_rows, num_kv_heads, group * height, ...)."""
        p = self.problem
        x = x.unflatten(1, (self.n_rows, -1)).flatten(0, 1).to(self.dtype)
        if p.num_heads == p.num_kv_heads:
            return x.transpose(1, 2)
        packed: Tensor = x.unflatten(2, (p.num_kv_heads, -1)).movedim(1, 3).flatten(2, 3)
        return packed

    def unpack_queries(self, x: Tensor) -> Tensor:
        """The inverse of `pack_queries`."""
        p = self.problem
        group = p.num_heads // p.num_kv_heads
        x = x.unflatten(2, (group, -1)).movedim(3, 1).flatten(2, 3)  # (batch * n_rows, height, heads, ...)
        unpacked: Tensor = x.reshape(p.batch, p.q_len, p.num_heads, *x.shape[3:])
        return unpacked

    def gather_keys(self, name: str, x: Tensor) -> Tensor:
        """(batch, kv_len, num_kv_heads, dim) -> (batch * n_rows, num_kv_heads, n_keys, dim)."""
        p = self.problem
        if self.key_tokens is None:
            return x.to(self.dtype).transpose(1, 2)
        rows = self.scratch.gather(name, x.flatten(0, 1).flatten(1), self.key_tokens)
        return rows.view(p.batch * self.n_rows, -1, *x.shape[2:]).transpose(1, 2)

    def expand_mask(self, mask: Tensor | None) -> Tensor | None:
        """Repeat the mask for the rows of all batch elements."""
        if mask is None or self.problem.batch == 1 or self.n_rows == 1:
            return mask
        return mask.repeat(self.problem.batch, 1, 1, 1)

    def sum_key_grads(self, x: Tensor, like: Tensor) -> Tensor:
        """The gradient of k or v (`like`), given the gradient `x` of the result of `gather_keys`."""
        if self.key_tokens is None:
            return x.transpose(1, 2).to(like.dtype).contiguous()
        total = torch.zeros(like.shape, dtype=self.dtype, device="cpu")
        rows = x.transpose(1, 2).reshape(self.key_tokens.numel(), -1)
        total.flatten(0, 1).flatten(1).index_add_(0, self.key_tokens, rows)
        return total.to(like.dtype)


def forward(problem: AttentionProblem, plan: CallPlan, buffers: Buffers) -> tuple[Tensor, Tensor]:
    p = problem
    tensors = RowTensors(p, plan, forward_dtype_of(p.q.dtype), buffers)
    q, k, v = tensors.pack_queries(p.q), tensors.gather_keys("k", p.k), tensors.gather_keys("v", p.v)
    if len(plan.pieces) == 1:
        out, lse = fused_kernel.attention(
            q, k, v, tensors.expand_mask(plan.pieces[0].forward_mask), p.softmax_scale
        )
        out, lse = tensors.unpack_queries(out), tensors.unpack_queries(lse).transpose(1, 2).contiguous()
    else:
        parts = [
            fused_kernel.attention(q[:, :, queries], k[:, :, keys], v[:, :, keys], mask, p.softmax_scale)
            for queries, keys, _, mask in plan.pieces
        ]
        out = torch.cat([part.transpose(1, 2) for part, _ in parts], 1)
        lse = torch.cat([part for _, part in parts], 2)
    if plan.sees_none is not None:
        lse.masked_fill_(plan.sees_none, -torch.inf)
    return out.to(p.q.dtype), lse


def backward(
    problem: AttentionProblem, plan: CallPlan, out: Tensor, lse: Tensor, grad_out: Tensor, buffers: Buffers
) -> Gradients:
    p = problem
    if plan.sees_none is not None:  # such a query contributes nothing, whatever its gradient
        lse = lse.masked_fill(plan.sees_none, 0.0)
        grad_out = grad_out.masked_fill(plan.sees_none[:, None, None], 0.0)
    tensors = RowTensors(p, plan, lse.dtype, buffers)
    d_out, q, out, lse = (tensors.pack_queries(x) for x in (grad_out, p.q, out, lse.transpose(1, 2)))
    k, v = tensors.gather_keys("k", p.k), tensors.gather_keys("v", p.v)
    if len(plan.pieces) == 1:
        mask = tensors.expand_mask(plan.pieces[0].mask)
        grad_q, grad_k, grad_v = fused_kernel.attention_backward(
            d_out, q, k, v, out, lse, mask, p.softmax_scale
        )
    else:
        grad_k, grad_v, parts = torch.zeros_like(k), torch.zeros_like(v), []
        for queries, keys, mask, _ in plan.pieces:
            part, part_k, part_v = fused_kernel.attention_backward(
                d_out[:, :, queries],
                q[:, :, queries],
                k[:, :, keys],
                v[:, :, keys],
                out[:, :, queries],
                lse[:, :, queries],
                mask,
                p.softmax_scale,
            )
            parts.append(part)
            grad_k[:, :, keys] += part_k
            grad_v[:, :, keys] += part_v
        grad_q = torch.cat(parts, 2)
    return Gradients(
        tensors.unpack_queries(grad_q).to(p.q.dtype),
        tensors.sum_key_grads(grad_k, p.k),
        tensors.sum_key_grads(grad_v, p.v),
        None,
    )
