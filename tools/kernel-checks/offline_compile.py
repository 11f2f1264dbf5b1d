"""Compile the Triton kernels without a GPU, and read what ptxas reports.

Run as a script (without TRITON_INTERPRET): prints one JSON object per kernel, architecture and case.
"""

from __future__ import annotations

import json
import sys
from typing import Any, NamedTuple

import torch
from ptxas_report import compiled_with_report
from triton.compiler import ASTSource
from uniform_registers import faults

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
from dilated_attention_pytorch.backends.triton.launch import Launch, backward_launches, forward_launch
from dilated_attention_pytorch.functional import make_problem

POINTERS = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16",
    torch.int32: "*i32", torch.int64: "*i64", torch.int8: "*i8",
}  # fmt: skip


Shape = tuple[int, int, torch.dtype, dict[str, Any]]  # head_dim, block_size, dtype, options


class Specialised(NamedTuple):
    """The type of an argument, the constants in it, and what is known of its values, by their places."""

    type: Any
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]


def specialised(value: Any, place: tuple[int, ...], parameter: Any) -> Specialised:
    """An argument, or a part of a tuple, as a launch on a GPU would specialise it."""
    divisible = {place: [["tt.divisibility", 16]]}
    if parameter.is_constexpr or value is None:
        return Specialised("constexpr", {place: value}, {})
    if isinstance(value, torch.Tensor):
        return Specialised(POINTERS[value.dtype], {}, divisible)
    if isinstance(value, tuple):
        parts = [specialised(part, (*place, i), parameter) for i, part in enumerate(value)]
        constants = {key: constant for part in parts for key, constant in part.constants.items()}
        attributes = {key: known for part in parts for key, known in part.attributes.items()}
        return Specialised(type(value)(*(part.type for part in parts)), constants, attributes)
    if isinstance(value, float):
        return Specialised("fp32", {}, {})
    if parameter.do_not_specialize:
        return Specialised("i32", {}, {})
    if value == 1:
        return Specialised("constexpr", {place: value}, {})
    fits = -(2**31) <= value < 2**31
    return Specialised("i32" if fits else "i64", {}, divisible if value % 16 == 0 else {})


def source(launch: Launch) -> ASTSource:
    """The kernel with the specialisation that a launch on a GPU would give it."""
    signature: dict[str, Any] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for place, parameter in enumerate(launch.kernel.params):
        found = specialised(launch.arguments[parameter.name], (place,), parameter)
        signature[parameter.name] = found.type
        constants |= found.constants
        attributes |= found.attributes
    return ASTSource(launch.kernel, signature, constants, attributes)


def compiled(launch: Launch, capability: int) -> dict[str, Any]:
    """Registers, spilled bytes and shared memory of one kernel."""
    binary, registers, spills, _ = compiled_with_report(source(launch), capability, launch.options)
    return {
        "kernel": launch.kernel.__name__,
        "registers": registers,
        "spills": spills,
        "shared": binary.metadata.shared,
        "faults": faults(binary.asm["cubin"]) if capability == 90 else [],
    }


def launches(
    head_dim: int, block_size: int, dtype: torch.dtype, capability: tuple[int, int], **options: Any
) -> list[Launch]:
    """Forward and backward launches of a default call with the given shape."""
    causal = options.pop("is_causal", False)
    config = SparsePatternConfig(block_size=block_size)
    seqlen = 16 * block_size
    q, k, v = (torch.empty(1, seqlen, 16, head_dim, dtype=dtype) for _ in range(3))
    layout = BlockLayout.from_config(config, seqlen, causal=causal)
    problem = make_problem(q, k, v, layout, is_causal=causal, **options)
    out, lse = torch.empty_like(q), torch.empty(1, 16, seqlen)
    backward, _ = backward_launches(problem, out, lse, torch.empty_like(out), None, capability)
    return [forward_launch(problem, out, lse, capability), *backward]


DEFAULT_SHAPES: list[Shape] = [
    (head_dim, block_size, torch.bfloat16, {"is_causal": causal})
    for head_dim, block_size in ((64, 64), (128, 128))
    for causal in (False, True)
]
OTHER_SHAPES: list[Shape] = [
    (256, 64, torch.float16, {}),
    (96, 32, torch.bfloat16, {"is_causal": True}),
    (64, 256, torch.bfloat16, {}),
    (128, 128, torch.float32, {}),
    (64, 64, torch.bfloat16, {"dropout_p": 0.1}),
    (64, 64, torch.bfloat16, {"segment_lengths": [64, 128], "dilation_rates": [1, 4]}),
    (64, 64, torch.bfloat16, {"segment_lengths": [64, 128], "dilation_rates": [1, 4], "is_causal": True}),
    (64, 32, torch.bfloat16, {"segment_lengths": [64, 128], "dilation_rates": [1, 4]}),
    # the other shapes of the tables for compute capability 9.0
    (64, 128, torch.bfloat16, {}),
    (128, 64, torch.bfloat16, {}),
    (64, 128, torch.bfloat16, {"segment_lengths": [256, 512], "dilation_rates": [1, 4]}),
    (64, 128, torch.bfloat16, {"segment_lengths": [256, 512], "dilation_rates": [1, 4], "is_causal": True}),
    (128, 128, torch.bfloat16, {"segment_lengths": [256, 512], "dilation_rates": [1, 4]}),
    (128, 128, torch.float16, {"segment_lengths": [256, 512], "dilation_rates": [1, 4], "is_causal": True}),
]


def main(arguments: list[str]) -> None:
    """Arguments: capabilities such as 80 90; --other adds every option to the default shapes.

    With --some half of the default shapes are compiled, for 90 the other half and every fourth option.
    """
    for arch in (int(argument) for argument in arguments if not argument.startswith("--")):
        shapes = list(DEFAULT_SHAPES)
        if "--other" in arguments:
            shapes += OTHER_SHAPES
        elif "--some" in arguments:
            shapes = DEFAULT_SHAPES[1:3] + OTHER_SHAPES[1::4] if arch == 90 else DEFAULT_SHAPES[::3]
        for head_dim, block_size, dtype, options in shapes:
            for launch in launches(head_dim, block_size, dtype, divmod(arch, 10), **options):
                case = {
                    "arch": arch,
                    "head_dim": head_dim,
                    "block_size": block_size,
                    "dtype": str(dtype),
                    **options,
                }
                print(json.dumps({**case, **compiled(launch, arch), **launch.options}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
