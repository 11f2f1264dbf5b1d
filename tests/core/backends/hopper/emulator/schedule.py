"""Partitions of programs as threads of which one runs at a time; who comes next is drawn, and repeatable.

So a deadlock is known at once: no partition can go on, and no copy is under way.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

HERE = threading.local()
MOST_PARTITIONS = 16


class EmulatorError(Exception):
    """A kernel did what it must not do."""


class Deadlock(EmulatorError):
    """All partitions wait."""


class Stopped(BaseException):
    """Another partition has failed."""


class Actor:
    """A partition of a program."""

    def __init__(self, name: str, program: Any, num_warps: int) -> None:
        self.name, self.program, self.num_warps = name, program, num_warps
        self.baton = threading.Semaphore(0)
        self.ready: Callable[[], bool] | None = None
        self.waits_for: Callable[[], str] = str
        self.done = False
        self.products: list[Any] = []  # in flight, the oldest first
        self.stores: list[Any] = []  # copies to global memory whose memory may still be read
        self.under_way: list[Any] = []  # those of which nobody has waited until they are there
        self.fenced = 0  # when its last fence was
        # a vector clock: up to which time of every partition of the program all has happened before
        self.place = program.n_partitions
        program.n_partitions += 1
        self.before = np.zeros(MOST_PARTITIONS, np.int64)
        self.before[self.place] = 1
        self.loads: list[Any] = []  # since its last release

    @property
    def time(self) -> Any:
        return self.before[self.place]

    def release(self) -> Any:
        """What has happened before now, for those who wait for it; what follows is later."""
        for memory, where in self.loads:
            memory.note_load(where, self)
        self.loads.clear()
        made = self.before.copy()
        self.before[self.place] += 1
        return made

    def acquire(self, before: Any) -> None:
        """All that has happened before what was waited for, has happened before what follows."""
        np.maximum(self.before, before, out=self.before)

    def __str__(self) -> str:
        return f"program {self.program.index}, {self.name}"


class Scheduler:
    """Runs actors; `delay` is how likely a copy stays under way, and `preempt` that another actor goes on, at every barrier."""

    def __init__(self, seed: int, delay: float, preempt: float, seconds: float) -> None:
        self.random = random.Random(seed)
        self.delay, self.preempt = delay, preempt
        self.end = time.monotonic() + seconds
        self.seconds = seconds
        self.actors: list[Actor] = []
        self.copies: list[Any] = []  # under way
        self.clock = itertools.count(1)
        self.failure: BaseException | None = None
        self.failed: Actor | None = None
        self.finished = threading.Event()
        self.threads: list[threading.Thread] = []

    def now(self) -> int:
        return next(self.clock)

    def start(self, actor: Actor, function: Callable[[], Any]) -> None:
        """Let an actor run once it is its turn."""
        self.actors.append(actor)

        def body() -> None:
            actor.baton.acquire()
            HERE.actor, HERE.scheduler = actor, self
            try:
                if self.failure is None:
                    with np.errstate(all="ignore"):
                        function()
                    if actor.products:
                        raise EmulatorError("it ends with products in flight: warpgroup_mma_wait is missing")
                    if actor.stores:
                        raise EmulatorError(
                            "it ends with stores whose memory is still read: tma.store_wait is missing"
                        )
            except Stopped:
                pass
            except BaseException as error:
                if self.failure is None:
                    self.failure, self.failed = error, actor
            actor.done = True
            self.hand_on(actor)

        thread = threading.Thread(target=body, daemon=True)
        self.threads.append(thread)
        thread.start()

    def run(self) -> None:
        """Run until all actors are done."""
        self.actors[0].baton.release()
        self.finished.wait()
        for thread in self.threads:
            thread.join()
        HERE.scheduler = self
        while self.copies and self.failure is None:
            self.arrive(0)
        self.copies.clear()
        if self.failure is not None:
            where = "" if self.failed is None else f"{self.failed}: "
            error, text = self.failure, f"{type(self.failure).__name__}: {self.failure}"
            if isinstance(error, EmulatorError):
                raise type(error)(f"{where}{error}") from error
            raise EmulatorError(f"{where}{text}") from error

    def hand_on(self, actor: Actor) -> None:
        """Choose who goes on; returns when it is this actor."""
        following = self.choose()
        if following is actor and not actor.done:
            return
        if following is None:
            self.finished.set()
        else:
            following.baton.release()
        if not actor.done:
            actor.baton.acquire()
            if self.failure is not None:
                raise Stopped

    def choose(self) -> Actor | None:
        """The actor that goes on; None: all are done."""
        left = [actor for actor in self.actors if not actor.done]
        if not left:
            return None
        if self.failure is not None:
            return left[0]
        if time.monotonic() > self.end:
            self.failure = EmulatorError(f"not done after {self.seconds} s")
            return left[0]
        self.deliver()
        while True:
            able = [actor for actor in left if actor.ready is None or actor.ready()]
            if able:
                return self.random.choice(able)
            if not self.copies:
                waits = "\n".join(f"  {actor} waits for {actor.waits_for()}" for actor in left)
                self.failure = Deadlock(f"no partition can go on:\n{waits}")
                return left[0]
            self.arrive(self.random.randrange(len(self.copies)))

    def deliver(self) -> None:
        """Let some copies arrive, in any order."""
        for i in reversed(range(len(self.copies))):
            if self.random.random() >= self.delay:
                self.arrive(i)

    def arrive(self, i: int) -> None:
        copy = self.copies.pop(i)
        try:
            copy.arrive()
        except BaseException as error:
            if self.failure is None:
                self.failure, self.failed = error, copy.actor

    def wait(self, ready: Callable[[], bool], what: Callable[[], str]) -> None:
        """Let the current actor go on once `ready`."""
        actor = HERE.actor
        if ready() and self.random.random() >= self.preempt:
            return
        actor.ready, actor.waits_for = ready, what
        self.hand_on(actor)
        actor.ready = None
        if self.failure is not None:
            raise Stopped

    def pause(self) -> None:
        """Perhaps let another actor go on."""
        if self.random.random() < self.preempt:
            self.hand_on(HERE.actor)
            if self.failure is not None:
                raise Stopped


def current() -> Actor:
    """The partition that runs."""
    actor: Actor = HERE.actor
    return actor


def scheduler() -> Scheduler:
    made: Scheduler = HERE.scheduler
    return made
