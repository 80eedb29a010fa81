"""The part that accepts jobs and drives them. Alive only while a seat is held."""

from __future__ import annotations

from dimnode.core.record_gate import EntryRules
from dimnode.orchestrator.admission import Admission
from dimnode.orchestrator.coordinator import Coordinator
from dimnode.orchestrator.ownership import Seats, Sync, no_seats, no_sync
from dimnode.orchestrator.selection import Selector
from dimnode.orchestrator.service import Orchestrator
from dimnode.orchestrator.settings import OrchestratorSettings
from dimnode.orchestrator.takeover import Ask, Inquiry, ask_over
from dimnode.orchestrator.task_calls import TaskCalls
from dimnode.orchestrator.task_runner import TaskRunner
from dimnode.orchestrator.values import Compute, Values, in_thread
from dimnode.orchestrator.warming import WarmAhead
from dimnode.ports import Clock, DaemonClient, Models, Registry, Signer
from dimnode.records.table import RecordTable
from p2p.ipfs.api import ContentStore


def build_orchestrator(
    *,
    swarm: str,
    rules: EntryRules,
    boot: str,
    signer: Signer,
    table: RecordTable,
    store: ContentStore,
    registry: Registry,
    models: Models,
    client: DaemonClient,
    clock: Clock,
    settings: OrchestratorSettings,
    ask: Ask,
    sync: Sync = no_sync,
    seats: Seats = no_seats,
    compute: Compute = in_thread,
) -> Orchestrator:
    """One term's orchestrator on the node's records, wired. ``boot`` makes this start's ballots. ``ask`` asks nodes how the
    tasks of jobs that are taken over stand (`takeover.ask_over`), ``sync`` learns what others know of jobs, ``seats`` are
    the live ones, as (peer, boot)."""
    values = Values(store, settings.inline_bytes, settings.fetch_timeout, compute, settings.probe_timeout)
    selector = Selector(registry, models)
    calls = TaskCalls(table, client, selector, settings, rules)
    runner = TaskRunner(table, calls, models, selector, values, clock, settings)
    coordinator = Coordinator(
        table, runner, selector, models, registry, store, values, clock, settings, compute, WarmAhead(client, models, selector, settings)
    )
    admission = Admission(swarm, registry, models, selector, values, clock, settings)
    inquiry = Inquiry(table, ask, settings, rules)
    return Orchestrator(
        signer.peer_id, boot, table, admission, coordinator, selector, store, clock, settings, inquiry, sync=sync, seats=seats
    )


__all__ = ["Orchestrator", "OrchestratorSettings", "ask_over", "build_orchestrator"]
