"""Plans: counts are those of the exchange plans of the library, bytes and times follow from them by the stated formulas."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from attention_bench import cli, exchange_counts, markdown, plan, plan_estimates, report
from attention_bench.cases import Case
from attention_bench.exchange_counts import ExchangeCounts, count_exchange, make_sharding, rows_kept, sampled
from attention_bench.plan_estimates import Machine, TokenBytes, staged_ms
from dilated_attention_pytorch import BlockLayout
from dilated_attention_pytorch.distributed.balance import row_costs
from dilated_attention_pytorch.distributed.plan import ExchangePlan
from dilated_attention_pytorch.distributed.sharding import SequenceSharding
from dilated_attention_pytorch.grid import BlockGrid

RESULTS = Path(__file__).parents[2] / "tools/attention-bench/results"
MACHINE = Machine(
    tflops=(600.0, 400.0), dense_tflops=(500.0, 450.0), near_gbs=400.0, far_gbs=50.0, ranks_per_host=2
)
CASE = Case(131072, 16, 128, 128, 0.01, kv_heads=4, causal=True, pattern_rates=None)
CASES = {
    "causal": CASE,
    "not causal": replace(CASE, causal=False),
    "blocks of 64": replace(CASE, block=64),
    "last block short": replace(CASE, seqlen=30_001, density=0.03),
    "not causal, last block short": replace(CASE, seqlen=30_001, density=0.03, causal=False),
    "window": replace(CASE, pattern="local_window"),
    "global": replace(CASE, seqlen=20_000, density=0.05, pattern="global_local"),
    "global, not causal": replace(CASE, seqlen=20_000, density=0.05, pattern="global_local", causal=False),
}


def grid_of(case: Case) -> BlockGrid:
    return BlockGrid(case.seqlen, case.seqlen, case.block, case.causal)


@functools.lru_cache
def layout_of(case: Case) -> BlockLayout:
    return case.layout("cpu")


def counts_of(
    case: Case, ranks: int, balance: str = "cost", sample: int | None = None
) -> tuple[ExchangeCounts, SequenceSharding]:
    config, grid = case.config(), grid_of(case)
    sharding = make_sharding(config, grid, balance, ranks)
    return count_exchange(config, grid, sharding, MACHINE.ranks_per_host, sampled(ranks, sample)), sharding


def plan_of(case: Case, ranks: int = 8, **options: object) -> plan.PlanRow:
    given: dict = {"balance": "cost", "machine": MACHINE, "stages": 2, "save_fetched": False, "layers": 1}
    return plan.make_plan(case, ranks, **{**given, **options})


# ---- counts


@pytest.mark.parametrize("balance", ["cost", "zigzag", "contiguous"])
@pytest.mark.parametrize("ranks", [3, 8])
@pytest.mark.parametrize("name", CASES)
def test_counts_are_those_of_the_exchange_plans(name: str, ranks: int, balance: str) -> None:
    case = CASES[name]
    counts, sharding = counts_of(case, ranks, balance)
    layout = layout_of(case)
    plans = [ExchangePlan.make(layout, sharding, case.causal, rank) for rank in range(ranks)]
    near = [[i // 2 == rank // 2 for i in range(ranks)] for rank in range(ranks)]
    of_near = [[sum(x for x, here in zip(xs, near[i], strict=True) if here) for xs in (p.fetched_tokens, p.sent_tokens)]
               for i, p in enumerate(plans)]  # fmt: skip
    assert counts.fetched.tolist() == [each.num_fetched_tokens for each in plans]
    assert counts.sent_of_ranks.tolist() == [each.num_sent_tokens for each in plans]
    assert counts.fetched_near.tolist() == [fetched for fetched, _ in of_near]
    assert counts.sent_near.tolist() == [sent for _, sent in of_near]
    assert counts.sources.tolist() == [sum(map(bool, each.fetched_tokens)) for each in plans]
    assert counts.tokens.tolist() == list(sharding.local_lens)
    assert counts.active.tolist() == [
        int(row_costs(layout)[sharding.blocks_of(i)].sum()) for i in range(ranks)
    ]


@pytest.mark.parametrize("causal", [False, True])
def test_counts_are_those_of_sets_of_blocks(causal: bool) -> None:
    """Against a definition without any of the library's index arithmetic."""
    case = replace(CASE, seqlen=1000, block=16, density=0.1, causal=causal)
    counts, sharding = counts_of(case, 5)
    owner, rows = sharding.rank_of_block().tolist(), case.layout("cpu").rows()
    fetched, sent = [0] * 5, [0] * 5
    for rank in range(5):
        seen = {col for row, cols in enumerate(rows) if owner[row] == rank for col in cols}
        for col in seen:
            if owner[col] != rank:
                tokens = min(16, 1000 - 16 * col)
                fetched[rank] += tokens
                sent[owner[col]] += tokens
    assert (counts.fetched.tolist(), counts.sent_of_ranks.tolist()) == (fetched, sent)
    assert counts.active.sum() == sum(map(len, rows))
    assert counts.diagonal.sum() == len(rows)


