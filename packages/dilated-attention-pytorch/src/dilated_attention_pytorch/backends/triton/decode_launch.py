"""Grids and arguments of the decoding kernels; no maths.

A step of decoding is short, so the compiled kernels are looked up once (`bind_decode`), and launched by Triton's own
launcher function where raw_launch.py knows it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ... import _torch_internals
from ...launching.supported_triton import is_supported
from ..decode_problem import Decode, DecodeInputs, DecodeProblem
from .decode_tuning import MULTIPROCESSORS, DecodeTiles, decode_tiles, num_splits
from .kernels.decode import combine_kernel, decode_kernel
from .launch import INTERPRETER_CAPABILITY, Launch, padded_dim, strides

# not in the interpreter
HAS_RAW_LAUNCH = isinstance(decode_kernel, triton.JITFunction) and is_supported(triton.__version__)
if HAS_RAW_LAUNCH:
    from ...launching import raw_launch


class DecodeSizes(NamedTuple):
    """What the launches of a problem depend on beside its arguments."""

    tiles: DecodeTiles
    pack: int  # heads that share their keys: rows of one product, times the queries
    n_programs: int  # for every share of the keys
    n_splits: int
    padded_dims: tuple[int, int]


def sizes_of(problem: DecodeProblem, capability: tuple[int, int], multiprocessors: int) -> DecodeSizes:
    """Tiles and splits, from shapes alone."""
    p = problem
    # a list per query head leaves nothing to share but the queries
    pack = 1 if p.layout_heads > p.num_kv_heads else p.num_heads // p.num_kv_heads
    dims = padded_dim(p.head_dim), padded_dim(p.v_head_dim)
    tiles = decode_tiles(pack * p.q_len, max(dims), p.block_size, p.inputs.q.dtype, capability)
    n_programs = p.batch * (p.num_heads // pack) * -(-pack * p.q_len // tiles.block_m)
    return DecodeSizes(tiles, pack, n_programs, num_splits(p, n_programs, multiprocessors), dims)


def sizes_on_device(problem: DecodeProblem) -> DecodeSizes:
    """`sizes_of` for the device of the problem."""
    device = problem.inputs.q.device
    if device.type != "cuda":
        return sizes_of(problem, INTERPRETER_CAPABILITY, MULTIPROCESSORS)
    properties = torch.cuda.get_device_properties(device)
    return sizes_of(problem, (properties.major, properties.minor), properties.multi_processor_count)


class Results(NamedTuple):
    """What the kernels fill; the parts are None where one program has all keys."""

    out: Tensor
    """(batch, q_len, num_heads, v_head_dim) in q's dtype, contiguous, as lse."""
    lse: Tensor
    """float32 (batch, num_heads, q_len)."""
    part_out: Tensor
    """float32 (batch, n_splits, q_len, num_heads, v_head_dim), or out."""
    part_lse: Tensor
    """float32 (batch, n_splits, q_len, num_heads), or lse."""


def make_results(problem: DecodeProblem, n_splits: int) -> Results:
    """Memory for the results."""
    p, q = problem, problem.inputs.q
    out = torch.empty(p.batch, p.q_len, p.num_heads, p.v_head_dim, dtype=q.dtype, device=q.device)
    lse = torch.empty(p.batch, p.num_heads, p.q_len, dtype=torch.float32, device=q.device)
    if n_splits == 1:
        return Results(out, lse, out, lse)
    shape = p.batch, n_splits, p.q_len, p.num_heads
    part_out = torch.empty(*shape, p.v_head_dim, dtype=torch.float32, device=q.device)
    return Results(out, lse, part_out, torch.empty(shape, dtype=torch.float32, device=q.device))


