"""The holder of the only seat dies, comes back, and is not missed; so does the node that everybody joined through."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.models import linear_onnx
from tests.support.real_swarm import MODELS, RealNode, RealSwarm, mlp, one_task, rows, wait_until

MUST_SERVE_WITHIN = 10.0
WATCHED = 3.0
"""Seconds over which nothing may change: longer than the silence after which a holder counts as gone."""
SWARM_HEARTBEAT = 1.0
NAMES = ("anna", "bert", "cora")


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealSwarm]:
    with RealSwarm(tmp_path_factory.mktemp("s"), {"election.orchestrators": "1", "p2p.redial_max": "2"}) as swarm:
        swarm.start(*NAMES)
        for name in NAMES:
            with swarm[name].node_client() as node:
                node.add_model_file(str(MODELS / "mlp.onnx"), id="mlp")
            swarm[name].keep_ports()
        yield swarm


def serving(swarm: RealSwarm) -> RealNode | None:
    """The node that serves the API, if exactly one does."""
    found = [n for n in swarm.nodes.values() if n.running and n.status()["grpc"]]
    return found[0] if len(found) == 1 else None


def heard(swarm: RealSwarm, subject: str) -> dict[tuple[str, str], float]:
    """(observer, observed) -> when last, for all pairs with this node."""
    seen = {name: node.nodes() for name, node in swarm.nodes.items()}
    return {(a, b): seen[a][b]["last_seen"] for a in seen for b in seen if a != b and subject in (a, b)}


def all_is_well(swarm: RealSwarm, returned: RealNode) -> None:
    """The returned node and the others see each other, hear further heartbeats of each other, and work together."""
    swarm.wait_formed()
    before = heard(swarm, returned.name)
    wait_until(
        lambda: all(at > before[pair] + SWARM_HEARTBEAT for pair, at in heard(swarm, returned.name).items()),
        f"heartbeats from and to {returned.name}",
        15,
    )
    with returned.client() as client:
        x = rows(3)
        got = client.wait(client.submit(one_task(), {"x": x})["job_id"])
    np.testing.assert_allclose(got["outputs"]["probabilities"], mlp(x), rtol=1e-6)


def gossip_arrives(path: Path, sender: RealNode, receivers: list[RealNode], model: str) -> None:
    with sender.node_client() as node:
        node.add_model_file(str(linear_onnx(path / f"{model}.onnx", batch=f"N{model}")), id=model)
    for receiver in receivers:
        wait_until(lambda r=receiver: model in r.nodes()[sender.name]["models"], f"{receiver.name} hears of {model}", 10)


@pytest.mark.parametrize("again", ["on its ports", "on other ports"])
def test_a_killed_holder_is_replaced_and_does_not_displace_its_successor(swarm: RealSwarm, tmp_path: Path, again: str) -> None:
    old = wait_until(lambda: serving(swarm), "one node serves")
    term = old.status()["term"]
    others = [n for n in swarm.nodes.values() if n is not old]

    old.kill()
    began = time.monotonic()
    successor = wait_until(lambda: serving(swarm), "another node serves", MUST_SERVE_WITHIN)
    with others[0].client() as client:
        assert client.cluster()["orchestrators"][0]["name"] == successor.name
    took = time.monotonic() - began
    print(f"another orchestrator after {took:.2f} s")
    assert took < MUST_SERVE_WITHIN
    assert (new_term := successor.status()["term"]) > term

    if again == "on other ports":
        old.settings |= {"p2p.listen": "/ip4/127.0.0.1/tcp/0", "daemon.listen": "127.0.0.1:0", "orchestrator.listen": "127.0.0.1:0"}
    old.start()
    all_is_well(swarm, old)
    gossip_arrives(tmp_path, old, others, f"from-old-{term}")
    gossip_arrives(tmp_path, others[0], [old], f"to-old-{term}")
    until = time.monotonic() + WATCHED
    while time.monotonic() < until:
        for node in swarm.nodes.values():
            assert swarm.holders(node.name) == [successor.name]
            assert node.status()["term"] == new_term
        time.sleep(0.25)
    assert old.status()["role"] == "node"


def test_the_bootstrap_node_is_found_again_after_a_while(swarm: RealSwarm) -> None:
    """Bert and cora joined through anna; while she is away they go on, and she needs to know nobody."""
    anna, others = swarm["anna"], [swarm["bert"], swarm["cora"]]
    anna.keep_ports()
    code, _ = anna.stop()
    assert code == 0
    for node in others:
        wait_until(lambda n=node: not n.sees("anna"), f"{node.name} sees that anna is away", 15)
    wait_until(lambda: serving(swarm), "bert or cora serves", MUST_SERVE_WITHIN)
    assert not anna.join
    anna.start()
    all_is_well(swarm, anna)
    # Anna came up alone and may have taken a seat of her own before the others found her: one of them resigns.
    wait_until(lambda: {tuple(swarm.holders(n)) for n in NAMES} == {tuple(swarm.holders("anna"))} and serving(swarm), "one holder", 15)
    assert not any(n.crashed() for n in swarm.nodes.values())


def test_after_a_power_cut_the_nodes_find_each_other_without_an_invite(swarm: RealSwarm) -> None:
    """They remember whom they met; nobody is told anything, and the last to come up finds the others, too."""
    for node in swarm.nodes.values():
        node.keep_ports()
        node.join = ()
    term = max(node.status()["term"] for node in swarm.nodes.values())
    for node in swarm.nodes.values():
        node.kill()
    for name in reversed(NAMES):
        swarm[name].start(ready=False)
    for node in swarm.nodes.values():
        node.wait_ready()
    all_is_well(swarm, swarm["anna"])
    wait_until(lambda: {tuple(swarm.holders(n)) for n in NAMES} == {tuple(swarm.holders("anna"))} and serving(swarm), "one holder", 15)
    assert swarm["anna"].status()["term"] > term
    assert not any(n.crashed() for n in swarm.nodes.values())


def test_a_frozen_holder_is_replaced_and_gives_way_when_it_thaws(swarm: RealSwarm) -> None:
    old = wait_until(lambda: serving(swarm), "one node serves")
    others = [n for n in swarm.nodes.values() if n is not old]
    old.pause()
    try:
        began = time.monotonic()
        successor = wait_until(lambda: next((n for n in others if n.status()["grpc"]), None), "another node serves", MUST_SERVE_WITHIN)
        print(f"another orchestrator after {time.monotonic() - began:.2f} s")
    finally:
        old.resume()
    wait_until(lambda: serving(swarm) is successor, "the thawed node has given way", 10)
    all_is_well(swarm, old)
    assert serving(swarm) is successor
