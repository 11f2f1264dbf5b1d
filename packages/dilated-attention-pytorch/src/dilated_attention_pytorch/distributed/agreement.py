"""Whether all ranks make the same call: they compare facts about it before the first block travels.

They meet in the store of their process group, not in a collective: a rank that is dead, late, in another collective or
at a call with other facts neither hangs the others nor is taken for one that agrees. A check is a round:

    rank r    reads the number of the round, writes its facts to ROUND/r and waits for the verdict
    rank 0    waits for the facts of all, compares them and writes the verdict, "all agree" or the message of the error

The store holds the number of the round, not each rank for itself, so ranks that made different numbers of checks meet
again. When the time is over any rank writes the verdict, with the ranks that are missing; the first verdict counts
for all. A rank that comes too late gets the error of the round that it missed.

What a group has agreed on it does not check again: every rank knows the same rounds, and so asks for the same checks,
whatever else it computes and its caches have dropped. Ranks that make different calls of those are not found out, unless
TORCH_DISTRIBUTED_DEBUG=DETAIL has every call compared, as it has torch compare every collective.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import _torch_internals
from ..caching import BoundedCache
from .config import DistributedSparseConfig
from .fingerprints import texts_of_tensors

if TYPE_CHECKING:  # torch may be built without it
    from torch.distributed.distributed_c10d import ProcessGroup, Store

AGREE, DIFFER, MISSING = "agree", "differ", "missing"  # kinds of verdicts
SLACK = 2.0  # seconds that the others give rank 0, which began to wait at another moment
SLICE = 5.0  # seconds that one request to the store may take: Ctrl-C works between requests
LONGEST = 100  # characters of a value in a message
MOST_FACTS, MOST_VALUES = 8, 4  # of a message
MOST_RUNS = 8  # of ranks that follow one another, of a value
MOST_AGREED = 2**14  # digests of facts that are remembered for each group
PLAIN = (str, int, float, bool, type(None), torch.dtype, torch.device)

NEVER_CAME = (
    "Every rank of the group has to make the same calls in the same order. These ranks may have raised an error of their "
    "own (see their output), ended, gone on to another call or collective, or reuse a plan that ranks made before while "
    "others were given another layout, length, dtype or setting; if they are only slow, raise agreement_timeout"
)


# Of each group, what it has agreed on: the digests of facts, the oldest first, alike on all ranks.
AGREED: weakref.WeakKeyDictionary[ProcessGroup, BoundedCache] = weakref.WeakKeyDictionary()
# Groups whose ranks may be in different exchanges, and would take the next one of this rank for its part in theirs.
BROKEN: weakref.WeakKeyDictionary[ProcessGroup, str] = weakref.WeakKeyDictionary()


def agreed_by(group: ProcessGroup) -> BoundedCache:
    """The digests of the facts on which a group agrees; none where every call is to be compared."""
    if _torch_internals.are_collectives_compared():
        return BoundedCache(1)
    found = AGREED.get(group)
    return found if found is not None else AGREED.setdefault(group, BoundedCache(MOST_AGREED))


def check_agreement(
    config: DistributedSparseConfig, facts: Mapping[str, object], timeout: float | None
) -> str:
    """Return once all ranks of the group have come here with the same facts; at once if they have before.

    Costs one read of the device if there are tensors among the facts. The first time also five short requests to the
    store of the process group, and on rank 0 a read of the facts of all ranks, some hundred bytes each.

    Args:
        config: has the group, the rank in it and its size.
        facts: values by the name that the message gives them: str, int, float, bool, None, dtypes, tuples of these, or
            tensors, of which dtype, shape and a fingerprint of the values are compared.
        timeout: seconds to wait for the others; None or 0: nothing is compared.

    Returns:
        The digest of the facts, a key of `agreed_by`; "" if nothing was compared.

    Raises:
        ValueError: some ranks have other facts; the same message on every rank says which.
        TimeoutError: some ranks did not come in time; the same message on every rank that came says which.
        RuntimeError: after a TimeoutError, and after an exchange that this rank did not finish, see `breaks_if_left`.
        TypeError: a fact is something else.
        torch.distributed.DistError: the store is gone, as its process has ended.
    """
    if not timeout or config.world_size == 1:
        return ""
    mine = json.dumps(texts_of(facts), sort_keys=True)
    digest = hashlib.sha256(mine.encode()).hexdigest()
    agreed = agreed_by(config.group)
    if config.group in BROKEN:
        raise RuntimeError(
            f"this process makes no more distributed calls with this group, as its ranks are no longer at the same one: "
            f"{BROKEN[config.group]}. End the job, or let all ranks make a new group and DistributedSparseConfig"
        )
    if digest not in agreed:
        store = _torch_internals.group_store(config.group, "agreement")
        of_world = torch.distributed.get_process_group_ranks(config.group)
        with breaks_if_left(config.group):
            Meeting(store, config.rank, of_world, timeout).hold(mine)
        agreed.keep(digest, None)
    return digest


def break_group(group: ProcessGroup, error: BaseException) -> None:
    """Let this process make no more calls with a group, because of an error."""
    BROKEN[group] = f"{type(error).__name__}: {error}"
    agreed_by(group).clear()  # so that calls known to be alike are checked, too


@contextlib.contextmanager
def breaks_if_left(group: ProcessGroup) -> Iterator[None]:
    """Around what ranks do together: one that leaves it with an error, and goes on, would take part in that of another call.

    A call that is refused, as all ranks refuse it, breaks nothing.
    """
    try:
        yield
    except (TypeError, ValueError):
        raise
    except BaseException as error:
        break_group(group, error)
        raise


class Meeting:
    """One check: where the ranks of a group meet, and until when."""

    def __init__(self, store: Store, rank: int, of_world: Sequence[int], timeout: float) -> None:
        self.store, self.rank = store, rank
        self.of_world = list(of_world)  # the rank of the world that each rank of the group is
        self.world_size = len(of_world)
        self.timeout = timeout
        self.deadline = time.monotonic() + timeout + (SLACK if rank else 0.0)

    def hold(self, mine: str) -> None:
        """Compare what this rank says with what the others say, and raise the verdict unless all agree."""
        number = self.store.add("round", 0)
        if number and self.missed(number - 1):
            self.store.set(f"{number - 1}/{self.rank}", mine)  # told once
            self.obey(self.read(f"{number - 1}/verdict"))
        self.store.set(f"{number}/{self.rank}", mine)
        verdict = self.of_all(number) if self.rank == 0 else self.of_rank_0(number)
        self.next_round(number)  # by every rank before it leaves this one, or it would meet the verdict again
        self.obey(verdict)
        self.store.delete_key(f"{number}/{self.rank}")  # nobody reads it after this verdict

    def missed(self, number: int) -> bool:
        """Whether the last round failed without this rank. Its verdict is there until all have come to the next."""
        key = f"{number}/verdict"
        if not self.store.check([key]) or self.read(key).startswith(AGREE):
            return False
        return not self.store.check([f"{number}/{self.rank}"])

    def of_all(self, number: int) -> str:
        """The verdict, on rank 0."""
        if not self.wait([self.key(number, rank) for rank in range(self.world_size)]):
            return self.without_some(number)
        if number:
            self.store.delete_key(f"{number - 1}/verdict")  # everyone who is here has read it
        said = self.said(number, range(self.world_size))
        if len(set(said.values())) > 1:
            return self.give(number, DIFFER, self.differences(said))
        return self.give(number, AGREE, "")

    def of_rank_0(self, number: int) -> str:
        """The verdict, on the other ranks."""
        if self.wait([f"{number}/verdict"]):
            return self.read(f"{number}/verdict")
        return self.without_some(number)

    def without_some(self, number: int) -> str:
        """The verdict when the time is over."""
        here = [rank for rank in range(self.world_size) if self.store.check([self.key(number, rank)])]
        missing = sorted(set(range(self.world_size)) - set(here))
        if missing:
            text = f"{ranks_as_text(missing)} did not come within {self.timeout:g} seconds to a call of {ranks_as_text(here)}"
        else:
            text = f"rank 0 came, but compared nothing within {self.timeout:g} seconds: it may have ended"
        said = self.said(number, here)
        more = (
            f". Those that came differ, too: {self.differences(said)}" if len(set(said.values())) > 1 else ""
        )
        return self.give(number, MISSING, f"{text}{more}. {NEVER_CAME}")

    def said(self, number: int, ranks: Iterable[int]) -> dict[int, str]:
        ranks = list(ranks)
        texts = self.store.multi_get([self.key(number, rank) for rank in ranks])
        return {rank: text.decode() for rank, text in zip(ranks, texts)}

    def differences(self, said: dict[int, str]) -> str:
        """The facts in which ranks differ, with the values and the ranks that have them."""
        facts = {rank: json.loads(text) for rank, text in said.items()}
        names = sorted({name for each in facts.values() for name in each})
        found = []
        for name in names:
            ranks_by_value: dict[str, list[int]] = {}
            for rank, each in facts.items():
                ranks_by_value.setdefault(each.get(name, "not given"), []).append(rank)
            if len(ranks_by_value) > 1:
                found.append(f"{name} is {values_as_text(ranks_by_value)}")
        if len(found) > MOST_FACTS:
            found[MOST_FACTS:] = [f"and {len(found) - MOST_FACTS} more"]
        return "; ".join(found)

    def give(self, number: int, kind: str, text: str) -> str:
        """The verdict that counts: this one, unless another rank gave one before."""
        if kind != AGREE and self.of_world != list(range(self.world_size)):
            text = f"{text} (ranks of a group, which are {ranks_as_text(self.of_world)} of the world)"
        given: bytes = self.store.compare_set(f"{number}/verdict", "", f"{kind}\n{text}")
        return given.decode()

    def next_round(self, number: int) -> None:
        self.store.compare_set("round", str(number), str(number + 1))

    def obey(self, verdict: str) -> None:
        kind, text = verdict.split("\n", 1)
        if kind == DIFFER:
            raise ValueError(
                f"the ranks of a distributed call must pass the same layout and settings, but {text}; pass every rank the "
                f"same. Nothing was exchanged"
            )
        if kind == MISSING:
            raise TimeoutError(text)

    def read(self, key: str) -> str:
        """The value of a key that is there, or about to be."""
        text: bytes = self.store.get(key)
        return text.decode()

    def key(self, number: int, rank: int) -> str:
        return f"{number}/{rank}"

    def wait(self, keys: list[str]) -> bool:
        """Whether all keys are there before the time is over."""
        while True:
            seconds = min(SLICE, max(0.01, self.deadline - time.monotonic()))
            began = time.monotonic()
            try:
                self.store.wait(keys, timedelta(seconds=seconds))
                return True
            except torch.distributed.DistNetworkError:
                raise
            except RuntimeError:  # each store has its own for a time that is over
                now = time.monotonic()
                if now - began < 0.9 * seconds:
                    raise
                if now >= self.deadline:
                    return False


def texts_of(facts: Mapping[str, object]) -> dict[str, str]:
    """Every fact as a short text; two are the same exactly when their facts are."""
    texts = texts_of_tensors({name: value for name, value in facts.items() if isinstance(value, Tensor)})
    for name, value in facts.items():
        if not isinstance(value, Tensor):
            check_plain(name, value)
            texts[name] = shortened(repr(value))
    return texts


def check_plain(name: str, value: object) -> None:
    if isinstance(value, tuple):
        for each in value:
            check_plain(name, each)
    elif not isinstance(value, PLAIN):
        raise TypeError(
            f"fact {name} must be a number, a str, a dtype, a tuple of these or a tensor, got {value!r}"
        )


def shortened(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    return f"{text[: LONGEST - 24]}... #{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def values_as_text(ranks_by_value: dict[str, list[int]]) -> str:
    """ "float16 on rank 1, float32 on ranks 0, 2-7": the rarest first, as that is most often the mistake."""
    rarest = sorted(ranks_by_value.items(), key=lambda item: len(item[1]))
    texts = [f"{value} on {ranks_as_text(ranks)}" for value, ranks in rarest]
    if len(texts) > MOST_VALUES:
        texts[MOST_VALUES:] = [f"{len(texts) - MOST_VALUES} other values elsewhere"]
    return ", ".join(texts)


def ranks_as_text(ranks: list[int]) -> str:
    """ "rank 3", or "ranks 0-2, 5"; ascending."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    if len(runs) > MOST_RUNS:
        texts[MOST_RUNS:] = [f"... ({len(ranks)} ranks)"]
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(texts)}"