def decode_launch(problem: DecodeProblem, results: Results, sizes: DecodeSizes) -> Launch:
    """The kernel that walks the lists. Its first arguments are tensors, in the order of `addresses_of`."""
    p, x, tiles = problem, problem.inputs, sizes.tiles
    dummy = x.cache_lengths  # never read: the flags below are off
    table, starts, slopes, sinks = (
        dummy if t is None else t for t in (x.block_table, x.kv_starts, x.alibi_slopes, x.sinks)
    )
    masks = p.block_masks
    table_strides = (0, 0) if x.block_table is None else x.block_table.stride()
    arguments = {
        "Q": x.q, "K": x.k_cache, "V": x.v_cache, "Out": results.part_out, "Lse": results.part_lse,
        "CacheLengths": x.cache_lengths, "BlockTable": table, "KvStarts": starts, "Slopes": slopes, "Sinks": sinks,
        "Offsets": p.rows.indptr, "Indices": p.rows.indices, "Entries": p.rows.block_ids,
        "MaskIds": dummy if masks is None else masks.ids, "MaskTable": dummy if masks is None else masks.table,
        **strides(x.q, "q", "bshd"), **strides(x.k_cache, "k", "bshd"), **strides(x.v_cache, "v", "bshd"),
        "stride_lengths": x.cache_lengths.stride(0), "stride_tb": table_strides[0], "stride_tp": table_strides[1],
        "stride_starts": starts.stride(0), "stride_slopes": slopes.stride(0), "stride_sinks": sinks.stride(0),
        "lists_per_element": p.layout_heads * p.grid.n_rows if p.layout_batch > 1 else 0,
        "q_len": p.q_len, "max_len": p.max_len, "num_pages": x.k_cache.shape[0], "num_heads": p.num_heads,
        "first_row": p.grid.first_row, "n_rows": p.grid.n_rows, "n_splits": sizes.n_splits,
        "softmax_scale": p.softmax_scale, "softcap": p.softcap,
        "GROUP": p.num_heads // p.num_kv_heads, "PACK": sizes.pack, "HEADS_PER_LIST": p.num_heads // p.layout_heads,
        "HEAD_DIM": p.head_dim, "V_HEAD_DIM": p.v_head_dim, "BLOCK_D": sizes.padded_dims[0], "BLOCK_DV": sizes.padded_dims[1],
        "BLOCK_SIZE": p.block_size, "BLOCK_M": tiles.block_m, "BLOCK_N": tiles.block_n,
        "PAGE_SIZE": 0 if x.block_table is None else x.k_cache.shape[1], "HAS_STARTS": x.kv_starts is not None,
        "HAS_SLOPES": x.alibi_slopes is not None, "HAS_SINKS": x.sinks is not None, "HAS_MASKS": masks is not None,
        "HAS_SOFTCAP": p.softcap != 0.0, "TWO_ROWS": p.q_len > 1, "IS_SPLIT": sizes.n_splits > 1, "PRECISION": "ieee",
    }  # fmt: skip
    options = {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages}
    return Launch(decode_kernel, (sizes.n_programs * sizes.n_splits,), arguments, options)


def combine_launch(problem: DecodeProblem, results: Results, sizes: DecodeSizes) -> Launch:
    """The kernel that adds the parts."""
    p, sinks = problem, problem.inputs.sinks
    arguments = {
        "Out": results.out, "Lse": results.lse, "PartOut": results.part_out, "PartLse": results.part_lse,
        "Sinks": results.lse if sinks is None else sinks, "stride_sinks": 0 if sinks is None else sinks.stride(0),
        "q_len": p.q_len, "num_heads": p.num_heads, "n_splits": sizes.n_splits, "V_HEAD_DIM": p.v_head_dim,
        "BLOCK_DV": sizes.padded_dims[1], "BLOCK_SPLITS": 1 << (sizes.n_splits - 1).bit_length(),
        "HAS_SINKS": sinks is not None,
    }  # fmt: skip
    return Launch(combine_kernel, (p.batch * p.q_len * p.num_heads,), arguments, {"num_warps": 4})


def launches_of(problem: DecodeProblem, results: Results, sizes: DecodeSizes) -> list[Launch]:
    """The kernels of a problem, in order."""
    launches = [decode_launch(problem, results, sizes)]
    return launches if sizes.n_splits == 1 else [*launches, combine_launch(problem, results, sizes)]


def launch_decode(problem: DecodeProblem) -> tuple[Tensor, Tensor]:
    """out and lse of a problem."""
    device = problem.inputs.q.device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            return launch_decode(problem)
    sizes = sizes_on_device(problem)
    results = make_results(problem, sizes.n_splits)
    if problem.max_len == 0 or problem.inputs.k_cache.numel() == 0:
        return results.out.zero_(), results.lse.fill_(-torch.inf)
    for launch in launches_of(problem, results, sizes):
        launch.run()
    return results.out, results.lse


# ---- repeated calls


class RawLaunch:
    """A compiled kernel with all of its arguments but the addresses of its first tensors; `kept` are its last ones."""

    def __init__(self, launch: Launch, kept: tuple[Tensor, ...] = ()) -> None:
        compiled = launch.kernel.warmup(
            grid=(1,), **launch.arguments, **launch.options, enable_fp_fusion=True
        )
        self.kernel = raw_launch.RawKernel(compiled)
        self.grid = launch.grid[0]
        # behind the addresses that `run` is given
        numbers = {name: x for name, x in launch.arguments.items() if not isinstance(x, Tensor)}
        self.others = (*(x.data_ptr() for x in kept), *numbers.values())
        self.places = {name: len(kept) + i for i, name in enumerate(numbers)}

    def run(self, stream: int, addresses: tuple[int, ...], others: tuple[Any, ...] | None = None) -> None:
        """Launch on a stream of the current device; `others`: instead of these."""
        self.kernel.start(self.grid, stream, (*addresses, *(self.others if others is None else others)))


