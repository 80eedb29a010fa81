"""What a record says: a pure, deterministic function of its entries. DESIGN.md section 4 has the rules.

- The owner is the highest claim.
- Attempts are facts of their executors: they count from any ballot, if some owner assigned that task, attempt number
  and node. What a node says to have done unasked is carried along and counts for nothing.
- Decisions below the highest claim do not count, except the outcomes completed, cancelled and deleted.
  Two more come from any ballot, because a new owner goes on with them instead of deciding anew: the plan
  (lowest (ballot, entry id)) and, for each round, the seal (lowest (ballot, entry id)).
- Assignments of former owners are shown with their ballot: whoever takes over asks those nodes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from dimnode.core.job_record import FINAL, Record, outcome_key
from dimnode.domain.record import (
    Assign,
    Attempt,
    Ballot,
    Claim,
    Core,
    ErrorInfo,
    JobStatus,
    OutcomeEntry,
    PlanEntry,
    SealEntry,
    StatusEntry,
    Terminal,
    Void,
)

_PROGRESS: dict[str, int] = {"queued": 0, "scheduling": 1, "fetching": 2, "running": 3, "aggregating": 4}
_NO_BALLOT = Ballot(-1, "", "")


class AttemptFact(msgspec.Struct, frozen=True, gc=False):
    """One finished attempt: its entry id and what the executor signed."""

    id: str
    attempt: Attempt


class Assignment(msgspec.Struct, frozen=True, gc=False):
    """The latest assignment of a task: the highest (ballot, attempt number)."""

    id: str
    assign: Assign
    current: bool
    """Made by the present owner; False: by a former one, the task may still run there."""


class SealFact(msgspec.Struct, frozen=True, gc=False):
    id: str
    seal: SealEntry


class Superseded(msgspec.Struct, frozen=True, gc=False):
    """An outcome that lost."""

    id: str
    status: Terminal
    ballot: Ballot


class JobView(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The state of one job as its record tells it. (A struct: it is made five times as fast as a frozen dataclass, and views are made often.)"""

    job: str
    core: Core | None
    """None while only other entries have arrived, and after deletion."""
    owner: Ballot | None
    status: JobStatus | Terminal
    """``deleted`` is not shown to clients: to them the job does not exist."""
    times: Mapping[str, float]
    """Status -> wall clock of whoever wrote it; statuses of former owners left out."""
    plan: Mapping[str, Any] | None
    plan_id: str
    """Its entry id; empty if there is none."""
    assignments: Mapping[str, Assignment]
    """By task key."""
    last_attempt: Mapping[str, int]
    """Task key -> highest attempt number used so far, by any owner."""
    attempts: Mapping[str, AttemptFact]
    """Task key -> the completed attempt that counts: the sealed one, else the lowest (ballot, number, id)."""
    completed: Mapping[str, tuple[AttemptFact, ...]]
    """Task key -> all completed attempts that are not void, in that order."""
    failed: Mapping[str, tuple[AttemptFact, ...]]
    """Task key -> failed attempts, in that order."""
    seals: Mapping[int, SealFact]
    """By round."""
    outcome: OutcomeEntry | None
    outcome_id: str | None
    superseded: tuple[Superseded, ...]
    epoch: int
    """n of the highest claim; 0 before the first."""
    updated: float
    elapsed: float
    """Seconds the job has lived, as last checkpointed by an owner."""

    @property
    def error(self) -> ErrorInfo | None:
        return self.outcome.error if self.outcome is not None else None

    @property
    def terminal(self) -> bool:
        return self.outcome is not None

    def failures(self, task: str) -> int:
        """How often a task failed, on any node, under any owner."""
        return len({(f.attempt.ballot, f.attempt.attempt, f.attempt.node) for f in self.failed.get(task, ())})


@dataclass(slots=True)
class _Sorted:
    """Entries by kind."""

    cores: list[tuple[str, Core]] = field(default_factory=list[tuple[str, Core]])
    claims: list[tuple[str, Claim]] = field(default_factory=list[tuple[str, Claim]])
    plans: list[tuple[str, PlanEntry]] = field(default_factory=list[tuple[str, PlanEntry]])
    assigns: list[tuple[str, Assign]] = field(default_factory=list[tuple[str, Assign]])
    attempts: list[tuple[str, Attempt]] = field(default_factory=list[tuple[str, Attempt]])
    voids: list[tuple[str, Void]] = field(default_factory=list[tuple[str, Void]])
    seals: list[tuple[str, SealEntry]] = field(default_factory=list[tuple[str, SealEntry]])
    outcomes: list[tuple[str, OutcomeEntry]] = field(default_factory=list[tuple[str, OutcomeEntry]])
    statuses: list[tuple[str, StatusEntry]] = field(default_factory=list[tuple[str, StatusEntry]])


_SLOT: dict[type, str] = {
    Core: "cores",
    Claim: "claims",
    PlanEntry: "plans",
    Assign: "assigns",
    Attempt: "attempts",
    Void: "voids",
    SealEntry: "seals",
    OutcomeEntry: "outcomes",
    StatusEntry: "statuses",
}


def view(record: Record) -> JobView:
    """The job's state. Made once per version of the record."""
    cached = record.view_cache
    if cached is not None and cached[0] == record.version:
        return cast("JobView", cached[1])
    made = _view(record)
    record.view_cache = (record.version, made)
    return made


