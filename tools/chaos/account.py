"""After the fire: what became of every job that was acknowledged."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from dimnode.client import TERMINAL, Client
from dimnode.errors import Code, DimError
from tools.chaos.jobs import Job, same
from tools.chaos.journals import Executions

LOOK_EVERY = 0.5
ASKERS = 8
"""Jobs that are asked for at the same time."""
UNKNOWN = "it was said to be unknown"


@dataclass
class Account:
    """Job lists hold ``(job, what is wrong)``."""

    completed: int = 0
    cancelled: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    """Reason -> jobs that ended for a reason of their own."""
    lost: list[tuple[Job, str]] = field(default_factory=list)
    """Acknowledged, and unknown or not ended in time."""
    wrong: list[tuple[Job, str]] = field(default_factory=list)
    """Ended otherwise than they had to."""
    executions: Executions = field(default_factory=Executions)
    settled_after: float = 0.0
    """Seconds from the last healing to the end of the last job."""


def settle(jobs: Sequence[Job], client: Client, within: float) -> Account:
    """Waits for the end of every job, and compares it with what had to come. ``within`` seconds are for those that the first look at
    all of them, however long that takes, leaves: one call without an answer is no lost job."""
    account = Account()
    began = time.monotonic()
    left = list(jobs)
    why: dict[str, str] = {}
    with ThreadPoolExecutor(ASKERS) as askers:
        until: float | None = None
        while True:
            looked = askers.map(lambda j: _has_ended(j, client, why), left)
            left = [j for j, has in zip(left, list(looked), strict=True) if not has]
            until = until or time.monotonic() + within
            if not left or time.monotonic() > until:
                break
            time.sleep(LOOK_EVERY)
        account.settled_after = time.monotonic() - began
        account.lost = [(j, why.get(j.job_id, "unknown")) for j in left]
        lost = {j.job_id for j in left}
        ended = [job for job in jobs if job.job_id not in lost]
        for job, (verdict, result) in zip(ended, askers.map(lambda j: _verdict(j, client), ended), strict=True):
            _book(job, verdict, result, account)
    return account


def _has_ended(job: Job, client: Client, why: dict[str, str]) -> bool:
    try:
        job.last = client.get(job.job_id)
    except DimError as e:
        why[job.job_id] = f"{e.code.value}: {e.message}"
        if e.code is Code.NOT_FOUND and UNKNOWN not in job.wrong:
            job.wrong.append(UNKNOWN)
        return False
    why[job.job_id] = f"{job.last['status']}, driven by {job.last['owner'] or 'nobody'}, epoch {job.last['epoch']}"
    return job.last["status"] in TERMINAL


def _verdict(job: Job, client: Client) -> tuple[str, dict[str, Any] | None]:
    """What is wrong with how it ended (empty: nothing), and its result if it was asked for."""
    found: list[dict[str, Any]] = []

    def result() -> dict[str, Any]:
        found.append(client.result(job.job_id))
        return found[0]

    return judge(job, result), found[0] if found else None


def _book(job: Job, verdict: str, result: dict[str, Any] | None, account: Account) -> None:
    if result is not None:
        account.executions.add_result(result)
    problems = [*job.wrong, *([verdict] if verdict else [])]
    status = job.last["status"]
    account.completed += status == "completed"
    account.cancelled += status == "cancelled"
    if status in ("failed", "expired") and not problems:
        account.failed[job.last["error"]["code"]] += 1
    if problems:
        account.wrong.append((job, "; ".join(problems)))


def judge(job: Job, result: Callable[[], dict[str, Any]]) -> str:
    """Empty, or what is wrong with how a job ended."""
    status = job.last["status"]
    error = job.last.get("error") or {}
    if job.cancelled and status != "cancelled":
        return f"its cancellation was acknowledged, and it is {status}"
    if status == "cancelled":
        return "" if job.cancel_after is not None else "cancelled by nobody"
    if status == "completed":
        if job.outputs is None:
            return f"completed instead of failing with {job.code}"
        try:
            return same(job.outputs, result()["outputs"])
        except DimError as e:
            return f"completed, but its result is not to be had: {e.code.value}: {e.message}"
    if job.outputs is None and status == "failed" and error.get("code") == job.code:
        return ""
    return f"{status}: {error.get('code')}: {error.get('message')}"


def disagreements(jobs: Sequence[Job], seats: Sequence[Client], within: float) -> list[tuple[Job, str]]:
    """Jobs that have ended, of which some orchestrator says something else. As many as can be asked for ``within`` seconds."""
    found: list[tuple[Job, str]] = []
    until = time.monotonic() + within
    for job in jobs:
        if time.monotonic() > until:
            break
        said: set[str] = set()
        for seat in seats:
            try:
                said.add(seat.get(job.job_id)["status"])
            except DimError as e:
                said.add("unknown" if e.code is Code.NOT_FOUND else e.code.value)
        if said - {job.last["status"]}:
            found.append((job, f"orchestrators disagree: {sorted(said | {job.last['status']})}"))
    return found
