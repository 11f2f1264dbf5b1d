"""Drawing a layout."""

from __future__ import annotations

import pytest
import torch

from dilated_attention_pytorch import BlockLayout
from tests.core.pattern_cases import layout_of
from tests.core.slow_definition import Pattern


@pytest.mark.parametrize(
    "lengths", [(320, 320, False), (64, 320, True), (320, 64, True), (20_000, 20_000, False)]
)
def test_plot_draws_the_blocks(lengths: tuple[int, int, bool]) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    layout = layout_of(Pattern("dilated_sparse", "0.2"), *lengths)
    axes = layout.plot()
    (image,) = axes.get_images()
    drawn = torch.as_tensor(image.get_array().data)
    assert max(drawn.shape) <= 512
    if lengths[0] < 1000:
        assert torch.equal(drawn > 0, layout.to_dense())
    assert axes.get_title()
    assert layout.plot(ax=axes) is axes
    axes.figure.canvas.draw()
    matplotlib.pyplot.close(axes.figure)


def test_plot_of_a_head_that_is_not_there_names_it() -> None:
    with pytest.raises(ValueError, match="head must be 0 to 0, got 3"):
        layout_of(Pattern("local_window"), 64).plot(head=3)


def test_blocks_with_masks_are_shaded_by_the_share_of_their_pairs() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    # blocks of 16: all pairs, a half, and at the ragged end all that exist; head 1 sees a quarter
    layout = BlockLayout.from_mask_mod(
        lambda b, h, q, k: (q // 16 == k // 16) & ((q < 16) | (q % 2 == 0) | (q >= 32)) & ((h == 0) | (k % 4 == 0)),
        40, block_size=16, num_heads=2,
    )  # fmt: skip
    axes = layout.plot(cmap="gray")
    (image,) = axes.get_images()
    assert torch.equal(
        torch.as_tensor(image.get_array().data), torch.diag(torch.tensor([1, 0.5, 1]).double().sqrt())
    )
    assert axes.get_title() == "6 of 18 blocks (33.33%), 17.50% of the pairs"
    (image,) = layout.plot(head=1).get_images()
    found = torch.as_tensor(image.get_array().data).diagonal()
    torch.testing.assert_close(found, torch.tensor([1 / 4, 1 / 8, 1 / 4], dtype=torch.float64).sqrt())
    matplotlib.pyplot.close("all")


def test_plot_of_a_batch_element() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    mask = torch.rand(3, 2, 5, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    layout = BlockLayout.from_dense(mask, 16)
    (image,) = layout.plot(head=1, batch=2).get_images()
    assert torch.equal(torch.as_tensor(image.get_array().data) > 0, mask[2, 1])
    with pytest.raises(ValueError, match="batch must be 0 to 2, got 3"):
        layout.plot(batch=3)
    matplotlib.pyplot.close("all")
