"""The elector's shell over the in-memory network, on virtual time: what it tells its own node."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock

from dimnode.core.election_types import ElectionSettings
from p2p.memory import MemoryHub
from tests.support.swarm import SwarmNode, start_nodes

PEERS = ("p1", "p2", "p3")


@pytest.fixture
async def hub() -> AsyncIterator[MemoryHub]:
    async with MemoryHub(seed=1, delay=(0.001, 0.02)) as made:
        yield made


def holders(node: SwarmNode) -> dict[int, str]:
    return {s.seat: s.peer for s in node.elector.seats()}


async def wait_holders(node: SwarmNode, count: int, limit: float = 15) -> None:
    with trio.fail_after(limit):
        seen = node.elector.changed()
        while len(holders(node)) != count:
            seen = await node.elector.wait_changed(seen)


async def test_the_number_of_jobs_travels_with_the_next_beat(autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery) -> None:
    nodes = await start_nodes(hub, nursery, PEERS[:2], election=ElectionSettings(orchestrators=1))
    for node in nodes.values():
        node.elector.tell_load(7)
    for node in nodes.values():
        await wait_holders(node, 1)
        assert [s.jobs for s in node.elector.seats()] == [7], "what was told before the seat was won counts, too"
    holder, other = sorted(nodes.values(), key=lambda n: n.elector.mine() is None)
    holder.elector.tell_load(41)
    assert [s.jobs for s in holder.elector.seats()] == [41]
    await trio.sleep(1)
    assert [s.jobs for s in other.elector.seats()] == [41]


async def test_every_change_of_the_holders_is_told_and_nothing_else(
    autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery
) -> None:
    nodes = await start_nodes(hub, nursery, PEERS)
    for node in nodes.values():
        await wait_holders(node, 3)
    watcher, victim = nodes["p1"].elector, nodes["p2"]
    seen = watcher.changed()
    victim.elector.tell_load(3)
    victim.elector.advertise("h:1", False)
    await trio.sleep(3)
    assert watcher.changed() == seen, "loads and addresses are no change of holders"
    victim.crash()
    with trio.fail_after(5):
        assert await watcher.wait_changed(seen) > seen
    assert sorted(holders(nodes["p1"]).values()) == ["p1", "p3"]
    seen = watcher.changed()
    again = SwarmNode(hub, "p2", boots=2, disk=victim.journal.disk)
    await nursery.start(again.run)
    hub.connect_all()
    with trio.fail_after(15):
        await watcher.wait_changed(seen)
    assert [s.boot for s in watcher.seats() if s.peer == "p2"] == ["p2-2"] == [again.elector.boot]


async def test_winning_and_releasing_are_changes(autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery) -> None:
    node = SwarmNode(hub, "p1", start="alone")
    before = node.elector.changed()
    await nursery.start(node.run)
    with trio.fail_after(2):
        won = await node.elector.wait_changed(before)
    assert node.elector.mine() is not None
    await node.elector.release()
    assert await node.elector.wait_changed(won) > won
    assert node.elector.seats() == ()


async def test_after_a_power_cut_of_all_the_first_to_come_back_claims_with_a_higher_term(
    autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery
) -> None:
    """Also if it never held a seat: it stored the term that it heard of, and its log does not show one term for two holders."""
    nodes = await start_nodes(hub, nursery, PEERS, election=ElectionSettings(orchestrators=1))
    for node in nodes.values():
        await wait_holders(node, 1)
    holder = next(n for n in nodes.values() if n.elector.mine() is not None)
    seat = holder.elector.mine()
    assert seat is not None
    await trio.sleep(1)
    for node in nodes.values():
        node.crash()
    for name in sorted(set(PEERS) - {seat.peer}):
        alone = SwarmNode(hub, name, boots=2, disk=nodes[name].journal.disk, start="alone")
        await nursery.start(alone.run)
        with trio.fail_after(5):
            while (claim := alone.elector.mine()) is None:
                await alone.elector.wait_changed(alone.elector.changed())
        assert claim.n > seat.n
        alone.crash()
