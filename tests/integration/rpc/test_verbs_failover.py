"""The command line while orchestrators come and go: real gRPC over loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dimnode.cli import common
from dimnode.cli.main import cli
from dimnode.client import Client, Settings, tensor_from_numpy
from dimnode.rpc.roaming import ClientSettings
from tests.support.orchestrators import Orchestrator, Swarm, wait_for

FORM = {"pattern": "chained", "config": {"pipeline": [{"step": 1, "model_id": "m"}]}}


@pytest.fixture
def swarm() -> Iterator[Swarm]:
    with Swarm() as swarm:
        yield swarm


def verb(*argv: str) -> tuple[threading.Thread, list[Result]]:
    done: list[Result] = []
    thread = threading.Thread(target=lambda: done.append(CliRunner().invoke(cli, [*argv, "--json"])), daemon=True)
    thread.start()
    return thread, done


def spec(folder: Path) -> str:
    path = folder / "spec.json"
    path.write_text(json.dumps(FORM))
    return str(path)


def ended(swarm: Swarm, job: str) -> None:
    swarm.results[job] = {"job_id": job, "status": "completed", "outputs": {"y": tensor_from_numpy([1.5])}}
    swarm.change(job, status="completed", updated=3.0)


def submit_and_wait(at: str, folder: Path, _job: str) -> tuple[str, ...]:
    return ("submit", spec(folder), "--wait", "--orchestrator", at)


def watch(at: str, _folder: Path, job: str) -> tuple[str, ...]:
    return ("watch", job, "--orchestrator", at)


@pytest.mark.parametrize("make", [submit_and_wait, watch])
def test_following_a_job_survives_the_orchestrator(swarm: Swarm, tmp_path: Path, make: Callable[..., tuple[str, ...]]) -> None:
    a, b = swarm.start(), swarm.start()
    with Client(b.address) as dim:
        first = dim.submit(FORM)["job_id"]
    thread, done = verb(*make(a.address, tmp_path, first))
    wait_for(lambda: a.asked["WatchJob"], "the job is watched")
    a.kill()
    wait_for(lambda: b.asked["WatchJob"], "it is watched at the other one")
    for job in list(swarm.jobs):
        ended(swarm, job)
    thread.join(20)
    assert done[0].exit_code == 0, done[0].output
    assert json.loads(done[0].stdout)["status"] == "completed"


@pytest.mark.parametrize(
    "argv", [("jobs",), ("watch", "j"), ("result", "j"), ("cancel", "j"), ("describe", "j"), ("nodes",), ("model", "list")]
)
def test_nobody_reached_is_3_and_names_who_was_asked(monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...]) -> None:
    def quick(targets: Any) -> Client:
        return Client(targets, Settings(ClientSettings(retry_for=0.1)))

    monkeypatch.setattr(common, "orchestrator_client", quick)
    thread, done = verb(*argv, "--orchestrator", "127.0.0.1:1,127.0.0.1:2", "--orchestrator", "127.0.0.1:3")
    thread.join(20)
    assert done[0].exit_code == 3
    assert "127.0.0.1:1, 127.0.0.1:2, 127.0.0.1:3" in done[0].stderr
    assert json.loads(done[0].stdout)["error"]["code"] == "UNAVAILABLE"


def test_the_result_is_waited_for_where_the_end_was_not_heard_of_yet(swarm: Swarm, tmp_path: Path) -> None:
    a, b = swarm.start(), swarm.start()
    thread, done = verb("submit", spec(tmp_path), "--wait", "--orchestrator", a.address)
    wait_for(lambda: a.asked["WatchJob"], "the job is watched")
    (job,) = swarm.jobs
    a.before["GetResult"] = lambda _: a.kill()
    swarm.change(job, status="completed", updated=3.0)
    wait_for(lambda: b.asked["GetResult"], "the other one is asked, and has no result yet")
    ended(swarm, job)
    thread.join(20)
    assert done[0].exit_code == 0, done[0].output
    assert json.loads(done[0].stdout)["outputs"]["y"]["data"] == [1.5]


def test_any_of_the_addresses_will_do(swarm: Swarm) -> None:
    a: Orchestrator = swarm.start()
    thread, done = verb("nodes", "--orchestrator", f"127.0.0.1:1,{a.address}")
    thread.join(20)
    assert done[0].exit_code == 0, done[0].output
