"""The interface of every component, in one file: the architecture at a glance.

Components know each other by these protocols only; `dimnode.node` builds the real ones and wires them.
The network is `p2p.api.Network`, the content store `p2p.ipfs.api.ContentStore`, a pattern
`patterns.api.Engine`, a loader `loaders.api.Loader`; what a node's operator is served is in `dimnode.node_ports`.

Rules that hold everywhere: awaiting any method may be cancelled at any time and leaves things
consistent; methods without ``async`` never block; errors that reach people are `dimnode.errors`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dimnode.domain.job_form import JobForm
from dimnode.domain.model import ModelManifest, ModelRef
from dimnode.domain.node import CabinetInfo, Capabilities, Heartbeat, Load, NodeState, Seat
from dimnode.domain.record import Ballot, SignedEntry
from dimnode.domain.task import PartialOutput, TaskOrder, TaskReport, TaskUpdate


class Clock(Protocol):
    """The only source of time. Decisions get times passed in; shells read them here."""

    def wall(self) -> float:
        """Seconds since the epoch: for people, never for decisions."""
        ...

    def monotonic(self) -> float:
        """Seconds that also pass while the machine is suspended (CLOCK_BOOTTIME where there is one)."""
        ...


class Signer(Protocol):
    """The node's identity as far as signing goes."""

    @property
    def peer_id(self) -> str: ...

    def sign(self, data: bytes) -> bytes: ...


# --- state ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JobDigest:
    """One record of the journal in short."""

    job: str
    digest: bytes
    """`dimnode.core.job_record.Record.digest` of what is durable."""
    finished: bool
    """It has an outcome that counts: no later claim has undone it."""
    at: float
    """Wall clock of this node when the record last grew here: for retention."""
    owner: str = ""
    """Peer id of the highest claim; empty if there is none, or no more."""


class Journal(Protocol):
    """The node's durable memory: SQLite, WAL, ``synchronous=FULL``. Concurrent appends share one
    transaction (group commit)."""

    async def append(
        self, entries: Sequence[SignedEntry], *, under: Mapping[str, Ballot] | None = None, fresh: Collection[str] = ()
    ) -> dict[str, Ballot]:
        """Returns when the entries are fsynced. Known entries are ignored, and those that the record does not keep
        (`dimnode.core.job_record`: compaction). A claim raises the job's ballot. ``under``: jobs with the ballots under which
        their entries were decided; where a higher one is known, nothing of that job is stored. ``fresh``: those of them
        that are just being accepted; there any other ballot counts, also a lower one. Returns the ballots that fence. Raises `ResourceExhausted` when the disk is full."""
        ...

    async def load(self, job: str) -> tuple[SignedEntry, ...]:
        """All entries of one job, in order of arrival; empty if unknown."""
        ...

    async def discard(self, job: str, ids: Sequence[str]) -> None:
        """Take back entries that nobody else has; unknown ids are ignored."""
        ...

    async def unfinished(self) -> tuple[str, ...]:
        """Jobs that have a core and no outcome that counts (a later claim undoes failed and expired), oldest first."""
        ...

    async def recent(self, limit: int) -> tuple[str, ...]:
        """Jobs that have a core, newest first. (Others are those that this node ran tasks for.)"""
        ...

    async def get(self, key: str) -> bytes | None:
        """A small named value: ``election.n``, ``boot.count``, ``store.id``, ``receipt.head``..."""
        ...

    async def put(self, key: str, value: bytes) -> None:
        """Durable when it returns."""
        ...

    async def raise_ballot(self, job: str, ballot: Ballot) -> Ballot:
        """Persist the highest ballot seen for a job; returns the highest (which may be another's)."""
        ...

    async def load_many(self, jobs: Sequence[str]) -> dict[str, tuple[SignedEntry, ...]]:
        """As `load`, for many in one go; unknown jobs are left out."""
        ...

    async def digests(self, after: str, limit: int, *, parts: bool = False) -> tuple[JobDigest, ...]:
        """Jobs that have a core, or are deleted, with ids above ``after`` in order: for anti-entropy and retention.
        ``parts``: instead those of which there are only parts, what this node signed when it ran tasks for others."""
        ...

    async def digests_of(self, jobs: Sequence[str]) -> dict[str, JobDigest]:
        """As `digests`, of these; those of which there is no core are left out."""
        ...

    async def forget(self, jobs: Sequence[str]) -> None:
        """Remove whole records, and their ballots: after retention."""
        ...

    async def aclose(self) -> None: ...


