"""BlockSparseAdaptive: what it chooses and attends to, padding, training, copies, and what it refuses."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dilated_attention_pytorch import (
    AdaptiveConfig,
    BlockLayout,
    BlockSparseAdaptive,
    SparsePatternConfig,
    block_scores,
    block_sparse_attention,
)
from dilated_attention_pytorch.config_warnings import UnusedFieldWarning

BLOCK, HEADS, DIM = 16, 4, 8
Pattern = dict[str, Any]


def made(pattern: SparsePatternConfig | None = None, **options: Any) -> BlockSparseAdaptive:
    """A module whose weights are all random, in eval mode; options of AdaptiveConfig."""
    config = AdaptiveConfig(**{"hidden_dim": 12, "base_sparsity": 0.7, **options})
    pattern = pattern or SparsePatternConfig(block_size=BLOCK)
    module = BlockSparseAdaptive(pattern, config, num_heads=HEADS, head_dim=DIM)
    with torch.no_grad():
        for name, weight in module.scorer.named_parameters():
            weight.normal_(std=1.0 if name.endswith("map") else 0.3)
    return module.eval()


def inputs(
    length: int = 200, batch: int = 2, kv_len: int | None = None, kv_heads: int = 2
) -> tuple[Tensor, Tensor, Tensor]:
    q = torch.randn(batch, length, HEADS, DIM)
    k, v = (torch.randn(batch, kv_len or length, kv_heads, DIM) for _ in range(2))
    return q, k, v


def pattern_of(module: BlockSparseAdaptive, *args: Tensor, **options: Any) -> tuple[Tensor, Pattern]:
    out, pattern = module(*args, return_pattern=True, **options)
    return out, pattern


# ---- what is chosen


@pytest.mark.parametrize("causal", [False, True])
def test_scores_begin_as_products_of_queries_and_mean_keys(causal: bool) -> None:
    """Of mean queries, or if causal of the first queries of the blocks; 8 products of numbers of about 1 in float32."""
    q, k, v = inputs(length=5 * BLOCK + 3)
    module = BlockSparseAdaptive(SparsePatternConfig(block_size=BLOCK), num_heads=HEADS, head_dim=DIM).eval()
    _, pattern = pattern_of(module, q, k, v, is_causal=causal)
    queries = q[:, ::BLOCK].repeat_interleave(BLOCK, 1)[:, : q.shape[1]] if causal else q
    wanted = block_scores(queries, k, BLOCK)
    torch.testing.assert_close(pattern["scores"], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [(400, 400), (50, 400), (1, 300)])
def test_as_many_blocks_as_a_pattern_of_the_same_density(causal: bool, lengths: tuple[int, int]) -> None:
    q, k, v = inputs(lengths[0], kv_len=lengths[1])
    layout = pattern_of(made(base_sparsity=0.71), q, k, v, is_causal=causal)[1]["layout"]
    fixed = BlockLayout.from_config(
        SparsePatternConfig(block_size=BLOCK, sparsity_ratio=0.29), *lengths, causal=causal
    )
    rows = [len(row) for row in fixed.rows()]
    for element in range(2):
        for head in range(HEADS):
            assert [len(row) for row in layout.rows(head, element)] == rows


@pytest.mark.parametrize("causal", [False, True])
def test_batch_elements_and_heads_choose_for_themselves_and_keep_their_own_block(causal: bool) -> None:
    dense = pattern_of(made(), *inputs(), is_causal=causal)[1]["layout"].to_dense()
    assert len({tuple(x.flatten().tolist()) for x in dense.flatten(0, 1)}) == 2 * HEADS
    assert dense.diagonal(0, 2, 3).all()


def test_the_best_blocks_are_chosen() -> None:
    _, pattern = pattern_of(made(), *inputs())
    scores, dense = pattern["scores"], pattern["layout"].to_dense()
    others = ~torch.eye(scores.shape[-1], dtype=torch.bool)
    worst = scores.masked_fill(~(dense & others), torch.inf).amin(-1)
    best_left = scores.masked_fill(dense, -torch.inf).amax(-1)
    assert (worst >= best_left).all()


@pytest.mark.parametrize("causal", [False, True])
def test_window_and_first_blocks_of_a_config_are_always_kept(causal: bool) -> None:
    config = SparsePatternConfig("global_local", BLOCK, window_size=2 * BLOCK, global_tokens=BLOCK + 1)
    dense = pattern_of(made(config), *inputs(400), is_causal=causal)[1]["layout"].to_dense()
    n = dense.shape[-1]
    row, col = torch.arange(n)[:, None], torch.arange(n)
    near = ((row - col >= 0) & (row - col <= 2)) if causal else (row - col).abs() <= 1
    kept = near | ((col < 2) & (col <= row) if causal else col < 2)
    assert dense[..., kept].all()
    assert not dense.all()


def test_top_p_keeps_fewer_blocks_of_a_row_that_needs_fewer() -> None:
    q, k, v = inputs()
    module = made(base_sparsity=0.0, top_p=0.5)
    _, pattern = pattern_of(module, q, k, v)
    share = pattern["scores"].softmax(-1).masked_fill(~pattern["layout"].to_dense(), 0.0)
    assert (share.sum(-1) >= 0.5 - 1e-6).all()  # weights are rounded to 2**-24
    assert pattern["counts"].unique().numel() > 2
    module.temperature = 0.1
    assert pattern_of(module, q, k, v)[1]["counts"].sum() < pattern["counts"].sum()
    capped = made(base_sparsity=0.7, top_p=0.99)
    assert (pattern_of(capped, q, k, v)[1]["counts"] <= 4).all()


def test_noise_is_drawn_in_training_only() -> None:
    args = inputs()
    module = made()
    found = [pattern_of(module, *args)[1]["layout"].to_dense() for _ in range(2)]
    assert torch.equal(*found)
    drawn = [pattern_of(module.train(), *args)[1]["layout"].to_dense() for _ in range(2)]
    assert not torch.equal(*drawn)
    assert torch.equal(drawn[0].sum(-1), found[0].sum(-1))
    silent = made(gumbel_noise=False).train()
    assert torch.equal(*(pattern_of(silent, *args)[1]["layout"].to_dense() for _ in range(2)))


# ---- what comes out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("hard", [False, True])
def test_output_is_attention_to_the_chosen_blocks(causal: bool, hard: bool) -> None:
    """Sums of 200 weighted values in another order, where a bias of zero takes another way."""
    q, k, v = inputs()
    out, pattern = pattern_of(made(hard_sparsity=hard), q, k, v, is_causal=causal)
    layout, indices = pattern["layout"], pattern["indices"]
    bias = None
    if not hard:
        bias = pattern["scores"].gather(-1, indices.clamp(min=0).long())
        if causal:
            own = torch.arange(indices.shape[2])[:, None]
            bias = bias * (indices != own)
        bias = bias.flatten()[None, None]
    wanted = block_sparse_attention(q, k, v, layout, is_causal=causal, block_bias=bias)
    torch.testing.assert_close(out, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_without_sparsity_it_is_dense_attention(causal: bool) -> None:
    """Sums of 200 weighted values in another order."""
    q, k, v = inputs()
    out = made(base_sparsity=0, hard_sparsity=True)(q, k, v, is_causal=causal)
    dense = F.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), is_causal=causal, enable_gqa=True
    )
    torch.testing.assert_close(out, dense.transpose(1, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"top_p": 0.8}, {"hard_sparsity": True}])
@pytest.mark.parametrize("end", [BLOCK, 3 * BLOCK + 5, 199])
def test_no_causal_query_knows_of_later_tokens(options: dict[str, Any], end: int) -> None:
    """Neither in what it chooses, nor in the bias of its own block."""
    module, args = made(**options), inputs()
    others = [torch.cat([x[:, :end], torch.randn_like(x[:, end:])], 1) for x in args]
    found, wanted = module(*others, is_causal=True)[:, :end], module(*args, is_causal=True)[:, :end]
    assert torch.equal(found, wanted)


def test_chunks_at_whole_blocks_are_the_rows_of_the_whole() -> None:
    module, (q, k, v) = made(), inputs(192)
    whole = module(q, k, v, is_causal=True)
    for end in range(64, 193, 64):
        chunk = module(q[:, end - 64 : end], k[:, :end], v[:, :end], is_causal=True)
        torch.testing.assert_close(chunk, whole[:, end - 64 : end], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dilation", [{}, {"segment_lengths": [32, 64], "dilation_rates": [1, 2]}])
def test_a_batch_gives_what_its_elements_give_alone(causal: bool, dilation: dict[str, list[int]]) -> None:
    """Sums of 200 weighted values in another order; also where heads of token dilation count."""
    module, args = made(), inputs(batch=3)
    for name, value in dilation.items():
        setattr(module, name, value)
    whole = module(*args, is_causal=causal)
    assert whole.view(3, 200, -1).shape == (3, 200, HEADS * DIM)
    for i in range(3):
        alone = module(*(x[i : i + 1] for x in args), is_causal=causal)
        torch.testing.assert_close(whole[i : i + 1], alone, atol=1e-5, rtol=1e-5)


LENGTHS = (200, 77, 5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("side", ["left", "right", "mask", "both"])
def test_a_padded_sequence_gives_what_it_gives_alone(causal: bool, side: str) -> None:
    """Means of a block in another order, about 1e-7 of the scores, and sums of fewer than 200 values."""
    module = made()
    sequences = [inputs(length, batch=1) for length in LENGTHS]
    starts = [200 - n if side == "left" else (200 - n) // 2 if side == "both" else 0 for n in LENGTHS]
    q, k, v = (torch.randn(3, 200, heads, DIM) for heads in (HEADS, 2, 2))
    for i, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
        for padded, x in zip((q, k, v), sequence, strict=True):
            padded[i, start : start + x.shape[1]] = x[0]
    ends = torch.tensor([start + n for start, n in zip(starts, LENGTHS, strict=True)])
    options: dict[str, Tensor] = {}
    if side == "mask":
        options["key_padding_mask"] = torch.arange(200) >= ends[:, None]
    if side in ("right", "both"):
        options["kv_lengths"] = ends
    if side in ("left", "both"):
        options["kv_starts"] = torch.tensor(starts)
    found = module(q, k, v, is_causal=causal, **options)
    for i, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
        alone = module(*sequence, is_causal=causal)
        torch.testing.assert_close(found[i : i + 1, start : start + LENGTHS[i]], alone, atol=1e-5, rtol=1e-4)


def test_blocks_of_padding_are_not_chosen_and_queries_of_other_sequences_keep_their_means() -> None:
    """Queries of a cross attention are no padding where the keys are."""
    module, (q, k, v) = made(), inputs(200)
    hidden = torch.arange(200) >= 64
    out, pattern = pattern_of(module, q, k, v, key_padding_mask=hidden.expand(2, -1))
    dense = pattern["layout"].to_dense()
    assert not (dense & ~torch.eye(13, dtype=torch.bool))[..., 4:].any()
    assert out.isfinite().all()
    scores = pattern_of(module, q, k[:, :64], v[:, :64])[1]["scores"]
    torch.testing.assert_close(pattern["scores"][:, :, 4:12, :4], scores[:, :, 4:12], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_of_inputs_are_served(dtype: torch.dtype) -> None:
    args = tuple(x.to(dtype) for x in inputs())
    module = made()
    out, pattern = pattern_of(module, *args, is_causal=True)
    assert out.dtype == dtype
    assert pattern["scores"].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        again = pattern_of(module, *args, is_causal=True)[1]["scores"]
    assert torch.equal(again, pattern["scores"])


# ---- training


def planted(seed: int, length: int = 256, batch: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """q, k, v, what the later half has to return, and the block of each head, in the first half, that holds it under a mark."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(batch, length, HEADS, DIM, generator=generator) for _ in range(3))
    where = torch.randint(0, length // BLOCK // 2, (batch, HEADS), generator=generator)
    answer = torch.randn(batch, 1, HEADS, DIM, generator=generator)
    is_planted = (torch.arange(length) // BLOCK)[:, None] == where[:, None]
    mark = 2.0 * torch.nn.functional.one_hot(torch.tensor(3), DIM)
    k = k + is_planted[..., None] * mark
    v = torch.where(is_planted[..., None], answer.expand_as(v), 0.3 * v)
    return q, k, v, answer, where


def share_found(module: BlockSparseAdaptive, causal: bool) -> float:
    """How many of the rows that need it see the planted block, in data that was not trained on."""
    q, k, v, _, where = planted(seed=99, batch=8)
    dense = pattern_of(module.eval(), q, k, v, is_causal=causal)[1]["layout"].to_dense()[:, :, 8:].float()
    module.train()
    return float(dense.gather(3, where[:, :, None, None].expand(-1, -1, 8, 1)).mean())


@pytest.mark.parametrize(
    ("causal", "options"),
    [
        (True, {}),
        (False, {"hard_sparsity": True}),
        (True, {"gumbel_noise": False, "share_across_heads": True}),
    ],
)
def test_training_finds_a_planted_block(causal: bool, options: dict[str, Any]) -> None:
    """Only the scorer is trained: keys with a mark hold the answer, in another block of every sequence and head."""
    torch.manual_seed(1)
    config = AdaptiveConfig(hidden_dim=8, base_sparsity=0.9, **options)
    module = BlockSparseAdaptive(SparsePatternConfig(block_size=BLOCK), config, num_heads=HEADS, head_dim=DIM)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.03)
    assert share_found(module, causal) < 0.5
    for step in range(40):
        q, k, v, answer, _ = planted(step)
        loss = (module(q, k, v, is_causal=causal)[:, 128:] - answer).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert share_found(module, causal) > 0.9


@pytest.mark.parametrize("hard", [False, True])
def test_every_weight_and_the_inputs_get_a_gradient(hard: bool) -> None:
    module = made(hard_sparsity=hard).train()
    q, k, v = (x.requires_grad_() for x in inputs())
    module(q, k, v, is_causal=True).square().mean().backward()
    for name, weight in module.named_parameters():
        assert weight.grad is not None
        assert weight.grad.abs().max() > 0, name
    assert all(x.grad is not None and x.grad.abs().max() > 0 for x in (q, k, v))


def test_straight_through_gradient_is_that_of_a_bias_of_zero() -> None:
    args = inputs()
    module = made(hard_sparsity=True, gumbel_noise=False).train()
    out, pattern = pattern_of(module, *args)
    grad = torch.randn_like(out)
    (found,) = torch.autograd.grad(out, module.log_temperature, grad)
    bias = torch.zeros(1, 1, pattern["indices"].numel(), requires_grad=True)
    again = block_sparse_attention(*args, pattern["layout"], block_bias=bias)
    assert torch.equal(out, again)
    (of_bias,) = torch.autograd.grad(again, bias, grad)
    chosen = pattern["scores"].gather(-1, pattern["indices"].clamp(min=0).long()).flatten()
    # scores are divided by the temperature, so each changes by -itself with its logarithm; 1e4 products in float32
    torch.testing.assert_close(found.squeeze(), -(of_bias.flatten() * chosen).sum(), atol=1e-4, rtol=1e-4)


def test_temperature_is_a_parameter_or_a_buffer_and_at_least_the_least() -> None:
    module = made(temperature=0.5)
    assert "log_temperature" in dict(module.named_parameters())
    torch.testing.assert_close(float(module.temperature.detach()), 0.5, atol=1e-6, rtol=0)
    with torch.no_grad():
        module.log_temperature.fill_(-9.0)
    assert abs(float(module.temperature.detach()) - 0.1) < 1e-6
    assert torch.autograd.grad(module.temperature, module.log_temperature)[0] > 0
    module.temperature = 0.2
    torch.testing.assert_close(float(module.temperature.detach()), 0.2, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"temperature must be at least min_temperature 0.1, got 0.01"):
        module.temperature = 0.01
    fixed = made(learnable_temperature=False)
    assert "log_temperature" in dict(fixed.named_buffers())
    assert "log_temperature" in fixed.state_dict()


def test_sparsity_loss_is_the_entropy_of_the_choice() -> None:
    q, k, v = inputs()
    module = made(sparsity_reg_weight=0.5, gumbel_noise=False)
    assert module.get_sparsity_loss() == 0
    module.train()(q, k, v)
    loss = module.get_sparsity_loss()
    scores = pattern_of(module, q, k, v)[1]["scores"].double()
    entropy = -(scores.softmax(-1) * scores.log_softmax(-1)).sum(-1) / torch.tensor(13.0).log()
    torch.testing.assert_close(loss.double(), 0.5 * entropy.mean(), atol=1e-6, rtol=1e-5)
    loss.backward()
    weight = module.scorer.q_map
    assert weight.grad is not None
    with torch.no_grad():
        weight -= 10 * weight.grad
    module(q, k, v)
    assert module.get_sparsity_loss() < loss
    assert made(sparsity_reg_weight=0.0).train().get_sparsity_loss() == 0


def test_sparsity_loss_of_causal_rows_counts_the_past_alone() -> None:
    """Rows without a choice, the first two and what has no keys, do not count."""
    module = made(gumbel_noise=False, sparsity_reg_weight=1.0).train()
    with torch.no_grad():
        for weight in module.scorer.parameters():
            weight.zero_()
    module(*inputs(), is_causal=True)
    torch.testing.assert_close(module.get_sparsity_loss().detach(), torch.tensor(1.0), atol=1e-5, rtol=0)
    module(*inputs(40), is_causal=True, kv_lengths=torch.tensor([10, 40]))
    loss = module.get_sparsity_loss()
    loss.backward()
    assert loss.isfinite()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in module.parameters())


