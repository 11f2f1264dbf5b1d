"""Block-wise attention on the CPU: gather the active blocks of a group of rows, two matrix products, one softmax.

Rows with equally many active blocks are computed together, a group at a time: the memory beyond the inputs is
theirs copied into blocks plus one group's scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .dropout import dropout_keep
from .problem import AttentionProblem, Gradients

# Scores of one group of rows: small enough to stay in the cache between the two products.
SCORES_PER_GROUP = 2**18


def blocked(x: Tensor, start: int, n_blocks: int, block_size: int, dtype: torch.dtype) -> Tensor:
    """(batch, len, heads, dim) -> (batch, heads, n_blocks, block_size, dim), zeros before `start` and at the end."""
    batch, length, heads, dim = x.shape
    out = torch.zeros(batch, heads, n_blocks * block_size, dim, dtype=dtype)
    out[:, :, start : start + length] = x.transpose(1, 2)
    return out.view(batch, heads, n_blocks, block_size, dim)


@dataclass(frozen=True)
class Unit:
    """The heads that share lists and kept keys: `n_kv` kv heads from `kv_head`, `group` query heads for each."""

    list_head: int
    head: int
    kv_head: int
    n_kv: int
    group: int

    @property
    def heads(self) -> slice:
        return slice(self.head, self.head + self.n_kv * self.group)

    @property
    def kv_heads(self) -> slice:
        return slice(self.kv_head, self.kv_head + self.n_kv)


def units(problem: AttentionProblem) -> list[Unit]:
    """Token dilation keeps other keys for every head; otherwise all heads of a list go together."""
    group = problem.num_heads // problem.num_kv_heads
    per_list = 1 if problem.dilation is not None else problem.num_heads // problem.layout_heads
    width = problem.num_heads // problem.layout_heads
    return [
        Unit(head // width, head, head // group, max(1, per_list // group), min(group, per_list))
        for head in range(0, problem.num_heads, per_list)
    ]


@dataclass(frozen=True)
class Rows:
    """A group of rows with the same number of entries in every distance class."""

    rows: Tensor  # (n,) block rows
    places: list[Tensor]  # per class (n, count): places in the row lists


def row_groups(problem: AttentionProblem, list_head: int, heads: int) -> Iterator[Rows]:
    n_classes = len(problem.rates)
    first = list_head * problem.n_rows * n_classes
    offsets = problem.rows.offsets[first : first + problem.n_rows * n_classes + 1].long()
    starts = offsets[:-1].view(-1, n_classes)
    counts = offsets.diff().view(-1, n_classes)
    kinds, kind = counts.unique(dim=0, return_inverse=True)
    for i_kind, count in enumerate(kinds.tolist()):
        keys = sum(n * problem.block_size // rate for n, rate in zip(count, problem.rates, strict=True))
        if keys == 0:
            continue
        at_once = max(1, SCORES_PER_GROUP // (heads * problem.block_size * keys))
        for rows in (kind == i_kind).nonzero(as_tuple=True)[0].split(at_once):
            yield Rows(rows, [starts[rows, i, None] + torch.arange(n) for i, n in enumerate(count)])


class Group:
    """One group of rows of one unit and batch element: its gathered keys, and what its queries may see."""

    def __init__(self, problem: AttentionProblem, unit: Unit, batch: int, rows: Rows) -> None:
        self.problem, self.unit, self.batch, self.rows = problem, unit, batch, rows.rows
        lists, block_size = problem.rows, problem.block_size
        self.places = rows.places
        self.cols = [lists.indices[places].long() for places in rows.places]  # per class (n, count)
        self.counts = [
            places.shape[1] * block_size // rate
            for places, rate in zip(rows.places, problem.rates, strict=True)
        ]

    def gather(self, blocks: Tensor) -> Tensor:
        """blocks (n_kv, n_cols, block_size, dim) -> kept keys of every row (n_kv, n, keys, dim)."""
        n_kv, n_cols, block_size, dim = blocks.shape
        parts = []
        for cols, rate in zip(self.cols, self.problem.rates, strict=True):
            if cols.shape[1]:
                kept = blocks.view(n_kv, n_cols, block_size // rate, rate, dim)[
                    :, :, :, self.unit.head % rate
                ]
                parts.append(kept.index_select(1, cols.flatten()).view(n_kv, cols.shape[0], -1, dim))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2)

    def scatter(self, grad: Tensor, total: Tensor) -> None:
        """Add the gradients of `gather`'s result to those of its argument."""
        n_kv, n_cols, block_size, dim = total.shape
        offset = 0
        for cols, rate in zip(self.cols, self.problem.rates, strict=True):
            if cols.shape[1]:
                length = cols.shape[1] * block_size // rate
                part = grad[:, :, offset : offset + length].reshape(n_kv, -1, block_size // rate, dim)
                kept = total.view(n_kv, n_cols, block_size // rate, rate, dim)[:, :, :, self.unit.head % rate]
                kept.index_add_(1, cols.flatten(), part)
                offset += length

    def keys(self) -> Tensor:
        """Key index of every gathered key, (n, keys)."""
        size, parts = self.problem.block_size, []
        for cols, rate in zip(self.cols, self.problem.rates, strict=True):
            within = torch.arange(self.unit.head % rate, size, rate)
            parts.append((cols[:, :, None] * size + within).flatten(1))
        return torch.cat(parts, 1)

    def positions(self) -> Tensor:
        """Position of every query, (n, block_size)."""
        size = self.problem.block_size
        return (self.rows[:, None] + self.problem.first_row) * size + torch.arange(size)

    def visible(self) -> Tensor | None:
        """Bool (n, block_size or 1, keys); None when every query sees every gathered key."""
        p, keys = self.problem, self.keys()
        limit = p.kv_len if p.kv_lengths is None else min(p.kv_len, int(p.kv_lengths[self.batch]))
        visible = None
        if int(keys.max()) >= limit:
            visible = (keys < limit)[:, None]
        if p.key_padding_mask is not None:
            unpadded = ~p.key_padding_mask[self.batch][keys.clamp(max=p.kv_len - 1)][:, None]
            visible = unpadded if visible is None else visible & unpadded
        if p.is_causal:
            past = keys[:, None] <= self.positions()[:, :, None]
            visible = past if visible is None else visible & past
        return visible

    def spread(self, per_entry: Tensor) -> Tensor:
        """(heads, entries) -> the value of every gathered key, (heads, n, keys)."""
        size, parts = self.problem.block_size, []
        for places, rate in zip(self.places, self.problem.rates, strict=True):
            entry = self.problem.rows.entries[places].long()
            parts.append(per_entry[:, entry].repeat_interleave(size // rate, 2))
        return torch.cat(parts, 2)

    def collect(self, per_key: Tensor, total: Tensor) -> None:
        """Add (heads, n, keys) to the (heads, entries) they belong to."""
        size, offset = self.problem.block_size, 0
        for places, rate in zip(self.places, self.problem.rates, strict=True):
            if places.shape[1] == 0:
                continue
            length = places.shape[1] * size // rate
            entry = self.problem.rows.entries[places].long()
            total[:, entry] += (
                per_key[:, :, offset : offset + length].unflatten(2, (places.shape[1], -1)).sum(3)
            )
            offset += length

    def keep(self) -> Tensor:
        """Bool (heads, n, block_size, keys): weights that dropout keeps."""
        p = self.problem
        assert p.seed is not None
        head = torch.arange(p.num_heads)[self.unit.heads] + self.batch * p.num_heads
        query = (self.positions() - p.q_offset)[:, :, None]
        return dropout_keep(p.seed, p.dropout_p, self.keys()[:, None], query, head[:, None, None, None])


class Blocks:
    """A problem's tensors in blocks, and the two products over groups of rows."""

    def __init__(self, problem: AttentionProblem) -> None:
        p = self.problem = problem
        self.dtype = torch.promote_types(p.q.dtype, torch.float32)
        self.start = p.q_offset - p.first_row * p.block_size
        self.q = self.queries(p.q)
        self.k = blocked(p.k, 0, p.n_cols, p.block_size, self.dtype)
        self.v = blocked(p.v, 0, p.n_cols, p.block_size, self.dtype)
        self.bias = None
        if p.block_bias is not None:
            self.bias = p.block_bias.to(self.dtype).expand(p.batch, p.num_heads, -1)

    def queries(self, x: Tensor) -> Tensor:
        """(batch, q_len, heads, dim) -> (batch, heads, n_rows, block_size, dim)."""
        return blocked(x, self.start, self.problem.n_rows, self.problem.block_size, self.dtype)

    def groups(self) -> Iterator[Group]:
        for unit in units(self.problem):
            for rows in row_groups(self.problem, unit.list_head, unit.n_kv * unit.group):
                for batch in range(self.problem.batch):
                    yield Group(self.problem, unit, batch, rows)

    def stacked(self, x: Tensor, group: Group) -> Tensor:
        """Rows of x (batch, heads, n_rows, block_size, dim) as (n_kv * n, group * block_size, dim)."""
        unit, (_, _, _, size, dim) = group.unit, x.shape
        rows = x[group.batch, unit.heads].index_select(1, group.rows)
        if unit.group == 1:
            return rows.view(-1, size, dim)
        rows = rows.view(unit.n_kv, unit.group, -1, size, dim).transpose(1, 2)
        return rows.reshape(-1, unit.group * size, dim)

    def unstack(self, x: Tensor, group: Group) -> Tensor:
        """The inverse of `stacked`: (n_kv * n, group * block_size, dim) -> (heads, n, block_size, dim)."""
        unit, size = group.unit, self.problem.block_size
        if unit.group == 1:
            return x.view(unit.n_kv, -1, size, x.shape[-1])
        return x.view(unit.n_kv, -1, unit.group, size, x.shape[-1]).transpose(1, 2).flatten(0, 1)

    def scores(self, group: Group) -> tuple[Tensor, Tensor | None]:
        """Masked, scaled scores (n_kv * n, group * block_size, keys), and the mask broadcast to (heads, n, size, keys)."""
        unit = group.unit
        k = group.gather(self.k[group.batch, unit.kv_heads]).flatten(0, 1)
        q = self.stacked(self.q, group) * self.problem.softmax_scale
        scores = torch.bmm(q, k.transpose(1, 2))
        view = self.per_head(scores, group)
        if self.bias is not None:
            view += group.spread(self.bias[group.batch, unit.heads]).view(
                unit.n_kv, unit.group, *view.shape[2:3], 1, -1
            )
        visible = group.visible()
        if visible is not None:
            view.masked_fill_(~visible, -torch.inf)
        return scores, visible

    def per_head(self, x: Tensor, group: Group) -> Tensor:
        """View of (n_kv * n, group * block_size, last) as (n_kv, group, n, block_size, last)."""
        unit = group.unit
        return x.view(unit.n_kv, -1, unit.group, self.problem.block_size, x.shape[-1]).transpose(1, 2)

    def drop(self, x: Tensor, group: Group) -> None:
        """Dropout in place, of weights or of their gradients."""
        if self.problem.dropout_p > 0.0:
            unit, view = group.unit, self.per_head(x, group)
            keep = group.keep().view(unit.n_kv, unit.group, *view.shape[2:])
            view.mul_(keep).div_(1.0 - self.problem.dropout_p)

    def forward(self) -> tuple[Tensor, Tensor]:
        p = self.problem
        out = torch.zeros(p.batch, p.num_heads, p.n_rows, p.block_size, p.v_head_dim, dtype=self.dtype)
        lse = torch.full((p.batch, p.num_heads, p.n_rows, p.block_size, 1), -torch.inf, dtype=self.dtype)
        for group in self.groups():
            scores, visible = self.scores(group)
            top = scores.amax(-1, keepdim=True)
            if visible is not None:
                top.masked_fill_(top == -torch.inf, 0.0)
            weights = scores.sub_(top).exp_()
            total = weights.sum(-1, keepdim=True)
            self.drop(weights, group)
            v = group.gather(self.v[group.batch, group.unit.kv_heads]).flatten(0, 1)
            result = torch.bmm(weights, v).div_(total.clamp(min=torch.finfo(self.dtype).tiny))
            out[group.batch, group.unit.heads, group.rows] = self.unstack(result, group)
            lse[group.batch, group.unit.heads, group.rows] = self.unstack(top.add_(total.log()), group)
        stop = self.start + p.q_len
        flat = out.flatten(2, 3)[:, :, self.start : stop].transpose(1, 2)
        return flat.to(p.q.dtype).contiguous(), lse.flatten(2)[:, :, self.start : stop].contiguous()

    def backward(self, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None) -> Gradients:
        p = self.problem
        delta = (grad_out.to(self.dtype) * out.to(self.dtype)).sum(
            -1, keepdim=True
        )  # (batch, q_len, heads, 1)
        if grad_lse is not None:
            delta = delta - grad_lse.to(self.dtype).transpose(1, 2)[..., None]
        blocks_delta, blocks_grad = self.queries(delta), self.queries(grad_out)
        # a query without keys has only scores of -inf: any finite lse keeps its weights at 0
        blocks_lse = self.queries(lse.masked_fill(lse == -torch.inf, 0.0).transpose(1, 2)[..., None])
        grad_q, grad_k, grad_v = (torch.zeros_like(x) for x in (self.q, self.k, self.v))
        grad_bias = None if self.bias is None else torch.zeros(self.bias.shape, dtype=self.dtype)
        for group in self.groups():
            unit = group.unit
            weights = self.scores(group)[0].sub_(self.stacked(blocks_lse, group)).exp_()
            grad = self.stacked(blocks_grad, group)
            v = group.gather(self.v[group.batch, unit.kv_heads]).flatten(0, 1)
            grad_weights = torch.bmm(grad, v.transpose(1, 2))
            self.drop(grad_weights, group)
            grad_scores = grad_weights.sub_(self.stacked(blocks_delta, group)).mul_(weights)
            self.drop(weights, group)
            shape = (unit.n_kv, group.rows.numel())
            part = torch.bmm(weights.transpose(1, 2), grad).unflatten(0, shape)
            group.scatter(part, grad_v[group.batch, unit.kv_heads])
            if grad_bias is not None:
                per_key = self.per_head(grad_scores, group).sum(3).flatten(0, 1)
                group.collect(per_key, grad_bias[group.batch, unit.heads])
            grad_scores.mul_(p.softmax_scale)
            part = torch.bmm(grad_scores.transpose(1, 2), self.stacked(self.q, group)).unflatten(0, shape)
            group.scatter(part, grad_k[group.batch, unit.kv_heads])
            k = group.gather(self.k[group.batch, unit.kv_heads]).flatten(0, 1)
            grad_q[group.batch, unit.heads, group.rows] = self.unstack(torch.bmm(grad_scores, k), group)

        def flat(x: Tensor, start: int, like: Tensor) -> Tensor:
            tokens = x.flatten(2, 3)[:, :, start : start + like.shape[1]].transpose(1, 2)
            return tokens.to(like.dtype).contiguous()

        return Gradients(flat(grad_q, self.start, p.q), flat(grad_k, 0, p.k), flat(grad_v, 0, p.v), grad_bias)


class CpuBackend:
    """PyTorch operators on CPU tensors."""

    name = "cpu"

    def rejects(self, problem: AttentionProblem) -> str | None:
        if problem.q.device.type != "cpu":
            return f"q is on {problem.q.device}, needs the CPU"
        if problem.q.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
            return f"q has dtype {problem.q.dtype}, needs float32, float64, float16 or bfloat16"
        return None

    def forward(self, problem: AttentionProblem) -> tuple[Tensor, Tensor]:
        return Blocks(problem).forward()

    def backward(
        self, problem: AttentionProblem, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
    ) -> Gradients:
        return Blocks(problem).backward(out, lse, grad_out, grad_lse)


CPU = CpuBackend()
