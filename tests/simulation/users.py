"""Those who submit jobs, wait for them and cancel some: what they were told is what the swarm has promised."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import trio

from dimnode.domain.tensors import to_numpy
from dimnode.errors import Code, DimError, NotReady
from tests.support.simulated_jobs import Asked, make_job

if TYPE_CHECKING:
    from tests.simulation.world import World

ENDED = ("completed", "failed", "cancelled", "expired")


@dataclass(slots=True, eq=False)
class Job:
    """What its user knows of it."""

    key: str
    asked: Asked
    id: str = ""
    acknowledged: float | None = None
    accepted: trio.Event = field(default_factory=trio.Event)
    copies: int = 0
    cancel_asked: bool = False
    cancelled: float | None = None
    """When a cancel was acknowledged."""
    shown: list[str] = field(default_factory=list[str])
    """Ends that its user was shown, in order."""
    ended: trio.Event = field(default_factory=trio.Event)
    reason: str = ""


class Users:
    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = random.Random(world.seed + 1)
        self.jobs: list[Job] = []

    # --- what they do

    async def stream(self, count: int, pause: float, cancels: float = 0.15, **more: Any) -> None:
        """Submits ``count`` jobs, about ``pause`` seconds apart; of each an own user takes care."""
        for _ in range(count):
            await trio.sleep(self._rng.expovariate(1 / pause))
            self.submit(cancel_after=self._rng.uniform(0, 3) if self._rng.random() < cancels else None, **more)

    def submit(self, at: str | None = None, *, cancel_after: float | None = None, pattern: str | None = None, **more: Any) -> Job:
        """A user for one more job. ``at``: the first seat that is asked."""
        key = f"job-{len(self.jobs)}"
        job = Job(key, make_job(self._rng, key, pattern, **more))
        self.jobs.append(job)
        assert self._world.hub.nursery is not None
        self._world.hub.nursery.start_soon(self._care, job, at, cancel_after)
        return job

    async def _care(self, job: Job, at: str | None, cancel_after: float | None) -> None:
        await self._submit(job, at)
        if cancel_after is not None:
            await trio.sleep(cancel_after)
            await self._cancel(job)
        await self._follow(job)

    async def _submit(self, job: Job, at: str | None) -> None:
        while True:
            seat = at or self._some_seat()
            at = None
            if seat is None:
                await trio.sleep(0.5)
                continue
            try:
                accepted = await self._world.call(seat, lambda api: api.submit(job.asked.form, "user"))
            except DimError as e:
                self._world.log("user", f"{job.key} not accepted by {seat}: {e.code.value} {e.message}")
                self._judge(job, e)
                await trio.sleep(self._rng.uniform(0.1, 0.6))
                continue
            job.id, job.copies, job.acknowledged = accepted.job_id, accepted.copies, trio.current_time()
            self._world.log("user", f"{job.key} is {job.id}, acknowledged by {seat} with {job.copies} copies")
            self._world.checks.acknowledged(job)
            job.accepted.set()
            return

    async def cancel(self, job: Job, at: str | None = None) -> bool:
        """Until it is answered. Whether it was cancelled."""
        await self._cancel(job, at)
        return job.cancelled is not None

    async def _cancel(self, job: Job, at: str | None = None) -> None:
        job.cancel_asked = True
        while True:
            seat = at or self._some_seat()
            if seat is not None:
                try:
                    document = await self._world.call(seat, lambda api: api.cancel(job.id))
                except DimError as e:
                    self._world.log("user", f"{job.key} not cancelled by {seat}: {e.code.value} {e.message}")
                    if e.code is Code.FAILED_PRECONDITION:
                        return
                    self._judge(job, e)
                else:
                    job.cancelled = trio.current_time()
                    self._world.log("user", f"{job.key} cancelled by {seat}")
                    self._show(job, document["status"])
                    return
            await trio.sleep(self._rng.uniform(0.2, 1.0))

    async def _follow(self, job: Job) -> None:
        while True:
            seat = self._some_seat()
            if seat is not None and await self._ask(job, seat):
                break
            await trio.sleep(self._rng.uniform(0.2, 0.8))
        job.ended.set()

    async def _ask(self, job: Job, seat: str) -> bool:
        """Whether an end was shown."""
        try:
            result = await self._world.call(seat, lambda api: api.result(job.id, 2.0))
        except NotReady:
            return False
        except DimError as e:
            if e.code is Code.NOT_FOUND:
                self._world.counts["not found"] += 1
            try:
                document = await self._world.call(seat, lambda api: api.get(job.id))
            except DimError:
                return False
            if document["status"] not in ENDED or document["status"] == "completed":
                return False
            job.reason = f"{e.code.value} {e.message}"
            self._world.log("user", f"{job.key} {document['status']} at {seat}: {job.reason}")
            self._show(job, document["status"])
            return True
        self._world.log("user", f"{job.key} has its result from {seat}")
        self._show(job, "completed")
        self._compare(job, result["outputs"])
        return True

    def _show(self, job: Job, status: str) -> None:
        job.shown.append(status)
        self._world.checks.shown(job, status)

    def _compare(self, job: Job, outputs: Any) -> None:
        got = to_numpy(outputs[job.asked.output])
        if got.shape != job.asked.answer.shape or not np.allclose(got, job.asked.answer, rtol=1e-4, atol=1e-3):
            self._world.fail(f"{job.key} ({job.id}) came to {got.tolist()} and should have come to {job.asked.answer.tolist()}")

    def _judge(self, job: Job, error: DimError) -> None:
        if error.code in (Code.INTERNAL, Code.INVALID_ARGUMENT, Code.DATA_LOSS, Code.UNIMPLEMENTED):
            self._world.fail(f"a user was told {error.code.value} of {job.key}: {error.message}")

    def may_fail(self, job: Job) -> bool:
        """Whether its form gave it a reason."""
        return job.asked.form.form.timeout is not None

    def _some_seat(self) -> str | None:
        """As a user finds it: some node that is up tells who holds seats."""
        nodes = self._world.nodes()
        if not nodes:
            return None
        asked = nodes[self._rng.choice(list(nodes))]
        if not asked.ready:
            return None
        seats: Sequence[str] = [s.peer for s in asked.elector.seats()]
        return self._rng.choice(seats) if seats else None
