"""Ranks agree, or all of them get the same error within seconds: other facts, missing ranks, dead ranks.

The protocol is tested with a thread for each rank and a store in memory; that it works between processes, in part
two, with two of them.
"""

from __future__ import annotations

import json
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
import torch

from dilated_attention_pytorch.distributed import agreement
from dilated_attention_pytorch.distributed.agreement import (
    Meeting,
    agreed_by,
    breaks_if_left,
    check_agreement,
    ranks_as_text,
    texts_of,
)
from dilated_attention_pytorch.distributed.config import DistributedSparseConfig
from tests.core.distributed.gloo_processes import GlooProcesses, die, needs_gloo

pytestmark = needs_gloo

SHORT = 0.5  # seconds that ranks wait for one that does not come
LONG = 10.0  # seconds that ranks wait in which all come
SOON = 8.0  # seconds within which all must know: SHORT, the slack, and a busy machine


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(agreement, "SLACK", 1.0)
    made = torch.distributed.HashStore()
    made.set_timeout(timedelta(seconds=2 * LONG))  # a key that never comes is an error, no hang
    return made


def meet(store: Any, ranks: dict[int, str], size: int, timeout: float = LONG, after: float = 0.0) -> str:
    """One check of these ranks of a group; what the store says for all of them: "" or the message of the error."""
    said: dict[int, str] = {}

    def hold(rank: int, text: str) -> None:
        time.sleep(after * rank)
        try:
            Meeting(store, rank, range(size), timeout).hold(texts(text))
            said[rank] = ""
        except (ValueError, TimeoutError) as error:
            said[rank] = f"{type(error).__name__}: {error}"

    threads = [threading.Thread(target=hold, args=item) for item in ranks.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert said.keys() == ranks.keys()
    assert len(set(said.values())) == 1, said
    return next(iter(said.values()))


def texts(text: str) -> str:
    return json.dumps({"dtype": text})


def keys_of(store: Any, rounds: int, size: int) -> set[str]:
    names = [f"{i}/{rank}" for i in range(rounds) for rank in [*range(size), "verdict"]]
    return {name for name in names if store.check([name])}


def test_ranks_that_agree_go_on_and_leave_one_verdict(store: Any) -> None:
    for i in range(5):
        assert meet(store, dict.fromkeys(range(8), f"call {i}"), 8) == ""
    assert keys_of(store, 5, 8) == {"4/verdict"}


def test_differing_ranks_are_named_with_their_values(store: Any) -> None:
    facts = dict.fromkeys(range(8), "float32") | {3: "float16"}
    message = meet(store, facts, 8)
    assert message.startswith("ValueError")
    assert "dtype is float16 on rank 3, float32 on ranks 0-2, 4-7" in message
    assert meet(store, dict.fromkeys(range(8), "float32"), 8) == ""  # the next check is a new one


@pytest.mark.parametrize("missing", [[0], [1], [0, 2], [1, 2, 3]])
def test_missing_ranks_are_named_in_time(store: Any, missing: list[int]) -> None:
    came = [rank for rank in range(4) if rank not in missing]
    began = time.monotonic()
    message = meet(store, dict.fromkeys(came, "float32"), 4, SHORT)
    assert SHORT <= time.monotonic() - began < SOON
    assert message.startswith("TimeoutError")
    assert f"{ranks_as_text(missing)} did not come within 0.5 seconds" in message


def test_those_that_came_differ_too(store: Any) -> None:
    message = meet(store, {0: "float32", 2: "float16"}, 3, SHORT)
    assert "rank 1 did not come" in message
    assert "dtype is float32 on rank 0, float16 on rank 2" in message


def test_late_ranks_get_the_error_of_what_they_missed_at_once_and_all_meet_again(store: Any) -> None:
    first = meet(store, {1: "a plan that only rank 1 makes"}, 4, SHORT)
    began = time.monotonic()
    assert meet(store, dict.fromkeys([0, 2, 3], "float32"), 4) == first
    assert time.monotonic() - began < SOON
    assert meet(store, dict.fromkeys(range(4), "float32"), 4) == ""
    for _ in range(3):  # however often one of them was alone
        meet(store, {2: "float32"}, 4, SHORT)
    assert "rank" in meet(store, dict.fromkeys([0, 1, 3], "float32"), 4)
    assert meet(store, dict.fromkeys(range(4), "float32"), 4) == ""


def test_whoever_leaves_what_ranks_do_together_makes_no_more_calls() -> None:
    group: Any = type("Group", (), {})()
    agreed_by(group).keep("digest", None)
    with pytest.raises(ValueError), breaks_if_left(group):  # all ranks refuse the call
        raise ValueError
    assert group not in agreement.BROKEN
    assert "digest" in agreed_by(group)
    with pytest.raises(KeyboardInterrupt), breaks_if_left(group):
        raise KeyboardInterrupt
    assert group in agreement.BROKEN
    assert "digest" not in agreed_by(group)


def test_slow_ranks_are_waited_for(store: Any) -> None:
    assert meet(store, dict.fromkeys(range(3), "float32"), 3, after=0.5) == ""


def test_rank_0_that_ends_in_the_middle_is_named(store: Any) -> None:
    store.set("0/0", texts("float32"))  # it came, and gave no verdict
    assert "rank 0 came, but compared nothing" in meet(store, {1: "float32"}, 2, SHORT)


def test_ranks_of_a_part_of_the_world_are_translated(store: Any) -> None:
    with pytest.raises(TimeoutError, match=r"ranks of a group, which are ranks 1, 3 of the world"):
        Meeting(store, 0, [1, 3], SHORT).hold(texts("float32"))


def test_longest_message_of_many_ranks_stays_readable(store: Any) -> None:
    meeting = Meeting(store, 0, range(1024), SHORT)
    said = {rank: json.dumps({"a": "x" * 96 + str(rank), "b": str(rank % 2)}) for rank in range(1024)}
    message = meeting.differences(said)
    assert len(message) < 1000
    assert "1020 other values elsewhere" in message
    assert "b is 0 on ranks 0, 2, 4, 6, 8, 10, 12, 14, ... (512 ranks)" in message


def test_facts_differ_exactly_where_values_do() -> None:
    values: list[Any] = [
        *[0, 0.0, False, None, "0", "None", (0,), (0, 0), ((0,), 0), "a" * 200, "a" * 199 + "b"],
        *[1e-300, 0.1, 0.1 + 2**-56, float("inf"), torch.float16, torch.bfloat16],
        *[torch.zeros(1), torch.zeros(1, dtype=torch.int32), torch.zeros(1, 1), torch.tensor([-0.0])],
    ]
    found = [texts_of({"x": value})["x"] for value in values]
    assert len(set(found)) == len(values)
    assert found == [texts_of({"x": value})["x"] for value in values]
    assert max(map(len, found)) <= agreement.LONGEST


def test_facts_without_a_lasting_text_are_refused() -> None:
    with pytest.raises(TypeError, match="fact mesh"):
        texts_of({"mesh": (1, object())})


# ---- between processes


def check(rank: int, timeout: float, *facts: dict[str, object]) -> None:
    check_agreement(DistributedSparseConfig(torch.distributed.group.WORLD), facts[rank % len(facts)], timeout)


def many_checks(rank: int) -> list[str]:
    """What a rank gets of checks with other facts, then of one on which all agree."""
    base = {"dtype": torch.float32, "length": 4096, "blocks": torch.arange(100, dtype=torch.int32)}
    others: list[dict[str, object]] = [
        {**base, "dtype": torch.float16},
        {**base, "length": 4097},
        {**base, "blocks": torch.arange(100, dtype=torch.int32).flip(0)},
        {name: value for name, value in base.items() if name != "length"},
    ]
    said = []
    for other in others:
        with pytest.raises(ValueError) as caught:
            check(rank, 30.0, base, other)
        said.append(str(caught.value))
    check(rank, 30.0, base)
    if rank == 0:  # they have agreed on this
        check(rank, 0.01, base)
    assert len(agreed_by(torch.distributed.group.WORLD)) == 1
    return said


def collective_instead(rank: int) -> str:
    """Rank 1 is in a collective that rank 0 joins only after its check."""
    x = torch.ones(1)
    if rank == 1:
        torch.distributed.all_reduce(x)
        message = ""
    else:
        with pytest.raises(TimeoutError) as caught:
            check(rank, SHORT, {"call": 1})
        message = str(caught.value)
        torch.distributed.all_reduce(x)
    assert x.item() == 2
    # At once on rank 0, and on rank 1, which missed it.
    with pytest.raises((TimeoutError, RuntimeError), match="did not come within"):
        check(rank, 30.0, {"call": 2})
    with pytest.raises(RuntimeError, match="makes no more distributed calls with this group"):
        check(rank, 30.0, {"call": 3})
    return message


def die_before(rank: int) -> None:
    if rank == 1:
        die()
    check(rank, SHORT, {"call": 1})


def test_two_processes_agree_or_get_the_same_error() -> None:
    with GlooProcesses(2) as processes:
        first, second = processes.run(many_checks, limit=60)
        assert first == second
        names = ["dtype", "length", "blocks", "length"]
        assert [text.split("but ")[1].split(" is ")[0] for text in first] == names
        assert "length is 4096 on rank 0, not given on rank 1" in first[3]

        # a rank in another collective is named, and the collective is not disturbed
        message, _ = processes.run(collective_instead, limit=60)
        assert "rank 1 did not come within 0.5 seconds" in message

    with GlooProcesses(2) as processes:  # a dead rank is named, too
        left, dead = processes.outcomes(die_before, limit=30)
        assert (left.error, dead.error) == ("TimeoutError", "died")
        assert "rank 1 did not come within 0.5 seconds" in left.message
        assert left.seconds < SOON
