"""Signed statements of nodes: record entries. A peer id contains its public key, so nothing is looked up."""

from __future__ import annotations

from collections.abc import Sequence

from dimnode.core.entry_batches import Verify, holds, sign_together
from dimnode.domain import codec
from dimnode.domain.record import SIGNING_PREFIX, Attempt, Body, SignedEntry
from dimnode.ports import Signer
from p2p.identity import verify as verify_with_peer_id


def sign_entry(body: Body, signer: Signer) -> SignedEntry:
    """The entry of ``body`` by this node. Raises `codec.CodecError` if it cannot be encoded (NaN, say)."""
    return sign_entries([body], signer)[0]


def sign_entries(bodies: Sequence[Body], signer: Signer) -> list[SignedEntry]:
    """Of bodies that are written together, with few signatures (`dimnode.core.entry_batches`). An attempt has its own: it is a receipt, whose CID
    must not depend on what else was signed with it. Raises `codec.CodecError`."""
    payloads = [codec.encode(body) for body in bodies]
    together = iter(
        sign_together([SIGNING_PREFIX + p for b, p in zip(bodies, payloads, strict=True) if not isinstance(b, Attempt)], signer.sign)
    )
    signatures = [
        signer.sign(SIGNING_PREFIX + p) if isinstance(b, Attempt) else next(together) for b, p in zip(bodies, payloads, strict=True)
    ]
    return [SignedEntry.of(b, p, signer.peer_id, s) for b, p, s in zip(bodies, payloads, signatures, strict=True)]


def verify_entry(entry: SignedEntry, verify: Verify = verify_with_peer_id) -> bool:
    """Whether the signature is the author's. Says nothing about the content: see
    `dimnode.core.job_record.check_entry`."""
    return holds(entry.author, SIGNING_PREFIX + entry.payload, entry.signature, verify)
