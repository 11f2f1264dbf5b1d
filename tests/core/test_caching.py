"""What is kept between calls: bounds, threads, copies."""

from __future__ import annotations

import copy
import pickle
import signal
import threading
import time

import pytest
import torch

from dilated_attention_pytorch import _torch_internals, caching
from dilated_attention_pytorch.caching import BoundedCache, CacheEntry, make_in_graph, make_once


def test_the_oldest_goes_and_a_replaced_value_takes_no_room() -> None:
    cache = BoundedCache(3)
    assert [cache.keep(i, 10 * i) for i in range(5)] == [0, 10, 20, 30, 40]
    assert cache == {2: 20, 3: 30, 4: 40}
    cache.keep(3, "new")
    assert cache == {2: 20, 3: "new", 4: 40}


def test_copies_and_pickles_are_empty_and_have_the_bound() -> None:
    cache = BoundedCache(2)
    cache.keep("lock", threading.Lock())  # which cannot be copied
    for other in (copy.copy(cache), copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert type(other) is BoundedCache
        assert (other, other.bound) == ({}, 2)


def test_threads_that_add_at_once_stay_within_the_bound() -> None:
    cache, sizes = BoundedCache(4), []
    start = threading.Barrier(8)

    def add(n: int) -> None:
        start.wait()
        for i in range(200):
            cache.keep((n, i), i)
            sizes.append(len(cache))

    threads = [threading.Thread(target=add, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sizes) == 1600
    assert max(sizes) == 4


def test_a_value_is_made_once_also_where_it_is_none() -> None:
    cache, made = BoundedCache(2), []
    for _ in range(3):
        assert make_once(cache, "key", torch.device("cpu"), lambda: made.append(1)) is None
    assert made == [1]
    assert cache == {"key": CacheEntry(None, 0, None)}


def test_what_another_thread_makes_may_keep_values_and_make_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a thread waits for another that makes the value; that one must not wait for its locks."""
    monkeypatch.setattr(caching, "make_to_stay", lambda device, make: caching.in_another_thread(make))
    cache, device = BoundedCache(9), torch.device("cpu")

    def make() -> str:
        cache.keep("kept", 1)
        return "made of " + make_once(cache, "part", device, lambda: cache.keep("in part", "a part"))

    made: list[str] = []
    worker = threading.Thread(
        target=lambda: made.append(make_once(cache, "whole", device, make)), daemon=True
    )
    worker.start()
    worker.join(60)
    assert made == ["made of a part"]
    assert set(cache) == {"kept", "in part", "part", "whole"}
    assert not caching.LOCK.is_held()


def test_a_lent_lock_keeps_other_threads_out() -> None:
    entered: list[str] = []

    def other() -> None:
        with caching.LOCK:
            entered.append("other")

    def helper() -> None:
        with caching.LOCK:
            bystander.start()
            bystander.join(0.2)
            entered.append("helper")
        assert bystander.is_alive()

    bystander = threading.Thread(target=other, daemon=True)
    with caching.LOCK:
        caching.in_another_thread(helper)
        assert entered == ["helper"]
    bystander.join(60)
    assert entered == ["helper", "other"]


def test_what_replays_change_is_made_once_in_a_capture_and_anew_outside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache, made = BoundedCache(8), []
    is_capturing, stream = [False], [1]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: is_capturing[0])
    monkeypatch.setattr(_torch_internals, "current_raw_stream", lambda index: stream[0])

    def get() -> int:
        return make_in_graph(cache, "key", torch.device("cuda", 0), lambda: made.append(1) or len(made))

    assert [get(), get()] == [1, 2]
    is_capturing[0] = True
    assert [get(), get()] == [3, 3]
    stream[0] = 2  # which has not waited for the first
    assert [get(), get()] == [4, 4]
    is_capturing[0] = False
    assert get() == 5


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers of Unix")
def test_ctrl_c_waits_for_the_thread_that_has_the_lock() -> None:
    ended: list[bool] = []

    def helper() -> None:
        with caching.LOCK:
            time.sleep(0.5)
            ended.append(True)

    def press(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, press)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt), caching.LOCK:
            caching.in_another_thread(helper)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert ended == [True]
