"""A real node and the real command line, as separate processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

LOOPBACK = (
    "--set", "swarm.mdns=false", "--set", "p2p.listen=/ip4/127.0.0.1/tcp/0",
    "--set", "orchestrator.listen=127.0.0.1:0", "--set", "daemon.listen=127.0.0.1:0",
)  # fmt: skip
ENVIRON = {k: v for k, v in os.environ.items() if not k.startswith("DIM_")}
DRAIN = 5.0


def dim(*argv: str, home: Path, exit_code: int = 0) -> Any:
    """One verb; its JSON document."""
    command = [sys.executable, "-m", "dimnode", *argv, "--home", str(home), "--json"]
    done = subprocess.run(command, env=ENVIRON, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == exit_code, done.stderr
    return json.loads(done.stdout)


def launch(home: Path, *extra: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dimnode", "start", "--home", str(home), *extra]
    return subprocess.Popen(command, env=ENVIRON, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    if process.poll() is None:
        process.kill()
    _, said = process.communicate(timeout=10)
    return process.returncode, said


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of a running swarm of one."""
    path = tmp_path_factory.mktemp("node") / "home"
    node = launch(path, "--name", "anna", *LOOPBACK)
    try:
        assert node.stdout is not None
        assert node.stdout.readline().strip()
        yield path
    finally:
        end(node)


def test_status_of_a_swarm_of_one(home: Path) -> None:
    deadline = time.monotonic() + 20
    while (status := dim("status", home=home))["role"] != "orchestrator":
        assert time.monotonic() < deadline, status
    assert {
        "peer_id",
        "name",
        "swarm",
        "role",
        "term",
        "orchestrators",
        "listen",
        "grpc",
        "daemon_grpc",
        "gateway",
        "peers",
        "ipfs",
    } <= set(status)
    assert (status["name"], status["peers"], status["gateway"]) == ("anna", 0, None)
    assert status["ipfs"] == {"backend": "embedded", "ok": True, "backlog": 0, "problem": ""}
    assert status["orchestrators"][0]["peer_id"] == status["peer_id"]


def test_nodes_stats_invite_and_jobs(home: Path) -> None:
    assert [n["name"] for n in dim("nodes", home=home)] == ["anna"]
    assert dim("stats", home=home)
    assert dim("stats", "nobody", home=home, exit_code=3)["error"]["code"] == "NOT_FOUND"
    assert dim("invite", home=home)["invite"].startswith("dim1")
    assert dim("jobs", home=home) == []
    assert dim("describe", "job-none", home=home, exit_code=3)["error"]["code"] == "NOT_FOUND"


def test_a_second_node_in_the_same_home_is_refused(home: Path) -> None:
    code, said = _finish(launch(home, *LOOPBACK))
    assert code == 1
    assert "already running" in said


def test_a_configured_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, said = _finish(launch(tmp_path / "h", *LOOPBACK, "--set", f"daemon.listen=127.0.0.1:{port}"))
    assert code == 1
    assert "daemon.listen" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_node_cleanly_within_drain(tmp_path: Path, number: signal.Signals) -> None:
    node = launch(tmp_path / "h", *LOOPBACK)
    try:
        assert node.stdout is not None
        assert node.stdout.readline()
        began = time.monotonic()
        node.send_signal(number)
        assert node.wait(timeout=DRAIN + 5) == 0
        assert time.monotonic() - began < DRAIN + 2
        assert not (tmp_path / "h" / "control.json").exists()
    finally:
        end(node)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_at_any_moment_ends_the_node_as_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    for pause in (0.0, 0.1, 0.3):
        node = launch(tmp_path / "h", *LOOPBACK)
        try:
            assert node.stdout is not None
            assert node.stdout.readline()
            node.send_signal(number)
            time.sleep(pause)  # the moment of the second signal
            if node.poll() is None:
                node.send_signal(number)
            assert node.wait(timeout=DRAIN + 5) == 0
        finally:
            _, said = end(node)
        assert "Traceback" not in said
        assert not (tmp_path / "h" / "control.json").exists()


def _finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        _, said = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        end(process)
        raise
    return process.returncode, said
