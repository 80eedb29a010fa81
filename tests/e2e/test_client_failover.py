"""Clients of real nodes: the orchestrator that they speak to is killed, paused, or gives its seat up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dimnode.client import Client
from tests.support.real_swarm import RealNode, RealSwarm, wait_until

NAMES = ("anna", "bert", "cora")


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[RealSwarm]:
    with RealSwarm(tmp_path, {"election.orchestrators": "2"}) as swarm:
        swarm.start(*NAMES)
        wait_until(lambda: settled(swarm), "two seats are held, and all agree by whom")
        yield swarm


def settled(swarm: RealSwarm) -> bool:
    """Two nodes serve, and each node knows just these two: those that came up together may have begun with more."""
    serving = {n.name for n in swarm.nodes.values() if n.status()["grpc"]}
    return len(serving) == 2 and all(set(swarm.holders(n)) == serving for n in NAMES)


def roles(swarm: RealSwarm) -> tuple[list[RealNode], RealNode]:
    """The holders, and the node without a seat."""
    holders = [n for n in swarm.nodes.values() if n.status()["grpc"]]
    return holders, next(n for n in swarm.nodes.values() if n not in holders)


def test_the_next_call_after_kill_9_is_answered_at_once(swarm: RealSwarm) -> None:
    (one, other), _ = roles(swarm)
    with Client(one.status()["grpc"]) as dim:
        assert dim.nodes()
        wait_until(lambda: other.status()["grpc"] in dim.addresses(), "the client knows the other one", 10)
        one.kill()
        began = time.monotonic()
        assert dim.nodes()
        took = time.monotonic() - began
        print(f"after kill -9: {took * 1000:.0f} ms")
        assert took < 1.0


@pytest.mark.parametrize(("how", "most"), [("killed", 3.0), ("paused", 10.0), ("stopped", 3.0)])
def test_the_local_socket_leads_to_another_one(swarm: RealSwarm, how: str, most: float) -> None:
    holders, seatless = roles(swarm)
    with seatless.client() as dim:
        assert dim.nodes()
        for victim in holders[:1]:
            {"killed": victim.kill, "paused": victim.pause, "stopped": victim.stop}[how]()
        began = time.monotonic()
        try:
            assert dim.nodes()
            took = time.monotonic() - began
            print(f"through the local socket, {how}: {took * 1000:.0f} ms")
            assert took < most
            assert seatless.cli("nodes")
            assert time.monotonic() - began < most + 5
        finally:
            if how == "paused":
                holders[0].resume()