# ---- weights and copies


def test_weights_for_the_first_call_are_those_of_sizes_that_were_given() -> None:
    config = AdaptiveConfig(hidden_dim=8)
    torch.manual_seed(3)
    late = BlockSparseAdaptive(adaptive_config=config, block_size=BLOCK)
    assert (late.num_heads, late.head_dim) == (None, None)
    q, k, v = inputs()
    torch.manual_seed(3)
    late.eval()(q, k, v)
    assert (late.num_heads, late.head_dim) == (HEADS, DIM)
    torch.manual_seed(3)
    now = BlockSparseAdaptive(
        adaptive_config=config, block_size=BLOCK, num_heads=HEADS, embed_dim=HEADS * DIM
    )
    assert torch.equal(late(q, k, v), now.eval()(q, k, v))
    assert type(late.scorer) is type(now.scorer)


@pytest.mark.parametrize("sizes", [{}, {"num_heads": HEADS, "head_dim": DIM}])
def test_state_dict_loads_strictly(sizes: dict[str, int]) -> None:
    source, args = made(temperature=0.3), inputs()
    target = BlockSparseAdaptive(adaptive_config=source.adaptive_config, block_size=BLOCK, **sizes).eval()
    target.load_state_dict(source.state_dict())
    assert torch.equal(target(*args), source(*args))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_after_a_step_of_training_give_the_same(copied: Any) -> None:
    module, args = made().train(), inputs()
    module(*args).sum().backward()
    again = copied(module)
    assert torch.equal(again.eval()(*args), module.eval()(*args))
    assert again.get_sparsity_loss() == 0


