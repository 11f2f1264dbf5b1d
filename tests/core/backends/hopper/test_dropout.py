"""The masks of kernels/dropout.py, emulated, and calls with dropout: those of the definition."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton.experimental.gluon")

from dilated_attention_pytorch.backends.dropout import dropout_keep, keep_threshold
from tests.core.backends.hopper import emulator
from tests.core.backends.hopper.drawn_calls import drawn_call, wrong_results
from tests.core.backends.hopper.emulator import language
from tests.core.backends.hopper.test_emulator import run

gl = SimpleNamespace(**language.functions())
SEED, HEAD, P = 0x1234_5678_9ABC_DEF, 13, 0.3


def layout_of(columns: int) -> Any:
    return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, columns, 16])


def kept(first_query: int, n_queries: int, first_key: int, n_keys: int) -> Tensor:
    """The mask of the definition."""
    query, key = torch.arange(n_queries)[:, None] + first_query, torch.arange(n_keys) + first_key
    return dropout_keep(torch.tensor([SEED]), P, key, query, torch.tensor([HEAD]))


@pytest.mark.parametrize(
    ("columns", "keys_first"), [(32, False), (64, False), (128, False), (32, True), (64, True)]
)
def test_marks_are_those_of_the_definition(columns: int, keys_first: bool) -> None:
    found = torch.zeros(64, columns)

    def kernel(Seed: Any, Out: Any, row: Any, column: Any, threshold: Any, head: Any) -> None:
        module, layout = emulator.emulated().kernels.dropout, layout_of(columns)
        dropped = module.load_dropout(Seed, threshold, head).dropped(row, column, columns, keys_first)
        p = gl.full([64, columns], 1.5, gl.float32, layout=layout)
        place = Out + gl.arange(0, 64)[:, None] * columns + gl.arange(0, columns)[None, :]
        gl.store(place, module.marked(p, dropped, layout))

    run(kernel, torch.tensor([SEED]), found, 192, -64 * 3, keep_threshold(P), HEAD)
    mask = kept(-192, columns, 192, 64).T if keys_first else kept(192, 64, -192, columns)
    assert torch.equal(found, torch.where(mask, 1.5, -1.5))


@pytest.mark.parametrize("columns", [64, 128])
def test_pairs_of_weights_are_cleared_where_they_are_dropped(columns: int) -> None:
    weights = torch.rand(64, columns).bfloat16()
    pairs = torch.zeros(64, columns, dtype=torch.int32)
    pairs[:, ::2] = weights.view(torch.int32)
    found = torch.zeros(64, columns)

    def kernel(Seed: Any, Pairs: Any, Out: Any, threshold: Any, head: Any) -> None:
        dropout = emulator.emulated().kernels.dropout.load_dropout(Seed, threshold, head)
        place = gl.arange(0, 64)[:, None] * columns + gl.arange(0, columns)[None, :]
        layout = layout_of(columns)
        pairs = gl.convert_layout(gl.load(Pairs + place), layout)
        gl.store(Out + place, dropout.kept(pairs, 64, 256, gl.bfloat16, layout).to(gl.float32))

    run(kernel, torch.tensor([SEED]), pairs, found, keep_threshold(P), HEAD)
    assert torch.equal(found, weights.float().where(kept(64, 64, 256, columns), 0.0))


@pytest.mark.interpreter
@pytest.mark.parametrize(
    ("number", "head_dim", "block", "kind", "others"),
    [
        (3, 64, 64, "packed", ()),
        (25, 64, 128, "plain", ("bias", "sinks")),
        (15, 128, 64, "positions", ("softcap",)),
        (25, 128, 128, "plain", ()),
    ],
)
def test_calls_are_those_of_the_definition(
    number: int, head_dim: int, block: int, kind: str, others: tuple[str, ...]
) -> None:
    problem = drawn_call(number, features=("dropout", *others), kind=kind, head_dim=head_dim, block=block)
    assert int(problem.rows.indptr[-1]) > 0
    assert wrong_results(problem, number) == {}
