"""A member of the swarm that holds no seat: it may talk to daemons, and gets no task done."""

from __future__ import annotations

import secrets
import time
from typing import Any

import pytest
import trio

from dimnode.domain.record import Ballot
from dimnode.domain.task import TaskOrder
from dimnode.errors import PermissionDenied
from dimnode.invite import parse
from dimnode.rpc.bridge import open_bridge
from dimnode.rpc.channels import open_pool, resolver
from dimnode.rpc.daemon_client import GrpcDaemonClient
from dimnode.security.certificates import CertificateStore
from p2p.identity import Identity
from p2p.network import open_network
from p2p.settings import MdnsSettings, NetworkSettings
from tests.support.real_swarm import RealSwarm


def order(ballot: Ballot) -> TaskOrder:
    return TaskOrder(
        job="job-stolen", task="step-1", attempt=1, ballot=ballot, task_key="k", model_id="model-001", model_cid="x", manifest_cid="y",
        inputs=(), principal="local",
    )  # fmt: skip


async def refused(call: Any) -> None:
    with pytest.raises(PermissionDenied) as caught:
        await call
    assert "hold a seat" in caught.value.message


async def test_a_member_without_a_seat_gets_no_task_done(swarm: RealSwarm) -> None:
    """It has the swarm key and exchanged certificates as any member does."""
    invite = parse(swarm.invite)
    me = Identity(secrets.token_bytes(32))
    settings = NetworkSettings(
        swarm=invite.swarm, psk=invite.key, listen=("/ip4/127.0.0.1/tcp/0",), bootstrap=invite.addresses, mdns=MdnsSettings(enabled=False)
    )
    target = swarm["node-001"].status()
    peer = target["peer_id"]
    with trio.fail_after(60):
        async with open_network(identity=me, settings=settings) as network, open_bridge() as bridge, trio.open_nursery() as nursery:
            while peer not in network.peers():
                await trio.sleep(0.05)
            certificates = CertificateStore(network, time.time)
            certificates.serve()
            async with open_pool(bridge, certificates, resolver(lambda _: target["daemon_grpc"], network.remote_host)) as pool:
                client = GrpcDaemonClient(pool, me.peer_id, None)  # type: ignore[arg-type]
                assert (await client.health(peer))["name"] == "node-001"
                mine = Ballot(1 << 19, me.peer_id, "boot")
                await refused(anext(client.run_task(peer, order(mine))))
                await refused(client.cancel_task(peer, "job-stolen", "step-1", 1, mine))
                await refused(client.prewarm(peer, "x", "y", ()))
            nursery.cancel_scope.cancel()
    assert not swarm["node-001"].crashed()
