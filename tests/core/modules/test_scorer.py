"""BlockScorer: what its features begin as, and what its sizes mean."""

from __future__ import annotations

import pytest
import torch

from dilated_attention_pytorch.modules.scorer import BlockScorer, LazyBlockScorer

HEADS, DIM = 4, 8


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("hidden_dim", [8, 20])
@pytest.mark.parametrize("shared", [False, True])
def test_scores_begin_as_products(num_layers: int, hidden_dim: int, shared: bool) -> None:
    """8 products of numbers of about 1 in float32."""
    scorer = BlockScorer(HEADS, DIM, hidden_dim, num_layers, shared)
    queries, keys = torch.randn(2, 5, HEADS, DIM), torch.randn(2, 7, 2, DIM)
    of_queries, of_keys = scorer(queries, keys)
    assert (of_queries.shape, of_keys.shape) == ((2, HEADS, 5, hidden_dim), (2, HEADS, hidden_dim, 7))
    wanted = torch.einsum("bqhd,bkhd->bhqk", queries, keys.repeat_interleave(2, 2))
    torch.testing.assert_close(of_queries @ of_keys, wanted, atol=1e-5, rtol=1e-5)


def test_fewer_features_begin_as_products_of_projections() -> None:
    scorer = BlockScorer(HEADS, DIM, hidden_dim=3)
    weight = scorer.q_map
    assert torch.equal(weight, scorer.k_map)
    torch.testing.assert_close(
        weight.transpose(1, 2) @ weight, torch.eye(3).expand(HEADS, 3, 3), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(("shared", "heads"), [(False, HEADS), (True, 1)])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_weights_are_those_of_every_layer_and_head(shared: bool, heads: int, num_layers: int) -> None:
    scorer = BlockScorer(HEADS, DIM, 6, num_layers, shared)
    shapes = {name: tuple(weight.shape) for name, weight in scorer.named_parameters()}
    wanted = {f"{side}_map": (heads, DIM, 6) for side in "qk"}
    for layer in range(num_layers if num_layers > 1 else 0):
        for side in "qk":
            wanted[f"{side}_weight_{layer}"] = (heads, DIM if layer == 0 else 6, 6)
            wanted[f"{side}_bias_{layer}"] = (heads, 1, 6)
    assert shapes == wanted


def test_heads_have_weights_of_their_own_unless_shared() -> None:
    queries, keys = torch.randn(1, 5, 1, DIM).expand(-1, -1, HEADS, -1), torch.randn(1, 5, 1, DIM)
    for shared in (False, True):
        scorer = BlockScorer(HEADS, DIM, 6, share_across_heads=shared)
        with torch.no_grad():
            for weight in scorer.parameters():
                weight.normal_()
        of_queries, of_keys = scorer(queries, keys)
        scores = of_queries @ of_keys
        assert torch.allclose(scores[:, :1], scores, atol=1e-5) == shared


def test_lazy_scorer_has_the_types_that_it_was_given() -> None:
    scorer = LazyBlockScorer(hidden_dim=6, dtype=torch.bfloat16)
    of_queries, _ = scorer(torch.randn(1, 5, HEADS, DIM), torch.randn(1, 5, HEADS, DIM))
    assert type(scorer) is BlockScorer
    assert {weight.dtype for weight in scorer.parameters()} == {torch.bfloat16}
    assert of_queries.dtype == torch.float32
    assert "4, 8, hidden_dim=6" in repr(scorer)
