"""What the kernels are given of a call beyond a plain one: arguments that are None in every other call.

A plain call has one layout for exactly its positions, the same for all batch elements, and scores that are nothing but scaled
products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dropout import keep_threshold
from ..problem import AttentionProblem
from .call_tables import padding_bits, tile_starts
from .kernels.lse_delta import CHUNK
from .prepared import masks_of

GROUP_TOKENS = 128  # positions of a work tile

# Of the kernels, what a plain call has not. The pointers in the second line differ from pass to pass.
POINTERS = (
    "Table", "Starts", "Padding", "Bias", "Slopes", "Sinks", "Seed",
    "MaskIds", "MaskTable", "BlockIds", "Slots", "OutRows", "GradQk", "GradV",
)  # fmt: skip
NUMBERS = (
    "n_sequences", "n_layout_rows", "n_layout_cols", "list_heads", "n_elements", "softcap", "threshold", "stride_bb", "stride_bh", "stride_be",
    "stride_pb", "stride_ss", "stride_sh", "stride_se", "slot_heads", "stride_gb", "stride_gs", "stride_gh", "stride_vb",
    "stride_vs", "stride_vh", "stride_ob", "stride_os", "stride_oh",
)  # fmt: skip
NONE: dict[str, Any] = dict.fromkeys((*POINTERS, *NUMBERS))


Addresses = tuple[int | None, ...]


# ---- positions


def has_positions(problem: AttentionProblem) -> bool:
    """Whether the kernels have to look where the tokens of each sequence are, and which blocks of the layout they see.

    A layout may have a row and a column more than the call: where blocks of 256 are taken as blocks of 128.
    """
    p, grid = problem, problem.grid
    return (
        p.sequences is not None
        or p.layout_batch != 1
        or p.q_offset != grid.first_row * grid.block_size
        or not 0 <= grid.n_rows - p.n_rows <= 1
        or not 0 <= grid.n_cols - p.n_cols <= 1
    )


def has_positions_in_forward(problem: AttentionProblem) -> bool:
    """The same for the forward: with alibi it takes the nearest blocks first, which the kernel of a plain call cannot."""
    return has_positions(problem) or problem.alibi_slopes is not None


def n_sequences(problem: AttentionProblem) -> int:
    """The sequences of a call."""
    return problem.batch if problem.sequences is None else problem.sequences.table.shape[0]


def row_groups(problem: AttentionProblem) -> int:
    """Groups of 128 positions that hold a query, of all sequences; at most so many where a table says how many."""
    p, n = problem, n_sequences(problem)
    if p.q_len == 0:
        return 0
    if p.sequences is None:
        place = (p.q_offset - p.grid.first_row * p.block_size) % GROUP_TOKENS
        return n * -(-(place + p.q_len) // GROUP_TOKENS)
    if p.sequences.is_packed:
        return p.q_len // GROUP_TOKENS + 2 * n
    return n * -(-(p.q_len + GROUP_TOKENS - 1) // GROUP_TOKENS)


def column_groups(problem: AttentionProblem) -> int:
    """Groups of 128 positions that hold a key, likewise."""
    p, n = problem, n_sequences(problem)
    if p.sequences is not None and p.sequences.is_packed:
        return p.kv_len // GROUP_TOKENS + n
    return n * -(-p.kv_len // GROUP_TOKENS)


def chunks(problem: AttentionProblem) -> int:
    """Chunks of 64 queries for which the backward keeps lse and delta, of all heads and batch elements."""
    p = problem
    if has_positions(p):
        return 2 * row_groups(p) * p.num_heads
    return p.batch * p.num_heads * p.grid.n_rows * (p.block_size // int(CHUNK.value))


def has_query_gaps(problem: AttentionProblem) -> bool:
    """Whether there may be queries in no sequence: between packed ones, or where `within_grid` cut them off.

    Of a problem with the blocks of its layout.
    """
    sequences, grid = problem.sequences, problem.grid
    if sequences is None or sequences.only_lengths:
        return False
    ends = grid.q_offset + grid.q_len, grid.kv_len
    return sequences.is_packed or any(end % grid.block_size for end in ends)


# ---- arguments


def is_wide(problem: AttentionProblem) -> bool:
    """Whether a call has any argument that a plain one has not."""
    p = problem
    return (
        p.block_masks is not None
        or masks_of(p) is not None
        or p.key_padding_mask is not None
        or p.block_bias is not None
        or p.softcap != 0.0
        or p.alibi_slopes is not None
        or p.sinks is not None
        or p.dropout_p > 0.0
        or has_positions(p)
    )


def call_tensors(problem: AttentionProblem) -> dict[str, Tensor]:
    """Pointers that all passes have; made without a host synchronisation, by a small kernel each for Starts and Padding."""
    p = problem
    made: dict[str, Tensor] = {}
    if p.sequences is not None:
        made["Table"] = p.sequences.table
        groups = p.sequences.groups  # of a layout with blocks of 256 they are the same
        made["Starts"] = (
            tile_starts(p.sequences, p.grid.first_row * p.block_size) if groups is None else groups
        )
    if p.key_padding_mask is not None:
        made["Padding"] = padding_bits(p.key_padding_mask, p.sequences)
    if p.seed is not None:
        made["Seed"] = p.seed
    # one kernel for all types of them
    for name, x in (("Bias", p.block_bias), ("Slopes", p.alibi_slopes), ("Sinks", p.sinks)):
        if x is not None:
            x = x.detach().to(torch.float32)
            made[name] = x if name == "Bias" else x.contiguous()
    return made


def list_tensors(problem: AttentionProblem, by_rows: bool) -> dict[str, Tensor]:
    """Pointers that differ for the row lists and the column lists."""
    p, masks = problem, masks_of(problem)
    made: dict[str, Tensor] = {}
    if masks is not None:
        made["MaskIds"] = masks.of_rows if by_rows else masks.of_columns
        table = masks.table if by_rows else masks.by_keys
        if table is not None:
            made["MaskTable"] = table
    if p.block_bias is not None:
        made["BlockIds"] = (p.rows if by_rows else p.cols).block_ids
    return made


def wide_arguments(problem: AttentionProblem, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Pointers and numbers by name, None for what the call has not; `tensors` are those that it has."""
    p, grid, bias, padding, slots = problem, problem.grid, *map(tensors.get, ("Bias", "Padding", "Slots"))
    made: dict[str, Any] = {**NONE, **tensors, "softcap": p.softcap or None}
    if p.dropout_p > 0.0:
        made["threshold"] = keep_threshold(p.dropout_p)
    if has_positions_in_forward(p):
        made |= {
            "n_sequences": n_sequences(p), "n_layout_rows": grid.n_rows, "n_layout_cols": grid.n_cols,
            "list_heads": p.layout_heads if p.layout_batch > 1 else 0,
        }  # fmt: skip
    if bias is not None:
        made |= {
            "stride_bb": shared_stride(bias, 0),
            "stride_bh": shared_stride(bias, 1),
            "stride_be": bias.stride(2),
        }
    if padding is not None:
        made["stride_pb"] = padding.stride(0)
    if slots is not None:
        made |= {
            "stride_ss": shared_stride(slots, 0), "stride_sh": slots.stride(1), "stride_se": slots.stride(2),
            "slot_heads": slots.shape[1],
        }  # fmt: skip
    return made


