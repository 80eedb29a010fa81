"""Entries signed with a real key are believed, anything else is not."""

from __future__ import annotations

from dimnode.core.job_record import check_entry
from dimnode.domain.record import SignedEntry
from dimnode.security.signing import sign_entry, verify_entry
from p2p.identity import Identity, verify
from tests.support import entries as e


def test_a_real_signature_round() -> None:
    one, other = Identity.generate(), Identity.generate()
    body = e.core().body()
    entry = sign_entry(body, one)  # pyright: ignore[reportArgumentType]
    assert verify_entry(entry)
    assert check_entry(entry, verify) == body
    assert not verify_entry(SignedEntry(entry.payload, other.peer_id, entry.signature))
    assert not verify_entry(SignedEntry(entry.payload + b"x", one.peer_id, entry.signature))
    assert not verify_entry(SignedEntry(entry.payload, "not a peer id", entry.signature))
