"""The later steps of a chain are warmed while the first one runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from dimnode.errors import NotFound, Unavailable
from dimnode.orchestrator.selection import Choice
from dimnode.orchestrator.settings import OrchestratorSettings
from dimnode.orchestrator.warming import WarmAhead, later_tasks
from patterns.api import Plan, Source, TaskPlan


def task(key: str, model: str, *after: str) -> TaskPlan:
    sources = tuple(Source(kind="task", ref=a) for a in after) or (Source(kind="client"),)
    return TaskPlan(key=key, round=0, model=model, sources=sources)


CHAIN = Plan((task("1", "a"), task("2", "b", "1"), task("3", "c", "2"), task("4", "b", "3"), task("5", "a", "4")))


@dataclass
class Fleet:
    """One node for everything: models, placement and the daemon's client."""

    warm: set[str] = field(default_factory=set)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    fail: bool = False
    answer: trio.Event = field(default_factory=trio.Event)

    def resolve(self, name: str) -> Any:
        if name == "unknown":
            raise NotFound(name)
        return SimpleNamespace(cid=f"cid-{name}", manifest_cid=f"man-{name}")

    async def manifest(self, ref: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return ref

    def choose(self, plan: TaskPlan, ref: Any, manifest: Any, budget: float | None) -> Choice:
        return Choice(None, "nobody") if plan.model == "nowhere" else Choice("node")

    def has_warm(self, peer: str, cid: str) -> bool:
        return cid in self.warm

    def providers(self, ref: Any, producers: Any) -> tuple[str, ...]:
        return ("holder",)

    async def prewarm(self, peer: str, cid: str, manifest: str, providers: Sequence[str]) -> bool:
        self.asked.append((peer, cid, manifest))
        if self.fail:
            raise Unavailable("gone")
        await self.answer.wait()
        return True


async def begin(fleet: Any, plan: Plan, times: int = 1, **changes: Any) -> None:
    ahead = WarmAhead(fleet, fleet, fleet, OrchestratorSettings(**changes))
    async with trio.open_nursery() as nursery:
        for _ in range(times):
            ahead.begin(nursery, plan)
        await trio.testing.wait_all_tasks_blocked()
        assert len(fleet.asked) <= 2 * times
        fleet.answer.set()


def test_each_later_model_once_and_none_that_runs_already() -> None:
    assert [t.key for t in later_tasks(CHAIN)] == ["2", "3"]
    assert later_tasks(Plan((task("1", "a"), task("2", "b")))) == ()


async def test_later_steps_are_warmed_where_they_will_probably_run() -> None:
    fleet = Fleet(warm={"cid-c"})
    await begin(fleet, CHAIN)
    assert fleet.asked == [("node", "cid-b", "man-b")]


async def test_many_jobs_of_one_kind_ask_once() -> None:
    fleet = Fleet()
    await begin(fleet, CHAIN, times=20)
    assert sorted(cid for _, cid, _ in fleet.asked) == ["cid-b", "cid-c"]


@pytest.mark.parametrize("model", ["unknown", "nowhere"])
async def test_what_cannot_be_warmed_is_left_alone(model: str) -> None:
    fleet = Fleet(fail=True)
    await begin(fleet, Plan((task("1", "a"), task("2", model, "1"), task("3", "b", "2"))))
    assert [cid for _, cid, _ in fleet.asked] == ["cid-b"]


async def test_it_can_be_switched_off_and_is_bounded() -> None:
    fleet = Fleet()
    await begin(fleet, CHAIN, warm_ahead=False)
    assert fleet.asked == []
    fleet = Fleet()
    many = Plan((task("0", "m"), *(task(str(i), f"m{i}", "0") for i in range(1, 30))))
    await begin(fleet, many, warm_most=3)
    assert len(fleet.asked) == 3
