"""Kept kernels: which compiled forms a launch may share, and that what is given reaches the kernel."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

pytest.importorskip("triton")

from dilated_attention_pytorch import _torch_internals
from dilated_attention_pytorch.launching import kept_kernel
from dilated_attention_pytorch.launching.kept_kernel import KeptKernel, Kind

pytestmark = pytest.mark.skipif(
    not kept_kernel.HAS_RAW_LAUNCH, reason="Triton of another release is launched by its own function"
)

DEVICE = torch.device("cuda", 0)


class Forms:
    """Stands for `RawKernel`, and notes what is compiled and launched."""

    made: list[tuple[Any, ...]]
    launched: list[tuple[int, list[Any]]]

    def __init__(self, compiled: tuple[Any, ...]) -> None:
        type(self).made.append(compiled)
        self.raw_launch = True

    def start(self, grid: int, stream: int, arguments: list[Any]) -> None:
        type(self).launched.append((grid, arguments))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> KeptKernel:
    """A kernel of (X, Y, free, specialised, CONSTANT), as if it were compiled."""
    monkeypatch.setattr(kept_kernel.raw_launch, "RawKernel", Forms)
    monkeypatch.setattr(kept_kernel.raw_launch, "is_hooked", lambda: False)
    monkeypatch.setattr(_torch_internals, "current_raw_stream", lambda index: 0)
    monkeypatch.setattr(_torch_internals, "current_device", lambda: 0)
    Forms.made, Forms.launched = [], []

    names = ["X", "Y", "free", "specialised", "CONSTANT"]
    made = KeptKernel(SimpleNamespace(arg_names=names, warmup=lambda *arguments, **options: arguments))
    pointer, number = Kind(False, False, False), Kind(False, False, False)
    made.kinds = [
        pointer, pointer._replace(is_anywhere=True), number._replace(is_free=True), number, Kind(True, False, False)
    ]  # fmt: skip
    return made


X, Y = torch.zeros(64), torch.zeros(64)
SAME: list[tuple[Any, ...]] = [
    (X, Y, 5, 32, 7),
    (X, Y, 6, 32, 7),  # a free number
    (X, Y, 1, 64, 7),  # another multiple of 16
    (X[4:], Y[1:], 0, 32, 7),  # whole 16 bytes, and an alignment that does not count
]
OTHERS: list[tuple[Any, ...]] = [
    (X.int(), Y, 5, 32, 7),
    (X[1:], Y, 5, 32, 7),
    (X, None, 5, 32, 7),
    (X, Y, 2**31, 32, 7),
    (X, Y, 5, 33, 7),
    (X, Y, 5, 1, 7),
    (X, Y, 5, 2**32, 7),
    (X, Y, 5, 32, 8),
]


def test_launches_of_one_kind_share_a_form_and_others_do_not(kernel: KeptKernel) -> None:
    for arguments in [*SAME, *OTHERS, *SAME, *OTHERS]:
        kernel.run(DEVICE, 3, arguments)
    assert len(Forms.made) == 1 + len(OTHERS)
    assert len(Forms.launched) == 2 * (len(SAME) + len(OTHERS))


def test_numbers_and_addresses_are_those_of_the_launch(kernel: KeptKernel) -> None:
    kernel.run(DEVICE, 3, (X, None, 5, 32, 7))
    kernel.run(DEVICE, 2, (Y, None, 6, 48, 7))
    assert Forms.launched == [(3, [X.data_ptr(), None, 5, 32, 7]), (2, [Y.data_ptr(), None, 6, 48, 7])]


def test_nothing_is_launched_without_programs(kernel: KeptKernel) -> None:
    kernel.run(DEVICE, 0, (X, Y, 5, 32, 7))
    assert not Forms.made
    assert not Forms.launched


def test_options_are_part_of_a_form(kernel: KeptKernel) -> None:
    for options in ({}, {"num_warps": 8}, {"num_warps": 8, "num_stages": 2}, {"num_warps": 8}):
        kernel.run(DEVICE, 3, (X, Y, 5, 32, 7), **options)
    assert len(Forms.made) == 3


class Bias(NamedTuple):
    base: torch.Tensor


@pytest.mark.parametrize("why", ["hooks", "no GPU", "a tuple"])
def test_triton_launches_what_is_not_kept(
    why: str, kernel: KeptKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Seeing:
        def __getitem__(self, grid: tuple[int]) -> Any:
            return lambda *arguments, num_warps: seen.append((grid, arguments, num_warps))

    kernel.kernel = Seeing()
    monkeypatch.setattr(kept_kernel.raw_launch, "is_hooked", lambda: why == "hooks")
    device = torch.device("cpu") if why == "no GPU" else DEVICE
    given = Bias(X) if why == "a tuple" else 32
    kernel.run(device, 3, (X, Y, 5, given, 7), num_warps=2)
    ((grid, arguments, num_warps),) = seen
    assert (grid, arguments[2:], num_warps) == ((3,), (5, given, 7), 2)
    assert not Forms.made
