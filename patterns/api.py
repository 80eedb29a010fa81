"""What a pattern engine is: pure decisions over the facts of one job.

An engine never does I/O, knows no clock and keeps no state of its own: `decide` is a function of
the plan (frozen when the job was scheduled, kept in the job's record) and of the task results so
far. So a second orchestrator that takes the job over decides the same.

The life of a job as an engine sees it::

    plan_X(config, facts) -> Plan          once, at scheduling; stored in the record
    decide(progress)      -> Run | Wait | Seal | Finish | Fail    after every change
    conclude(round, results) -> Conclusion   heavy numerics, after a seal; runs in a thread
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

Array = NDArray[Any]
Reduce = Literal["rows", "mean", "votes"]
"""What the executor does to outputs that have the batch axis before they leave the node: nothing,
their mean over the rows, or class counts (outputs ``class`` and ``counts``)."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What an engine may know of a model."""

    name: str
    """As the client named it (id or CID)."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    batched_inputs: frozenset[str]
    batched_outputs: frozenset[str]
    """Outputs whose axis 0 is the batch axis."""
    optional_inputs: frozenset[str] = frozenset()
    """Those that may be left out."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of the swarm and the inputs when a job is planned."""

    models: Mapping[str, ModelFacts]
    nodes: tuple[str, ...]
    """Peer ids of the nodes that qualify, best first."""
    client_rows: int | None = None
    """Length of axis 0 that all batched client inputs share; None without client data."""
    cabinet_rows: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])
    """cabinet name -> peer id -> rows."""
    named: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """Node as the client named it -> peer ids. A name that is absent is taken for a peer id."""
    client_inputs: frozenset[str] | None = None
    """Names of the tensors in ``client_data``; None if the caller does not say."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where some inputs of a task come from."""

    kind: Literal["client", "cabinet", "task", "aggregate"]
    ref: str = ""
    """cabinet: its name; task: the task key whose outputs feed this one; aggregate: the round."""
    rename: Mapping[str, str] = field(default_factory=dict[str, str])
    """name in the source -> input of the model. Unlisted names pass unchanged."""
    rows: tuple[int, int] | None = None
    """client: the half-open row range of every batched input."""


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """One run of one model. ``key`` is stable within the job: ``r0/s3``, ``m/model-a``, ``step-2``."""

    key: str
    round: int
    model: str
    sources: tuple[Source, ...]
    """Merged in order: of two values for one input the later source's counts, and names that are no
    input of the model are left out (`patterns.sources.feed`). A cabinet comes first: it fills what no
    other source feeds."""
    nodes: tuple[str, ...] = ()
    """Peer ids that may run it, in order of preference; empty: wherever it fits."""
    reduce: Reduce = "rows"
    vote_output: str | None = None
    """With ``reduce == "votes"``: the output that votes, None for the default rule."""
    rename_outputs: Mapping[str, str] = field(default_factory=dict[str, str])
    columns: tuple[str, ...] | Mapping[str, tuple[str, ...]] | None = None
    timeout: float | None = None
    """Seconds for this task alone; None leaves it to the job's timeout."""
    optional: bool = False
    """True if the job can do without it (``min_nodes``)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The tasks of a job by round, fixed when it was scheduled. Engines build round r > 0 from
    round 0, so only round 0 is kept."""

    tasks: tuple[TaskPlan, ...]


@dataclass(frozen=True, slots=True)
class TaskState:
    """Where one task stands. ``failed`` means failed for good, all retries spent."""

    key: str
    status: Literal["pending", "running", "completed", "failed"]
    node: str | None = None
    rows: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    tasks: Mapping[str, TaskState]
    """By task key; a key that is absent has not been started."""
    seals: Mapping[int, tuple[str, ...]]
    """round -> the task keys that its aggregate covers."""


@dataclass(frozen=True, slots=True)
class Run:
    """These tasks should be running now (those that already are, or are done, may be listed again)."""

    tasks: tuple[TaskPlan, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to start; results are outstanding."""


@dataclass(frozen=True, slots=True)
class Seal:
    """Fix what the aggregate of this round covers."""

    round: int
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Finish:
    """All is there: call `Engine.conclude` with the results of the last round's seal."""

    round: int
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fail:
    """The job cannot succeed any more."""

    code: str
    message: str
    hint: str = ""
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])


Decision = Run | Wait | Seal | Finish | Fail


@dataclass(frozen=True, slots=True)
class TaskResult:
    """A finished task with its output values."""

    key: str
    model: str
    node: str
    rows: int
    """Rows of data that went into it (the weight in federated averaging); 1 if there is no batch."""
    outputs: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Conclusion:
    """The outcome of a round: output values, or for a chain the task whose outputs are the result."""

    outputs: Mapping[str, Array] = field(default_factory=dict[str, Array])
    passthrough: str | None = None
    """Key of the task whose outputs, by reference, are the job's outputs."""
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """JSON-able."""


class PatternError(Exception):
    """Bad data or config found by an engine: a code of `dimnode.errors.Code`, a message, a hint."""

    def __init__(self, code: str, message: str, hint: str = "", details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.details: Mapping[str, Any] = details or {}


class Engine(Protocol):
    """One pattern's decisions for one job."""

    needs_values: bool
    """Whether `conclude` wants `TaskResult.outputs`; a chain passes references on and does not."""

    @property
    def last_round(self) -> int: ...

    def decide(self, progress: Progress) -> Decision: ...

    def conclude(self, round_: int, results: Sequence[TaskResult]) -> Conclusion | Fail:
        """Aggregate one sealed round. Raises nothing: bad data is a `Fail`."""
        ...
