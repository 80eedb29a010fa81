"""What an orchestrator may be told; every time limit and bound of this package is here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OrchestratorSettings:
    job_timeout: float = 3600.0
    """Seconds a job may live if its form says nothing."""
    retries: int = 2
    """Further attempts for a failed task if the form says nothing."""
    max_spec_bytes: int = 1 << 20
    inline_bytes: int = 64 * 1024
    """Tensors above this travel by CID."""
    inline_result_bytes: int = 256 * 1024
    """A result document up to this size is kept in the job's record as well as in IPFS."""
    max_active_jobs: int = 20_000
    """Accepted and unfinished jobs; more are refused with RESOURCE_EXHAUSTED."""
    max_running_jobs: int = 256
    """Jobs driven at once; the others are queued by priority. Jobs that wait for nodes, models or cabinets do not count."""
    replan_cost: float = 0.0005
    """Seconds that waiting jobs let pass, times their number, before they look again at a changed swarm: so that many
    of them leave time for the others."""
    max_tasks_per_job: int = 64
    """Tasks of one job that are dispatched at once."""
    claims_at_once: int = 256
    """Unfinished jobs that are claimed in one transaction when a term begins."""
    claim_retry: float = 5.0
    """Seconds before claims that could not be written are tried again."""
    questions_at_once: int = 32
    """Jobs of one batch that are looked up at once because their client may have sent them before."""
    fetch_timeout: float = 30.0
    """Seconds without progress while reading tensors or specs from the swarm."""
    cancel_timeout: float = 5.0
    """Seconds a node is given to confirm a cancellation."""
    deadline_grace: float = 2.0
    """Seconds past a task's own timeout until its node counts as silent."""
    optional_wait: float = 10.0
    """Seconds that a task which the job can do without (``min_nodes``) waits for its nodes to come back."""
    retry_backoff: float = 0.25
    """Seconds before a refused or failed task is tried again, doubled each time."""
    retry_backoff_max: float = 5.0
    result_wait: float = 30.0
    """Most seconds that one call may wait for a job to end."""
