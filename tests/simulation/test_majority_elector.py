"""The elector of mode ``majority`` and the lists of voters, over the in-memory network and on virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from dimnode.clock import TrioClock
from dimnode.core.election_types import ElectionSettings
from dimnode.core.electorate import first, tag
from dimnode.domain import codec
from dimnode.domain.node import Seat
from dimnode.domain.voting import Poll, Promises, Vote
from dimnode.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from dimnode.security.electorate import sign_electorate
from dimnode.state.memory_journal import MemoryDisk, MemoryJournal
from dimnode.swarm.electorate import Electorates
from dimnode.swarm.majority_elector import KEY, METHOD, MajorityElector
from p2p.api import RemoteFault
from p2p.memory import MemoryHub
from tests.support.copies import FakeRegistry
from tests.support.entries import FakeSigner, fake_verify

RULES = ElectionSettings(mode="majority", orchestrators=1)
OPERATOR = "operator"


@pytest.fixture
async def hub() -> AsyncIterator[MemoryHub]:
    async with MemoryHub(seed=1, delay=(0.001, 0.02)) as made:
        yield made


class Node:
    """``signs``: the operator's key is here."""

    def __init__(self, hub: MemoryHub, peer: str, *, voters: Sequence[str] = (), signs: bool = False, boot: int = 1, **kw: Any) -> None:
        self.hub = hub
        self.peer = peer
        self.voters = voters
        self.network = hub.network(peer)
        self.journal = MemoryJournal(kw.get("disk"), sync=0.005)
        self.lists = Electorates(
            self.network, self.journal, TrioClock(), swarm="dim", operator=kw.get("operator", OPERATOR),
            signer=FakeSigner(OPERATOR) if signs else None, verify=fake_verify,
        )  # fmt: skip
        self.elector = MajorityElector(
            self.network, FakeRegistry(list(kw.get("members", ()))), self.journal, TrioClock(), self.lists, RULES, boot=f"{peer}-{boot}"
        )  # fmt: skip
        self.scope = trio.CancelScope()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with self.scope:
            listed = sign_electorate(first("dim", self.voters, OPERATOR), FakeSigner(OPERATOR)) if self.voters else None
            await self.lists.open(listed)
            async with trio.open_nursery() as nursery:
                await nursery.start(self.elector.run)
                task_status.started()

    def crash(self) -> MemoryDisk:
        self.hub.crash(self.peer)
        self.scope.cancel()
        return self.journal.crash().disk


async def start(hub: MemoryHub, nursery: trio.Nursery, *nodes: Node) -> dict[str, Node]:
    for node in nodes:
        await nursery.start(node.run)
    hub.connect_all()
    return {n.peer: n for n in nodes}


async def until(condition: Any, limit: float = 20) -> None:
    with trio.fail_after(limit):
        while not condition():
            await trio.sleep(0.05)


def three(hub: MemoryHub) -> list[Node]:
    return [Node(hub, p, voters=("a", "b", "c")) for p in "abc"]


def holder(nodes: dict[str, Node]) -> Node | None:
    return next((n for n in nodes.values() if n.elector.mine()), None)


async def test_one_holds_the_seat_and_all_see_its_address_and_load(
    autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery
) -> None:
    nodes = await start(hub, nursery, *three(hub))
    await until(lambda: holder(nodes))
    mine = holder(nodes)
    assert mine is not None
    mine.elector.advertise("h:1", False)
    mine.elector.tell_load(7)
    await until(lambda: all([(s.peer, s.grpc, s.jobs) for s in n.elector.seats()] == [(mine.peer, "h:1", 7)] for n in nodes.values()))
    assert all(n.elector.sees_majority() for n in nodes.values())


async def test_a_dead_holder_is_replaced_and_a_release_is_quick(autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery) -> None:
    nodes = await start(hub, nursery, *three(hub))
    await until(lambda: holder(nodes))
    victim = holder(nodes)
    assert victim is not None
    del nodes[victim.peer]
    victim.crash()
    await until(lambda: holder(nodes), 6)
    leaver = holder(nodes)
    assert leaver is not None
    seat = leaver.elector.mine()
    assert seat is not None
    await leaver.elector.release()
    await leaver.elector.wait_lost(seat)
    await until(lambda: holder(nodes) not in (None, leaver), 2)


