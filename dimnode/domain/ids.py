"""Identifiers. All are strings with a fixed way of making them."""

from __future__ import annotations

import hashlib
import re
from typing import NewType

import libipld

PeerId = NewType("PeerId", str)
"""libp2p peer id, base58 (``12D3KooW...``). It contains the node's Ed25519 public key."""
JobId = NewType("JobId", str)
TaskId = NewType("TaskId", str)
"""``{job_id}:{task key}:{attempt number}``"""
Cid = NewType("Cid", str)
"""Content identifier, CIDv1 base32 (``bafy...``, ``bafk...``)."""
EntryId = NewType("EntryId", str)
"""sha-256 of a record entry's signed bytes, hexadecimal."""


def job_id(swarm: str, principal: str, nonce: str, spec_digest: str) -> JobId:
    """``hash(swarm, principal, idempotency key or random, spec digest)``: the same key and spec give
    the same id on any orchestrator."""
    h = hashlib.sha256()
    for part in (swarm, principal, nonce, spec_digest):
        raw = part.encode()
        h.update(len(raw).to_bytes(8, "big") + raw)
    return JobId("job-" + libipld.encode_multibase("b", h.digest()[:15])[1:])


_JOB_ID = re.compile(r"job-[a-z2-7]{24}")


def may_be_job_id(text: str) -> bool:
    """Whether some job could have this id."""
    return _JOB_ID.fullmatch(text) is not None


def task_id(job: str, key: str, attempt: int) -> TaskId:
    return TaskId(f"{job}:{key}:{attempt}")