@pytest.mark.parametrize("name", CASES)
def test_pieces_and_groups_change_no_count(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    whole, _ = counts_of(case, 8)
    monkeypatch.setattr(exchange_counts, "MOST_PAIRS", 100)
    monkeypatch.setattr(exchange_counts, "MOST_FLAGS", 3 * grid_of(case).n_cols)
    parts, _ = counts_of(case, 8)
    for field in ExchangeCounts.__dataclass_fields__:
        assert getattr(parts, field).tolist() == getattr(whole, field).tolist(), field


@pytest.mark.parametrize("name", CASES)
def test_rows_keep_what_the_budget_says(name: str) -> None:
    case = CASES[name]
    assert rows_kept(case.config(), grid_of(case)).tolist() == row_costs(layout_of(case)).tolist()


def test_sample_counts_some_ranks_as_all_are_counted() -> None:
    whole, _ = counts_of(CASE, 8)
    some, _ = counts_of(CASE, 8, sample=3)
    assert some.ranks.tolist() == [0, 4, 7]
    assert some.fetched.tolist() == whole.fetched[some.ranks].tolist()
    assert some.is_sample
    assert sampled(8, 1) == [0]
    assert sampled(8, 9) == list(range(8))


def test_too_many_blocks_without_causality_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_counts, "MOST_WHOLE", 1000)
    with pytest.raises(ValueError, match=r"10,485 blocks are kept.*--causal"):
        counts_of(CASES["not causal"], 8)


# ---- bytes, memory, times


def test_bytes_are_those_of_the_messages() -> None:
    """k and v of 4 kv heads of 128 in bfloat16 take 2,048 bytes a token; the backward fetches again and gives back."""
    counts, _ = counts_of(CASE, 8)
    ours = plan_of(CASE).methods[0]
    fetched, sent = counts.fetched, counts.sent_of_ranks
    assert ours.forward.received_bytes == 2048 * int(fetched.max())
    assert ours.forward.sent_bytes == 2048 * int(sent.max())
    assert ours.forward.mean_sent_bytes == 2048 * int(fetched.sum()) / 8
    assert ours.backward.sent_bytes == 2048 * int((sent + fetched).max())
    assert ours.backward.mean_sent_bytes == 2 * ours.forward.mean_sent_bytes
    saved = plan_of(CASE, save_fetched=True).methods[0]
    assert saved.forward == replace(saved.forward, **{
        name: getattr(ours.forward, name) for name in ("sent_bytes", "received_bytes", "transfer_ms", "ms")
    })  # fmt: skip
    assert saved.backward.sent_bytes == 2048 * int(fetched.max())
    assert saved.backward.mean_sent_bytes == ours.forward.mean_sent_bytes
    assert saved.kept_bytes - ours.kept_bytes >= 2048 * int((counts.tokens + fetched).min())


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_ring_sends_what_a_ring_that_is_walked_through_sends(ranks: int) -> None:
    """Whose k and v, and whose dk and dv, a rank holds in each step; what it does not keep, it sends."""
    ring = plan_of(CASE, ranks).methods[1]
    held, of_kv, of_gradients = list(range(ranks)), 0, 0
    for step in range(ranks):
        if step < ranks - 1:
            of_kv += 1
        of_gradients += ranks > 1
        held = [held[rank - 1] for rank in range(ranks)]
    assert held == list(range(ranks))  # the gradients are at home
    chunk = 2048 * CASE.seqlen // ranks
    assert ring.forward.sent_bytes == of_kv * chunk
    assert ring.backward.sent_bytes == (of_kv + of_gradients) * chunk