def test_compiled_step_is_the_eager_one_in_one_graph() -> None:
    """Another length compiles nothing."""
    torch._dynamo.reset()
    module = made(gumbel_noise=False).train()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for length in (50, 70):
        args = [x.requires_grad_() for x in inputs(length, batch=1)]
        for x in args:
            torch._dynamo.mark_dynamic(x, 1)
        with torch.compiler.set_stance("default" if length == 50 else "fail_on_recompile"):
            found = compiled(*args, is_causal=True)
        wanted = module(*args, is_causal=True)
        torch.testing.assert_close(found, wanted)
        weights = [*args, *module.parameters()]
        for mine, other in zip(
            *(torch.autograd.grad(out.square().sum(), weights) for out in (found, wanted)), strict=True
        ):
            torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


def test_compiled_step_takes_padding() -> None:
    torch._dynamo.reset()
    module, args = made(), inputs(64)
    options = {"kv_lengths": torch.tensor([64, 30]), "kv_starts": torch.tensor([7, 0])}
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args, **options), module(*args, **options))


# ---- the arguments


@pytest.mark.parametrize(
    ("arguments", "dropped"),
    [
        ({}, 0.9),
        ({"sparsity_ratio": 0.05}, 0.95),
        ({"sparse_config": {"sparsity_ratio": 0.25}}, 0.75),
        ({"adaptive_config": {"base_sparsity": 0.8}}, 0.8),
        ({"sparse_config": {"sparsity_ratio": 0.2}, "adaptive_config": {"base_sparsity": 0.8}}, 0.8),
        ({"sparsity_ratio": 0.4, "adaptive_config": {"base_sparsity": 0.8, "hidden_dim": 4}}, 0.6),
        ({"sparsity_ratio": 0.4, "sparse_config": SparsePatternConfig("local_window", window_size=64)}, 0.6),
    ],
)
def test_fraction_dropped_is_one_minus_the_fraction_kept(arguments: dict[str, Any], dropped: float) -> None:
    assert BlockSparseAdaptive(**arguments).adaptive_config.base_sparsity == dropped


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sparse_config": [SparsePatternConfig()] * 2}, ValueError, "sparse_config must be one config for all heads, got 2"),
        ({"sparse_config": {"sparsity_ratio": 0.2}, "adaptive_config": {"base_sparsity": 0.7}}, ValueError,
         r"sparsity_ratio 0.2 of sparse_config \(kept\) and base_sparsity 0.7 .* leave one of them out"),
        ({"adaptive_config": 0.9}, TypeError, "adaptive_config must be an AdaptiveConfig or a dict, got 0.9"),
        ({"adaptive_config": {"sparsity": 0.9}}, ValueError, "adaptive_config has no field 'sparsity'; .*base_sparsity"),
        ({"num_heads": 4}, ValueError, "num_heads and head_dim go together, got num_heads 4 and head_dim None"),
        ({"head_dim": 0, "num_heads": 4}, ValueError, "head_dim must be a number of at least 1, got 0"),
        ({"embed_dim": 10, "num_heads": 4}, ValueError, "embed_dim must be num_heads \\* head_dim, got 10, 4 and None"),
        ({"dropout": 1.0}, ValueError, r"dropout must be in \[0, 1\), got 1.0"),
        ({"backend": "fast"}, ValueError, "backend must be one of .* got 'fast'"),
    ],
)  # fmt: skip
def test_errors_of_the_constructor_name_the_argument(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        BlockSparseAdaptive(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"q": torch.randn(1, 64, 8, DIM)}, ValueError, "q must have num_heads 4, which the scorer is for, got shape"),
        ({"k": torch.randn(1, 64, 3, DIM)}, ValueError, "num_kv_heads must divide num_heads 4, got 3"),
        ({"return_pattern": torch.ones(1, 64)}, TypeError, "return_pattern must be True or False, got a tensor"),
        ({"k": torch.randn(1, 80, 4, DIM), "kv_starts": torch.tensor([3])}, ValueError, "kv_starts needs q_len == kv_len, got 64 and 80"),
        ({"key_padding_mask": torch.ones(1, 63, dtype=torch.bool)}, ValueError, "key_padding_mask"),
        ({"kv_lengths": torch.tensor([3, 4])}, ValueError, "kv_lengths"),
    ],
)  # fmt: skip
def test_errors_of_a_call_name_the_argument(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    q = torch.randn(1, 64, HEADS, DIM)
    with pytest.raises(error, match=message):
        made()(**{"q": q, "k": q, "v": q, **arguments})


def test_settings_without_effect_are_warned_of_and_a_static_layout_is_refused() -> None:
    with pytest.warns(UnusedFieldWarning, match=r"dilation_rates \(1, 2\) of sparse_config has no effect"):
        module = BlockSparseAdaptive(SparsePatternConfig(dilation_rates=[1, 2]))
    with pytest.raises(RuntimeError, match="return_pattern=True"):
        module.layout(64)
    module.sparse_config = [SparsePatternConfig()] * 2
    with pytest.raises(ValueError, match="sparse_config must be one config for all heads"):
        module(*inputs())


# ---- a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"hard_sparsity": True}, {"top_p": 0.8}])
def test_captured_step_chooses_anew_and_waits_for_nothing(options: dict[str, Any]) -> None:
    module = BlockSparseAdaptive(
        adaptive_config=AdaptiveConfig(gumbel_noise=False, **options), num_heads=4, head_dim=64, device="cuda"
    )
    q, k, v, grad = (torch.randn(1, 1024, 4, 64, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    args = [x.requires_grad_() for x in (q, k, v)]

    def step() -> tuple[Tensor, ...]:
        out = module(*args, is_causal=True)
        return out, *torch.autograd.grad(out, [*args, *module.parameters()], grad)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        q.normal_()
        k.normal_()
    graph.replay()
    for found, wanted in zip(captured, step(), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-2, rtol=1e-2)
