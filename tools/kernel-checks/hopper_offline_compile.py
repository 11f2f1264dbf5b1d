"""Compile the Gluon kernels for compute capability 9.0 without a GPU, and read what ptxas reports.

Run as a script (without TRITON_INTERPRET): prints one JSON object per kernel and shape. Two processes compile. With
--every all shapes, otherwise those with all masks, in which each kernel, head_dim and block_size meets each of the others.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from ptxas_report import compiled_with_report
from torch import Tensor
from triton.experimental.gluon._runtime import GluonASTSource
from triton.experimental.gluon.language import NVMMASharedLayout
from uniform_registers import faults

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
from dilated_attention_pytorch.backends.hopper import HOPPER, passes, tuning
from dilated_attention_pytorch.backends.hopper.adding import Adding
from dilated_attention_pytorch.backends.hopper.launcher import box_layout
from dilated_attention_pytorch.backends.hopper.single_pass import SINGLE_PASS
from dilated_attention_pytorch.backends.hopper.wide import bias_slots
from dilated_attention_pytorch.backends.problem import AttentionProblem, Gradients
from dilated_attention_pytorch.functional import make_problem
from dilated_attention_pytorch.sequences import packed_sequences

TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int32: "i32",
    torch.int64: "i64",
}
PROCESSES = 2
SINGLE_PASSES = ("single", "ranges", "fixed", "turns")


@dataclass(frozen=True)
class Shape:
    """A kernel and the case to compile it for. ragged: the last block of keys is partial. grad_lse: it is given.

    At head_dim 192 and 256 "dkdv" is the pass for dk, and "dv" another, but not in plain calls with v of 128; "single" is the
    single pass, "ranges" that of rows cut into ranges, "fixed" its sums in fixed point, "turns" those to which programs add in
    turns. features: what the call asks for beyond a plain one, of "lengths", "packed",
    "masks", "padding", "bias", "softcap", "alibi", "sinks" and "dropout".
    """

    kernel: str
    head_dim: int
    block_size: int
    is_causal: bool
    ragged: bool
    rates: tuple[int, ...] = ()
    dtype: str = "bfloat16"
    grad_lse: bool = False
    features: tuple[str, ...] = ()
    v_head_dim: int | None = None  # None: head_dim


TABLES: dict[str, Mapping[tuple[int, int], Any]] = {
    "forward": tuning.FORWARD,
    "dq": tuning.DQ,
    "dkdv": tuning.DKDV,
}
SHAPES = [
    Shape(kernel, head_dim, block_size, causal, ragged)
    for kernel, table in TABLES.items()
    for head_dim, block_size in table
    for causal in (True, False)
    for ragged in (True, False)
    if causal == ragged or kernel == "forward"  # the backward with all masks, and with none
] + [
    *(
        Shape("dv", head_dim, block_size, causal, causal)
        for head_dim in (192, 256)
        for block_size in (64, 128)
        for causal in (True, False)
    ),
    Shape("dq", 64, 128, True, True, grad_lse=True),
    Shape("dq", 128, 64, False, False, grad_lse=True),
    Shape("forward", 128, 128, True, True, rates=(1, 4)),
    Shape("forward", 128, 128, False, False, rates=(1, 4)),
    Shape("forward", 64, 128, True, True, rates=(1, 4)),
    Shape("forward", 64, 128, False, False, rates=(1, 4)),
    Shape("forward", 64, 128, True, False, rates=(2, 16)),
    *(
        Shape(kernel, head_dim, 128, causal, causal, rates=rates)
        for kernel in ("dq", "dkdv")
        for head_dim, causal, rates in ((128, True, (1, 4)), (64, False, (2,)), (64, True, (2, 16)))
    ),
    Shape("dkdv", 128, 128, True, True, rates=(16,)),
    Shape("dq", 64, 128, False, False, rates=(8, 1), grad_lse=True),
    Shape("forward", 128, 128, True, True, dtype="float16"),
    Shape("dq", 128, 128, True, True, dtype="float16"),
    Shape("dkdv", 128, 128, True, True, dtype="float16"),
    *(
        Shape(kernel, head_dim, block_size, True, True, features=features)
        for kernel in TABLES
        for head_dim in (64, 128)
        for block_size in (64, 128)
        for features in (
            ("lengths", "masks", "bias"),
            ("packed",),
            ("padding", "alibi", "sinks"),
            ("softcap",),
            ("dropout",),
        )
    ),
    *(
        Shape("single", head_dim, block_size, causal, causal)
        for head_dim in tuning.SINGLE_PASS
        for block_size in (64, 128)
        for causal in (True, False)
    ),
    Shape("fixed", 64, 128, True, True),
    Shape("fixed", 64, 128, False, False),
    Shape("single", 128, 128, False, False, dtype="float16"),
    Shape("turns", 128, 128, False, True),
    Shape("turns", 128, 128, False, False),
    Shape("ranges", 64, 128, True, True),
    Shape("ranges", 128, 128, True, True),
    Shape("single", 128, 64, False, True),
    Shape("single", 128, 64, False, False, dtype="float16"),
    Shape("single", 128, 64, True, True, dtype="float16"),
]
# Of head_dims that are not those of the kernels, the forward reads fewer columns; tiles of 192 columns are two.
ODD_SHAPES = [
    Shape("forward", 96, 128, True, True),
    Shape("forward", 128, 128, True, True, features=("bias", "alibi")),
    Shape("forward", 256, 128, True, True, v_head_dim=192),
    Shape("forward", 128, 128, True, True, v_head_dim=192),
    *(
        Shape(kernel, 192, block_size, causal, causal, v_head_dim=128)
        for kernel in TABLES
        for block_size in (64, 128)
        for causal in (True, False)
    ),
    Shape("dkdv", 192, 128, True, True, dtype="float16", v_head_dim=128),
    Shape("dkdv", 128, 128, True, True, v_head_dim=192),
    *(
        Shape(kernel, 192, 128, True, True, features=("lengths", "masks", "bias"), v_head_dim=v_head_dim)
        for kernel in (*TABLES, "dv")
        for v_head_dim in (128, 192)
    ),
    Shape("forward", 192, 64, True, True, features=("padding", "alibi", "sinks"), v_head_dim=128),
]


WIDE_MAIN_SHAPES = [
    Shape(kernel, 128, 128, True, True, features=("lengths", "masks", "bias"))
    for kernel in ("forward", "dkdv")
] + [Shape("forward", 64, 64, True, True, features=("lengths", "masks", "bias"))]
# Plain kernels that only --every compiles: the others hold every pair of a kernel, a head_dim and a block_size.
ONLY_WITH_EVERY = {
    *(("forward", 128, 128), ("forward", 256, 64), ("dv", 256, 64)),
    *(("dq", 64, 128), ("dq", 128, 128), ("dq", 256, 64)),
    *(("ranges", 64, 128), ("single", 64, 128), ("single", 128, 64)),
    *(("dkdv", 64, 64), ("dkdv", 128, 128), ("dkdv", 256, 128)),
}


def is_plain(shape: Shape) -> bool:
    """A call in bfloat16 that asks for nothing else."""
    return not (shape.rates or shape.features or shape.grad_lse) and shape.dtype == "bfloat16"


MAIN_SHAPES = [
    shape
    for shape in SHAPES
    if shape.is_causal
    and shape.ragged
    and not (is_plain(shape) and (shape.kernel, shape.head_dim, shape.block_size) in ONLY_WITH_EVERY)
    and (not shape.rates or shape.head_dim == 128)
    and (not shape.features or shape in WIDE_MAIN_SHAPES)
    and shape.head_dim != 192
]
MAIN_SHAPES += [Shape(kernel, 192, 128, True, True, v_head_dim=128) for kernel in ("forward", "dkdv")]
MAIN_SHAPES.append(Shape("turns", 128, 128, False, True))


def layout_of(shape: Shape, length: int) -> BlockLayout:
    """A small layout, with masks inside blocks if asked for."""
    if "masks" in shape.features:
        return BlockLayout.from_mask(torch.ones(length, length).tril(8).bool(), block_size=shape.block_size)
    return BlockLayout.from_config(
        SparsePatternConfig(block_size=shape.block_size), length, causal=shape.is_causal
    )


def options_of(shape: Shape, layout: BlockLayout, length: int) -> dict[str, Any]:
    """The arguments of a call with the features of a shape."""
    given: dict[str, dict[str, Any]] = {
        "lengths": {"kv_lengths": torch.tensor([length - 1], dtype=torch.int32)},
        "padding": {"key_padding_mask": torch.zeros(1, length, dtype=torch.bool)},
        "bias": {"block_bias": torch.zeros(1, 2, layout.num_block_ids)},
        "softcap": {"softcap": 20.0},
        "alibi": {"alibi_slopes": torch.ones(2)},
        "sinks": {"sinks": torch.zeros(2)},
        "dropout": {"dropout_p": 0.1},
    }
    return {name: value for feature in shape.features for name, value in given.get(feature, {}).items()}


def tensors_of(problem: AttentionProblem) -> dict[str, Tensor]:
    """What a launch makes for a wide call, by its types."""
    p, numbers = problem, torch.empty(16, dtype=torch.int32)
    found = {
        "Table": None if p.sequences is None else p.sequences.table,
        "Starts": None if p.sequences is None else numbers,
        "Padding": None if p.key_padding_mask is None else numbers.view(1, 16),
        "Bias": p.block_bias,
        "Slopes": p.alibi_slopes,
        "Sinks": p.sinks,
        "Seed": p.seed,
    }
    return {name: x for name, x in found.items() if x is not None}


def backward_tensors_of(problem: AttentionProblem) -> dict[str, Tensor]:
    """The same of a backward."""
    made = tensors_of(problem)
    if problem.block_bias is not None:
        made["Slots"] = bias_slots(problem, passes.slot_parts(problem))
    return made


def problem_of(shape: Shape) -> AttentionProblem:
    """The problem of a small call of this shape, on the CPU."""
    length = 4 * shape.block_size - (8 if shape.ragged else 0)
    layout = layout_of(shape, length)
    dims = shape.head_dim, shape.head_dim, shape.v_head_dim or shape.head_dim
    q, k, v = (torch.empty(1, length, 2, dim, dtype=getattr(torch, shape.dtype)) for dim in dims)
    segments = [shape.block_size * 2**i for i in range(len(shape.rates))]
    problem = make_problem(
        q,
        k,
        v,
        layout,
        is_causal=shape.is_causal,
        segment_lengths=segments or None,
        dilation_rates=shape.rates or None,
        **options_of(shape, layout, length),
        deterministic=shape.kernel not in SINGLE_PASSES,
    )
    if "packed" in shape.features:
        offsets = torch.tensor([0, length], dtype=torch.int32)
        sequences = packed_sequences(offsets, offsets, length, length, shape.is_causal)
        problem = dataclasses.replace(problem, sequences=sequences)
    return problem.prepared_by(HOPPER, layout)


def launch_of(shape: Shape) -> tuple[Any, dict[str, Any], dict[str, Any], int]:
    """Kernel, arguments (tensor descriptors as (tensor, rows, rate)), compile options, programs per multiprocessor."""
    p = problem_of(shape)
    out = torch.empty(1, p.q_len, 2, p.v_head_dim, dtype=p.q.dtype)
    lse = torch.empty(1, 2, p.q_len)
    if shape.kernel == "forward":
        one = passes.FORWARD
        pointers = one.extra_tensors(p, out, tensors_of(p))
        return one.kernel, one.arguments(p, out, lse, pointers), one.options(p), one.programs(p)
    grads = Gradients(torch.empty_like(p.q), torch.empty_like(p.k), torch.empty_like(p.v), None)
    call = passes.BackwardCall(p, out, lse, out, lse, shape.grad_lse, grads, None, backward_tensors_of(p))
    if shape.kernel in SINGLE_PASSES:
        adding = {"fixed": Adding.FIXED_POINT, "turns": Adding.TURNS}.get(shape.kernel, Adding.ANY_ORDER)
        memory = SINGLE_PASS.memory(p, adding)
        if shape.kernel == "ranges":
            memory = memory._replace(cuts=torch.empty(16, 2, dtype=torch.int32))
        its = SINGLE_PASS.arguments(call, memory)
        return SINGLE_PASS.kernel, its, SINGLE_PASS.options(), 1
    of_backward = passes.backward_of(p).passes[("dq", "dkdv", "dv").index(shape.kernel)]
    return of_backward.kernel, of_backward.arguments(call, torch.empty(16)), of_backward.options(p), 1


def type_of(value: Any) -> str:
    """The type of an argument in a signature."""
    if isinstance(value, tuple):
        tensor, rows, rate = value
        *_, box = box_layout(tensor, rows, rate)
        layout = NVMMASharedLayout(128, 8 * tensor.element_size(), rank=len(box))
        return f"tensordesc<{TYPES[tensor.dtype]}{box},{layout!r}>"
    if isinstance(value, Tensor):
        return f"*{TYPES[value.dtype]}"
    return "fp32" if isinstance(value, float) else "i32"


def source(kernel: Any, arguments: dict[str, Any]) -> Any:
    """The kernel with the specialisation that a launch gives it."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for place, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        is_free_int = isinstance(value, int) and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (is_free_int and value == 1):
            signature[parameter.name], constants[(place,)] = "constexpr", value
            continue
        signature[parameter.name] = type_of(value)
        if isinstance(value, Tensor) or (is_free_int and value % 16 == 0):
            attributes[(place,)] = [["tt.divisibility", 16]]
    return GluonASTSource(kernel, signature, constants, attributes)


def compiled(shape: Shape) -> dict[str, Any]:
    """Shared memory, registers, spilled bytes and the codes of ptxas warnings; or the error."""
    kernel, arguments, options, programs = launch_of(shape)
    made = source(kernel, arguments)
    try:
        binary, registers, spills, warnings = compiled_with_report(made, 90, options)
    except Exception as error:
        return {**dataclasses.asdict(shape), "error": f"{type(error).__name__}: {error}"[:1000]}
    return {
        **dataclasses.asdict(shape),
        "programs": programs,
        "shared": binary.metadata.shared,
        "registers": registers,
        "spills": spills,
        "faults": faults(binary.asm["cubin"]),
        "warnings": warnings,
    }


def main(arguments: list[str]) -> None:
    """Print a line for every shape."""
    shapes = SHAPES + ODD_SHAPES if "--every" in arguments else MAIN_SHAPES
    with multiprocessing.get_context("fork").Pool(PROCESSES) as pool:  # torch and triton are imported once
        for line in pool.imap_unordered(compiled, shapes):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
