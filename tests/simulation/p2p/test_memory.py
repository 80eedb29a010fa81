"""The in-memory network keeps the contract, and its faults are what they say."""

from __future__ import annotations

import contextvars
from collections.abc import AsyncGenerator

import pytest
import trio
import trio.testing

from p2p.api import PeerEvent, RequestTimeout, Unreachable
from p2p.memory import LinkFaults, MemoryHub, MemoryNetwork
from tests.support.network_contract import NetworkContract, Pair, accept, echo


class TestContract(NetworkContract):
    @pytest.fixture
    async def pair(self) -> AsyncGenerator[Pair, None]:
        async with MemoryHub(seed=1, delay=(0.001, 0.01)) as hub:
            a, b = hub.network("12D3KooW-a"), hub.network("12D3KooW-b")
            hub.connect_all()
            yield a, b


def swarm(hub: MemoryHub, size: int) -> list[MemoryNetwork]:
    networks = [hub.network(f"node-{number}") for number in range(size)]
    hub.connect_all()
    return networks


async def test_loss_is_seeded_and_only_of_gossip(autojump_clock: trio.testing.MockClock) -> None:
    async def run(seed: int) -> list[bytes]:
        async with MemoryHub(seed=seed, loss=0.5, delay=(0.0, 0.5)) as hub:
            a, b = swarm(hub, 2)
            b.serve("echo", echo)
            inbox = b.subscribe("t", accept)
            for number in range(100):
                await a.publish("t", bytes([number]))
                assert await a.request(b.peer_id, "echo", b"x", timeout=5) == b"x"
            await trio.sleep(1)
            return [inbox.receive_nowait().data for _ in range(inbox.statistics().current_buffer_used)]

    first, second, other = await run(7), await run(7), await run(8)
    assert first == second != other
    assert 25 < len(first) < 75


async def test_a_partition_divides_and_heals(autojump_clock: trio.testing.MockClock) -> None:
    async with MemoryHub(seed=1) as hub:
        a, b, c, d = swarm(hub, 4)
        events = a.peer_events()
        for network in (b, c, d):
            network.serve("echo", echo)
        inboxes = {network.peer_id: network.subscribe("t", accept) for network in (b, c, d)}
        hub.partition([a.peer_id, b.peer_id], [c.peer_id, d.peer_id])
        assert a.peers() == {b.peer_id}
        await a.publish("t", b"divided")
        await trio.sleep(1)
        assert [inboxes[n.peer_id].statistics().current_buffer_used for n in (b, c, d)] == [1, 0, 0]
        with pytest.raises(Unreachable):
            await a.request(c.peer_id, "echo", b"", timeout=5)
        hub.heal()
        assert await a.request(c.peer_id, "echo", b"healed", timeout=5) == b"healed"
        assert {events.receive_nowait() for _ in range(4)} == {
            PeerEvent(peer, connected) for peer in (c.peer_id, d.peer_id) for connected in (False, True)
        }


async def test_gossip_travels_over_others(autojump_clock: trio.testing.MockClock) -> None:
    async with MemoryHub(seed=1) as hub:
        a, b, c = (hub.network(name) for name in "abc")
        hub.link("a", "b")
        hub.link("b", "c")
        inbox = c.subscribe("t", accept)
        await a.publish("t", b"nobody between listens")
        b.subscribe("t", accept)
        await a.publish("t", b"through b")
        await trio.sleep(1)
        assert inbox.receive_nowait().data == b"through b"
        assert inbox.statistics().current_buffer_used == 0


async def test_a_one_way_cut_is_not_noticed(autojump_clock: trio.testing.MockClock) -> None:
    async with MemoryHub(seed=1) as hub:
        a, b = swarm(hub, 2)
        calls: list[bytes] = []

        async def note(peer: str, data: bytes) -> bytes:
            calls.append(data)
            return b""

        a.serve("note", note)
        b.serve("note", note)
        hub.cut("node-0", "node-1")
        with pytest.raises(RequestTimeout):
            await a.request(b.peer_id, "note", b"lost on the way", timeout=3)
        with pytest.raises(RequestTimeout):
            await b.request(a.peer_id, "note", b"its answer is lost", timeout=3)
        assert calls == [b"its answer is lost"]
        assert a.peers() == {b.peer_id}


async def test_a_crash_ends_what_was_under_way_and_the_id_may_return(autojump_clock: trio.testing.MockClock) -> None:
    async with MemoryHub(seed=1) as hub:
        a, b = swarm(hub, 2)
        started = trio.Event()

        async def slow(peer: str, data: bytes) -> bytes:
            started.set()
            await trio.sleep_forever()
            return b""

        async def hold(peer: str, stream: trio.abc.HalfCloseableStream) -> None:
            await trio.sleep_forever()

        b.serve("slow", slow)
        b.serve_tunnel("hold", hold)
        tunnel = await a.open_tunnel(b.peer_id, "hold", timeout=5)

        async def ask() -> None:
            with pytest.raises(Unreachable):
                await a.request(b.peer_id, "slow", b"", timeout=100)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await started.wait()
            hub.crash(b.peer_id)
        with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
            await tunnel.send_all(b"anyone?")
        assert a.peers() == frozenset()
        with pytest.raises(Unreachable):
            await a.request(b.peer_id, "slow", b"", timeout=5)
        again = hub.network(b.peer_id)
        again.serve("echo", echo)
        assert await a.request(b.peer_id, "echo", b"back", timeout=5) == b"back"


