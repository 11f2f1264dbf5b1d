"""Layouts of registers and of shared memory: data, of which the emulator needs few."""

from __future__ import annotations

from typing import Any, ClassVar


def frozen(value: Any) -> Any:
    """Lists as tuples, so that layouts can be compared and hashed."""
    return tuple(map(frozen, value)) if isinstance(value, (list, tuple)) else value


class Layout:
    """A layout with the fields of its constructor."""

    FIELDS: tuple[str, ...] = ()
    DEFAULTS: ClassVar[dict[str, Any]] = {}

    def __init__(self, *values: Any, **named: Any) -> None:
        made = {**self.DEFAULTS, **dict(zip(self.FIELDS, values)), **named}
        for name, value in made.items():
            setattr(self, name, frozen(value))
        self.names = tuple(made)

    @property
    def key(self) -> Any:
        return (type(self).__name__, *((name, getattr(self, name)) for name in sorted(self.names)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"{self.key[0]}({', '.join(f'{name}={value}' for name, value in self.key[1:])})"


class BlockedLayout(Layout):
    FIELDS = ("size_per_thread", "threads_per_warp", "warps_per_cta", "order")


class SliceLayout(Layout):
    FIELDS = ("dim", "parent")


class AutoLayout(Layout):
    pass


class CoalescedLayout(Layout):
    pass


class DistributedLinearLayout(Layout):
    FIELDS = ("reg_bases", "lane_bases", "warp_bases", "block_bases", "shape")


class DotOperandLayout(Layout):
    FIELDS = ("operand_index", "parent", "k_width")


class NVMMADistributedLayout(Layout):
    FIELDS = ("version", "warps_per_cta", "instr_shape")


class NVMMASharedLayout(Layout):
    FIELDS = ("swizzle_byte_width", "element_bitwidth", "rank")
    DEFAULTS: ClassVar[dict[str, Any]] = {"rank": 2, "transposed": False, "fp4_padded": False}

    @staticmethod
    def get_default_for(block_shape: Any, kind: Any, **named: Any) -> NVMMASharedLayout:
        width = min(128, block_shape[-1] * kind.primitive_bitwidth // 8)
        return NVMMASharedLayout(width, kind.primitive_bitwidth, rank=len(block_shape), **named)


class SwizzledSharedLayout(Layout):
    FIELDS = ("vec", "per_phase", "max_phase", "order")


class MBarrierLayout(Layout):
    pass


class Reshaped(Layout):
    """The layout of a reshaped tensor."""

    FIELDS = ("parent", "shape")
