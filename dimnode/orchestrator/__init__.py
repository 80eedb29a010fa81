"""The part that accepts jobs and drives them. Alive only while a seat is held."""

from __future__ import annotations

from dimnode.orchestrator.admission import Admission
from dimnode.orchestrator.coordinator import Coordinator
from dimnode.orchestrator.selection import Selector
from dimnode.orchestrator.service import Orchestrator
from dimnode.orchestrator.settings import OrchestratorSettings
from dimnode.orchestrator.task_runner import TaskRunner
from dimnode.orchestrator.values import Compute, Values, in_thread
from dimnode.ports import Clock, DaemonClient, Journal, Models, Registry, Signer
from dimnode.records.table import RecordTable
from p2p.ipfs.api import ContentStore


def build_orchestrator(
    *,
    swarm: str,
    boot: str,
    signer: Signer,
    table: RecordTable,
    journal: Journal,
    store: ContentStore,
    registry: Registry,
    models: Models,
    client: DaemonClient,
    clock: Clock,
    settings: OrchestratorSettings,
    compute: Compute = in_thread,
) -> Orchestrator:
    """One term's orchestrator on the node's records, wired. ``boot`` makes this start's ballots."""
    values = Values(store, settings.inline_bytes, settings.fetch_timeout, compute)
    selector = Selector(registry, models)
    runner = TaskRunner(table, client, models, selector, clock, settings)
    coordinator = Coordinator(table, runner, selector, models, registry, store, values, clock, settings, compute)
    admission = Admission(swarm, registry, models, selector, values, clock, settings)
    return Orchestrator(signer.peer_id, boot, table, journal, admission, coordinator, selector, store, clock, settings)


__all__ = ["Orchestrator", "OrchestratorSettings", "build_orchestrator"]
