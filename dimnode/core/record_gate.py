"""What may enter a record that another node sends a part of."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable
from dataclasses import dataclass, field

from dimnode.core.ballots import leaps
from dimnode.core.entry_batches import Verify
from dimnode.core.job_record import FINAL, EntryRefused, Record, check_entry
from dimnode.domain import codec
from dimnode.domain.record import Attempt, Ballot, Body, Claim, Core, OutcomeEntry, SignedEntry, Unknown


class NotADecider(EntryRefused):
    """A decision by a node that may not decide. Nothing that comes with it is taken either: without it, it would say something else."""


@dataclass(frozen=True, slots=True)
class EntryRules:
    """Whose entries this node believes, and what of them."""

    verify: Verify
    swarm: str | None = None
    """Its name, of which job ids are made; None: that is not checked (cores that are not of this swarm, in tests)."""
    deciders: frozenset[str] = field(default_factory=frozenset[str])
    """Peers that may decide over jobs, or might once (``election.allow`` and ``election.former``); empty: every member. The others run
    tasks, and say how those went."""

    def check(self, entry: SignedEntry) -> Body | Unknown:
        """The decoded body of an entry that is fit to be stored. Raises `EntryRefused`, `NotADecider` among them."""
        if not self.may_decide(entry.author) and not isinstance(_body(entry), (Attempt, Unknown)):
            raise NotADecider(f"a decision by {entry.author}, which is neither in election.allow nor in election.former")
        return check_entry(entry, self.verify, swarm=self.swarm)

    def may_decide(self, peer: str) -> bool:
        return not self.deciders or peer in self.deciders


class RecordGate:
    def __init__(self, rules: EntryRules) -> None:
        self._rules = rules

    def may_decide(self, peer: str) -> bool:
        return self._rules.may_decide(peer)

    def check(self, job: str, entry: SignedEntry, record: Record | None, unwritten: Container[str] = ()) -> bool:
        """Whether the entry is one to store; what the record has, or would not keep, is not looked at, but for what is only in
        memory, ``unwritten`` (ids). Raises `EntryRefused`."""
        if record is not None and ((entry.id in record and entry.id not in unwritten) or not record.keeps(_body(entry))):
            return False
        body = self._rules.check(entry)
        if body.job != job:
            raise EntryRefused(f"entry of {body.job} in the record of {job}")
        if not isinstance(body, (Core, Unknown)) and leaps(body.ballot, highest_n(record)):
            raise EntryRefused(f"ballot number {body.ballot.n} leaps")
        return True


def _body(entry: SignedEntry) -> Body | Unknown:
    try:
        return entry.body()
    except codec.CodecError as e:
        raise EntryRefused(f"not an entry: {e}") from e


def highest_n(record: Record | None) -> int:
    """Of the claims; 0 if there is none."""
    return max((b.ballot.n for _, b in record.items() if isinstance(b, Claim)), default=0) if record is not None else 0


def decided_under(entries: Iterable[SignedEntry], author: str) -> Ballot | None:
    """The highest ballot under which that node decided any of these; None if it decided nothing. What others decided before
    it, and attempts, only come along with it."""
    bodies = (e.body() for e in entries if e.author == author)
    return max((b.ballot for b in bodies if not isinstance(b, (Core, Unknown, Attempt))), default=None)


def begins(entries: Iterable[SignedEntry]) -> bool:
    """Whether a record can start with these: it has a core, or is deleted."""
    return any(isinstance(b := e.body(), Core) or (isinstance(b, OutcomeEntry) and b.status == "deleted") for e in entries)


def end_of(record: Record, told: Collection[str], room: int) -> tuple[SignedEntry, ...]:
    """For whoever drives a job that has ended here: its final outcomes that are not among the ids ``told`` and fit into ``room`` bytes."""
    out: list[SignedEntry] = []
    for entry in record.entries() if record.final else ():
        body = entry.body()
        if isinstance(body, OutcomeEntry) and body.status in FINAL and entry.id not in told and len(entry.payload) <= room:
            out.append(entry)
            room -= len(entry.payload)
    return tuple(out)


def proof_of(record: Record, room: int) -> tuple[SignedEntry, ...]:
    """For whoever is fenced: the whole record if it fits into ``room`` bytes, else who it is and whose."""
    if record.size <= room:
        return record.entries()
    telling = [e for e in record.entries() if isinstance(e.body(), (Claim, Core))]
    return tuple(telling) if sum(len(e.payload) for e in telling) <= room else tuple(e for e in telling if isinstance(e.body(), Claim))
