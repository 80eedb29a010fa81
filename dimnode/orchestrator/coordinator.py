"""Has jobs driven, one drive each, and sees to it that what goes wrong in a job ends this job and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import structlog
import trio

from dimnode.domain.record import Assign, Ballot
from dimnode.errors import Fenced
from dimnode.orchestrator.drive import Drive, Parts
from dimnode.orchestrator.job_end import JobEnds
from dimnode.orchestrator.job_errors import error_of_exception
from dimnode.orchestrator.ownership import Held
from dimnode.orchestrator.partials import PartialOutputs
from dimnode.orchestrator.places import Place
from dimnode.orchestrator.selection import Selector
from dimnode.orchestrator.settings import OrchestratorSettings
from dimnode.orchestrator.task_runner import TaskRunner
from dimnode.orchestrator.values import Compute, Values, in_thread
from dimnode.orchestrator.warming import WarmAhead
from dimnode.ports import Clock, Models, Registry
from dimnode.records.table import RecordTable
from p2p.groups import leaves
from p2p.ipfs.api import ContentStore

log = structlog.get_logger(__name__)


class Coordinator:
    def __init__(
        self,
        table: RecordTable,
        runner: TaskRunner,
        selector: Selector,
        models: Models,
        registry: Registry,
        store: ContentStore,
        values: Values,
        clock: Clock,
        settings: OrchestratorSettings,
        compute: Compute = in_thread,
        ahead: WarmAhead | None = None,
    ) -> None:
        self.partials = PartialOutputs()
        """Of the jobs that are driven."""
        self._runner = runner
        self._ends = JobEnds(table, clock, settings)
        self._parts = Parts(
            table, runner, selector, models, registry, store, values, clock, settings, compute, self._ends, ahead, self.partials
        )

    async def drive(self, held: Held, place: Place) -> None:
        """Returns when the job is terminal, or when another owner fenced this one. If it is cancelled
        the job stays as it is, for the next owner. Whatever goes wrong in a job ends this job and nothing else."""
        try:
            drive = Drive(self._parts, held, place)
            await drive.run()
            if drive.timed_out is not None:
                await self._ends.end(drive.timed_out)
        except Exception as e:  # noqa: BLE001 - told to the client as the job's error, and logged
            causes = list(leaves(e))
            if fenced := next((c for c in causes if isinstance(c, Fenced)), None):
                log.info("job.fenced", job=held.job, reason=fenced.message)
                return
            await self._ends.end(self._ends.failed(held.job, held.ballot, error_of_exception(held.job, causes[0])))
        except BaseExceptionGroup as group:  # cancelled, and something failed over that: the job is somebody else's now
            cancelled, errors = group.split(trio.Cancelled)
            if cancelled is None:
                raise
            if errors is not None:
                log.warning("job.left", job=held.job, reason=str(next(leaves(errors))))
            raise cancelled from None

    async def call_off(self, assigns: Sequence[Assign], ballot: Ballot) -> None:
        """Of a job that was ended here and driven elsewhere, by an owner who may be gone."""
        await self._runner.call_off(assigns, ballot)
