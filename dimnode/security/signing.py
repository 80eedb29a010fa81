"""Signed statements of nodes: record entries. A peer id contains its public key, so nothing is looked up."""

from __future__ import annotations

from dimnode.core.job_record import Verify
from dimnode.domain import codec
from dimnode.domain.record import SIGNING_PREFIX, Body, SignedEntry
from dimnode.ports import Signer
from p2p.identity import verify as verify_with_peer_id


def sign_entry(body: Body, signer: Signer) -> SignedEntry:
    """The entry of ``body`` by this node. Raises `codec.CodecError` if it cannot be encoded (NaN, say)."""
    payload = codec.encode(body)
    return SignedEntry.of(body, payload, signer.peer_id, signer.sign(SIGNING_PREFIX + payload))


def verify_entry(entry: SignedEntry, verify: Verify = verify_with_peer_id) -> bool:
    """Whether the signature is the author's. Says nothing about the content: see
    `dimnode.core.job_record.check_entry`."""
    return verify(entry.author, SIGNING_PREFIX + entry.payload, entry.signature)
