"""The work API between nodes: mutual TLS, certificates that change while it runs, pooled connections."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import Any

import pytest
import trio
import trio.testing

from dimnode.domain.record import Ballot
from dimnode.errors import FailedPrecondition, InvalidArgument, PermissionDenied, ResourceExhausted, Unavailable
from dimnode.rpc.bridge import open_bridge
from dimnode.rpc.channels import ChannelSettings, resolver
from dimnode.rpc.daemon_server import NodeIdentity, serve_daemon
from dimnode.rpc.v1 import daemon_pb2
from dimnode.rpc.v1.daemon_pb2_grpc import DaemonStub
from dimnode.security.certificates import CertificateStore
from tests.support.rpc_fakes import FakeSwitch, FakeTasks, an_order
from tests.support.tls_nodes import tls_swarm


async def test_a_trusted_node_gives_a_task_and_gets_the_signed_attempt() -> None:
    async with tls_swarm() as swarm:
        a, b = await swarm.node("a"), await swarm.node("b", trusted=["a"])
        b.tasks.release.set()
        updates = [u async for u in a.client.run_task("b", an_order())]
        assert [u.stage for u in updates] == ["accepted", "finished"]
        assert updates[-1].entry is not None
        assert updates[-1].entry.payload == b"payload"
        assert b.tasks.callers == ["a"]
        assert b.tasks.orders == [an_order()]
        assert await a.client.cancel_task("b", "j", "t", 1, Ballot(1, "p", "b"))
        assert b.tasks.cancels == [("j", "t", 1, Ballot(1, "p", "b"))]
        assert await a.client.prewarm("b", "bafy", "bafm", ["a"])
        assert (await a.client.health("b"))["name"] == "name-b"
        assert await a.client.stats("b") == {"queue": {"length": 0}, "load": 0.5}
        assert a.pool.statistics().made == 1


async def test_only_trusted_nodes_give_tasks_and_any_known_one_sees_the_health() -> None:
    async with tls_swarm() as swarm:
        a, _ = await swarm.node("a"), await swarm.node("b", trusted=["c"])
        assert (await a.client.health("b"))["status"] == "ok"
        assert await a.client.stats("b")
        async with a.pool.channel("b") as channel:

            async def models() -> Any:
                return await channel.stub(DaemonStub).ListModels(daemon_pb2.ListModelsRequest(), timeout=5)

            assert (await swarm.bridge.aio(models())).models[0].size == 5
        with pytest.raises(PermissionDenied, match="seat"):
            await anext(a.client.run_task("b", an_order()))
        with pytest.raises(PermissionDenied):
            await a.client.cancel_task("b", "j", "t", 1, Ballot(1, "p", "b"))
        with pytest.raises(PermissionDenied):
            await a.client.prewarm("b", "x", "y", [])


async def test_a_caller_that_is_gone_before_its_call_is_looked_at_does_no_harm() -> None:
    """gRPC frees what it knows of a connection with the call: looked at later, it is memory of nobody's, and the process dies."""
    async with tls_swarm() as swarm:
        a, b = await swarm.node("a"), await swarm.node("b", trusted=["a"])
        async with a.pool.channel("b") as channel:

            async def give_up_soon() -> None:
                calls = [channel.stub(DaemonStub).Health(daemon_pb2.HealthRequest(), timeout=0.1) for _ in range(20)]
                await asyncio.gather(*calls, return_exceptions=True)

            await a.client.health("b")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(swarm.bridge.aio, give_up_soon())
                await trio.testing.wait_all_tasks_blocked()
                time.sleep(0.5)  # the event loop of the handlers stands still: all calls come, and end, before one is handled
        assert (await a.client.health("b"))["name"] == "name-b"
        assert b.tasks.orders == []


