"""The Triton kernels on problems drawn from all that a call may ask for: they compute the definition."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from dilated_attention_pytorch.backends.problem import AttentionProblem
from dilated_attention_pytorch.backends.reference import padding
from dilated_attention_pytorch.backends.triton import TRITON
from dilated_attention_pytorch.backends.triton.tuning import Tiles
from dilated_attention_pytorch.layout.lists import BlockLists, build_csr
from tests.core.attention_cases import FLOAT32
from tests.core.backends.drawn_problems import (
    INPUTS,
    drawn_problem,
    reference_results,
    results_of,
    with_fields,
)

pytestmark = pytest.mark.interpreter

# Blocks of 32 are several tiles in some, a tile joins several blocks of 16 in others, so that small problems take every way.
TILES = (
    {"forward": Tiles(16, 16, 4, 1), "dq": Tiles(16, 32, 4, 1), "dkdv": Tiles(32, 16, 4, 1)},
    {"forward": Tiles(32, 32, 4, 1), "dq": Tiles(16, 16, 4, 1), "dkdv": Tiles(16, 32, 4, 1)},
    {"forward": Tiles(16, 64, 4, 1), "dq": Tiles(16, 64, 4, 1), "dkdv": Tiles(64, 16, 4, 1)},
)


def columns_of(problem: AttentionProblem) -> BlockLists:
    """The transpose of the row lists."""
    p, grid, n_classes = problem, problem.grid, len(problem.rates)
    owner = p.rows.owners()
    is_listed = owner < p.rows.indptr.numel() - 1
    owner, col = owner[is_listed], p.rows.indices[is_listed].long()
    head, row, distance_class = (
        owner // n_classes // grid.n_rows, owner // n_classes % grid.n_rows, owner % n_classes,
    )  # fmt: skip
    keys = ((head * grid.n_cols + col) * n_classes + distance_class) * grid.n_rows + row
    n_lists = p.layout_batch * p.layout_heads * grid.n_cols * n_classes
    return build_csr(keys, n_lists, grid.n_rows, row, p.rows.block_ids[is_listed].long())


def float32_problem(seed: int) -> AttentionProblem:
    """A drawn problem with columns, whose values float32 can hold, and padding that nothing may touch."""
    p = drawn_problem(seed)
    fields = {name: x.float() for name in (*INPUTS, "attn_bias") if (x := getattr(p, name)) is not None}
    if "block_bias" in fields and seed % 2 == 0:
        fields["block_bias"] = fields["block_bias"].masked_fill(fields["block_bias"] > 1.0, -math.inf)
    padded = padding(p)
    if padded is not None:
        for name in ("k", "v"):
            fields[name] = fields[name].masked_fill(padded[:, :, None, None], math.nan)
    return with_fields(p, cols=columns_of(p), **fields)


def check(problem: AttentionProblem, seed: int, limit: float = FLOAT32) -> None:
    p, generator = problem, torch.Generator().manual_seed(seed)
    grad_out = torch.randn(p.batch, p.q_len, p.num_heads, p.v_head_dim, generator=generator).to(p.q)
    grad_lse = None
    if seed % 3 == 0:
        grad_lse = torch.randn(p.batch, p.num_heads, p.q_len, generator=generator).to(p.q.device)
    exact = with_fields(
        p, **{name: None if (x := getattr(p, name)) is None else x.double() for name in INPUTS}
    )
    wanted = reference_results(exact, grad_out.double(), None if grad_lse is None else grad_lse.double())
    found = results_of(TRITON, p, grad_out, grad_lse)
    # a gradient is a difference of numbers of the size of those that come in
    natural = float(grad_out.double().norm()) + (0.0 if grad_lse is None else float(grad_lse.norm()))
    for name, value in wanted.items():
        assert torch.equal(found[name].isfinite(), value.isfinite()), name
        error = (found[name].double() - value).nan_to_num(0.0, 0.0, 0.0).norm()
        assert float(error) <= limit * max(float(value.nan_to_num(0.0, 0.0, 0.0).norm()), natural), name


@pytest.mark.parametrize("seed", range(40))
def test_drawn_problem_is_computed_as_defined(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    p, tiles = float32_problem(seed), TILES[seed % len(TILES)]
    if p.block_size < 32:  # a tile of the side that is not joined lies in a block
        tiles = {**tiles, "forward": dataclasses.replace(tiles["forward"], block_m=16)}
    monkeypatch.setattr(
        "dilated_attention_pytorch.backends.triton.tuning.tiles", lambda kernel, *args: tiles[kernel]
    )
    check(p, seed)
