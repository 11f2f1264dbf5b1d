"""BlockLayout.from_indices: its lists beside plain Python loops, and what a layout says whose lists have room for more."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dilated_attention_pytorch import BlockLayout, block_scores, block_sparse_attention, select_blocks
from dilated_attention_pytorch.config import TokenDilation
from dilated_attention_pytorch.grid import BlockGrid
from dilated_attention_pytorch.layout import from_indices
from dilated_attention_pytorch.layout.block_indices import checked_indices
from dilated_attention_pytorch.layout.from_indices import lists_of_indices
from dilated_attention_pytorch.layout.lists import BlockLists
from dilated_attention_pytorch.layout.pair_counts import pairs_in_blocks
from tests.core.layout.index_cases import BLOCK, CASES, IndexCase, listed, slow_rows, transposed

WITH_SLOTS = [name for name in CASES if name != "no_slots"]


def layout_of(case: IndexCase, seed: int = 0, device: str = "cpu") -> BlockLayout:
    indices, counts = (None if x is None else x.to(device) for x in case.arguments(seed))
    assert indices is not None
    return BlockLayout.from_indices(
        indices, counts, q_len=case.q_len, kv_len=case.kv_len, block_size=BLOCK, causal=case.causal
    )


def same_layout(case: IndexCase) -> BlockLayout:
    """The layout of a case, made by `from_dense`: its lists fill their tensors."""
    indices, counts = case.arguments()
    grid = case.grid
    mask = torch.zeros(case.batch * case.heads * grid.n_rows, grid.n_cols, dtype=torch.bool)
    for i, row in enumerate(slow_rows(indices, counts, grid)):
        mask[i, [col for col, _ in row]] = True
    mask = mask.view(case.batch, case.heads, grid.n_rows, grid.n_cols)
    return BlockLayout.from_dense(mask, BLOCK, case.q_len, case.kv_len, case.causal)


def all_tensors(*lists: BlockLists) -> list[Tensor]:
    return [tensor for each in lists for tensor in each.tensors()]


@pytest.mark.parametrize("name", CASES)
def test_lists_are_those_of_plain_loops(name: str) -> None:
    case = CASES[name]
    layout = layout_of(case)
    rows = slow_rows(*case.arguments(), case.grid)
    assert (layout.batch, layout.num_heads) == (case.batch, case.heads)
    assert listed(layout.row_lists) == rows
    assert listed(layout.col_lists) == transposed(rows, case.grid)
    assert {tensor.dtype for tensor in all_tensors(layout.row_lists, layout.col_lists)} == {torch.int32}


@settings(max_examples=40)
@given(
    st.integers(1, 3), st.integers(1, 200), st.integers(1, 200), st.booleans(), st.integers(0, 9), st.integers(0, 99)
)  # fmt: skip
def test_any_indices_give_the_lists_of_plain_loops(
    heads: int, q_len: int, kv_len: int, causal: bool, n_slots: int, seed: int
) -> None:
    case = IndexCase(1, heads, q_len, kv_len, causal, max(1, n_slots), has_counts=n_slots > 0)
    rows = slow_rows(*case.arguments(seed), case.grid)
    layout = layout_of(case, seed)
    assert (listed(layout.row_lists), listed(layout.col_lists)) == (rows, transposed(rows, case.grid))


def test_fewer_leading_axes_are_those_of_one_batch_element_or_head() -> None:
    indices, counts = IndexCase(heads=2).arguments()
    assert counts is not None
    lengths = {"q_len": 100, "kv_len": 100, "block_size": BLOCK}
    whole = BlockLayout.from_indices(indices, counts, **lengths)
    per_head = BlockLayout.from_indices(indices[0], counts[0], **lengths)
    of_all = BlockLayout.from_indices(indices[0, 1], counts[0, 1], **lengths)
    assert (per_head.batch, per_head.num_heads, of_all.batch, of_all.num_heads) == (1, 2, 1, 1)
    assert listed(per_head.row_lists) == listed(whole.row_lists)
    assert of_all.rows() == whole.rows(1)


def test_counts_broadcast_over_heads_and_batch() -> None:
    indices, counts = IndexCase(batch=2, heads=3).arguments()
    assert counts is not None
    lengths = {"q_len": 100, "kv_len": 100, "block_size": BLOCK}
    for given_counts in (counts[:1, :1], counts[0, 0], counts[:1]):
        full = given_counts.expand(2, 3, -1).contiguous()
        found = BlockLayout.from_indices(indices, given_counts, **lengths)
        assert listed(found.row_lists) == slow_rows(indices, full, IndexCase().grid)


def test_indices_need_not_be_contiguous() -> None:
    indices, _ = IndexCase(heads=2).arguments()
    lengths = {"q_len": 100, "kv_len": 100, "block_size": BLOCK}
    strided = indices.transpose(1, 3).contiguous().transpose(1, 3)
    assert not strided.is_contiguous()
    found = BlockLayout.from_indices(strided, **lengths)
    assert listed(found.row_lists) == listed(BlockLayout.from_indices(indices, **lengths).row_lists)


def test_a_layout_does_not_change_with_the_indices_that_it_was_made_of() -> None:
    indices = torch.tensor([[0], [1], [2]])
    layout = BlockLayout.from_indices(indices, q_len=48, kv_len=48, block_size=BLOCK)
    indices.zero_()
    assert layout.rows() == [[0], [1], [2]]


def test_layout_made_in_inference_mode_serves_training() -> None:
    with torch.inference_mode():
        layout = layout_of(IndexCase(causal=True))
    q, k, v = (torch.randn(1, 100, 1, 8, requires_grad=True) for _ in range(3))
    block_sparse_attention(q, k, v, layout, is_causal=True, backend="reference").sum().backward()
    assert q.grad is not None


# ---- the kernels


@pytest.mark.interpreter
@pytest.mark.parametrize("name", WITH_SLOTS)
def test_kernels_make_the_lists_of_the_definition(name: str) -> None:
    from dilated_attention_pytorch.layout.device_lists import lists_by_kernels

    case = CASES[name]
    given_indices = checked_indices(*case.arguments(), case.grid)
    found, wanted = (all_tensors(*make(given_indices)) for make in (lists_by_kernels, lists_of_indices))
    assert [x.dtype for x in found] == [torch.int32] * 6
    assert [x.tolist() for x in found] == [x.tolist() for x in wanted]


def test_kernels_are_left_out_where_a_bit_for_every_pair_takes_more_than_sorting() -> None:
    from dilated_attention_pytorch.layout import device_lists

    def fits(n_blocks: int, n_slots: int) -> bool:
        grid = BlockGrid(n_blocks * BLOCK, n_blocks * BLOCK, BLOCK, causal=False)
        return device_lists.fits(
            checked_indices(torch.zeros(n_blocks, n_slots, dtype=torch.int32), None, grid)
        )

    assert fits(2048, 205)
    assert fits(8192, 82)  # a million tokens, block 128, 1 %
    assert fits(16, 1)
    assert not fits(16, 0)
    assert not fits(30_000, 10)


# ---- a layout whose lists have room for more


@pytest.mark.parametrize("name", WITH_SLOTS)
def test_layout_says_what_the_same_blocks_say(name: str) -> None:
    """Figures, blocks and copies do not show how much room there is."""
    case = CASES[name]
    wanted, made = same_layout(case), layout_of(case)
    assert made.num_block_ids == case.batch * case.heads * case.grid.n_rows * case.n_slots
    assert wanted.num_block_ids == wanted.num_active_blocks
    for layout in (made, pickle.loads(pickle.dumps(made)), dataclasses.replace(made)):
        assert layout.num_active_blocks == wanted.num_active_blocks < layout.num_block_ids
        assert layout.density == wanted.density
        assert [x.tolist() for x in layout.coo()] == [x.tolist() for x in wanted.coo()]
        assert torch.equal(layout.to_dense(), wanted.to_dense())
        for batch in range(case.batch):
            for head in range(case.heads):
                assert layout.rows(head, batch) == wanted.rows(head, batch)
        assert layout.coverage() == wanted.coverage()
        assert dataclasses.replace(layout.stats(), num_bytes=0) == dataclasses.replace(
            wanted.stats(), num_bytes=0
        )
        assert pairs_in_blocks(layout) == pairs_in_blocks(wanted)
        assert repr(layout) == repr(wanted)


@pytest.mark.parametrize("name", ["batch_and_heads", "causal", "causal_chunk", "cross"])
def test_token_dilation_splits_lists_with_room_for_more(name: str) -> None:
    dilation = TokenDilation((2 * BLOCK, 4 * BLOCK), (1, 4))
    made, wanted = layout_of(CASES[name]), same_layout(CASES[name])
    for found, exact in zip(made.lists(dilation), wanted.lists(dilation), strict=True):
        blocks = [[index for index, _ in each] for each in listed(found)]
        assert blocks == [[index for index, _ in each] for each in listed(exact)]
        assert {pair for each in listed(found) for _, pair in each} == {
            pair for each in listed(made.row_lists) for _, pair in each
        }
    assert pairs_in_blocks(made, dilation) == pairs_in_blocks(wanted, dilation)


def test_num_bytes_counts_the_room() -> None:
    layout = layout_of(IndexCase(n_slots=5))
    assert layout.stats().num_bytes == 4 * (8 + 8 + 4 * 7 * 5)


def test_plot_shows_the_blocks() -> None:
    pytest.importorskip("matplotlib")
    axes = layout_of(CASES["batch_and_heads"]).plot(head=1)
    assert "blocks" in axes.get_title()


def test_nothing_is_kept_of_lists_that_replays_of_a_graph_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layout made in a capture, here by decree, and the layouts for other lengths with its lists."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)  # not there without CUDA
    made = layout_of(IndexCase(causal=True))
    object.__setattr__(made, "is_captured", True)
    for layout in (made, made.for_lengths(99, 99)):
        kept = [layout.keep("backend", None, lambda: (torch.ones(1),)) for _ in range(2)]
        assert kept[0] is not kept[1]
        for _ in range(2):
            layout.lists(TokenDilation((32, 64), (1, 2)))
            layout.prefix(40)
        assert not layout._prepared
        assert not layout._dilated
        assert not layout._prefixes
        q = torch.randn(1, layout.q_len, 2, 16)
        block_sparse_attention(q, q, q, layout, is_causal=True, backend="cpu")
        assert not layout.calls


# ---- attention


def results(q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, **call: object) -> list[Tensor]:
    """out, lse and gradients."""
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    out, lse = block_sparse_attention(*inputs, layout, return_lse=True, **call)
    grad = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out, lse, *torch.autograd.grad((out * grad).sum(), inputs)]


ATTENTION = ["plain", "batch_and_heads", "causal", "causal_chunk", "cross"]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", ATTENTION)
def test_attention_is_that_of_the_same_blocks(name: str, backend: str) -> None:
    """In float64, sums of at most 700 products of about 1: 1e-12."""
    case = CASES[name]
    num_heads = 2 * case.heads
    q = torch.randn(case.batch, case.q_len, num_heads, 8, dtype=torch.float64)
    k, v = (torch.randn(case.batch, case.kv_len, case.heads, 8, dtype=torch.float64) for _ in range(2))
    found = results(q, k, v, layout_of(case), is_causal=case.causal, backend=backend)
    wanted = results(q, k, v, same_layout(case), is_causal=case.causal, backend="reference")
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)


@pytest.mark.interpreter
def test_attention_of_the_triton_backend_is_that_of_the_reference() -> None:
    """float32; sums of at most 100 products of about 1: 1e-5."""
    case = CASES["plain"]._replace(heads=2, causal=True)
    q, k, v = (torch.randn(1, 100, 2, 16) for _ in range(3))
    found, wanted = (
        results(q, k, v, layout_of(case), is_causal=True, backend=backend)
        for backend in ("triton", "reference")
    )
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_gradient_of_a_bias_gathered_from_scores_reaches_them(causal: bool) -> None:
    """The bias of a block is the score of its index, so the gradient is that of a dense bias at the chosen blocks."""
    q, k, v = (torch.randn(2, 80, 2, 8, dtype=torch.float64) for _ in range(3))
    scores = torch.randn(2, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    indices, counts = select_blocks(scores, num_blocks=3, causal=causal)
    lengths = {"q_len": 80, "kv_len": 80, "block_size": BLOCK, "causal": causal}
    layout = BlockLayout.from_indices(indices, counts, **lengths)
    bias = scores.gather(-1, indices.clamp(min=0).long()).flatten()[None, None]
    call = {"is_causal": causal, "backend": "reference"}
    out = block_sparse_attention(q, k, v, layout, block_bias=bias, **call)
    (found,) = torch.autograd.grad(out.square().sum(), scores)

    # every block has a bias, and those that are not chosen are hidden
    dense = BlockLayout.from_dense(torch.ones(5, 5, dtype=torch.bool), BLOCK, causal=causal)
    hidden = torch.full((2, 2, 5, 5), -torch.inf, dtype=torch.float64)
    hidden = hidden.masked_fill(layout.to_dense(), 0.0)
    out = block_sparse_attention(q, k, v, dense, block_bias=(scores + hidden).flatten(2), **call)
    (wanted,) = torch.autograd.grad(out.square().sum(), scores)
    assert wanted.abs().max() > 1e-3
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)


@pytest.mark.interpreter
def test_a_compiled_step_chooses_its_blocks_in_one_graph() -> None:
    """The same operations as in eager mode, so the same numbers; another length compiles no third time."""
    torch._dynamo.reset()

    def step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        indices, counts = select_blocks(block_scores(q, k, BLOCK, causal=True), 2, causal=True)
        layout = BlockLayout.from_indices(
            indices, counts, q_len=q.shape[1], kv_len=k.shape[1], block_size=BLOCK, causal=True
        )
        return block_sparse_attention(q, k, v, layout, is_causal=True, backend="triton")

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for length in (40, 50, 70):
        inputs = [torch.randn(1, length, 1, 16, requires_grad=True) for _ in range(3)]
        with torch.compiler.set_stance("default" if length < 70 else "fail_on_recompile"):
            found = compiled(*inputs)
        wanted = step(*inputs)
        assert torch.equal(found, wanted)
        for mine, other in zip(
            torch.autograd.grad(found.sum(), inputs), torch.autograd.grad(wanted.sum(), inputs), strict=True
        ):
            assert torch.equal(mine, other)


@pytest.mark.parametrize("has_counts", [False, True])
def test_operator_keeps_the_rules_of_operators(has_counts: bool) -> None:
    indices, counts = IndexCase(batch=2, heads=3, has_counts=has_counts).arguments()
    torch.library.opcheck(
        torch.ops.dilated_attention_pytorch.block_lists.default, (indices, counts, 100, 100, BLOCK, True)
    )


# ---- errors

INDICES = torch.zeros(1, 2, 4, 3, dtype=torch.int64)
LENGTHS = {"q_len": 64, "kv_len": 64, "block_size": 16}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"indices": [[0]]}, TypeError, r"indices must be an int32 or int64 tensor .* got list; use torch.as_tensor"),
        ({"indices": INDICES.float()}, ValueError, r"indices must be int32 or int64, got torch.float32"),
        ({"indices": INDICES.bool()}, ValueError, r"indices must be int32 or int64, got torch.bool"),
        ({"indices": INDICES[0, 0, 0]}, ValueError, r"indices must be \(batch or 1, heads or 1, n_rows, k\)"),
        ({"indices": INDICES[None]}, ValueError, r"or have fewer leading axes, got .*\(1, 1, 2, 4, 3\)"),
        ({"indices": INDICES[:, :, :3]}, ValueError, r"with n_rows 4, for q_len 64.*got shape \(1, 2, 3, 3\)"),
        ({"indices": INDICES[:0]}, ValueError, r"got shape \(0, 2, 4, 3\)"),
        ({"indices": INDICES.to_sparse()}, ValueError, r"indices must be a dense tensor .*torch.sparse_coo"),
        ({"counts": 3}, TypeError, r"counts must be an int32 or int64 tensor .* got int"),
        ({"counts": torch.ones(4)}, ValueError, r"counts must be int32 or int64, got torch.float32"),
        ({"counts": torch.ones(3, 4, dtype=torch.int64)}, ValueError, r"counts must broadcast .*\(1, 2, 4\), got shape \(3, 4\)"),
        ({"counts": torch.ones(2, 2, 4, dtype=torch.int64)}, ValueError, r"got shape \(2, 2, 4\)"),
        ({"counts": torch.ones(1, 1, 2, 4, dtype=torch.int64)}, ValueError, r"got shape \(1, 1, 2, 4\)"),
        ({"counts": torch.ones(4, dtype=torch.int64, device="meta")}, ValueError, r"counts must be on cpu as indices, got meta"),
        ({"q_len": 0}, ValueError, r"q_len must be a positive number of tokens"),
        ({"kv_len": "64"}, TypeError, r"kv_len must be a positive number of tokens"),
        ({"block_size": 48}, ValueError, r"block_size must be"),
        ({"causal": "yes"}, TypeError, r"causal must be True or False"),
    ],
)  # fmt: skip
def test_errors_name_the_argument_and_its_value(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        BlockLayout.from_indices(**{"indices": INDICES, **LENGTHS, **arguments})


def test_too_many_indices_are_refused() -> None:
    many = torch.zeros(1, dtype=torch.int32).expand(2**15, 2**16)
    with pytest.raises(ValueError, match=r"at most 2\*\*31 - 1 elements, got 2147483648"):
        BlockLayout.from_indices(many, q_len=16 * 2**15, kv_len=16, block_size=16)


# ---- dense masks with a batch


def test_dense_mask_with_batch_and_heads_survives() -> None:
    mask = torch.rand(2, 3, 5, 7) < 0.3
    layout = BlockLayout.from_dense(mask, BLOCK)
    assert (layout.batch, layout.num_heads) == (2, 3)
    assert torch.equal(layout.to_dense(), mask)
    assert layout.rows(2, 1) == [row.nonzero().flatten().tolist() for row in mask[1, 2]]
    assert layout.density == mask.double().mean().item()
    assert "batch=2, num_heads=3" in repr(layout)


def test_dense_mask_of_any_strides_survives() -> None:
    mask = torch.rand(7, 5, 3, 2).permute(3, 2, 1, 0) < 0.3
    assert not mask.is_contiguous()
    assert torch.equal(BlockLayout.from_dense(mask, BLOCK).to_dense(), mask)
    expanded = mask[:, :1].expand(2, 3, 5, 7)
    assert torch.equal(BlockLayout.from_dense(expanded, BLOCK).to_dense(), expanded)


@pytest.mark.parametrize(("name", "value"), [("head", 3), ("head", -1), ("batch", 2), ("batch", "0")])
def test_rows_of_a_head_or_batch_element_that_is_not_there_are_refused(name: str, value: object) -> None:
    layout = BlockLayout.from_dense(torch.ones(2, 3, 4, 4, dtype=torch.bool), BLOCK)
    with pytest.raises((TypeError, ValueError), match=f"{name} must be 0 to"):
        layout.rows(**{name: value})


# ---- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_lists_made_on_the_gpu_are_those_of_the_cpu(name: str) -> None:
    on_gpu, on_cpu = layout_of(CASES[name], device="cuda"), layout_of(CASES[name])
    for mine, other in zip(
        all_tensors(on_gpu.row_lists, on_gpu.col_lists), all_tensors(on_cpu.row_lists, on_cpu.col_lists), strict=True
    ):  # fmt: skip
        assert mine.is_cuda
        assert torch.equal(mine.cpu(), other)


@pytest.mark.gpu
def test_sorting_on_the_gpu_makes_the_same_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["batch_and_heads"]
    wanted = layout_of(case, device="cuda")
    monkeypatch.setattr(from_indices, "HAS_TRITON", False)
    found = layout_of(case, device="cuda")
    for mine, other in zip(
        all_tensors(found.row_lists, found.col_lists), all_tensors(wanted.row_lists, wanted.col_lists), strict=True
    ):  # fmt: skip
        assert torch.equal(mine, other)


@pytest.mark.gpu
@pytest.mark.parametrize("has_triton", [True, False])
@pytest.mark.parametrize("causal", [False, True])
def test_a_step_with_chosen_blocks_does_not_wait_for_the_gpu(
    has_triton: bool, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(from_indices, "HAS_TRITON", has_triton and from_indices.HAS_TRITON)
    q, k, v = (
        torch.randn(1, 1024, 4, 64, device="cuda", dtype=torch.float16, requires_grad=True) for _ in range(3)
    )

    def step() -> None:
        indices, counts = select_blocks(block_scores(q, k, 64, causal=causal), num_blocks=5, causal=causal)
        layout = BlockLayout.from_indices(
            indices, counts, q_len=1024, kv_len=1024, block_size=64, causal=causal
        )
        block_sparse_attention(q, k, v, layout, is_causal=causal).sum().backward()

    step()  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("backend", [None, "triton"])
@pytest.mark.parametrize("block_size", [64, 128])
def test_a_captured_step_replays_with_other_blocks_bit_by_bit(backend: str | None, block_size: int) -> None:
    """Forward and backward; also of blocks whose number differs."""
    n_blocks, heads = 16, 4
    length = n_blocks * block_size
    q, k, v, grad = (torch.randn(1, length, heads, 64, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    inputs = [x.requires_grad_() for x in (q, k, v)]

    def step(indices: Tensor, counts: Tensor) -> tuple[Tensor, ...]:
        layout = BlockLayout.from_indices(indices, counts, q_len=length, kv_len=length, block_size=block_size)
        out, lse = block_sparse_attention(*inputs, layout, return_lse=True, backend=backend)
        return out, lse, *torch.autograd.grad(out, inputs, grad)

    def drawn(seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator("cuda").manual_seed(seed)
        scores = torch.rand(1, heads, n_blocks, n_blocks, device="cuda", generator=generator)
        counts = torch.randint(
            0, 8, (1, heads, n_blocks), device="cuda", dtype=torch.int32, generator=generator
        )
        return select_blocks(scores, num_blocks=7)[0], counts

    indices, counts = drawn(0)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(indices, counts)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(indices, counts)
    for seed in (1, 2, 1):
        other = drawn(seed)
        indices.copy_(other[0])
        counts.copy_(other[1])
        graph.replay()
        for found, wanted in zip(captured, step(*other), strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.gpu
def test_a_layout_made_in_a_graph_serves_calls_outside_it_after_every_replay() -> None:
    """Nothing that was prepared from its lists is kept: every replay changes them."""
    indices = torch.arange(16, device="cuda", dtype=torch.int32)[:, None].clone()
    lengths = {"q_len": 1024, "kv_len": 1024, "block_size": 64}
    BlockLayout.from_indices(indices, **lengths)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        layout = BlockLayout.from_indices(indices, **lengths)
    q, k, v = (torch.randn(1, 1024, 2, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    for shift in (0, 3, 5):
        indices.copy_(indices.roll(shift, 0))
        graph.replay()
        fresh = BlockLayout.from_indices(indices, **lengths)
        assert torch.equal(block_sparse_attention(q, k, v, layout), block_sparse_attention(q, k, v, fresh))


@pytest.mark.gpu
def test_lists_of_millions_of_blocks_take_little_memory() -> None:
    """131,072 tokens, 16 heads, block 64, 10 %: 16 bytes for each of the 6.7 million, and 32 MiB to make them."""
    indices = torch.rand(1, 16, 2048, 2048, device="cuda").topk(205).indices.int()
    lengths = {"q_len": 131_072, "kv_len": 131_072, "block_size": 64}
    BlockLayout.from_indices(indices, **lengths)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    layout = BlockLayout.from_indices(indices, **lengths)
    assert torch.cuda.max_memory_allocated() - before < 140 * 2**20
    assert layout.num_active_blocks == indices.numel()
