"""Computers of a simulation: virtual time, clocks that drift, power that goes off, a process that is stopped and goes on.

Within `determined` trio runs on virtual time and everything that happens follows from one seed: the order in which tasks
run, what `random` and `secrets` give. Every task knows the machine it runs on by a context variable, which tasks inherit:
while a machine is frozen none of its tasks runs, whatever wakes them. That is SIGSTOP; frozen for ever it is kill -9, after
which not even a ``finally`` runs. Replays are exact only if Python's hashes are fixed, too (``PYTHONHASHSEED=0``).
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import trio
from trio._core import _run as scheduler

T = TypeVar("T")
MACHINE: ContextVar[Machine | None] = ContextVar("machine", default=None)
MOST_STEPS = 500_000
"""Of tasks at one instant: more are an endless loop."""
EPOCH = 1_700_000_000.0


class Machine:
    """What a node's tasks run on."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.frozen = False
        self.dead = False
        """Frozen for ever."""
        self._held: list[trio.lowlevel.Task] = []

    def freeze(self) -> None:
        """Called by tasks of no machine."""
        self.frozen = True
        queue = scheduler.GLOBAL_RUN_CONTEXT.runner.runq
        for task in [t for t in queue if t.context.get(MACHINE) is self]:
            queue.remove(task)
            self._held.append(task)

    def thaw(self) -> None:
        """What became due meanwhile is done now."""
        self.frozen = False
        held, self._held = self._held, []
        scheduler.GLOBAL_RUN_CONTEXT.runner.runq.extend(held)

    def hold(self, task: trio.lowlevel.Task) -> None:
        self._held.append(task)


def living_tasks() -> int:
    """Those that are not on a dead machine."""
    machines = (task.context.get(MACHINE) for task in scheduler.GLOBAL_RUN_CONTEXT.runner.tasks)
    return sum(m is None or not m.dead for m in machines)


class VirtualClock(trio.abc.Clock):
    """When nothing can run the next deadline is now."""

    def __init__(self) -> None:
        self._now = 0.0
        self._stuck = 0
        self.steps = 0
        """Of tasks, since time last went on."""

    def start_clock(self) -> None:
        return

    def current_time(self) -> float:
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        if deadline == float("inf"):  # trio's own wakeup may be under way
            self._stuck += 1
            if self._stuck > 100:
                raise RuntimeError("every task of the simulation waits for another one")
            return 0.01
        self._stuck = 0
        self.steps = 0
        self._now = max(self._now, deadline)
        return 0.0


class DriftingClock:
    """`dimnode.ports.Clock` of one machine: a clock that started somewhere and runs a little fast or slow. What sleeps does
    so by the true time: only readings drift."""

    def __init__(self, rate: float = 1.0, start: float = 0.0, wrong: float = 0.0) -> None:
        """``start``: its reading at the beginning of the simulation; ``wrong``: seconds that its wall clock is ahead."""
        self._rate, self._start, self._wrong = rate, start, wrong

    def monotonic(self) -> float:
        return self._start + self._rate * trio.current_time()

    def wall(self) -> float:
        return EPOCH + self._wrong + self._rate * trio.current_time()


async def in_place(fn: Callable[..., T], *args: Any, **options: Any) -> T:
    """Instead of a thread: virtual time would not wait for one."""
    del options
    await trio.lowlevel.checkpoint()
    return fn(*args)


@contextmanager
def determined(seed: int) -> Generator[None]:
    """See above; for one `trio.run` with a `VirtualClock`."""
    chance = random.Random(seed)

    def hexadecimal(length: int = 32) -> str:
        return chance.randbytes(length).hex()

    reschedule = scheduler.Runner.reschedule

    def reschedule_on_machine(runner: Any, task: trio.lowlevel.Task, *value: Any) -> None:
        reschedule(runner, task, *value)
        machine = task.context.get(MACHINE)
        runner.clock.steps += 1
        if runner.clock.steps > MOST_STEPS:
            raise RuntimeError(f"time stands still: {task.name} on {machine.name if machine else 'no machine'} among others does not wait")
        if machine is not None and machine.frozen:
            machine.hold(runner.runq.pop())

    state = random.getstate()
    before = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, secrets.token_hex, trio.to_thread.run_sync
    random.seed(seed)
    scheduler._r.seed(seed)
    replaced: Any = scheduler
    replaced._ALLOW_DETERMINISTIC_SCHEDULING = True
    replaced.Runner.reschedule = reschedule_on_machine
    secrets.token_hex = hexadecimal
    trio.to_thread.run_sync = in_place
    try:
        yield
    finally:
        replaced._ALLOW_DETERMINISTIC_SCHEDULING, secrets.token_hex, trio.to_thread.run_sync = before
        replaced.Runner.reschedule = reschedule
        random.setstate(state)


def simulate(seed: int, main: Callable[[], Awaitable[T]]) -> T:
    """Runs ``main`` on virtual time, determined by ``seed``."""
    with determined(seed):
        return trio.run(main, clock=VirtualClock())