# --- records and their copies --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Written:
    """What an owner decided about one job, to be copied before it takes effect."""

    job: str
    entries: Sequence[SignedEntry]
    """None: only ``blocks`` are to be kept."""
    new: bool = False
    """Just accepted: nobody has anything of it yet, and ``entries`` are the whole record."""
    blocks: Sequence[str] = ()
    """CIDs that the copies keep with the record: inputs, the result."""
    passing: Sequence[str] = ()
    """More such, in place of those before, that nobody waits for: the latest checkpoint."""


@dataclass(frozen=True, slots=True)
class Copied:
    """How that went. ``others``: nodes beside this one that have the whole record durably, ``blocks`` included."""

    job: str
    others: int
    fenced: Ballot | None = None
    """A copy knows this higher claim: the writer is not the owner any more."""
    entries: Sequence[SignedEntry] = ()
    """What proves it."""
    enough: bool = True
    """It counts. In election mode ``majority``: most of the voters have it, this node included if it votes."""


class Copies(Protocol):
    """Keeps copies of the records that this node owns on other nodes."""

    async def write(self, jobs: Sequence[Written], *, wanted: int | None = None) -> list[Copied]:
        """Returns, in order, when every job has ``wanted`` copies (default: ``jobs.replicas``), or is fenced, or when the
        time for it (2 s) is over or no other node could take one. What is missing then is repaired later."""
        ...

    def others(self, job: str) -> int:
        """Other nodes that are known to have the job's whole record."""
        ...

    def insists(self) -> bool:
        """Whether what this node decides counts only with others' acknowledgement (election mode ``majority``)."""
        ...

    def enough(self, job: str) -> bool:
        """Whether everything that this node decided about the job counts (`Copied.enough`)."""
        ...

    async def counts(self, job: str) -> bool:
        """Whether the end of a job that is here, whoever wrote it, may be shown; the voters are asked. Raises `NotFound`."""
        ...

    def drop(self, jobs: Sequence[str]) -> None:
        """This node no longer owns these jobs: it neither writes nor repairs their copies."""
        ...


# --- the swarm -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node as this node knows it."""

    heartbeat: Heartbeat
    state: NodeState
    last_seen: float
    """Wall clock of this node."""


class Registry(Protocol):
    """Who is in the swarm. Fed by gossiped heartbeats and by what connections tell."""

    def nodes(self) -> tuple[NodeView, ...]:
        """Self included; removed ones left out."""
        ...

    def find(self, name_or_id: str) -> tuple[NodeView, ...]:
        """Nodes with this peer id or this configured name (names need not be unique)."""
        ...

    def alive(self) -> tuple[NodeView, ...]: ...

    def changed(self) -> int:
        """A number that grows with every change: cheap to poll."""
        ...

    async def wait_changed(self, since: int) -> int: ...

    async def wait_gone(self, peer: str) -> None:
        """Returns when the node is dead, removed or unknown."""
        ...

    def announce(
        self,
        *,
        load: Load | None = None,
        capabilities: Capabilities | None = None,
        models: Sequence[ModelRef] | None = None,
        cabinets: Sequence[CabinetInfo] | None = None,
        addresses: Sequence[str] | None = None,
        daemon: str | None = None,
        leaving: bool | None = None,
    ) -> None:
        """Change what this node's heartbeat says. New models, cabinets and leaving go out at once."""
        ...


