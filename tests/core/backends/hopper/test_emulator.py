"""The emulator of the Hopper kernels notices what a GPU would not forgive, and computes as Triton does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton.experimental.gluon")

from tests.core.backends.hopper import emulator
from tests.core.backends.hopper.emulator import barriers, language, products, programs, shared, tma
from tests.core.backends.hopper.emulator.dtypes import of_bits16, to_bfloat16
from tests.core.backends.hopper.emulator.tensors import Diverged, tensor
from tests.core.backends.hopper.test_emulated_kernels import over_the_limit, problem_of

gl = SimpleNamespace(**language.functions())
TILE = gl.NVMMASharedLayout(128, 16, rank=2)
RESULT = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])


def run(kernel: Any, *tensors: Any, grid: int = 1, **options: Any) -> None:
    """Run a function of pointers and numbers as a kernel."""
    names = list(kernel.__code__.co_varnames[: kernel.__code__.co_argcount])
    boxes = emulator.emulated().launcher.box_layout
    programs.launch(language.jit(kernel), dict(zip(names, tensors, strict=True)), grid, boxes, **options)


# ---- faults planted in the kernels


def test_a_stage_that_is_never_released_is_a_deadlock(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = emulator.emulated().kernels.pipeline.Ring
    monkeypatch.setattr(ring, "consumer_release", lambda self, place: None)
    with pytest.raises(emulator.Deadlock, match=r"(?s)producer.* waits for parity . of k_empty"):
        emulator.forward(problem_of(64, 128, False, q_len=512, density=1.0))


def test_a_mask_that_is_left_out_gives_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(64, 64, True)
    assert over_the_limit(emulator.errors(problem, gradients=False)) == {}
    monkeypatch.setattr(emulator.emulated().kernels.attend, "apply_mask", lambda s, *_: s)
    assert set(over_the_limit(emulator.errors(problem, gradients=False))) == {"out", "lse"}


def test_an_access_behind_the_end_names_tensor_and_element() -> None:
    problem = problem_of(64, 128, False, density=1.0)
    one = emulator.emulated().passes.FORWARD
    arguments = one.arguments(problem, torch.empty_like(problem.q), torch.empty(1, 2, 200))
    arguments["Indices"] = arguments["Indices"][:-1]
    with pytest.raises(emulator.EmulatorError, match=r"load of Indices at element 3, outside of its 3"):
        emulator.run(one.kernel, arguments, 1)


def test_a_stage_released_during_its_product(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = emulator.emulated().kernels.attend

    def attend_tile(
        q_tile: Any, position: Any, rings: Any, keys: Any, places: Any, last: Any, t: Any, *_: Any
    ) -> Any:
        place = places.of_tile(t)
        s = attend.scores(q_tile.main, rings.k.consumer_wait(place), 64, RESULT)
        rings.k.consumer_release(place)
        for _ in range(200):
            gl.barrier()
        attend.warpgroup_mma_wait(0, deps=[s])
        rings.v.skip(place)
        return _[0], place

    monkeypatch.setattr(attend, "attend_tile", attend_tile)
    with pytest.raises(emulator.EmulatorError, match="changes during a product that reads it"):
        emulator.forward(problem_of(64, 128, False, q_len=1024, density=1.0, heads=1), preempt=0.5)


# ---- what a kernel must not do


def half_tile() -> Any:
    return gl.full([64, 64], 1.0, gl.bfloat16, layout=RESULT)


def test_a_product_is_read_before_its_wait() -> None:
    def kernel() -> None:
        memory = gl.allocate_shared_memory(gl.bfloat16, [64, 64], TILE)
        s = products.warpgroup_mma(
            memory, memory, gl.zeros([64, 64], gl.float32, layout=RESULT), is_async=True
        )
        s + 1.0

    with pytest.raises(emulator.EmulatorError, match="warpgroup_mma_wait comes first"):
        run(kernel)


def test_a_product_reads_its_own_stores_without_a_fence() -> None:
    def kernel(fenced: Any) -> None:
        memory = gl.allocate_shared_memory(gl.bfloat16, [64, 64], TILE)
        memory.store(half_tile())
        if fenced:
            shared.fence_async_shared()
        zero = gl.zeros([64, 64], gl.float32, layout=RESULT)
        s = products.warpgroup_mma_wait(0, deps=[products.warpgroup_mma(memory, memory, zero, is_async=True)])
        gl.device_assert(s == 64.0)

    run(kernel, True)
    with pytest.raises(emulator.EmulatorError, match="without fence_async_shared"):
        run(kernel, False)


def test_memory_changes_while_it_is_stored() -> None:
    out = torch.zeros(1, 64, 1, 64, dtype=torch.bfloat16)

    def kernel(desc: Any, waits: Any) -> None:
        memory = gl.allocate_shared_memory(gl.bfloat16, [64, 64], TILE)
        memory.store(half_tile())
        shared.fence_async_shared()
        tma.async_store(desc, [0, 0, 32, 0], memory.reinterpret(gl.bfloat16, [1, 1, 64, 64], desc.layout))
        if waits:
            tma.store_wait(0)
        memory.store(half_tile() + 1.0)
        tma.store_wait(0)

    run(kernel, (out, 64, 0), True)
    assert out[0, 32:].eq(1).all()  # what lies behind the end is not stored
    assert out[0, :32].eq(0).all()
    with pytest.raises(emulator.EmulatorError, match="changes while it is stored to desc"):
        run(kernel, (out, 64, 0), False, delay=1.0)


def test_boxes_are_zero_outside_of_the_tensor_and_arrive_late() -> None:
    x = torch.arange(50 * 128, dtype=torch.float32).remainder(7).bfloat16().view(1, 50, 1, 128)
    out = torch.full((3, 64, 64), 9.0)

    def kernel(desc: Any, Out: Any) -> None:
        memory = gl.allocate_shared_memory(gl.bfloat16, [64, 128], TILE)
        boxes = memory.reinterpret(gl.bfloat16, [2, 1, 1, 64, 64], desc.layout)
        bar = gl.allocate_shared_memory(gl.int64, [1], barriers.MBarrierLayout())
        barriers.init(bar, count=1)
        barriers.expect(bar, 2 * 64 * 64 * 2)
        for i in range(2):
            tma.async_load(desc, [0, 0, -5, 64 * i], bar, boxes.index(i))
        early = memory.slice(64, 64, dim=1).load(RESULT)
        barriers.wait(bar, 0)
        place = Out + gl.arange(0, 64)[:, None] * 64 + gl.arange(0, 64)[None, :]
        for i in range(2):
            gl.store(place + 4096 * i, memory.slice(64 * i, 64, dim=1).load(RESULT))
        gl.store(place + 8192, early)

    run(kernel, (x, 64, 0), out, delay=1.0)
    wanted = torch.zeros(64, 128)
    wanted[5:55] = x[0, :, 0].float()
    assert torch.equal(torch.cat([out[0], out[1]], 1), wanted)
    assert out[2].isnan().all()


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("is_second", [True, False])
def test_partitions_that_do_not_wait_for_each_other(is_second: bool, waits: bool) -> None:
    """Whoever runs first: the first writes, the second reads, and the first writes once more."""

    def first(numbers: Any, bars: Any) -> None:
        numbers.store(gl.full([1], 1, gl.int32))
        barriers.arrive(bars.index(0), count=1)
        if waits or is_second:
            barriers.wait(bars.index(1), 0)
        numbers.store(gl.full([1], 2, gl.int32))

    def second(numbers: Any, bars: Any) -> None:
        if waits or not is_second:
            barriers.wait(bars.index(0), 0)
        numbers.load()
        barriers.arrive(bars.index(1), count=1)

    def kernel() -> None:
        numbers = gl.allocate_shared_memory(gl.int32, [1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
        bars = gl.allocate_shared_memory(gl.int64, [2, 1], barriers.MBarrierLayout())
        for i in range(2):
            barriers.init(bars.index(i), count=1)
        gl.warp_specialize([(first, (numbers, bars)), (second, (numbers, bars))], [1], [24])

    for seed in range(8):
        if waits:
            run(kernel, seed=seed)
        else:
            with pytest.raises(emulator.EmulatorError, match="numbers without waiting for"):
                run(kernel, seed=seed)


def test_too_many_arrivals() -> None:
    def kernel() -> None:
        bars = gl.allocate_shared_memory(gl.int64, [2, 1], barriers.MBarrierLayout())
        barriers.init(bars.index(1), count=2)
        barriers.arrive(bars.index(1), count=3)

    with pytest.raises(emulator.EmulatorError, match=r"bars\[1\].* gets 3 more arrivals"):
        run(kernel)


@pytest.mark.parametrize("mask", [True, False])
def test_only_active_lanes_are_checked(mask: bool) -> None:
    x, out = torch.arange(5.0), torch.zeros(8)

    def kernel(X: Any, Out: Any, n: Any, masked: Any) -> None:
        lanes = gl.arange(0, 8)
        x = gl.load(X + lanes, mask=lanes < n if masked else None, other=7.0)
        gl.store(Out + lanes, x)

    if mask:
        run(kernel, x, out, 5, True)
        assert out.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 7.0, 7.0, 7.0]
    else:
        with pytest.raises(
            emulator.EmulatorError, match=r"X at element 5, outside of its 5 \(3 of 8 lanes\)"
        ):
            run(kernel, x, out, 5, False)


def test_gaps_between_the_elements_of_a_view_are_outside() -> None:
    view = torch.zeros(4, 8)[:, :4]

    def kernel(X: Any, n: Any) -> None:
        gl.load(X + n)

    run(kernel, view, 8)
    with pytest.raises(emulator.EmulatorError, match="X at element 4"):
        run(kernel, view, 4)


# ---- numbers


def test_whole_numbers_divide_and_wrap_as_in_c() -> None:
    found = torch.zeros(4, dtype=torch.int32)

    def kernel(Out: Any, x: Any) -> None:
        gl.store(Out, x // 128)
        gl.store(Out + 1, x % 128)
        gl.store(Out + 2, (x - 2**31 + 200) - 2**30 - 2**30)
        for i in emulator.emulated().kernels.forward.range(-3, -2):
            gl.store(Out + 3, i // 2)

    run(kernel, found, -200)
    assert found.tolist() == [-1, -72, 0, -1]


def test_rounding_to_bfloat16_is_that_of_torch() -> None:
    bits = torch.randint(-(2**31), 2**31, (20_000,), dtype=torch.int64).int()
    x = torch.cat(
        [bits.view(torch.float32), torch.tensor([float("inf"), -float("inf"), 0.0, -0.0, 1.00390625])]
    )
    found = torch.from_numpy(to_bfloat16(x.numpy()))
    assert torch.equal(found.nan_to_num(3.5), x.bfloat16().float().nan_to_num(3.5))


def test_assembly_packs_and_votes() -> None:
    x = torch.randn(64, 64)
    packed, large = torch.zeros(64, 64, dtype=torch.int32), torch.zeros(64, 64, dtype=torch.int32)
    x[20, 33] = 300.0
    code = emulator.emulated().kernels.softmax.LARGE

    def kernel(X: Any, Packed: Any, Large: Any) -> None:
        places = gl.arange(0, 64)[:, None] * 64 + gl.arange(0, 64)[None, :]
        x = gl.convert_layout(gl.load(X + places), RESULT)
        asm = gl.inline_asm_elementwise
        both = asm(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", [x, x + 1.0], dtype=gl.int32, is_pure=True, pack=1
        )
        gl.store(Packed + places, both)
        gl.store(Large + places, asm(code, "=r,f,f", [x, x], dtype=gl.int32, is_pure=True, pack=1))

    run(kernel, x, packed, large)
    low, high = (
        torch.from_numpy(of_bits16(half.numpy(), gl.bfloat16))
        for half in (packed & 0xFFFF, packed >> 16 & 0xFFFF)
    )
    assert torch.equal(low, x.bfloat16().float())
    assert torch.equal(high, (x + 1.0).bfloat16().float())
    # of the warp that holds row 20, registers at the same place of their threads: rows 16 to 31, 8 apart, and every fourth pair
    rows, columns = large.nonzero(as_tuple=True)
    assert set(rows.tolist()) == set(range(16, 24))
    assert set(columns.tolist()) == {33, 35, 37, 39}


def test_branches_are_taken_by_warp() -> None:
    lanes = torch.zeros(4, 32).numpy()
    lanes[1] = 1.0
    by_warp = tensor(lanes > 0, gl.int1)
    by_warp.by_thread = True
    with pytest.raises(Diverged):
        bool(by_warp)
    lanes[1, 3] = 0.0
    within = tensor(lanes > 0, gl.int1)
    within.by_thread = True
    with pytest.raises(emulator.EmulatorError, match="threads of a warp"):
        bool(within)
