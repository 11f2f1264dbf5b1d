"""Drawing a layout."""

from __future__ import annotations

import pytest
import torch

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