def _view(record: Record) -> JobView:
    by = _sort(record)
    asked = {(a.task, a.attempt, a.node) for _, a in by.assigns}
    by.attempts = [item for item in by.attempts if (item[1].task, item[1].attempt, item[1].node) in asked]
    top = max((c.ballot for _, c in by.claims), default=_NO_BALLOT)
    owned = top is not _NO_BALLOT
    core = min(by.cores, default=None, key=lambda item: item[0])
    winner, superseded = _outcome(by.outcomes, top)
    seals = _seals(by.seals)
    voids = {v.attempt_id for _, v in by.voids if v.ballot >= top}
    completed = _facts(by.attempts, "completed", voids)
    outcome = winner[1] if winner else None
    plan = min(by.plans, key=lambda item: (item[1].ballot, item[0]), default=None)
    return JobView(
        job=record.job,
        core=core[1] if core else None,
        owner=top if owned else None,
        status=outcome.status if outcome else _status(by, top, owned),
        times=_times(by, top, core[1] if core else None, outcome),
        plan=plan[1].plan if plan else None,
        plan_id=plan[0] if plan else "",
        assignments=_assignments(by.assigns, top),
        last_attempt=_last_attempts(by.assigns),
        attempts=_chosen(completed, seals),
        completed=completed,
        failed=_facts(by.attempts, "failed", set()),
        seals=seals,
        outcome=outcome,
        outcome_id=winner[0] if winner else None,
        superseded=superseded,
        epoch=top.n if owned else 0,
        updated=_updated(by),
        elapsed=max((e.elapsed for _, e in (*by.claims, *by.statuses)), default=0.0),
    )


def _sort(record: Record) -> _Sorted:
    by = _Sorted()
    for key, body in record.items():
        slot = _SLOT.get(type(body))
        if slot is not None:
            getattr(by, slot).append((key, body))
    return by


def _outcome(outcomes: list[tuple[str, OutcomeEntry]], top: Ballot) -> tuple[tuple[str, OutcomeEntry] | None, tuple[Superseded, ...]]:
    ranked = sorted(outcomes, key=lambda item: outcome_key(*item))
    counting = [item for item in ranked if item[1].status in FINAL or item[1].ballot >= top]
    winner = counting[0] if counting else None
    return winner, tuple(Superseded(k, o.status, o.ballot) for k, o in ranked if winner is None or k != winner[0])


def _status(by: _Sorted, top: Ballot, owned: bool) -> JobStatus:
    """What the owner last entered, at least what the entries prove: a claim is scheduling, an attempt under
    this claim means that tasks run."""
    if not owned:
        return "queued"
    reached = {"scheduling"} | {s.status for _, s in by.statuses if s.ballot >= top and s.status in _PROGRESS}
    if any(a.ballot >= top for _, a in by.attempts):
        reached.add("running")
    return cast("JobStatus", max(reached, key=_PROGRESS.__getitem__))


def _times(by: _Sorted, top: Ballot, core: Core | None, outcome: OutcomeEntry | None) -> dict[str, float]:
    times: dict[str, float] = {}
    if core is not None:
        times["queued"] = core.submitted
    for _, claim in by.claims:
        if claim.ballot == top:
            times["scheduling"] = min(claim.at, times.get("scheduling", claim.at))
    for _, s in by.statuses:
        if s.ballot >= top and s.status in _PROGRESS and s.status not in ("queued", "scheduling"):
            times[s.status] = min(s.at, times.get(s.status, s.at))
    if outcome is not None:
        times[outcome.status] = outcome.at
    return dict(sorted(times.items(), key=lambda item: _PROGRESS.get(item[0], len(_PROGRESS))))


def _assignments(assigns: list[tuple[str, Assign]], top: Ballot) -> dict[str, Assignment]:
    best: dict[str, tuple[str, Assign]] = {}
    for key, a in assigns:
        known = best.get(a.task)
        if known is None or (a.ballot, a.attempt, key) > (known[1].ballot, known[1].attempt, known[0]):
            best[a.task] = (key, a)
    return {task: Assignment(key, a, a.ballot >= top) for task, (key, a) in best.items()}


def _last_attempts(assigns: list[tuple[str, Assign]]) -> dict[str, int]:
    last: dict[str, int] = {}
    for _, a in assigns:
        last[a.task] = max(a.attempt, last.get(a.task, 0))
    return last


def _facts(attempts: list[tuple[str, Attempt]], status: str, voids: set[str]) -> dict[str, tuple[AttemptFact, ...]]:
    found: dict[str, list[AttemptFact]] = {}
    for key, a in attempts:
        if a.status == status and key not in voids:
            found.setdefault(a.task, []).append(AttemptFact(key, a))
    return {task: tuple(sorted(facts, key=lambda f: (f.attempt.ballot, f.attempt.attempt, f.id))) for task, facts in found.items()}


def _seals(seals: list[tuple[str, SealEntry]]) -> dict[int, SealFact]:
    best: dict[int, SealFact] = {}
    for key, s in seals:
        known = best.get(s.round)
        if known is None or (s.ballot, key) < (known.seal.ballot, known.id):
            best[s.round] = SealFact(key, s)
    return best


def _chosen(completed: dict[str, tuple[AttemptFact, ...]], seals: dict[int, SealFact]) -> dict[str, AttemptFact]:
    sealed = {entry_id for s in seals.values() for entry_id in s.seal.attempts.values()}
    return {task: next((f for f in facts if f.id in sealed), facts[0]) for task, facts in completed.items()}


def _updated(by: _Sorted) -> float:
    at = [c.submitted for _, c in by.cores]
    at += [e.at for _, e in (*by.claims, *by.statuses, *by.outcomes)]
    return max(at, default=0.0)