class Elector(Protocol):
    """Seats of this swarm, as this node sees them."""

    @property
    def boot(self) -> str:
        """This node's boot id: random at each start, part of its claims."""
        ...

    def seats(self) -> tuple[Seat, ...]:
        """Present holders, by seat number; the own seat included."""
        ...

    def mine(self) -> Seat | None: ...

    def term(self) -> int:
        """Highest term seen."""
        ...

    async def wait_seat(self) -> Seat:
        """Returns when this node holds a seat."""
        ...

    async def wait_lost(self, seat: Seat) -> None:
        """Returns when this node no longer holds this seat in this term."""
        ...

    def advertise(self, grpc: str, local_only: bool) -> None:
        """The address that beats tell while a seat is held."""
        ...

    def tell_load(self, jobs: int) -> None:
        """Unfinished jobs that this node drives: told with the next beat, shown in `seats` of every node."""
        ...

    def changed(self) -> int:
        """A number that grows when the set of (seat, peer, boot) in `seats` changes."""
        ...

    async def wait_changed(self, since: int) -> int:
        """Returns `changed` when it is above ``since``."""
        ...

    async def release(self) -> None:
        """Give the seat up (on a clean stop): others see it vacant at once."""
        ...


class Models(Protocol):
    """The swarm's model catalogue, from heartbeats and manifests."""

    def all(self) -> tuple[ModelRef, ...]:
        """One per (id, cid), built-ins included."""
        ...

    def holders(self, cid: str) -> tuple[str, ...]:
        """Peer ids of live nodes that have the artifact; all of them for built-ins."""
        ...

    def resolve(self, name: str) -> ModelRef:
        """By id or CID. Raises `NotFound`; `FailedPrecondition` if an id names several CIDs."""
        ...

    async def manifest(self, ref: ModelRef) -> ModelManifest:
        """Fetched once, then cached. Raises `Unavailable` if nobody has it."""
        ...


# --- the daemon ----------------------------------------------------------------------------------


class TaskService(Protocol):
    """The part of every node that runs work. ``caller`` is the authenticated peer id."""

    def run_task(self, order: TaskOrder, caller: str) -> AsyncGenerator[TaskUpdate, None]:
        """Accepts durably (or raises `ResourceExhausted`, `Fenced`, `PermissionDenied`, `InvalidArgument`),
        then yields progress; the last update carries the signed attempt. Closing the iterator leaves the task
        running: only `cancel_task`, its timeout or the end of the node stop it. The same attempt ordered again under
        an equal or higher ballot is the same task: it runs once, and the new caller gets all updates. While
        the attempt cannot be written down, callers get `ResourceExhausted` and the node tries on."""
        ...

    async def cancel_task(self, job: str, task: str, attempt: int, ballot: Ballot) -> bool:
        """Whether there was something to cancel. Raises `Fenced`."""
        ...

    async def attempts_of(self, job: str, ballot: Ballot) -> TaskReport:
        """What this node has of a job, for its new owner. Lower ballots are fenced from now on. Raises `Fenced`."""
        ...

    def unfetched(self) -> tuple[SignedEntry, ...]:
        """Finished attempts that no caller of `run_task` is there for, oldest first: to be offered to the seats. Bounded;
        what falls out stays in the journal. Some may have been received already."""
        ...

    def fetched(self, entry_ids: Collection[str]) -> None:
        """These attempts are in good hands: they leave `unfetched`. Unknown ids are ignored."""
        ...

    async def wait_unfetched(self, since: int) -> int:
        """Returns when more attempts are to be offered than at version ``since``; returns the version now.
        Versions start at 0, with nothing to offer."""
        ...

    async def prewarm(self, model_cid: str, manifest_cid: str, providers: Sequence[str]) -> bool: ...

    def stats(self) -> Mapping[str, Any]: ...

    def models(self) -> tuple[ModelRef, ...]: ...

    def capabilities(self) -> Capabilities: ...

    def load(self) -> Load: ...

    async def add_model_file(
        self, path: Path, *, id: str, licence: str, batch_axis: int | None, form: str = "", sign: bool = False,
        check: Callable[[str, str], None] | None = None,
    ) -> tuple[ModelManifest, str]:  # fmt: skip
        """Checks the file, or folder, by running it once in an agent, stores and pins it; returns manifest and manifest CID.
        ``form``: what the author says of it, JSON (`dimnode.domain.model_form`). ``sign``: with this node's key. ``check``
        gets id and CID before anybody is told of the model, and may raise."""
        ...

    async def add_model_cid(
        self, cid: str, *, id: str, format: str, licence: str, batch_axis: int | None, providers: Sequence[str], form: str = ""
    ) -> tuple[ModelManifest, str]:
        """The same for an artifact that is in the swarm already."""
        ...

    async def check_model(self, manifest: ModelManifest, manifest_cid: str, providers: Sequence[str]) -> Mapping[str, Any]:
        """Loads it in a fresh agent of this node and runs it once: ``{"golden", "schema", "memory"}``, whether it was
        compared with a golden pair, whether the schema is that of the manifest, bytes. Raises what a task would fail with."""
        ...

    async def remove_model(self, id: str) -> tuple[ModelRef, ...]:
        """Unpins and forgets what this node has under an id or CID. Raises `NotFound`, `FailedPrecondition`."""
        ...

    async def add_cabinet(self, name: str, path: Path, policy: Mapping[str, Any] | None) -> CabinetInfo: ...

    def cabinets(self) -> tuple[CabinetInfo, ...]: ...


