"""What an orchestrator may be told; every time limit and bound of this package is here."""

from __future__ import annotations

from dataclasses import dataclass, field

from dimnode.core.pace import PaceSettings
from dimnode.core.retention import RetentionRule


@dataclass(frozen=True, slots=True)
class OrchestratorSettings:
    job_timeout: float = 3600.0
    """Seconds a job may live if its form says nothing."""
    retries: int = 2
    """Further attempts for a failed task if the form says nothing; also how often a task is run again because its
    output was lost."""
    interruptions: int = 20
    """Attempts at one task that a stop or restart of their nodes may end without counting as a failure of the task. With more of
    them it may be the task that ends the nodes."""
    shortages: int = 20
    """Attempts at one task that may come to nothing because their nodes had no room left, before each further one counts as a failure:
    every one of them is an entry in the job's record. Orders that a node does not even accept are not counted."""
    max_spec_bytes: int = 1 << 20
    inline_bytes: int = 64 * 1024
    """Tensors above this travel by CID."""
    inline_result_bytes: int = 256 * 1024
    """A result document up to this size is kept in the job's record as well as in IPFS."""
    max_active_jobs: int = 20_000
    """Accepted and unfinished jobs; more are refused with RESOURCE_EXHAUSTED. Jobs that are taken over are never refused."""
    max_running_jobs: int = 256
    """Jobs driven at once; the others are queued by priority. Jobs that wait for nodes, models or cabinets do not count."""
    burst_jobs: int = 4
    """While at least so many jobs are being accepted at once, those that were accepted are begun with pauses."""
    burst_lasts: float = 1.0
    """Seconds, so long after such a moment too."""
    burst_pause: float = 0.25
    """Seconds, between two of them."""
    burst_stock: int = 2_000
    """Jobs that may wait to be begun for that reason; with more of them there are no pauses."""
    pace: PaceSettings = field(default_factory=PaceSettings)
    replan_cost: float = 0.0005
    """Seconds that waiting jobs let pass, times their number, before they look again at a changed swarm: so that many
    of them leave time for the others."""
    warm_ahead: bool = True
    """Nodes get the models of a chained job's later steps ready while the first one runs."""
    warm_most: int = 8
    """Steps of one job, at the most."""
    warm_timeout: float = 120.0
    """Seconds for one of them."""
    max_tasks_per_job: int = 64
    """Tasks of one job that are dispatched at once."""
    retention: RetentionRule = field(default_factory=RetentionRule)
    """Unfinished records that are orphans by it are not taken over."""
    claims_at_once: int = 256
    """Unfinished jobs that are claimed in one transaction, and asked for in one request, when they are taken over."""
    claim_retry: float = 5.0
    """Seconds before claims that could not be written, or that somebody else's seems to outdo, are tried again."""
    full_check: float = 1.0
    """Seconds between two looks whether the journal takes entries."""
    full_patience: float = 5.0
    """Seconds for which a full disk is borne while others hold seats; then this one is given up."""
    sync_timeout: float = 2.0
    """Seconds given to learn what others know of jobs before they are taken over when a term begins."""
    sync_offered: float = 0.3
    """The same for jobs that somebody offers: he told what he knows."""
    inquiry_timeout: float = 0.5
    """Seconds that the nodes of jobs which are taken over have to say how their tasks stand."""
    adopt_wait: float = 3.0
    """Seconds that a node which may run a task of a former owner is waited for, if this node does not know it yet."""
    probe_timeout: float = 2.0
    """Seconds without progress until a task's output counts as lost."""
    elapsed_checkpoint: float = 10.0
    """Seconds of a job's life that may be forgotten when its owner dies, or ``elapsed_share`` of it if that is more."""
    elapsed_share: float = 0.25
    checkpoints_at_once: int = 64
    """Jobs whose age is written down in one second, at the most; the others wait their turn."""
    fetch_timeout: float = 30.0
    """Seconds without progress while reading tensors or specs from the swarm."""
    cancel_timeout: float = 5.0
    """Seconds a node is given to confirm a cancellation."""
    cancel_wait: float = 0.5
    """Seconds that the answer to a cancel waits for that: if this node died before they heard it, they would go on."""
    deadline_grace: float = 2.0
    """Seconds past a task's own timeout until its node counts as silent."""
    leaving_grace: float = 30.0
    """Seconds that a node which leaves is given to finish a task, or to hand it back."""
    optional_wait: float = 10.0
    """Seconds that a task which the job can do without (``min_nodes``) waits for its nodes to come back."""
    retry_backoff: float = 0.25
    """Seconds before a refused or failed task is tried again, doubled each time."""
    retry_backoff_max: float = 5.0
    result_wait: float = 30.0
    """Most seconds that one call may wait for a job to end."""
