"""Whom a node has met before is known after its next start."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock

from dimnode.state.memory_journal import MemoryJournal
from dimnode.swarm.acquaintances import KEY, AcquaintanceSettings, keep, merge, recall
from p2p.memory import MemoryHub
from tests.support.swarm import start_nodes

PEERS = ("p1", "p2", "p3")


@pytest.fixture
async def hub() -> AsyncIterator[MemoryHub]:
    async with MemoryHub(seed=1, delay=(0.001, 0.02)) as made:
        yield made


async def test_members_are_written_down_and_stay_when_they_are_gone(
    autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery
) -> None:
    nodes = await start_nodes(hub, nursery, PEERS)
    journal = MemoryJournal()
    for peer, node in nodes.items():
        node.registry.announce(addresses=(f"/ip4/192.0.2.1/tcp/1/p2p/{peer}",))
    nursery.start_soon(keep, journal, nodes["p1"].registry, "p1", await recall(journal), AcquaintanceSettings(pause=1))
    await trio.sleep(5)
    known = await recall(journal)
    assert known == {p: (f"/ip4/192.0.2.1/tcp/1/p2p/{p}",) for p in ("p2", "p3")}
    nodes["p2"].crash()
    await trio.sleep(60)
    assert await recall(journal) == known


async def test_what_cannot_be_read_is_as_nothing() -> None:
    journal = MemoryJournal()
    assert await recall(journal) == {}
    await journal.put(KEY, b"\xffnoise")
    assert await recall(journal) == {}


def test_those_who_are_there_come_first_and_the_number_is_bounded() -> None:
    present = {f"p{i}": ("a",) for i in range(3)}
    before = {"p1": ("old",), "q1": ("b",), "q2": ("c",)}
    assert merge(present, before, 4) == {"p0": ("a",), "p1": ("a",), "p2": ("a",), "q1": ("b",)}
    assert len(merge(present, before, 2)) == 2
