"""Records in memory: unfinished jobs all, of the finished ones the latest."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import trio

from dimnode.core.job_record import Record
from dimnode.domain.record import SignedEntry


class KeptRecord:
    __slots__ = ("changed", "ending", "noted", "passing", "record", "version")

    def __init__(self, record: Record) -> None:
        self.record = record
        self.passing: Sequence[str] = ()
        """See `RecordTable.pass_on`."""
        self.noted: list[SignedEntry] = []
        """Entries that the journal does not have yet, as far as is known."""
        self.version = 0
        self.changed = trio.Event()
        self.ending = trio.Lock()


class RecordMemory:
    """``keep_finished`` jobs, and ``keep_bytes`` of their entries, stay after they ended; the latest in any case."""

    def __init__(self, keep_finished: int, keep_bytes: int) -> None:
        self._keep_finished = keep_finished
        self._keep_bytes = keep_bytes
        self.active: dict[str, KeptRecord] = {}
        """Unfinished ones, the longest known first."""
        self._finished: OrderedDict[str, KeptRecord] = OrderedDict()
        self._sizes: dict[str, int] = {}
        """Of the finished ones."""
        self._bytes = 0

    def __contains__(self, job: str) -> bool:
        return job in self.active or job in self._finished

    def get(self, job: str) -> KeptRecord | None:
        return self.active.get(job) or self._finished.get(job)

    def pop(self, job: str) -> KeptRecord | None:
        """Out of memory."""
        self._bytes -= self._sizes.pop(job, 0)
        return self.active.pop(job, None) or self._finished.pop(job, None)

    def file(self, job: str, state: KeptRecord, *, finished: bool) -> None:
        if not finished:
            if self._finished.pop(job, None) is not None:
                self._bytes -= self._sizes.pop(job)
            self.active[job] = state
            return
        self.active.pop(job, None)
        self._finished[job] = state
        self._finished.move_to_end(job)
        size = state.record.size
        self._bytes += size - self._sizes.get(job, 0)
        self._sizes[job] = size
        while len(self._finished) > self._keep_finished or (self._bytes > self._keep_bytes and len(self._finished) > 1):
            oldest, _ = self._finished.popitem(last=False)
            self._bytes -= self._sizes.pop(oldest)
