"""The entries of a job record: immutable, canonical, signed by their author. DESIGN.md section 4.

A record is a grow-only set of entries; its state is a view (`dimnode.core.job_record`). Unknown kinds
are carried along unchanged, so that versions can differ.

The structs hold data only, no cycles: the garbage collector need not look at them (``gc=False``), of which a node has many thousands.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any, Literal, cast, get_args

import msgspec

from dimnode.domain import codec
from dimnode.domain.ids import EntryId
from dimnode.domain.tensors import TensorValue

Terminal = Literal["completed", "failed", "cancelled", "expired", "deleted"]
JobStatus = Literal["queued", "scheduling", "fetching", "running", "aggregating", "completed", "failed", "cancelled", "expired"]


class Ballot(msgspec.Struct, frozen=True, gc=False, order=True):
    """Totally ordered right to decide over a job."""

    n: int
    peer: str
    boot: str


class ErrorInfo(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    code: str
    message: str
    hint: str = ""
    details: dict[str, Any] = {}


class Core(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag="core"):
    """The job as it was accepted. ``spec`` is the canonical DAG-CBOR of the form, inputs included
    (inline) or referred to by CID."""

    job: str
    spec_cid: str
    spec: bytes
    pattern: str
    priority: str
    principal: str
    submitted: float
    """Seconds since the epoch on the acceptor's clock: shown, never decided by."""
    timeout: float
    nonce: str = ""
    labels: dict[str, str] = {}
    """The form's, for listings."""


class Claim(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag="claim"):
    job: str
    ballot: Ballot
    elapsed: float = 0.0
    """Seconds the job had lived when this owner took it."""
    at: float = 0.0


class PlanEntry(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag="plan"):
    """Round 0 of the job's tasks as the first owner planned them (`patterns.api.Plan`, plain form),
    so that a later owner makes the same shards. Of several the lowest (ballot, entry id) counts."""

    job: str
    ballot: Ballot
    plan: dict[str, Any]


class Assign(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag="assign"):
    job: str
    ballot: Ballot
    task: str
    """Task key."""
    attempt: int
    node: str
    task_key: str
    """hash(model CID, input digests, parameters, round, cabinet commitment): equal keys, equal work."""
    model_cid: str
    at: float


class Receipt(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What a node states about one task: signed as part of its attempt entry."""

    job: str
    task: str
    attempt: int
    node: str
    model_cid: str
    inputs: dict[str, str]
    """Input name -> content digest, or ``cabinet:NAME`` -> commitment."""
    outputs: dict[str, str]
    """Output name -> content digest."""
    started: float
    ended: float
    cost: float
    previous: str = ""
    """Entry id of this node's receipt before this one: receipts chain."""


class Attempt(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag="attempt"):
    """A fact, by its executor: counts from any ballot."""

    job: str
    ballot: Ballot
    """Of the assignment it answers."""
    task: str
    attempt: int
    task_key: str
    status: Literal["completed", "failed", "cancelled"]
    outputs: dict[str, TensorValue] = {}
    rows: int = 0
    error: ErrorInfo | None = None
    retryable: bool = True
    """False if no other node could do better (bad input, say)."""
    interrupted: bool = False
    """The node stopped or restarted meanwhile: neither the task nor its model did anything wrong."""
    shortage: bool = False
    """The node had no memory, disk or card free for it when it came to that: the model has not run."""
    receipt: Receipt | None = None
    node: str = ""


class Void(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag="void"):
    """The output of this attempt is nowhere to be had: it does not count as done."""

    job: str
    ballot: Ballot
    attempt_id: str
    """Entry id of the attempt."""
    reason: str


class SealEntry(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag="seal"):
    job: str
    ballot: Ballot
    round: int
    attempts: dict[str, str]
    """Task key -> entry id of the attempt that the aggregate covers."""
    plan: str = ""
    """Entry id of the plan that these tasks are of: two sides of a partition may have made one each."""


class Checkpoint(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag="checkpoint"):
    """What a round came to is a block of its own: a later owner need not aggregate it again. An aid, nothing is decided by it."""

    job: str
    ballot: Ballot
    round: int
    seal: str
    """Entry id of the seal that it was made from."""
    cid: str
    """DAG-CBOR; see `dimnode.orchestrator.checkpoints`."""


class OutcomeEntry(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag="outcome"):
    job: str
    ballot: Ballot
    status: Terminal
    at: float
    result_cid: str | None = None
    error: ErrorInfo | None = None
    result: bytes | None = None
    """The result document itself (canonical DAG-CBOR) while it is small."""


class StatusEntry(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag="status"):
    """When the owner entered a status: for people, nothing is decided by it. ``elapsed`` checkpoints
    the job's age."""

    job: str
    ballot: Ballot
    status: JobStatus
    at: float
    elapsed: float = 0.0


class Unknown(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """An entry of a kind that this version does not know."""

    kind: str
    job: str = ""


Body = Core | Claim | PlanEntry | Assign | Attempt | Void | SealEntry | Checkpoint | OutcomeEntry | StatusEntry
_KINDS: dict[str, type[Body]] = {str(kind.__struct_config__.tag): kind for kind in get_args(Body)}
KINDS = frozenset(_KINDS)


class SignedEntry(msgspec.Struct, frozen=True, dict=True):
    """The wire and disk form. The signature is Ed25519 over ``SIGNING_PREFIX + payload``.

    Immutable, so its id and its decoded body are made once (``dict=True`` gives them a place)."""

    payload: bytes
    author: str
    signature: bytes

    @cached_property
    def id(self) -> EntryId:
        """sha-256 over author and payload; the signature is not part of it."""
        return EntryId(hashlib.sha256(self.author.encode() + b"\0" + self.payload).hexdigest())

    def body(self) -> Body | Unknown:
        """Raises `codec.CodecError` if the payload is not an entry at all."""
        return self._body

    @cached_property
    def _body(self) -> Body | Unknown:
        plain = codec.decode_plain(self.payload)
        if not isinstance(plain, dict) or not isinstance(plain.get("type"), str):
            raise codec.CodecError("entry has no type")
        name: str = plain["type"]
        kind = _KINDS.get(name)
        if kind is None:
            job = plain.get("job", "")
            return Unknown(kind=name, job=job if isinstance(job, str) else "")
        try:
            return msgspec.convert(plain, kind, builtin_types=(bytes,))  # of one kind: what all of them take is looked up anew each time
        except msgspec.ValidationError as e:
            raise codec.CodecError(str(e)) from e

    @classmethod
    def of(cls, body: Body, payload: bytes, author: str, signature: bytes) -> SignedEntry:
        """The entry of a body that was just encoded to ``payload``: it need not be decoded again."""
        entry = cls(payload, author, signature)
        cast("dict[str, Any]", entry.__dict__)["_body"] = body
        return entry


SIGNING_PREFIX = b"dim-entry-v1:"


def kind_of(body: Body | Unknown) -> str:
    """The tag that the body is stored under."""
    if isinstance(body, Unknown):
        return body.kind
    tag = type(body).__struct_config__.tag
    assert isinstance(tag, str)
    return tag
