"""The judge of the fire tests: it must not call a lost or wrong job right, nor a right one wrong."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from dimnode.errors import NotFound, Unavailable
from tools.chaos import account
from tools.chaos.account import judge, settle
from tools.chaos.jobs import Job, Maker, same
from tools.chaos.report import alone, failures, spread

Y = {"y": np.array([1.0, 2.0])}


def a_job(**more: Any) -> Job:
    values: dict[str, Any] = {"kind": "single", "form": {"idempotency_key": "k"}, "data": {}, "outputs": Y, "job_id": "job-1", **more}
    return Job(**values)


def ended(job: Job, status: str, outputs: dict[str, Any] | None = None, code: str = "") -> str:
    job.last = {"status": status, "error": {"code": code, "message": "m"} if code else None}
    return judge(job, lambda: {"outputs": outputs, "tasks": []})


def test_a_right_result_is_right() -> None:
    assert ended(a_job(), "completed", {"y": np.array([1.0, 2.0000001])}) == ""


@pytest.mark.parametrize("outputs", [{"y": np.array([1.0, 2.1])}, {"y": np.array([1.0])}, {"z": np.array([1.0, 2.0])}, {}])
def test_another_result_is_wrong(outputs: dict[str, Any]) -> None:
    assert ended(a_job(), "completed", outputs)


def test_a_result_that_is_not_to_be_had_is_wrong() -> None:
    job = a_job()
    job.last = {"status": "completed"}

    def gone() -> dict[str, Any]:
        raise NotFound("no such block")

    assert "no such block" in judge(job, gone)


def test_an_acknowledged_cancellation_stays() -> None:
    assert ended(a_job(cancel_after=1.0, cancelled=True), "cancelled") == ""
    assert "acknowledged" in ended(a_job(cancel_after=1.0, cancelled=True), "completed", dict(Y))
    assert ended(a_job(cancel_after=1.0), "completed", dict(Y)) == ""  # the cancellation never came through
    assert ended(a_job(), "cancelled") == "cancelled by nobody"


def test_only_its_own_reason_excuses_a_failure() -> None:
    doomed = {"outputs": None, "code": "NO_CONSENSUS"}
    assert ended(a_job(**doomed), "failed", code="NO_CONSENSUS") == ""
    assert ended(a_job(**doomed), "failed", code="UNAVAILABLE")
    assert ended(a_job(**doomed), "expired", code="NO_CONSENSUS")
    assert ended(a_job(**doomed), "completed", {})
    assert ended(a_job(), "failed", code="NO_CONSENSUS")
    assert ended(a_job(), "expired", code="DEADLINE_EXCEEDED")


class Orchestrator:
    """What `settle` asks of a client. A status for each job; None: the job is not known."""

    def __init__(self, **status: str | None) -> None:
        self.status = status

    def get(self, job_id: str) -> dict[str, Any]:
        status = self.status[job_id]
        if status is None:
            raise NotFound(f"job {job_id} is not known")
        error = {"code": "NO_CONSENSUS", "message": "m"} if status == "failed" else None
        return {"job_id": job_id, "status": status, "owner": "n", "epoch": 1, "tasks": [], "error": error}

    def result(self, job_id: str) -> dict[str, Any]:
        return {"outputs": Y, "tasks": []}


def test_every_acknowledged_job_is_accounted_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "LOOK_EVERY", 0.0)
    jobs = [
        a_job(job_id="done"),
        a_job(job_id="own", outputs=None, code="NO_CONSENSUS"),
        a_job(job_id="waits"),
        a_job(job_id="unknown"),
        a_job(job_id="bad", outputs={"y": np.zeros(2)}),
        a_job(job_id="twice", wrong=["the same key made another job, x"]),
    ]
    client: Any = Orchestrator(done="completed", own="failed", waits="running", unknown=None, bad="completed", twice="completed")
    found = settle(jobs, client, within=0.05)
    assert (found.completed, dict(found.failed)) == (3, {"NO_CONSENSUS": 1})
    assert {j.job_id: why for j, why in found.lost} == {
        "waits": "running, driven by n, epoch 1",
        "unknown": "NOT_FOUND: job unknown is not known",
    }
    assert [j.job_id for j, _ in found.wrong] == ["bad", "twice"]


def test_one_call_without_an_answer_is_no_lost_job_and_one_wrong_answer_is_a_wrong_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the first look at all jobs takes longer than the time that they are given."""
    monkeypatch.setattr(account, "LOOK_EVERY", 0.0)

    class Slow(Orchestrator):
        def __init__(self) -> None:
            super().__init__(busy="completed", denied="completed")
            self.errors = {"busy": [Unavailable("no answer")], "denied": [NotFound("job denied is not known")] * 2}

        def get(self, job_id: str) -> dict[str, Any]:
            time.sleep(0.05)
            if self.errors[job_id]:
                raise self.errors[job_id].pop()
            return super().get(job_id)

    client: Any = Slow()
    found = settle([a_job(job_id="busy"), a_job(job_id="denied")], client, within=0.2)
    assert found.lost == []
    assert {j.job_id: why for j, why in found.wrong} == {"denied": account.UNKNOWN}


