"""What keeps a node from starting, said in a sentence with exit code 1; and what must not keep it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from dimnode.home import Home
from tests.support.real_swarm import LOOPBACK, RealNode, RealSwarm, run_cli, wait_until

KEY = "ab" * 32


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealSwarm]:
    with RealSwarm(tmp_path_factory.mktemp("s")) as swarm:
        yield swarm.start("anna")


def refused(home: Path, *argv: str, code: int = 1, **settings: str) -> str:
    """What a start that must fail says."""
    command = ["start", "--home", str(home), *argv]
    for key, value in {**LOOPBACK, **{k.replace("__", "."): v for k, v in settings.items()}}.items():
        command += ["--set", f"{key}={value}"]
    done = run_cli(*command)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "Error: " in done.stderr
    return done.stderr


@pytest.mark.parametrize("setting", ["p2p.listen", "daemon.listen"])
def test_a_configured_port_that_is_taken_is_an_error_naming_the_setting(tmp_path: Path, setting: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        value = f"/ip4/127.0.0.1/tcp/{port}" if setting == "p2p.listen" else f"127.0.0.1:{port}"
        said = refused(tmp_path / "h", **{setting.replace(".", "__"): value})
    assert setting in said


def test_a_configured_port_of_the_orchestrator_that_is_taken_is_an_error_too(tmp_path: Path) -> None:
    """It is bound only while a seat is held, and looked at before the node says that it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = refused(tmp_path / "h", orchestrator__listen=f"127.0.0.1:{taken.getsockname()[1]}")
    assert "orchestrator.listen" in said


def test_default_ports_that_are_taken_fall_back_with_a_warning(tmp_path: Path) -> None:
    """Two nodes without any port setting on one machine; somebody else may hold the default ports, too."""
    with RealSwarm(tmp_path) as pair:
        nodes = [pair.node(name) for name in ("one", "two")]
        for node in nodes:
            node.settings = {"swarm.mdns": "false"}
            node.start(defaults={})
        ports = [node.status() for node in nodes]
        assert ports[0]["daemon_grpc"] != ports[1]["daemon_grpc"]
        assert ports[0]["grpc"] != ports[1]["grpc"]
        said = nodes[1].log(200)
        for event in ("p2p.port_taken", "daemon.port_taken", "orchestrator.port_taken"):
            assert event in said


def test_a_home_has_one_node(swarm: RealSwarm) -> None:
    said = refused(swarm["anna"].home.path)
    assert "already running in this home" in said
    assert swarm["anna"].status()["name"] == "anna"


def test_an_invite_is_refused_in_another_swarms_home(swarm: RealSwarm, tmp_path: Path) -> None:
    assert run_cli("init", "--home", str(tmp_path / "h"), "--swarm", "other").returncode == 0
    with RealSwarm(tmp_path) as other:
        node = RealNode("bert", Home(tmp_path / "h"))
        other.nodes["bert"] = node
        node.start().stop()
    said = refused(tmp_path / "h", "--join", swarm.invite)
    assert "other" in said


def test_a_bare_address_needs_the_swarms_key(swarm: RealSwarm, tmp_path: Path) -> None:
    said = refused(tmp_path / "h", "--join", swarm["anna"].address())
    assert "key_file" in said
    assert run_cli("init", "--home", str(tmp_path / "h")).returncode == 0  # nothing was settled by the refusal


@pytest.mark.parametrize("address", ["dim1garbage", "/ip4/127.0.0.1/tcp/1", "nonsense"])
def test_an_address_that_is_none_is_refused(tmp_path: Path, address: str) -> None:
    refused(tmp_path / "h", "--join", address, code=2)


def test_with_a_wrong_key_nobody_is_met(swarm: RealSwarm, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY + "\n")
    with RealSwarm(tmp_path, {"swarm.key_file": str(tmp_path / "key"), "election.solo_after": "1"}) as strangers:
        stranger = strangers.node("mallory")
        stranger.join = (swarm["anna"].address(),)
        stranger.start()
        wait_until(lambda: stranger.status()["role"] == "orchestrator", "it works alone", 15)
        assert stranger.status()["peers"] == 0
        assert set(swarm["anna"].nodes()) == {"anna"}
    assert swarm["anna"].status()["peers"] == 0
    assert not swarm["anna"].crashed()


def test_with_the_right_key_a_bare_address_is_enough(swarm: RealSwarm, tmp_path: Path) -> None:
    key = swarm["anna"].home.swarm_key_path
    with RealSwarm(tmp_path, {"swarm.key_file": str(key)}) as others:
        friend = others.node("bert")
        friend.join = (swarm["anna"].address(),)
        friend.start()
        wait_until(lambda: friend.sees("anna", "bert") and swarm["anna"].sees("bert"), "they see each other")
        assert friend.stop()[0] == 0
    wait_until(lambda: not swarm["anna"].sees("bert"), "bert has left", 10)
