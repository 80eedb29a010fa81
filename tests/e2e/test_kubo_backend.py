"""Whole jobs on a node that keeps its content in a Kubo daemon, or what answers like one (`tests.support.kubo_rpc_server`)."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.kubo_rpc_server import Fault
from tests.support.real_swarm import MODELS, RealNode, RealSwarm, free_port, mlp, one_task, rows, wait_until

ROOT = Path(__file__).parents[2]
LARGE_ROWS = 1000
"""120 kB: stored as a block."""


class Server:
    def __init__(self, port: int) -> None:
        self.port = port
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.support.kubo_rpc_server", str(self.port)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def fail(self, fault: Fault) -> None:
        """From now on; empty: no more."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/api/v0/test/fault?arg={fault}", method="POST")
        urllib.request.urlopen(request, timeout=10).close()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate(timeout=10)
            self.process = None


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(free_port())
    server.start()
    yield server
    server.kill()


def ipfs(node: RealNode) -> dict[str, object]:
    return node.status()["ipfs"]


def events(node: RealNode) -> dict[str, Any]:
    return node.status()["events"]["kubo"]


def test_jobs_run_with_kubo_without_it_and_with_it_again(tmp_path: Path, server: Server) -> None:
    settings = {"ipfs.backend": "kubo", "ipfs.api": f"http://127.0.0.1:{server.port}"}
    x = rows(LARGE_ROWS)
    with RealSwarm(tmp_path / "s", settings) as swarm:
        node = swarm.start("anna")["anna"]
        with node.node_client() as local, node.client() as jobs:

            def run() -> None:
                done = jobs.wait(jobs.submit(one_task(), {"x": x})["job_id"])
                np.testing.assert_allclose(done["outputs"]["probabilities"], mlp(x), rtol=1e-6)

            local.add_model_file(str(MODELS / "mlp.onnx"), id="mlp")
            run()
            wait_until(lambda: ipfs(node) == {"backend": "kubo", "ok": True, "backlog": 0, "problem": ""}, "all is with Kubo")
            wait_until(lambda: events(node)["published"] >= 3, "a seat and a job are told through Kubo's pubsub")
            assert (events(node)["ok"], events(node)["dropped"]) == (True, 0)
            server.kill()
            wait_until(lambda: not ipfs(node)["ok"], "the node has noticed")
            run()
            wait_until(lambda: "Kubo" in events(node)["problem"], "events are not told through Kubo, and the status says so")
            assert node.status()["events"]["swarm"]["ok"]
            told = ipfs(node)
            assert told["backlog"]
            assert "Kubo" in str(told["problem"])
            assert not local.store_statistics()["ok"]
            server.start()  # its memory is empty: what the spool still has is not handed over twice, new things are
            wait_until(lambda: ipfs(node)["ok"], "the node has it again")
            run()
            wait_until(lambda: events(node)["ok"], "and they are told again")
            assert not node.crashed()


@pytest.mark.parametrize("fault", ["500", "hang"])
def test_jobs_run_while_kubo_answers_with_errors_or_not_at_all(tmp_path: Path, server: Server, fault: Fault) -> None:
    settings = {"ipfs.backend": "kubo", "ipfs.api": f"http://127.0.0.1:{server.port}", "ipfs.api_timeout": "1.0"}
    with RealSwarm(tmp_path / "s", settings) as swarm:
        node = swarm.start("anna")["anna"]
        with node.node_client() as local, node.client() as jobs:

            def run(seed: int) -> None:
                x = rows(LARGE_ROWS, seed)
                done = jobs.wait(jobs.submit(one_task(), {"x": x})["job_id"])
                np.testing.assert_allclose(done["outputs"]["probabilities"], mlp(x), rtol=1e-6)

            local.add_model_file(str(MODELS / "mlp.onnx"), id="mlp")
            run(1)
            server.fail(fault)
            run(2)  # perhaps before the node has noticed
            wait_until(lambda: not ipfs(node)["ok"], "the node has noticed")
            run(3)
            assert "Kubo" in str(ipfs(node)["problem"])
            assert ipfs(node)["backlog"]
            server.fail("")
            wait_until(lambda: ipfs(node) == {"backend": "kubo", "ok": True, "backlog": 0, "problem": ""}, "all is with Kubo", within=60)
            run(4)
            assert not node.crashed()
