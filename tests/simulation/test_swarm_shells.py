"""Registry and elector of several nodes over the in-memory network, on virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock

from dimnode.core.election import ElectionSettings
from dimnode.domain import codec
from dimnode.domain.node import Beat, Load
from dimnode.errors import ResourceExhausted
from dimnode.swarm import elector as elector_module
from dimnode.swarm import heartbeats
from dimnode.swarm.heartbeats import Exchange, SignedHeartbeat
from p2p.api import RemoteFault
from p2p.memory import MemoryHub
from tests.support.entries import FakeSigner
from tests.support.swarm import SwarmNode, heartbeat, model, start_nodes

PEERS = ("p1", "p2", "p3", "p4", "p5")


@pytest.fixture
async def hub() -> AsyncIterator[MemoryHub]:
    async with MemoryHub(seed=1, delay=(0.001, 0.02)) as made:
        yield made


def holders(nodes: dict[str, SwarmNode]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for peer, node in nodes.items():
        mine = node.elector.mine()
        if mine is not None:
            found.setdefault(mine.seat, []).append(peer)
    return found


def settled(nodes: dict[str, SwarmNode], seats: int = 3) -> bool:
    held = holders(nodes)
    return len(held) == min(seats, len(nodes)) and all(len(w) == 1 for w in held.values())


async def until(condition: object, limit: float) -> float:
    """Seconds until it holds; looks every 50 ms of virtual time."""
    assert callable(condition)
    start = trio.current_time()
    while not condition():
        assert trio.current_time() - start < limit, "took too long"
        await trio.sleep(0.05)
    return trio.current_time() - start


# --- the registry --------------------------------------------------------------------------------


async def test_everyone_knows_everyone_soon(autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery) -> None:
    nodes = await start_nodes(hub, nursery, PEERS)
    await until(lambda: all(len(n.registry.alive()) == 5 for n in nodes.values()), 2)
    assert nodes["p1"].registry.find("p3")[0].heartbeat.name == "name-of-p3"
    assert nodes["p1"].registry.find("name-of-p3") == nodes["p1"].registry.find("p3")
    assert nodes["p1"].registry.find("nobody") == ()


async def test_a_newcomer_learns_all_members_from_one_connection(autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery) -> None:
    hub.faults.loss = 1.0
    await start_nodes(hub, nursery, PEERS)
    await trio.sleep(2)
    late = SwarmNode(hub, "late")
    await nursery.start(late.run)
    await late.network.connect("/memory/p1/p2p/p1")
    await until(lambda: len(late.registry.alive()) == 6, 1)


async def test_a_crash_is_suspected_then_dead_and_wakes_who_waits(autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery) -> None:
    nodes = await start_nodes(hub, nursery, PEERS)
    registry = nodes["p1"].registry
    await until(lambda: len(registry.alive()) == 5, 2)
    nodes["p5"].crash()
    seen = registry.changed()
    with trio.fail_after(10):
        while registry.state("p5") != "dead":
            seen = await registry.wait_changed(seen)
    assert [v.state for v in registry.find("p5")] == ["dead"]
    assert len(registry.alive()) == 4


async def test_whoever_waits_for_a_node_to_be_gone_is_woken_when_it_is_dead(
    autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery
) -> None:
    nodes = await start_nodes(hub, nursery, PEERS)
    registry = nodes["p1"].registry
    await until(lambda: len(registry.alive()) == 5, 2)
    began = trio.current_time()
    async with trio.open_nursery() as waiters:
        waiters.start_soon(registry.wait_gone, "p2")
        waiters.start_soon(registry.wait_gone, "p2")
        nodes["p2"].crash()
    assert trio.current_time() - began < 10
    assert registry.state("p2") == "dead"
    await registry.wait_gone("p2")


async def test_a_restart_is_recognised_even_when_the_disk_forgot_the_count(
    autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery
) -> None:
    nodes = await start_nodes(hub, nursery, PEERS[:3], incarnation=7)
    await until(lambda: all(len(n.registry.alive()) == 3 for n in nodes.values()), 2)
    nodes["p3"].crash()
    again = SwarmNode(hub, "p3", boots=2, incarnation=1)
    await nursery.start(again.run)
    hub.connect_all()
    await until(lambda: nodes["p1"].registry.find("p3")[0].heartbeat.boot == "p3-2", 3)
    assert nodes["p1"].registry.find("p3")[0].heartbeat.incarnation == 8
    assert again.registry.statistics()["clone"] >= 1


async def test_changes_go_out_at_once_and_load_with_the_next_heartbeat(
    autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery
) -> None:
    nodes = await start_nodes(hub, nursery, PEERS)
    await trio.sleep(3.1)
    a, b = nodes["p1"].registry, nodes["p2"].registry
    sent = a.statistics()["sent"]
    a.announce(load=Load(running=1))
    await trio.sleep(0.01)
    assert a.statistics()["sent"] == sent
    a.announce(models=[model("m")], addresses=["/x"], daemon="h:1", cabinets=[])
    a.announce(models=[model("m")])
    await until(lambda: b.find("p1")[0].heartbeat.models == (model("m"),), 0.1)
    assert a.statistics()["sent"] == sent + 1
    assert b.find("p1")[0].heartbeat.load.running == 1
    a.announce(leaving=True)
    await until(lambda: b.find("p1") == (), 0.1)


async def test_a_suspected_node_speaks_up_after_a_broken_connection(
    autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery
) -> None:
    nodes = await start_nodes(hub, nursery, PEERS[:3])
    await trio.sleep(2)
    hub.partition(["p3"])
    await until(lambda: nodes["p1"].registry.state("p3") == "suspect", 4)
    hub.heal()
    await until(lambda: nodes["p1"].registry.state("p3") == "alive", 2)


async def test_hostile_heartbeats_do_no_harm_and_are_counted(autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery) -> None:
    nodes = await start_nodes(hub, nursery, ("p1", "p2"))
    mallory = hub.network("mallory")
    hub.connect_all()
    await trio.sleep(1)
    registry = nodes["p1"].registry
    sign = FakeSigner("mallory")
    genuine = heartbeats.sign(heartbeat("p2", seq=1), FakeSigner("p2"))
    for data in [
        b"\xff not cbor",
        b"0" * (heartbeats.MAX_BYTES + 1),
        codec.encode(SignedHeartbeat(b"\xff", "mallory", b"")),
        codec.encode(heartbeats.sign(heartbeat("p2", seq=99), sign)),
        codec.encode(SignedHeartbeat(codec.encode(heartbeat("mallory")), "mallory", b"bad")),
        codec.encode(heartbeats.sign(heartbeat("mallory", swarm="other"), sign)),
        codec.encode(heartbeats.sign(heartbeat("mallory", protocol=9), sign)),
        codec.encode(heartbeats.sign(heartbeat("mallory", interval=-1.0), sign)),
        codec.encode(genuine),
    ]:
        await mallory.publish(heartbeats.TOPIC, data)
    await trio.sleep(0.5)
    counts = registry.statistics()
    assert registry.find("mallory") == ()
    assert counts["malformed"] == 3
    assert counts["oversized"] == 1
    assert counts["foreign"] == 2
    assert counts["forged"] == 3
    assert len(registry.alive()) == 2
    for request in (b"junk", codec.encode(Exchange(heartbeats=())), codec.encode(Exchange(heartbeats=(genuine,)))):
        with pytest.raises(RemoteFault):
            await mallory.request("p1", heartbeats.METHOD, request, timeout=1)


async def test_a_replayed_or_rapid_member_changes_nothing(autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery) -> None:
    nodes = await start_nodes(hub, nursery, ("p1", "p2"))
    rapid = hub.network("rapid")
    hub.connect_all()
    await trio.sleep(1)
    hub.faults.delay = (0.0, 0.0)
    sign = FakeSigner("rapid")
    for seq in range(40):
        await rapid.publish(heartbeats.TOPIC, codec.encode(heartbeats.sign(heartbeat("rapid", seq=seq + 1), sign)))
    await trio.sleep(0.1)
    await rapid.publish(heartbeats.TOPIC, codec.encode(heartbeats.sign(heartbeat("rapid", seq=1), sign)))
    await trio.sleep(0.1)
    counts = nodes["p1"].registry.statistics()
    assert counts["rapid"] >= 25
    assert counts["stale"] >= 1


# --- the elector ---------------------------------------------------------------------------------


async def test_five_nodes_fill_three_seats_and_all_agree(autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery) -> None:
    nodes = await start_nodes(hub, nursery, PEERS)
    await until(lambda: settled(nodes), 10)
    await trio.sleep(3)
    want = {s: w[0] for s, w in holders(nodes).items()}
    for node in nodes.values():
        assert {s.seat: s.peer for s in node.elector.seats()} == want
        assert node.elector.term() >= 1


async def test_alone_a_node_holds_a_seat_at_once(autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery) -> None:
    node = SwarmNode(hub, "p1", start="alone")
    await nursery.start(node.run)
    with trio.fail_after(0.5):
        seat = await node.elector.wait_seat()
    assert await node.journal.get(elector_module.KEY) == str(seat.n).encode()


@pytest.mark.parametrize("seed", range(5))
async def test_a_killed_holder_is_replaced_and_the_other_seats_stay(autojump_clock: MockClock, seed: int) -> None:
    async with MemoryHub(seed=seed, loss=0.1, delay=(0.001, 0.05), notice=0.2) as hub, trio.open_nursery() as nursery:
        nodes = await start_nodes(hub, nursery, PEERS)
        await until(lambda: settled(nodes), 12)
        await trio.sleep(2)
        before = holders(nodes)
        victim = before.pop(1)[0]
        nodes.pop(victim).crash()
        assert await until(lambda: settled(nodes), 10) < 3
        assert {s: w for s, w in holders(nodes).items() if s != 1} == before
        nursery.cancel_scope.cancel()


async def test_a_restarted_node_never_uses_a_term_again(autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery) -> None:
    node = SwarmNode(hub, "p1", start="alone")
    await nursery.start(node.run)
    first = await node.elector.wait_seat()
    node.crash()
    again = SwarmNode(hub, "p1", boots=2, disk=node.journal.disk, start="alone")
    await nursery.start(again.run)
    assert (await again.elector.wait_seat()).n > first.n


async def test_release_lets_another_node_take_the_seat(autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery) -> None:
    nodes = await start_nodes(hub, nursery, PEERS[:2], election=ElectionSettings(orchestrators=1))
    await until(lambda: settled(nodes, 1), 10)
    await trio.sleep(1)
    holder, other = sorted(nodes.values(), key=lambda n: n.elector.mine() is None)
    seat = holder.elector.mine()
    assert seat is not None
    lost = trio.Event()

    async def wait() -> None:
        await holder.elector.wait_lost(seat)
        lost.set()

    nursery.start_soon(wait)
    await holder.elector.release()
    with trio.fail_after(4):
        await lost.wait()
        assert (await other.elector.wait_seat()).n > seat.n


async def test_the_advertised_address_reaches_the_others(autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery) -> None:
    nodes = await start_nodes(hub, nursery, PEERS[:2], election=ElectionSettings(orchestrators=1))
    await until(lambda: settled(nodes, 1), 10)
    holder, other = sorted(nodes.values(), key=lambda n: n.elector.mine() is None)
    holder.elector.advertise("127.0.0.1:50051", True)
    await until(lambda: [(s.grpc, s.local_only) for s in other.elector.seats()] == [("127.0.0.1:50051", True)], 2)


async def test_no_seat_without_a_disk_to_write_the_term(autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery) -> None:
    node = SwarmNode(hub, "p1", start="alone")
    node.journal.disk.full = True
    await nursery.start(node.run)
    await trio.sleep(5)
    assert node.elector.mine() is None
    with pytest.raises(ResourceExhausted):
        await node.journal.put("k", b"")
    node.journal.disk.full = False
    with trio.fail_after(5):
        await node.elector.wait_seat()


async def test_beats_of_strangers_and_liars_are_refused(autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery) -> None:
    node = SwarmNode(hub, "p1", start="alone")
    mallory = hub.network("mallory")
    hub.connect_all()
    with pytest.raises(RemoteFault):
        await mallory.request("p1", elector_module.METHOD, b"", timeout=1)
    await nursery.start(node.run)
    for data in (b"junk", b"0" * 300_000, codec.encode(Beat(peer="p2", boot="b", seq=1, n=1, heard=()))):
        with pytest.raises(RemoteFault):
            await mallory.request("p1", elector_module.METHOD, data, timeout=1)
    assert node.elector.statistics()["refused"] == 3


async def test_ineligible_nodes_watch_but_hold_nothing(autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery) -> None:
    watcher = SwarmNode(hub, "p9", eligible=False)
    await nursery.start(watcher.run)
    nodes = await start_nodes(hub, nursery, PEERS[:2])
    await until(lambda: settled(nodes), 12)
    await until(lambda: len(watcher.elector.seats()) == 2, 4)
    assert watcher.elector.mine() is None
    assert watcher.elector.statistics()["failed"] == 0


async def test_partition_and_healing(autojump_clock: MockClock, hub: MemoryHub, nursery: trio.Nursery) -> None:
    nodes = await start_nodes(hub, nursery, PEERS)
    await until(lambda: settled(nodes), 10)
    hub.partition(PEERS[:2])
    await trio.sleep(12)
    assert len(holders({p: nodes[p] for p in PEERS[:2]})) == 2
    assert len(holders({p: nodes[p] for p in PEERS[2:]})) == 3
    hub.heal()
    await until(lambda: settled(nodes), 10)
    await trio.sleep(5)
    assert settled(nodes)