async def test_closing_the_updates_ends_the_stream_at_the_daemon() -> None:
    async with tls_swarm() as swarm:
        a, b = await swarm.node("a"), await swarm.node("b", trusted=["a"])
        async with aclosing(a.client.run_task("b", an_order())) as updates:
            assert (await anext(updates)).stage == "accepted"
            await b.tasks.started.wait()
        with trio.fail_after(5):
            await b.tasks.cancelled.wait()


async def test_the_own_node_is_called_without_a_network() -> None:
    async with tls_swarm() as swarm:
        a = await swarm.node("a")
        a.tasks.release.set()
        assert [u.stage async for u in a.client.run_task("a", an_order())] == ["accepted", "finished"]
        assert await a.client.cancel_task("a", "j", "t", 1, Ballot(1, "p", "b"))
        assert await a.client.prewarm("a", "x", "y", [])
        assert (await a.client.health("a"))["peer_id"] == "a"
        assert await a.client.stats("a") == a.tasks.stats()
        assert a.pool.statistics().made == 0


async def test_renewed_certificates_are_taken_live_on_either_side() -> None:
    async with tls_swarm() as swarm:
        a, b = await swarm.node("a"), await swarm.node("b")
        for renewed in (a, b, a, b):
            assert (await a.client.health("b"))["peer_id"] == "b"
            renewed.certificates.rotate()
        # More than two renewals apart, with nothing told in between.
        for _ in range(3):
            a.certificates.rotate()
            b.certificates.rotate()
        assert (await a.client.health("b"))["peer_id"] == "b"
        b.certificates.forget("a")
        assert (await a.client.health("b"))["peer_id"] == "b"


async def test_a_running_task_survives_a_renewal() -> None:
    async with tls_swarm() as swarm:
        a, b = await swarm.node("a"), await swarm.node("b", trusted=["a"])
        async with aclosing(a.client.run_task("b", an_order())) as updates:
            await anext(updates)
            a.certificates.rotate()
            b.certificates.rotate()
            await a.certificates.exchange("b")
            assert await a.client.health("b")
            assert a.pool.statistics().open == 2  # the old channel lives as long as its call
            b.tasks.release.set()
            assert (await anext(updates)).stage == "finished"
        assert a.pool.statistics().open == 1


async def test_a_node_that_came_back_elsewhere_is_found_again() -> None:
    async with tls_swarm() as swarm:
        a = await swarm.node("a")
        settings, identity = None, NodeIdentity("b", "b", lambda: 0.0)
        certificates = CertificateStore(swarm.switch.node("b"), time.time)
        certificates.serve()
        for _ in range(2):
            async with serve_daemon(swarm.bridge, FakeTasks(), certificates, lambda _: False, identity, "127.0.0.1:0", settings) as server:
                swarm.addresses["b"] = server.address
                assert (await a.client.health("b"))["peer_id"] == "b"
        with pytest.raises(Unavailable, match="cannot be reached"):
            await a.client.health("b")
        with pytest.raises(Unavailable, match="cannot be reached"):
            await anext(a.client.run_task("b", an_order()))


async def test_a_restart_with_a_new_identity_certificate_needs_no_help() -> None:
    async with tls_swarm() as swarm:
        a = await swarm.node("a")
        address = "127.0.0.1:0"
        for _ in range(2):  # each time another certificate, on the same port
            certificates = CertificateStore(swarm.switch.node("b"), time.time)
            certificates.serve()
            async with serve_daemon(
                swarm.bridge, FakeTasks(), certificates, lambda _: False, NodeIdentity("b", "b", lambda: 0.0), address
            ) as server:
                address = swarm.addresses["b"] = server.address
                assert (await a.client.health("b"))["peer_id"] == "b"