async def test_a_cut_off_holder_leaves_its_seat_when_its_lease_is_over(
    autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery
) -> None:
    nodes = await start(hub, nursery, *three(hub))
    await until(lambda: holder(nodes))
    alone = holder(nodes)
    assert alone is not None
    seat = await alone.elector.wait_seat()
    hub.partition([alone.peer], [p for p in nodes if p != alone.peer])
    with trio.fail_after(RULES.lease):
        await alone.elector.wait_lost(seat)
    assert not alone.elector.sees_majority()
    await until(lambda: holder(nodes) not in (None, alone), 5)
    assert alone.elector.mine() is None


async def test_a_promise_is_on_the_disk_before_the_vote_leaves(autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery) -> None:
    nodes = await start(hub, nursery, Node(hub, "a", voters=("a", "z")))
    client = hub.network("z")
    hub.connect_all()
    voter = nodes["a"]
    listed = voter.lists.listed
    assert listed is not None
    ask = Seat(seat=0, n=9, peer="z", boot="1")
    poll = Poll(peer="z", boot="1", seq=1, n=9, version=1, tag=tag(listed), ask=ask, ballot=9)
    vote = codec.decode(await client.request("a", METHOD, codec.encode(poll), timeout=2), Vote)
    assert vote.granted
    stored = voter.journal.crash().disk.meta[KEY]
    assert [(s.seat, s.n, s.peer) for s in codec.decode(stored, Promises).seats] == [(0, 9, "z")]
    for garbage in (b"\xff", codec.encode(Poll(peer="y", boot="1", seq=1, n=0, version=1, tag=""))):
        with pytest.raises(RemoteFault):
            await client.request("a", METHOD, garbage, timeout=2)


async def test_a_full_disk_grants_nothing(autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery) -> None:
    node = Node(hub, "a", voters=("a",))
    await node.lists.open(sign_electorate(first("dim", ["a"], OPERATOR), FakeSigner(OPERATOR)))
    node.journal.disk.full = True
    node.voters = ()
    await nursery.start(node.run)
    await trio.sleep(5)
    assert node.elector.mine() is None
    node.journal.disk.full = False
    await until(lambda: node.elector.mine(), 10)


async def test_the_electorate_grows_and_shrinks_one_by_one_and_a_restart_remembers(
    autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery
) -> None:
    nodes = await start(hub, nursery, Node(hub, "a", voters=("a",), signs=True), Node(hub, "b"), Node(hub, "c"))
    a, b = nodes["a"].lists, nodes["b"].lists
    await until(lambda: all(n.lists.listed for n in nodes.values()))
    await a.add("b")
    with trio.fail_after(20):
        await a.add("c")
    assert (a.voters(), a.settled) == (("a", "b", "c"), True)
    await until(lambda: b.voters() == ("a", "b", "c") and b.settled)
    with pytest.raises(FailedPrecondition, match="already"):
        await a.add("c")
    with pytest.raises(NotFound):
        await a.remove("z")
    with pytest.raises(FailedPrecondition, match="key"):
        await b.remove("c")
    disk = nodes.pop("b").crash()
    again = Node(hub, "b", boot=2, disk=disk)
    nodes |= await start(hub, nursery, again)
    assert again.lists.voters() == ("a", "b", "c")
    with trio.fail_after(20):
        await a.remove("c")
    assert a.voters() == ("a", "b")


async def test_a_voter_that_does_not_answer_is_not_added(autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery) -> None:
    nodes = await start(hub, nursery, Node(hub, "a", voters=("a",), signs=True))
    with pytest.raises(Unavailable, match="does not answer"):
        await nodes["a"].lists.add("b")
    assert nodes["a"].lists.voters() == ("a",)


async def test_a_change_that_most_cannot_store_is_told_and_no_other_is_possible_before_it(
    autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery
) -> None:
    nodes = await start(hub, nursery, *[Node(hub, p, voters=("a", "b", "c"), signs=p == "a") for p in "abc"])
    nodes["b"].crash()
    nodes["c"].crash()
    for peer in ("b", "c"):
        with pytest.raises(Unavailable, match="not stored"):
            await nodes["a"].lists.remove(peer)
    assert nodes["a"].lists.listed is not None
    assert nodes["a"].lists.listed.version == 2


async def test_lists_that_the_operator_did_not_sign_change_nothing(
    autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery
) -> None:
    nodes = await start(hub, nursery, Node(hub, "a", voters=("a",)), Node(hub, "stranger", operator=None))
    lists = nodes["a"].lists
    forged = sign_electorate(first("dim", ["stranger"], "stranger"), FakeSigner("stranger"))
    with pytest.raises(InvalidArgument):
        await lists.adopt(forged)
    assert lists.voters() == ("a",)
    assert lists.signed is not None
    assert await nodes["stranger"].lists.adopt(lists.signed) is False, "without the operator's public key nothing is believed"