def addresses(names: tuple[str, ...], tensors: dict[str, Tensor]) -> Addresses:
    """Addresses of the pointers with these names, None for those that are absent."""
    found = map(tensors.get, names)
    return tuple(None if x is None else x.data_ptr() for x in found)


def shared_stride(x: Tensor, dim: int) -> int:
    """The stride of a dimension, 0 where all share its one place."""
    return 0 if x.shape[dim] == 1 else x.stride(dim)


def row_strides(suffix: str, x: Tensor, is_stored_by_rows: bool) -> dict[str, int | None]:
    """The strides of a result that is also stored without a descriptor, where a sequence ends inside a tile; or None."""
    return {
        f"stride_{suffix}{axis}": x.stride(i) if is_stored_by_rows else None for i, axis in enumerate("bsh")
    }


def wide_constants(problem: AttentionProblem) -> dict[str, Any]:
    """Constants by which a kernel of a wide call is another one."""
    p = problem
    return {
        "SEQUENCES": has_positions(p), "PACKED": p.sequences is not None and p.sequences.is_packed,
        "HEAD_DIM": p.head_dim, "V_HEAD_DIM": p.v_head_dim,
    }  # fmt: skip


# ---- the gradient of block_bias


def bias_slots(problem: AttentionProblem, parts: int) -> Tensor:
    """Zeros, float32 (sequences or 1, heads, block ids, parts), in which the dq pass leaves its sums.

    A block that no two sequences share has one place for all of them, and likewise for heads. A tile that never runs leaves its
    slot 0.
    """
    p, bias = problem, problem.block_bias
    assert bias is not None
    n = n_sequences(p)
    of_sequences = 1 if bias.shape[0] == 1 and p.layout_batch == n else n
    of_heads = p.num_heads // p.layout_heads if bias.shape[1] == 1 else p.num_heads
    shape = of_sequences, of_heads, bias.shape[2], parts
    return torch.zeros(shape, dtype=torch.float32, device=p.q.device)
