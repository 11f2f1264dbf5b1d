"""Stubs of other libraries, which compute what they are asked for with dense masks: the tests install none of them."""

from __future__ import annotations

import sys
from collections import namedtuple
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor


def dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention of (batch, heads, tokens, head_dim) with a mask of tokens (batch or 1, heads or 1, queries, keys)."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def of_lists(columns: Tensor, counts: Tensor, n_cols: int, block: int) -> Tensor:
    """The mask of tokens of left-packed columns (batch, heads, n_rows, k)."""
    is_listed = torch.arange(columns.shape[-1]) < counts[..., None]
    mask = torch.zeros(*columns.shape[:3], n_cols + 1, dtype=torch.bool)
    mask.scatter_(-1, torch.where(is_listed, columns.long(), n_cols), True)
    return of_blocks(mask[..., :n_cols], block)


def of_blocks(mask: Tensor, block: int) -> Tensor:
    return mask.repeat_interleave(block, -2).repeat_interleave(block, -1)


def stub(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    """A module of this name, and its parents."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        parent = ".".join(parts[:end])
        if parent not in sys.modules:
            monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    module = ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


def bsa(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """cudnn.BSA; returns the options of its calls."""
    calls: list[dict[str, Any]] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        columns, block = options["q2k_block_index"], options["sparse_block_size"]
        assert columns.dtype == torch.int32
        assert options["layout"] == "bhsd"
        counts = options.get("q2k_block_nums")
        if counts is None:
            counts = torch.full(columns.shape[:3], options["block_sparse_num"], dtype=torch.int32)
        return dense(q, k, v, of_lists(columns, counts, k.shape[2] // block, block))

    def forward(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> dict[str, Tensor]:
        calls.append(options)
        out = attend(q, k, v, options)
        return {"o_tensor": out, "lse_tensor": out.new_zeros(out.shape[:3])}

    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, **options: Any
    ) -> dict[str, Tensor]:
        calls.append(options)
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_() for x in (q, k, v)]
            made = attend(*inputs, options)  # type: ignore[arg-type]
        torch.testing.assert_close(made, out)
        grads = torch.autograd.grad(made, inputs, grad)
        return dict(zip(("dq_tensor", "dk_tensor", "dv_tensor"), grads, strict=True))

    stub(
        monkeypatch,
        "cudnn.block_sparse_attention",
        block_sparse_attention_forward=forward,
        block_sparse_attention_backward=backward,
    )
    return calls


def vsa(monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(
        q: Tensor, k: Tensor, v: Tensor, columns: Tensor, counts: Tensor, sizes: Tensor
    ) -> tuple[Tensor, None]:
        (block,) = set(sizes.tolist())
        return dense(q, k, v, of_lists(columns, counts, sizes.numel(), block)), None

    stub(monkeypatch, "fastvideo_kernel._C.fastvideo_kernel_ops")
    stub(monkeypatch, "fastvideo_kernel", block_sparse_attn_from_indices=attend)


def flashinfer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrapper:
        def __init__(self, workspace: Tensor) -> None:
            self.workspace = workspace

        def plan(
            self,
            mask: Tensor,
            rows: Tensor,
            cols: Tensor,
            heads: int,
            kv_heads: int,
            head_dim: int,
            **types: Any,
        ) -> None:
            assert mask.shape == (kv_heads, rows.shape[1], cols.shape[1])
            self.mask = of_blocks(mask, int(rows[0, 0])).repeat_interleave(heads // kv_heads, 0)

        def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return dense(q[None], k[None], v[None], self.mask[None])[0]

    stub(monkeypatch, "flashinfer", VariableBlockSparseAttentionWrapper=Wrapper)


def natten(monkeypatch: pytest.MonkeyPatch) -> None:
    def na1d(q: Tensor, k: Tensor, v: Tensor, kernel_size: int, is_causal: bool) -> Tensor:
        assert is_causal
        position = torch.arange(q.shape[1])
        between = position[:, None] - position
        mask = (between >= 0) & (between < kernel_size)
        return dense(*(x.transpose(1, 2) for x in (q, k, v)), mask[None, None]).transpose(1, 2)  # type: ignore[call-arg]

    stub(monkeypatch, "natten", na1d=na1d)


BlockSparseTensors = namedtuple(
    "BlockSparseTensors", "mask_block_cnt mask_block_idx full_block_cnt full_block_idx block_size"
)


def fa4(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashAttention-4; it checks that the lists of its backward are those of its forward, transposed."""

    def block_mask(tensors: Any) -> tuple[Tensor, Tensor]:
        n = tensors.mask_block_idx.shape[-1]
        return (
            of_lists(tensors.mask_block_idx, tensors.mask_block_cnt, n, 1),
            of_lists(tensors.full_block_idx, tensors.full_block_cnt, n, 1),
        )

    def flash_attn_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        causal: bool = False,
        window_size: tuple[int | None, int | None] = (None, None),
        mask_mod: Any = None,
        block_sparse_tensors: Any = None,
        block_sparse_tensors_bwd: Any = None,
    ) -> tuple[Tensor, None]:
        position = torch.arange(q.shape[1])
        between = position[:, None] - position
        mask = torch.ones_like(between, dtype=torch.bool)
        if causal:
            mask &= between >= 0
        before, after = window_size
        if before is not None and after is not None:
            mask &= (between <= before) & (-between <= after)
        if block_sparse_tensors is not None:
            block = block_sparse_tensors.block_size[0]
            forward = [of_blocks(x, block) for x in block_mask(block_sparse_tensors)]
            backward = [of_blocks(x.mT, block) for x in block_mask(block_sparse_tensors_bwd)]
            assert all(torch.equal(x, y) for x, y in zip(forward, backward, strict=True))
            partial, full = forward
            asked = (
                between >= 0 if mask_mod is None else mask_mod(0, 0, position[:, None], position, None, None)
            )
            mask = full | (partial & asked)
        else:
            mask = mask[None, None]
        return dense(*(x.transpose(1, 2) for x in (q, k, v)), mask).transpose(1, 2), None  # type: ignore[call-arg]

    stub(monkeypatch, "flash_attn.cute.interface", flash_attn_func=flash_attn_func)
    stub(monkeypatch, "flash_attn.cute.block_sparsity", BlockSparseTensorsTorch=make_tensors)
    cute = ModuleType("cutlass.cute")
    cute.jit = lambda function: function  # type: ignore[attr-defined]
    stub(monkeypatch, "cutlass", cute=cute)
    monkeypatch.setitem(sys.modules, "cutlass.cute", cute)


def make_tensors(*tensors: Tensor, block_size: tuple[int, int]) -> BlockSparseTensors:
    return BlockSparseTensors(*tensors, block_size)
