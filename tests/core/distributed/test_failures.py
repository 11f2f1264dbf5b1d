"""Calls that ranks make differently, or not at all, fail on all of them in time; a dead rank never gives wrong numbers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dilated_attention_pytorch import BlockLayout, SparsePatternConfig
from dilated_attention_pytorch.distributed.attention import distributed_block_sparse_attention
from dilated_attention_pytorch.distributed.config import DistributedSparseConfig
from dilated_attention_pytorch.distributed.sharding import SequenceSharding, shard_sequence
from tests.core.distributed.gloo_processes import GlooProcesses, die, needs_gloo

pytestmark = needs_gloo

TIMEOUT = 1.0  # seconds that ranks wait for one that does not come
SOON = 10.0  # seconds within which they must know: TIMEOUT, two of slack, and a busy machine
LIMIT = 60.0  # of a run

CALL: dict[str, Any] = {
    "length": 200,
    "ratio": 0.4,
    "dtype": torch.float32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "batch": 1,
    "requires_grad": True,
    "grad_mode": True,
    "config": {},
    "options": {"is_causal": True},
}
# What rank 1 does differently, and the fact that the error names.
OTHERWISE: dict[str, tuple[dict[str, Any], str]] = {
    "layout": ({"ratio": 0.5}, "layout: active blocks is "),
    "length": ({"length": 201}, "seq_len is 200 on rank 0, 201 on rank 1"),
    "block masks": ({"exact": True}, "layout: masks"),
    "dtype": ({"dtype": torch.bfloat16}, "dtype is 'torch.float32' on rank 0, 'torch.bfloat16' on rank 1"),
    "is_causal": ({"options": {"is_causal": False}}, "is_causal is True on rank 0, False on rank 1"),
    "softmax_scale": (
        {"options": {"is_causal": True, "softmax_scale": 0.5}},
        "softmax_scale is None on rank 0, 0.5 on rank 1",
    ),
    "softcap": ({"options": {"is_causal": True, "softcap": 20.0}}, "softcap is None on rank 0, 20.0"),
    "num_heads": ({"num_heads": 2}, "num_heads is 4 on rank 0, 2 on rank 1"),
    "num_kv_heads": ({"num_kv_heads": 4}, "num_kv_heads is 2 on rank 0, 4 on rank 1"),
    "head_dim": ({"head_dim": 32}, "head_dim is 16 on rank 0, 32 on rank 1"),
    "balance": ({"config": {"balance": "contiguous"}}, "chunks is "),
    "stages": ({"config": {"stages": 2}}, "stages is None on rank 0, 2 on rank 1"),
    "save_fetched": ({"config": {"save_fetched": True}}, "save_fetched is False on rank 0, True on rank 1"),
    "requires_grad": ({"requires_grad": False}, "requires_grad is True on rank 0, False on rank 1"),
    "backend": ({"options": {"is_causal": True, "backend": "triton"}}, "backend is None on rank 0, 'triton'"),
    "autocast": ({"autocast": True}, "dtype is 'torch.float32' on rank 0, 'torch.bfloat16' on rank 1"),
    "no_grad": ({"grad_mode": False}, "requires_grad is True on rank 0, False on rank 1"),
}


def attend(**changes: Any) -> torch.Tensor:
    """A call with these changes; the sum of what it returns."""
    call = {**CALL, "exact": False, "timeout": 30.0, **changes}
    group = call.get("group", torch.distributed.group.WORLD)
    config = DistributedSparseConfig(group, agreement_timeout=call["timeout"], **call["config"])
    pattern = SparsePatternConfig(block_size=16, sparsity_ratio=call["ratio"])
    if call["exact"]:
        pattern = SparsePatternConfig("local_window", block_size=16, window_size=40, exact=True)
    layout = BlockLayout.from_config(pattern, call["length"], causal=True)
    sharding = SequenceSharding.from_layout(layout, config)
    local, numbers = (
        (call["batch"], sharding.local_len),
        [call[f"num_{name}heads"] for name in ("", "kv_", "kv_")],
    )
    settings = {"dtype": call["dtype"], "requires_grad": call["requires_grad"]}
    q, k, v = (torch.ones(*local, n, call["head_dim"], **settings) for n in numbers)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=call.get("autocast", False))
    with torch.set_grad_enabled(call["grad_mode"]), autocast:
        return distributed_block_sparse_attention(q, k, v, layout, sharding, config, **call["options"]).sum()


def differ(rank: int) -> dict[str, str]:
    """The errors of calls that rank 1 makes differently; after each, all make one that is served."""
    said = {}
    for i, (name, (otherwise, _)) in enumerate(OTHERWISE.items(), 2):
        with pytest.raises(ValueError) as caught:
            attend(**{"batch": i} | (otherwise if rank == 1 else {}))  # nothing like it was agreed on before
        said[name] = str(caught.value)
        attend().backward()
    return said


def stay_away(rank: int) -> tuple[str, float]:
    """Rank 1 makes no call: the error of rank 0, and the seconds until it came. In a group of its own, which breaks."""
    group = torch.distributed.new_group([0, 1])
    began = time.monotonic()
    if rank == 1:
        return "", 0.0
    with pytest.raises(TimeoutError) as caught:
        attend(group=group, timeout=TIMEOUT)
    return str(caught.value), time.monotonic() - began


def call_alone(rank: int) -> torch.Tensor:
    """Rank 1 makes a new call where rank 0 makes one that was agreed on, and so is in an exchange already."""
    attend(timeout=TIMEOUT)
    if rank == 0:
        return attend(timeout=TIMEOUT)
    with pytest.raises(TimeoutError, match="rank 0 did not come"):
        attend(timeout=TIMEOUT, batch=2)
    # Which rank 0 would take for the one before.
    with pytest.raises(RuntimeError, match="makes no more distributed calls"):
        attend(timeout=TIMEOUT)
    die()
    raise AssertionError


def swap_known_calls(rank: int) -> str:
    """With TORCH_DISTRIBUTED_DEBUG=DETAIL, what ranks get that make different calls, each of which all have made before."""
    for length in (200, 208):
        attend(length=length)
    level = torch.distributed.get_debug_level()
    torch.distributed.set_debug_level(torch.distributed.DebugLevel.DETAIL)
    try:
        attend(length=200)
        with pytest.raises(ValueError) as caught:
            attend(length=200 + 8 * rank)
    finally:
        torch.distributed.set_debug_level(level)
    return str(caught.value)


def die_before(rank: int) -> torch.Tensor:
    if rank == 1:
        die()
    return attend(timeout=TIMEOUT, batch=100)  # nothing like it was agreed on before


def die_in_forward(rank: int) -> torch.Tensor:
    """Rank 1 ends after it has agreed, when its first block should travel."""
    if rank == 1:
        from dilated_attention_pytorch.distributed import attention

        attention.start_fetch = lambda *_: die()  # type: ignore[assignment]
    return attend(timeout=TIMEOUT)


def die_in_backward(rank: int) -> torch.Tensor:
    out = attend(timeout=TIMEOUT)
    if rank == 1:
        die()
    out.backward()
    return out


def fail_in_backward(rank: int) -> torch.Tensor:
    """Rank 1 has no memory left, and goes on with another call, as a training loop may that leaves out such a step."""
    out = attend()
    if rank == 1:
        from dilated_attention_pytorch.distributed import attention

        def out_of_memory(*_: Any) -> None:
            raise torch.OutOfMemoryError("as if")

        attention.gradients_of_heads = out_of_memory  # type: ignore[assignment]
        with pytest.raises(torch.OutOfMemoryError):
            out.backward()
        with pytest.raises(RuntimeError, match=r"makes no more distributed calls.*OutOfMemoryError: as if"):
            attend()
        die()
    out.backward()
    return out


@pytest.fixture(scope="module")
def processes() -> Iterator[GlooProcesses]:
    with GlooProcesses(2) as started:
        yield started


@pytest.fixture(scope="module")
def said(processes: GlooProcesses) -> list[dict[str, str]]:
    said: list[dict[str, str]] = processes.run(differ, limit=LIMIT)
    return said


@pytest.mark.parametrize("name", OTHERWISE)
def test_both_ranks_get_the_error_that_says_what_differs(said: list[dict[str, str]], name: str) -> None:
    first, second = (of_rank[name] for of_rank in said)
    assert first == second
    assert OTHERWISE[name][1] in first


def test_every_call_is_compared_where_torch_compares_every_collective(processes: GlooProcesses) -> None:
    first, second = processes.run(swap_known_calls, limit=LIMIT)
    assert first == second
    assert "seq_len is 200 on rank 0, 208 on rank 1" in first


def test_rank_that_makes_no_call_is_named_in_time(processes: GlooProcesses) -> None:
    (message, seconds), _ = processes.run(stay_away, limit=LIMIT)
    assert "rank 1 did not come within 1 seconds" in message
    assert seconds < SOON


@pytest.mark.parametrize(
    "function",
    [
        call_alone,
        die_in_backward,
        # each starts new processes
        *(
            pytest.param(function, marks=pytest.mark.processes)
            for function in (die_before, die_in_forward, fail_in_backward)
        ),
    ],
)
def test_death_of_a_rank_is_an_error_on_the_other(processes: GlooProcesses, function: Any) -> None:
    left, dead = processes.outcomes(function, limit=LIMIT)
    assert dead.error == "died", dead
    assert left.error == ("TimeoutError" if function is die_before else "RuntimeError"), left
    assert left.seconds < SOON


def results(rank: int, death: str) -> list[Any]:
    """What a rank gets of three steps, of which rank 1 ends in the second: numbers, or the type of the error."""
    got: list[Any] = []
    made = torch.Generator().manual_seed(0)
    for step in range(3):
        config = DistributedSparseConfig(torch.distributed.group.WORLD, stages=2, agreement_timeout=TIMEOUT)
        layout = BlockLayout.from_config(SparsePatternConfig(block_size=16, sparsity_ratio=0.3), 400)
        sharding = SequenceSharding.from_layout(layout, config)
        x = torch.randn(3, 1, 400, 2, 16, generator=made)
        q, k, v = (shard_sequence(each, sharding).clone().requires_grad_() for each in x)
        if step == 1 and rank == 1 and death == "forward":
            die()
        try:
            out = distributed_block_sparse_attention(q, k, v, layout, sharding, config)
            if step == 1 and rank == 1 and death == "backward":
                die()
            out.square().sum().backward()
        except Exception as error:
            got.append(type(error).__name__)
        else:
            got.append([out.detach(), *(each.grad for each in (q, k, v))])
    return got


@pytest.mark.processes
@pytest.mark.parametrize("death", ["forward", "backward"])
def test_survivors_of_four_get_right_numbers_or_errors(death: str) -> None:
    with GlooProcesses(4) as processes:
        wanted = processes.run(results, "", limit=LIMIT)
        outcomes = processes.outcomes(results, death, limit=LIMIT)
    assert [outcome.error for outcome in outcomes] == [None, "died", None, None]
    errors = 0
    for outcome, right in zip(outcomes, wanted, strict=True):
        for step, got in enumerate(outcome.value or ()):
            if isinstance(got, str):
                assert got in ("RuntimeError", "TimeoutError")
                errors += 1
            else:
                assert all(torch.equal(x, y) for x, y in zip(got, right[step], strict=True))
    assert errors >= 4  # at least one in its second step, and all in the third
