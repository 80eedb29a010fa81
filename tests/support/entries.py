"""Record entries for tests, with a signature that is cheap to make and to check."""

from __future__ import annotations

import hashlib
from typing import Any

from dimnode.core.record_gate import EntryRules
from dimnode.domain import codec
from dimnode.domain.record import (
    SIGNING_PREFIX,
    Assign,
    Attempt,
    Ballot,
    Body,
    Checkpoint,
    Claim,
    Core,
    OutcomeEntry,
    PlanEntry,
    SealEntry,
    SignedEntry,
    StatusEntry,
    Void,
)

JOB = "job-a"


def fake_sign(author: str, data: bytes) -> bytes:
    return hashlib.sha512(author.encode() + data).digest()  # as long as a real one


def fake_verify(author: str, data: bytes, signature: bytes) -> bool:
    return signature == fake_sign(author, data)


RULES = EntryRules(fake_verify)


class FakeSigner:
    def __init__(self, peer_id: str) -> None:
        self.peer_id = peer_id

    def sign(self, data: bytes) -> bytes:
        return fake_sign(self.peer_id, data)


def signed(body: Body, author: str | None = None) -> SignedEntry:
    if author is None:
        author = body.node if isinstance(body, Attempt) else "acceptor" if isinstance(body, Core) else body.ballot.peer
    payload = codec.encode(body)
    return SignedEntry(payload, author, fake_sign(author, SIGNING_PREFIX + payload))


def raw(author: str = "p", **plain: Any) -> SignedEntry:
    payload = codec.encode(plain)
    return SignedEntry(payload, author, fake_sign(author, SIGNING_PREFIX + payload))


def ballot(n: int, peer: str = "p", boot: str = "b") -> Ballot:
    return Ballot(n, peer, boot)


def core(job: str = JOB, submitted: float = 1.0, spec: bytes = b"spec") -> SignedEntry:
    return signed(
        Core(job=job, spec_cid="c", spec=spec, pattern="chained", priority="normal", principal="me", submitted=submitted, timeout=60)
    )


def claim(n: int, peer: str = "p", at: float = 2.0, elapsed: float = 0.0, job: str = JOB) -> SignedEntry:
    return signed(Claim(job=job, ballot=ballot(n, peer), at=at, elapsed=elapsed))


def plan(n: int, peer: str = "p", **content: Any) -> SignedEntry:
    return signed(PlanEntry(job=JOB, ballot=ballot(n, peer), plan=content))


def assign(n: int, task: str = "t", attempt: int = 1, node: str = "x", peer: str = "p", at: float = 3.0) -> SignedEntry:
    return signed(Assign(job=JOB, ballot=ballot(n, peer), task=task, attempt=attempt, node=node, task_key="k", model_cid="m", at=at))


def attempt(
    n: int, task: str = "t", number: int = 1, status: Any = "completed", node: str = "x", peer: str = "p", rows: int = 0
) -> SignedEntry:
    return signed(Attempt(job=JOB, ballot=ballot(n, peer), task=task, attempt=number, task_key="k", status=status, node=node, rows=rows))


def void(n: int, attempt_id: str, peer: str = "p") -> SignedEntry:
    return signed(Void(job=JOB, ballot=ballot(n, peer), attempt_id=attempt_id, reason="gone"))


def seal(n: int, round_: int = 0, peer: str = "p", **attempts: str) -> SignedEntry:
    return signed(SealEntry(job=JOB, ballot=ballot(n, peer), round=round_, attempts=attempts))


def checkpoint(n: int, seal_id: str, round_: int = 0, peer: str = "p", cid: str = "c") -> SignedEntry:
    return signed(Checkpoint(job=JOB, ballot=ballot(n, peer), round=round_, seal=seal_id, cid=cid))


def outcome(n: int, status: Any, peer: str = "p", at: float = 9.0, result: bytes | None = None, job: str = JOB) -> SignedEntry:
    return signed(OutcomeEntry(job=job, ballot=ballot(n, peer), status=status, at=at, result=result))


def status(n: int, name: Any, at: float = 4.0, elapsed: float = 0.0, peer: str = "p") -> SignedEntry:
    return signed(StatusEntry(job=JOB, ballot=ballot(n, peer), status=name, at=at, elapsed=elapsed))
