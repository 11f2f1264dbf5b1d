"""The kernels that make a work order on a GPU, beside the definition; work orders of lists with room for more."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dilated_attention_pytorch import BlockLayout
from dilated_attention_pytorch.backends.hopper.longest_first import longest_first
from dilated_attention_pytorch.backends.hopper.work_order import ListOrder, WorkOrder, make_work_order
from dilated_attention_pytorch.config import TokenDilation
from tests.core.backends.hopper.test_work_order import LAYOUTS, skewed

# Triton's interpreter takes about 20 ms for two rows or columns
SMALL = ["one_block", "two_blocks", "odd_rows_causal", "skewed_heads", "nothing", "cross"]
DILATION = TokenDilation((256, 512), (1, 4))


def made_by_kernels(layout: BlockLayout, dilation: TokenDilation | None = None) -> Tensor:
    from dilated_attention_pytorch.backends.hopper.device_order import work_order_by_kernels

    return work_order_by_kernels(layout.grid, layout.num_heads, *layout.lists(dilation), dilation)


def definition(layout: BlockLayout, dilation: TokenDilation | None = None) -> Tensor:
    return make_work_order(layout.grid, layout.num_heads, *layout.lists(dilation), dilation)


def with_room(layout: BlockLayout) -> BlockLayout:
    """The same blocks from indices, of which some do not count."""
    grid = layout.grid
    dense = layout.to_dense().view(layout.num_heads, grid.n_rows, grid.n_cols)
    columns = torch.arange(grid.n_cols).expand_as(dense)
    return BlockLayout.from_indices(
        torch.where(dense, columns, -1).flip(-1), q_len=grid.q_len, kv_len=grid.kv_len,
        block_size=grid.block_size, causal=grid.causal,
    )  # fmt: skip


@pytest.mark.interpreter
@pytest.mark.parametrize("block_size", [64, 128])
@pytest.mark.parametrize("name", SMALL)
def test_kernels_make_the_work_order_of_the_definition(name: str, block_size: int) -> None:
    layout = LAYOUTS[name](block_size)
    assert torch.equal(made_by_kernels(layout), definition(layout))


@pytest.mark.interpreter
@pytest.mark.parametrize("name", ["dilated", "skewed_heads", "chunk"])
def test_kernels_make_the_work_order_of_dilated_tokens(name: str) -> None:
    layout = LAYOUTS[name](128)
    assert torch.equal(made_by_kernels(layout, DILATION), definition(layout, DILATION))


@pytest.mark.interpreter
def test_lists_longer_than_a_program_takes_at_once() -> None:
    mask = torch.rand(1, 2, 300) < 0.95
    layout = BlockLayout.from_dense(mask, 64)
    assert torch.equal(made_by_kernels(layout), definition(layout))


def meant(made: Tensor, layout: BlockLayout, dilation: TokenDilation | None = None) -> list[list[int]]:
    """The parts of a work order without what stands behind the lists."""
    grid, n_blocks = layout.grid, layout.num_active_blocks
    offsets = WorkOrder.of(
        grid.n_rows, grid.n_cols, layout.num_heads, layout.num_block_ids, grid.block_size, dilation
    )
    found = []
    for start, at in ((0, offsets.rows), (offsets.columns_at, offsets.columns)):
        part = made[start : start + at.size].tolist()
        if isinstance(at, ListOrder):
            n_shared = n_blocks if at.blocks > at.places else 0
            found += [part[: at.places], part[at.places :][:n_shared], part[at.blocks :][:n_shared]]
        else:
            n_pairs = part[at.pairs - 1]
            found += [part[: at.pairs], part[at.pairs :][: 2 * n_pairs]]
    return found


@pytest.mark.parametrize("block_size", [64, 128])
@pytest.mark.parametrize("name", LAYOUTS)
def test_room_behind_the_lists_changes_nothing(name: str, block_size: int) -> None:
    layout = LAYOUTS[name](block_size)
    roomy = with_room(layout)
    assert roomy.num_block_ids > layout.num_block_ids or layout.density == 1.0
    assert meant(definition(roomy), roomy) == meant(definition(layout), layout)


@pytest.mark.interpreter
@pytest.mark.parametrize("name", ["odd_rows_causal", "skewed_heads", "nothing"])
def test_room_behind_the_lists_changes_nothing_for_the_kernels(name: str) -> None:
    layout = LAYOUTS[name](64)
    roomy = with_room(layout)
    assert meant(made_by_kernels(roomy), roomy) == meant(definition(layout), layout)


@pytest.mark.parametrize("name", ["dilated", "skewed_heads", "chunk", "nothing"])
def test_room_behind_the_lists_changes_nothing_with_dilated_tokens(name: str) -> None:
    layout = LAYOUTS[name](128)
    roomy = with_room(layout)
    assert meant(definition(roomy, DILATION), roomy, DILATION) == meant(
        definition(layout, DILATION), layout, DILATION
    )


@pytest.mark.interpreter
def test_levels_of_the_kernel_are_those_of_the_definition() -> None:
    """Also next to the powers of 2 ** (1 / 4), of all lengths up to 2 ** 14: a group for each."""
    from dilated_attention_pytorch.backends.hopper.kernels.list_order import order_kernel

    n = 2**14
    lengths = torch.arange(n, dtype=torch.int32)
    indptr = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    made = torch.zeros(1 + n, dtype=torch.int32)
    order_kernel[1,](indptr, made, 0, 1, n_lists=n, n_groups=n, n_classes=1, PER_GROUP=1, BLOCK=n)
    n_long, order = longest_first(lengths[None])
    assert torch.equal(made, torch.cat([n_long, order[0]]).int())


# ---- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("block_size", [64, 128])
@pytest.mark.parametrize("name", LAYOUTS)
def test_kernels_on_the_gpu_make_the_work_order_of_the_cpu(name: str, block_size: int) -> None:
    layout = LAYOUTS[name](block_size)
    assert torch.equal(made_by_kernels(layout.to("cuda")).cpu(), definition(layout))


@pytest.mark.gpu
def test_work_order_of_millions_of_blocks_takes_no_more_memory_than_it_has() -> None:
    """131,072 tokens, 16 heads, block 64, 10 %: with the lists and what makes them under 300 MiB."""
    indices = torch.rand(1, 16, 2048, 2048, device="cuda").topk(205).indices.int()

    def make() -> tuple[BlockLayout, Tensor]:
        layout = BlockLayout.from_indices(indices, q_len=131_072, kv_len=131_072, block_size=64)
        return layout, made_by_kernels(layout)

    make()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    layout, made = make()
    assert torch.cuda.max_memory_allocated() - before < 300 * 2**20
    assert made.numel() > 4 * layout.num_active_blocks


def test_skewed_layouts_have_long_groups() -> None:
    """Else the tests above would not see whether they are counted."""
    assert definition(skewed(64, 33))[0] > 0
