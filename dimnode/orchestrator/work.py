"""What the parts that drive one job share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import trio

from dimnode.core.job_view import AttemptFact
from dimnode.domain.job_form import JobForm
from dimnode.domain.model import ModelManifest, ModelRef
from dimnode.domain.record import Ballot
from dimnode.domain.task import TaskInput, TextPiece
from dimnode.domain.tensors import TensorValue
from dimnode.errors import DimError
from dimnode.orchestrator.inputs import task_key
from dimnode.orchestrator.places import Place
from dimnode.orchestrator.takeover import NOTHING, Findings
from patterns.api import TaskPlan


class OutputGone(Exception):
    """The output of a task that counted as done is nowhere to be had: the task must run again."""

    def __init__(self, task: str, reason: str) -> None:
        super().__init__(f"the output of task {task} is gone: {reason}")
        self.task = task
        self.reason = reason


@dataclass(slots=True)
class Seek:
    """One task whose attempt is sought, with all that determines its task key."""

    plan: TaskPlan
    ref: ModelRef
    manifest: ModelManifest
    inputs: tuple[TaskInput, ...]
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    fact: AttemptFact | None = None
    """The attempt that answers it."""

    def key(self, node: str) -> str:
        return task_key(self.plan, self.ref.cid, self.inputs, node)

    def answered_by(self, fact: AttemptFact) -> bool:
        """Equal keys, equal work: nothing else is reused."""
        return fact.attempt.task == self.plan.key and fact.attempt.task_key == self.key(fact.attempt.node)


@dataclass(slots=True)
class Work:
    """One job while it is driven."""

    job: str
    form: JobForm
    ballot: Ballot
    place: Place
    findings: Findings = NOTHING
    """What the nodes of the job's former owner said."""
    over: bool = False
    """The job has come to its end, here and now: nodes that still work on it are told."""
    pending: bool = False
    """A plan or a seal was noted and is not durable yet: one assignment goes first, and takes it along."""
    first: trio.Lock = field(default_factory=trio.Lock)
    active: int = 0
    """Tasks that are not done."""
    stuck: int = 0
    """Those of them that no node can run now."""
    done: dict[str, AttemptFact] = field(default_factory=dict[str, AttemptFact])
    """Task key -> the attempt that this owner goes on with."""
    sought: dict[str, Seek] = field(default_factory=dict[str, Seek])
    """Task key -> what is being looked for."""
    aggregates: dict[int, Mapping[str, TensorValue]] = field(default_factory=dict[int, Mapping[str, TensorValue]])
    """round -> outputs of its conclusion, for feedback."""
    checkpoint: str = ""
    """CID of the latest one."""
    failures: dict[str, DimError] = field(default_factory=dict[str, DimError])
    """Task key -> why it failed for good."""
    excused: set[str] = field(default_factory=set[str])
    """Failed attempts, by entry id, that are no fault of task or node: an input was gone."""
    waiting: dict[str, str] = field(default_factory=dict[str, str])
    """Task key -> what it waits for."""
    placed: dict[str, str] = field(default_factory=dict[str, str])
    """Task key -> the node that it was given to last, while it is not done."""
    stage: Callable[[str], None] | None = None
    partial: Callable[[str, int, TextPiece], None] | None = None
    """Called with a task, an attempt's number and a piece of its text."""

    def lend_if_stuck(self) -> None:
        """A job whose tasks all wait for the swarm needs no place among those that are driven."""
        if self.active and self.stuck == self.active:
            self.place.lend()