async def test_noticing_may_take_time(autojump_clock: trio.testing.MockClock) -> None:
    async with MemoryHub(seed=1, notice=4.0) as hub:
        a, b = swarm(hub, 2)
        hub.partition([a.peer_id], [b.peer_id])
        await trio.sleep(3.9)
        assert a.peers() == {b.peer_id}
        await trio.sleep(0.2)
        assert a.peers() == frozenset()


async def test_a_thousand_nodes_take_little_time(autojump_clock: trio.testing.MockClock) -> None:
    async with MemoryHub(seed=1, delay=(0.01, 0.1)) as hub:
        networks = [hub.network(f"n{number}") for number in range(1000)]
        for number in range(1000):
            for step in (1, 10, 100):
                hub.link(f"n{number}", f"n{(number + step) % 1000}")
        inboxes = [network.subscribe("t", accept) for network in networks]
        await networks[0].publish("t", b"hello")
        await trio.sleep(1)
        assert sum(inbox.statistics().current_buffer_used for inbox in inboxes) == 999


async def test_gossip_may_come_twice_and_out_of_order(autojump_clock: trio.testing.MockClock) -> None:
    async with MemoryHub(seed=3, delay=(0.0, 1.0)) as hub:
        a, b = swarm(hub, 2)
        hub.faults.duplicates = 0.5
        inbox = b.subscribe("t", accept)
        for number in range(40):
            await a.publish("t", bytes([number]))
        await trio.sleep(2)
        seen = [inbox.receive_nowait().data for _ in range(inbox.statistics().current_buffer_used)]
    assert 50 < len(seen) < 70
    assert len(set(seen)) == 40
    assert list(dict.fromkeys(seen)) != sorted(set(seen))


async def test_requests_and_their_answers_may_get_lost_and_some_take_long(autojump_clock: trio.testing.MockClock) -> None:
    async with MemoryHub(seed=3) as hub:
        a, b = swarm(hub, 2)
        acted = 0

        async def act(peer: str, data: bytes) -> bytes:
            nonlocal acted
            await trio.lowlevel.checkpoint()
            acted += 1
            return b""

        b.serve("act", act)
        hub.degrade(a.peer_id, b.peer_id, LinkFaults(lost_requests=0.3))
        hub.degrade(b.peer_id, a.peer_id, LinkFaults(lost_requests=0.3))
        answered = 0
        for _ in range(100):
            try:
                await a.request(b.peer_id, "act", b"", timeout=1)
                answered += 1
            except RequestTimeout:
                continue
        assert 30 < answered < acted < 90
        hub.heal()
        hub.faults = LinkFaults(slow=1.0, slow_delay=(2.0, 3.0))
        began = trio.current_time()
        await a.request(b.peer_id, "act", b"", timeout=10)
        assert 4 <= trio.current_time() - began <= 6


async def test_a_paused_node_answers_when_it_is_back(autojump_clock: trio.testing.MockClock) -> None:
    async with MemoryHub(seed=1) as hub:
        a, b = swarm(hub, 2)
        b.serve("echo", echo)
        inbox = b.subscribe("t", accept)
        hub.pause(b.peer_id)
        await a.publish("t", b"kept")
        with pytest.raises(RequestTimeout):
            await a.request(b.peer_id, "echo", b"too long", timeout=1)
        assert inbox.statistics().current_buffer_used == 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_resume_later, hub, b.peer_id)
            assert await a.request(b.peer_id, "echo", b"late", timeout=5) == b"late"
        assert trio.current_time() > 2
        assert inbox.receive_nowait().data == b"kept"


async def _resume_later(hub: MemoryHub, peer: str) -> None:
    await trio.sleep(2)
    hub.resume(peer)


async def test_a_link_that_is_silent_one_way_is_closed_after_a_while(autojump_clock: trio.testing.MockClock) -> None:
    async with MemoryHub(seed=1, health=4.0) as hub:
        a, b, c = swarm(hub, 3)
        hub.cut(a.peer_id, b.peer_id)
        hub.pause(c.peer_id)
        await trio.sleep(3)
        assert a.peers() == {b.peer_id, c.peer_id}
        await trio.sleep(2)
        assert a.peers() == b.peers() == frozenset()
        with pytest.raises(Unreachable):
            await b.request(a.peer_id, "echo", b"", timeout=1)
        hub.resume(c.peer_id)
        assert a.peers() == {c.peer_id}
        hub.heal()
        assert a.peers() == {b.peer_id, c.peer_id}


async def test_handlers_run_in_the_context_of_their_node(autojump_clock: trio.testing.MockClock) -> None:
    whose = contextvars.ContextVar("whose", default="nobody's")

    async def tell(peer: str, data: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        return whose.get().encode()

    async with MemoryHub(seed=1) as hub:
        a = hub.network("a")
        token = whose.set("b's")
        hub.network("b").serve("tell", tell)
        whose.reset(token)
        hub.connect_all()
        assert await a.request("b", "tell", b"", timeout=1) == b"b's"
