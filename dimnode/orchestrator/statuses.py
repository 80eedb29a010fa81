"""The status of a job on its way to an end."""

from __future__ import annotations

from dimnode.domain.record import JobStatus, StatusEntry
from dimnode.orchestrator.ownership import Held
from dimnode.ports import Clock
from dimnode.records.table import RecordTable

_ORDER: tuple[str, ...] = ("queued", "scheduling", "fetching", "running", "aggregating", "completed", "failed", "cancelled", "expired")


class Statuses:
    """Of one job, under one claim. Noted: they become durable with the next decision."""

    def __init__(self, held: Held, table: RecordTable, clock: Clock) -> None:
        self._held = held
        self._table = table
        self._clock = clock

    def enter(self, status: JobStatus) -> None:
        """Statuses only go forward."""
        view = self._table.view(self._held.job)
        if view.terminal or (_ORDER.index(status) <= _ORDER.index(view.status) and status != "scheduling"):
            return
        if view.status == status:
            return
        elapsed = self._held.elapsed(self._clock.monotonic())
        entry = StatusEntry(job=self._held.job, ballot=self._held.ballot, status=status, at=self._clock.wall(), elapsed=elapsed)
        self._table.note(self._held.job, entry)

    def stage(self, stage: str) -> None:
        """A task told its stage: the job is at least there."""
        if stage == "fetching":
            self.enter("fetching")
        elif stage == "running":
            self.enter("running")
