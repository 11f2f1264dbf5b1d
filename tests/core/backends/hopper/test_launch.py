"""What the Hopper kernels are launched with, and when a launch is made anew; without a GPU, with a driver that does nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import inspect
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig, _torch_internals
from dilated_attention_pytorch.backends.hopper import HOPPER, tuning
from dilated_attention_pytorch.backends.hopper.strides import is_readable
from dilated_attention_pytorch.backends.problem import AttentionProblem, Gradients
from dilated_attention_pytorch.functional import make_problem

pytest.importorskip("triton.experimental.gluon.nvidia.hopper")
import triton
from triton.backends.nvidia.driver import CudaLauncher, wrap_handle_tensordesc

from dilated_attention_pytorch.backends.hopper import launch, launcher, passes
from dilated_attention_pytorch.launching import raw_launch

LENGTH = 512
CONFIG = SparsePatternConfig(block_size=128, sparsity_ratio=0.5)
LAYOUT = BlockLayout.from_config(CONFIG, LENGTH)


class Recorder:
    """A launch that notes what it is given."""

    made: list[Recorder]

    def __init__(self, function: Any, arguments: dict[str, Any], options: dict[str, int], grid: int) -> None:
        self.function, self.arguments, self.grid = function, arguments, grid
        self.runs: list[tuple[tuple[Tensor, ...], tuple[Any, ...]]] = []
        Recorder.made.append(self)

    def run(self, index: int, described: tuple[Tensor, ...], addresses: tuple[Any, ...]) -> None:
        """The tensors must come in the order of the arguments, and those of a layout be the same ones."""
        self.runs.append((described, addresses))
        tensors = [x[0] for x in self.arguments.values() if isinstance(x, tuple)]
        assert [(x.shape, x.stride()) for x in described] == [(x.shape, x.stride()) for x in tensors]
        names = launcher.pointers(self.arguments)
        assert len(names) == len(addresses)
        given = dict(zip(names, addresses, strict=True))
        assert {name for name, x in given.items() if x is None} == {
            name for name in names if self.arguments[name] is None
        }
        of_layout = {
            name: address
            for name, address in zip(names, addresses, strict=True)
            if name in ("Offsets", "Indices", "WorkOrder")
        }
        assert of_layout == {name: self.arguments[name].data_ptr() for name in of_layout}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Recorder]]:
    """The launches that are made; the device of CPU tensors is the current one."""
    Recorder.made = []
    monkeypatch.setattr(launch, "Launch", Recorder)
    monkeypatch.setattr(launch, "multiprocessors", lambda index: 132)
    monkeypatch.setattr(launch, "tile_counter", lambda index: 0)
    monkeypatch.setattr(_torch_internals, "current_device", lambda: -1)
    launcher.LAUNCHES.clear()
    yield Recorder.made
    launcher.LAUNCHES.clear()


def problem(**changes: Any) -> AttentionProblem:
    q, k, v = (torch.randn(1, LENGTH, 4, 64, dtype=torch.bfloat16) for _ in range(3))
    arguments = {"q": q, "k": k, "v": v, "layout": LAYOUT, **changes}
    made = make_problem(**arguments)
    return made.prepared_by(HOPPER, arguments["layout"])


def backward(p: AttentionProblem, **changes: Any) -> None:
    out, lse = torch.empty(p.q.shape, dtype=p.q.dtype), torch.empty(p.batch, p.num_heads, p.q_len)
    arguments = {"out": out, "lse": lse, "grad_out": torch.empty_like(out), "grad_lse": None, **changes}
    launch.launch_backward(p, **arguments)


# ---- when a launch is made


def test_problems_that_differ_in_values_share_a_launch(made: list[Recorder]) -> None:
    for _ in range(3):
        launch.launch_forward(problem())
    assert [len(each.runs) for each in made] == [3]
    for _ in range(3):
        backward(problem())
    assert [len(each.runs) for each in made] == [3, 3, 3]


def test_token_dilation_has_passes_of_its_own(made: list[Recorder]) -> None:
    # the 4 columns are one group, which has a tile for every residue and head
    for rates, n_tiles in (([1, 4], 4 * 4), ([8, 2], 8 * 4), ([16], 16 * 4)):
        for _ in range(2):
            backward(problem(segment_lengths=[128, 256][: len(rates)], dilation_rates=rates))
        dq, dkdv = made[-2:]
        assert (dq.function, dkdv.function) == (
            passes.DILATED_DQ.kernel,
            passes.DILATED_DKDV.kernel,
        )
        assert (dq.grid, dkdv.grid) == (4 * LENGTH // 128, n_tiles)
    assert [len(each.runs) for each in made] == [2] * 6


@pytest.mark.parametrize(
    "changes",
    [
        {"is_causal": True},
        {"softmax_scale": 0.5},
        {"q": torch.randn(1, LENGTH, 8, 64, dtype=torch.bfloat16)},
        {"k": torch.randn(1, 4, LENGTH, 64, dtype=torch.bfloat16).transpose(1, 2)},
        {name: torch.randn(1, LENGTH, 4, 64, dtype=torch.float16) for name in "qkv"},
        {"layout": BlockLayout.from_config(SparsePatternConfig(block_size=128, sparsity_ratio=1.0), LENGTH)},
        {name: torch.randn(2, LENGTH, 4, 64, dtype=torch.bfloat16) for name in "qkv"},
        {name: torch.randn(1, LENGTH, 2, 64, dtype=torch.bfloat16) for name in "kv"},
        {
            "q": torch.randn(1, 256, 4, 64, dtype=torch.bfloat16),
            "layout": BlockLayout.from_config(CONFIG, 256, LENGTH, causal=True),
            "is_causal": True,
        },
        {
            "q": torch.randn(1, LENGTH, 4, 64, dtype=torch.bfloat16)[:, :256],
            "layout": BlockLayout.from_config(CONFIG, 256, LENGTH),
        },
    ],
    ids=["causal", "scale", "heads", "strides", "type", "entries", "batch", "kv_heads", "offset", "slice"],
)
def test_all_that_a_launch_depends_on_makes_another(changes: dict[str, Any], made: list[Recorder]) -> None:
    for p in (problem(), problem(**changes), problem(), problem(**changes)):
        launch.launch_forward(p)
        backward(p)
    assert [len(each.runs) for each in made] == [2] * 6


def test_gradients_of_outputs_make_another_launch_where_they_lie_otherwise(made: list[Recorder]) -> None:
    p = problem()
    turned = torch.empty(1, 4, LENGTH, 64, dtype=torch.bfloat16).transpose(1, 2)
    for changes in ({}, {"grad_out": turned}, {"grad_lse": torch.zeros(1, 4, LENGTH)}):
        for _ in range(2):
            backward(p, **changes)
    assert [len(each.runs) for each in made] == [2] * 6
    assert [each.arguments["has_grad_lse"] for each in made] == [0, 0, 0, 0, 1, 1]


def test_another_backward_is_one_more_entry(made: list[Recorder], monkeypatch: pytest.MonkeyPatch) -> None:
    one = passes.Backward(
        "dq alone", lambda p: None if p.is_causal else "not causal", (passes.DQ,), lambda _: 1
    )
    monkeypatch.setattr(passes, "BACKWARDS", [one, *passes.BACKWARDS])
    causal = BlockLayout.from_config(CONFIG, LENGTH, causal=True)
    for p, n_passes in ((problem(), 2), (problem(layout=causal, is_causal=True), 1)):
        before = len(made)
        backward(p)
        assert len(made) - before == n_passes


def test_problem_that_no_backward_serves_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "BACKWARDS", passes.BACKWARDS[1:])
    with pytest.raises(NotImplementedError, match="two passes with token dilation: tokens are not dilated"):
        passes.backward_of(problem())


@pytest.mark.parametrize("block_size", [64, 128])
def test_arguments_come_in_the_order_of_the_parameters(block_size: int) -> None:
    layout_ = BlockLayout.from_config(SparsePatternConfig(block_size=block_size, sparsity_ratio=0.5), LENGTH)
    p = problem(layout=layout_)
    out, lse = torch.empty_like(p.q), torch.empty(1, 4, LENGTH)
    call = passes.BackwardCall(p, out, lse, out, lse, False, Gradients(p.q, p.k, p.v, None), None)
    made = [(passes.FORWARD.kernel, passes.FORWARD.arguments(p, out, lse))]
    made += [(each.kernel, each.arguments(call, lse)) for each in passes.backward_of(p).passes]
    if block_size == 128:
        p = problem(layout=layout_, segment_lengths=[128, 256], dilation_rates=[1, 4])
        call = call._replace(problem=p)
        made += [(each.kernel, each.arguments(call, lse)) for each in passes.backward_of(p).passes]
    assert len(made) == (5 if block_size == 128 else 3)
    for function, arguments in made:
        assert list(arguments) == list(inspect.signature(function.fn).parameters)


def test_cleared_launches_are_made_with_the_tiles_of_now(
    made: list[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "multiprocessors", lambda index: 3)
    p = problem()
    launch.launch_forward(p)
    monkeypatch.setitem(tuning.FORWARD, (64, 128), tuning.ForwardTiles(2, 3, 1, "intra_warpgroup", 128))
    launcher.LAUNCHES.clear()
    launch.launch_forward(p.without_inputs().with_inputs(p.q, p.k, p.v, None))
    assert [each.arguments["V_STAGES"] for each in made] == [5, 3]
    assert [each.grid for each in made] == [6, 3]


# ---- calls beyond a plain one

IDS = LAYOUT.num_block_ids
HALF = torch.tensor([LENGTH // 2], dtype=torch.int32)
MASKED = BlockLayout.from_mask(torch.rand(LENGTH, LENGTH) < 0.5, 128)
# What a call asks for, and the pointers that each of its passes is given for it besides those of positions.
WIDE: dict[str, tuple[dict[str, Any], set[str], set[str]]] = {
    "kv_lengths": ({"kv_lengths": HALF}, {"Table", "Starts"}, set()),
    "kv_starts": ({"kv_starts": HALF}, {"Table", "Starts"}, set()),
    "padding": ({"key_padding_mask": torch.rand(1, LENGTH) < 0.5}, {"Padding"}, set()),
    "softcap": ({"softcap": 2.0}, set(), set()),
    "alibi": ({"alibi_slopes": torch.ones(4)}, {"Slopes"}, set()),
    "sinks": ({"sinks": torch.ones(4)}, {"Sinks"}, set()),
    "dropout": ({"dropout_p": 0.1}, {"Seed"}, set()),
    "bias": ({"block_bias": torch.ones(4, IDS)}, {"Bias", "BlockIds"}, {"Slots"}),
    "masks": ({"layout": MASKED}, {"MaskIds", "MaskTable"}, set()),
    "batch": ({"layout": BlockLayout.from_dense(torch.rand(1, 1, 4, 4) < 0.5, 128)}, set(), set()),
}
WIDE["offset"] = (
    {"q": torch.randn(1, 100, 4, 64, dtype=torch.bfloat16), "q_offset": 40, "is_causal": True,
     "layout": BlockLayout.from_config(CONFIG, LENGTH, causal=True)},
    set(), set(),
)  # fmt: skip
WITH_ROWS = ("kv_lengths", "kv_starts", "offset")


def given(launched: Recorder) -> set[str]:
    """The pointers behind the tile counter that a launch is given."""
    names = launcher.pointers(launched.arguments)
    pointers = names[names.index("Counter") + 1 :]
    _, addresses = launched.runs[-1]
    return {name for name, x in zip(names, addresses, strict=True) if name in pointers and x is not None}


def test_plain_calls_are_given_nothing_more(made: list[Recorder]) -> None:
    launch.launch_forward(problem())
    backward(problem())
    assert [given(each) for each in made] == [set(), set(), set()]
    assert not any(each.arguments["SEQUENCES"] for each in made)


@pytest.mark.interpreter
@pytest.mark.parametrize("name", WIDE)
def test_passes_are_given_what_a_call_has(name: str, made: list[Recorder]) -> None:
    changes, pointers, of_dq = WIDE[name]
    for _ in range(2):
        p = problem(**changes)
        out, lse = launch.launch_forward(p)
        backward(p, out=out, lse=lse)
    forward, dq, dkdv = made  # the second call launches what the first has made
    rows = name in WITH_ROWS
    taken = [set(each.function.arg_names) for each in made]
    in_forward = rows or name == "alibi"  # which takes the nearest blocks first
    expected = [
        pointers | ({"OutRows"} if in_forward else set()),
        pointers | of_dq | ({"GradQk"} if rows else set()),
        pointers | ({"GradQk", "GradV"} if rows else set()),
    ]
    assert [given(each) for each in (forward, dq, dkdv)] == [
        x & y for x, y in zip(expected, taken, strict=True)
    ]
    assert [each.arguments["SEQUENCES"] for each in made] == [in_forward, rows, rows]


def test_bias_of_float32_is_not_copied() -> None:
    bias = torch.ones(1, 4, IDS, requires_grad=True)
    assert launch.call_tensors(problem(block_bias=bias))["Bias"].data_ptr() == bias.data_ptr()
    assert launch.call_tensors(problem(block_bias=bias.bfloat16()))["Bias"].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bias_is_read_with_the_strides_that_it_has_as_float32(
    dtype: torch.dtype, made: list[Recorder]
) -> None:
    """A copy of an expanded one is not expanded."""
    launch.launch_forward(problem(block_bias=torch.ones(1, 1, IDS).expand(1, 4, IDS)))
    expanded = torch.ones(1, 1, IDS, dtype=dtype).expand(1, 4, IDS)
    launch.launch_forward(problem(block_bias=expanded))
    read = expanded.to(torch.float32)
    assert made[-1].arguments["stride_bh"] == read.stride(1)
    assert len(made) == (1 if dtype == torch.float32 else 2)


def test_layouts_of_batch_elements_need_positions(made: list[Recorder]) -> None:
    tensors = {name: torch.randn(2, LENGTH, 4, 64, dtype=torch.bfloat16) for name in "qkv"}
    layout_ = BlockLayout.from_dense(torch.rand(2, 1, 4, 4) < 0.5, 128)
    launch.launch_forward(problem(layout=layout_, **tensors))
    (forward,) = made
    assert (forward.arguments["SEQUENCES"], forward.arguments["list_heads"]) == (True, 1)
    assert forward.arguments["n_sequences"] == 2


@pytest.mark.interpreter
def test_tokens_of_no_sequence_and_calls_without_keys_give_zeros(made: list[Recorder]) -> None:
    """What the launches, which do nothing here, must not have to write."""
    starts = torch.tensor([100], dtype=torch.int32)
    p = problem(kv_starts=starts, q_offset=torch.zeros(1, dtype=torch.int32))
    out, lse = torch.full_like(p.q, torch.nan), torch.full((1, 4, LENGTH), torch.nan)
    grads = launch.launch_backward(p, out, lse, torch.zeros_like(out), None)
    assert (grads.k[:, :100] == 0).all()
    assert (grads.v[:, :100] == 0).all()
    empty = torch.randn(1, 0, 4, 64, dtype=torch.bfloat16)
    p = problem(k=empty, v=empty, sinks=torch.ones(4), block_bias=torch.ones(IDS))
    out, lse = launch.launch_forward(p)
    assert (out == 0).all()
    assert (lse == -torch.inf).all()
    grads = launch.launch_backward(p, out, lse, out, None)
    assert (grads.q == 0).all()
    for x in (grads.block_bias, grads.sinks):
        assert x is not None
        assert (x == 0).all()


def test_blocks_of_256_are_launched_as_blocks_of_128(made: list[Recorder]) -> None:
    config = SparsePatternConfig(block_size=256, sparsity_ratio=0.5)
    layout_ = BlockLayout.from_config(config, LENGTH)
    for _ in range(2):
        p = problem(layout=layout_)
        launch.launch_forward(p)
        backward(p)
    assert [(each.arguments["BLOCK_SIZE"], each.arguments["SEQUENCES"]) for each in made] == [
        (128, False)
    ] * 3
    assert [each.grid for each in made] == [4 * LENGTH // 128] * 3
    bound = launch.bind_forward(p)
    assert bound is not None
    bound(p.q, p.k, p.v)
    assert made[0].runs[-1][1][1:] == made[0].runs[0][1][1:]


# ---- bound to a problem, for a plan


def test_bound_forward_launches_as_a_call_does(made: list[Recorder]) -> None:
    p = problem()
    assert launch.bind_forward(p) is None  # nothing was launched yet
    launch.launch_forward(p)
    bound = launch.bind_forward(p)
    assert bound is not None
    others = [torch.randn_like(x) for x in (p.q, p.k, p.v)]
    out, lse = bound(*others)
    (launched,) = made
    described, addresses = launched.runs[-1]
    assert [x is y for x, y in zip(described, (*others, *others[1:], out), strict=True)] == [True] * 6
    assert addresses == (lse.data_ptr(), *launched.runs[0][1][1:])
    assert (out.shape, out.dtype, lse.shape, lse.dtype) == (
        p.q.shape,
        p.q.dtype,
        (1, 4, LENGTH),
        torch.float32,
    )


def test_bound_forward_copies_what_is_misaligned(made: list[Recorder]) -> None:
    p = problem()
    launch.launch_forward(p)
    bound = launch.bind_forward(p)
    assert bound is not None
    misaligned = torch.randn(1 + p.q.numel(), dtype=torch.bfloat16)[1:].view_as(p.q)
    bound(misaligned, p.k, p.v)
    (launched,) = made
    (copied, *_), _ = launched.runs[-1]
    assert copied.data_ptr() % 16 == 0
    assert torch.equal(copied, misaligned)


def test_bound_forward_goes_to_the_device_of_its_tensors(
    made: list[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    p = problem()
    launch.launch_forward(p)
    bound = launch.bind_forward(p)
    assert bound is not None
    entered = []

    @contextlib.contextmanager
    def device(index: int) -> Iterator[None]:
        entered.append(index)
        monkeypatch.setattr(_torch_internals, "current_device", lambda: index)
        yield

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(_torch_internals, "current_device", lambda: 3)
    bound(p.q, p.k, p.v)
    assert entered == [-1]
    assert len(made[0].runs) == 2


def test_bound_forward_keeps_what_its_launches_read(made: list[Recorder]) -> None:
    its_layout = BlockLayout.from_config(CONFIG, LENGTH)  # which keeps its work order as long as it lives
    p = problem(layout=its_layout)
    launch.launch_forward(p)
    bound = launch.bind_forward(p)
    work_order, inputs = weakref.ref(p.prepared[0]), weakref.ref(p.q)
    made[0].arguments, made[0].runs = {}, []  # a real launch has no tensors
    made.clear()
    launcher.LAUNCHES.clear()
    del p, its_layout
    gc.collect()
    assert work_order() is not None
    assert inputs() is None
    del bound
    gc.collect()
    assert work_order() is None


# ---- what it is given


def test_misaligned_tensors_are_copied_and_described_as_copies(made: list[Recorder]) -> None:
    p = problem()
    fused = torch.randn(1, LENGTH, 4, 192, dtype=torch.bfloat16)
    aligned = fused[..., :64]
    launch.launch_forward(dataclasses.replace(p, q=aligned))
    misaligned = torch.randn(1 + fused.numel(), dtype=torch.bfloat16)[1:].view_as(fused)[..., :64]
    assert misaligned.stride() == aligned.stride()
    both = dataclasses.replace(p, q=aligned).without_inputs()  # its signature is that of the strides
    for q in (aligned, misaligned):
        launch.launch_forward(both.with_inputs(q, p.k, p.v, None))
        backward(both.with_inputs(q, p.k, p.v, None))
    for each in made:
        for described, _ in each.runs:
            assert all(x.data_ptr() % 16 == 0 for x in described)
    dq = [each for each in made if each.arguments.get("DKDV") is False][-1]
    assert torch.equal(dq.runs[-1][0][0], misaligned)


def misaligned(x: Tensor) -> Tensor:
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


UNREADABLE: dict[str, Callable[[Tensor], Tensor]] = {
    "expanded_heads": lambda x: x[:, :, :1].expand_as(x),
    "expanded_tokens": lambda x: x[:, :1].expand_as(x),
    "odd_rows": lambda x: torch.cat([x, x[..., :3]], 3)[..., :64],
    "odd_rows_and_offset": lambda x: torch.cat([x[..., :3], x], 3)[..., 3:],
    "heads_first_misaligned": lambda x: misaligned(x.transpose(1, 2)).transpose(1, 2),
    "head_dim_apart": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
}


@pytest.mark.parametrize("block_size", [128, 256])
@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_cannot_be_read_is_copied_forward_and_backward(
    kind: str, block_size: int, made: list[Recorder]
) -> None:
    layout_ = BlockLayout.from_config(SparsePatternConfig(block_size=block_size, sparsity_ratio=0.5), LENGTH)
    q, k, v = (UNREADABLE[kind](torch.randn(1, LENGTH, 4, 64, dtype=torch.bfloat16)) for _ in range(3))
    p = problem(q=q, k=k, v=v, layout=layout_)
    for _ in range(2):
        launch.launch_forward(p)
        backward(p)
    assert [len(each.runs) for each in made] == [2, 2, 2]
    for each in made:
        for described, _ in each.runs:
            assert all(is_readable(x) for x in described)
    copies, _ = made[0].runs[-1]
    assert [torch.equal(x, y) for x, y in zip(copies[:3], (q, k, v), strict=True)] == [True] * 3
    assert launch.bind_forward(p) is None  # a call that copies is not bound: it copies every time


def test_an_output_is_filled_although_inputs_are_copied(made: list[Recorder]) -> None:
    p = problem(k=torch.randn(1, LENGTH, 1, 64, dtype=torch.bfloat16).expand(1, LENGTH, 4, 64))
    into = torch.empty(1, 4, LENGTH, 64, dtype=torch.bfloat16).transpose(1, 2)
    out, _ = launch.launch_forward(p, into)
    assert out is into
    assert made[0].runs[0][0][5] is into


def test_what_can_be_read_is_not_looked_at_again(
    made: list[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    p = problem()
    launch.launch_forward(p)
    monkeypatch.setattr(launch, "is_readable", None)  # not called: the launch was found
    launch.launch_forward(p)
    assert len(made[0].runs) == 2


def test_backward_describes_what_hooks_gave_back(made: list[Recorder]) -> None:
    p = problem()
    template = p.without_inputs()
    turned = p.k.transpose(1, 2).contiguous().transpose(1, 2)
    unreadable = p.k.transpose(0, -1).contiguous().transpose(0, -1)  # head_dim apart: a copy is read
    for k in (p.k, turned, unreadable):
        backward(template.with_inputs(p.q, k, p.v, None))
    kernels = [each for each in made if each.arguments.get("DKDV")]
    assert [len(each.runs) for each in kernels] == [2, 1]
    assert [each.arguments["desc_kept_qk"][0].stride() for each in kernels] == [p.k.stride(), turned.stride()]


def test_gradients_of_a_sum_are_copied(made: list[Recorder]) -> None:
    backward(problem(), grad_out=torch.ones((), dtype=torch.bfloat16).expand(1, LENGTH, 4, 64))
    described, _ = made[-1].runs[0]
    assert all(x.is_contiguous() for x in described)


# ---- descriptors


class Driver:
    """A compiled kernel with Triton's own launcher, around a function that notes what the one in C would be given."""

    function, packed_metadata = 7, (4, 1, 0)

    def __init__(self, signature: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.launched: list[list[Any]] = []
        n_descriptors = sum(kind.startswith("tensordesc") for kind in signature.values())
        self.run: Any = CudaLauncher.__new__(CudaLauncher)
        # without metadata a descriptor becomes its tensor, sizes and strides: nothing is encoded
        self.run.launch = wrap_handle_tensordesc(self.launch, signature, [None] * n_descriptors)
        for name in ("global_scratch_size", "profile_scratch_size"):
            setattr(self.run, name, 0)
        for name in ("launch_cooperative_grid", "launch_pdl", "gsan_enabled"):
            setattr(self.run, name, False)
        self.run.global_scratch_align = self.run.profile_scratch_align = self.run.num_ctas = 1
        self.run.arg_annotations, self.run.kernel_signature = ["annotation"], b"signature"
        monkeypatch.setattr(type(triton.runtime.driver), "active", None)  # asked for, but for nothing
        monkeypatch.setattr(triton.knobs.runtime, "launch_enter_hook", None)
        monkeypatch.setattr(triton.knobs.runtime, "launch_exit_hook", None)

    def launch(self, *args: Any) -> None:
        self.launched.append([x for arg in args for x in (arg if isinstance(arg, (list, tuple)) else (arg,))])

    def warmup(self, **arguments: Any) -> Driver:
        return self

    def launch_metadata(self, *args: Any) -> None:
        return None


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    monkeypatch.setattr(_torch_internals, "current_raw_stream", lambda index: 9)
    box = "tensordesc<bf16[1, 1, 64, 64],NVMMA>"
    return Driver(
        {"desc_k": box, "desc_k_far": box, "desc_out": box, "Lse": "*fp32", "n": "i32"}, monkeypatch
    )


def test_thin_launch_passes_what_tritons_own_launcher_passes(driver: Driver) -> None:
    k, v, out, lse = (torch.zeros(1, 128, 2, 64, dtype=torch.bfloat16) for _ in range(4))
    arguments = {"desc_k": (k, 64, 0), "desc_k_far": (k, 64, 2), "desc_out": (out, 64, 0), "Lse": lse, "n": 3}
    made = launcher.Launch(driver, arguments, {}, 5)
    assert made.raw_launch == driver.launch
    made.run(0, (v, k, out), (11,))
    made.run_by_triton(9, (v, k, out), (11,))
    thin, full = driver.launched
    assert len(thin) == len(full)
    assert [place for place, (x, y) in enumerate(zip(thin, full, strict=True)) if x is not y and x != y] == []
    assert thin[:5] == [5, 1, 1, 9, 7]
    assert [x.data_ptr() for x in thin if isinstance(x, Tensor)] == [x.data_ptr() for x in (v, k, out)]


def test_launcher_that_is_not_as_expected_is_left_to_triton(driver: Driver) -> None:
    assert raw_launch.unwrapped(driver.run, 3) == (driver.launch, [None] * 3)
    assert raw_launch.unwrapped(driver.run, 2) == (None, [])
    assert raw_launch.unwrapped(SimpleNamespace(launch=lambda *args: None), 3) == (None, [])
    driver.run.gsan_enabled = True
    assert raw_launch.unwrapped(driver.run, 3) == (None, [])


def test_descriptors_are_kept_by_address(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    described = []
    real = launcher.Launch.expanded
    monkeypatch.setattr(
        launcher.Launch, "expanded", lambda self, place, x: (described.append(place), real(self, place, x))[1]
    )
    k, v, out, other = (torch.zeros(1, 128, 1, 64, dtype=torch.bfloat16) for _ in range(4))
    arguments = {"desc_k": (k, 128, 1), "desc_k_far": (k, 128, 1), "desc_out": (out, 64, 0), "Lse": k, "n": 3}
    made = launcher.Launch(driver, arguments, {}, 5)
    for tensors in ((k, k, out), (v, v, out), (v, v, other), (k, k, other)):
        for _ in range(2):
            made.run(0, tensors, (11,))
            made_of = [x for x in driver.launched[-1] if isinstance(x, Tensor)]
            assert [x.data_ptr() for x in made_of] == [x.data_ptr() for x in tensors]
            assert driver.launched[-1][-2:] == [11, 3]
    assert described == [0, 2, 0, 2]  # far keys are the near ones
    for _ in range(2 * launcher.N_ADDRESSES):
        made.run(0, (torch.zeros_like(k), k, out), (11,))
    assert len(made.described) <= launcher.N_ADDRESSES
