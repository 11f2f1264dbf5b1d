"""What remains of a call without the Python of the library; without a GPU, with a driver that does nothing."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from attention_bench import host_overhead
from attention_bench.cases import Case
from dilated_attention_pytorch import _torch_internals
from dilated_attention_pytorch.backends.hopper import HOPPER
from dilated_attention_pytorch.backends.problem import AttentionProblem
from dilated_attention_pytorch.backends.registry import backend_named
from dilated_attention_pytorch.eager import CachedCall, EagerAttention, forward_of
from dilated_attention_pytorch.functional import make_problem

pytest.importorskip("triton.experimental.gluon.nvidia.hopper")
from dilated_attention_pytorch.backends.hopper import launch, launcher, passes
from dilated_attention_pytorch.launching import raw_launch

CASE = Case(512, 4, 64, 128, 0.5)
DILATED = dataclasses.replace(CASE, segment_lengths=(128, 256), dilation_rates=(1, 4))
GRID, STREAM, COUNTER = 5, 77, 99


def problem_of(case: Case = CASE) -> AttentionProblem:
    """As on a GPU: with a work order."""
    layout = case.layout("cpu")
    made = make_problem(
        *case.inputs("cpu"), layout, segment_lengths=case.segment_lengths, dilation_rates=case.dilation_rates
    )
    return made.prepared_by(HOPPER, layout)


@pytest.fixture(autouse=True)
def no_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the launch asks the device for."""
    monkeypatch.setattr(_torch_internals, "current_raw_stream", lambda index: STREAM)
    monkeypatch.setattr(_torch_internals, "current_device", lambda: -1)
    for module in (launcher, launch):
        monkeypatch.setattr(module, "tile_counter", lambda index: COUNTER)
        monkeypatch.setattr(module, "multiprocessors", lambda index: 3)
    monkeypatch.setattr(launcher, "is_hooked", lambda: False)
    launcher.LAUNCHES.clear()
    yield
    launcher.LAUNCHES.clear()


class FakeLaunch:
    """A launch that notes what it describes and launches."""

    grid, function, options, numbers = GRID, 7, (False, None, b"packed"), [3, 0.5]

    def __init__(self) -> None:
        self.described: list[tuple[Tensor, ...]] = []
        self.launched: list[tuple[Any, ...]] = []

    def describe(self, described: tuple[Tensor, ...]) -> tuple[Any, ...]:
        self.described.append(described)
        return tuple(x.data_ptr() for x in described)

    def raw_launch(self, *arguments: Any) -> None:
        self.launched.append(arguments)


def kept(made: object, absent: tuple[None, ...] | None = (None, None)) -> launch.ForwardLaunch:
    """As the library keeps a launch whose kernel takes two more pointers, which a plain call has not."""
    return launch.ForwardLaunch(made, ("Table", "Starts"), absent)  # type: ignore[arg-type]


def bare_of(p: AttentionProblem, made: object) -> host_overhead.Forward:
    launcher.LAUNCHES.keep(("forward", p.signature), kept(made))
    bare = host_overhead.bare_forward(p)
    assert bare is not None
    return bare


@pytest.mark.parametrize("apart", [True, False])
def test_bare_forward_allocates_and_launches_and_prepares_once(
    apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw_launch, "ARGUMENTS_APART", apart)
    p, fake = problem_of(), FakeLaunch()
    bare = bare_of(p, fake)
    assert fake.launched == []
    results = [bare() for _ in range(3)]
    ((*inputs, out),) = fake.described
    assert [x is y for x, y in zip(inputs, (p.q, p.k, p.v, p.k, p.v), strict=True)] == [True] * 5
    assert len(fake.launched) == 3
    assert len(set(fake.launched)) == 1
    before, made = fake.launched[0][:8], fake.launched[0][8:]
    assert before == (GRID, 1, 1, STREAM, 7, *FakeLaunch.options)
    if not apart:
        (made,) = made
    lse_at = made[6]
    assert made == (
        *(x.data_ptr() for x in (*inputs, out)),
        lse_at, p.rows.indptr.data_ptr(), p.rows.indices.data_ptr(), p.prepared[0].data_ptr(), COUNTER,
        None, None, 3, 0.5,
    )  # fmt: skip
    for new_out, new_lse in results:
        assert (new_out.shape, new_out.dtype) == (p.q.shape, torch.bfloat16)
        assert (new_lse.shape, new_lse.dtype) == ((1, 4, 512), torch.float32)
        assert new_out.is_contiguous()
        assert new_lse.is_contiguous()


