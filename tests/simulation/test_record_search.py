"""A record that is not here is looked for at every node that may have it; nobody is told that a job does not exist while one of these is silent."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock

from dimnode.records.search import Found, RecordSearch, SearchSettings
from tests.support import entries as e
from tests.support.entries import RULES
from tests.support.record_nodes import RecordSwarm, record_swarm

PEERS = [f"p{i}" for i in range(6)]


@pytest.fixture
async def swarm(autojump_clock: MockClock) -> AsyncIterator[RecordSwarm]:
    async with record_swarm(PEERS) as made:
        await made.nodes["p5"].table.merge(e.JOB, [e.core(e.JOB), e.claim(1, "p5")])
        yield made


async def look(swarm: RecordSwarm, job: str = e.JOB) -> Found:
    here = swarm.nodes["p0"]
    search = RecordSearch(here.network, here.table, swarm.members, SearchSettings(at_once=2), rules=RULES)  # type: ignore[arg-type]
    began = trio.current_time()
    found = await search(job)
    assert trio.current_time() - began < 10
    return found


async def test_it_is_found_also_at_a_suspect(autojump_clock: MockClock, swarm: RecordSwarm) -> None:
    swarm.members.states["p5"] = "suspect"
    assert await look(swarm) is Found.HERE
    assert swarm.nodes["p0"].table.holds(e.JOB)


async def test_what_all_say_they_do_not_have_does_not_exist(autojump_clock: MockClock, swarm: RecordSwarm) -> None:
    assert await look(swarm, "job-nobody") is Found.NOWHERE


@pytest.mark.parametrize("state", ["alive", "suspect", "dead"])
async def test_one_that_is_silent_may_have_it(autojump_clock: MockClock, swarm: RecordSwarm, state: str) -> None:
    swarm.hub.partition(["p5"], PEERS[:5])
    swarm.members.states["p5"] = state  # type: ignore[assignment]
    assert await look(swarm) is Found.UNKNOWN
    swarm.hub.heal()
    swarm.hub.connect_all()
    swarm.members.states["p5"] = "alive"
    assert await look(swarm) is Found.HERE


async def test_one_that_left_handed_its_records_over(autojump_clock: MockClock, swarm: RecordSwarm) -> None:
    swarm.crash("p5")
    swarm.members.leaving.add("p5")
    assert await look(swarm) is Found.NOWHERE