def test_orchestrators_that_disagree_are_noticed() -> None:
    job = a_job(job_id="a")
    job.last = {"status": "completed"}
    same_view: Any = Orchestrator(a="completed")
    other: Any = Orchestrator(a="running")
    unaware: Any = Orchestrator(a=None)
    assert account.disagreements([job], [same_view], 5) == []
    assert "running" in account.disagreements([job], [same_view, other], 5)[0][1]
    assert "unknown" in account.disagreements([job], [unaware], 5)[0][1]


def test_the_run_fails_for_each_of_its_reasons() -> None:
    good: dict[str, Any] = {
        "jobs": {"lost": [], "wrong": [], "acknowledged": 5}, "not_replaced": [], "troubles": [], "tracebacks": [],
    }  # fmt: skip
    assert failures(good) == []
    assert failures({**good, "jobs": {"lost": [{}], "wrong": [], "acknowledged": 5}}) == ["1 lost jobs"]
    assert failures({**good, "jobs": {"lost": [], "wrong": [{}, {}], "acknowledged": 5}}) == ["2 wrong jobs"]
    assert failures({**good, "jobs": {"lost": [], "wrong": [], "acknowledged": 0}})
    for key in ("not_replaced", "troubles", "tracebacks"):
        assert failures({**good, key: ["node1"]})


def test_spread() -> None:
    assert spread([]) == {"count": 0, "p50": 0.0, "p99": 0.0, "max": 0.0}
    assert spread(float(n) for n in range(101)) == {"count": 101, "p50": 50.0, "p99": 99.0, "max": 100.0}


def test_a_fault_is_alone_if_no_other_one_is_in_force_until_the_orchestrator_is_replaced() -> None:
    kill = {"at": 10.0, "lasted": 4.0, "replaced_after": 2.0}
    before, meanwhile, after = ({"at": at, "lasted": 5.0} for at in (4.0, 11.0, 12.5))
    assert alone(kill, [before, kill, after])
    assert not alone(kill, [kill, meanwhile])
    assert not alone(kill, [{"at": 4.0, "lasted": 6.5}, kill])


def test_the_same_seed_makes_the_same_jobs_of_all_kinds() -> None:
    one, two = Maker(5), Maker(5)
    jobs = [one.job() for _ in range(300)]
    for job in jobs:
        again = two.job()
        assert (again.kind, again.form, again.cancel_after, again.again_after) == (job.kind, job.form, job.cancel_after, job.again_after)
        assert same(job.outputs or {}, again.outputs or {}) == ""
    assert {j.kind for j in jobs} == {
        "single", "pipeline", "concat", "average", "mean", "vote", "large", "doomed", "slow", "cancel"
    }  # fmt: skip
    assert len({j.form["idempotency_key"] for j in [*jobs, *one.batch(5)]}) == 305
