"""How jobs end: outcomes are written whatever stands in the way."""

from __future__ import annotations

import math
from collections.abc import Sequence

import structlog
import trio

from dimnode.domain.record import Ballot, ErrorInfo, OutcomeEntry
from dimnode.errors import DimError, Fenced, NotFound
from dimnode.orchestrator.settings import OrchestratorSettings
from dimnode.ports import Clock
from dimnode.records.table import RecordTable

log = structlog.get_logger(__name__)


class JobEnds:
    def __init__(self, table: RecordTable, clock: Clock, settings: OrchestratorSettings) -> None:
        self._table = table
        self._clock = clock
        self._settings = settings

    def failed(self, job: str, ballot: Ballot, error: ErrorInfo) -> OutcomeEntry:
        return OutcomeEntry(job=job, ballot=ballot, status="failed", at=self._clock.wall(), error=error)

    async def end(self, outcome: OutcomeEntry, blocks: Sequence[str] = (), patience: float = math.inf) -> bool:
        """Writes the job's outcome; while that is impossible (a full disk) tries again, for as long as it takes. ``blocks``: of its result,
        which the copies get before the end is shown, as far as that takes no longer than the copies' own patience and ``patience``
        seconds. False if somebody else owns the job by now: it is his to end."""
        until = trio.current_time() + patience
        delay = self._settings.retry_backoff
        while True:
            try:
                if self._table.view(outcome.job).owner != outcome.ballot:
                    return False
                if blocks:  # before the end itself, since that is not interrupted, and these may take long
                    with trio.move_on_at(until):
                        await self._table.append(outcome.job, blocks=blocks)
                    blocks = ()
                seen = await self._table.conclude(outcome.job, outcome)
            except NotFound:  # finished, by a cancel, and no longer in memory
                return True
            except Fenced as e:
                log.info("job.fenced", job=outcome.job, reason=e.message)
                return False
            except DimError as e:
                log.error("job.outcome_not_written", job=outcome.job, code=e.code.value, reason=e.message)
            else:
                log.info("job.finished", job=outcome.job, status=seen.status, code=seen.error.code if seen.error else None)
                return True
            await trio.sleep(delay)
            delay = min(2 * delay, self._settings.retry_backoff_max)