def is_aligned(inputs: DecodeInputs) -> bool:
    """Whether all tensors begin at multiples of 16 bytes, which compiled kernels may rely on."""
    return not any(x is not None and x.data_ptr() % 16 for x in inputs)


def bind_decode(problem: DecodeProblem) -> Decode | None:
    """`launch_decode` with everything looked up that does not depend on the values and addresses of the inputs."""
    p, inputs = problem, problem.inputs
    if not HAS_RAW_LAUNCH or p.max_len == 0 or inputs.k_cache.numel() == 0 or not is_aligned(inputs):
        return None
    sizes = sizes_on_device(p)
    results = make_results(p, sizes.n_splits)
    masks = p.block_masks
    lists = (*p.rows.tensors(), *((p.rows.indptr, p.rows.indptr) if masks is None else masks))
    of_lists, *of_parts = launches_of(p, results, sizes)
    walk, combine = RawLaunch(of_lists, lists), [RawLaunch(launch) for launch in of_parts]
    if any(launch.kernel.raw_launch is None for launch in (walk, *combine)):
        return None
    index, device = inputs.q.get_device(), inputs.q.device
    shape, lse_shape, dtype = results.out.shape, results.lse.shape, inputs.q.dtype
    n_out = -(-results.part_out.numel() // 4) * 4  # whole 16 bytes, as is_aligned
    n_lse = results.lse.numel()
    n_parts = 0 if sizes.n_splits == 1 else n_out + -(-results.part_lse.numel() // 4) * 4
    is_paged, strides_at, max_len_at = (
        inputs.block_table is not None,
        walk.places["stride_kb"],
        walk.places["max_len"],
    )
    before_strides, behind_strides = walk.others[:strides_at], walk.others[strides_at + 8 : max_len_at]
    behind_max_len = walk.others[max_len_at + 1 :]
    # keeps the lists alive
    static = p._replace(inputs=DecodeInputs(*(None,) * len(DecodeInputs._fields)))  # type: ignore[arg-type]

    def decode(given: DecodeInputs, with_lse: bool) -> tuple[Tensor, Tensor | None]:
        q, k_cache, v_cache, cache_lengths, block_table, kv_starts, slopes, sinks = given
        lengths_at = cache_lengths.data_ptr()
        table_at = lengths_at if block_table is None else block_table.data_ptr()
        starts_at = lengths_at if kv_starts is None else kv_starts.data_ptr()
        slopes_at = lengths_at if slopes is None else slopes.data_ptr()
        sinks_at = lengths_at if sinks is None else sinks.data_ptr()
        q_at, k_at, v_at = q.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr()
        together = q_at | k_at | v_at | lengths_at | table_at | starts_at | slopes_at | sinks_at
        if together % 16 or index != _torch_internals.current_device() or raw_launch.is_hooked():
            with torch.cuda.device(index):
                return launch_decode(static._replace(inputs=given))
        out = torch.empty(shape, dtype=dtype, device=device)
        lse = torch.empty(lse_shape, dtype=torch.float32, device=device) if with_lse else None
        # what nobody asked for is written behind the parts
        more = torch.empty(n_parts + (0 if with_lse else n_lse), dtype=torch.float32, device=device)
        out_at, more_at = out.data_ptr(), more.data_ptr()
        lse_at = more_at + 4 * n_parts if lse is None else lse.data_ptr()
        stream = _torch_internals.current_raw_stream(index)
        others = None
        if not is_paged:  # the cache may have grown, see decode_eager.described_cache
            of_caches = (*k_cache.stride(), *v_cache.stride())
            others = (*before_strides, *of_caches, *behind_strides, k_cache.shape[1], *behind_max_len)
        before = q_at, k_at, v_at
        after = lengths_at, table_at, starts_at, slopes_at, sinks_at
        if not n_parts:
            walk.run(stream, (*before, out_at, lse_at, *after), others)
            return out, lse
        part_lse_at = more_at + 4 * n_out
        walk.run(stream, (*before, more_at, part_lse_at, *after), others)
        combine[0].run(stream, (out_at, lse_at, more_at, part_lse_at, sinks_at))
        return out, lse

    return decode
