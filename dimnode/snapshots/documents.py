"""What the swarm's published state consists of: the root, leaves of jobs and of members, and who may speak under which name.

The root is DAG-CBOR with links to two trees (`dimnode.snapshots.tree`): ``jobs`` by job id, ``registry`` by peer id. A leaf of jobs has the
state of some jobs, and a link to a file with their whole records. Everything in it can be checked: members' heartbeats and record entries are signed by
their authors; states of jobs are the word of the seat that published them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from dimnode.core.job_record import RANK, Record
from dimnode.core.job_view import view
from dimnode.core.record_blocks import blocks_of
from dimnode.domain.node import NodeState
from dimnode.ports import Signer
from dimnode.swarm.heartbeats import SignedHeartbeat, Verify
from p2p.ipfs import dagcbor
from p2p.ipfs.api import BlockCorrupt
from p2p.ipfs.cid import Cid

VERSION = 1
CARD_PREFIX = b"dim-name-v1:"
T = TypeVar("T")


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """A node's word that it publishes under this IPNS name, whose key is not the node's own."""

    peer: str
    swarm: str
    name: str
    since: float
    """Wall clock of the node: of two cards of one node the later one counts."""
    signature: bytes = b""


class JobSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a job as one node's record tells it."""

    job: str
    digest: bytes
    status: str
    owner: str
    boot: str
    epoch: int
    pattern: str
    priority: str
    submitted: float
    updated: float
    spec_cid: str
    result_cid: str
    error: str
    """Its code; empty if there is none."""
    blocks: bool
    """The record names blocks that are not in it."""

    @property
    def finished(self) -> bool:
        return self.status in RANK

    def outdoes(self, other: JobSummary) -> bool:
        """Whether it is the more likely state, of two that say different things: ends before what goes on, as the merged
        record would have it; then the later owner, then the later word."""
        return self._order() > other._order()

    def _order(self) -> tuple[int, int, float, bytes]:
        final = RANK.get(self.status, 0)
        return (final if final >= RANK["completed"] else 0, self.epoch, self.updated, self.digest)


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A node as a seat knows it."""

    peer: str
    state: NodeState
    since: float
    """Wall clock of the seat when it was seen last, of one that is not alive; else when its heartbeat was taken into the snapshot."""
    heartbeat: SignedHeartbeat


class Root(msgspec.Struct, frozen=True, kw_only=True):
    """``jobs`` and ``registry`` are CIDs of trees; empty: there is nothing."""

    swarm: str
    card: Card
    at: float
    """Wall clock of the publisher."""
    jobs: str = ""
    registry: str = ""
    job_count: int = 0
    member_count: int = 0
    version: int = VERSION


def sign_card(signer: Signer, swarm: str, name: str, since: float) -> Card:
    card = Card(peer=signer.peer_id, swarm=swarm, name=name, since=since)
    return msgspec.structs.replace(card, signature=signer.sign(_signed(card)))


def authentic(card: Card, swarm: str, verify: Verify) -> bool:
    return card.swarm == swarm and verify(card.peer, _signed(card), card.signature)


def _signed(card: Card) -> bytes:
    return CARD_PREFIX + dagcbor.encode([card.peer, card.swarm, card.name, float(card.since)])


def summary(record: Record) -> JobSummary:
    seen = view(record)
    core, owner, outcome = seen.core, seen.owner, seen.outcome
    return JobSummary(
        job=record.job,
        digest=record.digest,
        status=seen.status,
        owner=owner.peer if owner else "",
        boot=owner.boot if owner else "",
        epoch=seen.epoch,
        pattern=core.pattern if core else "",
        priority=core.priority if core else "",
        submitted=float(core.submitted) if core else 0.0,
        updated=float(seen.updated),
        spec_cid=core.spec_cid if core else "",
        result_cid=(outcome.result_cid or "") if outcome else "",
        error=seen.error.code if seen.error else "",
        blocks=bool(blocks_of(record)),
    )


def encode_leaf(items: Sequence[Any], records: Cid | None = None) -> bytes:
    """Of summaries with the file of their records, or of members."""
    plain = dagcbor.encode(msgspec.to_builtins(list(items), builtin_types=(bytes,)))
    return dagcbor.encode_linked({"items": dagcbor.Encoded(plain), "records": records})


def decode_leaf(plain: Any, kind: type[T]) -> tuple[list[T], Cid | None]:
    """Raises `BlockCorrupt`."""
    try:
        items = msgspec.convert(plain["items"], list[kind], builtin_types=(bytes,))
        link = plain["records"]
    except (msgspec.ValidationError, TypeError, KeyError) as error:
        raise BlockCorrupt("not a leaf") from error
    return items, dagcbor.link_in(link) if link is not None else None


def encode_root(root: Root, jobs: Cid | None, registry: Cid | None) -> bytes:
    plain: dict[str, Any] = msgspec.to_builtins(root, builtin_types=(bytes,))
    return dagcbor.encode_linked({**plain, "jobs": jobs, "registry": registry})


def decode_root(plain: Any, swarm: str, card: Card) -> Root:
    """``card``: whose root it has to be. Raises `BlockCorrupt`."""
    root = reread_root(plain)
    if root.version != VERSION:
        raise BlockCorrupt(f"a swarm's state of version {root.version}; this node reads version {VERSION}")
    if root.swarm != swarm or root.card != card:
        raise BlockCorrupt("the state of another swarm, or of another node")
    return root


def reread_root(plain: Any) -> Root:
    """One that this node wrote. Raises `BlockCorrupt`."""
    try:
        links = {key: dagcbor.link_in(plain[key]).text if plain[key] is not None else "" for key in ("jobs", "registry")}
        return msgspec.convert({**plain, **links}, Root, builtin_types=(bytes,))
    except (msgspec.ValidationError, TypeError, KeyError) as error:
        raise BlockCorrupt("not the root of a swarm's state") from error


NOTHING = Root(swarm="", card=Card(peer="", swarm="", name="", since=0.0), at=0.0)