def test_all_gather_sends_what_the_others_lack() -> None:
    gathered = plan_of(CASE).methods[2]
    assert gathered.forward.mean_sent_bytes == 2048 * CASE.seqlen * 7 / 8
    assert gathered.backward.mean_sent_bytes == 2 * gathered.forward.mean_sent_bytes
    # 3 of 4 hosts' tokens come in through the 2 ports of a host
    assert gathered.forward.transfer_ms == pytest.approx(2048 * CASE.seqlen * 3 / 4 / 2 / 50e9 * 1e3)


def test_transfers_take_as_long_as_the_slower_link() -> None:
    counts, _ = counts_of(CASE, 8)
    near, far = (
        2048 * max(int(fetched.max()), int(sent.max()))
        for fetched, sent in ((counts.fetched_near, counts.sent_near), (counts.fetched_far, counts.sent_far))
    )
    assert plan_of(CASE).methods[0].forward.transfer_ms == pytest.approx(max(near / 400e9, far / 50e9) * 1e3)


def test_flops_are_those_of_the_benchmark() -> None:
    row = plan_of(CASE)
    whole = CASE.flops(CASE.token_pairs(layout_of(CASE)))
    ours, ring, _ = row.methods
    assert ours.forward.mean_flops == pytest.approx(whole / 8, rel=1e-12)
    assert ours.backward.mean_flops == pytest.approx(2.5 * whole / 8, rel=1e-12)
    assert ours.forward.compute_ms == pytest.approx(ours.forward.flops / 600e12 * 1e3)
    assert ring.forward.flops == CASE.flops(CASE.dense_pairs()) / 8
    assert ring.forward.compute_ms == pytest.approx(ring.forward.flops / 500e12 * 1e3)
    assert row.imbalance == pytest.approx(ours.forward.flops / ours.forward.mean_flops - 1)


