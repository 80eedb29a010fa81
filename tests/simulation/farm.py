"""Runs simulations by seed, here or in worker processes; says how to run one again."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from dimnode.core.election_types import ElectionSettings
from tests.simulation.checks import Event, Violation, describe
from tests.simulation.walk import walk
from tests.simulation.world import World, WorldSettings, open_world
from tests.support.simulated_machine import simulate
from tests.support.simulated_node import NodeSettings

Play = Callable[[World], Awaitable[None]]
HASHES = "0"


@dataclass(frozen=True, slots=True)
class Run:
    """What is simulated: the random walk, or a scenario by its name."""

    seed: int
    nodes: int = 0
    """0: 5 to 9, by the seed."""
    scenario: str = ""
    mode: Literal["available", "majority"] = "available"
    """Of the random walk's elections."""

    @property
    def size(self) -> int:
        return self.nodes or 5 + self.seed % 5

    @property
    def command(self) -> str:
        more = (f" NODES={self.nodes}" if self.nodes else "") + (f" MODE={self.mode}" if self.mode != "available" else "")
        return f"make simulate SEED={self.seed}{more}" + (f" SCENARIO={self.scenario}" if self.scenario else "")


@dataclass(slots=True)
class Report:
    run: Run
    problem: str = ""
    trace: tuple[Event, ...] = ()
    seconds: float = 0.0
    """Processor time."""
    counts: Counter[str] = field(default_factory=Counter[str])

    def __str__(self) -> str:
        events = describe(self.problem, self.trace)
        return f"seed {self.run.seed}, {self.run.size} nodes {self.run.scenario}: {self.problem}\n\n{events}\n\nagain: {self.run.command}"


def play(seed: int, act: Play, settings: WorldSettings, trace: list[Event]) -> Counter[str]:
    """One simulation; what happened is put into ``trace``. Raises `Violation`."""
    counts: Counter[str] = Counter()

    async def main() -> None:
        async with open_world(seed, settings) as world:
            try:
                await act(world)
            finally:
                counts.update(world.summary())
                trace.extend(world.trace)

    simulate(seed, main)
    return counts


def perform(run: Run, *, keep: bool = False) -> Report:
    """``keep``: also what happened where nothing went wrong."""
    report = Report(run)
    began = time.process_time()
    trace: list[Event] = []
    try:
        report.counts = play(run.seed, *_part(run), trace)
    except BaseException as e:  # noqa: BLE001 - told to whoever asked for this run
        found = _violation(e)
        report.problem = found.what if found else "".join(traceback.format_exception(e))
        trace = list(found.trace) if found else trace
    if report.problem or keep:
        report.trace = tuple(trace)
    report.seconds = time.process_time() - began
    return report


def _violation(error: BaseException) -> Violation | None:
    if isinstance(error, Violation):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next((v for e in error.exceptions if (v := _violation(e)) is not None), None)
    return None


def _part(run: Run) -> tuple[Play, WorldSettings]:
    if run.scenario:
        from tests.simulation.scenarios import SCENARIOS

        return SCENARIOS[run.scenario]
    return walk, WorldSettings(nodes=run.size, node=NodeSettings(election=ElectionSettings(mode=run.mode)))


@contextmanager
def farm(workers: int | None = None) -> Generator[ProcessPoolExecutor]:
    """Worker processes in which hashes are the same each time. They are not measured for coverage, which takes too long."""
    kept = {name: os.environ.pop(name, None) for name in ("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG", "PYTHONHASHSEED")}
    os.environ["PYTHONHASHSEED"] = HASHES
    pool = ProcessPoolExecutor(workers or os.cpu_count() or 1, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        del os.environ["PYTHONHASHSEED"]
        os.environ.update({name: value for name, value in kept.items() if value is not None})


def perform_all(pool: ProcessPoolExecutor, runs: Iterable[Run], chunk: int = 4) -> Iterator[Report]:
    """As they get done."""
    todo = list(runs)
    futures: list[Future[list[Report]]] = [pool.submit(_several, todo[n : n + chunk]) for n in range(0, len(todo), chunk)]
    for done in as_completed(futures):
        yield from done.result()


def _several(runs: list[Run]) -> list[Report]:
    return [perform(run) for run in runs]


__all__ = ["Report", "Run", "farm", "perform", "perform_all", "play"]
