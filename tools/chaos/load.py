"""The client: submits jobs at a rate, some twice, some in batches, cancels some, and watches some.

It keeps a job's key over all its attempts to submit it, as a careful client does; a job counts from its acknowledgement.
"""

from __future__ import annotations

import contextlib
import heapq
import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dimnode.client import TERMINAL, Client, Settings
from dimnode.errors import Code, DimError
from dimnode.rpc.clients import ClientSettings
from tools.chaos.jobs import Job, Maker

SUBMITTERS = 24
WATCHERS = 6
WAITING = 5000
"""Jobs that may wait to be sent, when the swarm does not take them; then arrivals are dropped and counted."""
GIVE_UP = 45.0
"""Seconds after which a submission that nobody acknowledged is given up."""
BATCH, BATCH_SIZE = 0.03, 5
"""How often an arrival is a batch, and of how many jobs."""
CALL = ClientSettings(timeout=10.0, retry_for=5.0)
_AGAIN = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELLED, Code.RESOURCE_EXHAUSTED, Code.ABORTED})


@dataclass
class Watch:
    """What one watching client saw of one job."""

    job: str
    pause: float = 0.0
    """Seconds: the longest time without a sign of life."""
    events: int = 0
    ended: bool = False
    error: str = ""
    last: float = field(default_factory=time.monotonic)

    def longest(self, now: float) -> float:
        return self.pause if self.ended else max(self.pause, now - self.last)


class Load:
    """Thread-safe where threads meet: the lists are only appended to."""

    def __init__(self, targets: Sequence[str], seed: int, rate: float) -> None:
        self._targets = list(targets)
        self._maker = Maker(seed)
        self._chance = random.Random(seed)
        self._rate = rate
        self._line: queue.Queue[list[Job] | None] = queue.Queue(WAITING)
        self._later: list[tuple[float, int, Callable[[Client], None]]] = []
        self._condition = threading.Condition()
        self._over = False
        self._threads: list[threading.Thread] = []
        self._watchers: list[threading.Thread] = []
        self._unwatched: queue.Queue[str] = queue.Queue(WATCHERS)
        self.acknowledged: list[Job] = []
        self.watches: list[Watch] = []
        self.refused: Counter[str] = Counter()
        """Code -> submissions that were given up."""
        self.dropped = 0

    def client(self) -> Client:
        turned = self._chance.randrange(len(self._targets))
        return Client(self._targets[turned:] + self._targets[:turned], Settings(connection=CALL))

    def run(self, seconds: float) -> None:
        """Submits for so long; returns when every submission has been acknowledged or given up."""
        for target, count in ((self._submitter, SUBMITTERS), (self._timed, 4)):
            self._threads += [threading.Thread(target=target, args=(self.client(),)) for _ in range(count)]
        self._watchers = [threading.Thread(target=self._watcher, args=(self.client(),), daemon=True) for _ in range(WATCHERS)]
        for thread in (*self._threads, *self._watchers):
            thread.start()
        try:
            self._arrivals(time.monotonic() + seconds)
        finally:
            for _ in range(SUBMITTERS):
                self._line.put(None)
            for thread in self._threads[:SUBMITTERS]:
                thread.join()
            with self._condition:
                self._over = True
                self._condition.notify_all()
            for thread in self._threads[SUBMITTERS:]:
                thread.join()

    def wait_watches(self, within: float) -> None:
        """Gives those who still watch so much time to see their jobs' ends."""
        until = time.monotonic() + within
        while time.monotonic() < until and not all(w.ended for w in self.watches):
            time.sleep(0.1)

    def _arrivals(self, until: float) -> None:
        due = time.monotonic()
        while (due := due + self._chance.expovariate(self._rate)) < until:
            time.sleep(max(0.0, due - time.monotonic()))
            jobs = self._maker.batch(BATCH_SIZE) if self._chance.random() < BATCH else [self._maker.job()]
            try:
                self._line.put_nowait(jobs)
            except queue.Full:
                self.dropped += len(jobs)

    # --- submitting

    def _submitter(self, client: Client) -> None:
        with client:
            while (jobs := self._line.get()) is not None:
                for job in jobs:
                    job.submitted = time.monotonic()
                self._persist(lambda jobs=jobs: self._send(client, jobs), self._given_up)

    def _given_up(self, error: DimError) -> None:
        self.refused[error.code.value] += 1

    def _send(self, client: Client, jobs: list[Job]) -> None:
        if len(jobs) == 1:
            self._acknowledge(jobs[0], client.submit(jobs[0].form, jobs[0].data))
            return
        left = [j for j in jobs if not j.job_id]
        for job, answer in zip(left, client.submit_many([j.form for j in left]), strict=True):
            if "error" not in answer:
                self._acknowledge(job, answer)
        refused = [j for j in jobs if not j.job_id]
        if refused:
            raise DimError(f"{len(refused)} of a batch were refused", code=Code.UNAVAILABLE)

    def _acknowledge(self, job: Job, answer: dict[str, Any]) -> None:
        job.acknowledged = time.monotonic()
        job.job_id, job.copies = answer["job_id"], answer["copies"]
        self.acknowledged.append(job)
        with contextlib.suppress(queue.Full):  # all watchers are busy
            self._unwatched.put_nowait(job.job_id)
        if job.cancel_after is not None:
            self._at(job.cancel_after, lambda c: self._cancel(c, job))
        if job.again_after is not None:
            self._at(job.again_after, lambda c: self._again(c, job))

    def _persist(self, act: Callable[[], None], given_up: Callable[[DimError], None]) -> None:
        until = time.monotonic() + GIVE_UP
        while True:
            try:
                act()
                return
            except DimError as e:
                if e.code not in _AGAIN or time.monotonic() > until:
                    given_up(e)
                    return
                time.sleep(min(e.retry_after or 0.2, 1.0))

    # --- what comes later

    def _at(self, after: float, act: Callable[[Client], None]) -> None:
        with self._condition:
            heapq.heappush(self._later, (time.monotonic() + after, id(act), act))
            self._condition.notify()

    def _timed(self, client: Client) -> None:
        with client:
            while True:
                with self._condition:
                    while not self._later or self._later[0][0] > time.monotonic():
                        if not self._later and self._over:
                            return
                        self._condition.wait(self._later[0][0] - time.monotonic() if self._later else None)
                    _, _, act = heapq.heappop(self._later)
                act(client)

    def _cancel(self, client: Client, job: Job) -> None:
        def act() -> None:
            status = client.cancel(job.job_id)["status"]
            job.cancelled = status == "cancelled"
            if status not in TERMINAL:
                job.wrong.append(f"a cancellation was answered with {status}")

        self._persist(act, lambda e: self.refused.update([f"cancel: {e.code.value}"]))

    def _again(self, client: Client, job: Job) -> None:
        def act() -> None:
            other = client.submit(job.form, job.data)["job_id"]
            if other != job.job_id:
                job.wrong.append(f"the same key made another job, {other}")

        self._persist(act, lambda e: self.refused.update([f"again: {e.code.value}"]))

    # --- watching

    def _watcher(self, client: Client) -> None:
        """Watches one job after the other, each to its end, whatever happens on the way."""
        while True:
            watch = Watch(self._unwatched.get())
            self.watches.append(watch)
            while not watch.ended:
                try:
                    for document in client.watch(watch.job):
                        now = time.monotonic()
                        watch.pause, watch.last = max(watch.pause, now - watch.last), now
                        watch.events += 1
                        watch.ended = document["status"] in TERMINAL
                except DimError as e:
                    watch.error = f"{e.code.value}: {e.message}"
                    time.sleep(0.2)