async def test_a_broken_connection_after_acceptance_is_unavailable_and_not_repeated() -> None:
    async with tls_swarm() as swarm:
        a = await swarm.node("a")
        tasks = FakeTasks()
        certificates = CertificateStore(swarm.switch.node("b"), time.time)
        certificates.serve()
        identity = NodeIdentity("b", "b", lambda: 0.0)
        async with serve_daemon(swarm.bridge, tasks, certificates, lambda _: True, identity, "127.0.0.1:0") as server:
            swarm.addresses["b"] = server.address
            updates = a.client.run_task("b", an_order())
            await anext(updates)
        with pytest.raises((Unavailable,)):
            await anext(updates)
        assert len(tasks.orders) == 1


async def test_refusals_of_the_daemon_keep_their_kind() -> None:
    class Full(FakeTasks):
        async def run_task(self, order, caller):
            raise ResourceExhausted("the queue is full", retry_after=3.0)
            yield

    async with tls_swarm() as swarm:
        a, b = await swarm.node("a"), await swarm.node("b", trusted=["a"])
        b.tasks.run_task = Full().run_task  # type: ignore[method-assign]
        with pytest.raises(ResourceExhausted) as e:
            await anext(a.client.run_task("b", an_order()))
        assert e.value.retry_after == 3.0
        with pytest.raises(InvalidArgument, match="order"):
            await anext(a.client.run_task("b", an_order(principal="x" * 200_000)))


async def test_the_pool_is_bounded_and_closes_what_is_idle() -> None:
    async with tls_swarm(ChannelSettings(max_channels=2, idle_close=0.4)) as swarm:
        a = await swarm.node("a")
        others = [await swarm.node(p, trusted=["a"]) for p in "bcd"]
        for other in others:
            await a.client.health(other.peer)
        assert a.pool.statistics().open == 2
        async with aclosing(a.client.run_task("b", an_order())) as one, aclosing(a.client.run_task("c", an_order())) as two:
            await anext(one)
            await anext(two)
            with pytest.raises(ResourceExhausted):
                await a.client.health("d")
        with trio.fail_after(10):
            while a.pool.statistics().open:
                await trio.sleep(0.05)
        assert (await a.client.health("d"))["peer_id"] == "d"
        a.pool.drop("d")
        assert a.pool.statistics().open == 0


async def test_concurrent_first_calls_make_one_channel() -> None:
    async with tls_swarm() as swarm:
        a, _ = await swarm.node("a"), await swarm.node("b")
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(a.client.health, "b")
        assert a.pool.statistics().made == 1
        assert swarm.switch.requests == 1


async def test_a_taken_port_names_the_setting() -> None:
    async with tls_swarm() as swarm:
        a = await swarm.node("a")
        with pytest.raises(FailedPrecondition, match=r"daemon\.listen"):
            await swarm.node("b", listen=a.server.address)


async def test_an_unknown_address_is_unavailable() -> None:
    async with tls_swarm() as swarm:
        a = await swarm.node("a")
        CertificateStore(swarm.switch.node("b"), time.time).serve()
        with pytest.raises(Unavailable):
            await a.client.health("b")
        with pytest.raises(Unavailable):
            await a.client.health("nobody")


def test_addresses_are_completed_by_where_the_peer_was_reached() -> None:
    said = {"a": "10.0.0.1:7", "b": ":7", "c": "0.0.0.0:7", "d": ":7", "e": None, "f": ":7"}
    resolve = resolver(said.get, {"b": "10.0.0.2", "c": "10.0.0.3", "f": "fe80::1"}.get)
    assert [resolve(p) for p in "abcf"] == ["10.0.0.1:7", "10.0.0.2:7", "10.0.0.3:7", "[fe80::1]:7"]
    for peer in "de":
        with pytest.raises(Unavailable):
            resolve(peer)


async def test_a_server_with_no_peer_yet_starts() -> None:
    async with open_bridge() as bridge:
        certificates = CertificateStore(FakeSwitch().node("a"), time.time)
        async with serve_daemon(
            bridge, FakeTasks(), certificates, lambda _: True, NodeIdentity("a", "a", lambda: 0.0), "127.0.0.1:0"
        ) as server:
            assert server.address