def test_what_the_kernel_is_given_lives_as_long_as_the_bare_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[weakref.ref[Tensor]] = []
    for name in ("empty_like", "empty_strided"):
        real = getattr(torch, name)

        def noting(*args: Any, real: Any = real, **options: Any) -> Tensor:
            x: Tensor = real(*args, **options)
            kept.append(weakref.ref(x))
            return x

        monkeypatch.setattr(torch, name, noting)
    p, fake = problem_of(), FakeLaunch()
    kept.clear()
    bare = bare_of(p, fake)
    kept += [weakref.ref(x) for x in (p.prepared[0], p.rows.indptr, p.rows.indices)]
    fake.described.clear()
    del p
    gc.collect()
    assert [each() is None for each in kept] == [False] * 5
    del bare
    gc.collect()
    assert [each() is None for each in kept] == [True] * 5


class Driver:
    """A compiled kernel whose launcher notes its arguments."""

    function, packed_metadata = 7, b"packed"
    arg_names = passes.FORWARD.kernel.arg_names

    def __init__(self) -> None:
        self.launched: list[tuple[Any, ...]] = []
        launcher, tensordesc_meta = self.launch, [None] * 6

        def around(*args: Any) -> Any:
            return launcher(*args), tensordesc_meta

        self.run = SimpleNamespace(launch=around, arg_annotations=(), kernel_signature=b"")

    def launch(self, *args: Any) -> None:
        self.launched.append(args)

    def warmup(self, **arguments: Any) -> Driver:
        return self

    def flat(self) -> list[list[Any]]:
        """The arguments of every launch in a row, tensors by address."""
        return [
            [
                x.data_ptr() if isinstance(x, Tensor) else x
                for arg in args
                for x in (arg if type(arg) is tuple else (arg,))
            ]
            for args in self.launched
        ]


@pytest.mark.parametrize("case", [CASE, DILATED], ids=["plain", "dilated"])
def test_bare_forward_launches_what_the_library_launches(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, p = Driver(), problem_of(case)
    monkeypatch.setattr(passes.ForwardPass, "kernel", driver)
    out, lse = launch.launch_forward(p)
    assert len(launcher.LAUNCHES) == 1
    bare = host_overhead.bare_forward(p)
    assert bare is not None
    bare()
    theirs, ours = driver.flat()
    differ = [place for place, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a is not b and a != b]
    assert [theirs[place] for place in differ] == [out.data_ptr(), lse.data_ptr()]


def test_node_of_autograd_is_that_of_the_library_around_one_launch() -> None:
    p, fake = problem_of(), FakeLaunch()
    call = host_overhead.with_gradients(bare_of(p, fake), *(x.requires_grad_() for x in (p.q, p.k, p.v)))
    out, lse = call()
    assert len(fake.launched) == 1
    node = out.grad_fn
    assert node is lse.grad_fn
    cpu = backend_named("cpu")
    cached = CachedCall(p, cpu, True, forward_of(p, cpu))
    of_library = EagerAttention.apply(p.q, p.k, p.v, cached)[0].grad_fn
    assert node.next_functions == of_library.next_functions
    assert [x is None for x in node.saved_tensors] == [x is None for x in of_library.saved_tensors]
    q, k, v, saved_out, saved_lse = node.saved_tensors
    assert (q is p.q, k is p.k, v is p.v) == (True, True, True)
    assert (saved_out.data_ptr(), saved_lse.data_ptr()) == (out.data_ptr(), lse.data_ptr())


def test_no_floor_without_a_launch_that_can_be_called() -> None:
    p, fake = problem_of(), FakeLaunch()
    assert host_overhead.bare_forward(p) is None  # nothing was launched
    launcher.LAUNCHES.keep(("forward", problem_of(DILATED).signature), kept(fake))
    assert host_overhead.bare_forward(p) is None  # nor by another call
    launcher.LAUNCHES.keep(("forward", p.signature), kept(fake, absent=None))
    assert host_overhead.bare_forward(p) is None  # a wide call, whose pointers are new in every call
    fake.raw_launch = None  # type: ignore[method-assign, assignment]
    launcher.LAUNCHES.keep(("forward", p.signature), kept(fake))
    assert host_overhead.bare_forward(p) is None  # a triton with another launcher


@pytest.mark.parametrize("case", [CASE, DILATED, dataclasses.replace(CASE, causal=True)], ids=str)
def test_floor_is_that_of_the_case_where_hopper_serves_it(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[AttentionProblem] = []
    monkeypatch.setattr(host_overhead, "bare_forward", lambda problem: (seen.append(problem), "bare")[1])
    layout, inputs = case.layout("cpu"), case.inputs("cpu")
    assert host_overhead.prepare(case, layout, *inputs) is None  # backend `cpu`
    assert not seen
    monkeypatch.setattr(host_overhead, "choose_backend", lambda problem: HOPPER)
    assert host_overhead.prepare(case, layout, *inputs) == "bare"
    (p,) = seen
    assert (p.q, p.k, p.v) == inputs
    assert p.is_causal == case.causal
    assert p.rates == (case.dilation_rates or (1,))