class DaemonClient(Protocol):
    """Calls to the daemons of other nodes (and, without a network, to the own one)."""

    def run_task(self, peer: str, order: TaskOrder) -> AsyncGenerator[TaskUpdate, None]:
        """Raises `Unavailable` if the node cannot be reached or the connection breaks; else as
        `TaskService.run_task`."""
        ...

    async def cancel_task(self, peer: str, job: str, task: str, attempt: int, ballot: Ballot) -> bool: ...

    async def health(self, peer: str) -> Mapping[str, Any]: ...

    async def stats(self, peer: str) -> Mapping[str, Any]: ...

    async def prewarm(self, peer: str, model_cid: str, manifest_cid: str, providers: Sequence[str]) -> bool: ...


# --- the orchestrator ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Accepted:
    job_id: str
    copies: int


JobDocument = Mapping[str, Any]
"""The outside form of a job: see ``Job`` in proto/dimnode/rpc/v1/common.proto, snake case."""
ResultDocument = Mapping[str, Any]
"""SPEC.md section 3; tensors are `dimnode.domain.tensors.TensorValue`, ``receipt`` is bytes."""


class OrchestratorApi(Protocol):
    """What the gRPC service, the gateway and the CLI ask of an orchestrator."""

    async def submit(self, form: JobForm, principal: str) -> Accepted: ...

    async def submit_many(self, forms: Sequence[JobForm | Exception], principal: str) -> list[Accepted | Exception]:
        """One durable transaction for all; each is accepted or refused on its own."""
        ...

    async def get(self, job_id: str) -> JobDocument: ...

    async def list_jobs(self, active: bool, limit: int) -> list[JobDocument]: ...

    def watch(self, job_id: str) -> AsyncIterator[JobDocument]: ...

    def follow(self, job_id: str) -> AsyncIterator[JobDocument | PartialOutput]:
        """As `watch`, and the text of tasks while it grows: a late caller gets what there is."""
        ...

    async def cancel(self, job_id: str) -> JobDocument: ...

    async def result(self, job_id: str, wait: float = 0.0) -> ResultDocument:
        """Waits at most ``wait`` seconds for the job to end. Raises `NotReady`, or what the job failed with."""
        ...

    async def dry_run(self, form: JobForm, principal: str) -> Mapping[str, Any]:
        """``{"accepted", "placement", "estimated_cost"}``"""
        ...


class SwarmApi(Protocol):
    """Read-only views of the swarm and artifact transfer, for the client API and the node's socket."""

    def nodes(self) -> list[Mapping[str, Any]]:
        """``NodeInfo`` documents."""
        ...

    def cluster(self) -> Mapping[str, Any]:
        """``{"swarm", "orchestrators": [OrchestratorInfo]}``"""
        ...

    async def models(self) -> list[Mapping[str, Any]]:
        """``ModelInfo`` documents."""
        ...

    async def put_artifact(self, chunks: AsyncIterator[bytes]) -> tuple[str, int]: ...

    def get_artifact(self, cid: str) -> AsyncIterator[bytes]: ...

    async def add_model(self, cid: str, *, id: str, format: str, licence: str, batch_axis: int | None, form: str = "") -> Mapping[str, Any]:
        """``ModelInfo``. ``form``: what the author says of it, JSON (`dimnode.domain.model_form`)."""
        ...
