"""A client's jobs, batches and artifacts while orchestrators vanish, hang and forget: real gRPC over loopback."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dimnode.client import Client, TransferSettings
from dimnode.errors import Code, DimError, InvalidArgument, NotFound, Unavailable
from tests.support.impatient_clients import FORM, HUNG_WITHIN, background, seats, settings
from tests.support.orchestrators import Orchestrator, Swarm, wait_for


@pytest.fixture
def swarm() -> Iterator[Swarm]:
    with Swarm() as swarm:
        yield swarm


# --- jobs over several orchestrators


def test_a_watch_resumes_elsewhere_and_shows_nothing_twice_and_nothing_older(swarm: Swarm) -> None:
    a, b = seats(swarm, 2)
    with Client(a.address, settings()) as dim:
        job = dim.submit(FORM)["job_id"]
        swarm.change(job, status="running", updated=5.0)
        b.view = {job: {"job_id": job, "status": "scheduling", "epoch": 1, "updated": 2.0}}
        seen: list[dict[str, Any]] = []
        watching, _ = background(lambda: [seen.append(d) for d in dim.watch(job)])
        wait_for(lambda: seen, "the first document")
        a.kill()
        wait_for(lambda: b.asked["WatchJob"], "the watch is at b")
        b.view[job] = {**swarm.jobs[job]}
        b.view[job] = {**swarm.jobs[job], "status": "aggregating", "updated": 6.0}
        wait_for(lambda: len(seen) == 2, "the news")
        b.view[job] = {**swarm.jobs[job], "status": "scheduling", "epoch": 2, "updated": 7.0}
        wait_for(lambda: len(seen) == 3, "a new owner begins again")
        b.view[job] = {**swarm.jobs[job], "status": "completed", "epoch": 1, "updated": 6.5}
        watching.join(10)
    assert [(d["epoch"], d["status"]) for d in seen] == [(1, "running"), (1, "aggregating"), (2, "scheduling"), (1, "completed")]


def test_a_watch_leaves_a_hung_orchestrator(swarm: Swarm) -> None:
    a, b = seats(swarm, 2)
    with Client(a.address, settings()) as dim:
        job = dim.submit(FORM)["job_id"]
        events = dim.watch(job)
        next(events)
        a.hang()
        swarm.change(job, status="completed")
        began = time.monotonic()
        assert next(events)["status"] == "completed"
        assert time.monotonic() - began < HUNG_WITHIN
    assert b.asked["WatchJob"] == 1


def test_a_quiet_watch_stays_where_it_is(swarm: Swarm) -> None:
    a, b = seats(swarm, 2)
    with Client(a.address, settings()) as dim:
        job = dim.submit(FORM)["job_id"]
        events = dim.watch(job)
        next(events)
        greeted = a.asked["GetCluster"]
        wait_for(lambda: a.asked["GetCluster"] >= greeted + 3, "the supervisor looks after it")
        swarm.change(job, status="completed")
        assert next(events)["status"] == "completed"
        assert list(events) == []
    assert (a.asked["WatchJob"], b.asked["WatchJob"]) == (1, 0)


def test_waiting_for_a_result_survives_orchestrators_one_after_the_other(swarm: Swarm) -> None:
    many = seats(swarm, 3)
    with Client(many[0].address, settings()) as dim:
        job = dim.submit(FORM)["job_id"]
        waiting, out = background(lambda: dim.wait(job))
        for n, how in enumerate((Orchestrator.kill, Orchestrator.hang)):
            at = wait_for(lambda: next((o for o in swarm.holders if o.asked["GetResult"]), None), f"{n} orchestrators asked")
            how(at)
        wait_for(lambda: swarm.holders[0].asked["GetResult"], "the last one is asked")
        swarm.results[job] = {"job_id": job, "status": "completed", "outputs": {}}
        swarm.change(job, status="completed")
        waiting.join(10)
    assert out[0]["status"] == "completed"


def test_waiting_ends_when_the_caller_says(swarm: Swarm) -> None:
    (a,) = seats(swarm, 1)
    with Client(a.address, settings()) as dim:
        job = dim.submit(FORM)["job_id"]
        began = time.monotonic()
        with pytest.raises(DimError) as caught:
            dim.wait(job, timeout=0.5)
        assert caught.value.code is Code.NOT_READY
        assert 0.5 <= time.monotonic() - began < 2.0


def test_a_job_that_was_acknowledged_is_not_given_up_at_once(swarm: Swarm) -> None:
    a, b = seats(swarm, 2)
    with Client(a.address, settings(missing_for=5.0)) as dim:
        job = dim.submit(FORM)["job_id"]
        b.view = {}
        a.kill()
        timer = threading.Timer(0.5, lambda: setattr(b, "view", None))
        timer.start()
        assert dim.get(job)["job_id"] == job
        timer.join()
        assert b.asked["GetJob"] > 1
        b.view = {}
        timer = threading.Timer(0.5, lambda: (setattr(b, "view", None), swarm.change(job, status="completed")))
        timer.start()
        assert [d["status"] for d in dim.watch(job)][-1] == "completed"
        timer.join()


def test_a_job_that_nobody_ever_saw_is_not_found_at_once(swarm: Swarm) -> None:
    a, b = seats(swarm, 2)
    with Client(a.address, settings()) as dim:
        for ask in (dim.get, dim.result, lambda job: next(dim.watch(job))):
            with pytest.raises(NotFound):
                ask("job-none")
    assert sum((a.asked + b.asked)[m] for m in ("GetJob", "GetResult", "WatchJob")) == 3


def test_a_job_that_is_gone_is_not_found_after_a_while(swarm: Swarm) -> None:
    (a,) = seats(swarm, 1)
    with Client(a.address, settings(missing_for=0.5)) as dim:
        job = dim.submit(FORM)["job_id"]
        a.view = {}
        began = time.monotonic()
        with pytest.raises(NotFound):
            dim.get(job)
        assert time.monotonic() - began < 2.0
    assert a.asked["GetJob"] > 1


# --- batches and artifacts


def test_a_large_batch_is_cut_and_only_what_nobody_acknowledged_is_sent_again(swarm: Swarm) -> None:
    a, b = seats(swarm, 2)

    def die_in_the_third(_: Any) -> None:
        if a.asked["SubmitJobs"] == 3:
            a.kill()

    a.after["SubmitJobs"] = die_in_the_third
    with Client(a.address, settings(TransferSettings(batch_jobs=10))) as dim:
        found = dim.submit_many([FORM] * 45)
    assert a.batches == [10, 10, 10]
    assert b.batches == [10, 10, 5]
    assert [j["job_id"] for j in found] == [f"job-{n}" for n in range(45)]
    assert len(swarm.jobs) == 45


def test_no_message_is_larger_than_the_settings_say(swarm: Swarm) -> None:
    (a,) = seats(swarm, 1)
    sizes: list[int] = []
    a.before["SubmitJobs"] = lambda request: sizes.append(request.ByteSize())
    forms = [{**FORM, "client_data": {"x": {"dtype": "uint8", "shape": [n * 100], "data": [0] * n * 100}}} for n in (1, 30, 1, 1, 5, 40, 9)]
    with Client(a.address, settings(TransferSettings(batch_bytes=3500))) as dim:
        assert all("job_id" in j for j in dim.submit_many(forms))
    assert len(sizes) > 2
    assert sum(a.batches) == 7
    assert all(size <= 3500 or count == 1 for size, count in zip(sizes, a.batches, strict=True))


def test_jobs_of_a_batch_that_had_no_place_are_sent_again_alone(swarm: Swarm) -> None:
    a, b = seats(swarm, 2)
    seen: list[str] = []

    def full_after_three(spec: Any) -> None:
        seen.append(spec.labels["n"])
        if len(seen) > 3:
            raise Unavailable("too few copies")

    def wrong(spec: Any) -> None:
        if spec.labels["n"] == "4":
            raise InvalidArgument("no such model")

    a.before["item"] = full_after_three
    b.before["item"] = wrong
    with Client(a.address, settings()) as dim:
        found = dim.submit_many([{**FORM, "labels": {"n": str(n)}} for n in range(6)])
    assert (a.batches, b.batches) == ([6], [3])
    assert ["job_id" in j for j in found] == [True] * 4 + [False, True]
    assert found[4]["error"]["code"] == "INVALID_ARGUMENT"
    assert len({j["job_id"] for j in found if "job_id" in j}) == 5


def test_when_all_vanish_in_a_batch_the_acknowledged_part_is_told(swarm: Swarm) -> None:
    (a,) = seats(swarm, 1)
    a.after["SubmitJobs"] = lambda _: a.kill() if a.asked["SubmitJobs"] == 2 else None
    with Client(a.address, settings(TransferSettings(batch_jobs=2), retry_for=0.3)) as dim:
        found = dim.submit_many([FORM] * 6)
        assert ["job_id" in j for j in found] == [True, True] + [False] * 4
        assert {j["error"]["code"] for j in found[2:]} == {"UNAVAILABLE"}
        with pytest.raises(Unavailable):
            dim.submit_many([FORM])


def test_artifacts_go_on_elsewhere(swarm: Swarm, tmp_path: Path) -> None:
    a, b = seats(swarm, 2)
    data = np.random.default_rng(1).bytes(50_000)
    (tmp_path / "f").write_bytes(data)
    a.before["PutArtifact"] = lambda _: a.gate.kill()
    with Client(a.address, settings(TransferSettings(chunk=1000))) as dim:
        assert dim.put_file(tmp_path / "f") == {"cid": "bafy50000", "size": 50_000}
        assert swarm.blobs["bafy50000"] == data
        a.gate.revive()
        b.before["GetArtifact"] = lambda n: b.gate.kill() if n == 30_000 else None
        assert b"".join(dim.get_artifact("bafy50000")) == data
        assert (a.asked["GetArtifact"], b.asked["GetArtifact"]) == (1, 1)