def test_memory_counts_tensors_buffers_and_lists() -> None:
    """Two stages of one kv head each; q, k, v, out and lse of a token take 4 * 256 + 4 * 256 + 2 * 4 bytes."""
    case = replace(CASE, heads=2, kv_heads=2, seqlen=4096, block=16, density=0.1)
    counts, _ = counts_of(case, 2, "contiguous")
    ours = plan_of(case, 2, balance="contiguous").methods[0]
    assert TokenBytes(case).kept == 2056
    held, fetched, sent = counts.tokens, counts.fetched, counts.sent_of_ranks
    lists = 16 * counts.active + 4 * (held // 16 + (held + fetched) // 16 + 2) + 8 * counts.active + 16 * sent
    buffers = 2 * 512 * (held + fetched + sent)
    assert ours.forward.memory_bytes == int((2056 * held + lists + buffers).max())
    returning = 2 * 512 * (held + 2 * fetched + sent)
    assert ours.backward.memory_bytes == int((2056 * held + 2048 * held + lists + buffers + returning).max())


def test_no_buffer_where_nothing_travels() -> None:
    row = plan_of(CASE, 1)
    assert row.stages == 1
    assert row.share_of_ring == 0
    counts, _ = counts_of(CASE, 1)
    lists = int(plan_estimates.exchange_lists_bytes(counts, CASE.block)[0])
    assert row.methods[0].forward.memory_bytes == TokenBytes(CASE).kept * CASE.seqlen + lists


def test_layers_keep_their_tensors_and_one_is_at_work() -> None:
    one, four = plan_of(CASE), plan_of(CASE, layers=4)
    for before, after in zip(one.methods, four.methods, strict=True):
        assert four.memory_bytes(after) - one.memory_bytes(before) == 3 * before.kept_bytes


def test_stages_hide_the_shorter_of_fetching_and_computing() -> None:
    assert staged_ms(1, 8.0, 4.0) == 12.0
    assert staged_ms(4, 8.0, 4.0) == 2.0 + 3 * 2.0 + 1.0
    assert staged_ms(4, 4.0, 8.0) == 1.0 + 3 * 2.0 + 2.0
    assert staged_ms(4, 4.0, 16.0, 4.0) == 1.0 + 3 * 4.0 + 4.0 + 1.0


def test_one_percent_of_a_long_sequence_is_under_a_quarter_of_the_bytes_of_a_ring() -> None:
    """131,072 tokens, 8 ranks, causal, blocks of 128; and no rank works 3 % more than the mean."""
    row = plan_of(CASE)
    assert row.share_of_ring < 0.25
    assert row.imbalance < 0.03


@pytest.mark.parametrize(
    ("block", "causal", "expected"),
    [(128, True, "20%"), (64, True, "34%"), (128, False, "32%"), (64, False, "58%")],
)
def test_shares_of_the_guide(block: int, causal: bool, expected: str) -> None:
    """docs/guides/distributed.md says how much less larger blocks fetch."""
    assert f"{plan_of(replace(CASE, block=block, causal=causal)).share_of_ring:.0%}" == expected


def test_committed_plans_are_those_of_the_code() -> None:
    """Of the shortest cases; where this fails, write the file again: results/README.md has the command."""
    rows, _ = plan.read_json(str(RESULTS / "plan.json"))
    assert [(row.case, row.ranks) for row in rows] == plan.PRESETS["scaling"]
    for row in rows[:2]:
        machine = plan.machine_of(plan.build_parser().parse_args([]), row.case)
        assert row == plan.make_plan(row.case, row.ranks, "cost", machine, None, False, 1)


def test_default_rates_are_those_of_the_committed_runs() -> None:
    def rates(file: str, peer: str) -> dict[tuple[int, int, float], tuple[int, int]]:
        found: dict[tuple[int, int, float], tuple[int, int]] = {}
        for row in report.read_json(str(RESULTS / file))[0]:
            if row.peer == peer and row.case.seqlen == 131072 and row.forward_tflops and row.backward_tflops:
                key = (row.case.head_dim, row.case.block, row.case.density)
                found.setdefault(key, (round(row.forward_tflops), round(row.backward_tflops)))
        return found

    sparse, dense = rates("h200.json", "ours"), rates("h200-0.3.0.json", "cudnn")
    for (head_dim, block), expected in plan_estimates.TFLOPS.items():
        assert sparse.get((head_dim, block, 0.01), sparse[head_dim, block, 0.05]) == expected
    for head_dim, expected in plan_estimates.DENSE_TFLOPS.items():
        assert dense[head_dim, 128, 0.05] == expected


# ---- the command


def test_command_prints_and_writes_what_it_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "plan.json")
    given = "plan --ranks 8 --seqlen 128K --ratio 1e-2 --block-size 128 --causal --heads 16 --kv-heads 4 --layers 2"
    assert cli.main([*given.split(), "--near", "400", "--ranks-per-host", "2", "--tflops", "600", "400",
                     "--dense-tflops", "500", "450", "--stages", "2", "--json", file]) == 0  # fmt: skip
    printed = capsys.readouterr().out
    assert "Computed from the pattern, not measured" in printed
    (row,), where = plan.read_json(file)
    assert row == plan_of(CASE, layers=2)
    assert where["command"].endswith("--json plan.json")
    assert json.loads(Path(file).read_text())["environment"]["device"] == plan.COMPUTED
    shown = markdown.table(file)
    assert "| 131,072 tokens, 16:4 x 128, block 128, 1.00% causal" in shown
    assert f"*{plan.COMPUTED}, " in shown


def test_sample_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--causal", "--sample", "2"]) == 0
    printed = capsys.readouterr().out
    assert "a sample of 2 ranks" in printed
    assert "forward: sent       - (" in printed


def test_preset_goes_up_to_a_billion_tokens() -> None:
    cases = plan.PRESETS["scaling"]
    assert max((case.seqlen, ranks) for case, ranks in cases) == (10**9, 1024)
    assert all(case.causal for case, _ in cases)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ("131072", 131072),
        ("131,072", 131072),
        ("1e9", 10**9),
        ("4M", 4 * 2**20),
        ("128k", 2**17),
        ("1.5G", 3 * 2**29),
    ],
)
def test_lengths_have_units_and_exponents(tokens: str, expected: int) -> None:
    parsed = plan.build_parser().parse_args(["--seqlen", tokens])
    assert parsed.seqlen == expected
