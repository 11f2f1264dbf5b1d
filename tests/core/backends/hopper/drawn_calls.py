"""Problems drawn at random from all that the Hopper kernels serve, for the emulator: small, with odd lengths and empty parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dilated_attention_pytorch.backends.hopper.prepared import make_prepared
from dilated_attention_pytorch.backends.hopper.shares import can_be_split, shares_of
from dilated_attention_pytorch.backends.hopper.work_order import make_work_order
from dilated_attention_pytorch.backends.problem import AttentionProblem
from dilated_attention_pytorch.backends.reference import tokens
from dilated_attention_pytorch.grid import BlockGrid
from dilated_attention_pytorch.layout.lists import BlockLists, BlockMasks, build_csr, packed_masks
from dilated_attention_pytorch.sequences import Sequences, packed_sequences, sequences_of_batch
from tests.core.backends.drawn_problems import INPUTS, Draw, reference_results, with_fields
from tests.core.backends.hopper import emulator
from tests.core.backends.hopper.cases import lse_gradient_of_rounding
from tests.core.backends.hopper.emulator.comparison import distance

FEATURES = ("masks", "softcap", "alibi", "bias", "sinks", "padding", "dropout")


def drawn_lists(
    draw: Draw, grid: BlockGrid, n_heads: int, has_capacity: bool
) -> tuple[BlockLists, BlockLists, int]:
    """Row lists, column lists and the number of block ids."""
    shape = n_heads, grid.n_rows, grid.n_cols
    active = draw.flags(draw.choice([0.0, 0.3, 0.6, 1.0]), *shape)
    if draw.chance(0.3):  # neighbours whose lists differ much in length
        active &= draw.flags(0.6, n_heads, grid.n_rows, 1) & draw.flags(0.6, n_heads, 1, grid.n_cols)
    active[:, 0] &= draw.chance(0.7)
    head, row, col = active.nonzero(as_tuple=True)
    n_ids = head.numel() + 5 * has_capacity
    ids = torch.randperm(n_ids, generator=draw.generator)[: head.numel()]
    rows = build_csr(
        (head * grid.n_rows + row) * grid.n_cols + col, n_heads * grid.n_rows, grid.n_cols, col, ids
    )
    cols = build_csr(
        (head * grid.n_cols + col) * grid.n_rows + row, n_heads * grid.n_cols, grid.n_rows, row, ids
    )
    if has_capacity:
        behind = torch.tensor([0, 1, 0], dtype=torch.int32)
        rows, cols = (
            BlockLists(x.indptr, torch.cat([x.indices, behind]), torch.cat([x.block_ids, behind]))
            for x in (rows, cols)
        )
    return rows, cols, n_ids


def drawn_positions(
    draw: Draw, kind: str, batch: int, q_len: int, kv_len: int, is_causal: bool
) -> tuple[int, Sequences | None]:
    """The position of query 0, and a table or None."""
    offset = draw.choice([-70, -1, 0, 1, 63, 64, 130])
    if kind == "plain":
        return (kv_len - q_len if is_causal else 0), None
    if kind == "moved":
        return offset, None
    if kind == "packed":
        n = draw.randint(1, 4)
        bounds = [sorted([0, *(draw.randint(0, length) for _ in range(n))]) for length in (q_len, kv_len)]
        if draw.chance(0.5):  # to the last token
            bounds = [[*each[:-1], length] for each, length in zip(bounds, (q_len, kv_len), strict=True)]
        position = draw.choice([None, offset, draw.int32(-70, 200, n)])
        cu_q, cu_k = (torch.tensor(each, dtype=torch.int32) for each in bounds)
        return 0, packed_sequences(cu_q, cu_k, q_len, kv_len, is_causal, position)
    queries = torch.empty(batch, q_len, 1, 1)
    lengths = draw.int32(0, kv_len, batch) if kind in ("lengths", "padded") else None
    starts = draw.int32(0, kv_len, batch) if kind == "padded" else None
    moved = draw.int32(-70, 200, batch) if kind == "positions" or draw.chance(0.3) else None
    return sequences_of_batch(queries, kv_len, is_causal, moved, lengths, starts)


def drawn_call(
    seed: int, features: tuple[str, ...] | None = None, kind: str | None = None, head_dim: int | None = None,
    block: int | None = None, scale: int = 1, v_head_dim: int | None = None,
) -> AttentionProblem:  # fmt: skip
    """One problem in bfloat16, prepared.

    Args:
        seed: of all that is drawn.
        features: of the scores; default: drawn.
        kind: of its positions; default: drawn.
        head_dim: default: drawn, with another one for v.
        block: default: drawn.
        scale: how many times the lengths; rings wrap around more than once from 6 on.
        v_head_dim: default: head_dim, where that is given.
    """
    draw = Draw(seed)
    block = draw.choice([64, 64, 128, 128, 256, 16, 32]) if block is None else block
    is_causal = draw.chance(0.5)
    q_len, kv_len = draw.choice([1, 40, 64, 130, 200, 256, 300]), draw.choice([1, 63, 64, 128, 193, 256, 330])
    kv_len *= scale
    q_len *= draw.choice([1, scale])
    if draw.chance(0.3):
        q_len = kv_len
    kind = (
        draw.choice(["plain", "moved", "lengths", "padded", "positions", "packed", "packed"])
        if kind is None
        else kind
    )
    batch = 1 if kind == "packed" else draw.choice([1, 1, 2, 3])
    q_offset, sequences = drawn_positions(draw, kind, batch, q_len, kv_len, is_causal)
    n_sequences = batch if sequences is None else sequences.table.shape[0]
    kv_heads = draw.choice([1, 1, 2])
    heads = kv_heads * draw.choice([1, 2])
    if kind == "plain" and (not is_causal or q_len <= kv_len):
        grid = BlockGrid(q_len, kv_len, block, is_causal)
    else:
        grid = BlockGrid(
            draw.randint(1, max(450, q_len)),
            draw.randint(1, 450 * scale),
            block,
            False,
            draw.choice([0, 0, block, 35, 2 * block]),
        )
    layout_batch = n_sequences if draw.chance(0.3) and n_sequences else 1
    layout_heads = draw.choice([1, 1, kv_heads, heads])
    rows, cols, n_ids = drawn_lists(draw, grid, layout_batch * layout_heads, draw.chance(0.4))
    if features is None:
        features = tuple(name for name in FEATURES if draw.chance(0.25))
    fields: dict[str, Any] = {}
    if "masks" in features:
        table = packed_masks(draw.flags(0.5, draw.randint(1, 3), block, block))
        fields["block_masks"] = BlockMasks(draw.int32(-1, table.shape[0] - 1, n_ids), table)
    if "softcap" in features:
        fields["softcap"] = draw.choice([1.0, 5.0])
    if "alibi" in features:
        fields["alibi_slopes"] = torch.randn(heads, generator=draw.generator) * 0.1
    if "bias" in features:
        fields["block_bias"] = draw.normal(
            draw.choice([1, n_sequences]), draw.choice([1, heads]), n_ids
        ).float()
    if "sinks" in features:
        fields["sinks"] = draw.normal(heads).float()
    if "padding" in features and kind != "packed":
        fields["key_padding_mask"] = draw.flags(0.3, batch, kv_len)
    if "dropout" in features:
        fields |= {"dropout_p": draw.choice([0.1, 0.5]), "seed": torch.tensor([draw.getrandbits(62)])}
    if head_dim is None:
        head_dim = draw.choice([64, 64, 128, 96, 256])
        v_head_dim = draw.choice([head_dim, head_dim, 64])
    elif v_head_dim is None:
        v_head_dim = head_dim
    normal = lambda *shape: draw.normal(*shape).bfloat16()  # noqa: E731
    if block < 64:  # refused with them
        fields.pop("block_bias", None)
    lists, masks = (rows, cols), fields.get("block_masks")
    prepared = make_prepared(grid, layout_batch * layout_heads, lists, None, masks, make_work_order)
    problem = AttentionProblem.made_of(**{
        "q": normal(batch, q_len, heads, head_dim), "k": normal(batch, kv_len, kv_heads, head_dim),
        "v": normal(batch, kv_len, kv_heads, v_head_dim), "grid": grid, "layout_batch": layout_batch,
        "layout_heads": layout_heads, "rows": rows, "cols": cols, "undilated": (rows, cols), "block_masks": None,
        "prepared": prepared.tensors(), "entries": None, "q_offset": q_offset, "is_causal": is_causal,
        "softmax_scale": head_dim**-0.5, "dropout_p": 0.0, "dilation": None, "block_bias": None, "key_padding_mask": None,
        "seed": None, "sequences": sequences, "softcap": 0.0, "attn_bias": None, "alibi_slopes": None, "sinks": None,
        **fields,
    })  # fmt: skip
    is_exact = int(rows.indptr[-1]) == rows.indices.numel()
    if is_exact and can_be_split(problem) and draw.chance(0.3):
        return with_fields(problem, shares=shares_of(problem, draw.choice([2, 3, 4])))
    return problem


def poisoned(problem: AttentionProblem, *of_queries: Tensor) -> tuple[AttentionProblem, list[Tensor]]:
    """The problem, and tensors with a row for every query, with NaN in all tokens that are in no sequence."""
    p = problem
    of_q, of_k = (each.sequence < 0 for each in tokens(p))
    nan = float("nan")

    def filled(x: Tensor, gone: Tensor) -> Tensor:
        return x.masked_fill(gone.expand(p.batch, -1)[:, :, None, None], nan)

    queries = [filled(x, of_q) for x in (p.q, *of_queries)]
    return with_fields(p, q=queries[0], k=filled(p.k, of_k), v=filled(p.v, of_k)), queries[1:]


# Of bfloat16: what is rounded is out, the weights, and in the gradients of q and k also ds and delta.
LIMITS = {"out": 2**-8, "lse": 2e-5, "q": 2**-7, "k": 2**-7, "v": 2**-8, "block_bias": 2**-6, "sinks": 2**-6}
NOTHING = 1e-6  # gradients that are 0 in exact arithmetic


def wrong_results(
    problem: AttentionProblem, seed: int, gradients: bool = True, release: str | None = None
) -> dict[str, float]:
    """The errors of a problem in the emulator, through launch.py, that reach their limits; NaN is in tokens of no sequence.

    release: of Triton, as for `emulated`.
    """
    p, generator = problem, torch.Generator().manual_seed(seed)
    grad_out = torch.randn(*p.q.shape[:3], p.v_head_dim, generator=generator).bfloat16()
    grad_lse = torch.randn(p.batch, p.num_heads, p.q_len, generator=generator)
    names = [name for name in INPUTS if getattr(p, name) is not None]
    exact = with_fields(p, **{name: getattr(p, name).double() for name in names})
    wanted = reference_results(exact, grad_out.double(), grad_lse.double())
    given, (given_grad,) = poisoned(p, grad_out)
    with emulator.emulated_launches(seed=seed, release=release) as module:
        out, lse = module.launch_forward(given)
        found = {"out": out, "lse": lse}
        if gradients:
            grads = module.launch_backward(given, out, lse, given_grad, grad_lse)
            found |= {name: getattr(grads, name) for name in names}
    if gradients and p.dropout_p:  # of few keys, which drop differently, the rounding of out is a part of ds
        of_rounding = lse_gradient_of_rounding(grad_out, out, wanted["out"])
        wanted = reference_results(exact, grad_out.double(), grad_lse.double() + of_rounding)
    made = {}
    for name, x in found.items():
        if x is None:
            made[name] = float("inf")
            continue
        expected = wanted[name]
        x = x.sum_to_size(expected.shape) if name in ("block_bias", "sinks") else x
        if name in ("block_bias", "sinks"):  # sums of numbers of the size of grad_lse, which may cancel
            made[name] = float((x - expected).norm() / max(float(expected.norm()), float(grad_lse.norm())))
        elif float(expected[expected.isfinite()].norm()) > NOTHING:
            made[name] = distance(x, expected)
        else:
            made[name] = 0.0 if float(x[~x.isinf()].double().norm()) <= NOTHING else float("inf")
    return {name: error for name, error in made.items() if not error < LIMITS[name]}


def described(problem: AttentionProblem) -> str:
    """What was drawn, in a line."""
    p = problem
    given = [
        name
        for name in ("block_masks", "alibi_slopes", "block_bias", "sinks", "key_padding_mask")
        if getattr(p, name) is not None
    ]
    table = None if p.sequences is None else (p.sequences.is_packed, p.sequences.table.tolist())
    return (
        f"B {p.block_size} D {p.head_dim}/{p.v_head_dim} batch {p.batch} heads {p.num_heads}/{p.num_kv_heads}/{p.layout_heads} "
        f"layout_batch {p.layout_batch} q {p.q_len} kv {p.kv_len} offset {p.q_offset} causal {p.is_causal} "
        f"dropout {p.dropout_p} grid {p.grid.first_row}+{p.grid.n_rows}x{p.grid.n_cols} entries {int(p.rows.indptr[-1])} shares {len(p.shares)} softcap {p.softcap} {given} {table}"
    )
